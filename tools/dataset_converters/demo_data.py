"""Writes a small, seeded segmentation data set in the format of PASCAL VOC2012.

The files are laid out like those of the real data set (palette, void borders, lists), so the stock
``PascalVOCDataset`` reads them; ``demo_scenes.py`` draws the pictures.

Example::

    python tools/dataset_converters/demo_data.py data/demo_scenes --num-train 2000 --num-val 200
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from demo_scenes import draw_scene
from once import write_once
from PIL import Image

from mmprune_gates import cli

VOID = 255
VERSION = 2  # raise when the pictures of a given seed change
MIN_SIDE = 16
AUG_HELP = 'also write N (1000 where not given) images in the form of the augmented set'
SPLIT_YEARS = dict(train=2007, val=2008, aug=2010)


def void_border(things: np.ndarray) -> np.ndarray:
    """Pixels on the border between two things, or a thing and the background, which VOC masks leave out."""
    kernel = np.ones([1 + max(1, round(min(things.shape) / 32))] * 2, np.uint8)
    return cv2.dilate(things, kernel) != cv2.erode(things, kernel)


def voc_palette() -> list[int]:
    """The colour map of VOC's indexed PNGs: bits of the index, three at a time, from the top bit of each channel down.

    Returns:
        768 numbers, red, green and blue of 256 colours.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.reshape(-1).tolist()


def _write_scene(root: Path, split: str, number: int, params: dict[str, Any], palette: list[int]) -> str:
    """Writes image and mask of one scene, a function of seed, split and number alone; returns its name."""
    name = f'{SPLIT_YEARS[split]}_{number:06d}'
    rng = np.random.default_rng([params['seed'], SPLIT_YEARS[split], number])
    image, mask, things = draw_scene(rng, tuple(params['size']), params['noise'], params['odd_texture'])
    Image.fromarray(image).save(root / 'JPEGImages' / f'{name}.jpg', quality=95)
    if split == 'aug':  # the masks converted from SBD are grey and have no void border
        Image.fromarray(mask).save(root / 'SegmentationClassAug' / f'{name}.png')
        return name
    mask[void_border(things)] = VOID
    indexed = Image.fromarray(mask)
    indexed.putpalette(palette)
    indexed.save(root / 'SegmentationClass' / f'{name}.png')
    return name


def _write_all(root: Path, params: dict[str, Any]) -> None:
    """Writes the whole data set into an empty folder."""
    lists = root / 'ImageSets' / 'Segmentation'
    for folder in (root / 'JPEGImages', root / 'SegmentationClass', lists):
        folder.mkdir(parents=True)
    splits = dict(train=params['num_train'], val=params['num_val'])
    if params['num_aug']:
        (root / 'SegmentationClassAug').mkdir()
        splits['aug'] = params['num_aug']
    palette = voc_palette()
    names = {s: [_write_scene(root, s, n, params, palette) for n in range(1, count + 1)] for s, count in splits.items()}
    names['trainval'] = names['train'] + names['val']
    if 'aug' in names:
        names['trainaug'] = names['train'] + names['aug']
    for split, entries in names.items():
        (lists / f'{split}.txt').write_text(''.join(f'{name}\n' for name in entries))


def generate_voc(
    root: str | Path,
    *,
    num_train: int = 2000,
    num_val: int = 200,
    num_aug: int = 0,
    size: tuple[int, int] = (64, 96),
    seed: int = 0,
    noise: float = 8.0,
    odd_texture: float = 0.05,
) -> Path:
    """Writes ``root/VOC2012``, or reuses it when it already holds the same data set.

    Args:
        root: Folder that receives ``VOC2012`` (the counterpart of ``VOCdevkit``).
        num_train: Number of training images.
        num_val: Number of validation images.
        num_aug: Number of further images as in the augmented set (``SegmentationClassAug``, ``aug.txt``).
        size: Height and width of the images.
        seed: Seed; image n of a split depends on nothing but it and the drawing options.
        noise: Largest standard deviation of the noise, in grey levels.
        odd_texture: Chance that an object wears a texture that is not its class's own.

    Returns:
        The folder ``root/VOC2012``.

    Raises:
        FileExistsError: The folder exists and holds something else.
        ValueError: The size is too small, or a number is negative.
    """
    if min(size) < MIN_SIDE or min(num_train, num_val, num_aug, seed) < 0:
        raise ValueError(f'the size must be at least {MIN_SIDE} pixels and every number 0 or more')
    params = dict(generator='demo_data.py', version=VERSION, num_train=num_train, num_val=num_val, num_aug=num_aug)
    params |= dict(size=list(size), seed=seed, noise=noise, odd_texture=odd_texture)
    return write_once(Path(root) / 'VOC2012', params, lambda folder: _write_all(folder, params))


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description='Write a small synthetic data set in VOC2012 format.')
    parser.add_argument('out', help='folder that receives VOC2012/')
    parser.add_argument('--num-train', type=int, default=2000)
    parser.add_argument('--num-val', type=int, default=200)
    parser.add_argument('--aug', type=int, nargs='?', const=1000, default=0, metavar='N', help=AUG_HELP)
    parser.add_argument('--size', type=int, nargs=2, default=(64, 96), metavar=('H', 'W'))
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    counts = dict(num_train=args.num_train, num_val=args.num_val, num_aug=args.aug)
    print(generate_voc(args.out, size=tuple(args.size), seed=args.seed, **counts))
    return 0


if __name__ == '__main__':
    sys.exit(main())
