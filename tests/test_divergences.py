"""Every row of the table against its definition: finite differences, closed forms, and the expansion by quadrature."""

import math

import pytest
import torch
from laws import GRID, at, integral, law, legendre, log_density
from torch import Tensor

from unidiffuser.divergences import DIVERGENCES, Divergence, Function, find, power, ratio_weights
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import Cosine, Process, RectifiedFlow

ROWS = [*DIVERGENCES, "power:0.3", "power:-0.7", "power:1.6"]
R = torch.logspace(-1.5, 1.5, 25, dtype=torch.float64)

# Two mixtures and their divergences, found elsewhere by quadrature to seven digits.
STUDENT = ([0.5, 0.5], [-1.0, 1.2], [0.5, 0.8])
TEACHER = ([0.3, 0.7], [-1.5, 0.8], [0.6, 0.5])
REFERENCE = {
    "reverse-kl": 0.1800509,
    "forward-kl": 0.1592232,
    "jensen-shannon": 0.0798184,
    "pearson": 0.3550005,
    "neyman": 0.8047304,
    "hellinger": 0.0819795,
    "le-cam": 0.0765281,
    "softened-reverse-kl": 0.1002325,
}


def divergence(row: Divergence, teacher: GaussianMixture, student: GaussianMixture, t: float | Tensor = 0.0) -> Tensor:
    """E_p f(q / p) by quadrature."""
    log_q, log_p = (log_density(mix, GRID, t) for mix in (teacher, student))
    return integral(log_p.exp() * row.f((log_q - log_p).exp()))


