"""Broken data of a segmentor: each fault ends the run with one message that names the cause, or does no harm."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import load_tool

train = load_tool('train')
LIST = 'ImageSets/Segmentation/train.txt'


@pytest.fixture
def run(tiny_config, scenes, tmp_path, monkeypatch, capsys):
    """A function: exit code and messages of a run on a copy of the scenes that something was done to."""
    monkeypatch.chdir(tmp_path)
    root = shutil.copytree(scenes, tmp_path / 'VOC2012')
    config = tiny_config(tmp_path / 'run', iterations=4)
    for part in ('train', 'val', 'test'):
        config[f'{part}_dataloader'].dataset.data_root = str(root)
        config[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False)

    def trained(spoil):
        spoil(root)
        config.dump('config.py')
        code = train.main(['config.py', '--work-dir', 'run'])
        return code, capsys.readouterr().err

    return trained


def names(root):
    return (root / LIST).read_text().split()


def masks(root):
    return [root / 'SegmentationClass' / f'{name}.png' for name in names(root)]


def pictures(root):
    return [root / 'JPEGImages' / f'{name}.jpg' for name in names(root)]


def write(files, data):
    for file in files:
        file.write_bytes(data)


def redraw(files, change):
    """Change the pixels of pictures."""
    for file in files:
        with Image.open(file) as picture:
            changed = change(np.array(picture))
        Image.fromarray(changed).save(file)


FAULTS = {
    'a class that the head does not have': (
        lambda root: redraw(masks(root), lambda mask: mask * 0 + 200),
        'num_classes',
    ),
    'masks that are gone': (lambda root: [file.unlink() for file in masks(root)], '.png'),
    'pictures that are gone': (lambda root: [file.unlink() for file in pictures(root)], '.jpg'),
    'masks that are no pictures': (lambda root: write(masks(root), b'hello'), 'image'),
    'pictures that are no pictures': (lambda root: write(pictures(root), b'hello'), 'image'),
    'empty pictures': (lambda root: write(pictures(root), b''), 'image'),
    'pictures of one row': (
        lambda root: redraw(masks(root) + pictures(root), lambda pixels: pixels[:1]),
        'a label map one pixel wide or high',
    ),
    'pictures of one pixel': (
        lambda root: redraw(masks(root) + pictures(root), lambda pixels: pixels[:1, :1]),
        'a label map one pixel wide or high',
    ),
    'an empty list': (lambda root: (root / LIST).write_text(''), 'no sample'),
    'a list of nothing but empty lines': (lambda root: (root / LIST).write_text('\n\n'), 'jpg'),
    'no list': (lambda root: (root / LIST).unlink(), 'train.txt'),
    'no masks': (lambda root: shutil.rmtree(root / 'SegmentationClass'), 'SegmentationClass'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_named(run, fault):
    spoil, words = FAULTS[fault]
    code, text = run(spoil)
    told = f'{Path(sys.argv[0]).name}: error: '
    assert code == 1 and text.count(told) == 1
    assert words in text[text.index(told) :], text[-1500:]
    assert not list(Path('run').glob('*.pth'))


HARMLESS = {
    'masks that say nothing': lambda root: redraw(masks(root), lambda mask: mask * 0 + 255),
    'masks of another size': lambda root: redraw(masks(root), lambda mask: mask[:16]),
    'pictures without colour': lambda root: redraw(pictures(root), lambda pixels: pixels[..., 0]),
    'a single picture': lambda root: (root / LIST).write_text(names(root)[0]),
}


@pytest.mark.parametrize('kind', HARMLESS)
def test_odd_data_does_no_harm(run, kind):
    code, text = run(HARMLESS[kind])
    assert code == 0, text[-2000:]
    assert Path('run', 'iter_4.pth').is_file()
