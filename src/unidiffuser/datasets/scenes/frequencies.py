"""How often each fact occurs: counted in scenes, and exactly, by the law they are drawn from.

    kind        values                                     counted once for each
    count       1, 2, ...                                  scene
    size        small, ... (a sentence: or unsaid)         object
    colour      red, ...                                   object
    shape       circle, ...                                object
    relation    above, left of (normal form)               scene of more than one object
    background  white, ... (a sentence: or unsaid)         scene

It knows no pictures, no models and no distance.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from unidiffuser.datasets.scenes import facts, grammar
from unidiffuser.datasets.scenes.facts import Scene

UNSAID = "unsaid"
UNREADABLE = "unreadable"
KINDS = ("count", "size", "colour", "shape", "relation", "background")


def count(scenes: Iterable[Scene | None]) -> dict[str, Counter[str]]:
    """Kind -> value -> how often it occurs; a scene that could not be read (None) is a wrong value of every kind."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for scene in scenes:
        for kind, value in _values(scene):
            counts[kind][value] += 1
    return counts


def _values(scene: Scene | None) -> Iterable[tuple[str, str]]:
    if scene is None:
        return [(kind, UNREADABLE) for kind in KINDS]
    scene = scene.normal()
    values = [("count", str(len(scene.objects))), ("background", scene.background or UNSAID)]
    if scene.relation is not None:
        values.append(("relation", scene.relation))
    for thing in scene.objects:
        values += [("size", thing.size or UNSAID), ("colour", thing.colour), ("shape", thing.shape)]
    return values


def law(said: bool) -> dict[str, dict[str, float]]:
    """Kind -> value -> probability in the train and test splits, of scenes or (said) of the sentences about them.

    For up to two objects, where every size fits. A scene of k objects is kept if its k different pairs of colour and
    shape avoid the held-out ones; given that, every choice of allowed pairs is equally likely.
    """
    pairs = [(colour, shape) for colour in facts.COLOURS for shape in facts.SHAPES]
    allowed = [pair for pair in pairs if pair not in facts.HELD_OUT]
    kept = {str(k): p * math.perm(len(allowed), k) / math.perm(len(pairs), k) for k, p in facts.COUNTS[2]}
    return {
        "count": _share(kept),
        "size": _said(_share(dict.fromkeys(facts.SIZES, 1)), grammar.SAY_SIZE if said else 1.0),
        "colour": _share(Counter(colour for colour, _ in allowed)),
        "shape": _share(Counter(shape for _, shape in allowed)),
        "relation": _share(dict.fromkeys(facts.NORMAL_RELATIONS, 1)),
        "background": _said(_share(dict.fromkeys(facts.BACKGROUNDS, 1)), grammar.SAY_GROUND if said else 1.0),
    }


def _share(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {value: weight / total for value, weight in weights.items()}


def _said(shares: Mapping[str, float], said: float) -> dict[str, float]:
    return {**{value: p * said for value, p in shares.items()}, UNSAID: 1.0 - said}
