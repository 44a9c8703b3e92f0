"""Roles as timesteps, and the timesteps that training draws.

A role says what is wanted of a modality; while sampling it is nothing but a timestep:

    sampled   runs from 1 to 0        we want it
    given     stays at 0              we have it   (or at any t between: "looseness", a true p(x | y_t))
    ignored   stays at 1, pure noise  marginalised out

With M modalities there are 3^M - 2^M distributions, and none of them has a name or a branch in the code.

Training draws one timestep for each modality, independently. Sampling uses the exact ends 0 and 1 for what is given and
ignored, which a continuous draw would never hit, so a share of the draws is put exactly on each end and the rest is
uniform between them.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which modalities are sampled and at which timestep the others are held.

    The timesteps of `held` say the rest: 0 given exactly, 1 ignored, between them given loosely.
    """

    sampled: tuple[str, ...]
    """The modalities that are wanted, at least one."""
    held: Mapping[str, float]
    """Every other modality -> the timestep it stays at."""

    @property
    def given(self) -> tuple[str, ...]:
        """The modalities that say something about the sampled ones."""
        return tuple(m for m, t in self.held.items() if t < 1)

    @property
    def ignored(self) -> tuple[str, ...]:
        """The modalities that are marginalised out."""
        return tuple(m for m, t in self.held.items() if t == 1)


def assign_roles(
    modalities: Collection[str],
    sampled: Iterable[str],
    given: Iterable[str] = (),
    looseness: Mapping[str, float] | None = None,
) -> Roles:
    """Give each modality its role: what is neither sampled nor given is ignored.

    Args:
        modalities: all modalities of the model.
        sampled: the wanted ones.
        given: the known ones.
        looseness: for a given modality, the timestep in [0, 1] it is held at; 0 when absent.

    Raises:
        ValueError: an unknown name, nothing to sample, a modality both sampled and given, a looseness out of range
            or of something that is not given.
    """
    sampled, given, looseness = tuple(sampled), tuple(given), dict(looseness or {})
    known = ", ".join(modalities)
    for name in (*sampled, *given, *looseness):
        if name not in modalities:
            raise ValueError(f"this model has no modality {name!r}; it has {known}")
    if not sampled:
        raise ValueError(f"nothing to sample: name at least one of {known}")
    for name in sampled:
        if sampled.count(name) > 1:
            raise ValueError(f"{name!r} is named twice; name each modality to sample once")
        if name in given:
            raise ValueError(f"{name!r} cannot be both sampled and given; drop one of the two")
    for name, value in looseness.items():
        if name not in given:
            raise ValueError(f"looseness of {name!r} needs {name!r} to be given")
        if not 0 <= value <= 1:
            raise ValueError(f"the looseness of {name!r} must lie between 0 (exact) and 1 (ignored), not {value}")
    held = {m: float(looseness.get(m, 0.0)) if m in given else 1.0 for m in modalities if m not in sampled}
    return Roles(sampled=sampled, held=held)


def draw_timesteps(
    modalities: Iterable[str], batch: int, generator: torch.Generator, *, ends: float = 0.1
) -> dict[str, Tensor]:
    """The training draw: for every modality independently, t ~ U(0, 1), and exactly 0 or 1 with probability `ends`
    each.

    Args:
        modalities: names, in a fixed order (the order fixes the random stream).
        batch: B.
        generator: the only source of randomness.
        ends: the probability of each exact end, from 0 to 0.5.

    Returns:
        modality -> (B,), float32 in [0, 1].
    """
    if not 0 <= ends <= 0.5:
        raise ValueError(f"the share of draws at each exact end must lie between 0 and 0.5, not {ends}")
    timesteps = {}
    for modality in modalities:
        t, u = torch.rand(2, batch, generator=generator)
        t = torch.where(u < ends, 0.0, t)
        timesteps[modality] = torch.where(u >= 1 - ends, 1.0, t)
    return timesteps