@pytest.mark.parametrize("name", ROWS)
def test_the_columns_are_the_derivatives_of_f(name: str) -> None:
    row, h = find(name), 1e-3 * R

    def slope(function: Function) -> Tensor:
        return (function(R + h) - function(R - h)) / (2 * h)

    def curvature(function: Function) -> Tensor:
        return (function(R + h) - 2 * function(R) + function(R - h)) / h**2

    assert row.f(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(0.0, abs=1e-12)
    assert bool((slope(row.f).diff() > 0).all())  # convex
    torch.testing.assert_close(R**2 * curvature(row.f), row.psi(R), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(R * slope(row.psi), row.psi_1(R), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(R**2 * curvature(row.psi), row.psi_2(R), rtol=1e-5, atol=1e-7)
    assert row.needs_ratio == (row.psi(R).std().item() > 0)


def test_the_mixtures_of_rows_are_mixtures() -> None:
    forward, reverse = find("forward-kl"), find("reverse-kl")
    for name, a, b in (("jeffreys", 1.0, 1.0), ("jkl", 0.4, 0.6)):
        torch.testing.assert_close(find(name).f(R), a * forward.f(R) + b * reverse.f(R))
    scaled = {"pearson": (2.0, 2.0), "neyman": (-1.0, 2.0), "hellinger": (0.5, 0.5)}
    for name, (a, factor) in scaled.items():  # f may differ by a multiple of r - 1, which changes no divergence
        torch.testing.assert_close(find(name).psi(R), factor * power(a).psi(R))


def test_gaussians_have_the_textbook_divergences() -> None:
    a, b, m = 1.0, 1.5, 0.7
    student, teacher = law(Cosine(), [1.0], [m], [a]), law(Cosine(), [1.0], [0.0], [b])
    textbook = {
        "reverse-kl": 0.5 * (a / b - 1 + m**2 / b + math.log(b / a)),
        "forward-kl": 0.5 * (b / a - 1 + m**2 / a + math.log(a / b)),
        "pearson": a / math.sqrt(b * (2 * a - b)) * math.exp(m**2 / (2 * a - b)) - 1,
        "hellinger": 2 * (1 - math.sqrt(2 * math.sqrt(a * b) / (a + b)) * math.exp(-(m**2) / (4 * (a + b)))),
    }
    assert list(textbook.values()) == pytest.approx([0.1993992, 0.2922674, 2.0766491, 0.1149739], abs=1e-7)
    for name, value in textbook.items():
        assert divergence(find(name), teacher, student).item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("name", REFERENCE)
def test_mixtures_have_the_reference_divergences(name: str) -> None:
    student, teacher = law(Cosine(), *STUDENT), law(Cosine(), *TEACHER)
    assert divergence(find(name), teacher, student).item() == pytest.approx(REFERENCE[name], abs=1e-7)


@pytest.mark.parametrize("process", [Cosine(), RectifiedFlow()], ids=["cosine", "rectified_flow"])
@pytest.mark.parametrize("name", ROWS)
def test_the_expansion_over_noise_levels_is_the_divergence(name: str, process: Process) -> None:
    """D(q_0 || p_0) - D(q_T || p_T) = int E_p[psi SNR ||F - T||^2] d(-lambda), the levels by Gauss-Legendre."""
    row, student, teacher = find(name), law(process, *STUDENT), law(process, *TEACHER)
    low, high = -7.0, 8.0
    nodes, weights = legendre(low, high, 80)
    total = torch.zeros((), dtype=torch.float64)
    for log_snr, weight in zip(nodes, weights, strict=True):
        t = process.t_of_log_snr(log_snr)
        # What matters is where alpha x is.
        x = GRID * (process.alpha(t) + process.sigma(t))
        log_q, log_p = (log_density(mix, x, t) for mix in (teacher, student))
        fake, real = (mix(*at(x, t))["a"][:, 0] for mix in (student, teacher))
        psi = row.psi((log_q - log_p).exp())
        total += weight * integral(log_p.exp() * psi * (2 * log_snr).exp() * (fake - real).square(), x)
    ends = [divergence(row, teacher, student, process.t_of_log_snr(torch.tensor(x))) for x in (high, low)]
    torch.testing.assert_close(total, ends[0] - ends[1], rtol=2e-6, atol=1e-8)
    # What lies beyond the levels: at the noisy end little is left, at the clean end nothing is lost.
    assert ends[1] < 1e-4 and ends[0].item() == pytest.approx(divergence(row, teacher, student).item(), rel=1e-4)


def test_the_expansion_of_two_gaussians_is_the_known_integral_over_variances() -> None:
    """Variance exploding: with v = (sigma / alpha)^2, KL(p || q) = 1/2 int (A-B)^2 / ((A+v)(B+v)^2) + m^2 / (B+v)^2 dv.

    The forward KL swaps A and B. Each E_p[psi SNR ||F - T||^2] d(-lambda), d(-lambda) = dv / 2v, is its bracket dv.
    """
    a, b, m = 1.0, 1.5, 0.7
    process = RectifiedFlow()
    student, teacher = law(process, [1.0], [m], [a]), law(process, [1.0], [0.0], [b])
    for name, (near, far), kl in (("reverse-kl", (a, b), 0.1993992), ("forward-kl", (b, a), 0.2922674)):
        total = torch.zeros((), dtype=torch.float64)
        nodes, weights = legendre(-9.0, 9.0, 80)
        for log_snr, weight in zip(nodes, weights, strict=True):
            t = process.t_of_log_snr(log_snr)
            x = GRID * (process.alpha(t) + process.sigma(t))
            log_q, log_p = (log_density(mix, x, t) for mix in (teacher, student))
            fake, real = (mix(*at(x, t))["a"][:, 0] for mix in (student, teacher))
            psi, v = find(name).psi((log_q - log_p).exp()), torch.exp(-2 * log_snr)
            rate = integral(log_p.exp() * psi / v * (fake - real).square(), x) / (2 * v)
            bracket = 0.5 * ((near - far) ** 2 / ((near + v) * (far + v) ** 2) + m**2 / (far + v) ** 2)
            torch.testing.assert_close(rate, bracket, rtol=1e-6, atol=1e-12)
            total += weight * 2 * v * bracket
        assert total.item() == pytest.approx(kl, abs=1e-6)


def test_ratios_are_held_between_bounds_and_counted() -> None:
    row = find("pearson")
    log_ratio = torch.tensor([0.0, 1000.0, -1000.0, float("nan"), 2.0])
    weights = ratio_weights(row, log_ratio, (0.1, 20.0))
    assert weights.clipped.tolist() == [False, True, True, True, False]
    torch.testing.assert_close(weights.psi, 2 * torch.tensor([1.0, 20.0, 0.1, 1.0, math.exp(2.0)]).square())
    assert weights.psi_1.tolist()[1:4] == [0, 0, 0] == weights.psi_2.tolist()[1:4]
    torch.testing.assert_close(weights.flow, weights.psi - weights.psi_1)
    with pytest.raises(ValueError, match="two bounds"):
        ratio_weights(row, log_ratio, (2.0, 1.0))


def test_the_weight_is_that_of_the_ratio_itself() -> None:
    """Known logits give known weights: r = exp(logit), whatever a loss of the discriminator would be."""
    logit = torch.tensor([-1.0, 0.0, 1.5])
    for name in DIVERGENCES:
        expected = find(name).psi(logit.exp())
        torch.testing.assert_close(ratio_weights(find(name), logit, (1e-3, 1e3)).psi, expected)


def test_a_clipped_divergence_is_one_too() -> None:
    """psi clipped is r^2 f'' of a convex f: Pearson's, between laws for which it is infinite, becomes finite."""
    process = Cosine()
    student, teacher = law(process, [1.0], [0.0], [0.4]), law(process, [1.0], [0.0], [1.0])
    log_q, log_p = (log_density(mix, GRID, 0.0) for mix in (teacher, student))
    unclipped = integral(log_p.exp() * find("pearson").psi((log_q - log_p).exp()))
    clipped = integral(log_p.exp() * ratio_weights(find("pearson"), log_q - log_p, (0.1, 20.0)).psi)
    assert unclipped > 1e6 and 1 < clipped < 10


@pytest.mark.parametrize("name", ["forward", "power:x", "power:99", "power:nan", ""])
def test_what_is_no_divergence_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="there is no divergence"):
        find(name)
