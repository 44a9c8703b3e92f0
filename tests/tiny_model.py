"""A model of pictures and sentences that is small enough for tests: random weights, the vocabulary of the scenes."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from unidiffuser import Settings, UniDiffuser
from unidiffuser.codecs import Codecs
from unidiffuser.datasets.scenes import grammar
from unidiffuser.modalities.image import Image
from unidiffuser.modalities.sound import Sound
from unidiffuser.modalities.text import Text
from unidiffuser.modalities.vector import Vector
from unidiffuser.networks.uvit import UViT, UViTConfig

SIZE, LENGTH, WIDTH = 64, 20, 8
LARGE_CIRCLE = "a large red circle above a small blue square"


@cache
def words() -> Text:
    """The codec of all words of the scenes; it takes a second to fit, so it is fitted once."""
    known = list(grammar.WORDS)
    return Text.fit([" ".join(known[i : i + 10]) for i in range(0, len(known), 10)], width=WIDTH, length=LENGTH)


def tiny_model(seed: int = 0, *, depth: int = 2, labels: int = 0) -> UniDiffuser:
    """Deterministic in the seed, but for the state of torch's own generator, which it sets."""
    torch.manual_seed(seed)
    streams = {"image": (3, SIZE, SIZE), "text": (LENGTH, WIDTH)}
    network = UViT(UViTConfig(streams=streams, dim=32, depth=depth, heads=2, patch=32, labels=labels))
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return UniDiffuser(
        network,
        "cosine",
        "v",
        {"image": Image.fit([], size=SIZE), "text": words()},
        settings=Settings(steps=3),
        name="tiny",
    )


def sounding_model() -> UniDiffuser:
    """Sounds, numbers and sentences, with random weights."""
    torch.manual_seed(0)
    tones = [0.5 * np.sin(np.arange(8000) * pitch) for pitch in (0.1, 0.2, 0.4)]
    codecs = {"sound": Sound.fit(tones), "vector": Vector.fit(np.eye(4)), "text": words()}
    network = UViT(UViTConfig(streams=Codecs(codecs).shapes, dim=32, depth=2, heads=2))
    return UniDiffuser(network, "cosine", "v", codecs, settings=Settings(steps=3), name="sounding")


def saved_model(folder: Path, seed: int = 0) -> Path:
    """The tiny model as a folder."""
    tiny_model(seed).save(folder)
    return folder
