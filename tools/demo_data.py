"""Writes a small, seeded segmentation data set in the format of PASCAL VOC2012.

The pictures are drawn scenes: objects of six VOC classes that differ by outline and texture, never by colour, in front of
textured backgrounds, among unlabelled distractors, occluding one another, at changing scale, light and noise. The files are
laid out exactly like the real data set, so the stock ``PascalVOCDataset`` reads them and its configs need no change.

Example::

    python tools/demo_data.py data/demo_scenes --num-train 600 --num-val 150
"""

import argparse
import json
import os
import shutil
import sys
import uuid
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

CLASSES = ('background', 'bottle', 'car', 'cat', 'person', 'sheep', 'tvmonitor')
"""The classes that occur, in the order that the demo configs give them."""

VOC_INDEX = dict(bottle=5, car=7, cat=8, person=15, sheep=17, tvmonitor=20)
"""The class numbers written into the masks: those of the 21 VOC classes."""

VOID = 255
MANIFEST = 'demo_data.json'
VERSION = 1  # raise when the pictures of a given seed change
SUPERSAMPLE = 4
SPLIT_YEARS = dict(train=2007, val=2008, aug=2010)


# ------------------------------------------------------------------ outlines
def _disc(x, y, rx, ry=None):
    """Polygon of an ellipse."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + (ry or rx) * np.sin(turn)], axis=1)


def _box(x0, y0, x1, y1):
    """Polygon of a rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=float)


def _poly(*points):
    """Polygon of these points."""
    return np.array(points, dtype=float)


def _four_legs():
    """The legs shared by the two animals."""
    return [('body', _box(x, 0.25, x + 0.14, 0.75)) for x in (-0.5, -0.25, 0.2, 0.42)]


# Each part is (role, polygon) in a box of -1..1, y down. Role "body" takes the texture of the class, "plain" one flat colour
# and "dark" a dark one.
SHAPES = dict(
    bottle=[
        ('body', _poly((-.34, 1), (-.34, -.15), (-.13, -.5), (-.13, -1), (.13, -1), (.13, -.5), (.34, -.15), (.34, 1))),
        ('plain', _box(-.34, .1, .34, .5)),
        ('dark', _box(-.15, -1, .15, -.86)),
    ],
    car=[
        ('body', _poly((-1, .35), (-1, .05), (-.9, -.1), (-.5, -.16), (-.3, -.58), (.35, -.58), (.62, -.14), (.95, -.04),
                       (1, .35))),
        ('plain', _poly((-.38, -.16), (-.23, -.48), (.0, -.48), (.0, -.16))),
        ('plain', _poly((.08, -.16), (.08, -.48), (.3, -.48), (.47, -.16))),
        ('dark', _disc(-.55, .36, .22)),
        ('dark', _disc(.55, .36, .22)),
    ],
    cat=[
        *_four_legs(),
        ('body', _poly((.5, .0), (.8, -.15), (.78, -.7), (.92, -.72), (.98, -.05), (.6, .2))),
        ('body', _disc(.05, .08, .62, .28)),
        ('body', _disc(-.66, -.28, .27)),
        ('body', _poly((-.9, -.4), (-.88, -.78), (-.68, -.5))),
        ('body', _poly((-.64, -.5), (-.46, -.78), (-.42, -.38))),
    ],
    person=[
        ('plain', _disc(0, -.79, .2)),
        ('body', _poly((-.34, -.56), (.34, -.56), (.44, .1), (.3, .12), (.22, -.2), (.2, .2), (-.2, .2), (-.22, -.2),
                       (-.3, .12), (-.44, .1))),
        ('plain', _poly((-.2, .2), (.2, .2), (.28, 1), (.1, 1), (0, .4), (-.1, 1), (-.28, 1))),
    ],
    sheep=[
        *_four_legs(),
        ('body', _disc(.05, .0, .66, .4)),
        ('dark', _disc(-.7, -.24, .24, .2)),
    ],
    tvmonitor=[
        ('plain', _box(-.12, .4, .12, .75)),
        ('plain', _box(-.45, .68, .45, .82)),
        ('dark', _box(-.95, -.72, .95, .48)),
        ('body', _box(-.8, -.58, .8, .34)),
    ],
)
TEXTURES = dict(bottle='glass', car='glass', cat='stripes', person='hoops', sheep='wool', tvmonitor='static')


# ------------------------------------------------------------------ textures
def _waves(rng, yy, xx, angle, period):
    """Stripes between 0 and 1 across a direction."""
    phase = (xx * np.cos(angle) + yy * np.sin(angle)) * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.5 * np.tanh(2.5 * np.sin(phase))


def _noise(rng, shape, cell):
    """Smooth noise between 0 and 1 with patches of about ``cell`` pixels."""
    small = rng.random((max(2, round(shape[0] / cell)), max(2, round(shape[1] / cell)))).astype(np.float32)
    return np.clip(cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), 0, 1)


