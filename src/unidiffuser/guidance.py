"""Guidance: a Denoiser made of a Denoiser, pushed away from what it would say if it knew less.

    D_guided = D + s (D - D_weak),   s >= 0, 0 = off                            (Ho & Salimans 2021, their w)

in clean estimates. At equal x_t and t, x0 and eps are affine functions of one another, and the factors 1 + s and -s sum
to 1: so this is the paper's (1 + s) eps - s eps_weak exactly (UniDiffuser, section 4.3), and finite where alpha = 0.
The other common convention g = s + 1 (1 = off) enters by `Guidance.from_g`.

What is known less in the weak branch of a sampled modality m, by `against`:

    marginal        every other modality is noise at t = 1. With one sampled modality this is classifier-free guidance,
                    with several and nothing given it is the paper's joint guidance
    unconditional   every given modality is noise at t = 1; what is sampled beside m stays
    empty           every given modality is its empty value (the encoding of "") at t = 0

A weak branch that cannot differ is not evaluated: of a modality with scale 0, outside the interval, already clean
(t = 0), or with nothing else known at that moment. All branches of a step go through the denoiser in one batch.

This file knows nothing of solvers or networks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unidiffuser.denoiser import Denoiser
from unidiffuser.joint import Joint, batch_size, cat_joints, expand, modality_of
from unidiffuser.timesteps import Roles

MAX_SCALE = 1e4

Against = Literal["marginal", "unconditional", "empty"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly each sampled modality is guided, when, and away from what."""

    scale: float | Mapping[str, float] = 0.0
    """s, for all modalities or modality -> s (0 where absent). 0 = off."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The timesteps of the guided modality between which guidance acts, ends included."""
    against: Against = "marginal"
    """What the weak branch knows; see the head of this file."""

    def __post_init__(self) -> None:
        for value in self.scale.values() if isinstance(self.scale, Mapping) else (self.scale,):
            if not math.isfinite(value) or not 0 <= value <= MAX_SCALE:
                raise ValueError(f"a guidance scale must lie between 0 (off) and {MAX_SCALE:g}, not {value}")
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"a guidance interval must be two timesteps 0 <= low <= high <= 1, not {self.interval}")
        if self.against not in (known := ("marginal", "unconditional", "empty")):
            raise ValueError(f"guidance can be against {', '.join(known)}, not {self.against!r}")

    @classmethod
    def from_g(
        cls,
        g: float | Mapping[str, float],
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        against: Against = "marginal",
    ) -> "Guidance":
        """Guidance in the convention g = s + 1, where 1 = off."""
        for value in g.values() if isinstance(g, Mapping) else (g,):
            if not math.isfinite(value) or not 1 <= value <= MAX_SCALE + 1:
                raise ValueError(f"a guidance g = s + 1 must lie between 1 (off) and {MAX_SCALE + 1:g}, not {value}")
        scale = {m: value - 1 for m, value in g.items()} if isinstance(g, Mapping) else g - 1
        return cls(scale=scale, interval=interval, against=against)

    @property
    def on(self) -> bool:
        """Whether any modality is guided."""
        return any(s > 0 for s in (self.scale.values() if isinstance(self.scale, Mapping) else (self.scale,)))

    def scale_of(self, modality: str) -> float:
        """s of one modality."""
        return float(self.scale.get(modality, 0.0) if isinstance(self.scale, Mapping) else self.scale)


@dataclass(frozen=True)
class _Weak:
    """A weak branch: whom it guides and what it takes away."""

    guides: tuple[str, ...]
    removes: tuple[str, ...]


