"""The check of the data: what a config names is looked for, inside any wrapper, and nothing else is."""

import re

import pytest
from conftest import CONFIGS
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmprune_gates.engine.datasets import check_datasets

VOC = dict(
    type='PascalVOCDataset',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    ann_file='ImageSets/Segmentation/val.txt',
)
pytestmark = pytest.mark.models


def check(dataset, scope='mmseg', loaders=('val_dataloader',)):
    check_datasets(Config(dict(default_scope=scope, val_dataloader=dict(dataset=dataset))), loaders)


def missing(dataset, **options):
    """Path -> key of everything that the message lists."""
    with pytest.raises(FileNotFoundError) as caught:
        check(dataset, **options)
    return dict(re.findall(r'^    (\S+)   \((\S+)\)$', str(caught.value), re.MULTILINE))


def test_a_complete_data_set_passes(scenes):
    check({**VOC, 'data_root': str(scenes)})


def test_missing_parts_are_listed_with_their_keys(tmp_path):
    (tmp_path / 'JPEGImages').mkdir()
    assert missing({**VOC, 'data_root': str(tmp_path)}) == {
        f'{tmp_path}/SegmentationClass': 'val_dataloader.dataset.data_prefix.seg_map_path',
        f'{tmp_path}/ImageSets/Segmentation/val.txt': 'val_dataloader.dataset.ann_file',
    }


def test_wrappers_are_looked_into(scenes):
    good, bad = {**VOC, 'data_root': str(scenes)}, {**VOC, 'data_root': str(scenes), 'ann_file': 'none.txt'}
    wrapped = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[good, bad]))
    assert missing(wrapped) == {f'{scenes}/none.txt': 'val_dataloader.dataset.dataset.datasets.1.ann_file'}


def test_the_key_that_is_shown_repairs_the_config(scenes):
    wrapped = dict(type='ConcatDataset', datasets=[{**VOC, 'data_root': 'absent'}])
    (key,) = {key for key in missing(wrapped).values() if key.endswith('data_root')}
    config = Config(dict(default_scope='mmseg', val_dataloader=dict(dataset=wrapped)))
    config.merge_from_dict({key: str(scenes)})
    check_datasets(config, ('val_dataloader',))


def test_sbd_is_read_as_the_config_names_it(sbd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the real one may be elsewhere
    config = Config.fromfile(CONFIGS / 'dense_fcn_voc.py')
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    with pytest.raises(FileNotFoundError) as caught:
        check_datasets(config, loaders)
    named = re.findall(r'^    data/sbd/dataset(?:/(\S+))?   ', str(caught.value), re.MULTILINE)
    assert set(named) == {'', 'img', 'masks', 'train.txt', 'val.txt'}
    config.merge_from_dict({f'{loader}.dataset.data_root': str(sbd) for loader in loaders})
    check_datasets(config, loaders)
    for loader, count in zip(loaders, (12, 4, 4), strict=True):
        init_default_scope('mmseg')
        assert len(DATASETS.build(config[loader].dataset)) == count


def test_absolute_paths_stand_for_themselves(scenes, tmp_path):
    prefix = {key: str(scenes / value) for key, value in VOC['data_prefix'].items()}
    check({**VOC, 'data_root': str(tmp_path), 'data_prefix': prefix, 'ann_file': str(scenes / VOC['ann_file'])})


def test_only_the_loaders_in_use_are_looked_at():
    check({**VOC, 'data_root': 'absent'}, loaders=('test_dataloader',))


@pytest.mark.parametrize(
    'dataset',
    [
        dict(type='CIFAR10', data_root='absent', split='train'),
        dict(type='CustomDataset', data_prefix='s3://bucket/images'),
        dict(type='CustomDataset', data_prefix='absent', backend_args=dict(backend='petrel')),
    ],
    ids=['downloads itself', 'remote', 'another backend'],
)
def test_what_is_not_a_local_folder_is_left_to_the_data_set(dataset):
    check(dataset, scope='mmpretrain')


def test_downloads_can_be_off_and_prefixes_can_be_plain():
    assert missing(dict(type='CIFAR10', data_root='absent', download=False), scope='mmpretrain')
    key = 'val_dataloader.dataset.data_prefix'
    assert missing(dict(type='CustomDataset', data_prefix='absent'), scope='mmpretrain') == {'absent': key}


@pytest.mark.parametrize(
    'dataset, expected',
    [
        (dict(type='ImageNet', data_root='data/imagenet', split='val'), 'layout of ImageNet-1k'),
        (
            dict(type='CustomDataset', data_root='data/digits', data_prefix='val'),
            'python tools/dataset_converters/digits_data.py data/digits',
        ),
        (dict(type='CustomDataset', data_root='data/sbd/dataset', data_prefix='img'), 'voc_aug.py data/VOCdevkit'),
        (dict(type='CUB', data_root='data/CUB_200_2011'), 'layout of CUB-200-2011'),
        (
            dict(
                type='mmseg.CityscapesDataset', data_root='data/cityscapes/', data_prefix=dict(img_path='leftImg8bit')
            ),
            'cityscapes.py data/cityscapes',
        ),
        (dict(type='mmseg.ADE20KDataset', data_root='data/ade/ADEChallengeData2016'), 'layout of ADE20K'),
    ],
    ids=['imagenet', 'digits', 'sbd', 'cub', 'cityscapes', 'ade20k'],
)
def test_the_message_shows_the_layout_that_is_expected(dataset, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=expected) as caught:
        check(dataset, scope='mmpretrain')
    assert 'PASCAL VOC' not in str(caught.value)
