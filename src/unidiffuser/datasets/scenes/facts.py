"""What can be true of a scene: its vocabulary, its facts, their normal form, and the law they are drawn from.

A scene is one to three objects on a ground. Each object has a size, a colour and a shape; with more than one,
each stands in the same relation to the next ("A above B above C"). `None` as a size or a background means "not said":
a caption may leave them out, a picture never does.

The law (`draw`): the number of objects by `COUNTS`; sizes, colours, shapes, the axis (above or left of) and the
background uniform; two objects of a scene differ in (colour, shape); three objects must fit (`fits`). In the splits
"train" and "test" a scene with a held-out pair is drawn again, in "heldout" a scene without one.

It knows nothing of pixels, places or sentences.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from unidiffuser.datasets.dice import Dice

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "teal", "black")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("white", "grey", "sand", "sky", "mint")
INVERSE: Mapping[str, str] = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
RELATIONS = tuple(INVERSE)
NORMAL_RELATIONS = ("above", "left of")  # of each relation and its inverse, the one that reads in picture order
SPLITS = ("train", "test", "heldout")

# (colour, shape) pairs that never occur in "train" and "test": each shape once, six of the eight colours.
HELD_OUT = (
    ("orange", "circle"),
    ("black", "square"),
    ("blue", "triangle"),
    ("purple", "star"),
    ("yellow", "cross"),
    ("green", "heart"),
)

# Probability of 1, 2, ... objects, by the largest number allowed.
COUNTS: Mapping[int, tuple[tuple[int, float], ...]] = {
    1: ((1, 1.0),),
    2: ((1, 0.3), (2, 0.7)),
    3: ((1, 0.2), (2, 0.5), (3, 0.3)),
}


@dataclass(frozen=True, slots=True)
class Object:
    """One thing in a scene; `size` is None where it is not said."""

    size: str | None
    colour: str
    shape: str

    def __post_init__(self) -> None:
        _known("size", self.size, (None, *SIZES))
        _known("colour", self.colour, COLOURS)
        _known("shape", self.shape, SHAPES)


@dataclass(frozen=True, slots=True)
class Scene:
    """The facts of a scene; `relation` holds from each object to the next, `background` is None where it is not said.

    Raises ValueError for a word that is not in the vocabulary, for no or more than three objects, for a relation
    that is missing or too many, and for two objects of equal colour and shape.
    """

    objects: tuple[Object, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        _known("background", self.background, (None, *BACKGROUNDS))
        if not 1 <= len(self.objects) <= 3:
            raise ValueError(f"a scene has 1 to 3 objects, not {len(self.objects)}")
        _known("relation", self.relation, RELATIONS if len(self.objects) > 1 else (None,))
        if len({(o.colour, o.shape) for o in self.objects}) < len(self.objects):
            raise ValueError("two objects of a scene must differ in colour or shape")

    def normal(self) -> "Scene":
        """The same facts with "above" or "left of": "A below B" becomes "B above A"."""
        if self.relation is None or self.relation in NORMAL_RELATIONS:
            return self
        return Scene(self.objects[::-1], INVERSE[self.relation], self.background)

    @property
    def held_out(self) -> bool:
        """Whether any object is a (colour, shape) pair that training never shows."""
        return any((o.colour, o.shape) in HELD_OUT for o in self.objects)


def agreement(said: Scene, seen: Scene) -> dict[str, bool]:
    """Which of the facts that `said` states hold in `seen`: {"count": ..., "colour 1": ..., "relation": ..., ...}.

    Facts are compared in normal form and object by object, so a swapped pair fails by its objects. A fact that `said`
    leaves out is not in the answer; one that `seen` lacks is False.
    """
    said, seen = said.normal(), seen.normal()
    facts = {"count": len(said.objects) == len(seen.objects)}
    others: tuple[Object | None, ...] = (*seen.objects, None, None, None)
    for k, (a, b) in enumerate(zip(said.objects, others, strict=False), 1):
        facts[f"shape {k}"] = b is not None and a.shape == b.shape
        facts[f"colour {k}"] = b is not None and a.colour == b.colour
        if a.size is not None:
            facts[f"size {k}"] = b is not None and a.size == b.size
    if said.relation is not None:
        facts["relation"] = said.relation == seen.relation
    if said.background is not None:
        facts["background"] = said.background == seen.background
    return facts


def agrees(said: Scene, seen: Scene | None) -> bool:
    """Whether every fact of `said` holds in `seen`; a scene that could not be read (None) agrees with nothing."""
    return seen is not None and all(agreement(said, seen).values())


def fits(sizes: tuple[str, ...]) -> bool:
    """Whether objects of these sizes fit in a row: any two do; of three, one may be large or two medium, not both."""
    return len(sizes) < 3 or sum({"small": 0, "medium": 1, "large": 2}[size] for size in sizes) <= 2


def draw(dice: Dice, split: str = "train", max_objects: int = 2) -> Scene:
    """A scene in normal form from the law above; every fact is said."""
    while True:
        scene = _draw_any(dice, max_objects)
        if scene.held_out == (split == "heldout"):
            return scene


def _draw_any(dice: Dice, max_objects: int) -> Scene:
    n = dice.weigh(COUNTS[max_objects])
    sizes = tuple(dice.pick(SIZES) for _ in range(n))
    while not fits(sizes):
        sizes = tuple(dice.pick(SIZES) for _ in range(n))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < n:
        pair = (dice.pick(COLOURS), dice.pick(SHAPES))
        if pair not in pairs:
            pairs.append(pair)
    objects = tuple(Object(size, *pair) for size, pair in zip(sizes, pairs, strict=True))
    return Scene(objects, dice.pick(NORMAL_RELATIONS) if n > 1 else None, dice.pick(BACKGROUNDS))


def _known(what: str, word: str | None, words: tuple[str | None, ...]) -> None:
    if word not in words:
        raise ValueError(f"{what} {word!r} is unknown; known are {', '.join(str(w) for w in words)}")
