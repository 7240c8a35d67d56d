"""Each cure acts where its symptom exists and does nothing otherwise.

Most cases run in a process of their own, started without the site directory: its packages are links to the
installed ones, minus those that a test hides, plus the tiny stand-ins that it writes.
"""

import os
import pickle
import subprocess
import sys
import sysconfig
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mmprune_gates import compat

REPOSITORY = Path(__file__).parents[1]
# Prefixes of every package that some cure is about.
CURED = ('mmcv', 'mmengine', 'mmpretrain', 'mmseg', 'onedl', 'torchvision')

needs_mmengine = pytest.mark.skipif(not compat.has_package('mmengine'), reason='mmengine is not installed')
needs_mmseg = pytest.mark.skipif(not compat.has_package('mmseg'), reason='mmsegmentation is not installed')


@pytest.fixture
def make_site(tmp_path):
    """A folder of links to the installed packages whose names do not start with one of ``hide``."""

    def make(hide=()):
        site = tmp_path / 'site'
        site.mkdir()
        for entry in Path(sysconfig.get_path('purelib')).iterdir():
            if not entry.name.startswith((*hide, '__')):
                (site / entry.name).symlink_to(entry)
        return site

    return make


def write_files(site, files):
    for name, text in files.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def run(site, code):
    """Standard output of ``code``; an error of the child fails the test with the child's own traceback."""
    done = subprocess.run(
        [sys.executable, '-S', '-W', 'ignore', '-c', textwrap.dedent(code)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join((str(site), str(REPOSITORY)))},
        cwd=site.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOG_CURES = "import logging; logging.basicConfig(level='INFO', format='%(message)s', stream=sys.stdout)"
IMPORT_LOGGED = f'import sys; {LOG_CURES}; import mmprune_gates'


def test_torch_alone_needs_no_cure_and_imports(make_site):
    code = f'{IMPORT_LOGGED}; print([name for name in sys.modules if name.startswith({CURED})])'
    assert run(make_site(hide=CURED), code) == '[]'


# torchvision -----------------------------------------------------------------------------------------------

TORCHVISION = {
    'torchvision/early.py': '',
    'torchvision/__init__.py': """
        import torchvision.early
        import torch
        {first}
        torch.library.register_fake("torchvision::nms")(lambda dets, scores, threshold: scores)
        """,
}


def write_torchvision(site, first=''):
    write_files(site, {name: textwrap.dedent(text).format(first=first) for name, text in TORCHVISION.items()})


def test_torchvision_without_its_library_becomes_importable(make_site):
    site = make_site(hide=CURED)
    write_torchvision(site)
    # A submodule left in sys.modules by the failed import would not be set on the new package.
    code = f'{IMPORT_LOGGED}; import torchvision; print(torchvision.early.__name__)'
    assert run(site, code) == 'cure applied: torchvision-operators\ntorchvision.early'


def test_torchvision_with_its_library_is_left_alone(make_site):
    site = make_site(hide=CURED)
    schema = compat.TORCHVISION_SCHEMAS['torchvision::nms']
    write_torchvision(site, first=f"torch.library.define('torchvision::nms', '{schema}')")
    code = f"{IMPORT_LOGGED}; import torch; print(hasattr(torch.ops.torchvision, 'qnms'))"
    assert run(site, code) == 'False'


def test_another_failure_of_torchvision_is_not_hidden(make_site):
    site = make_site(hide=CURED)
    write_torchvision(site, first="raise RuntimeError('disk on fire')")
    code = """
        try:
            import mmprune_gates
        except RuntimeError as error:
            print(error)
        """
    assert run(site, code) == 'disk on fire'


# mmcv ------------------------------------------------------------------------------------------------------

MMCV = {
    'mmcv/__init__.py': '',
    'mmcv/utils/__init__.py': '',
    'mmcv/utils/ext_loader.py': """
        import importlib
        def load_ext(name, funcs):
            return importlib.import_module("mmcv." + name)
        """,
    'mmcv/ops.py': """
        from mmcv.utils import ext_loader
        ext_module = ext_loader.load_ext("_ext", ["nms", "roi_align_forward"])
        """,
}


def test_mmcv_lite_gets_operators_that_explain_themselves(make_site):
    site = make_site(hide=CURED)
    write_files(site, MMCV)
    code = f"""
        {IMPORT_LOGGED}
        import mmcv.ops
        print("mmcv._ext" in sys.modules, hasattr(mmcv.ops.ext_module, "never_asked_for"))
        try:
            mmcv.ops.ext_module.nms(1, offset=0)
        except RuntimeError as error:
            print(error)
        """
    cure, flags, message = run(site, code).splitlines()
    assert (cure, flags) == ('cure applied: mmcv-lite-operators', 'False False')
    assert "'nms' of mmcv._ext" in message and 'pip uninstall mmcv-lite' in message


def test_full_mmcv_is_left_alone(make_site):
    site = make_site(hide=CURED)
    write_files(site, {**MMCV, 'mmcv/_ext.py': "def nms(): return 'compiled'\n"})
    assert run(site, f'{IMPORT_LOGGED}; import mmcv.ops; print(mmcv.ops.ext_module.nms())') == 'compiled'


@needs_mmseg
def test_installed_stack_imports_its_models_and_operators(make_site):
    code = f"""
        {IMPORT_LOGGED}
        import mmseg.models, mmcv.ops, torch, torchvision
        assert mmprune_gates.compat.apply_cures() == ()  # applying twice changes nothing
        """
    applied = run(make_site(), code)
    assert ('mmcv-lite-operators' in applied) == (find_spec('mmcv._ext') is None)


# checkpoints -----------------------------------------------------------------------------------------------

TRAIN_ONE_ITERATION = """
    import setuptools  # as every process with a site directory: from Python 3.12 on, mmengine gets distutils from it
    import mmprune_gates
    import numpy as np, torch
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader

    class Toy(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
        def forward(self, x, mode="tensor"):
            return dict(loss=self.layer(x).mean()) if mode == "loss" else [0]

    class Metric(BaseMetric):
        default_prefix = "toy"
        def process(self, data_batch, data_samples):
            self.results.append(0)
        def compute_metrics(self, results):
            return dict(accuracy=np.float64(1), loss=np.float32(2))

    loader = DataLoader([dict(x=torch.ones(2))] * 2, batch_size=2)
    Runner(
        model=Toy(), work_dir=".", log_level="ERROR",
        train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=1),
        val_dataloader=loader, val_cfg=dict(), val_evaluator=[Metric()],
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.1)),
        param_scheduler=dict(type="MultiStepLR", milestones=[1]),
        default_hooks=dict(checkpoint=dict(
            type="CheckpointHook", interval=1, max_keep_ckpts=1, save_best="toy/accuracy", rule="greater")),
    ).train()
    """
LOAD_UNCURED = """
    import pickle, torch
    try:
        torch.load({path!r}, weights_only=True)
    except pickle.UnpicklingError:
        print("refused")
    """


@needs_mmengine
def test_a_runner_checkpoint_loads_with_weights_only(make_site):
    site = make_site()
    run(site, TRAIN_ONE_ITERATION)
    path = str(site.parent / 'epoch_1.pth')

    refused = run(site, LOAD_UNCURED.format(path=path))
    assert refused == 'refused', 'the symptom is gone: is the cure still needed?'

    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) >= {'state_dict', 'optimizer', 'param_schedulers', 'message_hub'}
    assert checkpoint['message_hub']['log_scalars']['val/toy/accuracy'].current() == 1.0