def _texture(kind, rng, shape, turn=0.0):
    """A field between 0 and 1 that mixes the two colours of a thing."""
    yy, xx = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    unit = min(shape) / 64
    if kind == 'stripes':
        return _waves(rng, yy, xx, turn + rng.uniform(-0.3, 0.3), unit * rng.uniform(3.5, 6))
    if kind == 'hoops':
        return _waves(rng, yy, xx, turn + np.pi / 2 + rng.uniform(-0.3, 0.3), unit * rng.uniform(3.5, 6))
    if kind == 'checks':
        period = unit * rng.uniform(5, 8)
        one, two = (_waves(rng, yy, xx, turn + angle, period) for angle in (0.0, np.pi / 2))
        return np.abs(one - two)
    if kind == 'wool':
        return _noise(rng, shape, unit * rng.uniform(2.2, 3.2))
    if kind == 'static':
        return np.clip(rng.random(shape) * 0.8 + 0.2 * _waves(rng, yy, xx, np.pi / 2, unit * 2), 0, 1)
    angle = rng.uniform(0, 2 * np.pi)  # glass: a soft gradient
    slope = xx * np.cos(angle) + yy * np.sin(angle)
    return (slope - slope.min()) / max(float(np.ptp(slope)), 1e-6)


KINDS = ('stripes', 'hoops', 'checks', 'wool', 'static', 'glass')


def _paint(rng, field, contrast=60):
    """Colours a field with two random colours that are at least ``contrast`` apart in mean."""
    for _ in range(20):
        one, two = rng.uniform(20, 235, (2, 3))
        if np.abs(one - two).mean() >= contrast:
            break
    return one + (two - one) * field[..., None]


def _background(rng, shape):
    """A textured background: coarse noise, and over a part of it a second texture."""
    image = _paint(rng, _noise(rng, shape, min(shape) / rng.uniform(2, 6)), contrast=30)
    over = _paint(rng, _texture(KINDS[rng.integers(len(KINDS))], rng, shape, rng.uniform(0, np.pi)), contrast=30)
    where = (_noise(rng, shape, min(shape) / 2)[..., None] > rng.uniform(0.35, 0.75)) * rng.uniform(0.3, 0.9)
    return image + (over - image) * where


