"""How far to trust the oracle: what it reads of damaged scenes, and what it refuses of pictures that are no scenes.

    python benchmarks/oracle.py [--samples 20000] [--seed 0]

The first table goes to `docs/scenes.md`: right, refused and wrong must be known before a model's score means anything.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from unidiffuser.datasets.dice import Dice
from unidiffuser.datasets.scenes import Scenes, facts, oracle, render
from unidiffuser.datasets.scenes.facts import Object
from unidiffuser.datasets.scenes.render import Bytes, Placed

Damage = Callable[[Bytes, np.random.Generator], Bytes]


def to_bytes(values: np.ndarray) -> Bytes:
    """Rounded and clipped to 0 .. 255."""
    return (values + 0.5).clip(0, 255).astype(np.uint8)


def noise(sigma: float) -> Damage:
    """Gaussian noise of each channel; sigma in parts of the full range."""
    return lambda picture, rng: to_bytes(picture + rng.normal(0, 255 * sigma, picture.shape))


def blur(sigma: float) -> Damage:
    """A Gaussian blur of sigma pixels."""
    return lambda picture, _: np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)))


def half(picture: Bytes, _: np.random.Generator) -> Bytes:
    """Half the resolution and back."""
    small = Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX)
    return np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))


def wobble(pixels: float) -> Damage:
    """Every point moved by a smooth random field (grain 4 pixels) of this standard deviation."""

    def apply(picture: Bytes, rng: np.random.Generator) -> Bytes:
        fields = [Image.fromarray(rng.normal(0, pixels, (16, 16)).astype(np.float32)) for _ in range(2)]
        dy, dx = (np.asarray(field.resize((64, 64), Image.Resampling.BICUBIC)) for field in fields)
        y, x = np.mgrid[:64, :64]
        y, x = (y + dy).clip(0, 62.999), (x + dx).clip(0, 62.999)
        top, left = y.astype(int), x.astype(int)
        v, u = (y - top)[..., None], (x - left)[..., None]
        above = picture[top, left] * (1 - u) + picture[top, left + 1] * u
        below = picture[top + 1, left] * (1 - u) + picture[top + 1, left + 1] * u
        return to_bytes(above * (1 - v) + below * v)

    return apply


DAMAGES: dict[str, Damage] = {
    "clean": lambda picture, _: picture,
    "noise 0.05": noise(0.05),
    "noise 0.10": noise(0.10),
    "noise 0.15": noise(0.15),
    "noise 0.30": noise(0.30),
    "half resolution": half,
    "blur 1.0": blur(1.0),
    "blur 1.5": blur(1.5),
    "wobble 0.3": wobble(0.3),
    "wobble 0.5": wobble(0.5),
}


def _paint(index: int, change: Callable[[Placed], Placed] = lambda p: p) -> tuple[Bytes, tuple[Placed, ...], str]:
    """A scene whose first object is changed: its picture, its objects, its background."""
    dice = Dice(index)
    scene = facts.draw(dice)
    first, *rest = render.place(scene, dice)
    placed = (change(first), *rest)
    return render.paint(placed, scene.background), placed, str(scene.background)


def between_shapes(i: int) -> Bytes:
    """The first object is half one shape and half another."""
    picture, (first, *rest), background = _paint(i)
    other = facts.SHAPES[(facts.SHAPES.index(first.thing.shape) + 1 + i % 5) % 6]
    second = render.paint((replace(first, thing=replace(first.thing, shape=other)), *rest), background)
    return to_bytes(picture / 2 + second / 2)


def between_sizes(i: int) -> Bytes:
    """The radius of the first object lies in the middle between two sizes."""
    return _paint(i, lambda p: replace(p, radius=44 if p.radius > 37 else 31))[0]


def between_colours(i: int) -> Bytes:
    """The paint of the first object lies in the middle between two paints."""
    picture, (first, *rest), background = _paint(i)
    far = [np.abs(np.subtract(render.PAINT[c], render.PAINT[first.thing.colour])).sum() for c in facts.COLOURS]
    other = facts.COLOURS[int(np.argsort(far)[1])]
    second = render.paint((replace(first, thing=replace(first.thing, colour=other)), *rest), background)
    return to_bytes(picture / 2 + second / 2)


def two_colours(i: int) -> Bytes:
    """The upper half of the first object has one paint, the lower another."""
    picture, (first, *rest), background = _paint(i)
    other = facts.COLOURS[(facts.COLOURS.index(first.thing.colour) + 1 + i % 7) % 8]
    second = render.paint((replace(first, thing=replace(first.thing, colour=other)), *rest), background)
    out = picture.copy()
    out[first.y // 4 :] = second[first.y // 4 :]
    return out


def bitten(i: int) -> Bytes:
    """The lower right quarter of the first object is missing."""
    picture, (first, *rest), background = _paint(i)
    bare = render.paint(tuple(rest), background)
    out = picture.copy()
    out[first.y // 4 :, first.x // 4 :] = bare[first.y // 4 :, first.x // 4 :]
    return out


def diagonal(i: int) -> Bytes:
    """Two objects stand exactly diagonally."""
    dice = Dice(i)
    pairs = [(c, s) for c in facts.COLOURS for s in facts.SHAPES]
    first, second = pairs[dice.below(48)], pairs[dice.below(47)]
    if first == second:
        second = pairs[47]
    size, radius = ("small", 25) if i % 2 else ("medium", 37)
    a = Placed(Object(size, *first), 64, 64, radius)
    b = Placed(Object(size, *second), 180, 180, radius)
    return render.paint((a, b), dice.pick(facts.BACKGROUNDS))


def twins(i: int) -> Bytes:
    """Two objects of one colour and shape."""
    dice = Dice(i)
    thing = Object("medium", dice.pick(facts.COLOURS), dice.pick(facts.SHAPES))
    return render.paint((Placed(thing, 64, 128, 37), Placed(thing, 180, 120, 37)), dice.pick(facts.BACKGROUNDS))


def speck(i: int) -> Bytes:
    """A dark speck of 5 x 5 pixels in a corner that is empty."""
    picture, placed, _ = _paint(i)
    corners = [(y, x) for y in (3, 56) for x in (3, 56)]

    def room(corner: tuple[int, int]) -> float:
        return min(max(abs(p.y / 4 - corner[0]), abs(p.x / 4 - corner[1])) - p.radius / 4 for p in placed)

    y, x = max(corners, key=room)
    out = picture.copy()
    out[y : y + 5, x : x + 5] = (90, 60, 70)
    return out


def odd_ground(i: int) -> Bytes:
    """The ground is pink."""
    picture, _, background = _paint(i)
    change = np.subtract((240, 190, 205), render.GROUND[background])
    near = np.abs(picture.astype(int) - render.ground(background)).sum(-1, keepdims=True) < 90
    return to_bytes(picture + change * near)


IMPOSTORS: dict[str, Callable[[int], Bytes]] = {
    "halfway between two shapes": between_shapes,
    "halfway between two sizes": between_sizes,
    "halfway between two colours": between_colours,
    "upper half one colour, lower half another": two_colours,
    "a quarter of an object missing": bitten,
    "two objects exactly diagonal": diagonal,
    "two objects of one colour and shape": twins,
    "a dark speck of 5 x 5 pixels": speck,
    "a pink ground": odd_ground,
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="clean pictures; a tenth of it for each damage")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    scenes = Scenes(seed=given.seed, split="test")
    print("| picture | read right | refused | read wrong | pictures |\n|---|---|---|---|---|")
    for name, damage in DAMAGES.items():
        count = given.samples if name == "clean" else max(given.samples // 10, 1)
        rng, right, refused, begin = np.random.default_rng(given.seed), 0, 0, time.perf_counter()
        for index in range(count):
            seen = oracle.read(damage(scenes.batch([index])[0][0], rng)).scene
            refused += seen is None
            right += seen == scenes.facts(index)
        shares = (f"{100 * n / count:.2f} %" for n in (right, refused, count - right - refused))
        print(f"| {name} | {' | '.join(shares)} | {count:,} |", flush=True)
        if name == "clean":
            speed = count / (time.perf_counter() - begin)
    print("\n| no scene | refused |\n|---|---|")
    for name, impostor in IMPOSTORS.items():
        refused = sum(oracle.read(impostor(index)).scene is None for index in range(max(given.samples // 40, 1)))
        print(f"| {name} | {100 * refused / max(given.samples // 40, 1):.1f} % |", flush=True)
    print(f"\n{speed:.0f} pictures a second made and read.")


if __name__ == "__main__":
    main()
