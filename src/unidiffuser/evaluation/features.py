"""Named extractors: the values of a modality -> vectors (N, D), in which samples and truth are compared.

    inception    pictures through Inception v3, whose weights you give: the distances are then FID and KID as published
    random       pictures through three layers of random convolutions, the same for ever: nothing to download, distances
                 that can be compared among all models of one size of picture, and with no published number
    autoencoder  the latents of the model's own picture codec: only models with the same codec can be compared

Values that are no pictures are their own latents whichever is chosen. A report names the extractor beside every number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidiffuser.evaluation.inception import load
from unidiffuser.joint import generator
from unidiffuser.modalities import Modality
from unidiffuser.modalities.image import pixels_of

Array = np.ndarray[Any, Any]

CHANNELS = (32, 64, 128)
CELLS = 2
LARGEST = 64
"""Larger pictures are shrunk to this side before the random convolutions."""
BATCH = 32
FINEST = 4
"""Grids of latents are averaged to this side."""


@dataclass(frozen=True)
class Features:
    """One extractor for pictures, and latents for the rest."""

    name: str
    """How a report calls it."""
    pictures: Callable[[Modality[Any], list[Any]], Tensor]
    """(codec, pictures) -> (N, D)."""

    def named(self, codec: Modality[Any]) -> str:
        """The extractor of a modality's values."""
        return self.name if codec.media_type == "image" else "latents"

    @torch.inference_mode()
    def of(self, codec: Modality[Any], values: list[Any]) -> Array:
        """Values as vectors (N, D), float64."""
        chosen = self.pictures if codec.media_type == "image" else latents
        parts = [chosen(codec, values[start : start + BATCH]) for start in range(0, len(values), BATCH)]
        return torch.cat(parts).double().numpy()


def latents(codec: Modality[Any], values: list[Any]) -> Tensor:
    """Values as their streams behind one another, grids averaged to at most `FINEST` x `FINEST` cells."""
    streams = codec.encode([codec.check(value) for value in values])
    small = [F.adaptive_avg_pool2d(x, min(FINEST, *x.shape[2:])) if x.ndim == 4 else x for x in streams.values()]
    return torch.cat([x.flatten(1) for x in small], 1)


def random_convolutions() -> Callable[[Modality[Any], list[Any]], Tensor]:
    """Pictures -> means over a 2 x 2 cut of their colours and of rectified random filters at three scales (N, 908)."""
    weights, channels = [], 3
    for layer, count in enumerate(CHANNELS):
        noise = torch.randn(count, channels, 3, 3, generator=generator("evaluate", "features", layer))
        weights.append((noise - noise.mean((1, 2, 3), keepdim=True)) * math.sqrt(2 / (9 * channels)))
        channels = count

    def extract(codec: Modality[Any], values: list[Any]) -> Tensor:
        x = pixels(values)
        if max(x.shape[2:]) > LARGEST:
            x = F.interpolate(x, (LARGEST, LARGEST), mode="bilinear", antialias=True, align_corners=False)
        found = [F.adaptive_avg_pool2d(x, CELLS).flatten(1)]
        for k, weight in enumerate(weights):
            x = F.relu(F.conv2d(x, weight, padding=1))
            found.append(F.adaptive_avg_pool2d(x, min(CELLS, *x.shape[2:])).flatten(1))
            if k < len(weights) - 1 and min(x.shape[2:]) > 1:
                x = F.avg_pool2d(x, 2)
        return torch.cat(found, 1)

    return extract


def inception(weights: Path) -> Callable[[Modality[Any], list[Any]], Tensor]:
    """Pictures -> (N, 2048), the last averages of Inception v3."""
    network: nn.Module = load(weights)
    return lambda codec, values: network(pixels(values))


def pixels(values: list[Any]) -> Tensor:
    """Pictures of one size -> (N, 3, H, W) in [-1, 1]; grey ones three times."""
    x = torch.stack([pixels_of(picture) for picture in values])
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


EXTRACTORS = ("random", "autoencoder", "inception")


def extractor(name: str | None, weights: str | Path | None) -> Features:
    """The extractor of a name; without one Inception where its weights are given, and else `random`.

    Raises:
        ValueError: an unknown name, or Inception without weights, or weights without Inception.
        ModelError: the weights are damaged or others.
    """
    name = name or ("inception" if weights else "random")
    if name not in EXTRACTORS:
        raise ValueError(f"there are no features {name!r}; there are {', '.join(EXTRACTORS)}")
    if (name == "inception") != bool(weights):
        wrong = "needs the file of its weights" if name == "inception" else "takes no weights"
        raise ValueError(f"the extractor {name!r} {wrong}; see --inception FILE")
    if weights:
        return Features(f"inception ({Path(weights).name})", inception(Path(weights)))
    return Features(name, random_convolutions() if name == "random" else latents)
