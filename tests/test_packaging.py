"""The wheel holds the package, its configs and its tools, and nothing else; they work from there, as in a checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import load

import mmprune_gates
from mmprune_gates.cli import console

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
MIM = 'mmprune_gates/.mim'
SHIPPED_TOOLS = [ROOT / 'tools' / room for room in console.ROOMS]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built without a network from a copy, since building leaves files in the source folder."""
    copy, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for name in ('mmprune_gates', 'configs', 'tools'):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    (copy / 'configs' / 'notes.txt').write_text('not for the wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--no-index']
    done = subprocess.run([*command, '-w', str(out), str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    """A folder with what the wheel holds, as in site-packages."""
    folder = tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(site, folder, *arguments):
    """Python in ``folder``, with the unpacked wheel before everything else."""
    environment = {**os.environ, 'PYTHONPATH': str(site), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-W', 'ignore', *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def expected_files():
    """Names of all files that the package's folder in the wheel should hold."""
    files = [file for kind in ('*.py', '*.html', 'py.typed') for file in (ROOT / 'mmprune_gates').rglob(kind)]
    package = {path for path in files if '.mim' not in path.parts}
    names = {str(path.relative_to(ROOT)) for path in package}
    mim = {*CONFIGS.rglob('*.py'), *CONFIGS.glob('*.yml')}
    mim.update(path for folder in SHIPPED_TOOLS for path in folder.glob('*.py'))
    return names | {f'{MIM}/{path.relative_to(ROOT)}' for path in mim} | {f'{MIM}/model-index.yml'}


def test_the_wheel_holds_package_configs_and_tools_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if name.startswith(f'mmprune_gates-{mmprune_gates.__version__}.dist-info/')}
    assert names - metadata == expected_files()
    assert f'{MIM}/tools/train.py' in names and f'{MIM}/configs/gdp_deeplabv3plus_voc.py' in names


def test_the_metadata_names_version_licence_readme_and_command(site):
    folder = site / f'mmprune_gates-{mmprune_gates.__version__}.dist-info'
    metadata = Parser().parsestr((folder / 'METADATA').read_text(encoding='utf-8'))
    assert metadata['Version'] == mmprune_gates.__version__
    assert metadata['License-Expression'] == 'Apache-2.0'
    assert (folder / 'licenses' / 'LICENSE').read_text() == (ROOT / 'LICENSE').read_text()
    assert metadata['Description-Content-Type'] == 'text/markdown'
    assert metadata.get_payload().strip() == (ROOT / 'README.md').read_text(encoding='utf-8').strip()
    assert 'mmprune-gates = mmprune_gates.cli.console:main' in (folder / 'entry_points.txt').read_text()


READ_CONFIG = """
import mmprune_gates
from mmengine.config import Config
config = Config.fromfile('own.py')
print(mmprune_gates.__file__, config.model.type, config.custom_hooks[0].target_macs)
"""


def test_a_config_inherits_from_the_wheel(site, tmp_path):
    (tmp_path / 'own.py').write_text("_base_ = 'mmprune_gates::gdp_deeplabv3plus_voc.py'\n")
    config = site / MIM / 'configs' / 'gdp_deeplabv3plus_voc.py'
    changed = config.read_text()
    config.write_text(changed.replace('target_macs=0.4)', 'target_macs=0.41)'))  # so that no other file can be meant
    try:
        done = run(site, tmp_path, '-c', READ_CONFIG)
    finally:
        config.write_text(changed)
    init = site / 'mmprune_gates' / '__init__.py'
    assert done.stdout == f'{init} mmprune_gates.GatedModel 0.41\n', done.stderr


def test_what_is_inherited_builds_its_own_classes(tmp_path):
    """Data sets and hooks keep the scope that the config sets: mmsegmentation's, not this package's."""
    (tmp_path / 'own.py').write_text("_base_ = 'mmprune_gates::demo/gdp_deeplabv3plus_scenes.py'\n")
    inherited = Config.fromfile(tmp_path / 'own.py').to_dict()
    assert inherited == Config.fromfile(CONFIGS / 'demo' / 'gdp_deeplabv3plus_scenes.py').to_dict()


def test_a_config_that_is_not_there_is_named(tmp_path):
    (tmp_path / 'own.py').write_text("_base_ = 'mmprune_gates::absent.py'\n")
    with pytest.raises(FileNotFoundError, match=r'configs/absent\.py'):
        Config.fromfile(tmp_path / 'own.py')


@pytest.mark.slow
def test_the_command_runs_a_tool_of_the_wheel(site, tmp_path):
    (tmp_path / 'own.py').write_text("_base_ = 'mmprune_gates::demo/gdp_deeplabv3plus_scenes.py'\n")
    done = run(site, tmp_path, '-m', 'mmprune_gates.cli.console', 'channels', 'own.py', '--json', 'channels.json')
    assert done.returncode == 0 and 'of them prunable' in done.stdout, done.stderr
    assert load(tmp_path / 'channels.json')['config'] == 'own.py'


def test_a_tool_that_fails_gives_its_message_and_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['mmprune-gates'])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    with pytest.raises(SystemExit, match='^1$'):
        console.main(['slim', 'absent.py', 'absent.pth', 'out'])
    assert 'error: config absent.py cannot be read' in capsys.readouterr().err


def test_the_command_lists_every_tool_that_users_run(capsys):
    assert console.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r'  train +Train a model by its config', line) for line in lines)
    runnable = {
        path.stem for folder in SHIPPED_TOOLS for path in folder.glob('*.py') if console.RUNS in path.read_text()
    }
    assert {line.split()[0] for line in lines if line.startswith('  ')} == runnable
    assert {'train', 'test', 'slim', 'channels', 'stock', 'benchmark'} <= runnable


def test_an_unknown_tool_is_wrong_usage(capsys):
    assert console.main(['trian']) == 2
    assert "error: there is no tool 'trian', only channels, export_onnx, report, slim" in capsys.readouterr().err


def test_the_model_index_names_every_pruning_config_once():
    mim = Path(mmprune_gates.__file__).parent / '.mim'
    metafiles = [load(mim / name) for name in load(mim / 'model-index.yml')['Import']]
    models = [model for metafile in metafiles for model in metafile['Models']]
    named = sorted(model['Config'] for model in models)
    own = [path for path in CONFIGS.rglob('g*_*.py') if 'demo' not in path.parts]
    assert named == sorted(str(path.relative_to(ROOT)) for path in own)
    collections = {collection['Name'] for metafile in metafiles for collection in metafile['Collections']}
    assert {model['In Collection'] for model in models} == collections
    assert all(model['Name'] == Path(model['Config']).stem for model in models)
