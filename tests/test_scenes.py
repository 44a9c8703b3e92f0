"""The scenes world: the same bytes everywhere, an exact grammar, the stated law, and nothing held out in training."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from unidiffuser.datasets.dice import Dice
from unidiffuser.datasets.scenes import Scenes, facts, frequencies, grammar, render
from unidiffuser.datasets.scenes.facts import Object, Scene, agreement, agrees

RED_CIRCLE, BLUE_SQUARE = Object("large", "red", "circle"), Object("small", "blue", "square")
ALL_SETS = [Scenes(seed=2, split=split, max_objects=most) for split in facts.SPLITS for most in (1, 2, 3)]


@pytest.mark.parametrize(
    ("split", "max_objects", "digest"),
    [
        ("train", 2, "5dc7443cae70b9fed3891928c5f95b9dcc47c5cf6325b315c8a08d035cf61999"),
        ("test", 3, "82244622e39a30c6257f8acd7132241b29a958f1ac28be188144e2b91ce926c3"),
        ("heldout", 2, "3be3e0ae238e2fd42d071f17b6227ef03f7ede4a6a2350d8852dc9f05f1ff9c6"),
    ],
)
def test_version_1_has_these_bytes_on_every_machine(split: str, max_objects: int, digest: str) -> None:
    pixels, sentences = Scenes(seed=5, split=split, max_objects=max_objects).batch(range(24))
    assert hashlib.sha256(pixels.tobytes() + "\n".join(sentences).encode()).hexdigest() == digest


def test_a_sample_depends_on_its_index_alone() -> None:
    scenes = Scenes(seed=1, length=2**40)
    order = [7, 2**39, 0, 7]
    pixels, sentences = scenes.batch(order)
    for index, picture, sentence in zip(order, pixels, sentences, strict=True):
        sample = scenes[index]
        assert np.array_equal(np.asarray(sample["image"]), picture)
        assert sample["text"] == sentence
    assert (pixels[0] != Scenes(seed=2).batch([7])[0][0]).any()
    assert (pixels[0] != Scenes(seed=1, split="test").batch([7])[0][0]).any()


@pytest.mark.parametrize("scenes", ALL_SETS, ids=lambda s: f"{s.split}{s.max_objects}")
def test_a_sentence_states_only_facts_of_its_picture(scenes: Scenes) -> None:
    used: set[str] = set()
    for index in range(1500):
        truth = scenes.facts(index)
        sentence = grammar.write(truth, Dice(index))
        words = sentence.split(" ")
        used.update(words)
        assert agrees(grammar.read(sentence), truth), sentence
        assert len(words) <= grammar.MAX_WORDS
        assert truth.held_out == (scenes.split == "heldout")
        assert truth == truth.normal()
    if scenes.max_objects == 2:
        assert used == set(grammar.WORDS)
    assert agrees(grammar.read(scenes[3]["text"]), scenes.facts(3))


@pytest.mark.parametrize(
    ("sentence", "scene"),
    [
        ("a large red circle above a small blue square", Scene((RED_CIRCLE, BLUE_SQUARE), "above")),
        ("a small blue square under a big red circle", Scene((BLUE_SQUARE, RED_CIRCLE), "below")),
        ("a red circle", Scene((Object(None, "red", "circle"),))),
        ("an orange star on sky", Scene((Object(None, "orange", "star"),), None, "sky")),
        ("a large red circle on a white background", Scene((RED_CIRCLE,), None, "white")),
        (
            "a picture of a small green star to the left of a large yellow square on a grey background",
            Scene((Object("small", "green", "star"), Object("large", "yellow", "square")), "left of", "grey"),
        ),
    ],
)
def test_documented_sentences_are_read(sentence: str, scene: Scene) -> None:
    assert grammar.read(sentence) == scene


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        " a red circle",
        "a red circle ",
        "a  red circle",
        "A red circle",
        "red circle",
        "an red circle",
        "a orange circle",
        "a red small circle",
        "a red",
        "a pink circle",
        "a red circle above",
        "a red circle above a red circle",
        "a red circle a blue square",
        "a red circle to the above a blue square",
        "a red circle on a white",
        "a red circle on the white background",
        "a red circle on white background",
        "a red circle on a white background above a blue square",
        "there is there is a red circle",
        "a red circle above a blue square left of a green star",
        "a red circle over a blue square over a green star",
        "there is a red circle above a blue square above a green star",
        "a red circle above a blue square above a green star above a teal heart",
    ],
)
def test_other_sentences_are_refused(sentence: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        grammar.read(sentence)


def test_facts_occur_as_often_as_the_law_says() -> None:
    scenes, n = Scenes(seed=9), 6000
    truths = [scenes.facts(i) for i in range(n)]
    said = [grammar.read(grammar.write(truth, Dice(i))) for i, truth in enumerate(truths)]
    for drawn, law in ((truths, frequencies.law(said=False)), (said, frequencies.law(said=True))):
        for kind, seen in frequencies.count(drawn).items():
            total = sum(seen.values())
            for value, p in law[kind].items():
                assert abs(seen[value] / total - p) <= 4.5 * (p * (1 - p) / total) ** 0.5, (kind, value)


@pytest.mark.parametrize("max_objects", [2, 3])
def test_objects_stand_apart_and_their_relation_is_clear(max_objects: int) -> None:
    scenes = Scenes(seed=4, max_objects=max_objects)
    for index in range(1500):
        truth = scenes.facts(index)
        placed = render.place(truth, Dice(index))
        for p in placed:
            edges = p.x - p.radius, p.y - p.radius, 256 - p.x - p.radius, 256 - p.y - p.radius
            assert min(edges) >= render.MARGIN
        for a, b in pairwise(placed):
            across, along = (b.x - a.x, b.y - a.y)[:: 1 if truth.relation == "above" else -1]
            assert along - a.radius - b.radius >= render.GAP
            assert along >= 1.3 * abs(across)


def test_paint_shows_each_colour_where_it_was_placed() -> None:
    for colour in facts.COLOURS:
        for shape in facts.SHAPES:
            thing = Object("small", colour, shape)
            picture = render.paint((render.Placed(thing, 60, 100, 25),), "sand").astype(int)
            assert np.abs(picture[25, 15] - render.PAINT[colour]).max() <= 8
            assert np.abs(picture[50:, 40:] - render.GROUND["sand"]).max() <= 8


def test_agreement_is_fact_by_fact() -> None:
    truth = Scene((RED_CIRCLE, BLUE_SQUARE), "above", "white")
    assert agrees(Scene((BLUE_SQUARE, RED_CIRCLE), "below", "white"), truth)
    assert agrees(grammar.read("a red circle over a blue square"), truth)
    assert not agrees(Scene((BLUE_SQUARE, RED_CIRCLE), "above", "white"), truth)
    assert not agrees(truth, None)
    wrong = agreement(grammar.read("a small red circle left of a teal square on mint"), truth)
    assert [fact for fact, holds in wrong.items() if not holds] == ["size 1", "colour 2", "relation", "background"]
    one = agreement(truth, Scene((RED_CIRCLE,), None, "white"))
    assert [fact for fact, holds in one.items() if not holds] == ["count", "shape 2", "colour 2", "size 2", "relation"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"split": "validation"}, "train, test, heldout"),
        ({"max_objects": 4}, "1, 2 or 3"),
        ({"seed": -1}, "seed"),
        ({"version": 2}, "version 1"),
    ],
)
def test_a_set_that_does_not_exist_is_refused(wrong: dict[str, int | str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Scenes(**wrong)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        Scenes(length=5)[5]
