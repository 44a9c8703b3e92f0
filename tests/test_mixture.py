"""The closed-form mixture against Tweedie's formula, Bayes' rule, quadrature and its own samples."""

import itertools

import pytest
import torch
from torch import Tensor

from unidiffuser.joint import Joint
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import PROCESSES, Cosine, Process

ALL = pytest.mark.parametrize("process", [make() for make in PROCESSES.values()], ids=list(PROCESSES))


def mixture(process: Process) -> GaussianMixture:
    """Three components over a stream of two numbers, one of a 1 x 2 grid that shares its modality, and one number."""
    return GaussianMixture(
        process=process,
        weights=torch.tensor([3.0, 5.0, 2.0]),
        means={
            "a.p": torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.0, -1.0]]),
            "a.q": torch.tensor([[[0.5, -1.0]], [[1.0, 0.0]], [[-0.7, 0.3]]]),
            "b": torch.tensor([[1.0], [-1.0], [0.2]]),
        },
        stds={"a.p": torch.tensor([[0.3, 0.5]]), "a.q": torch.tensor(0.4), "b": torch.tensor([[0.2], [0.6], [0.4]])},
    )


def noisy(mix: GaussianMixture, t: dict[str, Tensor], n: int) -> Joint:
    generator = torch.Generator().manual_seed(1)
    x0 = mix.sample(n, generator)
    eps = {s: torch.randn(x.shape, generator=generator, dtype=torch.float64) for s, x in x0.items()}
    return {s: mix.process.add_noise(x, eps[s], t[s[0]]) for s, x in x0.items()}


@ALL
def test_the_denoiser_is_tweedies_formula(process: Process) -> None:
    """E[x0 | x_t] = (x_t + sigma^2 grad log p(x_t)) / alpha, each modality at its own t and each sample at its own."""
    mix = mixture(process)
    t = {"a": torch.tensor([0.05, 0.3, 0.6, 0.9, 0.5]), "b": torch.tensor([0.8, 0.2, 0.6, 0.1, 1e-3])}
    xt = {s: x.requires_grad_() for s, x in noisy(mix, t, 5).items()}
    scores = torch.autograd.grad(mix.log_prob(xt, t).sum(), list(xt.values()))
    x0 = mix(xt, t)
    for (s, x), score in zip(xt.items(), scores, strict=True):
        alpha, sigma = (f(t[s[0]]).reshape(-1, *[1] * (x.ndim - 1)) for f in (process.alpha, process.sigma))
        torch.testing.assert_close(x0[s], (x + sigma**2 * score) / alpha)


def test_the_exact_ends() -> None:
    mix = mixture(Cosine())
    for a, b in itertools.product((0.0, 1.0), repeat=2):
        t = {"a": torch.full((4,), a), "b": torch.full((4,), b)}
        xt = noisy(mix, t, 4)
        x0 = mix(xt, t)
        assert all(torch.equal(x0[s], xt[s]) for s in xt if t[s[0]][0] == 0)
        given = {s: x for s, x in xt.items() if t[s[0]][0] == 0}
        for k in range(4 if given else 0):  # noise at t = 1 says nothing: the mean given the clean rest
            one = {s: x[k : k + 1] for s, x in given.items()}
            rest = mix.conditional(one, {m: value[:1] for m, value in t.items()})
            for s, mean in rest.means.items():
                torch.testing.assert_close(x0[s][k], torch.einsum("k,k...->...", rest.weights, mean))


@ALL
def test_bayes_rule_holds_at_any_looseness(process: Process) -> None:
    mix = mixture(process)
    for level in (0.0, 0.4, 0.9):
        t = {"a": torch.tensor([0.3]), "b": torch.tensor([level])}
        xt = noisy(mix, t, 1)
        b, a = {"b": xt["b"]}, {s: xt[s] for s in ("a.p", "a.q")}
        posterior = mix.conditional(b, t)
        torch.testing.assert_close(posterior.log_prob(a, t) + mix.log_prob(b, t), mix.log_prob(xt, t))
        torch.testing.assert_close(mix.marginal(["b"]).log_prob(b, t), mix.log_prob(b, t))


def test_the_density_integrates_to_one() -> None:
    mix = mixture(Cosine())
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    for level in (0.0, 0.5, 1.0):
        density = mix.log_prob({"b": x[:, None]}, {"b": torch.full((len(x),), level)}).exp()
        assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-9)


def test_samples_follow_the_density() -> None:
    """The mean of any f(x) over samples is its integral against the density: here f = 1, x, x^2 where x > 0."""
    mix = mixture(Cosine())
    b = mix.sample(200_000, torch.Generator().manual_seed(0))["b"][:, 0]
    x = torch.linspace(0, 8, 4001, dtype=torch.float64)
    density = mix.log_prob({"b": x[:, None]}, {"b": torch.zeros(len(x))}).exp()
    for power in range(3):
        value = torch.where(b > 0, b**power, 0.0)
        expected = torch.trapezoid(density * x**power, x)
        assert abs(value.mean() - expected) < 4.5 * value.std() / len(b) ** 0.5


def test_float32_comes_back_as_float32() -> None:
    mix = mixture(Cosine())
    t = {"a": torch.full((3,), 0.4), "b": torch.full((3,), 0.4)}
    xt = noisy(mix, t, 3)
    low = mix({s: x.float() for s, x in xt.items()}, t)
    for s, x0 in mix(xt, t).items():
        assert low[s].dtype == torch.float32
        torch.testing.assert_close(low[s], x0.float())


def test_what_is_no_mixture_is_refused() -> None:
    good = {"weights": torch.ones(2), "means": {"a": torch.zeros(2, 1)}, "stds": {"a": torch.tensor(1.0)}}
    for wrong, says in (
        ({"weights": torch.tensor([1.0, -1.0])}, "positive numbers"),
        ({"weights": torch.ones(3)}, "one mean a component"),
        ({"stds": {"a": torch.tensor(0.0)}}, "positive stds"),
        ({"stds": {}}, "same streams"),
    ):
        with pytest.raises(ValueError, match=says):
            GaussianMixture(process=Cosine(), **(good | wrong))  # type: ignore[arg-type]
    mix = GaussianMixture(process=Cosine(), **good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one observation"):
        mix.conditional({"a": torch.zeros(2, 1)}, {"a": torch.zeros(2)})
