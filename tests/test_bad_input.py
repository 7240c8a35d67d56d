"""Bad input by the hundred: each ends with one message that names the cause, exit code 1, and no file written."""

import importlib
from pathlib import Path

import pytest
import torch
from bad_inputs import ARGUMENTS, CONFIGS, HOOKS, MEASURING, MODELS
from PIL import Image
from tiny_run import DECORATOR, DENSE, TOOLS, draw_images, write_config

from mmprune_gates.checks import NUMBER, SHARE, checked, patterns

pytestmark = pytest.mark.models
VARIANTS = {'': '', 'gradient': "custom_hooks[0].pop('steps'); custom_hooks[0]['update'] = 'gradient'"}
VARIANTS['decorator'] = DECORATOR


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Folder of a few pictures."""
    return draw_images(tmp_path_factory.mktemp('data') / 'images')


@pytest.fixture
def refused(images, tmp_path, monkeypatch, capsys):
    """A function: the message with which a tool refuses a config with changes; nothing else may happen."""
    monkeypatch.chdir(tmp_path)

    def run(tool, changes, *arguments):
        config = write_config(tmp_path / 'bad.py', images, *changes)
        before = set(tmp_path.iterdir())
        assert TOOLS[tool]([config, *arguments]) == 1
        assert {path.name for path in set(tmp_path.iterdir()) - before} <= {'work_dirs', '__pycache__'}
        assert not list((tmp_path / 'work_dirs').rglob('*.pth'))
        return message(capsys)

    return run


def message(capsys):
    """What a tool that has failed says: no trace, no words without a cause."""
    text = capsys.readouterr().err
    assert 'Traceback' not in text and text.count('error: ') == 1, text
    told = text[text.index('error: ') + len('error: ') :].strip()
    assert told and told != 'None'
    return told


@pytest.mark.parametrize(('line', 'name', 'variant'), HOOKS)
def test_an_option_of_a_hook(refused, tmp_path, line, name, variant):
    assert name in refused('train', [VARIANTS[variant], line])
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize(('line', 'name'), MODELS)
def test_a_key_of_the_model(refused, line, name):
    word = 'could not be built from its config' if name in ('architecture', 'backbone') else name
    assert word in refused('train', [line])


@pytest.mark.parametrize('line', CONFIGS)
def test_a_config(refused, line):
    assert CONFIGS[line] in refused('train', [line])


@pytest.mark.parametrize('arguments', ARGUMENTS)
def test_arguments(refused, arguments):
    assert ARGUMENTS[arguments] in refused('train', [], *arguments)


def test_a_single_pattern_is_one_pattern(refused):
    assert patterns('exclude', 'backbone.*') == ('backbone.*',)
    line = "custom_hooks[0].update(exclude='backbone.branch.0', floor=1)"
    assert 'cannot be met' in refused('train', [line])


@pytest.mark.parametrize('shape', [('0', '16'), ('-1', '16')])
def test_a_shape_for_channels(refused, shape):
    assert '--shape' in refused('channels', [], '--shape', *shape)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 10**400, True, '1', None, [], torch.ones(1)])
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match='x must be a share in'):
        checked('x', value, SHARE)


def test_numbers_of_other_packages_are_numbers():
    import numpy as np

    for value in (np.float32(0.5), np.int64(1), 1, 0.5):
        assert checked('x', value, NUMBER) is value


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('list.json', '[1, 2]'),
        ('half.json', '{"model": '),
        ('text.yaml', 'hello'),
        ('config.txt', 'model = 1'),
        ('bytes.py', 'x = "\udcff"'),
        ('empty.py', ''),
        ('.', None),
        ('/dev/null', None),
        ('absent.py', None),
        ('', None),
    ],
)
@pytest.mark.parametrize('tool', ['train', 'channels'])
def test_what_is_no_config(tmp_path, monkeypatch, capsys, tool, name, text):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_bytes(text.encode(errors='surrogateescape'))
    assert TOOLS[tool]([name]) == 1
    assert f'config {name} ' in message(capsys)


# tools that measure, report, or write data --------------------------------------------------------------------


@pytest.mark.parametrize(('tool', 'arguments', 'words'), MEASURING)
def test_a_tool_that_measures_reports_or_writes_data(images, tmp_path, monkeypatch, capsys, tool, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, change in (('gdp.py', ''), ('gbn.py', DECORATOR), ('dense.py', DENSE)):
        write_config(tmp_path / name, images, change)
    (tmp_path / 'one.py').write_text('model = 1\n')
    (tmp_path / 'text').write_text('hello\n')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'run').mkdir()
    write_config(tmp_path / 'run' / 'gdp.py', images)
    torch.save({'state_dict': {'other': torch.ones(1)}}, tmp_path / 'other.pth')
    before = sorted(tmp_path.rglob('*'))
    assert importlib.import_module(tool).main(arguments.split()) == 1
    assert words in message(capsys)
    assert sorted(tmp_path.rglob('*')) == before


# data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('options', ['', ', serialize_data=False'])
def test_a_data_set_without_samples(refused, tmp_path, options):
    (tmp_path / 'list.txt').touch()
    line = f"train_dataloader['dataset'].update(ann_file='list.txt', data_prefix='.'{options})"
    told = refused('train', [line])
    assert 'CustomDataset' in told and 'has no sample: look at its ann_file' in told


def test_a_folder_without_pictures(refused, tmp_path):
    (tmp_path / 'none' / 'a').mkdir(parents=True)
    told = refused('train', ["train_dataloader['dataset']['data_prefix'] = 'none'"])
    assert 'CustomDataset' in told or 'none' in told


@pytest.mark.parametrize('text', ['a/0.png one\n', 'a/0.png\n', 'a/0.png -1 2 3 x\n', '\x00\n'])
def test_a_list_of_another_format(refused, images, tmp_path, text):
    (tmp_path / 'list.txt').write_text(text)
    assert refused('train', [f"train_dataloader['dataset'].update(ann_file='list.txt', data_prefix='{images}')"])


def failing(capsys):
    """The message of a run that fails far from the cause: there may be a trace before it."""
    text = capsys.readouterr().err
    assert text.count('error: ') == 1
    return text[text.index('error: ') :]


@pytest.fixture
def fails(images, tmp_path, monkeypatch, capsys):
    """A function: the message of a run that fails while it trains, whatever comes before it."""
    monkeypatch.chdir(tmp_path)

    def run(text, *changes):
        (tmp_path / 'list.txt').write_text(text)
        own = f"train_dataloader['dataset'].update(ann_file='list.txt', data_prefix='{images}')"
        assert TOOLS['train']([write_config(tmp_path / 'bad.py', images, own, *changes)]) == 1
        return failing(capsys)

    return run


@pytest.mark.parametrize('label', [2, 7, -1])
def test_labels_out_of_range(fails, label):
    assert 'not below num_classes' in fails(f'a/0.png {label}\nb/0.png {label}\n')


def test_a_picture_that_is_missing(fails):
    assert 'absent.png' in fails('a/absent.png 0\n')


def test_a_file_that_is_no_picture(fails, images, tmp_path):
    (images / 'text.png').write_text('hello')
    assert 'error: ' in fails('text.png 0\n')


@pytest.mark.parametrize('size', [(1, 1), (1, 40)])
def test_pictures_of_one_pixel_train(tmp_path, monkeypatch, size):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / 'ok.py', draw_images(tmp_path / 'small', size))
    assert TOOLS['train']([config]) == 0


def test_a_single_picture_of_one_pixel_cannot_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = draw_images(tmp_path / 'small', (1, 1))
    assert TOOLS['train']([write_config(tmp_path / 'bad.py', images, "train_dataloader['batch_size'] = 1")]) == 1
    assert 'batch norm cannot train on a single value' in failing(capsys)


def test_pictures_of_several_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = draw_images(tmp_path / 'mixed')
    for number, file in enumerate(sorted(Path(images).rglob('*.png'))):
        Image.new('RGB', (16 + number, 16)).save(file)
    code = TOOLS['train']([write_config(tmp_path / 'bad.py', images)])
    assert code == 1 and failing(capsys)
