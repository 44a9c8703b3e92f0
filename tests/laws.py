"""One-dimensional laws with everything in closed form, and quadrature, for the tests of one-step distillation."""

import numpy as np
import torch
from torch import Tensor

from unidiffuser.joint import Joint
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import Process

GRID = torch.linspace(-14, 14, 4001, dtype=torch.float64)


def law(process: Process, weights: list[float], means: list[float], variances: list[float]) -> GaussianMixture:
    """A mixture of Gaussians over one number, stream "a"."""
    std = torch.tensor(variances, dtype=torch.float64).sqrt()
    mean = torch.tensor(means, dtype=torch.float64)
    weight = torch.tensor(weights, dtype=torch.float64)
    return GaussianMixture(process=process, weights=weight, means={"a": mean[:, None]}, stds={"a": std[:, None]})


def normal(process: Process, mean: Tensor, std: Tensor) -> GaussianMixture:
    """A Gaussian over one number whose density can be differentiated by its mean and standard deviation."""
    one = torch.ones(1, dtype=torch.float64)
    return GaussianMixture(process=process, weights=one, means={"a": mean.reshape(1, 1)}, stds={"a": std.reshape(1, 1)})


def at(x: Tensor, t: float | Tensor) -> tuple[Joint, dict[str, Tensor]]:
    """Points (N,) at one timestep, as a joint and its timesteps."""
    return {"a": x[:, None]}, {"a": torch.as_tensor(t, dtype=torch.float64).expand(len(x))}


def log_density(mix: GaussianMixture, x: Tensor, t: float | Tensor) -> Tensor:
    """log p_t at points (N,)."""
    return mix.log_prob(*at(x, t))


def integral(values: Tensor, x: Tensor = GRID) -> Tensor:
    """The trapezoidal rule, which is exact to rounding for smooth functions that vanish at both ends."""
    return torch.trapezoid(values, x)


def hermite(n: int) -> tuple[Tensor, Tensor]:
    """Points (N,) and weights (N,) with sum(w f(z)) = E f(z) for z ~ N(0, 1)."""
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(z), torch.from_numpy(w / w.sum())


def legendre(low: float, high: float, n: int) -> tuple[Tensor, Tensor]:
    """Points (N,) and weights (N,) of the integral from low to high."""
    x, w = np.polynomial.legendre.leggauss(n)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (x + 1)), torch.from_numpy(half * w)
