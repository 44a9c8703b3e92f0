"""The truth of a sample, for a model of a world whose truth is known: the scenes.

A model speaks of the scenes if its words are those of their grammar and its pictures are of their size. Then an oracle
reads the picture, the grammar reads the sentence, and every fact that the sentence states holds in the picture or not.
The model itself is not asked.
"""

from collections.abc import Mapping
from typing import Any

from PIL.Image import Image

from unidiffuser.datasets.scenes import facts, grammar, oracle, render
from unidiffuser.modalities import Modality
from unidiffuser.modalities.text import Text


def speaks_scenes(codecs: Mapping[str, Modality[Any]]) -> bool:
    """Whether a model's modalities are a picture and a sentence of the scenes."""
    text, image = codecs.get("text"), codecs.get("image")
    if not isinstance(text, Text) or image is None or getattr(image, "size", None) != render.WIDTH:
        return False
    words = {word.strip() for word in text.vocabulary} - {""}
    return words == set(grammar.WORDS)


def truth(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture shows and a sentence states, as far as they are there, and which facts agree.

    Returns:
        "picture": the sentence of what the oracle saw, or None; "fault": why it saw nothing; "sentence": whether the
        grammar reads the sentence; "facts": fact -> whether it holds.
    """
    found: dict[str, Any] = {}
    seen = said = None
    if isinstance(values.get("image"), Image):
        reading = oracle.read(values["image"])
        seen = reading.scene
        found |= {"picture": seen and _sentence(seen), "fault": reading.fault}
    if isinstance(values.get("text"), str):
        said = oracle.read_caption(values["text"])
        found["sentence"] = said is not None
    if said and "picture" in found:
        found["facts"] = facts.agreement(said, seen) if seen else {}
    return found


def _sentence(scene: facts.Scene) -> str:
    """A scene in plain words, every fact said."""
    things = [
        f"{grammar._article(thing.size or '')} {thing.size} {thing.colour} {thing.shape}" for thing in scene.objects
    ]
    return f" {scene.relation} ".join(things) + f" on a {scene.background} background"