@needs_mmengine
def test_leaving_a_foreign_safe_globals_context_keeps_the_cure(tmp_path):
    from mmengine.logging import HistoryBuffer

    path = tmp_path / 'buffer.pth'
    torch.save(HistoryBuffer([3.0], [1]), path)
    with torch.serialization.safe_globals([HistoryBuffer]):
        pass
    assert torch.load(path, weights_only=True).mean() == 3.0


@needs_mmengine
@pytest.mark.parametrize('strategy', ['cos', 'linear'])
def test_a_schedule_in_one_cycle_can_be_loaded(strategy, tmp_path):
    from mmengine.optim import OneCycleLR

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    states = OneCycleLR(optimizer, 0.1, total_steps=10, anneal_strategy=strategy).state_dict()
    torch.save(states, tmp_path / 'schedule.pth')
    assert torch.load(tmp_path / 'schedule.pth', weights_only=True) == states


class ReachesForGlobals:
    """Pickles to getattr(HistoryBuffer.mean, '__globals__'), the first step out of the safe list."""

    def __reduce__(self):
        from mmengine.logging import HistoryBuffer

        return getattr, (HistoryBuffer.mean, '__globals__')


@needs_mmengine
def test_a_crafted_checkpoint_does_not_get_getattr(tmp_path):
    path = tmp_path / 'crafted.pth'
    torch.save(ReachesForGlobals(), path)
    with pytest.raises((ValueError, pickle.UnpicklingError), match="only some methods of mmengine's HistoryBuffer"):
        torch.load(path, weights_only=True)


