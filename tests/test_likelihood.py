"""The likelihood bound against the exact densities of a mixture."""

import math

import pytest
import torch
from torch import Tensor

from unidiffuser.agreement import Quadrature
from unidiffuser.joint import Joint
from unidiffuser.likelihood import description_length
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import PROCESSES

N = 200
HIGH = 2.0


def mixture(process: str) -> GaussianMixture:
    g = torch.Generator().manual_seed(7)
    means = {"a.grid": torch.randn(3, 2, 2, 1, generator=g), "a.vector": torch.randn(3, 2, generator=g)}
    means["b"] = 1.5 * torch.randn(3, 2, generator=g)
    stds = {stream: torch.tensor(0.6) for stream in means}
    return GaussianMixture(process=PROCESSES[process](), weights=torch.tensor([0.5, 0.3, 0.2]), means=means, stds=stds)


def blurred_bits(mix: GaussianMixture, joint: Joint, given: tuple[str, ...]) -> float:
    """The mean of -log2 p(a blurred | given): x + e^-high eps is x_t / alpha where log(alpha / sigma) = high."""
    t = mix.process.t_of_log_snr(torch.tensor([HIGH], dtype=torch.float64))
    alpha, g = mix.process.alpha(t), torch.Generator().manual_seed(8)
    streams = {s: x for s, x in joint.items() if s.startswith("a")}
    noisy = {
        s: mix.process.add_noise(x, torch.randn(x.shape, generator=g, dtype=x.dtype), t) for s, x in streams.items()
    }
    known = {s: x for s, x in joint.items() if s in given}
    at = {"a": t.expand(N), "b": torch.zeros(N, dtype=torch.float64)}
    log_p = mix.log_prob(noisy | known, at) - (mix.log_prob(known, at) if known else 0.0)
    numbers = sum(x[0].numel() for x in streams.values())
    return float(-(log_p + numbers * alpha.log()).mean() / math.log(2))


def bound(denoiser: object, mix: GaussianMixture, joint: Joint, given: tuple[str, ...]) -> Tensor:
    shapes = {s: tuple(mean.shape[1:]) for s, mean in mix.means.items()}
    look = Quadrature(high=HIGH)
    return description_length(
        denoiser,  # type: ignore[arg-type]
        mix.process, shapes, joint, "a", given, range(N), draws=32, quadrature=look
    )  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("given", [(), ("b",)])
def test_the_bound_of_the_exact_denoiser_is_the_entropy(process: str, given: tuple[str, ...]) -> None:
    mix = mixture(process)
    joint = mix.sample(N, torch.Generator().manual_seed(1))
    found = bound(mix, mix, joint, given)
    error = float(found.std()) / N**0.5
    assert float(found.mean()) == pytest.approx(blurred_bits(mix, joint, given), abs=4 * error)
    assert error < 0.3


def test_any_other_denoiser_needs_more() -> None:
    mix = mixture("cosine")
    joint = mix.sample(N, torch.Generator().manual_seed(1))
    exact = bound(mix, mix, joint, ("b",))
    worse = bound(lambda xt, t: {s: 0.9 * x for s, x in mix(xt, t).items()}, mix, joint, ("b",))
    assert float((worse - exact).mean()) > 0.5
    assert float((bound(mix, mix, joint, ()) - exact).mean()) > 0.3


def test_what_makes_no_sense_is_refused() -> None:
    mix = mixture("cosine")
    joint = mix.sample(2, torch.Generator().manual_seed(1))
    shapes = {s: tuple(mean.shape[1:]) for s, mean in mix.means.items()}
    for of, given, draws, said in (("z", (), 4, "no distribution"), ("a", ("a",), 4, "no distr"), ("a", (), 0, "one")):
        with pytest.raises(ValueError, match=said):
            description_length(mix, mix.process, shapes, joint, of, given, [0, 1], draws=draws)
