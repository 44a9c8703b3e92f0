"""Truth in closed form: a joint Gaussian mixture over any streams, with its exact Denoiser for all timesteps.

    p(x) = sum_k w_k  prod_streams N(x_s; mu_ks, diag(var_ks))

Inside one component the streams are independent; they depend on each other through the component they share. Noised at
one timestep a modality, the mixture stays a mixture, with means alpha mu and variances alpha^2 var + sigma^2, so

    E[x0 | x_t] = sum_k r_k(x_t) (mu_k + gain_k (x_t - alpha mu_k)),   gain_k = alpha var_k / (alpha^2 var_k + sigma^2),
    r_k(x_t)    = the posterior weight of component k given all noisy streams.

Everything is computed in float64. This is what samplers, guidance and scores are tested against. The file knows nothing
of roles, solvers or networks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unidiffuser.joint import Joint, batch_size, modality_of
from unidiffuser.process import Process


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """A mixture of K Gaussians over a joint, and the exact Denoiser of its noised forms."""

    process: Process
    """The process that noises it."""
    weights: Tensor
    """(K,), positive; they are normalised to sum to 1."""
    means: Joint
    """Stream -> (K, *shape)."""
    stds: Joint
    """Stream -> standard deviations, positive, that broadcast to (K, *shape)."""

    def __post_init__(self) -> None:
        weights = torch.as_tensor(self.weights, dtype=torch.float64)
        means = {stream: torch.as_tensor(mean, dtype=torch.float64) for stream, mean in self.means.items()}
        if weights.ndim != 1 or not bool((weights > 0).all()):
            raise ValueError(f"the weights of a mixture must be a list of positive numbers, not {self.weights}")
        if self.stds.keys() != means.keys():
            raise ValueError(f"means and stds must name the same streams, not {list(means)} and {list(self.stds)}")
        stds = {}
        for stream, mean in means.items():
            stds[stream] = torch.as_tensor(self.stds[stream], dtype=torch.float64).expand(mean.shape)
            if mean.shape[:1] != weights.shape or not bool((stds[stream] > 0).all()):
                raise ValueError(f"stream {stream!r} needs one mean a component ({len(weights)}) and positive stds")
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "stds", stds)

    def __call__(self, xt: Joint, t: dict[str, Tensor]) -> Joint:
        """The exact E[x0 | x_t] of every stream of xt, in its dtype; see `denoiser.Denoiser`."""
        r = torch.softmax(self._log_parts(xt, t), dim=1)  # (B, K)
        return {stream: self._clean(stream, x, t[modality_of(stream)], r) for stream, x in xt.items()}

    def log_prob(self, xt: Joint, t: dict[str, Tensor]) -> Tensor:
        """log p(x_t) in nats, (B,), float64, of the streams that xt holds; the others are marginalised out."""
        return torch.logsumexp(self._log_parts(xt, t), dim=1)

    def sample(self, n: int, generator: torch.Generator) -> Joint:
        """n clean samples, stream -> (n, *shape), float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        eps = {
            s: torch.randn(mean[k].shape, generator=generator, dtype=torch.float64) for s, mean in self.means.items()
        }
        return {s: mean[k] + self.stds[s][k] * eps[s] for s, mean in self.means.items()}

    def marginal(self, streams: Iterable[str]) -> "GaussianMixture":
        """The law of some streams alone."""
        streams = tuple(streams)
        means, stds = {s: self.means[s] for s in streams}, {s: self.stds[s] for s in streams}
        return replace(self, means=means, stds=stds)

    def conditional(self, given: Joint, t: dict[str, Tensor]) -> "GaussianMixture":
        """The exact law of the other streams, given one observation of some.

        Args:
            given: stream -> (1, *shape), at the timesteps t: clean at 0, noisy above ("looseness").
            t: modality of a given stream -> (1,).

        Raises:
            ValueError: more than one observation.
        """
        if batch_size(given) != 1:
            raise ValueError(f"a conditional law needs one observation, not {batch_size(given)}; take them one by one")
        rest = self.marginal(s for s in self.means if s not in given)
        return replace(rest, weights=torch.softmax(self._log_parts(given, t)[0], dim=0))

    def _log_parts(self, xt: Joint, t: dict[str, Tensor]) -> Tensor:
        """log(w_k p(x_t | k)) of every sample and component, (B, K)."""
        total = self.weights.log().expand(batch_size(xt), -1)
        for stream, x in xt.items():
            mean, variance, x = self._noised(stream, x, t[modality_of(stream)])
            log_density = -0.5 * ((x - mean).square() / variance + variance.log() + math.log(2.0 * math.pi))
            total = total + log_density.sum(-1)
        return total

    def _noised(self, stream: str, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of each noised component, (B, K, D), and x as (B, 1, D)."""
        alpha, sigma = self.process.alpha(t).reshape(-1, 1, 1), self.process.sigma(t).reshape(-1, 1, 1)
        mean = alpha * self.means[stream].flatten(1)
        variance = (alpha * self.stds[stream].flatten(1)).square() + sigma.square()
        return mean, variance, x.double().flatten(1).unsqueeze(1)

    def _clean(self, stream: str, xt: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """E[x0 | x_t] of one stream, from the posterior weights r (B, K)."""
        mean, variance, x = self._noised(stream, xt, t)
        gain = self.process.alpha(t).reshape(-1, 1, 1) * self.stds[stream].flatten(1).square() / variance
        x0 = torch.einsum("bk,bkd->bd", r, self.means[stream].flatten(1) + gain * (x - mean))
        clean = (self.process.sigma(t) == 0).reshape(-1, 1)  # there x_t is x0 to the bit
        return torch.where(clean, x[:, 0], x0).reshape(xt.shape).to(xt.dtype)
