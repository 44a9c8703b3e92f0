"""The released UniDiffuser as `Parts`, whatever format it came in: how its pieces become ours.

A format reads its files and names its pieces (`Pieces`); this file builds the network, the two codecs and the settings
of the original sampler: 50 steps of the single-step third-order solver on a uniform grid down to t = 1/1000, guidance
7, ignored modalities drawn anew at each evaluation, data type 1 where there is one.

It knows no file.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidiffuser.captions import Captioning
from unidiffuser.checkpoints import ModelError, Parts, Settings
from unidiffuser.checkpoints.suspect import listed
from unidiffuser.guidance import Guidance
from unidiffuser.modalities import Modality
from unidiffuser.modalities.clip_text import ClipText
from unidiffuser.modalities.stable_diffusion import StableDiffusion
from unidiffuser.networks.uvit import UViT, UViTConfig
from unidiffuser.offload import Weights
from unidiffuser.pretrained import ARCHITECTURES, MissingPackage

SETTINGS = Settings(steps=50, solver="dpm_single_3", end=0.001, guidance=Guidance(scale=7.0), fresh_noise=True)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One pretrained part: its settings (`pretrained.ARCHITECTURES`) and weights."""

    settings: Mapping[str, Any]
    weights: Weights


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A tokenizer: its own JSON, and the numbers of two of its tokens."""

    saved: Any
    pad: int = 0
    end: int = 0


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A released model in pieces; those that may be missing are None."""

    name: str
    network: UViTConfig
    weights: Weights
    """The network's, under our names."""
    autoencoder: Piece
    vision: Piece | None
    encoder: Piece | None
    decoder: Piece | None
    prefix: Weights
    """The linear layers encode_prefix and decode_prefix."""
    clip_tokenizer: Reader | None
    gpt2_tokenizer: Reader | None

    def missing(self) -> list[str]:
        """What this model cannot do, in words."""
        without = {
            "no sentence can be given: the CLIP text encoder or its tokenizer is missing": (
                self.encoder,
                self.clip_tokenizer,
            ),
            "no caption can be written: the caption decoder or its tokenizer is missing": (
                self.decoder,
                self.gpt2_tokenizer,
            ),
            "no picture can be given: the CLIP picture encoder is missing": (self.vision,),
        }
        return [what for what, pieces in without.items() if None in pieces]


def parts_of(pieces: Pieces) -> Parts:
    """The model of these pieces, its network asleep.

    Raises:
        ModelError: pieces that do not belong together.
    """
    with torch.device("meta"):
        network = UViT(pieces.network)
    check_names("the network", {n: tuple(x.shape) for n, x in network.state_dict().items()}, pieces.weights)
    channels, height, width = pieces.network.streams["image.latent"]
    length, dim = pieces.network.streams["text"]
    factor = 2 ** (len(pieces.autoencoder.settings["block_out_channels"]) - 1)
    if pieces.autoencoder.settings["latent_channels"] != channels:
        raise ModelError("the autoencoder and the network do not belong together: their latents differ in channels")
    image = {
        "width": width * factor,
        "height": height * factor,
        "multiple": factor * pieces.network.patch,
        "embedding": pieces.network.streams["image.clip"][1],
        "autoencoder": dict(pieces.autoencoder.settings),
        "vision": pieces.vision and dict(pieces.vision.settings),
    }
    text = {
        "length": length,
        "width": dim,
        "pad": pieces.clip_tokenizer.pad if pieces.clip_tokenizer else 0,
        "end": pieces.gpt2_tokenizer.end if pieces.gpt2_tokenizer else 0,
        "captioning": dataclasses.asdict(Captioning()),
        "encoder": pieces.encoder and dict(pieces.encoder.settings),
        "decoder": pieces.decoder and dict(pieces.decoder.settings),
        "clip_tokenizer": pieces.clip_tokenizer and pieces.clip_tokenizer.saved,
        "gpt2_tokenizer": pieces.gpt2_tokenizer and pieces.gpt2_tokenizer.saved,
    }
    image_state = _state({"autoencoder": pieces.autoencoder, "vision": pieces.vision})
    text_state = _state({"encoder": pieces.encoder, "decoder": pieces.decoder}) | dict(pieces.prefix)
    try:
        modalities: dict[str, Modality[Any]] = {
            "image": StableDiffusion.restore(image, image_state),
            "text": ClipText.restore(text, text_state),
        }
    except MissingPackage:
        raise
    except ValueError as error:
        raise ModelError(f"the parts of this model do not fit: {error}") from error
    return Parts(
        name=pieces.name,
        network=network,
        weights=pieces.weights,
        process="scaled_linear",
        prediction="eps",
        modalities=modalities,
        settings=dataclasses.replace(SETTINGS, label=1 if pieces.network.labels > 1 else 0),
        card=CARD.format(name=pieces.name),
    )


def _state(pieces: Mapping[str, Piece | None]) -> dict[str, Tensor]:
    """The weights of some pieces under one roof."""
    return {f"{part}.{name}": piece.weights[name] for part, piece in pieces.items() if piece for name in piece.weights}


def check_names(what: str, wanted: Mapping[str, tuple[int, ...]], weights: Weights) -> None:
    """ModelError unless weights have exactly the wanted names and shapes."""
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    shapes = [f"{n} is {weights.shapes[n]}, not {s}" for n, s in wanted.items() if weights.shapes.get(n, s) != s]
    faults = [("missing", missing), ("unknown", extra), ("of another shape", shapes)]
    if report := [f"{kind}: {listed(names)}" for kind, names in faults if names]:
        raise ModelError(f"the weights of {what} are not those of a UniDiffuser, {'; '.join(report)}")


def piece(kind: str, settings: Mapping[str, Any], weights: Weights) -> Piece:
    """A part from a library's settings and weights: only what describes it, under our names."""
    row = ARCHITECTURES[kind]
    chosen = {name: settings[name] for name in row.fields}
    chosen = {name: float(value) if row.fields[name] is float else value for name, value in chosen.items()}
    return Piece(settings=chosen, weights=weights.named({row.name(name): name for name in weights}))


CARD = """---
library_name: unidiffuser
license: agpl-3.0
base_model: thu-ml/unidiffuser-v1
---

# {name}

Converted from the released UniDiffuser (Bao et al. 2023, arXiv 2303.06555). The weights are the authors' and keep their
licence, AGPL-3.0.
"""
