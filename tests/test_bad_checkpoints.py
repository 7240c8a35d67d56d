"""Broken checkpoints: each is refused with its reason, nothing in it runs, nothing is written."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from helpers import assert_same, environment_with, slow_but
from test_bad_input import message
from tiny_run import DECORATOR, ROOT, TOOLS, UNSHRUNK, draw_images, write_config
from torch import nn

from mmprune_gates.engine.checkpoint import UNSAFE, load_weights, read_checkpoint

pytestmark = pytest.mark.models
MARKER = 'crafted'


class Crafted:
    """Makes a folder when it is unpickled, if nothing prevents it."""

    def __init__(self, call=os.mkdir, *args):
        self.call, self.args = call, args or (MARKER,)

    def __reduce__(self):
        return self.call, self.args


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """(folder of the pictures, work folder) of a finished run; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('tiny')
    images = draw_images(folder / 'images')
    assert TOOLS['train']([write_config(folder / 'tiny.py', images, UNSHRUNK), '--work-dir', str(folder / 'work')]) == 0
    return images, folder / 'work'


@pytest.fixture
def config(run, tmp_path, monkeypatch):
    """Path of a config like the run's own, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return write_config(tmp_path / 'tiny.py', run[0], UNSHRUNK)


def refused(capsys, tool, *arguments):
    """The message with which a tool refuses its arguments, and nothing else happens."""
    before = listing()
    assert TOOLS[tool]([str(argument) for argument in arguments]) == 1
    left = {path for path in listing() - before if not path.startswith('work_dirs')}
    assert not left and not os.path.exists(MARKER)
    return message(capsys)


def listing():
    """Everything below the current folder."""
    return {os.path.relpath(os.path.join(root, name)) for root, _, names in os.walk('.') for name in names}


# files -----------------------------------------------------------------------------------------------------


def flipped(good, where):
    """A file with a run of bytes inverted."""
    data = bytearray(good)
    start = int(where * len(data))
    data[start : start + 8] = bytes(byte ^ 255 for byte in data[start : start + 8])
    return bytes(data)


def saved(value, **options):
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def scripted():
    """A TorchScript archive."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def subclass_of_tensor():
    """A file that torch's own advice says could still be loaded."""
    return saved({'state_dict': {'a': torch.nn.parameter.UninitializedParameter()}})