# distribution names ----------------------------------------------------------------------------------------

CONFIG = "_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py'\n"
LOAD_CONFIG = f"""
    {IMPORT_LOGGED}
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE
    print(MODULE2PACKAGE["mmseg"], Config.fromfile("config.py").model.type)
    """


@needs_mmseg
def test_mmseg_without_its_own_distribution_serves_as_base(make_site):
    site = make_site(hide=('mmsegmentation',))
    write_files(site.parent, {'config.py': CONFIG})
    output = run(site, LOAD_CONFIG)
    assert 'cure applied: distribution-names' in output and output.endswith('mmseg EncoderDecoder')


@needs_mmseg
@pytest.mark.skipif(
    not list(Path(sysconfig.get_path('purelib')).glob('mmsegmentation-*.dist-info')),
    reason='the original distribution is not installed',
)
def test_the_original_distribution_keeps_its_name(make_site):
    site = make_site()
    write_files(site.parent, {'config.py': CONFIG})
    output = run(site, LOAD_CONFIG)
    assert 'distribution-names' not in output and output.endswith('mmsegmentation EncoderDecoder')


# complexity ------------------------------------------------------------------------------------------------

COUNT = f"""
    {IMPORT_LOGGED}
    import torch
    from mmengine.analysis import get_model_complexity_info
    options = dict(show_table=False, show_arch=False)
    model, shape = torch.nn.Conv2d(3, 4, 1), (3, 8, 8)
    both = get_model_complexity_info(model, shape, inputs=torch.zeros(1, *shape), **options)['flops']
    print(both == get_model_complexity_info(model, shape, **options)['flops'] == 3 * 4 * 64)
    """
COUNT_UNCURED = """
    import torch
    from mmengine.analysis import get_model_complexity_info
    try:
        get_model_complexity_info(torch.nn.Identity(), (1,), inputs=torch.zeros(1))
    except ValueError:
        print('refused')
    """


@needs_mmengine
def test_complexity_takes_inputs_beside_their_shape(make_site):
    site = make_site()
    assert run(site, COUNT_UNCURED) == 'refused', 'the symptom is gone: is the cure still needed?'
    output = run(site, COUNT)
    assert 'cure applied: complexity-inputs' in output and output.endswith('True')


@needs_mmengine
def test_a_complexity_counter_that_takes_both_is_left_alone(monkeypatch):
    from mmengine import analysis

    def count(model, input_shape, inputs, **options):
        return {}

    monkeypatch.setattr(analysis, 'get_model_complexity_info', count)
    assert not compat.count_given_inputs() and analysis.get_model_complexity_info is count
