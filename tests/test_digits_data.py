"""The digits are scikit-learn's, split evenly and always in the same way; the stock data set reads them."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from digits_data import main, split_digits, write_digits
from PIL import Image

from mmprune_gates import compat

load_digits = pytest.importorskip('sklearn.datasets').load_digits
CONFIG = Path(__file__).parents[1] / 'configs' / 'demo' / 'dense_resnet20_digits.py'


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


def test_every_image_is_there_once(digits):
    source = load_digits()
    files = {int(path.stem): path for path in digits.rglob('*.png')}
    assert sorted(files) == list(range(1797)) and len(list(digits.rglob('*.png'))) == 1797
    for number, path in files.items():
        image = Image.open(path)
        assert (image.mode, image.size) == ('L', (8, 8))
        assert path.parent.name == str(source.target[number])
        assert np.abs(np.array(image) - source.images[number] * 255 / 16).max() <= 0.5


def test_a_quarter_of_every_digit_is_for_validation(digits):
    numbers = {split: [len(list((digits / split / str(d)).iterdir())) for d in range(10)] for split in ('train', 'val')}
    assert sum(numbers['val']) == 450 and sum(numbers['train']) == 1347
    for train, val in zip(numbers['train'], numbers['val'], strict=True):
        assert val == round((train + val) / 4)


def test_the_split_is_always_the_same():
    labels = np.arange(40) % 2
    split = split_digits(labels)
    assert np.array_equal(split, split_digits(labels))
    assert not np.array_equal(split, split_digits(labels, seed=1))
    assert [split[labels == label].sum() for label in (0, 1)] == [5, 5]


def test_the_same_set_is_reused(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob('*')}
    assert write_digits(digits) == digits
    assert {path: path.stat().st_mtime_ns for path in digits.rglob('*')} == before
    assert list(digits.parent.iterdir()) == [digits], 'no temporary folder may stay'


def test_command_line(digits, tmp_path, capsys):
    assert main([str(digits)]) == 0
    assert capsys.readouterr().out.strip() == str(digits)
    (tmp_path / 'notes.txt').write_text('keep me')
    assert main([str(tmp_path)]) == 1
    assert 'choose another folder' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['notes.txt']


def test_without_scikit_learn_the_message_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    assert main([str(tmp_path / 'digits')]) == 1
    assert 'mmprune_gates[demo]' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not compat.has_package('mmpretrain'), reason='mmpretrain is not installed')
@pytest.mark.models
def test_the_stock_dataset_reads_every_item(digits):
    import mmpretrain.datasets  # noqa: F401  (registers)
    from mmengine.config import Config
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope('mmpretrain')
    config = Config.fromfile(CONFIG)
    for split, count in (('train', 1347), ('val', 450)):
        dataset = DATASETS.build({**config[f'{split}_dataloader'].dataset, 'data_root': str(digits)})
        assert len(dataset) == count and dataset.metainfo['classes'] == tuple('0123456789')
        mean = np.mean([item['inputs'].float().mean() for item in dataset])
        assert split == 'train' or abs(mean - config.data_preprocessor.mean[0]) < 2
        assert {item['data_samples'].gt_label.item() for item in dataset} == set(range(10))