def compressed():
    """An archive of much more than its size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(10**7))
    return file.getvalue()


FILES = {
    'compressed': lambda good: compressed(),
    'empty': lambda good: b'',
    'text': lambda good: b'hello',
    'zeros': lambda good: bytes(5000),
    'json': lambda good: b'{"state_dict": {}}',
    'zip': lambda good: b'PK\x05\x06' + bytes(18),
    'a pickle': lambda good: pickle.dumps({'state_dict': {}}, protocol=4),
    'a pickle of code': lambda good: pickle.dumps(Crafted()),
    'a pickle of a shell command': lambda good: pickle.dumps(Crafted(os.system, f'mkdir {MARKER}')),
    'a pickle of an expression': lambda good: pickle.dumps(Crafted(eval, f"__import__('os').mkdir('{MARKER}')")),
    'a pickle of getattr': lambda good: pickle.dumps(Crafted(getattr, 'a', 'join')),
    'code in weights': lambda good: saved({'state_dict': {'a': Crafted()}}),
    'code in meta': lambda good: saved({'state_dict': {}, 'meta': Crafted()}),
    'code in the old format': lambda good: saved({'a': Crafted()}, _use_new_zipfile_serialization=False),
    'a class': lambda good: saved({'state_dict': {}, 'meta': {'config': io.StringIO}}),
    'a module': lambda good: saved(nn.Linear(2, 2)),
    'a module as weights': lambda good: saved({'state_dict': nn.Linear(2, 2)}),
    'TorchScript': lambda good: scripted(),
    'a class of torch': lambda good: subclass_of_tensor(),
    'a list': lambda good: saved([torch.zeros(2)]),
    'a tensor': lambda good: saved(torch.zeros(2)),
    'a number': lambda good: saved(5),
    'nothing': lambda good: saved(None),
}
FILES |= {f'cut at {n} %': lambda good, n=n: good[: n * len(good) // 100] for n in (1, 30, 50, 90)}
FILES['cut by a byte'] = lambda good: good[:-1]
FILES |= {f'flipped at {n}': lambda good, n=n: flipped(good, n / 20) for n in (0, 1, 2)}


@pytest.mark.parametrize('kind', FILES)
@pytest.mark.parametrize('tool', ['slim', 'test', 'resume'])
def test_a_broken_file(config, run, tool, kind, capsys):
    os.makedirs('given')
    path = os.path.join('given', 'bad.pth')
    with open(path, 'wb') as file:
        file.write(FILES[kind]((run[1] / 'iter_4.pth').read_bytes()))
    arguments = {'slim': (path, 'out'), 'test': (path,), 'resume': ('--resume', path)}[tool]
    told = refused(capsys, 'train' if tool == 'resume' else tool, config, *arguments)
    assert path in told
    for advice in ('weights_only', 'can still be loaded', 'add_safe_globals', 'RuntimeError', 'file an issue'):
        assert advice not in told
    assert not os.path.exists('out')


def test_flipped_bytes_never_pass_as_another_file(run, tmp_path):
    good = (run[1] / 'iter_4.pth').read_bytes()
    expected = read_checkpoint(run[1] / 'iter_4.pth')
    refusals = 0
    for number in range(40):
        (tmp_path / 'bad.pth').write_bytes(flipped(good, number / 40))
        try:
            found = read_checkpoint(tmp_path / 'bad.pth')
        except ValueError as error:
            assert 'bad.pth' in str(error)
            refusals += 1
        else:
            for part in ('state_dict', 'mmprune_gates', 'optimizer', 'meta'):
                assert_same(found[part], expected[part])  # it was in what nobody reads
    assert refusals > 20


# contents --------------------------------------------------------------------------------------------------


def changed(change):
    """A function that changes the weights of a checkpoint."""
    return lambda checkpoint: change(checkpoint['state_dict'])


FC, STEM = 'head.fc.weight', 'backbone.stem.weight'
CONTENTS = {
    'no weights': (changed(lambda own: own.clear()), 'is missing'),
    'one missing': (changed(lambda own: own.pop(FC)), f'{FC} is missing'),
    'one more': (changed(lambda own: own.update(more=torch.zeros(1))), 'more is not expected'),
    'transposed': (changed(lambda own: own.update({FC: own[FC].T})), f'{FC} is (8, 2), expected (2, 8)'),
    'flat': (changed(lambda own: own.update({FC: own[FC].flatten()})), f'{FC} is (16,)'),
    'whole numbers': (changed(lambda own: own.update({FC: own[FC].long()})), f'{FC} is torch.int64'),
    'sparse': (changed(lambda own: own.update({FC: own[FC].to_sparse()})), f'{FC} is torch.sparse'),
    'no tensor': (changed(lambda own: own.update({FC: 5})), f'{FC} is a int, not a tensor'),
    'a list for a tensor': (changed(lambda own: own.update({FC: own[FC].tolist()})), f'{FC} is a list'),
    'None for a tensor': (changed(lambda own: own.update({FC: None})), f'{FC} is a NoneType'),
    'a number for a name': (changed(lambda own: own.update({5: own[FC]})), 'the key 5'),
    'NaN': (changed(lambda own: own[FC].fill_(float('nan'))), f'not finite (NaN or infinite) in {FC}'),
    'infinite': (changed(lambda own: own[STEM].fill_(float('inf'))), f'not finite (NaN or infinite) in {STEM}'),
    'a NaN gate': (changed(lambda own: own['gates.by_group.backbone:stem.theta'].fill_(float('nan'))), 'theta'),
    'all NaN': (changed(lambda own: [value.fill_(float('nan')) for value in own.values() if value.dim()]), 'and 1'),
    'a list of weights': (lambda c: c.update(state_dict=list(c['state_dict'].values())), 'state_dict is a list'),
    'None for weights': (lambda c: c.update(state_dict=None), 'state_dict is a NoneType'),
    'a number for weights': (lambda c: c.update(state_dict=5), 'state_dict is a int'),
    'no gates': (
        changed(lambda own: [own.pop(name) for name in [*own] if name.startswith('gates.')]),
        'gates.by_group',
    ),
}


def save_changed(run, change):
    """A checkpoint of the run with a change, as a file."""
    checkpoint = torch.load(run[1] / 'iter_4.pth', weights_only=True)
    change(checkpoint)
    os.makedirs('given', exist_ok=True)
    torch.save(checkpoint, 'given/bad.pth')
    return 'given/bad.pth'


@pytest.mark.parametrize('kind', CONTENTS)
@pytest.mark.parametrize('tool', ['slim', 'test', 'resume'])
def test_weights_that_do_not_fit(config, run, tool, kind, capsys):
    path = save_changed(run, CONTENTS[kind][0])
    arguments = {'slim': (path, 'out'), 'test': (path,), 'resume': ('--resume', path)}[tool]
    told = refused(capsys, 'train' if tool == 'resume' else tool, config, *arguments)
    assert path in told and CONTENTS[kind][1] in told


RUNS = {
    'no meta': (lambda c: c.pop('meta'), 'no meta'),
    'a list for meta': (lambda c: c.update(meta=[]), 'meta is a list'),
    'None for meta': (lambda c: c.update(meta=None), 'meta is a NoneType'),
    'no iteration': (lambda c: c['meta'].pop('iter'), "meta['iter']"),
    'an iteration that is none': (lambda c: c['meta'].update(iter='a'), "meta['iter']"),
    'a negative iteration': (lambda c: c['meta'].update(iter=-1), "meta['iter']"),
    'no message hub': (lambda c: c.pop('message_hub'), 'no message_hub'),
    'a number for the message hub': (lambda c: c.update(message_hub=5), 'message_hub is a int'),
    'an empty message hub': (lambda c: c.update(message_hub={}), ''),
    'a number for the optimiser': (lambda c: c.update(optimizer=5), ''),
    'an empty optimiser': (lambda c: c.update(optimizer={}), ''),
    'a number for the gates': (lambda c: c.update(mmprune_gates=5), 'mmprune_gates'),
    'an empty state of the gates': (lambda c: c.update(mmprune_gates={}), 'mmprune_gates'),
    'gates without a step': (lambda c: c['mmprune_gates'].pop('step'), 'mmprune_gates'),
    'gates of another size': (lambda c: c['mmprune_gates'].update(kept=torch.ones(3) > 0), 'mmprune_gates'),
    'gates of a wrong kind': (lambda c: c['mmprune_gates'].update(kept='all'), 'mmprune_gates'),
}


@pytest.mark.parametrize('kind', RUNS)
def test_a_run_that_cannot_be_resumed(config, run, kind, capsys):
    path = save_changed(run, RUNS[kind][0])
    assert TOOLS['train']([config, '--resume', path, '--cfg-options', 'train_cfg.max_iters=6']) == 1
    assert RUNS[kind][1] in message(capsys)


@pytest.mark.parametrize('kind', [kind for kind in RUNS if 'gates' in kind or 'meta' in kind])
def test_slimming_needs_no_more_than_weights(config, run, kind):
    path = save_changed(run, RUNS[kind][0])
    assert TOOLS['slim']([config, path, 'out']) == 0
    with open('out/slim.json') as file:
        warnings = json.load(file)['warnings']
    assert bool(warnings) is ('gates' in kind and kind != 'gates without a step')


def test_a_checkpoint_that_is_a_folder(config, capsys):
    os.makedirs('folder')
    assert 'checkpoint folder does not exist' in refused(capsys, 'test', config, 'folder')


# what a run that was killed has left -------------------------------------------------------------------------


@pytest.fixture
def half(config, run, tmp_path):
    """(config, work folder) of a run as it was after two of six iterations."""
    work = tmp_path / 'work'
    work.mkdir()
    shutil.copy(run[1] / 'iter_2.pth', work)
    (work / 'last_checkpoint').write_text(str(work / 'iter_2.pth'))
    return config, work


def resumed(config, work, capsys):
    """Code and output of a run that goes on."""
    code = TOOLS['train']([config, '--work-dir', str(work), '--resume'])
    return code, ''.join(capsys.readouterr())


@pytest.mark.parametrize('half_line', ['{"iter": 2, "clo', '{"iter"', '5', '\x00\x00', '[1]', '{}'])
def test_half_a_line_of_the_record_is_dropped(half, capsys, half_line):
    config, work = half
    whole = json.dumps({'iter': 1, 'closed': 0, 'histogram': [], 'open': {}})
    (work / 'gates.jsonl').write_text(f'{whole}\n{half_line}')
    assert resumed(config, work, capsys)[0] == 0
    lines = (work / 'gates.jsonl').read_text().splitlines()
    assert [json.loads(line)['iter'] for line in lines] == [1, 3, 4]


@pytest.mark.parametrize('note', ['', '\n', '\x00\x00\x00'])
def test_an_empty_note_of_the_last_checkpoint(half, run, capsys, note):
    config, work = half
    (work / 'last_checkpoint').write_text(note)
    (work / 'iter_3.pth').write_bytes((run[1] / 'iter_4.pth').read_bytes()[:3000])  # cut as well, and newer
    os.utime(work / 'iter_2.pth', (1, 1))
    code, text = resumed(config, work, capsys)
    assert code == 0 and 'last_checkpoint is empty' in text and 'resumed' in text
    assert len((work / 'gates.jsonl').read_text().splitlines()) == 2  # iterations 3 and 4


def test_an_empty_note_and_no_whole_checkpoint(half, capsys):
    config, work = half
    (work / 'last_checkpoint').write_text('')
    (work / 'iter_2.pth').write_bytes(b'half')
    code, text = resumed(config, work, capsys)
    assert code == 1 and 'name one with --resume CKPT' in text and 'Traceback' not in text


def test_a_note_of_a_checkpoint_that_has_gone(half, capsys):
    config, work = half
    (work / 'iter_2.pth').rename(work / 'iter_1.pth')
    code, text = resumed(config, work, capsys)
    assert code == 0 and 'iter_2.pth, which is not there' in text and 'resumed' in text
    for checkpoint in work.glob('*.pth'):
        saved = torch.load(checkpoint, weights_only=True)
        del saved['optimizer']
        torch.save(saved, work / 'best_accuracy_iter_1.pth')
        checkpoint.unlink()
    code, text = resumed(config, work, capsys)
    assert code == 1 and 'name one with --resume CKPT' in text and 'Traceback' not in text


def test_a_run_is_resumed_after_its_folder_was_moved(half, capsys):
    config, work = half
    moved = work.rename(work.parent / 'moved')
    code, text = resumed(config, moved, capsys)
    assert code == 0 and 'resumed epoch: 0, iter: 2' in text


def test_what_killed_runs_have_left_is_removed(half, capsys):
    config, work = half
    left, foreign = work / '.iter_4.pth-abcd1234', work / '.hidden'
    left.write_bytes(b'half'), foreign.write_bytes(b'mine')
    assert resumed(config, work, capsys)[0] == 0
    assert not left.exists() and foreign.exists()


# whatever the environment says -------------------------------------------------------------------------------


@pytest.mark.parametrize('forced', ['0', '1'])
def test_the_environment_cannot_make_loading_unsafe(run, tmp_path, monkeypatch, forced):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(UNSAFE, '1')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', forced)
    assert 'state_dict' in read_checkpoint(run[1] / 'iter_4.pth')
    torch.save({'state_dict': Crafted()}, 'bad.pth')
    with pytest.raises(ValueError, match='Only tensors and plain values'):
        read_checkpoint('bad.pth')
    assert os.environ[UNSAFE] == '1' and not os.path.exists(MARKER)


@pytest.mark.parametrize('forced', slow_but(({},), ({}, {'TORCH_FORCE_WEIGHTS_ONLY_LOAD': '0'})))
def test_a_tool_with_the_unsafe_variable(config, run, forced):
    torch.save({'state_dict': {'a': Crafted()}}, 'bad.pth')
    environment = environment_with(ROOT / 'tests', **{UNSAFE: '1', **forced})
    environment.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD' if not forced else '', None)
    code = """
