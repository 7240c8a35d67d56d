"""Products edited by hand, folders and disks that cannot be written: one message, and nothing half-written."""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bad_inputs import ARGUMENTS, CONFIGS, HOOKS, MEASURING, MODELS, PRODUCTS
from helpers import environment_with
from test_bad_checkpoints import CONTENTS, RUNS, run  # noqa: F401  (a fixture)
from test_bad_checkpoints import FILES as BROKEN
from test_bad_input import message
from tiny_run import ROOT, TOOLS, UNSHRUNK, write_config

from mmprune_gates.engine.files import write_bytes, write_text
from mmprune_gates.engine.product import FILES, WHOLE, WRITING, prepare_folder, write_product

pytestmark = pytest.mark.models
OLD = {name: f'old {name}'.encode() for name in FILES}
NEW = {name: f'new {name}'.encode() for name in FILES}


@pytest.fixture
def gated(run, tmp_path, monkeypatch):  # noqa: F811
    """(config, checkpoint) of a finished run; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    return write_config(tmp_path / 'tiny.py', run[0], UNSHRUNK), str(run[1] / 'iter_4.pth')


@pytest.fixture(scope='module')
def product(run, tmp_path_factory):  # noqa: F811
    """Folder of a slimmed run; not to be changed."""
    folder = tmp_path_factory.mktemp('product')
    config = write_config(folder / 'tiny.py', run[0], UNSHRUNK)
    assert TOOLS['slim']([config, str(run[1] / 'iter_4.pth'), str(folder / 'slim')]) == 0
    return folder / 'slim'


def test_how_many_inputs_are_tried():
    number = sum(map(len, (HOOKS, MODELS, CONFIGS, ARGUMENTS, MEASURING, PRODUCTS, BROKEN, CONTENTS, RUNS)))
    page = (Path(__file__).parents[1] / 'docs' / 'reliability.md').read_text()
    assert f'| {number} bad inputs in tables ' in page


def contents(folder):
    """Name of each file of a folder, hidden ones as well -> what it holds."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


# slim.py and slim.json edited by hand ------------------------------------------------------------------------