# ------------------------------------------------------------------ scenes
def _cover(points, shape):
    """How much of every pixel a polygon covers, 0 to 1."""
    canvas = np.zeros((shape[0] * SUPERSAMPLE, shape[1] * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(canvas, [np.round(points * SUPERSAMPLE).astype(np.int32)], 255)
    return cv2.resize(canvas, (shape[1], shape[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _place(rng, shape, half_height):
    """A random similarity (with a flip and some change of aspect): function of unit points, and its angle."""
    angle = rng.uniform(-0.3, 0.3)
    stretch = half_height * np.array([rng.uniform(0.8, 1.2) * rng.choice([-1, 1]), rng.uniform(0.85, 1.15)])
    centre = np.array([rng.uniform(0.08, 0.92) * shape[1], rng.uniform(0.15, 0.85) * shape[0]])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return lambda points: points * stretch @ turn + centre, angle


def _draw_object(rng, image, name, half_height, odd_texture):
    """Draws one object of a class into the image; returns the pixels it covers."""
    shape = image.shape[:2]
    place, angle = _place(rng, shape, half_height)
    kind = KINDS[rng.integers(len(KINDS))] if rng.random() < odd_texture else TEXTURES[name]
    body = _paint(rng, _texture(kind, rng, shape, angle))
    flat = np.ones(shape, np.float32)
    colours = dict(body=body, plain=_paint(rng, flat), dark=np.full_like(image, rng.uniform(10, 70)))
    covered = np.zeros(shape, np.float32)
    for role, points in SHAPES[name]:
        alpha = _cover(place(points), shape)
        image += (colours[role] - image) * alpha[..., None]
        covered = np.maximum(covered, alpha)
    return covered > 0.5


def _draw_distractor(rng, image, half_height):
    """Draws a thing of no class: a polygon or an ellipse in any texture; returns the pixels it covers."""
    shape = image.shape[:2]
    place, angle = _place(rng, shape, half_height)
    if rng.random() < 0.4:
        points = _disc(0, 0, rng.uniform(0.3, 1), rng.uniform(0.3, 1))
    else:
        turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        points = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(0.4, 1, (len(turns), 1))
    alpha = _cover(place(points), shape)
    paint = _paint(rng, _texture(KINDS[rng.integers(len(KINDS))], rng, shape, angle))
    image += (paint - image) * alpha[..., None]
    return alpha > 0.5


def _light(rng, image, noise):
    """Uneven light, a change of gamma, blur now and then, and sensor noise."""
    shape = image.shape[:2]
    shade = 1 - rng.uniform(0, 0.5) * _texture('glass', rng, shape)
    image = 255 * np.clip(image * shade[..., None] / 255, 0, 1) ** rng.uniform(0.75, 1.35)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 0.8))
    image = image + rng.normal(0, rng.uniform(0.2, 1) * noise, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def draw_scene(rng, size, noise=16.0, odd_texture=0.2):
    """Draws one scene.

    Args:
        rng (numpy.random.Generator): Decides everything that is random.
        size (tuple[int, int]): Height and width in pixels.
        noise (float): Largest standard deviation of the noise, in grey levels.
        odd_texture (float): Chance that an object wears a texture that is not its class's own.

    Returns:
        tuple: The RGB image, the mask of VOC class numbers, and the number of the thing that covers each pixel
        (0 for the background), all of that size.
    """
    image = np.ascontiguousarray(_background(rng, size), dtype=np.float64)
    mask, things = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    todo = ['object'] * int(rng.integers(2, 6)) + ['distractor'] * int(rng.integers(1, 4))
    for number, what in enumerate(rng.permutation(todo), start=1):
        half_height = min(size) * np.exp(rng.uniform(np.log(0.13), np.log(0.42)))
        if what == 'object':
            name = CLASSES[rng.integers(1, len(CLASSES))]
            where = _draw_object(rng, image, name, half_height, odd_texture)
            mask[where], things[where] = VOC_INDEX[name], number
        else:
            where = _draw_distractor(rng, image, half_height)
            mask[where], things[where] = 0, 0
    return _light(rng, image, noise), mask, things


def void_border(things):
    """Pixels on the border between two things, or a thing and the background, as VOC masks leave them out."""
    kernel = np.ones([1 + max(1, round(min(things.shape) / 100))] * 2, np.uint8)
    return cv2.dilate(things, kernel) != cv2.erode(things, kernel)


# ------------------------------------------------------------------ files
def voc_palette():
    """The colour map of VOC's indexed PNGs: bits of the index, three at a time, from the top bit of each channel down.

    Returns:
        list[int]: 768 numbers, red, green and blue of 256 colours.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.reshape(-1).tolist()


def _write_scene(root, split, number, params, palette):
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


def _write_all(root, params):
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
    (root / MANIFEST).write_text(json.dumps(params, indent=2) + '\n')


def _is_complete(root, params):
    """Whether a folder holds this very data set; an error when what it holds should not be touched."""
    if not root.exists():
        return False
    manifest = root / MANIFEST
    if not manifest.is_file():
        raise FileExistsError(f'{root} exists and was not written by {Path(__file__).name}; choose another folder')
    found = json.loads(manifest.read_text())
    if found != params:
        changed = sorted(key for key in params.keys() | found.keys() if params.get(key) != found.get(key))
        raise FileExistsError(
            f'{root} holds a demo data set with other {", ".join(changed)}; delete it or choose another folder')
    return True


def generate_voc(root, *, num_train=600, num_val=150, num_aug=0, size=(64, 96), seed=0, noise=16.0, odd_texture=0.2):
    """Writes ``root/VOC2012``, or reuses it when it already holds the same data set.

    The folder appears complete or not at all: everything is written to a temporary neighbour that is then renamed.

    Args:
        root (str | Path): Folder that receives ``VOC2012`` (the counterpart of ``VOCdevkit``).
        num_train (int): Number of training images.
        num_val (int): Number of validation images.
        num_aug (int): Number of further images as in the augmented set (``SegmentationClassAug``, ``aug.txt``).
        size (tuple[int, int]): Height and width of the images.
        seed (int): Seed; image n of a split depends on nothing but it and the drawing options.
        noise (float): Largest standard deviation of the noise, in grey levels.
        odd_texture (float): Chance that an object wears a texture that is not its class's own.

    Returns:
        Path: The folder ``root/VOC2012``.

    Raises:
        FileExistsError: The folder exists and holds something else.
    """
    params = dict(generator=Path(__file__).name, version=VERSION, num_train=num_train, num_val=num_val, num_aug=num_aug,
                  size=list(size), seed=seed, noise=noise, odd_texture=odd_texture)
    target = Path(root) / 'VOC2012'
    if _is_complete(target, params):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f'.VOC2012-{os.getpid()}-{uuid.uuid4().hex[:8]}'
    try:
        partial.mkdir()
        _write_all(partial, params)
        try:
            partial.rename(target)
        except OSError:  # another process was faster
            if not _is_complete(target, params):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def main(argv=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description='Write a small synthetic data set in VOC2012 format.')
    parser.add_argument('out', help='folder that receives VOC2012/')
    parser.add_argument('--num-train', type=int, default=600)
    parser.add_argument('--num-val', type=int, default=150)
    parser.add_argument('--aug', type=int, nargs='?', const=600, default=0, metavar='N',
                        help='also write N (600) images as in the augmented set')
    parser.add_argument('--size', type=int, nargs=2, default=(64, 96), metavar=('H', 'W'))
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    try:
        target = generate_voc(args.out, num_train=args.num_train, num_val=args.num_val, num_aug=args.aug,
                              size=tuple(args.size), seed=args.seed)
    except FileExistsError as error:
        print(error, file=sys.stderr)
        return 1
    print(target)
    return 0


if __name__ == '__main__':
    sys.exit(main())
