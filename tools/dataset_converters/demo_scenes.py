"""Draws the scenes of the demo data set: an image, its mask, and which pixels belong to which thing.

Objects of six VOC classes differ by outline and texture, and only loosely by colour. They stand before textured grounds
among distractors of no class, occlude one another, and change in scale, light and noise.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Array = np.ndarray
Generator = np.random.Generator
Size = tuple[int, int]

CLASSES = ('background', 'bottle', 'car', 'cat', 'person', 'sheep', 'tvmonitor')
"""The classes that occur, in the order that the demo configs give them."""

VOC_INDEX = dict(bottle=5, car=7, cat=8, person=15, sheep=17, tvmonitor=20)
"""The class numbers written into the masks: those of the 21 VOC classes."""

SUPERSAMPLE = 4


# ------------------------------------------------------------------ outlines
def _disc(x: float, y: float, rx: float, ry: float | None = None) -> Array:
    """Polygon of an ellipse."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + (ry or rx) * np.sin(turn)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float) -> Array:
    """Polygon of a rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=float)


def _poly(*points: tuple[float, float]) -> Array:
    """Polygon of these points."""
    return np.array(points, dtype=float)


def _four_legs() -> list[tuple[str, Array]]:
    """The legs shared by the two animals."""
    return [('body', _box(x, 0.2, x + 0.22, 0.75)) for x in (-0.55, -0.25, 0.15, 0.44)]


# Each part is (role, polygon) in a box of -1..1, y down. Role "body" takes the texture of the class, "plain" one flat
# colour and "dark" a dark one.
# fmt: off
SHAPES = dict(
    bottle=[
        ('body', _poly((-.34, 1), (-.34, -.15), (-.13, -.5), (-.13, -1), (.13, -1), (.13, -.5), (.34, -.15), (.34, 1))),
        ('plain', _box(-.34, .1, .34, .5)),
        ('dark', _box(-.15, -1, .15, -.86)),
    ],
    car=[
        ('body', _poly((-1, .35), (-1, .05), (-.9, -.1), (-.5, -.16), (-.3, -.58), (.35, -.58), (.62, -.14),
                       (.95, -.04), (1, .35))),
        ('plain', _poly((-.38, -.16), (-.23, -.48), (.0, -.48), (.0, -.16))),
        ('plain', _poly((.08, -.16), (.08, -.48), (.3, -.48), (.47, -.16))),
        ('dark', _disc(-.55, .36, .22)),
        ('dark', _disc(.55, .36, .22)),
    ],
    cat=[
        *_four_legs(),
        ('body', _poly((.5, -.1), (.74, -.2), (.7, -.75), (.95, -.77), (1, .0), (.6, .25))),
        ('body', _disc(.05, .05, .66, .34)),
        ('body', _disc(-.62, -.3, .34)),
        ('body', _poly((-.96, -.35), (-.94, -.9), (-.62, -.55))),
        ('body', _poly((-.62, -.55), (-.3, -.9), (-.28, -.35))),
    ],
    person=[
        ('plain', _disc(0, -.76, .24)),
        ('body', _poly((-.4, -.55), (.4, -.55), (.58, .12), (.38, .16), (.3, -.14), (.28, .3), (-.28, .3), (-.3, -.14),
                       (-.38, .16), (-.58, .12))),
        ('plain', _poly((-.28, .25), (.28, .25), (.4, 1), (.12, 1), (0, .5), (-.12, 1), (-.4, 1))),
    ],
    sheep=[
        *_four_legs(),
        ('body', _disc(.05, .0, .7, .42)),
        ('dark', _disc(-.7, -.26, .28, .23)),
    ],
    tvmonitor=[
        ('plain', _box(-.12, .4, .12, .75)),
        ('plain', _box(-.45, .68, .45, .82)),
        ('dark', _box(-.95, -.72, .95, .48)),
        ('body', _box(-.8, -.58, .8, .34)),
    ],
)
# fmt: on
TEXTURES = dict(bottle='glass', car='glass', cat='stripes', person='hoops', sheep='wool', tvmonitor='static')
TINTS = dict(
    bottle=(60, 150, 80),
    car=(190, 60, 50),
    cat=(200, 140, 60),
    person=(80, 90, 190),
    sheep=(200, 200, 190),
    tvmonitor=(90, 170, 190),
)


# ------------------------------------------------------------------ textures
def _waves(rng: Generator, yy: Array, xx: Array, angle: float, period: float) -> Array:
    """Stripes between 0 and 1 across a direction."""
    phase = (xx * np.cos(angle) + yy * np.sin(angle)) * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.5 * np.tanh(2.5 * np.sin(phase))


def _noise(rng: Generator, shape: Size, cell: float) -> Array:
    """Smooth noise between 0 and 1 with patches of about ``cell`` pixels."""
    small = rng.random((max(2, round(shape[0] / cell)), max(2, round(shape[1] / cell)))).astype(np.float32)
    return np.clip(cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), 0, 1)


def _texture(kind: str, rng: Generator, shape: Size, turn: float = 0.0) -> Array:
    """A field between 0 and 1 that mixes the two colours of a thing."""
    yy, xx = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    unit = min(shape) / 64
    if kind == 'stripes':
        return _waves(rng, yy, xx, turn + rng.uniform(-0.3, 0.3), unit * rng.uniform(4.5, 8))
    if kind == 'hoops':
        return _waves(rng, yy, xx, turn + np.pi / 2 + rng.uniform(-0.3, 0.3), unit * rng.uniform(4.5, 8))
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


def _paint(
    rng: Generator, field: Array, contrast: float = 60, tint: tuple[int, int, int] | None = None, mute: float = 0.0
) -> Array:
    """Colours a field with two random colours at least ``contrast`` apart, drawn towards a tint or towards grey."""
    for _ in range(20):
        one, two = rng.uniform(20, 235, (2, 3))
        if np.abs(one - two).mean() >= contrast:
            break
    if tint is not None:
        one += (np.array(tint) - one) * rng.uniform(0.2, 1)
    paint = one + (two - one) * field[..., None]
    return paint + (paint.mean(axis=2, keepdims=True) - paint) * mute


def _background(rng: Generator, shape: Size) -> Array:
    """A textured background: coarse noise, and over a part of it a second texture."""
    image = _paint(rng, _noise(rng, shape, min(shape) / rng.uniform(2, 6)), contrast=20, mute=0.7)
    over = _texture(KINDS[rng.integers(len(KINDS))], rng, shape, rng.uniform(0, np.pi))
    over = _paint(rng, over, contrast=20, mute=0.7)
    where = (_noise(rng, shape, min(shape) / 2)[..., None] > rng.uniform(0.35, 0.75)) * rng.uniform(0.3, 0.9)
    return image + (over - image) * where


# ------------------------------------------------------------------ scenes
def _cover(points: Array, shape: Size) -> Array:
    """How much of every pixel a polygon covers, 0 to 1."""
    canvas = np.zeros((shape[0] * SUPERSAMPLE, shape[1] * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(canvas, [np.round(points * SUPERSAMPLE).astype(np.int32)], 255)
    return cv2.resize(canvas, (shape[1], shape[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _centre(rng: Generator, shape: Size, taken: list[Array]) -> Array:
    """The one of three random places that is farthest from those taken, so that occlusion stays partial."""
    places = rng.uniform((0.08, 0.15), (0.92, 0.85), (3, 2)) * shape[::-1]
    gaps = [min((np.hypot(*(place - other)) for other in taken), default=0) for place in places]
    taken.append(places[int(np.argmax(gaps))])
    return taken[-1]


def _place(rng: Generator, centre: Array, half_height: float) -> tuple[Callable[[Array], Array], float]:
    """A random similarity (with a flip and some change of aspect): function of unit points, and its angle."""
    angle = rng.uniform(-0.3, 0.3)
    stretch = half_height * np.array([rng.uniform(0.8, 1.2) * rng.choice([-1, 1]), rng.uniform(0.85, 1.15)])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return lambda points: points * stretch @ turn + centre, angle


def _draw_object(
    rng: Generator, image: Array, name: str, centre: Array, half_height: float, odd_texture: float
) -> Array:
    """Draws one object of a class into the image; returns the pixels it covers."""
    shape = image.shape[:2]
    place, angle = _place(rng, centre, half_height)
    kind = KINDS[rng.integers(len(KINDS))] if rng.random() < odd_texture else TEXTURES[name]
    body = _paint(rng, _texture(kind, rng, shape, angle), tint=TINTS[name])
    flat = np.ones(shape, np.float32)
    colours = dict(body=body, plain=_paint(rng, flat), dark=np.full_like(image, rng.uniform(10, 70)))
    covered = np.zeros(shape, np.float32)
    for role, points in SHAPES[name]:
        alpha = _cover(place(points), shape)
        image += (colours[role] - image) * alpha[..., None]
        covered = np.maximum(covered, alpha)
    return covered > 0.5


def _draw_distractor(rng: Generator, image: Array, centre: Array, half_height: float) -> Array:
    """Draws a thing of no class: a polygon or an ellipse in any texture; returns the pixels it covers."""
    shape = image.shape[:2]
    place, angle = _place(rng, centre, half_height)
    if rng.random() < 0.4:
        points = _disc(0, 0, rng.uniform(0.3, 1), rng.uniform(0.3, 1))
    else:
        turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        points = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(0.4, 1, (len(turns), 1))
    alpha = _cover(place(points), shape)
    paint = _paint(rng, _texture(KINDS[rng.integers(len(KINDS))], rng, shape, angle), mute=0.5)
    image += (paint - image) * alpha[..., None]
    return alpha > 0.5


def _light(rng: Generator, image: Array, noise: float) -> Array:
    """Uneven light, a change of gamma, blur now and then, and sensor noise."""
    shape = image.shape[:2]
    shade = 1 - rng.uniform(0, 0.5) * _texture('glass', rng, shape)
    image = 255 * np.clip(image * shade[..., None] / 255, 0, 1) ** rng.uniform(0.75, 1.35)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 0.8))
    image = image + rng.normal(0, rng.uniform(0.2, 1) * noise, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def draw_scene(rng: Generator, size: Size, noise: float = 8.0, odd_texture: float = 0.05) -> tuple[Array, Array, Array]:
    """Draws one scene.

    Args:
        rng: Decides everything that is random.
        size: Height and width in pixels.
        noise: Largest standard deviation of the noise, in grey levels.
        odd_texture: Chance that an object wears a texture that is not its class's own.

    Returns:
        The RGB image, the mask of VOC class numbers, and the number of the thing that covers each pixel
        (0 for the background), all of that size.
    """
    image = np.ascontiguousarray(_background(rng, size), dtype=np.float64)
    mask, things = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    taken: list[Array] = []
    todo = ['object'] * int(rng.integers(2, 6)) + ['distractor'] * int(rng.integers(1, 3))
    for number, what in enumerate(rng.permutation(todo), start=1):
        centre = _centre(rng, size, taken)
        half_height = min(size) * np.exp(rng.uniform(np.log(0.26), np.log(0.5)))
        if what == 'object':
            name = CLASSES[rng.integers(1, len(CLASSES))]
            where = _draw_object(rng, image, name, centre, half_height, odd_texture)
            mask[where], things[where] = VOC_INDEX[name], number
        else:
            where = _draw_distractor(rng, image, centre, half_height)
            mask[where], things[where] = 0, 0
    return _light(rng, image, noise), mask, things