import sys, tiny_run, torch
assert tiny_run.TOOLS['slim'](sys.argv[1:4]) == 0
assert tiny_run.TOOLS['slim']([sys.argv[1], 'bad.pth', 'other']) == 1
assert tiny_run.TOOLS['train']([sys.argv[1], '--cfg-options', 'load_from=bad.pth']) == 1
from mmengine.runner import CheckpointLoader
try:
    CheckpointLoader.load_checkpoint('bad.pth')
except Exception:
    sys.exit(0)
"""
    command = [sys.executable, '-W', 'ignore', '-c', code, config, run[1] / 'iter_4.pth', 'out']
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    assert not os.path.exists(MARKER) and os.path.exists('out/slim.pth')


def test_weights_of_a_wrapped_model_fit(run):
    model = nn.Linear(2, 2)
    state = {f'module.{name}': value for name, value in model.state_dict().items()}
    load_weights(model, {'state_dict': state}, 'wrapped.pth')


def test_values_that_are_not_finite_in_the_model_itself_may_be_so():
    model = nn.Module()
    model.register_buffer('mask', torch.full((2,), -torch.inf))
    load_weights(model, {'state_dict': model.state_dict()}, 'mask.pth')


@pytest.mark.parametrize('method', ['gdp', 'gate decorator'])
def test_weights_that_are_not_finite_stop_a_run_before_it_begins(run, config, tmp_path, capsys, method):
    spoilt = torch.load(run[1] / 'iter_2.pth', weights_only=True)
    weights = spoilt['state_dict']
    name = next(name for name in weights if name.endswith('.weight') and weights[name].dim() == 4)
    weights[name].fill_(torch.nan)
    torch.save({'state_dict': {key: value for key, value in weights.items() if 'gates' not in key}}, 'nan.pth')
    if method != 'gdp':
        config = write_config(tmp_path / 'gbn.py', run[0], DECORATOR)
    assert TOOLS['train']([config, '--work-dir', 'new', '--cfg-options', 'load_from=nan.pth']) == 1
    text = capsys.readouterr().err
    assert f'({name})' in text and 'training has diverged: at step 0' in text and 'Traceback' not in text
    assert not list((tmp_path / 'new').glob('*.pth'))


def test_a_run_that_diverges_ends_with_code_1_and_keeps_its_checkpoint(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    late = "param_scheduler = [dict(type='ConstantLR', by_epoch=False, factor=1e-20, begin=0, end=2)]"
    lines = ("optim_wrapper['optimizer']['lr'] = 1e18", late, "train_cfg['max_iters'] = 6", UNSHRUNK)
    config = write_config(tmp_path / 'tiny.py', run[0], *lines)
    assert TOOLS['train']([config, '--work-dir', 'work']) == 1
    text = capsys.readouterr().err
    assert 'training has diverged' in text and 'lower the learning rate' in text and 'Traceback' not in text
    assert sorted(path.name for path in (tmp_path / 'work').glob('*.pth')) == ['iter_2.pth']
