"""Weights to begin from: those of a trained model, put into a network of another grid or with more modalities.

A tensor of the same name and shape is taken over. Learned positions are taken stream by stream, and those of a grid of
another size are interpolated. What belongs to a new modality (embedding, head, timestep) starts fresh; the network is
told not to look at it while it is ignored (`UViTConfig.unseen`), so that the old function is kept there.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unidiffuser.checkpoints import Parts, box, native
from unidiffuser.datasets.codec_files import codec_key
from unidiffuser.joint import modalities_of
from unidiffuser.modalities import Modality
from unidiffuser.modalities.image import Image
from unidiffuser.modalities.stable_diffusion import StableDiffusion
from unidiffuser.networks import Network, build
from unidiffuser.networks.autoencoder import AutoEncoder
from unidiffuser.networks.uvit import UViT
from unidiffuser.training.preset import Preset


def pinned(preset: Preset) -> Preset:
    """The preset with the sha256 of the model that it begins from, if there is one.

    Raises:
        ModelError: there is no such model.
    """
    if not preset.start:
        return preset
    return replace(preset, start_sha256=native.summary(box.find(preset.start))["sha256"])


def known_codecs(preset: Preset) -> dict[str, Modality[Any]]:
    """The codecs that a run need not fit: those of the model of `start`, and those of data that are encoded already.

    Raises:
        ValueError: the data are encoded in another way than that model understands.
    """
    theirs = dict(preset.encoders or {})
    if not preset.start:
        return theirs
    known = codecs_of(preset.start, {name: x for name, x in preset.codecs.items() if name not in theirs})
    for name in sorted(known.keys() & theirs.keys()):
        if codec_key({name: _as_large_as(theirs[name], known[name])}) != codec_key({name: theirs[name]}):
            raise ValueError(
                f"the {name} of these data was encoded with another codec than that of {preset.start}, to which its "
                f"latents would mean nothing; encode the data with `data encode --model {preset.start}`"
            )
    return known | theirs


def codecs_of(model: str, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Modality[Any]]:
    """The codecs of a model, whose latents must go on meaning what they meant; pictures may get another size.

    Args:
        wanted: modality -> the options of its codec; {"size": S} or {"autoencoder": {"size": S}} asks for a size.
    """
    found = dict(native.read(box.find(model)).modalities)
    for name, entry in wanted.items():
        codec, size = found.get(name), (entry.get("autoencoder") or entry).get("size")
        if isinstance(codec, Image) and size and size != codec.size:
            found[name] = resized(codec, size, size)
    return found


def resized(codec: Modality[Any], width: int, height: int) -> Modality[Any]:
    """The same codec for pictures of another size in pixels; an autoencoder is a convolution and takes any.

    Raises:
        ValueError: it can have no such size.
    """
    if not isinstance(codec, Image):
        return codec.resized(width, height)
    if width != height:
        raise ValueError(f"these pictures are square, and {width}x{height} is not; give a side twice: {width}x{width}")
    if codec.latents is None:
        return Image(size=width, channels=codec.channels)
    before = codec.latents.autoencoder
    after = AutoEncoder(replace(before.config, size=width))
    after.load_state_dict(before.state_dict())
    return Image(size=width, channels=codec.channels, latents=replace(codec.latents, autoencoder=after.eval()))


def _as_large_as(other: Modality[Any], codec: Modality[Any]) -> Modality[Any]:
    """A codec of pictures for the size of another one; any other codec as it is."""
    size, wanted = _size(codec), _size(other)
    return resized(codec, *wanted) if size and wanted and size != wanted else codec


def _size(codec: Modality[Any]) -> tuple[int, int] | None:
    """(width, height) of a codec's pictures in pixels."""
    if isinstance(codec, Image):
        return codec.size, codec.size
    return codec.size if isinstance(codec, StableDiffusion) else None


def grown(parts: Parts, description: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the network that begins from a model: the model's own, with the streams of `description`.

    Raises:
        ValueError: the new network lacks a modality of the model.
    """
    old = parts.network.describe()
    had, wanted = modalities_of(old["streams"]), modalities_of(description["streams"])
    if lost := [m for m in had if m not in wanted]:
        raise ValueError(f"the model of --start has {', '.join(had)}, but the data has no {', '.join(lost)}")
    new = [m for m in wanted if m not in had]
    order = [*(s for s in description["streams"] if s.partition(".")[0] in had)]
    order += [s for s in description["streams"] if s not in order]
    streams = {s: tuple(description["streams"][s]) for s in order}
    result = {**old, "streams": streams}
    if old.get("kind") == "uvit":
        result["modalities"] = (*(old["modalities"] or had), *new)
        result["unseen"] = (*old["unseen"], *new)
        result["labels"] = max(old["labels"], description.get("labels", 0))
        if old["rotary"] and not old["reach"]:
            result["reach"] = _uvit(parts.network).reach()
    return result


def started(parts: Parts, description: Mapping[str, Any]) -> Network:
    """A network with the weights of a model wherever they fit.

    Args:
        parts: the model.
        description: of the new network; its streams matter, all else is the model's.

    Raises:
        ValueError: a modality of the model is not there, or a weight has another shape.
    """
    network = build(grown(parts, description))
    old = parts.network.state_dict()
    new = network.state_dict()
    for name, x in new.items():
        if name == "position":
            _positions(_uvit(parts.network), _uvit(network), old[name], x)
        elif name in old and old[name].shape == x.shape:
            x.copy_(old[name])
        elif name in old and name == "label.weight":
            x[: len(old[name])] = old[name]
        elif name in old:
            raise ValueError(
                f"the weights {name} of the model of --start are {tuple(old[name].shape)}, "
                f"but this run needs {tuple(x.shape)}"
            )
    network.load_state_dict(new)
    return network


def _uvit(network: Network) -> UViT:
    assert isinstance(network, UViT)
    return network


@torch.no_grad()
def _positions(before: UViT, after: UViT, old: Tensor, new: Tensor) -> None:
    """Take over the learned positions (1, N, D), timestep by timestep and stream by stream."""
    was, now = before.places(), after.places()
    for key, there in now.items():
        if key not in was:
            continue
        part = old[:, was[key]]
        if part.shape[1] != there.stop - there.start:
            part = _resized(part, before.config.streams[key], after.config.streams[key], before.config.patch)
        new[:, there] = part


def _resized(part: Tensor, shape: tuple[int, ...], wanted: tuple[int, ...], patch: int) -> Tensor:
    """The positions (1, n, D) of a stream of one shape for another; a longer sequence repeats the last one."""
    if len(shape) != len(wanted):
        raise ValueError(f"a stream of shape {shape} cannot become one of shape {wanted}")
    if len(wanted) == 3:
        grid = part.transpose(1, 2).reshape(1, -1, shape[1] // patch, shape[2] // patch)
        size = (wanted[1] // patch, wanted[2] // patch)
        return F.interpolate(grid, size, mode="bilinear").flatten(2).transpose(1, 2)
    index = torch.arange(wanted[0]).clamp(max=part.shape[1] - 1)
    return part[:, index]
