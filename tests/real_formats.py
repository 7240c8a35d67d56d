"""Tiny data sets as the real ones lie on disk: folders, names, lists and file formats that the stock classes read."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import cv2
import numpy as np

IMAGES = 2  # in each split, or in each batch of CIFAR-10
CITIES = dict(train='aachen', val='frankfurt')
BIRDS = ('001.Black_footed_Albatross/Black_Footed_Albatross', '200.Common_Yellowthroat/Common_Yellowthroat')
SYNSETS = 1000
IGNORED = 255


def picture(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Writes a noisy colour image of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3), np.uint8))


def mask(path: Path, size: tuple[int, int], labels: list[int], rng: np.random.Generator) -> None:
    """Writes a grey PNG of (height, width) with one label in each of 8x8 cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = rng.choice(labels, (8, 8)).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(cells, size[::-1], interpolation=cv2.INTER_NEAREST))


def batch(path: Path, **labels: list[int]) -> list[str]:
    """Writes a pickle as CIFAR has them; returns its name and checksum, as the stock class lists them."""
    data = np.random.default_rng(len(path.name)).integers(0, 256, (IMAGES, 3 * 32 * 32), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({'batch_label': path.name, 'data': data, 'filenames': ['a.png', 'b.png'], **labels}))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


def write_cifar10(root: Path) -> dict[str, list]:
    """Five training batches and one test batch; returns what the stock class should list."""
    folder = root / 'cifar-10-batches-py'
    train = [batch(folder / f'data_batch_{number}', labels=[0, 9]) for number in range(1, 6)]
    return dict(train_list=train, test_list=[batch(folder / 'test_batch', labels=[0, 9])])


def write_cifar100(root: Path) -> dict[str, list]:
    """One training and one test file; returns what the stock class should list."""
    folder, labels = root / 'cifar-100-python', dict(coarse_labels=[4, 19], fine_labels=[0, 99])
    return dict(train_list=[batch(folder / 'train', **labels)], test_list=[batch(folder / 'test', **labels)])


def write_cub(root: Path) -> None:
    """Images in a folder per class; four lists, numbered from 1: names, classes, splits, bounding boxes."""
    rng = np.random.default_rng(0)
    names = [f'{bird}_{split:04}_{split}.jpg' for split in (0, 1) for bird in BIRDS]
    for name in names:
        picture(root / 'images' / name, (72, 96), rng)
    lists = {
        'images': names,
        'image_class_labels': ['1', '200', '1', '200'],
        'train_test_split': ['0', '0', '1', '1'],
        'bounding_boxes': ['10.0 8.0 60.0 50.0'] * len(names),
    }
    for title, entries in lists.items():
        lines = [f'{number} {entry}\n' for number, entry in enumerate(entries, 1)]
        (root / f'{title}.txt').write_text(''.join(lines))


def write_imagenet(root: Path) -> None:
    """Training images in a folder per class; validation images in one folder, with a list of their classes."""
    rng = np.random.default_rng(0)
    for number in range(SYNSETS):  # the stock class demands that all are there
        synset = f'n{1440764 + number:08}'
        picture(root / 'train' / synset / f'{synset}_10026.JPEG', (24, 32), rng)
    names = [f'ILSVRC2012_val_{number:08}.JPEG' for number in (1, 2)]
    for name in names:
        picture(root / 'val' / name, (72, 96), rng)
    (root / 'meta').mkdir()
    (root / 'meta' / 'val.txt').write_text(f'{names[0]} 0\n{names[1]} 999\n')


def write_cityscapes(root: Path) -> None:
    """leftImg8bit and gtFine, a folder per city; masks with train ids."""
    rng = np.random.default_rng(0)
    for split, city in CITIES.items():
        for number in range(IMAGES):
            name = f'{city}_{number:06}_000019'
            picture(root / 'leftImg8bit' / split / city / f'{name}_leftImg8bit.png', (64, 128), rng)
            labels = root / 'gtFine' / split / city / f'{name}_gtFine_labelTrainIds.png'
            mask(labels, (64, 128), [*range(19), IGNORED], rng)


def write_ade20k(root: Path) -> None:
    """images and annotations, with 150 classes from 1 on and 0 for the rest."""
    rng = np.random.default_rng(0)
    for split, short in dict(training='train', validation='val').items():
        for number in range(1, IMAGES + 1):
            name = f'ADE_{short}_{number:08}'
            picture(root / 'images' / split / f'{name}.jpg', (64, 96), rng)
            mask(root / 'annotations' / split / f'{name}.png', (64, 96), list(range(151)), rng)
