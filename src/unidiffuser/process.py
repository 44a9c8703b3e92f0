"""The noising process: how much data and how much noise a timestep t in [0, 1] stands for.

    x_t = alpha(t) x0 + sigma(t) eps,   eps ~ N(0, 1),   t = 0 data, t = 1 noise.

A process is the two functions alpha and sigma; every conversion is derived from them here, once. The velocity is

    v = a eps - b x0,   (a, b) = (alpha, sigma) for a variance-preserving process (Salimans & Ho 2022, eq. 8),
                        (a, b) = (1, 1) for the straight path of rectified flow (Liu et al. 2022, eq. 1),

so that x0 = (a x_t - sigma v) / (a alpha + b sigma), whose denominator never vanishes: v is safe at both ends. The
noise is undefined at sigma = 0 and the data at alpha = 0 (0/0); there, and only there, this file answers with the
mean of a standardised variable, 0, and never with an infinity.

This file knows nothing of modalities, networks or solvers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from unidiffuser.joint import expand

Prediction = Literal["eps", "v", "x0"]
"""What a network's output stands for."""


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is 0."""
    zero = denominator == 0
    return torch.where(zero, torch.zeros_like(numerator), numerator / denominator.masked_fill(zero, 1.0))


@dataclass(frozen=True)
class Process(ABC):
    """alpha(t) and sigma(t) as continuous functions of t in [0, 1], computed in float64."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The share of data at t, same shape as t, float64; exactly 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The share of noise at t, same shape as t, float64; exactly 0 at t = 0."""

    @abstractmethod
    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients (a, b) of v = a eps - b x0."""

    @abstractmethod
    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, clamped to [0, 1]."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Half the logarithm of the signal-to-noise ratio, lambda(t) = log(alpha / sigma); +inf at t = 0."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t of clean data x0 (B, ...) and noise eps (B, ...) at timesteps t (B,)."""
        return _like(self.alpha(t), x0) * x0 + _like(self.sigma(t), x0) * eps

    def x0_from(self, prediction: Prediction, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean estimate that a network's output stands for. At t = 0 it is x_t itself, exactly."""
        if prediction == "x0":
            x0 = output
        elif prediction == "eps":
            x0 = _divide(xt - _like(self.sigma(t), xt) * output, _like(self.alpha(t), xt))
        else:
            alpha, sigma = self.alpha(t), self.sigma(t)
            a, b = self.velocity(t)
            scale = a * alpha + b * sigma
            x0 = _like(a / scale, xt) * xt - _like(sigma / scale, xt) * output
        return torch.where(_like(self.sigma(t), xt) == 0, xt, x0)

    def eps_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The noise that goes with a clean estimate: (x_t - alpha x0) / sigma, and 0 where sigma = 0."""
        return _divide(xt - _like(self.alpha(t), xt) * x0, _like(self.sigma(t), xt))

    def v_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The velocity that goes with a clean estimate: a eps - b x0."""
        a, b = self.velocity(t)
        return _like(a, xt) * self.eps_from_x0(x0, xt, t) - _like(b, xt) * x0

    def score_from_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p(x_t) that goes with a clean estimate: -eps / sigma, and 0 where sigma = 0."""
        return _divide(-self.eps_from_x0(x0, xt, t), _like(self.sigma(t), xt))

    def target(self, prediction: Prediction, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a network with this prediction should put out for data x0 and noise eps at t."""
        if prediction == "x0":
            return x0
        if prediction == "eps":
            return eps
        a, b = self.velocity(t)
        return _like(a, x0) * eps - _like(b, x0) * x0

    def x0_error_scale(self, prediction: Prediction, t: Tensor) -> Tensor:
        """By how much an error of x0 counts when it is measured in the space of `prediction`, (B,), float64.

        x0: 1;  eps: alpha / sigma;  v: a alpha / sigma + b.  Infinite at t = 0 except for x0.
        """
        if prediction == "x0":
            return torch.ones_like(t, dtype=torch.float64)
        ratio = self.alpha(t) / self.sigma(t)
        if prediction == "eps":
            return ratio
        a, b = self.velocity(t)
        return a * ratio + b


def _like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient (B,) in the dtype and on the device of x, shaped to broadcast against it."""
    return expand(coefficient.to(x), x)


@dataclass(frozen=True)
class VariancePreserving(Process):
    """alpha^2 + sigma^2 = 1, given by log alpha(t)."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha(t), float64; exactly 0 at t = 0."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_alpha(t.double()))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2.0 * self.log_alpha(t.double())))

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha(t), self.sigma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha = self.log_alpha(t.double())
        return log_alpha - 0.5 * torch.log(-torch.expm1(2.0 * log_alpha))

    def _log_alpha_of(self, log_snr: Tensor) -> Tensor:
        """log alpha = -1/2 log(1 + exp(-2 lambda))."""
        return -0.5 * torch.nn.functional.softplus(-2.0 * log_snr.double())


