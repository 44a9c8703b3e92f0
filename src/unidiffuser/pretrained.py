"""The large parts of the released model, as two well-kept libraries build them: from a few numbers and tensors.

A row of `ARCHITECTURES` is a part: which library makes it, and which settings describe it. The settings are plain
numbers and words of an allow-list, so that no file can name a class or run anything. A part is built without memory,
compared with the names and shapes of its weights, and loaded when it is used (`offload`).

It knows no file and no modality.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unidiffuser.offload import Offloaded, Weights

MAX_NUMBER, MAX_LAYERS, MAX_LEVELS = 1_000_000, 200, 8
LAYERS = ("num_hidden_layers", "n_layer", "layers_per_block")


class MissingPackage(ValueError):
    """An optional package is not installed; the message says how to install it."""


def library(name: str, purpose: str) -> Any:
    """An optional library; MissingPackage if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackage(
            f"{purpose} needs the package {name!r}, which is not installed; run: pip install 'unidiffuser[released]'"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One kind of part."""

    what: str
    """What it is, in words."""
    fields: Mapping[str, type]
    """The settings that describe it, all of which are needed."""
    build: Callable[[dict[str, Any]], nn.Module]
    """Settings -> module."""
    prefix: str = ""
    """What some versions of the library put before the names of its weights."""

    def name(self, key: str) -> str:
        """The name under which we keep the weight that the library calls `key`."""
        return key.removeprefix(self.prefix)


def _clip_text(settings: dict[str, Any]) -> nn.Module:
    transformers = library("transformers", "the text encoder of the released model")
    # The special tokens matter only for the pooled output, which is not used.
    config = transformers.CLIPTextConfig(**settings, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    module: nn.Module = transformers.CLIPTextModel(config)
    return module


def _clip_text_projected(settings: dict[str, Any]) -> nn.Module:
    transformers = library("transformers", "the text encoder of CLIP")
    config = transformers.CLIPTextConfig(**settings, bos_token_id=0, pad_token_id=1)
    module: nn.Module = transformers.CLIPTextModelWithProjection(config)
    return module


def _clip_vision(settings: dict[str, Any]) -> nn.Module:
    transformers = library("transformers", "the picture encoder of the released model")
    module: nn.Module = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**settings))
    return module


def _gpt2(settings: dict[str, Any]) -> nn.Module:
    transformers = library("transformers", "the caption decoder of the released model")
    config = transformers.GPT2Config(**settings, bos_token_id=None, eos_token_id=None)
    module: nn.Module = transformers.GPT2Model(config)
    return module


def _autoencoder_kl(settings: dict[str, Any]) -> nn.Module:
    diffusers = library("diffusers", "the autoencoder of the released model")
    levels = len(settings["block_out_channels"])
    module: nn.Module = diffusers.AutoencoderKL(
        **settings,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )
    return module


_TRANSFORMER = {
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "hidden_act": str,
    "layer_norm_eps": float,
}

ARCHITECTURES: dict[str, Architecture] = {
    "clip_text": Architecture(
        what="CLIP text encoder",
        fields={
            **_TRANSFORMER, "vocab_size": int, "max_position_embeddings": int,
        },
        build=_clip_text,
        prefix="text_model.",
    ),
    "clip_text_projected": Architecture(
        what="CLIP text encoder with its projection",
        fields={
            **_TRANSFORMER, "vocab_size": int, "max_position_embeddings": int, "projection_dim": int,
            "eos_token_id": int,
        },
        build=_clip_text_projected,
    ),
    "clip_vision": Architecture(
        what="CLIP picture encoder",
        fields={**_TRANSFORMER, "image_size": int, "patch_size": int, "projection_dim": int},
        build=_clip_vision,
    ),
    "gpt2": Architecture(
        what="GPT-2 caption decoder",
        fields={
            "vocab_size": int, "n_positions": int, "n_embd": int, "n_layer": int, "n_head": int,
            "activation_function": str, "layer_norm_epsilon": float,
        },
        build=_gpt2,
        prefix="transformer.",
    ),
    "autoencoder_kl": Architecture(
        what="Stable Diffusion autoencoder",
        fields={
            "block_out_channels": list, "layers_per_block": int, "norm_num_groups": int,
            "in_channels": int, "out_channels": int, "latent_channels": int, "scaling_factor": float,
        },
        build=_autoencoder_kl,
    ),
}  # fmt: skip
"""Every kind of part by name."""


def asleep(kind: str, settings: Any, weights: Mapping[str, Tensor]) -> Offloaded[nn.Module]:
    """A part, asleep.

    Args:
        kind: a row of `ARCHITECTURES`.
        settings: exactly the row's fields.
        weights: name as `Architecture.name` gives it -> tensor.

    Raises:
        ValueError: settings that are not the row's, weights that are not those of the settings.
        MissingPackage: the library that makes it is not installed.
    """
    row, weights = ARCHITECTURES[kind], Weights.of(weights)
    check_settings(kind, settings)
    try:
        with torch.device("meta"):
            module = row.build(dict(settings))
    except MissingPackage:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"the settings of the {row.what} do not go together ({error})") from error
    names = {key: row.name(key) for key in module.state_dict()}
    shapes = {row.name(key): tuple(x.shape) for key, x in module.state_dict().items()}
    if shapes != weights.shapes:
        wrong = sorted(n for n in shapes.keys() | weights.keys() if shapes.get(n) != weights.shapes.get(n))
        raise ValueError(f"the weights of the {row.what} are not those of its settings: {', '.join(wrong[:4])}")
    return Offloaded(module, weights.named(names))


def check_settings(kind: str, settings: Any) -> None:
    """ValueError unless these are exactly the settings of a kind of part, each of its type and of sane size."""
    row = ARCHITECTURES[kind]
    if not isinstance(settings, Mapping) or set(settings) != set(row.fields):
        raise ValueError(f"the {row.what} needs the settings {', '.join(row.fields)}, nothing else")
    for name, value in settings.items():
        if not isinstance(value, row.fields[name]) or isinstance(value, bool):
            raise ValueError(f"the {name} of the {row.what} must be of type {row.fields[name].__name__}, not {value!r}")
        numbers = value if isinstance(value, list) else [value]
        limit = MAX_LAYERS if name in LAYERS else MAX_NUMBER
        if any(isinstance(x, int | float) and not 0 <= x <= limit for x in numbers) or len(numbers) > MAX_LEVELS:
            raise ValueError(f"the {name} of the {row.what} cannot be {value!r}")
