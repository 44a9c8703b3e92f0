"""Facts to a 64 x 64 picture: where the objects stand, their outlines, and how they are painted.

Placing. Lengths are whole quarter pixels, centres lie on a lattice of two pixels. Along the axis of the relation the
boxes of neighbours keep at least `GAP`, all keep `MARGIN` from the border, and what is left over is split at random;
across it a centre is uniform where |across| <= |along| / 1.3 to its neighbour, so a relation is never ambiguous.

Painting. An outline is a rule on the unit box [-1, 1]^2, y down: a heart is (x^2 + y^2 - 1)^3 <= x^2 y^3, every other
shape all points within a rounding distance of a polygon. Its coverage is counted on 8 x 8 points a pixel. Ground, soft
shadow and shapes are then blended in whole numbers. Floats see only + - * /, so every machine makes the same bytes.

It does not know captions, splits or probabilities of facts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from unidiffuser.datasets.dice import Dice
from unidiffuser.datasets.scenes.facts import Object, Scene

WIDTH = 64  # pixels, both ways
UNIT = 4  # lengths are multiples of 1/4 pixel
LATTICE = 2 * UNIT  # of the centres: an object looks alike wherever it stands, so little is left to learn by heart
GAP, MARGIN = 3 * UNIT, 2 * UNIT
RADIUS: Mapping[str, int] = {"small": 24, "medium": 36, "large": 52}

# No colour lies near a mixture of another colour and a ground, nor a ground near another: anti-aliasing and a model's
# blur must not turn one word into another.
PAINT: Mapping[str, tuple[int, int, int]] = {
    "red": (212, 58, 60),
    "green": (64, 156, 76),
    "blue": (52, 98, 200),
    "yellow": (248, 206, 50),
    "purple": (140, 76, 176),
    "orange": (240, 126, 40),
    "teal": (30, 158, 160),
    "black": (46, 48, 56),
}
GROUND: Mapping[str, tuple[int, int, int]] = {
    "white": (250, 250, 248),
    "grey": (206, 206, 214),
    "sand": (246, 228, 188),
    "sky": (194, 222, 246),
    "mint": (198, 237, 207),
}

# Polygon corners in order and the rounding distance.
_STAR = (
    (0.0, -0.9510), (0.2821, -0.4883), (0.9510, -0.3600), (0.4565, 0.0483), (0.5878, 0.8090),
    (0.0, 0.4800), (-0.5878, 0.8090), (-0.4565, 0.0483), (-0.9510, -0.3600), (-0.2821, -0.4883),
)  # fmt: skip
_CROSS = (
    (-0.27, -0.9), (0.27, -0.9), (0.27, -0.27), (0.9, -0.27), (0.9, 0.27), (0.27, 0.27),
    (0.27, 0.9), (-0.27, 0.9), (-0.27, 0.27), (-0.9, 0.27), (-0.9, -0.27), (-0.27, -0.27),
)  # fmt: skip
_OUTLINE: Mapping[str, tuple[tuple[tuple[float, float], ...], float]] = {
    "circle": (((0.0, 0.0),), 1.0),
    "square": (((-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)), 0.14),
    "triangle": (((0.0, -0.76), (0.88, 0.76), (-0.88, 0.76)), 0.12),
    "star": (_STAR, 0.05),
    "cross": (_CROSS, 0.1),
}

_FINE = 8  # points a pixel, along each axis, at which coverage is counted
_FULL = _FINE * _FINE
SHADOW_OFFSET = (2, 1)  # pixels down and right
SHADOW_DEPTH = 420  # the ground under a full shadow keeps 1 - 64 / 420 of its light
_EDGE = 5  # pixels around a stamp's shape that its shadow may reach

Bytes = NDArray[np.uint8]
Whole = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Placed:
    """An object with its centre (x, y) and radius (half its box) in quarter pixels."""

    thing: Object
    x: int
    y: int
    radius: int


def place(scene: Scene, dice: Dice) -> tuple[Placed, ...]:
    """Where the objects of a fully said scene stand; the first is topmost or leftmost. Raises ValueError if unsaid."""
    scene = scene.normal()
    radii = []
    for thing in scene.objects:
        if thing.size is None:
            raise ValueError(f"the size of the {thing.colour} {thing.shape} is not said; a picture needs every size")
        radii.append(RADIUS[thing.size])
    along = _along(radii, dice)
    across = _across(radii, along, dice)
    xs, ys = (along, across) if scene.relation == "left of" else (across, along)
    return tuple(Placed(*each) for each in zip(scene.objects, xs, ys, radii, strict=True))


def _along(radii: list[int], dice: Dice) -> list[int]:
    """Centres on the axis of the relation: boxes in a row, the room to spare split by uniform cuts."""
    first = [_up(MARGIN + radii[0])]
    for before, radius in pairwise(radii):
        first.append(_up(first[-1] + before + GAP + radius))
    spare = (WIDTH * UNIT - MARGIN - radii[-1] - first[-1]) // LATTICE
    if spare < 0:
        raise ValueError("three objects of these sizes do not fit; use at most one large or two medium ones")
    cuts = sorted(dice.between(0, spare) for _ in radii)
    return [centre + LATTICE * cut for centre, cut in zip(first, cuts, strict=True)]


def _across(radii: list[int], along: list[int], dice: Dice) -> list[int]:
    """Centres on the other axis: uniform inside the border and, after the first, within 1 / 1.3 of the step along."""
    centres: list[int] = []
    for k, radius in enumerate(radii):
        low, high = MARGIN + radius, WIDTH * UNIT - MARGIN - radius
        if k:
            reach = (along[k] - along[k - 1]) * 10 // 13
            low, high = max(low, centres[-1] - reach), min(high, centres[-1] + reach)
        centres.append(LATTICE * dice.between(_up(low) // LATTICE, high // LATTICE))
    return centres


def _up(length: int) -> int:
    """The next point of the lattice."""
    return -(-length // LATTICE) * LATTICE


def paint(placed: tuple[Placed, ...], background: str | None) -> Bytes:
    """The picture, uint8 (64, 64, 3). Raises ValueError where the background is not said."""
    if background is None:
        raise ValueError("the background is not said; a picture needs one")
    picture = ground(background).copy()
    stamps = [stamp(p.thing.shape, p.radius, p.x % UNIT, p.y % UNIT) for p in placed]
    for p, (_, shadow) in zip(placed, stamps, strict=True):  # all shadows lie under all shapes
        canvas, patch = _overlap(picture, p, shadow.shape[0], SHADOW_OFFSET)
        canvas[...] = (canvas * (SHADOW_DEPTH - shadow[patch]) + SHADOW_DEPTH // 2) // SHADOW_DEPTH
    for p, (coverage, _) in zip(placed, stamps, strict=True):
        canvas, patch = _overlap(picture, p, coverage.shape[0], (0, 0))
        ink = _ink(p.thing.colour, coverage.shape[0])[patch[0]]
        canvas += ((ink - canvas) * coverage[patch] + _FULL // 2) >> 6
    return picture.astype(np.uint8)


def _overlap(picture: Whole, p: Placed, side: int, offset: tuple[int, int]) -> tuple[Whole, tuple[slice, slice]]:
    """The part of the picture under a stamp of `side` pixels centred on p, and the part of the stamp over it."""
    top, left = (c // UNIT - side // 2 + o for c, o in zip((p.y, p.x), offset, strict=True))
    y0, y1, x0, x1 = max(top, 0), min(top + side, WIDTH), max(left, 0), min(left + side, WIDTH)
    return picture[y0:y1, x0:x1], (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


@cache
def ground(background: str) -> Whole:
    """The ground (64, 64, 3): its colour, a shade lighter above than below."""
    rows = np.array(GROUND[background], np.int32) + 3 - (np.arange(WIDTH, dtype=np.int32) * 8 // WIDTH)[:, None]
    return np.repeat(rows.clip(0, 255)[:, None], WIDTH, axis=1)


@cache
def _ink(colour: str, side: int) -> Whole:
    """The colour of each row of a stamp (side, 1, 3): a shade lighter above than below."""
    shade = 8 - np.arange(side, dtype=np.int32) * 16 // side
    return (np.array(PAINT[colour], np.int32) + shade[:, None]).clip(0, 255)[:, None]


@cache
def stamp(shape: str, radius: int, phase_x: int, phase_y: int) -> tuple[Whole, Whole]:
    """Coverage and soft shadow (side, side, 1), 0 .. 64, of a shape centred `phase` quarter pixels past the middle."""
    fine = _fine(shape, radius)
    side = fine.shape[0] // _FINE - 1
    step = _FINE // UNIT
    y, x = _FINE - step * phase_y, _FINE - step * phase_x
    points = fine[y : y + side * _FINE, x : x + side * _FINE].reshape(side, _FINE, side, _FINE)
    coverage = points.sum(axis=(1, 3), dtype=np.int32)
    return coverage[..., None], _soften(coverage)[..., None]


def _soften(coverage: Whole) -> Whole:
    """Three passes of a 3 x 3 mean, in whole numbers: close to a Gaussian of 1.4 pixels."""
    for _ in range(3):
        wide = np.pad(coverage, 1)
        rows = wide[:-2] + wide[1:-1] + wide[2:]
        coverage = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4) // 9
    return coverage


@cache
def _fine(shape: str, radius: int) -> NDArray[np.bool_]:
    """Which of the fine points of a stamp lie in the shape; one spare pixel above and left for the phases."""
    half = -(-radius // UNIT) + _EDGE
    line = ((np.arange(-_FINE, 2 * half * _FINE) + 0.5) / _FINE - half) * UNIT / radius
    return inside(shape, line[None, :], line[:, None])


def inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (x, y), broadcast, lie in the unit shape; y points down."""
    if shape == "heart":
        u, v = 1.139 * x, 0.118 - 1.118 * y
        ring = u * u + v * v - 1.0
        return ring * ring * ring <= u * u * v * v * v
    corners, rounding = _OUTLINE[shape]
    x, y = np.broadcast_arrays(x, y)
    odd, nearest = np.zeros(x.shape, bool), np.full(x.shape, np.inf)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = bx - ax, by - ay
        length = dx * dx + dy * dy
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / length, 0.0, 1.0) if length else np.zeros(x.shape)
        ex, ey = x - ax - t * dx, y - ay - t * dy
        nearest = np.minimum(nearest, ex * ex + ey * ey)
        if dy:
            odd ^= ((y < ay) != (y < by)) & (x < ax + (y - ay) * dx / dy)
    return odd | (nearest <= rounding * rounding)
