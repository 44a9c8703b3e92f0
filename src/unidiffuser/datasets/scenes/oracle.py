"""A picture back to its facts, by measurement alone: what a model painted, without a model to judge it.

    ground      the palette ground with the least sum of min(distance^2, REACH^2) over all pixels
    objects     4-connected groups of pixels that lie nearer to some paint than to the ground
    colour      the paint nearest to the mean of a group's core, away from its anti-aliased rim
    outline     alpha = <pixel - ground, paint - ground> / |paint - ground|^2, compared with every shape and size that
                `render` paints, laid on its centroid, then moved by quarter pixels to the best place
    verdict     what was read is painted again; if the two pictures differ anywhere by more than `MISFIT` (RGB distance
                of the means over 5 x 5 pixels), or if a second word explains a colour, a shape or a size almost as
                well as the first (`AMBIGUOUS`), the picture is *unreadable*

So nothing is mapped silently to the nearest fact. All steps average over 3 x 3 pixels or more, so that faint noise,
blur and wobbly outlines do not matter; `docs/scenes.md` has the measured accuracy, and what is refused.

It knows the palette and the outlines of `render`, but not how scenes are drawn, and of captions only their facts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unidiffuser.datasets.scenes import grammar, render
from unidiffuser.datasets.scenes.facts import SHAPES, Object, Scene
from unidiffuser.datasets.scenes.render import GROUND, PAINT, RADIUS, UNIT, WIDTH, Placed

MISFIT = 65.0  # of 441, the distance from black to white
AMBIGUOUS = 0.85  # best misfit / second best, above which neither word is right
REACH = 80.0  # RGB distance beyond which a pixel says nothing about the ground
SPECK = 16  # groups of fewer pixels are no objects; where they matter, the verdict sees them
STEEP = 1.15  # a relation needs its axis this much longer than the other

Reals = NDArray[np.float64]
Mask = NDArray[np.bool_]

_CENTRES = np.arange(WIDTH) + 0.5


class UnreadableError(ValueError):
    """A picture that shows no scene of this world; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the oracle saw: a scene in normal form, or None and the fault that makes it unreadable.

    placed: where the objects were found. misfit: how far the picture is from its reading painted again.
    """

    scene: Scene | None
    fault: str = ""
    placed: tuple[Placed, ...] = ()
    misfit: float = float("inf")


def read(picture: Image.Image | NDArray[np.uint8]) -> Reading:
    """The facts of a 64 x 64 RGB picture. Raises ValueError for another size; "unreadable" is an answer, no error."""
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if pixels.shape != (WIDTH, WIDTH, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"the oracle reads 64 x 64 RGB pictures of 8 bits, not {pixels.shape} of {pixels.dtype}")
    image = pixels.astype(np.float64)
    try:
        background = _background(image)
        placed = _in_order(tuple(_objects(image, background)))
        scene = _scene(placed, background)
    except UnreadableError as fault:
        return Reading(scene=None, fault=str(fault))
    apart = _mean(image - render.paint(placed, background), 2)
    misfit = float(np.sqrt((apart * apart).sum(-1).max()))
    if misfit > MISFIT:
        why = "the picture does not look like the nearest scene"
        return Reading(scene=None, fault=why, placed=placed, misfit=misfit)
    return Reading(scene=scene, placed=placed, misfit=misfit)


def read_all(pictures: Iterable[Image.Image | NDArray[np.uint8]]) -> list[Scene | None]:
    """The scenes of many pictures, None for each that is unreadable."""
    return [read(picture).scene for picture in pictures]


def read_caption(sentence: str) -> Scene | None:
    """The facts that a sentence states, None if the grammar does not accept it."""
    try:
        return grammar.read(sentence)
    except ValueError:
        return None


def _background(image: Reals) -> str:
    """The ground whose colour explains most pixels."""
    far = _apart(image, GROUND).clip(max=REACH**2)
    likely = int(far.sum((0, 1)).argmin())
    return _nearest(image[far[..., likely] < REACH**2].mean(0), GROUND)


def _objects(image: Reals, background: str) -> Iterator[Placed]:
    """Every object on the ground, in no order."""
    smooth, ground = _mean(image, 1), render.ground(background).astype(np.float64)
    off = smooth - ground
    groups = _groups((off * off).sum(-1) > _apart(smooth, PAINT).min(-1))
    if not 1 <= len(groups) <= 3:
        raise UnreadableError(f"there are {len(groups)} objects, not one to three")
    grown = [_grow(group, 1) for group in groups]
    for group, own in zip(groups, grown, strict=True):
        colour = _nearest(image[_core(group)].mean(0), PAINT)
        span = np.array(PAINT[colour], np.float64) - ground
        weight = (span * span).sum(-1)
        alpha = ((off * span).sum(-1) / weight).clip(-0.5, 1.5)
        around = _grow(own, 3) & (own | ~np.logical_or.reduce(grown))
        shade = -64.0 / render.SHADOW_DEPTH * float(((ground * span).sum(-1) / weight).mean())
        yield _fit(np.where(around, alpha, 0.0), _grow(own, 1), shade, colour)


def _fit(alpha: Reals, body: Mask, shade: float, colour: str) -> Placed:
    """The object whose coverage explains `alpha` (64, 64), the share of its paint in each pixel, best.

    body: pixels that count for area and centroid. shade: the alpha that a full shadow pretends to be.
    """
    solid = np.where(body, alpha, 0.0)
    area = solid.sum()
    y, x = solid.sum(1) @ _CENTRES / area, solid.sum(0) @ _CENTRES / area
    guesses: list[tuple[float, Placed]] = []
    for shape in SHAPES:
        for size, radius in RADIUS.items():
            drop, full = _balance(shape, radius)
            if not 0.6 < area / full < 1.6:
                continue
            guess = Placed(Object(size, colour, shape), round(x * UNIT), round((y - drop) * UNIT), radius)
            guesses.append((_distance(alpha, guess, shade), guess))
    settled = sorted((_settle(alpha, p, shade) for _, p in sorted(guesses, key=_score)[:3]), key=_score)
    if not settled:
        raise UnreadableError(f"something {colour} has no size of this world")
    if len(settled) > 1 and settled[0][0] > AMBIGUOUS * settled[1][0]:
        one, other = (f"a {p.thing.size} {p.thing.shape}" for _, p in settled[:2])
        raise UnreadableError(f"something {colour} is neither {one} nor {other}")
    return settled[0][1]


def _score(scored: tuple[float, Placed]) -> float:
    return scored[0]


def _settle(alpha: Reals, guess: Placed, shade: float) -> tuple[float, Placed]:
    """Move a guess by quarter pixels as long as that brings it nearer."""
    best = _distance(alpha, guess, shade), guess
    while True:
        p = best[1]
        moves = [Placed(p.thing, p.x + i, p.y + j, p.radius) for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        step = min(((_distance(alpha, move, shade), move) for move in moves), key=_score)
        if step[0] >= best[0]:
            return best
        best = step


def _distance(alpha: Reals, p: Placed, shade: float) -> float:
    """Sum of squared differences between alpha and what p would give, both averaged over 3 x 3."""
    solid, shadow = _outline(p.thing.shape, p.radius, p.x % UNIT, p.y % UNIT)
    half = solid.shape[0] // 2
    top, left = p.y // UNIT - half, p.x // UNIT - half
    y0, y1, x0, x1 = max(top, 0), min(top + 2 * half, WIDTH), max(left, 0), min(left + 2 * half, WIDTH)
    under = alpha[y0:y1, x0:x1]
    patch = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    apart = under - solid[patch] - shade * shadow[patch]
    return float(np.vdot(apart, apart) - np.vdot(under, under) + np.vdot(alpha, alpha))


@cache
def _outline(shape: str, radius: int, phase_x: int, phase_y: int) -> tuple[Reals, Reals]:
    """Coverage and uncovered shadow (side, side) of a stamp, each 0 .. 1 and averaged over 3 x 3."""
    coverage, shadow = (layer / 64.0 for layer in render.stamp(shape, radius, phase_x, phase_y))
    shadow = np.roll(shadow, render.SHADOW_OFFSET, (0, 1)) * (1.0 - coverage)
    return _mean(coverage, 1)[..., 0], _mean(shadow, 1)[..., 0]


@cache
def _balance(shape: str, radius: int) -> tuple[float, float]:
    """How many pixels the centroid of a shape lies below its centre, and its area in pixels."""
    solid, _ = _outline(shape, radius, 0, 0)
    rows = np.arange(solid.shape[0]) + 0.5 - solid.shape[0] // 2
    return float(solid.sum(1) @ rows / solid.sum()), float(solid.sum())


def _in_order(placed: tuple[Placed, ...]) -> tuple[Placed, ...]:
    """The objects along the longer axis of their arrangement: top to bottom, or left to right."""
    by_y, by_x = sorted(placed, key=lambda p: p.y), sorted(placed, key=lambda p: p.x)
    return tuple(by_y if by_y[-1].y - by_y[0].y > by_x[-1].x - by_x[0].x else by_x)


def _scene(placed: tuple[Placed, ...], background: str) -> Scene:
    """The scene that objects in order show."""
    relation = None
    if len(placed) > 1:
        steps = [(b.x - a.x, b.y - a.y) for a, b in pairwise(placed)]
        if all(dy > STEEP * abs(dx) for dx, dy in steps):
            relation = "above"
        elif all(dx > STEEP * abs(dy) for dx, dy in steps):
            relation = "left of"
        else:
            raise UnreadableError("the objects stand neither above nor left of each other")
    try:
        return Scene(tuple(p.thing for p in placed), relation, background)
    except ValueError as fault:
        raise UnreadableError(str(fault)) from None


def _apart(image: Reals, palette: Mapping[str, tuple[int, int, int]]) -> Reals:
    """Squared RGB distance (..., K) of every pixel (..., 3) to every colour of a palette, as |a|^2 - 2 a.b + |b|^2."""
    colours = np.array(list(palette.values()), np.float64)
    return (image * image) @ np.ones((3, len(colours))) - 2.0 * (image @ colours.T) + (colours * colours).sum(-1)


def _nearest(colour: Reals, palette: Mapping[str, tuple[int, int, int]]) -> str:
    """The name of the nearest colour of a palette; raises UnreadableError between two."""
    far = np.sqrt(_apart(colour, palette).clip(min=0.0))
    first, second = np.argsort(far)[:2]
    names = list(palette)
    if far[first] > AMBIGUOUS * far[second]:
        raise UnreadableError(f"a colour is neither {names[first]} nor {names[second]}")
    return names[first]


def _groups(mask: Mask) -> list[Mask]:
    """The 4-connected groups of at least `SPECK` true pixels: labels spread to neighbours until they rest."""
    label = np.pad(np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0), 1)
    inner = label[1:-1, 1:-1]
    before = -1
    while (total := int(inner.sum())) != before:
        before = total
        for step in (label[:-2, 1:-1], label[2:, 1:-1], label[1:-1, :-2], label[1:-1, 2:]):
            np.maximum(inner, step, out=inner, where=mask)
    names, counts = np.unique(inner[mask], return_counts=True)
    return [inner == name for name, count in zip(names, counts, strict=True) if count >= SPECK]


def _core(group: Mask) -> Mask:
    """The group without its rim of two pixels, or of as much of it as leaves four pixels."""
    for _ in range(2):
        smaller = ~_grow(~group, 1)
        if smaller.sum() < 4:
            break
        group = smaller
    return group


def _grow(mask: Mask, steps: int) -> Mask:
    """The mask and its 4-neighbours, as many times over."""
    for _ in range(steps):
        wide = np.pad(mask, 1)
        mask = mask | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return mask


def _mean(image: Reals, reach: int) -> Reals:
    """Mean over (2 reach + 1)^2 pixels of (H, W, C), the border repeated."""
    side = 2 * reach + 1
    h, w = image.shape[:2]
    wide = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    rows, total = np.zeros((h, w + 2 * reach, image.shape[2])), np.zeros(image.shape)
    for k in range(side):
        rows += wide[k : k + h]
    for k in range(side):
        total += rows[:, k : k + w]
    return total / (side * side)
