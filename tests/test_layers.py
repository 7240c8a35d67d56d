"""Every file of the package imports only its own layer and those below; OpenMMLab is seen from engine upwards."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = 'mmprune_gates'
ROOT = Path(__file__).parents[1] / PACKAGE
# Lowest first.
LAYERS = (
    *(
        'version',
        'checks',
        'compat',
        'channels',
        'gates',
        'budget',
        'slimming',
        'pruning',
        'engine',
        'timing',
        'cli',
        'report',
    ),
)
OPENMMLAB = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'}
MAY_IMPORT_OPENMMLAB = {'compat', 'engine', 'timing', 'cli', 'report'}
CHANNELS_MAY_IMPORT = {'torch', 'numpy', 'scipy'}  # beside the standard library

FILES = sorted(path for path in ROOT.rglob('*.py') if path != ROOT / '__init__.py')


def layer_of(path):
    """The first name below the package: a folder or a module."""
    return path.relative_to(ROOT).with_suffix('').parts[0]


def imported_modules(source, package):
    """Dotted names of all imports of a file, also inside functions, with relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join((*base, *filter(None, [node.module])))
            yield from (f'{module}.{alias.name}' for alias in node.names)


def violations(path, source):
    """One sentence per import that the layer of ``path`` must not have."""
    layer = layer_of(path)
    below = LAYERS[: LAYERS.index(layer) + 1]
    package = path.relative_to(ROOT.parent).parent.parts
    for name in imported_modules(source, package):
        top, _, rest = name.partition('.')
        if top == PACKAGE and rest.partition('.')[0] not in below:
            yield f'imports {name}, which is not below {layer}'
        elif top in OPENMMLAB and layer not in MAY_IMPORT_OPENMMLAB:
            yield f'imports {name}, but only {sorted(MAY_IMPORT_OPENMMLAB)} may know OpenMMLab'
        elif layer == 'channels' and top not in {*CHANNELS_MAY_IMPORT, PACKAGE, *sys.stdlib_module_names}:
            yield f'imports {name}, but channels knows torch only'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_layers_below(path):
    assert layer_of(path) in LAYERS, f'{path.name} is in no layer: move it into one, or add the layer here'
    assert not list(violations(path, path.read_text()))


def test_the_package_itself_does_not_import_what_only_command_lines_need():
    names = imported_modules((ROOT / '__init__.py').read_text(), (PACKAGE,))
    above = (f'{PACKAGE}.cli', f'{PACKAGE}.report')
    assert not [name for name in names if name.startswith(above)]


@pytest.mark.parametrize(
    ('layer', 'line', 'bad'),
    [
        ('gates/attach.py', 'from mmprune_gates.channels.graph import ChannelGraph', False),
        ('gates/attach.py', 'from .functions import polarization', False),
        ('gates/attach.py', 'from ..slimming import fold', True),
        ('gates/attach.py', 'from mmprune_gates import slim_model', True),
        ('budget.py', 'def late():\n    import mmprune_gates.engine.hooks', True),
        ('budget.py', 'from mmprune_gates import gates', False),
        ('slimming/fold.py', 'from mmengine.runner import Runner', True),
        ('engine/hooks.py', 'from mmengine.runner import Runner', False),
        ('engine/hooks.py', 'from mmprune_gates import cli', True),
        ('cli/jobs.py', 'from mmprune_gates.engine import HOOKS', False),
        ('cli/jobs.py', 'from mmprune_gates.report import read_run', True),
        ('report/page.py', 'from mmprune_gates.cli import write_text', False),
        ('channels/rules.py', 'import torchvision', True),
        ('channels/rules.py', 'import operator, torch.fx', False),
    ],
)
def test_the_check_itself(layer, line, bad):
    assert bool(list(violations(ROOT / layer, line))) is bad
