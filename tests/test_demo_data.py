"""The drawn data set has the format of VOC2012, depends on nothing but its seed, and never overwrites."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from demo_data import VOID, generate_voc, main, void_border
from demo_scenes import CLASSES, VOC_INDEX
from PIL import Image

from mmprune_gates import compat

TINY = dict(num_train=8, num_val=4, num_aug=3)
DEMO_CONFIG = Path(__file__).parents[1] / 'configs' / 'demo' / 'dense_deeplabv3plus_scenes.py'
needs_mmseg = pytest.mark.skipif(not compat.has_package('mmseg'), reason='mmsegmentation is not installed')


@pytest.fixture(scope='module')
def voc(tmp_path_factory):
    return generate_voc(tmp_path_factory.mktemp('scenes'), **TINY)


def read_list(voc, split):
    return (voc / 'ImageSets' / 'Segmentation' / f'{split}.txt').read_text().split()


def digest(folder):
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    content = b''.join(path.relative_to(folder).as_posix().encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


def test_lists_name_the_files(voc):
    train, val, aug = (read_list(voc, split) for split in ('train', 'val', 'aug'))
    assert (len(train), len(val), len(aug)) == (8, 4, 3)
    assert train[0] == '2007_000001'
    assert not set(train) & set(val) and not set(train) & set(aug)
    assert read_list(voc, 'trainval') == train + val
    assert read_list(voc, 'trainaug') == train + aug
    assert {path.stem for path in (voc / 'JPEGImages').glob('*.jpg')} == {*train, *val, *aug}
    assert {path.stem for path in (voc / 'SegmentationClass').glob('*.png')} == {*train, *val}
    assert {path.stem for path in (voc / 'SegmentationClassAug').glob('*.png')} == set(aug)


def test_masks_are_indexed_with_the_palette_of_voc(voc):
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        7: (128, 128, 128),
        15: (192, 128, 128),
        20: (0, 64, 128),
        VOID: (224, 224, 192),
    }
    for name in read_list(voc, 'trainval'):
        mask = Image.open(voc / 'SegmentationClass' / f'{name}.png')
        assert mask.mode == 'P'
        assert mask.size == Image.open(voc / 'JPEGImages' / f'{name}.jpg').size == (96, 64)
        palette = np.array(mask.getpalette()).reshape(256, 3)
        assert {index: tuple(palette[index].tolist()) for index in known} == known


def test_masks_hold_known_classes_and_a_void_border(voc):
    seen = set()
    for name in read_list(voc, 'trainval'):
        mask = np.array(Image.open(voc / 'SegmentationClass' / f'{name}.png'))
        seen |= set(np.unique(mask).tolist())
        for one, two in ((mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:])):
            assert np.all((one == two) | (one == VOID) | (two == VOID)), 'classes meet without a void border'
    assert seen == {0, VOID, *VOC_INDEX.values()}


def test_the_border_also_parts_two_things_of_one_class():
    things = np.zeros((64, 96), np.uint8)
    things[:, :30], things[:, 30:60] = 1, 2
    border = void_border(things)
    assert border[:, 29:31].all() and border[:, 59:61].all()
    assert border.mean() < 0.1


def test_masks_of_the_augmented_set_are_grey_and_have_no_void(voc):
    for name in read_list(voc, 'aug'):
        mask = Image.open(voc / 'SegmentationClassAug' / f'{name}.png')
        assert mask.mode == 'L'
        assert set(np.unique(mask).tolist()) <= {0, *VOC_INDEX.values()}


def test_the_seed_decides_everything(voc, tmp_path):
    assert digest(generate_voc(tmp_path / 'same', **TINY)) == digest(voc)
    other = generate_voc(tmp_path / 'other', seed=1, **TINY)
    image = Path('JPEGImages', '2007_000001.jpg')
    assert (other / image).read_bytes() != (voc / image).read_bytes()
    more = generate_voc(tmp_path / 'more', num_train=9, num_val=0)
    assert (more / image).read_bytes() == (voc / image).read_bytes(), 'more images must not change the first ones'


def test_the_same_set_is_reused(voc):
    before = {path: path.stat().st_mtime_ns for path in voc.rglob('*')}
    assert generate_voc(voc.parent, **TINY) == voc
    assert {path: path.stat().st_mtime_ns for path in voc.rglob('*')} == before
    assert list(voc.parent.iterdir()) == [voc], 'no temporary folder may stay'


def test_other_parameters_are_refused(voc):
    before = digest(voc)
    with pytest.raises(FileExistsError, match='other num_train, seed'):
        generate_voc(voc.parent, **{**TINY, 'num_train': 7, 'seed': 3})
    assert digest(voc) == before


@pytest.mark.parametrize('manifest', [None, '{}', 'not json', '[]'])
def test_a_foreign_folder_is_refused(tmp_path, manifest):
    theirs = tmp_path / 'VOC2012'
    theirs.mkdir()
    (theirs / 'notes.txt').write_text('keep me')
    if manifest is not None:
        (theirs / 'demo_data.json').write_text(manifest)
    before = digest(tmp_path)
    with pytest.raises(FileExistsError, match='VOC2012'):
        generate_voc(tmp_path, **TINY)
    assert digest(tmp_path) == before


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match='size'):
        generate_voc(tmp_path / 'scenes', size=(0, 96), **TINY)
    assert not (tmp_path / 'scenes').exists()


def test_command_line(tmp_path, capsys):
    arguments = [str(tmp_path), '--num-train', '2', '--num-val', '1', '--aug', '1', '--size', '32', '48', '--seed', '5']
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'VOC2012')
    params = json.loads((tmp_path / 'VOC2012' / 'demo_data.json').read_text())
    assert (params['num_aug'], params['size'], params['seed']) == (1, [32, 48], 5)
    assert main([str(tmp_path)]) == 1
    assert 'delete it' in capsys.readouterr().err


@needs_mmseg
@pytest.mark.models
def test_the_stock_dataset_reads_every_item(voc):
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.datasets import PascalVOCDataset

    init_default_scope('mmseg')
    config = Config.fromfile(DEMO_CONFIG)
    for split, count in (('train', 8), ('val', 4)):
        settings = dict(config[f'{split}_dataloader'].dataset)
        assert settings.pop('type') == 'PascalVOCDataset'
        dataset = PascalVOCDataset(**{**settings, 'data_root': str(voc)})
        stock = PascalVOCDataset.METAINFO
        assert dataset.metainfo['classes'] == CLASSES
        assert dataset.metainfo['palette'] == [stock['palette'][stock['classes'].index(name)] for name in CLASSES]
        assert len(dataset) == count
        labels = set()
        for item in dataset:
            assert item['inputs'].shape == (3, 64, 96)
            labels |= set(item['data_samples'].gt_sem_seg.data.unique().tolist())
        assert {0, VOID} < labels <= {*range(len(CLASSES)), VOID}


@needs_mmseg
@pytest.mark.models
def test_the_stock_augmented_config_reads_the_set(voc, tmp_path):
    import mmseg.datasets  # noqa: F401  (registers)
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    init_default_scope('mmseg')
    config = tmp_path / 'stock.py'
    config.write_text("_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py'\n")
    settings = Config.fromfile(config).train_dataloader.dataset
    for part in settings.datasets:
        part.data_root = str(voc)
    dataset = DATASETS.build(settings)
    assert len(dataset) == 8 + 3
    for index in (0, 10):
        item = dataset[index]
        assert item['inputs'].shape == (3, 512, 512)
        assert set(item['data_samples'].gt_sem_seg.data.unique().tolist()) <= {0, VOID, *VOC_INDEX.values()}
