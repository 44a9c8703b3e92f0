"""A bound on how likely data are to a denoiser: the bits it takes to describe x, blurred by noise of a fixed size.

With y = alpha x + sigma eps and snr = alpha^2 / sigma^2 the entropy of x blurred by noise of variance 1 / snr is

    h(x + eps / snr^(1/2)) = 1/2 int_0^snr mmse(s) ds + D/2 log(2 pi e / snr)             (Guo, Shamai & Verdu 2005)

and no denoiser has a smaller error than mmse. So on average over the data

    -log p(x blurred)  <=  int_-inf^high |x - D(x_t)|^2 e^(2 lambda) d lambda + D/2 log(2 pi e) - D high,

lambda(t) = log(alpha / sigma), high the lambda beyond which nothing is looked at: exact for the exact denoiser. With
others given (t = 0) it bounds -log p(x | others). It is a density of latents, so it may be below zero, and only numbers
with the same codec and the same `high` can be compared. The integral is an importance sample, as in `agreement`.

This file knows no raw data.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unidiffuser.agreement import Quadrature
from unidiffuser.denoiser import Denoiser
from unidiffuser.joint import Joint, Shapes, check_seeds, generator, modalities_of, modality_of, noise_like, streams_of
from unidiffuser.process import Process


@torch.no_grad()
def description_length(
    denoiser: Denoiser,
    process: Process,
    shapes: Shapes,
    joint: Joint,
    of: str,
    given: Sequence[str],
    seeds: Sequence[int],
    *,
    draws: int = 16,
    quadrature: Quadrature | None = None,
    batch: int = 64,
) -> Tensor:
    """An unbiased estimate of the bound for each of B samples, (B,), float64, in bits.

    Args:
        denoiser: unguided.
        shapes: stream -> shape, all streams of the model; modalities that are neither `of` nor given are ignored.
        joint: clean streams (B, ...) of `of` and of what is given.
        of: the modality that is described.
        given: the modalities that are known.
        seeds: one a sample.
        draws: noise draws a sample, 1 or more.
        batch: draws in one forward; it changes no draw.

    Raises:
        ValueError: an unknown modality, one that is both described and given, or no draws.
    """
    names = modalities_of(shapes)
    if of not in names or not set(given) <= set(names) - {of}:
        raise ValueError(f"{of!r} given {', '.join(given) or 'nothing'} is no distribution of {', '.join(names)}")
    if draws < 1:
        raise ValueError(f"a likelihood needs one noise draw or more, not {draws}")
    check_seeds(seeds)
    look = _within(quadrature or Quadrature(), process)
    streams = streams_of(of, shapes)
    bits = torch.zeros(len(seeds), dtype=torch.float64)
    for row, seed in enumerate(seeds):
        x0 = {s: joint[s][row : row + 1] for s in shapes if modality_of(s) in (of, *given)}
        u = torch.rand(draws, generator=generator(seed, "likelihood/lambda"), dtype=torch.float64)
        lambdas, weights = look.draw((u + torch.arange(draws)) / draws)
        noise = noise_like({s: (draws, *shape) for s, shape in shapes.items()}, [seed], "likelihood")
        nats = sum(0.5 * math.exp(2 * look.low) * float(x0[s].double().square().sum()) for s in streams)
        for start in range(0, draws, batch):
            part = slice(start, start + batch)
            eps = {s: x[0, part].to(next(iter(x0.values()))) for s, x in noise.items()}
            error = _errors(denoiser, process, x0, eps, of, process.t_of_log_snr(lambdas[part]))
            nats += float((error * weights[part] * torch.exp(2 * lambdas[part])).sum()) / draws
        numbers = sum(x0[s].numel() for s in streams)
        bits[row] = (nats + numbers * (0.5 * math.log(2 * math.pi * math.e) - look.high)) / math.log(2)
    return bits


def _errors(denoiser: Denoiser, process: Process, x0: Joint, eps: Joint, of: str, t: Tensor) -> Tensor:
    """|x - D(x_t)|^2 of one sample under R noises, (R,), float64 on the CPU."""
    first = next(iter(x0.values()))
    t = t.to(first)
    xt = {}
    for stream, noise in eps.items():
        name = modality_of(stream)
        if name == of:
            xt[stream] = process.add_noise(x0[stream].expand_as(noise), noise, t)
        else:
            xt[stream] = x0[stream].expand_as(noise) if stream in x0 else noise
    known = modalities_of(x0)
    at = {m: t if m == of else torch.full_like(t, 0.0 if m in known else 1.0) for m in modalities_of(eps)}
    clean = denoiser(xt, at)
    total = torch.zeros(len(t), dtype=torch.float64)
    for stream in streams_of(of, eps):
        total += (clean[stream] - x0[stream]).double().square().flatten(1).sum(1).cpu()
    return total


def _within(quadrature: Quadrature, process: Process) -> Quadrature:
    """The range cut to what the process reaches; below it the bound takes the error of the mean, 0."""
    least = float(process.log_snr(torch.ones(1, dtype=torch.float64)))
    low = max(quadrature.low, least)
    return Quadrature(low=low, high=quadrature.high, centre=quadrature.centre, width=quadrature.width)
