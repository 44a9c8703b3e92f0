"""The joint: a dict of streams, and the noise that belongs to each sample.

A stream is one latent tensor (B, ...) with a name. A modality that owns one stream lends it its own name ("image");
one that owns several puts its name before a dot ("image.latent", "image.clip"). All streams of a modality share one
timestep.

Noise is drawn for each sample alone, on the CPU, from a generator keyed by (the sample's seed, a purpose, the
stream's name). Sample k is therefore the same in any batch, in any order and on any number of devices.

This file knows nothing of timesteps, networks or raw data.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

Joint = dict[str, Tensor]
"""Stream name -> tensor (B, ...)."""

Shapes = Mapping[str, tuple[int, ...]]
"""Stream name -> shape of one sample, without the batch."""

MAX_SEED = 2**63 - 1


def modality_of(stream: str) -> str:
    """The modality that owns a stream: "image.latent" -> "image"."""
    return stream.partition(".")[0]


def streams_of(modality: str, streams: Iterable[str]) -> list[str]:
    """The streams of one modality, in the order given."""
    return [stream for stream in streams if modality_of(stream) == modality]


def modalities_of(streams: Iterable[str]) -> list[str]:
    """The modalities that own these streams, each once, in the order of their first stream."""
    return list(dict.fromkeys(modality_of(stream) for stream in streams))


def map_joint(function: Callable[[Tensor], Tensor], joint: Joint) -> Joint:
    """Apply a function to every stream."""
    return {stream: function(x) for stream, x in joint.items()}


def cat_joints(joints: Sequence[Joint]) -> Joint:
    """Put joints with the same streams behind one another along the batch: n x (B, ...) -> (nB, ...)."""
    return {stream: torch.cat([joint[stream] for joint in joints]) for stream in joints[0]}


def batch_size(joint: Joint) -> int:
    """The number of samples B that all streams agree on."""
    sizes = {stream: x.shape[0] for stream, x in joint.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"the streams of a joint must hold the same number of samples, but they hold {sizes}")
    return next(iter(sizes.values()))


def expand(t: Tensor, x: Tensor) -> Tensor:
    """View timesteps (B,) so that they broadcast against a stream (B, ...)."""
    return t.reshape(-1, *([1] * (x.ndim - 1)))


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise a ValueError unless every seed is a whole number from 0 to 2**63 - 1."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"a seed must be a whole number from 0 to {MAX_SEED}, not {seed!r}")


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone, the same on every machine."""
    text = "/".join(str(part) for part in key)
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise_like(shapes: Shapes, seeds: Sequence[int], purpose: str) -> Joint:
    """Standard normal noise for each sample.

    Args:
        shapes: stream -> shape of one sample.
        seeds: one seed a sample, B of them.
        purpose: what the noise is for; different purposes give independent noise for the same seed.

    Returns:
        stream -> (B, *shape), float32, on the CPU.
    """
    return {
        stream: torch.stack([torch.randn(shape, generator=generator(seed, purpose, stream)) for seed in seeds])
        for stream, shape in shapes.items()
    }


def seeds_from(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """The seeds of n samples: seed, seed + 1, ...; those of a list; or from a random start on if seed is None."""
    if isinstance(seed, Sequence):
        check_seeds(seed)
        if len(seed) != n:
            raise ValueError(f"{len(seed)} seeds are given for {n} samples; give one seed, or as many as samples")
        return list(seed)
    first = secrets.randbelow(2**32) if seed is None else seed
    check_seeds([first])
    if first > MAX_SEED - n + 1:
        raise ValueError(f"the seeds of {n} samples from {first} on would pass {MAX_SEED}; begin lower")
    return [first + k for k in range(n)]
