"""Every process against its definition, and every conversion against every other."""

import math

import pytest
import torch
from torch import Tensor

from unidiffuser.process import PROCESSES, Prediction, Process, RectifiedFlow, ScaledLinear, VariancePreserving

ALL = pytest.mark.parametrize("process", [make() for make in PROCESSES.values()], ids=list(PROCESSES))
PREDICTIONS: tuple[Prediction, ...] = ("eps", "v", "x0")
T = torch.tensor([0.0, 1e-3, 0.02, 0.3, 0.5, 0.77, 0.999, 1.0], dtype=torch.float64)


def draw(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, n, 3, 2, generator=generator, dtype=torch.float64))


@ALL
def test_levels_run_from_data_to_noise(process: Process) -> None:
    t = torch.linspace(0, 1, 2001)
    alpha, sigma, log_snr = process.alpha(t), process.sigma(t), process.log_snr(t)
    assert (alpha[0], sigma[0], log_snr[0]) == (1, 0, math.inf)
    assert alpha.dtype == sigma.dtype == log_snr.dtype == torch.float64
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all() and (log_snr.diff() < 0).all()
    one = alpha + sigma if isinstance(process, RectifiedFlow) else alpha**2 + sigma**2
    torch.testing.assert_close(one, torch.ones_like(one), rtol=0, atol=1e-15)
    torch.testing.assert_close(log_snr[1:-1], (alpha / sigma).log()[1:-1])


@pytest.mark.parametrize("name", ["cosine", "rectified_flow"])
def test_noise_ends_are_exact(name: str) -> None:
    process = PROCESSES[name]()
    one = torch.ones(1)
    assert (process.alpha(one), process.sigma(one), process.log_snr(one)) == (0, 1, -math.inf)


def test_scaled_linear_is_the_released_table() -> None:
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, 0)
    n = torch.arange(1, 1001)
    for t in (n / 1000, n.double() / 1000):
        torch.testing.assert_close(ScaledLinear().alpha(t) ** 2, alpha_bar, rtol=1e-6, atol=0)
    published = {1: 0.99915, 500: 0.27767, 1000: 0.0046601}
    for step, value in published.items():
        assert ScaledLinear().alpha(torch.tensor([step / 1000])).item() ** 2 == pytest.approx(value, rel=1e-4)


def test_linear_integrates_its_beta() -> None:
    process = PROCESSES["linear"]()
    assert isinstance(process, VariancePreserving)
    t = torch.linspace(0, 0.7, 100_001, dtype=torch.float64)
    log_alpha = -0.5 * torch.trapezoid(0.1 + t * 19.9, t)
    assert process.log_alpha(t[-1:]).item() == pytest.approx(log_alpha.item(), rel=1e-9)


@ALL
def test_log_snr_has_its_inverse(process: Process) -> None:
    t = torch.linspace(1e-3, 0.999, 777, dtype=torch.float64)
    torch.testing.assert_close(process.t_of_log_snr(process.log_snr(t)), t, rtol=1e-8, atol=1e-9)
    assert process.t_of_log_snr(torch.tensor([1e3])).item() == pytest.approx(0.0, abs=1e-9)
    assert process.t_of_log_snr(torch.tensor([-1e3])).item() == pytest.approx(1.0, abs=1e-9)


@ALL
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_give_back_data_and_noise(process: Process, prediction: Prediction) -> None:
    inner = (process.alpha(T) > 0) & (process.sigma(T) > 0)
    t = T[inner]
    x0, eps = draw(len(t))
    xt = process.add_noise(x0, eps, t)
    output = process.target(prediction, x0, eps, t)
    torch.testing.assert_close(process.x0_from(prediction, output, xt, t), x0)
    torch.testing.assert_close(process.eps_from_x0(x0, xt, t), eps, rtol=1e-7, atol=1e-9)
    sigma = process.sigma(t).reshape(-1, 1, 1)
    torch.testing.assert_close(process.score_from_x0(x0, xt, t), -eps / sigma, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(process.v_from_x0(x0, xt, t), process.target("v", x0, eps, t), rtol=1e-7, atol=1e-9)


@ALL
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ends_are_exact_and_finite(process: Process, prediction: Prediction) -> None:
    ends = torch.tensor([0.0, 1.0])
    x0, eps = (x.float() for x in draw(2))
    xt = process.add_noise(x0, eps, ends)
    assert torch.equal(xt[0], x0[0])
    output = torch.full_like(x0, 3.0)
    found = process.x0_from(prediction, output, xt, ends)
    assert torch.equal(found[0], x0[0])
    for tensor in (
        found,
        *(f(found, xt, ends) for f in (process.eps_from_x0, process.v_from_x0, process.score_from_x0)),
    ):
        assert tensor.isfinite().all()


@ALL
def test_error_scale_is_the_ratio_of_errors(process: Process) -> None:
    t = T[1:]
    x0, eps = draw(len(t))
    xt, wrong = process.add_noise(x0, eps, t), x0 + 0.1
    scale = process.x0_error_scale("eps", t).reshape(-1, 1, 1)
    moved = process.eps_from_x0(x0, xt, t) - process.eps_from_x0(wrong, xt, t)
    torch.testing.assert_close(moved, (0.1 * scale).expand_as(moved))
    scale = process.x0_error_scale("v", t).reshape(-1, 1, 1)
    moved = process.v_from_x0(x0, xt, t) - process.v_from_x0(wrong, xt, t)
    torch.testing.assert_close(moved, (0.1 * scale).expand_as(moved))
    assert (process.x0_error_scale("x0", T) == 1).all()


@pytest.mark.parametrize("name, speed", [("cosine", math.pi / 2), ("rectified_flow", 1.0)])
def test_velocity_is_the_derivative_of_the_path(name: str, speed: float) -> None:
    process = PROCESSES[name]()
    t, d = T[2:-2], 1e-5
    x0, eps = draw(len(t))
    slope = (process.add_noise(x0, eps, t + d) - process.add_noise(x0, eps, t - d)) / (2 * d)
    torch.testing.assert_close(speed * process.target("v", x0, eps, t), slope, rtol=1e-6, atol=1e-6)
