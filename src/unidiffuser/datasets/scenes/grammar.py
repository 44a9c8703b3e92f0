"""Facts to a sentence and back: the language of the scenes.

    sentence = [prefix] object {relation object} [ground]
    object   = ("a" | "an") [size] colour shape
    relation = "above" | "over" | "below" | "under" | ["to the"] "left of" | ["to the"] "right of"
    ground   = "on a" background "background" | "on" background
    prefix   = "there is" | "a picture of"

`write` draws one of the sentences that state a scene, by the probabilities below; `read` is its exact inverse: it
accepts nothing else, and `read(write(scene))` states only facts of `scene`. With three objects the relation is said
twice, in its short form, and there is no prefix, so that no sentence is longer than `MAX_WORDS`.

It knows nothing of pictures or of how scenes are drawn.
"""

from collections.abc import Mapping

from unidiffuser.datasets.dice import Dice
from unidiffuser.datasets.scenes.facts import BACKGROUNDS, COLOURS, INVERSE, SHAPES, Object, Scene

MAX_WORDS = 20

# The distribution of sentences given the facts; every choice is independent of the others.
SAY_SIZE = 0.85  # for each object
SAY_GROUND = 0.5
SWAP = 0.5  # "B below A" instead of "A above B"
PREFIXES = (("", 0.84), ("there is", 0.08), ("a picture of", 0.08))
GROUNDS = (("on a {} background", 0.8), ("on {}", 0.2))
SIZE_WORDS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "small": (("small", 0.7), ("little", 0.3)),
    "medium": (("medium", 1.0),),
    "large": (("large", 0.7), ("big", 0.3)),
}
RELATION_WORDS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "above": (("above", 0.7), ("over", 0.3)),
    "below": (("below", 0.7), ("under", 0.3)),
    "left of": (("left of", 0.7), ("to the left of", 0.3)),
    "right of": (("right of", 0.7), ("to the right of", 0.3)),
}

_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word, _ in words}
_RELATION_OF = {tuple(word.split()): relation for relation, words in RELATION_WORDS.items() for word, _ in words}
_FRAME = "a an there is picture of on background to the left right above over below under"

WORDS = tuple(sorted({*_FRAME.split(), *_SIZE_OF, *COLOURS, *SHAPES, *BACKGROUNDS}))


def write(scene: Scene, dice: Dice) -> str:
    """A sentence that states `scene`, drawn from the distribution above; what the scene does not say stays unsaid."""
    objects, relation = scene.objects, scene.relation
    if relation is not None and dice.chance(SWAP):
        objects, relation = objects[::-1], INVERSE[relation]
    many = len(objects) > 2
    prefix = "" if many else dice.weigh(PREFIXES)
    link = _link(relation, many, dice)
    sentence = f" {link} ".join(_phrase(thing, dice) for thing in objects)
    if scene.background is not None and dice.chance(SAY_GROUND):
        sentence += " " + dice.weigh(GROUNDS).format(scene.background)
    return f"{prefix} {sentence}" if prefix else sentence


def _link(relation: str | None, many: bool, dice: Dice) -> str:
    if relation is None:
        return ""
    return relation if many else dice.weigh(RELATION_WORDS[relation])


def _phrase(thing: Object, dice: Dice) -> str:
    words = [thing.colour, thing.shape]
    if thing.size is not None and dice.chance(SAY_SIZE):
        words.insert(0, dice.weigh(SIZE_WORDS[thing.size]))
    return " ".join([_article(words[0]), *words])


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def read(sentence: str) -> Scene:
    """The facts that a sentence states, None for those it leaves out, as said (not in normal form).

    Raises ValueError, saying at which word, if the grammar does not accept the sentence.
    """
    words = sentence.split(" ")
    at = 0
    for prefix, _ in PREFIXES:
        start = prefix.split()
        if start and words[: len(start)] == start:
            at = len(start)
    prefixed = at > 0
    thing, at = _read_object(words, at)
    objects, relations = [thing], []
    while at < len(words) and words[at] != "on":
        relation, at = _read_relation(words, at)
        thing, at = _read_object(words, at)
        relations.append(relation)
        objects.append(thing)
    if len(objects) > 3 or (len(objects) == 3 and (prefixed or "to" in words or relations[0] != relations[1])):
        raise ValueError("three objects need one short relation said twice and no prefix, and there are never more")
    if len(objects) == 3 and not {"over", "under"}.isdisjoint(words):
        raise ValueError('with three objects say "above" and "below", not "over" and "under"')
    return Scene(tuple(objects), relations[0] if relations else None, _read_ground(words[at:]))


def _read_object(words: list[str], at: int) -> tuple[Object, int]:
    article, *rest = [*words[at : at + 4], "", "", ""][:4]
    size = _SIZE_OF.get(rest[0])
    colour, shape = rest[1:3] if size else rest[:2]
    if colour not in COLOURS or shape not in SHAPES or article != _article(rest[0]):
        raise ValueError(f'expected "a" or "an", a size or none, a colour and a shape {_where(words, at)}')
    return Object(size, colour, shape), at + (4 if size else 3)


def _read_relation(words: list[str], at: int) -> tuple[str, int]:
    for length in (1, 2, 4):
        relation = _RELATION_OF.get(tuple(words[at : at + length]))
        if relation is not None:
            return relation, at + length
    raise ValueError(f"expected a relation, a background or the end {_where(words, at)}")


def _read_ground(words: list[str]) -> str | None:
    if not words:
        return None
    if words[:2] == ["on", "a"] and words[3:] == ["background"] and words[2] in BACKGROUNDS:
        return words[2]
    if len(words) == 2 and words[1] in BACKGROUNDS:
        return words[1]
    raise ValueError(f'expected "on a ... background" with one of {", ".join(BACKGROUNDS)} {_where(words, 0)}')


def _where(words: list[str], at: int) -> str:
    return f"at {' '.join(words[at : at + 4])!r}" if at < len(words) else "at the end of the sentence"
