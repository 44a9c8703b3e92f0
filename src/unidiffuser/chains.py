"""Chains: samples fed back as givens, written with `sampling.sample` and `sampling.invert` alone.

A chain is a list of links, and a link is one draw: sample these modalities given those of the last state.

    relay    image -> text -> image      a variation of a picture through words; through anything, of any length
    gibbs    each block given all others, round after round (blocked Gibbs sampling, Geman & Geman 1984). If the model's
             conditionals are those of one joint law, that law is stationary, and the chain tends to it from any start

Interpolation inverts two joints to their noise, goes along the sphere from one noise to the other, and samples back:

    slerp(a, b; w) = (sin((1 - w) o) a + sin(w o) b) / sin o,   o = the angle between a and b         (Shoemake 1985)

Every link has seeds of its own, derived from the chain's, so chain k is the same in any batch. This file knows no raw
data.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unidiffuser.denoiser import Denoiser
from unidiffuser.joint import Joint, Shapes, check_seeds, expand, generator, modalities_of, modality_of
from unidiffuser.process import Process
from unidiffuser.sampling import invert, sample
from unidiffuser.timesteps import assign_roles

Draw = Callable[[tuple[str, ...], Joint, list[int]], Joint]
"""(modalities to sample, given streams, one seed a sample) -> joint that holds the sampled streams."""


@dataclass(frozen=True)
class Link:
    """One draw of a chain."""

    sampled: tuple[str, ...]
    """The modalities that are drawn anew."""
    given: tuple[str, ...]
    """The modalities of the last state that they are drawn from; what is in neither is ignored."""


def relay(names: Sequence[str]) -> list[Link]:
    """Each modality sampled from the one before it: ("image", "text", "image") varies a picture through words.

    Raises:
        ValueError: fewer than two names, or the same twice in a row.
    """
    if len(names) < 2 or any(a == b for a, b in pairwise(names)):
        raise ValueError(f"a chain goes from one modality to another, such as text image text, not {' '.join(names)!r}")
    return [Link((b,), (a,)) for a, b in pairwise(names)]


def gibbs(blocks: Sequence[str | Sequence[str]], rounds: int) -> list[Link]:
    """Blocked Gibbs sampling: in every round, each block of modalities in turn from all the other blocks.

    Raises:
        ValueError: fewer than two blocks, a modality in two of them, or no rounds.
    """
    parts = [(block,) if isinstance(block, str) else tuple(block) for block in blocks]
    names = [name for part in parts for name in part]
    if len(parts) < 2 or not all(parts) or len(set(names)) < len(names):
        raise ValueError(f"Gibbs sampling needs two or more blocks of different modalities, not {parts}")
    if rounds < 1:
        raise ValueError(f"Gibbs sampling needs at least one round, not {rounds}")
    return [Link(part, tuple(name for name in names if name not in part)) for part in parts] * rounds


def sampler(
    denoiser: Denoiser,
    process: Process,
    shapes: Shapes,
    *,
    looseness: Mapping[str, float] | None = None,
    **settings: Any,
) -> Draw:
    """A `Draw` by `sampling.sample`; a modality in `looseness` is held at that timestep wherever it is given."""

    def draw(sampled: tuple[str, ...], given: Joint, seeds: list[int]) -> Joint:
        known = modalities_of(given)
        loose = {m: t for m, t in (looseness or {}).items() if m in known}
        roles = assign_roles(modalities_of(shapes), sampled, known, loose)
        given = {stream: x for stream, x in given.items() if modality_of(stream) in roles.given}
        return sample(denoiser, process, shapes, roles, seeds, given=given, **settings)

    return draw


def follow(draw: Draw, start: Joint, links: Iterable[Link], seeds: Sequence[int]) -> Iterator[Joint]:
    """Walk a chain, yielding the state after each link; stop iterating to stop the chain.

    Args:
        draw: how a link is drawn.
        start: the first state, stream -> (B, ...); it need not hold every modality.
        links: what to draw, in order; it may be endless.
        seeds: one a chain, B of them.

    Yields:
        The state: all modalities met so far, each as it was drawn last.

    Raises:
        ValueError: a link is given a modality that the chain has not met yet.
    """
    check_seeds(seeds)
    state = dict(start)
    for i, link in enumerate(links):
        missing = [m for m in link.given if m not in modalities_of(state)]
        if missing:
            raise ValueError(f"link {i + 1} of the chain needs {', '.join(missing)}; start with it or sample it before")
        given = {stream: x for stream, x in state.items() if modality_of(stream) in link.given}
        drawn = draw(link.sampled, given, link_seeds(seeds, i))
        state |= {stream: x for stream, x in drawn.items() if modality_of(stream) in link.sampled}
        yield dict(state)


def link_seeds(seeds: Sequence[int], link: int) -> list[int]:
    """The seeds of one link: a function of the chain's seed and the link's number alone."""
    return [generator(seed, "link", link).initial_seed() for seed in seeds]


def interpolate(
    denoiser: Denoiser,
    process: Process,
    shapes: Shapes,
    first: Joint,
    second: Joint,
    of: Sequence[str],
    fractions: Sequence[float],
    seeds: Sequence[int],
    *,
    solver: str = "heun",
    steps: int = 50,
    **settings: Any,
) -> Iterator[Joint]:
    """The way between two joints: two pictures, two sentences, two pairs.

    The modalities `of` are inverted at both ends, given what else the ends hold (pictures under their captions, say);
    what the ends do not hold is ignored. Noises and givens go along the sphere, and each point is sampled back.

    Args:
        first, second: the ends, both with the same clean streams (B, ...).
        of: the modalities that are inverted and sampled back.
        fractions: where to look, 0 the first end to 1 the second.
        seeds: one a row; they matter only for what is ignored.
        solver: a deterministic row of `solvers.SOLVERS`, there and back.
        steps: there, and as many back; at the ends the inputs come back up to the solver's error.
        settings: what `sampling.sample` and `sampling.invert` both take, such as grid and guidance.

    Yields:
        For each fraction the sampled and given streams.

    Raises:
        ValueError: ends that do not match, a fraction out of range, and what sampling refuses.
    """
    if first.keys() != second.keys():
        raise ValueError(f"both ends must hold the same streams, not {', '.join(first)} and {', '.join(second)}")
    for w in fractions:
        if not 0 <= w <= 1:
            raise ValueError(f"a fraction of the way must lie between 0 and 1, not {w}")
    missing = [m for m in of if m not in modalities_of(first)]
    if missing:
        raise ValueError(f"the ends must hold what is interpolated, and {', '.join(missing)} is missing")
    roles = assign_roles(modalities_of(shapes), of, [m for m in modalities_of(first) if m not in of])
    options = {"solver": solver, "steps": steps, **settings}
    noises, givens = [], []
    for end in (first, second):
        x0 = {stream: x for stream, x in end.items() if modality_of(stream) in of}
        given = {stream: x for stream, x in end.items() if stream not in x0}
        noises.append(invert(denoiser, process, shapes, roles, x0, seeds, given=given, **options))
        givens.append(given)
    for w in fractions:
        start, given = ({s: slerp(a[s], b[s], w) for s in a} for a, b in (noises, givens))
        yield sample(denoiser, process, shapes, roles, seeds, given=given, start=start, **options)


def slerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """The point at the fraction w of the way from a to b along the sphere, row by row, (B, ...).

    Where a and b point the same way, or opposite ways, the way is straight.
    """
    cosine = torch.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1).clamp(-1, 1)
    angle = torch.arccos(cosine)
    straight = torch.sin(angle) < 1e-6
    sine = torch.where(straight, 1.0, torch.sin(angle))
    of_a = torch.where(straight, 1 - w, torch.sin((1 - w) * angle) / sine)
    of_b = torch.where(straight, w, torch.sin(w * angle) / sine)
    return expand(of_a.to(a), a) * a + expand(of_b.to(b), b) * b
