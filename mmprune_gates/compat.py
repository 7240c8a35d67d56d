"""Cures for what is broken between the installed versions of other packages.

This is the only file that knows other packages' versions. Each cure looks for its symptom first, does nothing
where the symptom is absent, and logs its name (level info, logger ``mmprune_gates``) where it acted. None of
them needs a package that is not installed: with torch alone nothing is touched.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode

logger = logging.getLogger('mmprune_gates')

# The two operators that torchvision decorates while it is being imported. Its C++ library defines them; that
# cannot load when torchvision was built for CUDA and torch for the CPU (PyPI has only CUDA builds).
TORCHVISION_SCHEMAS = {
    'torchvision::nms': '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'torchvision::qnms': '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
}
TORCHVISION_SYMPTOM = 'operator torchvision::nms does not exist'

# mmengine's function from a name in ``_base_``, and the file that names it, to (path, scope); no setting changes it.
CONFIG_FINDER = '_get_cfg_path'
OWN_CONFIGS = Path(__file__).parent / '.mim' / 'configs'

COMPLEXITY_SYMPTOM = '"input_shape" and "inputs" cannot be both set'

# Names under which pickled numpy data finds its constructors: numpy 2 writes the first, numpy 1 the second.
NUMPY_MULTIARRAY_MODULES = ('numpy._core.multiarray', 'numpy.core.multiarray')
# What checkpoints of mmengine's Runner take with ``getattr``, by the module and name of the class.
METHODS = {
    ('mmengine.logging', 'HistoryBuffer'): ('min', 'max', 'current', 'mean'),
    ('mmengine.optim', 'OneCycleParamScheduler'): ('_annealing_cos', '_annealing_linear'),
}


def has_package(name: str) -> bool:
    """Whether the top-level package ``name`` can be imported (it is not imported to find out)."""
    return importlib.util.find_spec(name) is not None


def apply_cures() -> tuple[str, ...]:
    """Apply every cure whose symptom exists.

    Returns:
        The names of the cures that acted, in the order in which they ran.
    """
    acted = tuple(name for name, (package, cure) in CURES.items() if has_package(package) and cure())
    for name in acted:
        logger.info('cure applied: %s', name)
    return acted


def define_torchvision_operators() -> bool:
    """Make torchvision importable beside a torch that cannot load its C++ library.

    Only the schemas are defined: calling ``torchvision.ops.nms`` still fails, and torchvision explains why.
    """
    if 'torchvision' in sys.modules:
        return False
    loaded_before = set(sys.modules)
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if TORCHVISION_SYMPTOM not in str(error):
            raise
    else:
        return False
    _forget_modules('torchvision', keep=loaded_before)
    for name, schema in TORCHVISION_SCHEMAS.items():
        torch.library.define(name, schema)
    importlib.import_module('torchvision')
    return True


def replace_missing_mmcv_operators() -> bool:
    """Make ``mmcv.ops`` importable with mmcv-lite; its operators raise a clear error when called.

    ``sys.modules`` gets no stand-in for ``mmcv._ext``: mmengine would take it for a full mmcv.
    """
    if importlib.util.find_spec('mmcv._ext') is not None:
        return False
    ext_loader: Any = importlib.import_module('mmcv.utils.ext_loader')
    if ext_loader.load_ext is load_missing_operators:
        return False
    ext_loader.load_ext = load_missing_operators
    return True


def load_missing_operators(name: str, funcs: list[str]) -> SimpleNamespace:
    """Stand in for ``mmcv.utils.ext_loader.load_ext``.

    Args:
        name: The extension module asked for, relative to mmcv (``_ext``).
        funcs: The operators that the caller needs from it.

    Returns:
        An object that has every name of ``funcs``; each raises a RuntimeError when called.
    """
    return SimpleNamespace(**{func: _missing_operator(f'mmcv.{name}', func) for func in funcs})


def allow_checkpoint_classes() -> bool:
    """Let ``torch.load(weights_only=True)`` read the checkpoints that mmengine's own Runner writes.

    They hold log histories (mmengine's HistoryBuffer over numpy arrays), metrics that are numpy numbers, and the
    annealing function of OneCycleLR.
    """
    allowed = torch.serialization.get_safe_globals()
    missing: list[Any] = [item for item in _checkpoint_classes() if item not in allowed]
    torch.serialization.add_safe_globals(missing)
    return bool(missing)


def name_packages_by_module() -> bool:
    """Let ``_base_ = 'mmseg::...'`` find a package that is installed under another distribution name.

    mmengine translates a config's scope to the name of the original distribution (mmseg: mmsegmentation)
    and asks the installer's metadata for it. Where only a fork (onedl-mmsegmentation) or a source tree
    provides the module, the module's own name serves: mmengine then looks for the module itself.
    """
    names = importlib.import_module('mmengine.config.utils').MODULE2PACKAGE
    renamed = {
        module: module
        for module, distribution in names.items()
        if module != distribution and has_package(module) and not _has_distribution(distribution)
    }
    names.update(renamed)
    return bool(renamed)


def find_own_configs() -> bool:
    """Let ``_base_ = 'mmprune_gates::NAME.py'`` find the configs that this package carries.

    mmengine has a fixed list of OpenMMLab's packages, looks for configs in sub-folders only, cannot find the folder of
    an editable install, and would give what it finds the scope ``mmprune_gates``, which lacks mmsegmentation's classes.
    So names of this scope bypass it and get no scope: the configs are written for the ``default_scope`` that they set.
    A user's config is read before its ``custom_imports``, so this acts only where ``mmprune_gates`` is already
    imported: in its own tools, and through ``mmprune-gates stock``.
    """
    config_class = importlib.import_module('mmengine.config').Config
    find = getattr(config_class, CONFIG_FINDER, None)
    if find is None or hasattr(find, '__wrapped__'):
        return False

    @functools.wraps(find)
    def find_config(name: str, *others: Any) -> tuple[str, str | None]:
        scope, _, path = name.rpartition('::')
        return (str(OWN_CONFIGS / path), None) if scope == 'mmprune_gates' else find(name, *others)

    setattr(config_class, CONFIG_FINDER, staticmethod(find_config))
    return True


def passes_control_flow(mode: type[TorchDispatchMode]) -> type[TorchDispatchMode]:
    """Class decorator: lets ``torch.cond`` run under a dispatch mode, which then does not see what is inside.

    Newer releases ask the mode's own attribute ``supports_higher_order_operators``; torch 2.8 does not know it and
    refuses every mode that has no rule of its own.
    """
    if not hasattr(TorchDispatchMode, 'supports_higher_order_operators'):
        cond = torch.ops.higher_order.cond
        cond.py_impl(mode)(lambda _, *operands: cond(*operands))
    return mode


def count_given_inputs() -> bool:
    """Let ``get_model_complexity_info`` be called with the inputs and their shape at once, as get_flops.py does.

    The shape is then redundant, but mmengine refuses it; so the tool of mmsegmentation 1.2.2 fails on mmengine
    0.10.7 (mmsegmentation issues 2958 and 3241). A tool that has already imported the function is not reached;
    ``tools/stock.py`` applies the cures first.
    """
    analysis: Any = importlib.import_module('mmengine.analysis')
    count = analysis.get_model_complexity_info
    try:
        count(torch.nn.Identity(), (1,), inputs=torch.zeros(1), show_table=False, show_arch=False)
    except ValueError as error:
        if COMPLEXITY_SYMPTOM not in str(error):
            raise
    else:
        return False

    @functools.wraps(count)
    def count_inputs(model: Any, input_shape: Any = None, inputs: Any = None, **options: Any) -> dict:
        return count(model, input_shape if inputs is None else None, inputs, **options)

    analysis.get_model_complexity_info = count_inputs
    return True


def launch_without_gpus() -> bool:
    """Let a launcher start ranks on a machine without a GPU: by gloo, whatever backend the config names.

    mmengine gives every rank a CUDA device without checking that there is one.
    """
    if _has_accelerator():
        return False
    dist: Any = importlib.import_module('mmengine.dist')
    runner: Any = importlib.import_module('mmengine.runner.runner')
    start = dist.init_dist
    if hasattr(start, '__wrapped__'):
        return False

    @functools.wraps(start)
    def start_on_cpu(launcher: str, backend: str = 'gloo', **options: Any) -> None:
        set_device = torch.cuda.set_device
        torch.cuda.set_device = lambda device: None
        try:
            start(launcher, 'gloo', **options)
        finally:
            torch.cuda.set_device = set_device

    dist.init_dist = dist.utils.init_dist = runner.init_dist = start_on_cpu
    return True


def wrap_models_without_gpus() -> bool:
    """Let mmengine wrap a model on the CPU for distributed training: it names a GPU for it, which torch refuses."""
    if _has_accelerator():
        return False
    wrapper = importlib.import_module('mmengine.model').MMDistributedDataParallel
    make = wrapper.__init__
    if hasattr(make, '__wrapped__'):
        return False

    @functools.wraps(make)
    def make_on_cpu(self: Any, module: torch.nn.Module, *args: Any, device_ids: Any = None, **options: Any) -> None:
        make(self, module, *args, **options)

    wrapper.__init__ = make_on_cpu
    return True


# torchvision comes first: mmcv and mmengine may import it.
# Name -> the package that it cures, and the cure, which returns whether it has changed anything.
CURES: dict[str, tuple[str, Callable[[], bool]]] = {
    'torchvision-operators': ('torchvision', define_torchvision_operators),
    'mmcv-lite-operators': ('mmcv', replace_missing_mmcv_operators),
    'checkpoint-classes': ('mmengine', allow_checkpoint_classes),
    'distribution-names': ('mmengine', name_packages_by_module),
    'own-configs': ('mmengine', find_own_configs),
    'complexity-inputs': ('mmengine', count_given_inputs),
    'launch-on-cpu': ('mmengine', launch_without_gpus),
    'wrap-on-cpu': ('mmengine', wrap_models_without_gpus),
}


def _forget_modules(package: str, keep: set[str]) -> None:
    """Remove the modules of a half-imported package, so that the next import starts afresh."""
    for name in list(sys.modules):
        if name not in keep and (name == package or name.startswith(f'{package}.')):
            del sys.modules[name]


def _missing_operator(extension: str, func: str) -> Callable[..., NoReturn]:
    def missing_operator(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f'the compiled operator {func!r} of {extension} was called, but the installed mmcv has no '
            'compiled operators (mmcv-lite). Install full mmcv instead (`pip uninstall mmcv-lite`, then '
            '`pip install mmcv` in a version that your mmsegmentation or mmpretrain accepts), or use a model '
            'without this operator.'
        )

    return missing_operator


def _has_accelerator() -> bool:
    """Whether mmengine finds anything but a CPU to train on."""
    return importlib.import_module('mmengine.device').get_device() != 'cpu'


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _checkpoint_classes() -> list[tuple[Any, str]]:
    """Globals that mmengine's checkpoints need beyond torch's own list, as ``add_safe_globals`` takes them.

    Every entry is a pair with its name in the file. A plain class would be lost as soon as other code
    leaves a ``safe_globals`` context that lists the same class, as the loader of onedl-mmengine does.
    """
    import numpy as np

    numbers = (type(np.dtype(code)) for code in '?bBhHiIlLqQefd')
    classes = (*_methods(), np.ndarray, np.dtype, *dict.fromkeys(numbers))
    constructors = {
        '_reconstruct': np.zeros(1).__reduce__()[0],
        'scalar': np.float64(0).__reduce__()[0],
    }
    return [
        *((cls, f'{cls.__module__}.{cls.__qualname__}') for cls in classes),
        *(
            (constructor, f'{module}.{name}')
            for name, constructor in constructors.items()
            for module in NUMPY_MULTIARRAY_MODULES
        ),
        (_method, 'builtins.getattr'),
    ]


def _methods() -> dict[type, tuple[str, ...]]:
    """Class -> its methods that checkpoints of mmengine's Runner hold."""
    found = {}
    for (module, name), methods in METHODS.items():
        owner = getattr(importlib.import_module(module), name)
        found[owner] = methods
    return found


def _method(owner: type, name: str) -> Callable[..., Any]:
    """The one use that mmengine's checkpoints make of ``getattr``: methods of a few classes.

    Allowing ``getattr`` itself would let a crafted file reach any function, so this takes its place.
    """
    allowed = _methods()
    if not isinstance(owner, type) or name not in allowed.get(owner, ()):
        classes = ' and '.join(name for _, name in METHODS)
        raise ValueError(
            f"the checkpoint asks for getattr({owner!r}, {name!r}), but only some methods of mmengine's {classes} are "
            'allowed. Do not load it otherwise unless you trust its source; if you do, save it anew with tensors and '
            'plain values only.'
        )
    return getattr(owner, name)