def guided(
    denoiser: Denoiser,
    roles: Roles,
    guidance: Guidance,
    noise: Callable[[], Joint],
    empty: Joint | None = None,
    *,
    literal: bool = False,
) -> Denoiser:
    """A Denoiser that answers for the sampled modalities with guidance.

    Args:
        denoiser: the Denoiser to guide.
        roles: who is sampled, given and ignored.
        guidance: scales, interval and kind.
        noise: called once a weak branch; standard normal noise for every stream (B, ...), on the device of x_t.
        empty: for against="empty": every stream of every given modality -> its empty value, (1, ...) or (B, ...).
        literal: evaluate a weak branch also while what it removes is noise at t = 1, as the released sampler does in
            the first step of a joint: there the two branches differ by that noise alone.

    Raises:
        ValueError: a scale for a modality that does not exist, or a given modality without its empty value.
    """
    _check_scales(roles, guidance)
    branches = _weak_branches(roles, guidance)
    if not branches:
        return denoiser
    if guidance.against == "empty":
        _check_empty(roles, empty)

    def weaken(branch: _Weak, xt: Joint, t: dict[str, Tensor]) -> tuple[Joint, dict[str, Tensor]]:
        if guidance.against == "empty":
            substitute, level = {s: x.to(xt[s]).expand_as(xt[s]) for s, x in (empty or {}).items()}, 0.0
        else:
            substitute, level = noise(), 1.0
        weak_xt = {s: substitute[s].to(x) if modality_of(s) in branch.removes else x for s, x in xt.items()}
        weak_t = {m: torch.full_like(value, level) if m in branch.removes else value for m, value in t.items()}
        return weak_xt, weak_t

    def denoise(xt: Joint, t: dict[str, Tensor]) -> Joint:
        active = _active(branches, guidance, t, literal)
        if not active:
            return denoiser(xt, t)
        inputs = [(xt, t), *(weaken(branch, xt, t) for branch in active)]
        output = denoiser(cat_joints([x for x, _ in inputs]), cat_joints([value for _, value in inputs]))
        full, *weak = split(output, batch_size(xt))
        for branch, x0_weak in zip(active, weak, strict=True):
            for stream, x0 in full.items():
                if (m := modality_of(stream)) in branch.guides:
                    scale = expand(_scales(guidance, m, t[m]).to(x0), x0)
                    full[stream] = x0 + scale * (x0 - x0_weak[stream])
        return full

    return denoise


def split(joint: Joint, batch: int) -> list[Joint]:
    """Take apart what `cat_joints` put together: (nB, ...) -> n x (B, ...)."""
    parts = {stream: x.split(batch) for stream, x in joint.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


def _weak_branches(roles: Roles, guidance: Guidance) -> list[_Weak]:
    """Every weak branch that these roles can need."""
    wanted = tuple(m for m in roles.sampled if guidance.scale_of(m) > 0)
    if guidance.against != "marginal":
        return [_Weak(wanted, roles.given)] if wanted and roles.given else []
    everyone = (*roles.sampled, *roles.held)
    branches = [_Weak((m,), tuple(other for other in everyone if other != m)) for m in wanted]
    return branches if len(roles.sampled) > 1 or roles.given else []


def _active(branches: list[_Weak], guidance: Guidance, t: dict[str, Tensor], literal: bool) -> list[_Weak]:
    """The branches that can make a difference at these timesteps."""
    low, high = guidance.interval
    levels = torch.stack(list(t.values()))  # (M, B)
    acts = ((levels >= low) & (levels <= high) & (levels > 0)).any(1)
    says = (levels < 1).any(1) | literal
    acting, saying = (dict(zip(t, row, strict=True)) for row in torch.stack([acts, says]).tolist())
    return [b for b in branches if any(acting[m] for m in b.guides) and any(saying[m] for m in b.removes)]


def _scales(guidance: Guidance, modality: str, t: Tensor) -> Tensor:
    """s for every sample, (B,): 0 outside the interval."""
    low, high = guidance.interval
    return ((t >= low) & (t <= high)) * guidance.scale_of(modality)


def _check_scales(roles: Roles, guidance: Guidance) -> None:
    known = (*roles.sampled, *roles.held)
    for m in guidance.scale if isinstance(guidance.scale, Mapping) else ():
        if m not in known:
            raise ValueError(f"guidance names {m!r}, but this model has {', '.join(known)}")


def _check_empty(roles: Roles, empty: Joint | None) -> None:
    owners = {modality_of(stream) for stream in empty or {}}
    for m in roles.given:
        if m not in owners:
            raise ValueError(f"guidance against 'empty' needs the empty value of {m!r}; give it or use 'marginal'")
