"""What a call gives back, and what it tells on the way.

    Sample     raw values, and the latents they were decoded from
    Glimpse    what samples look like after a step, before they are done
    Score      bits that one modality tells about another

It draws nothing: `pipeline` does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from unidiffuser.codecs import Latent
from unidiffuser.joint import Joint, streams_of
from unidiffuser.sampling import Step

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all); it may raise to cancel."""

OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Sample:
    """One sample: the raw values of all modalities that were sampled or given."""

    seed: int
    """With it, and the same settings, this sample comes again."""
    values: Mapping[str, Any]
    """Modality -> raw value."""
    streams: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Stream -> (...): the latents that were sampled or given."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise KeyError(f"this sample holds {', '.join(self.values)}, not {name!r}")
        return self.values[name]

    def latent(self, name: str) -> Latent:
        """One modality as `sample` takes it without decoding and encoding it again."""
        return Latent(self[name], {stream: self.streams[stream] for stream in streams_of(name, self.streams)})


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """What samples look like after a step, before they are done."""

    rows: range
    """Which samples of the call these are."""
    step: int
    """Steps taken."""
    steps: int
    """Steps in all."""
    timesteps: Mapping[str, float]
    """Modality -> the timestep it has reached."""
    values: Callable[[int], dict[str, list[Any]]]
    """Decodes the clean estimates of the first so many rows: sampled modality -> raw values."""


@dataclass(frozen=True)
class Score:
    """What one modality tells about another, in one pair."""

    bits: float
    """Pointwise mutual information; below zero where the one makes the other less likely."""
    error: float
    """Its standard error."""
    maps: Mapping[str, np.ndarray[Any, Any]]
    """Stream of the explained modality -> bits a place, (H, W) or (L,); all of them sum to `bits`."""


def links_counted(on_step: Progress | None, link: int, links: int) -> Progress | None:
    """Count the steps of one link among those of a chain."""
    if on_step is None:
        return None
    return lambda done, total: on_step(link * total + done, links * total)


def counting(on_step: Progress | None, steps: int, done: int, total: int) -> OnStep | None:
    """Count the steps of batch `done` of `total`."""
    if on_step is None:
        return None
    return lambda step: on_step(steps * done + step.index + 1, steps * total)


def following(*followers: OnStep | None) -> OnStep | None:
    """All of them, one after another."""
    present = [follower for follower in followers if follower]

    def follow(step: Step) -> None:
        for follower in present:
            follower(step)

    return follow if present else None


def watched(watch: Callable[[Glimpse], None], rows: range, decode: Callable[[Joint], dict[str, list[Any]]]) -> OnStep:
    """Show each step of one batch, the samples `rows` of the call."""

    def show(step: Step) -> None:
        watch(
            Glimpse(
                rows=rows,
                step=step.index + 1,
                steps=step.steps,
                timesteps=step.timesteps,
                values=lambda rows: decode({s: x[:rows] for s, x in step.x0.items()}),
            )
        )

    return show