@pytest.mark.parametrize('line', PRODUCTS)
def test_a_product_edited_by_hand(product, tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    Path('slim.py').write_text(f'{(product / "slim.py").read_text()}\n{line}\n')
    assert TOOLS['test'](['slim.py', str(product / 'slim.pth')]) == 1
    assert PRODUCTS[line] in message(capsys)


@pytest.mark.parametrize('tool', ['train', 'channels'])
def test_other_tools_refuse_it_as_well(product, tmp_path, monkeypatch, capsys, tool):
    monkeypatch.chdir(tmp_path)
    text = (product / 'slim.py').read_text()
    line = "model['widths']['backbone.branch.0']['out_channels'] = -1; load_from = None"
    Path('slim.py').write_text(f'{text}\n{line}\n')
    assert TOOLS[tool](['slim.py']) == 1
    assert 'backbone.branch.0' in message(capsys)


def test_widths_that_do_not_fit_each_other_fail_with_a_hint(product, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (product / 'slim.py').read_text()
    Path('slim.py').write_text(f"{text}\nmodel['widths'].pop('backbone.branch.3'); load_from = None\n")
    assert TOOLS['train'](['slim.py']) == 1
    assert 'the widths in the config do not fit each other' in capsys.readouterr().err


def test_slimming_twice_is_refused(product, tmp_path, capsys):
    assert TOOLS['slim']([str(product / 'slim.py'), str(product / 'slim.pth'), str(tmp_path / 'out')]) == 1
    assert 'GatedModel' in message(capsys) and not (tmp_path / 'out').exists()


def test_what_stands_in_slim_json_is_replaced(gated):
    assert TOOLS['slim']([*gated, 'out']) == 0
    first = contents('out')
    for text in ('', '{', '[]', '{"macs": "a"}'):
        Path('out', 'slim.json').write_text(text)
        assert TOOLS['slim']([*gated, 'out']) == 0
        assert json.loads(Path('out', 'slim.json').read_text()) == json.loads(first['slim.json'])


# folders that cannot be written ------------------------------------------------------------------------------


@pytest.mark.parametrize('folder', ['/dev/null', '/dev/null/out', '/proc/nowhere/out', '/proc', 'file', 'file/out'])
def test_an_out_dir_that_cannot_be_written_is_refused_before_the_work(gated, monkeypatch, capsys, folder):
    Path('file').touch()
    monkeypatch.setattr('mmprune_gates.engine.export.read_checkpoint', None)  # the work begins with it
    assert TOOLS['slim']([*gated, folder]) == 1
    told = message(capsys)
    assert 'OUT_DIR' in told or 'cannot write' in told
    assert sorted(os.listdir()) == ['file', 'tiny.py']


@pytest.mark.parametrize('tool', ['channels', 'test'])
@pytest.mark.parametrize('target', ['/proc/nowhere/a.json', '/dev/null/a.json', 'tiny.py/a.json', '.'])
def test_results_that_cannot_be_written(gated, capsys, tool, target):
    arguments = ['--json', target] if tool == 'channels' else [gated[1], '--work-dir', 'work', '--out-json', target]
    assert TOOLS[tool]([gated[0], *arguments]) == 1
    assert f'cannot write: {"it is a folder" if target == "." else ""}' in message(capsys)
    assert os.listdir() == ['tiny.py']


def test_a_full_device(gated, capsys):
    assert TOOLS['channels']([gated[0], '--json', '/dev/full']) == 1
    told = message(capsys)
    assert "'/dev/full'" in told and 'the disk is full: free some space' in told
    assert Path('/dev/full').is_char_device()


def test_a_device_is_written_to_and_not_replaced():
    write_text('/dev/null', 'x')
    assert Path('/dev/null').is_char_device()


# full disks --------------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size):
    """Files cannot become larger for a while: what a full disk looks like to whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_product_on_a_full_disk(gated, capsys):
    with largest_file(3000):  # enough for slim.py
        assert TOOLS['slim']([*gated, 'new/out']) == 1
    assert 'slim.pth' in message(capsys)
    assert os.listdir() == ['tiny.py']


def test_an_earlier_product_on_a_full_disk(gated, capsys):
    write_product(Path('out'), OLD)
    with largest_file(3000):
        assert TOOLS['slim']([*gated, 'out']) == 1
    assert 'files may not become that large' in message(capsys)
    assert contents('out') == OLD and sorted(os.listdir('out')) == sorted(FILES)


@pytest.mark.parametrize('size', [0, 200, 3000, 8000, 18000])
def test_a_run_on_a_full_disk_leaves_no_half_of_a_checkpoint(gated, capsys, size):
    with largest_file(size):
        assert TOOLS['train']([gated[0], '--work-dir', 'work']) == 1
    told = message(capsys)
    assert 'File too large' in told and ('iter_2.pth' in told or size < 18000)
    assert not list(Path('.').rglob('*pth*'))


def test_a_test_on_a_full_disk(gated, capsys):
    with largest_file(0):
        assert TOOLS['test']([*gated, '--work-dir', 'work', '--out-json', 'out.json']) == 1
    message(capsys)
    assert not Path('out.json').exists()


def test_a_file_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / 'new' / 'file'
    write_bytes(path, b'old')
    with largest_file(5), pytest.raises(OSError, match='cannot write'):
        write_bytes(path, b'longer than that')
    assert path.read_bytes() == b'old' and os.listdir(path.parent) == ['file']


# runs of slim.py that are killed ------------------------------------------------------------------------------


def test_what_a_killed_run_has_begun_to_write_goes(tmp_path):
    write_product(tmp_path, OLD)
    (tmp_path / WRITING).mkdir()
    (tmp_path / WRITING / 'slim.pth').write_bytes(b'half')
    prepare_folder(tmp_path)
    assert contents(tmp_path) == OLD and not (tmp_path / WRITING).exists()


@pytest.mark.parametrize('moved', [0, 1, 2, 3])
def test_what_a_killed_run_has_written_is_completed(tmp_path, moved):
    write_product(tmp_path, OLD)
    write_product(tmp_path / WHOLE, NEW)
    for name in FILES[:moved]:
        (tmp_path / WHOLE / name).replace(tmp_path / name)
    prepare_folder(tmp_path)
    assert contents(tmp_path) == NEW and not (tmp_path / WHOLE).exists()


def test_a_killed_run_and_the_next(gated):
    write_product(Path('out'), OLD)
    code = """
import os, signal, sys, tiny_run
from mmprune_gates.engine import product
product.complete = lambda folder: (folder / product.WHOLE).is_dir() and os.kill(os.getpid(), signal.SIGKILL)
tiny_run.TOOLS['slim'](sys.argv[1:])
"""
    environment = environment_with(ROOT / 'tests')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *gated, 'out'], env=environment)
    assert done.returncode == -signal.SIGKILL and contents('out') == OLD
    assert TOOLS['slim']([*gated, 'out']) == 0
    assert sorted(os.listdir('out')) == sorted(FILES)
    assert torch.load('out/slim.pth', weights_only=True)['state_dict']


def test_a_killed_run_into_a_new_folder_leaves_what_the_next_accepts(tmp_path):
    (tmp_path / 'out' / WRITING).mkdir(parents=True)
    prepare_folder(tmp_path / 'out')
    write_product(tmp_path / 'out', NEW)
    assert contents(tmp_path / 'out') == NEW
