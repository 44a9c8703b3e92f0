"""How much one modality tells about another, from denoising errors: pointwise mutual information, in bits.

    i(x; y) = log p(x | y) / p(x)
            = 1/2 int_0^inf  E_eps [ |x - D(x_t)|^2 - |x - D(x_t | y)|^2 ]  d snr
            = int  E_eps [ ... ]  e^(2 lambda) d lambda,     lambda(t) = log(alpha(t) / sigma(t)),  snr = e^(2 lambda)

(Kong et al. 2024, arXiv 2310.07972) for any process: x_t / alpha is x plus noise of variance 1 / snr, whatever alpha
and sigma are, and e^(2 lambda) |x - D|^2 is |eps - eps_hat|^2. D(x_t | y) is the denoiser with y given (t = 0), D(x_t)
the one with y ignored (noise at t = 1): one network gives both, and both see the same x_t. The identity holds for each
pair, not only on average.

The integral is an importance sample: lambda from a logistic distribution cut to a range, stratified. The error bar is
that of unstratified draws, a few per cent too wide. Cutting at lambda = high asks for log p(x | y) / p(x) of an x
blurred by noise of standard deviation e^-high (on average over that noise): nothing finer is looked at. Below the least
lambda of the process, D is taken where the process ends (t = 1), where it has become constant.

The score says what this denoiser believes about these latents, not what is true. This file knows no raw data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unidiffuser.denoiser import Denoiser
from unidiffuser.joint import (
    Joint,
    Shapes,
    batch_size,
    cat_joints,
    check_seeds,
    expand,
    generator,
    modalities_of,
    modality_of,
    noise_like,
    streams_of,
)
from unidiffuser.process import Process

MAX_DRAWS = 100_000
USE_TIMESTEPS = (0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class Information:
    """What `about` tells about `of`, for B pairs."""

    bits: Tensor
    """(B,) the pointwise mutual information, float64; below zero where the one makes the other less likely."""
    error: Tensor
    """(B,) its standard error over the noise draws, float64."""
    maps: Joint
    """Stream of `of` -> (B, *shape), float64: how many of the bits come from each number; all of them sum to `bits`."""


@dataclass(frozen=True, kw_only=True)
class Quadrature:
    """Where the integral over lambda = log(alpha / sigma) looks."""

    low: float = -6.0
    """The least lambda; what lies below adds less than e^(2 low) |x|^2 / 2 nats."""
    high: float = 3.0
    """The largest lambda: noise of standard deviation e^-high hides what is finer."""
    centre: float = 0.0
    """The lambda that is looked at most."""
    width: float = 1.0
    """The scale of the logistic distribution around it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the range of lambda must be finite and not empty, not {self.low} to {self.high}")
        if not self.width > 0:
            raise ValueError(f"the width of the logistic distribution must be above 0, not {self.width}")

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u uniform on [0, 1] -> lambda in the range and 1 / its density."""
        low, high = (torch.tensor((end - self.centre) / self.width).double().sigmoid() for end in (self.low, self.high))
        share = low + u * (high - low)
        return self.centre + self.width * torch.logit(share), (high - low) * self.width / (share * (1 - share))


@torch.no_grad()
def pointwise_information(
    denoiser: Denoiser,
    process: Process,
    shapes: Shapes,
    joint: Joint,
    of: str,
    about: str | tuple[str, ...],
    seeds: Sequence[int],
    *,
    samples: int = 64,
    quadrature: Quadrature | None = None,
    batch: int = 64,
) -> Information:
    """How many bits the modalities `about` tell about the modality `of`, for each pair of a batch.

    Args:
        denoiser: unguided; guidance is no longer a distribution's denoiser.
        shapes: stream -> shape, all streams of the model; modalities in neither `of` nor `about` are ignored.
        joint: clean streams (B, ...) of `of` and `about`; others are not looked at.
        of: the modality that is explained; `maps` are over its streams.
        about: the modalities that explain it.
        seeds: one a pair; pair k is the same in any batch.
        samples: noise draws a pair; the error falls as 1 / sqrt(samples). Few draws have long tails: of a closed-form
            mixture's scores 8 % lay beyond three error bars at 64 draws, 1 % at 256.
        quadrature: where the integral looks.
        batch: noise draws in one forward (which holds twice as many rows); it changes no draw.

    Raises:
        ValueError: unknown or repeated modalities, missing streams, wrong shapes, no pairs.
    """
    about = (about,) if isinstance(about, str) else tuple(about)
    _check(shapes, joint, of, about, seeds, samples)
    quadrature = quadrature or Quadrature()
    u = torch.stack([torch.rand(samples, generator=generator(s, "score/lambda"), dtype=torch.float64) for s in seeds])
    u = (u + torch.arange(samples)) / samples  # one draw a stratum
    lambdas, weights = quadrature.draw(u)
    weights = weights * torch.exp(2 * lambdas) / (samples * math.log(2))
    values = torch.zeros(len(seeds), samples, dtype=torch.float64)
    maps = {stream: torch.zeros_like(joint[stream], dtype=torch.float64) for stream in streams_of(of, shapes)}
    for row, seed in enumerate(seeds):
        draws = noise_like({stream: (samples, *shape) for stream, shape in shapes.items()}, [seed], "score")
        x0 = {stream: x[row : row + 1] for stream, x in joint.items() if modality_of(stream) in (of, *about)}
        kind = x0[next(iter(maps))]
        for start in range(0, samples, batch):
            part = slice(start, start + batch)
            noise = {stream: eps[0, part].to(kind) for stream, eps in draws.items()}
            t = process.t_of_log_snr(lambdas[row, part]).to(kind)
            for stream, gain in _gains(denoiser, process, x0, noise, of, about, t).items():
                bits = gain * expand(weights[row, part].to(gain.device), gain)
                maps[stream][row] += bits.sum(0)
                values[row, part] += bits.flatten(1).sum(1).cpu()
    return Information(bits=values.sum(1), error=values.std(1) * samples**0.5, maps=maps)


def _gains(
    denoiser: Denoiser, process: Process, x0: Joint, noise: Joint, of: str, about: tuple[str, ...], t: Tensor
) -> Joint:
    """|x - D(x_t)|^2 - |x - D(x_t | y)|^2 of every number of x, stream -> (R, ...), float64; one forward for both.

    x0: the pair, (1, ...); noise: R draws of every stream; t: (R,).
    """
    xt = {s: process.add_noise(x0[s], noise[s], t) if modality_of(s) == of else noise[s] for s in noise}
    given = {s: x0[s].expand_as(x) if modality_of(s) in about else x for s, x in xt.items()}
    one = torch.ones_like(t)
    at = {m: torch.cat([t, t]) if m == of else torch.cat([one, one * (m not in about)]) for m in modalities_of(noise)}
    clean = denoiser(cat_joints([xt, given]), at)
    gains = {}
    for stream in streams_of(of, noise):
        without, told = clean[stream].double().chunk(2)
        # The difference of the squares as a product: no cancellation where the two estimates are close.
        gains[stream] = (told - without) * (2 * x0[stream].double() - told - without)
    return gains


def _check(shapes: Shapes, joint: Joint, of: str, about: tuple[str, ...], seeds: Sequence[int], samples: int) -> None:
    modalities = modalities_of(shapes)
    for name in (of, *about):
        if name not in modalities:
            raise ValueError(f"this model has no modality {name!r}; it has {', '.join(modalities)}")
    if not about or of in about or len(set(about)) < len(about):
        raise ValueError(
            f"name one modality and different others that tell about it, not {of!r} and {', '.join(about) or 'none'}"
        )
    if not 2 <= samples <= MAX_DRAWS:
        raise ValueError(f"a score needs 2 to {MAX_DRAWS} noise draws, not {samples}")
    if not seeds:
        raise ValueError("there is nothing to score: give at least one pair and its seed")
    check_seeds(seeds)
    for stream, shape in shapes.items():
        if modality_of(stream) in (of, *about) and (stream not in joint or joint[stream].shape != (len(seeds), *shape)):
            found = tuple(joint[stream].shape) if stream in joint else "nothing"
            raise ValueError(
                f"the score needs {stream!r} with the shape {(len(seeds), *shape)}, one row a seed, not {found}"
            )


@torch.no_grad()
def use_of_others(
    denoiser: Denoiser, process: Process, x0: Joint, seeds: Sequence[int], *, batch: int = 64
) -> dict[str, dict[str, Any]]:
    """How much better each modality is denoised with all others at hand: whether a model pairs at all, at a glance.

    The mean squared error of the clean estimate, E |x - D(x_t)|^2 per number (1: knows nothing of a standardised
    modality), with the others "given" (t = 0), "ignored" (noise, t = 1) and "swapped" (given, but those of the next
    sample). A modality that uses the others has given < ignored < swapped.

    Args:
        x0: clean joint, stream -> (B, ...), all streams of the model, B at least 2.
        seeds: one a sample; the same noise serves all three.
        batch: samples a forward; it changes no draw.

    Returns:
        modality -> {"given", "ignored", "swapped": means over `USE_TIMESTEPS`, "timesteps": {t: the three at t}}.
    """
    if batch_size(x0) < 2 or len(seeds) != batch_size(x0):
        raise ValueError(
            f"swapping needs at least two samples and one seed each, not {batch_size(x0)} and {len(seeds)} seeds"
        )
    noise = noise_like({stream: tuple(x.shape[1:]) for stream, x in x0.items()}, seeds, "use")
    noise = {stream: eps.to(x0[stream]) for stream, eps in noise.items()}
    swapped = {stream: x.roll(1, 0) for stream, x in x0.items()}
    others: Mapping[str, tuple[Joint, float]] = {"given": (x0, 0.0), "ignored": (noise, 1.0), "swapped": (swapped, 0.0)}
    report: dict[str, dict[str, Any]] = {}
    for modality in modalities_of(x0):
        at = {
            str(t): {
                how: _error(denoiser, process, modality, t, x0, noise, *rest, batch) for how, rest in others.items()
            }
            for t in USE_TIMESTEPS
        }
        means = {how: sum(errors[how] for errors in at.values()) / len(at) for how in others}
        report[modality] = {**means, "timesteps": at}
    return report


def _error(
    denoiser: Denoiser,
    process: Process,
    of: str,
    t: float,
    x0: Joint,
    noise: Joint,
    others: Joint,
    rest: float,
    batch: int,
) -> float:
    """The mean squared error of the clean estimate of `of` at t, the others held at the timestep `rest`."""
    total, numbers = 0.0, 0
    for start in range(0, batch_size(x0), batch):
        x, eps, held = ({s: v[start : start + batch] for s, v in joint.items()} for joint in (x0, noise, others))
        at = {
            m: torch.full((batch_size(x),), t if m == of else rest, device=next(iter(x.values())).device)
            for m in modalities_of(x)
        }
        clean = denoiser(
            {s: process.add_noise(x[s], eps[s], at[of]) if modality_of(s) == of else held[s] for s in x}, at
        )
        for stream in streams_of(of, x):
            total += float((clean[stream] - x[stream]).double().square().sum())
            numbers += x[stream].numel()
    return total / numbers