@dataclass(frozen=True)
class ScaledLinear(VariancePreserving):
    """Stable Diffusion's table of 1000 steps, beta_n = linspace(sqrt(0.00085), sqrt(0.012), 1000)^2.

    log alpha is interpolated linearly between the table's knots t = n / 1000, with beta_0 = 0 at t = 0 (clean data).
    At t = 1 alpha is 0.0683, not 0: the released UniDiffuser starts from pure noise all the same.
    """

    steps: int = 1000
    knots: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, self.steps, dtype=torch.float64) ** 2
        table = 0.5 * torch.cumsum(torch.log1p(-beta), 0)
        object.__setattr__(self, "knots", torch.cat([torch.zeros(1, dtype=torch.float64), table]))

    def log_alpha(self, t: Tensor) -> Tensor:
        knots = self.knots.to(t.device)
        position = t.double().clamp(0.0, 1.0) * self.steps
        low = position.floor().long().clamp(max=self.steps - 1)
        return torch.lerp(knots[low], knots[low + 1], position - low)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        log_alpha, falling = self._log_alpha_of(log_snr), -self.knots.to(log_snr.device)
        low = (torch.searchsorted(falling, -log_alpha, right=True) - 1).clamp(0, self.steps - 1)
        share = (-log_alpha - falling[low]) / (falling[low + 1] - falling[low])
        return ((low + share) / self.steps).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Linear(VariancePreserving):
    """The VP-SDE of Song et al. 2021 (eq. 33): beta(t) = beta_0 + t (beta_1 - beta_0)."""

    beta_0: float = 0.1
    beta_1: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_1 - self.beta_0) * t**2 - 0.5 * self.beta_0 * t

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # The positive root of the quadratic of log_alpha, in the form that does not cancel.
        minus_log_alpha = -self._log_alpha_of(log_snr)
        slope = self.beta_1 - self.beta_0
        root = torch.sqrt(0.25 * self.beta_0**2 + slope * minus_log_alpha)
        return (2.0 * minus_log_alpha / (root + 0.5 * self.beta_0)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Cosine(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the cosine schedule of Nichol & Dhariwal 2021 without its
    offset.
    """

    def alpha(self, t: Tensor) -> Tensor:
        # cos(pi / 2) is 6e-17 in floating point; the end must be exact.
        return torch.where(t >= 1, 0.0, torch.cos(t.double() * (0.5 * math.pi)))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t.double() * (0.5 * math.pi))

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha(t), self.sigma(t)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr.double())) * (2.0 / math.pi)


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """The straight path x_t = (1 - t) x0 + t eps; its velocity is dx_t/dt = eps - x0."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return one, one

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr.double())


PROCESSES: dict[str, Callable[[], Process]] = {
    "scaled_linear": ScaledLinear,
    "linear": Linear,
    "cosine": Cosine,
    "rectified_flow": RectifiedFlow,
}
"""Every process by name."""
