"""Checks, before anything is built, that the data a config names is there, so that a run without it ends at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import BaseLoop

from mmprune_gates.checks import Rule, checked, optional

# Names of folders and files -> what belongs there. Shown when something under one of these names is missing.
LAYOUTS = (
    (
        ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'),
        'layout of PASCAL VOC2012 (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/):\n'
        '    JPEGImages/NAME.jpg             images\n'
        '    SegmentationClass/NAME.png      masks: class number per pixel, 255 = void\n'
        '    SegmentationClassAug/NAME.png   masks of the augmented set, converted from SBD (voc12aug configs only)\n'
        '    ImageSets/Segmentation/*.txt    train.txt, val.txt, aug.txt: one NAME per line',
    ),
    (
        ('data/sbd',),
        'layout of SBD, the Semantic Boundaries Dataset (benchmark_RELEASE, Hariharan et al., ICCV 2011):\n'
        '    dataset/img/NAME.jpg            images\n'
        '    dataset/cls/NAME.mat            masks as they come\n'
        '    dataset/masks/NAME.png          masks converted from these, class number per pixel; written by\n'
        '        python tools/stock.py mmseg:dataset_converters/voc_aug.py data/VOCdevkit data/sbd '
        '-o data/sbd/dataset/masks\n'
        '    dataset/train.txt, val.txt      one NAME per line',
    ),
    (
        ('data/imagenet',),
        'layout of ImageNet-1k (https://image-net.org):\n'
        '    train/CLASS/NAME.JPEG           images, a folder for each class (n01440764, ...)\n'
        '    val/CLASS/NAME.JPEG             the same; or val/NAME.JPEG, with\n'
        '    meta/val.txt                    one NAME.JPEG and class number per line',
    ),
    (
        ('data/CUB_200_2011',),
        'layout of CUB-200-2011 (Wah et al., 2011):\n'
        '    images/CLASS/NAME.jpg           images, a folder for each class (001.Black_footed_Albatross, ...)\n'
        '    images.txt                      one number and CLASS/NAME.jpg per line\n'
        '    image_class_labels.txt          one number and class, from 1 on, per line\n'
        '    train_test_split.txt            one number and 1 (train) or 0 (test) per line',
    ),
    (
        ('data/cityscapes',),
        'layout of Cityscapes (https://www.cityscapes-dataset.com), splits train and val:\n'
        '    leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png         images\n'
        '    gtFine/SPLIT/CITY/NAME_gtFine_labelTrainIds.png     masks: train id per pixel, 255 = ignored; written by\n'
        '        python tools/stock.py mmseg:dataset_converters/cityscapes.py data/cityscapes\n'
        '        with the package cityscapesscripts',
    ),
    (
        ('data/ade',),
        'layout of ADE20K (ADEChallengeData2016, http://sceneparsing.csail.mit.edu), splits training and validation:\n'
        '    images/SPLIT/NAME.jpg           images\n'
        '    annotations/SPLIT/NAME.png      masks: class per pixel from 1 on, 0 = none of the 150',
    ),
    (
        ('data/digits',),
        'an image folder, train/CLASS/NAME.png and val/CLASS/NAME.png, as '
        '`python tools/dataset_converters/digits_data.py data/digits` writes it',
    ),
)


NO_SAMPLE = 'look at its ann_file, data_prefix, filter_cfg and indices'
PATH = Rule('a path', lambda value: isinstance(value, (str, Path)))


def check_datasets(config: Config, loaders: tuple[str, ...]) -> None:
    """Raise unless every folder and annotation file that the data loaders name exists.

    Args:
        config: The config of the run.
        loaders: Keys of the loaders that the run uses, such as ``train_dataloader``.

    Raises:
        FileNotFoundError: Something is missing; lists it, what belongs there, and a way to continue without it.
    """
    missing: dict[str, str] = {}
    for loader in loaders:
        for key, dataset in leaves(f'{loader}.dataset', (config.get(loader) or {}).get('dataset')):
            if not fetches_itself(dataset, config.get('default_scope')):
                for name, path in named_paths(dataset):
                    if not path.exists():
                        missing.setdefault(str(path), f'{key}.{name}')
    if missing:
        raise FileNotFoundError(message(missing))


def check_samples(loop: BaseLoop | None, key: str) -> None:
    """Raise if a loop has nothing to load: some samplers would loop forever.

    Args:
        loop: The loop of a run; None if the run has none.
        key: The key of its data loader in the config.

    Raises:
        ValueError: Its data set is empty, or there is none.
    """
    if loop is None:
        return  # the Runner says what is missing
    dataset = loop.dataloader.dataset
    if dataset is None:
        raise ValueError(f'{key} has no dataset')
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise ValueError(f'{key}.dataset ({type(dataset).__name__}) has no sample: {NO_SAMPLE}')


def leaves(key: str, dataset: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key and config of each data set inside wrappers such as ConcatDataset and RepeatDataset."""
    if isinstance(dataset, (list, tuple)):
        for number, one in enumerate(dataset):
            yield from leaves(f'{key}.{number}', one)
    elif isinstance(dataset, Mapping):
        wrapped = next((name for name in ('datasets', 'dataset') if dataset.get(name)), None)
        if wrapped:
            yield from leaves(f'{key}.{wrapped}', dataset[wrapped])
        else:
            yield key, dataset


def fetches_itself(dataset: Mapping[str, Any], scope: str | None) -> bool:
    """Whether a data set is not read from local files, or downloads them itself (mmpretrain's CIFAR10)."""
    if dataset.get('backend_args') or dataset.get('file_client_args'):
        return True
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = dataset.get('type')
        kind = registry.get(kind) if isinstance(kind, str) else kind
    download = inspect.signature(kind).parameters.get('download') if callable(kind) else None
    return download is not None and bool(dataset.get('download', download.default))


def named_paths(dataset: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The key and the path of each local folder or file that a data set's config names."""
    root = checked('data_root of a data set', dataset.get('data_root'), optional(PATH)) or ''
    prefix = dataset.get('data_prefix') or {}
    prefixes = prefix if isinstance(prefix, Mapping) else {'': prefix}
    stated = {'data_root': '' if root else None}
    stated |= {f'data_prefix.{key}'.rstrip('.'): value or None for key, value in prefixes.items()}
    stated['ann_file'] = dataset.get('ann_file') or None
    for name, value in stated.items():
        if isinstance(value, str) and '://' not in f'{root}{value}':
            yield name, Path(root, value)


def message(missing: Mapping[str, str]) -> str:
    """The error message: what is missing, what belongs there, and what to do."""
    lines = ['data set not found; missing:', *(f'    {path}   ({key})' for path, key in missing.items())]
    for names, layout in LAYOUTS:
        if any(name in path for name in names for path in missing):
            lines.append(f'expected there: {layout}')
    key = next(iter(missing.values()))
    lines += [
        f'data elsewhere: link the folder to this place, or change the keys above (--cfg-options {key}=PATH ...)',
        'no data at hand: `make demo` draws a small data set of this kind and runs everything on it',
    ]
    return '\n'.join(lines)
