"""The gradient theorem against closed forms: Gaussian students, mixtures as teachers, expectations by quadrature."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import scipy.optimize
import torch
from laws import GRID, at, hermite, integral, law, legendre, log_density, normal
from torch import Tensor

from unidiffuser.divergences import DIVERGENCES, find, ratio_weights
from unidiffuser.instruct import METHODS, Method, by_parts, divergence_loss, draw_levels, level_weight
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import Cosine, Process, RectifiedFlow, ScaledLinear

WIDE = (1e-12, 1e12)
TEACHER = ([0.35, 0.65], [-1.2, 1.0], [0.25, 0.25])
PROCESS = RectifiedFlow()
EXACT = Method(divergence="reverse-kl", weight="likelihood", bounds=WIDE)
THEOREM = [*DIVERGENCES, "power:0.5", "power:1.5"]
NARROW = (0.8, 0.4)
"""Mean and standard deviation of a student whose tails are thin enough for Neyman's int p^2 / q."""


def parameters(mean: float = 0.3, std: float = 1.25) -> Tensor:
    return torch.tensor([mean, std], dtype=torch.float64, requires_grad=True)


def loss(method: Method, theta: Tensor, t: Tensor, process: Process = PROCESS) -> Tensor:
    """The expectation of the loss at one noise level, over the student's noise z and the process's noise.

    x_t is a function of one rotation u of the two, along which a fine grid runs. Along the other, v, the loss and its
    gradient are polynomials of low degree, for which four points of Gauss and Hermite are exact.
    """
    u = torch.linspace(-8, 8, 401, dtype=torch.float64)
    v, w = hermite(4)
    weight = (torch.exp(-u.square() / 2) * (u[1] - u[0]) / math.sqrt(2 * math.pi)).repeat_interleave(4) * w.repeat(401)
    u, v = u.repeat_interleave(4), v.repeat(401)
    part = process.alpha(t) * theta[1].detach()
    length = torch.sqrt(part.square() + process.sigma(t).square())
    z, eps = (part * u - process.sigma(t) * v) / length, (process.sigma(t) * u + part * v) / length
    x0, levels = at(theta[0] + theta[1] * z, t)
    xt = {"a": process.add_noise(x0["a"], eps[:, None], levels["a"])}
    teacher, student = law(process, *TEACHER), normal(process, *theta.detach())
    log_ratio = teacher.log_prob(xt, levels) - student.log_prob(xt, levels)
    ratio = ratio_weights(find(method.divergence), log_ratio, method.bounds)
    omega = {"a": level_weight(method, process, levels["a"])}
    clean = teacher(xt, levels), student(xt, levels)
    return (weight * divergence_loss(method, process, x0, xt, levels, *clean, ratio, omega)).sum()


def gradient(value: Tensor, theta: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(value, theta)
    return slope


def objective(method: Method, theta: Tensor, t: Tensor, process: Process = PROCESS) -> Tensor:
    """E_p[omega psi ||F - T||^2] at one noise level, all of it a function of theta."""
    x = 2.0 * GRID / 3.0
    teacher, student = law(process, *TEACHER), normal(process, theta[0], theta[1])
    log_q, log_p = log_density(teacher, x, t), log_density(student, x, t)
    d = (student(*at(x, t))["a"] - teacher(*at(x, t))["a"])[:, 0]
    omega = level_weight(replace(method, estimator="expanded", matched=False), process, t.reshape(1))
    return omega[0] * integral(log_p.exp() * find(method.divergence).psi((log_q - log_p).exp()) * d.square(), x)


def divergence(name: str, theta: Tensor, t: Tensor | float, process: Process = PROCESS) -> Tensor:
    teacher, student = law(process, *TEACHER), normal(process, theta[0], theta[1])
    log_q, log_p = log_density(teacher, GRID, t), log_density(student, GRID, t)
    return integral(log_p.exp() * find(name).f((log_q - log_p).exp()))


@pytest.mark.parametrize("log_snr", [-0.8, 0.2, 1.3])
@pytest.mark.parametrize("name", THEOREM)
def test_the_gradient_is_that_of_the_expanded_divergence(name: str, log_snr: float) -> None:
    for process in (Cosine(), RectifiedFlow()):
        method, theta = replace(EXACT, divergence=name), parameters(*(NARROW if name == "neyman" else ()))
        t = process.t_of_log_snr(torch.tensor(log_snr))
        truth = gradient(objective(method, theta, t, process), theta)
        torch.testing.assert_close(gradient(loss(method, theta, t, process), theta), truth, rtol=1e-5, atol=1e-7)


def test_a_detached_weight_has_another_gradient_unless_it_is_constant() -> None:
    t = PROCESS.t_of_log_snr(torch.tensor(0.2))
    for name in THEOREM:
        theta = parameters(*(NARROW if name == "neyman" else ()))
        method = replace(EXACT, divergence=name)
        truth = gradient(objective(method, theta, t), theta)
        detached = gradient(loss(replace(method, ratio_gradient=False), theta, t), theta)
        error = ((detached - truth).norm() / truth.norm()).item()
        assert error < 1e-6 if name == "reverse-kl" else error > 0.02, name


@pytest.mark.parametrize("weight", ["x0", "karras", "dreamfusion"])
@pytest.mark.parametrize("draw", ["log_snr", "timestep"])
def test_the_integral_form_with_the_matching_weight_is_the_expanded_form(weight: str, draw: str) -> None:
    """Up to the ends: grad J = sum of the integral form + [W grad D] at the clean end - [W grad D] at the noisy one."""
    for name in ("reverse-kl", "forward-kl", "jensen-shannon"):
        expanded = Method(divergence=name, weight=weight, draw=draw, bounds=WIDE, low=0.1, high=0.9)  # type: ignore[arg-type]
        parts = by_parts(
            replace(expanded, flow=0.3, ratio_gradient=False, adaptive=True)
        )  # it gives the whole objective, whatever was left
        assert (parts.matched, parts.adaptive) == (True, False) and by_parts(parts) is parts
        theta = parameters()
        u, w = legendre(0.0, 1.0, 24)
        levels = draw_levels(expanded, PROCESS, u)
        total = {
            m: sum(weight * gradient(loss(m, theta, t), theta) for t, weight in zip(levels, w, strict=True))
            for m in (expanded, parts)
        }
        ends = draw_levels(expanded, PROCESS, torch.tensor([0.0, 1.0], dtype=torch.float64))
        clean, noisy = (outer_weight(expanded, t) * gradient(divergence(name, theta, t), theta) for t in ends)
        torch.testing.assert_close(total[parts] + clean - noisy, total[expanded], rtol=1e-5, atol=1e-7)


def outer_weight(method: Method, t: Tensor) -> Tensor:
    """W at a timestep, for draws over the unit interval: omega / SNR, as a density over lambda."""
    span = PROCESS.log_snr(torch.tensor([method.low, method.high])).diff().abs()[0]
    alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
    density = 1 / span if method.draw == "log_snr" else alpha * sigma / (method.high - method.low)  # dt/dlambda: flow
    return level_weight(method, PROCESS, t.reshape(1))[0] * density * (sigma / alpha).square()


def test_a_weight_that_lies_at_the_clean_end_cannot_be_matched() -> None:
    with pytest.raises(ValueError, match="clean end"):
        by_parts(Method(divergence="forward-kl", weight="likelihood"))


# The stationary points of a Gaussian student, mean and standard deviation, found elsewhere with other code.
DIRECT = {
    "reverse-kl": (0.188, 1.052),
    "forward-kl": (0.230, 1.162),
    "jensen-shannon": (0.224, 1.142),
    "jeffreys": (0.191, 1.083),
}
DETACHED = {
    "reverse-kl": (0.188, 1.052),
    "forward-kl": (0.230, 0.973),
    "jensen-shannon": (0.265, 1.022),
    "jeffreys": (0.231, 1.018),
}
SIM_DETACHED = {
    "reverse-kl": (0.214, 1.099),
    "forward-kl": (0.230, 0.973),
    "jensen-shannon": (0.237, 1.031),
    "jeffreys": (0.231, 1.040),
}


def stationary(slope: "Sequence[float] | object") -> tuple[float, float]:
    found = scipy.optimize.root(slope, [0.2, 1.1], tol=1e-6)
    assert found.success, found.message
    return float(found.x[0]), float(found.x[1])


@cache
def fixed_point(method: Method) -> tuple[float, float]:
    """Where the gradient summed over all noise levels vanishes."""
    nodes, weights = legendre(-5.0, 5.0, 28)
    levels = PROCESS.t_of_log_snr(nodes)

    def slope(values: Sequence[float]) -> list[float]:
        theta = parameters(*values)
        total = sum(w * loss(method, theta, t) for t, w in zip(levels, weights, strict=True))
        assert isinstance(total, Tensor)
        return gradient(total, theta).tolist()

    return stationary(slope)


@pytest.mark.parametrize("name", DIRECT)
def test_a_misspecified_student_comes_to_rest_at_the_minimum(name: str) -> None:
    def slope(values: Sequence[float]) -> list[float]:
        theta = parameters(*values)
        return gradient(divergence(name, theta, 0.0), theta).tolist()

    minimum = stationary(slope)
    assert minimum == pytest.approx(DIRECT[name], abs=1e-3)
    exact = replace(EXACT, divergence=name)
    assert fixed_point(exact) == pytest.approx(minimum, abs=1e-3)
    detached = fixed_point(replace(exact, ratio_gradient=False))
    assert detached == pytest.approx(DETACHED[name], abs=2e-3)
    assert (detached == pytest.approx(minimum, abs=2e-3)) == (name == "reverse-kl")
    as_coded = fixed_point(replace(exact, ratio_gradient=False, flow=0.0))
    assert as_coded == pytest.approx(SIM_DETACHED[name], abs=2e-3)


def test_the_student_of_a_forward_kl_matches_the_moments_and_a_detached_one_covers_less_than_the_reverse_kl() -> None:
    weights, means, variances = (torch.tensor(x) for x in TEACHER)
    mean = (weights * means).sum()
    std = ((weights * (variances + means.square())).sum() - mean.square()).sqrt()
    forward = replace(EXACT, divergence="forward-kl")
    assert fixed_point(forward) == pytest.approx((mean.item(), std.item()), abs=1e-3)
    assert fixed_point(replace(forward, ratio_gradient=False))[1] < fixed_point(EXACT)[1] < std


def test_the_forms_in_scores_and_in_noise_are_the_same() -> None:
    """The theorem written with scores and 1/2 g^2 dt, and with eps and half d(log alpha^2 / sigma^2)."""
    process = ScaledLinear()
    g = torch.Generator().manual_seed(0)
    t = torch.rand(64, generator=g, dtype=torch.float64) * 0.9 + 0.05
    eps = torch.randn(64, 1, generator=g, dtype=torch.float64)
    weights = ratio_weights(find("jensen-shannon"), torch.randn(64, generator=g).double(), WIDE)
    method = replace(EXACT, divergence="jensen-shannon")
    teacher, student = law(process, *TEACHER), law(process, [1.0], [0.3], [1.2])
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    snr = (alpha / sigma).square()[:, 0]

    def ours(x0: Tensor) -> Tensor:
        xt = {"a": alpha * x0 + sigma * eps}
        omega = {"a": snr}
        clean = [mix(xt, {"a": t}) for mix in (teacher, student)]
        return divergence_loss(method, process, {"a": x0}, xt, {"a": t}, *clean, weights, omega)

    def in_scores(x0: Tensor) -> Tensor:
        """1/2 g^2 dt = sigma^2 d(-lambda)."""
        xt = alpha * x0 + sigma * eps
        s_q, s_p = (process.score_from_x0(mix({"a": xt}, {"a": t})["a"], xt, t) for mix in (teacher, student))
        a = -(xt - alpha * x0) / sigma**2
        delta = s_p - s_q
        first, second = (delta * (a - s_p)).sum(1), (delta * delta).sum(1)
        third = (2 * weights.psi_1 * first - weights.psi_2 * second).detach() * ((s_q - s_p).detach() * xt).sum(1)
        return sigma[:, 0] ** 2 * (2 * weights.psi * first + weights.flow * second + third)

    def in_noise(x0: Tensor) -> Tensor:
        xt = alpha * x0 + sigma * eps
        real, fake = (process.eps_from_x0(mix({"a": xt}, {"a": t})["a"], xt, t) for mix in (teacher, student))
        noise = (xt - alpha * x0) / sigma
        first, second = ((real - fake) * (fake - noise)).sum(1), (real - fake).square().sum(1)
        moved = (2 * weights.psi_1 * first - weights.psi_2 * second).detach()
        third = moved * (((fake - real) / sigma).detach() * xt).sum(1)
        return 2 * weights.psi * first + weights.flow * second + third

    x0 = torch.randn(64, 1, generator=g, dtype=torch.float64)
    results = []
    for form in (ours, in_scores, in_noise):
        leaf = x0.clone().requires_grad_()
        value = form(leaf)
        results.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
    for value, slope in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(slope, results[0][1])


def test_the_sum_over_a_thousand_steps_is_the_divergence_between_the_first_and_the_last() -> None:
    """Stable Diffusion's table, two Gaussians: the trapezoidal rule over lambda against the textbook's KL."""
    process = ScaledLinear()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, sigma = process.alpha(t), process.sigma(t)
    m, a, b = 0.7, 0.8, 1.5  # N(m, a) and N(0, b)
    spread = [alpha**2 * v + sigma**2 for v in (a, b)]
    kl = 0.5 * (spread[0] / spread[1] - 1 + (alpha * m) ** 2 / spread[1] + (spread[1] / spread[0]).log())
    teacher, student = law(process, [1.0], [0.0], [b]), law(process, [1.0], [m], [a])
    z, w = hermite(32)
    values = []
    for k in range(1000):
        x = alpha[k] * m + spread[0][k].sqrt() * z
        d = (student(*at(x, t[k]))["a"] - teacher(*at(x, t[k]))["a"])[:, 0]
        values.append((alpha[k] / sigma[k]).square() * (w * d.square()).sum())
    total = torch.trapezoid(torch.stack(values), -process.log_snr(t))
    assert total.item() == pytest.approx((kl[0] - kl[-1]).item(), rel=1e-3)


# Two modalities, each at a timestep of its own.

AXIS = torch.linspace(-7, 7, 141, dtype=torch.float64)


def pair(weights: list[float], a: list[float], b: list[float], std: list[list[float]]) -> GaussianMixture:
    """A mixture over two numbers of two modalities."""
    stds = torch.tensor(std, dtype=torch.float64)
    means = {"a": torch.tensor(a, dtype=torch.float64)[:, None], "b": torch.tensor(b, dtype=torch.float64)[:, None]}
    return GaussianMixture(
        process=PROCESS,
        weights=torch.tensor(weights, dtype=torch.float64),
        means=means,
        stds={"a": stds[:, :1], "b": stds[:, 1:]},
    )


STUDENT_2 = pair([0.5, 0.5], [-0.8, 0.9], [0.4, -0.6], [[0.8, 0.7], [0.7, 0.9]])
TEACHER_2 = pair([0.4, 0.6], [-1.0, 0.7], [0.8, -0.7], [[0.7, 0.8], [0.8, 0.6]])


def on_grid(s: Tensor, t: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """All points of a grid that shrinks with alpha, at timesteps (s, t); and the weight of each."""
    axes = [AXIS * (PROCESS.alpha(x) + PROCESS.sigma(x)) for x in (s, t)]
    x, y = (grid.reshape(-1, 1) for grid in torch.meshgrid(*axes, indexing="ij"))
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    return {"a": x, "b": y}, {"a": s.expand(len(x)), "b": t.expand(len(x))}, cell


def rates(name: str, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E_p[psi SNR ||d||^2] of each modality: how fast the divergence falls along -lambda of that modality."""
    xt, levels, cell = on_grid(s, t)
    log_q, log_p = TEACHER_2.log_prob(xt, levels), STUDENT_2.log_prob(xt, levels)
    weight = cell * log_p.exp() * find(name).psi((log_q - log_p).exp())
    fake, real = STUDENT_2(xt, levels), TEACHER_2(xt, levels)
    snr = {m: (PROCESS.alpha(x) / PROCESS.sigma(x)).square() for m, x in (("a", s), ("b", t))}
    found = [snr[m] * (weight * (fake[m] - real[m])[:, 0].square()).sum() for m in ("a", "b")]
    return found[0], found[1]


def divergence_2(name: str, s: Tensor, t: Tensor) -> Tensor:
    xt, levels, cell = on_grid(s, t)
    log_q, log_p = TEACHER_2.log_prob(xt, levels), STUDENT_2.log_prob(xt, levels)
    return (cell * log_p.exp() * find(name).f((log_q - log_p).exp())).sum()


HIGH, LOW = 4.0, -4.0  # log-SNR of the clean and of the noisy corner


def along(name: str, path: "list[tuple[float, float]]") -> Tensor:
    """The line integral of both rates along a path of corners in the square of log-SNRs, by Gauss-Legendre."""
    total = torch.zeros((), dtype=torch.float64)
    u, w = legendre(0.0, 1.0, 24)
    for (a, b), (a_end, b_end) in pairwise(path):
        for share, weight in zip(u, w, strict=True):
            s, t = (PROCESS.t_of_log_snr(x + share * (end - x)) for x, end in ((a, a_end), (b, b_end)))
            rate_a, rate_b = rates(name, s, t)
            total += weight * (rate_a * (a - a_end) + rate_b * (b - b_end))
    return total


@pytest.mark.parametrize("name", ["reverse-kl", "forward-kl", "jensen-shannon"])
def test_every_path_through_two_timesteps_has_the_same_sum(name: str) -> None:
    clean, noisy = (PROCESS.t_of_log_snr(torch.tensor(x)) for x in (HIGH, LOW))
    expected = divergence_2(name, clean, clean) - divergence_2(name, noisy, noisy)
    middle, corners = [(HIGH, HIGH), (LOW, LOW)], ((HIGH, LOW), (LOW, HIGH))
    paths = [[middle[0], *via, middle[1]] for via in ((), corners[:1], corners[1:], ((1.0, 2.0), (-2.5, 0.5)))]
    for path in paths:
        assert along(name, path).item() == pytest.approx(expected.item(), rel=2e-3)


def test_the_four_edges_are_the_chain_rule() -> None:
    """KL(joint) = KL of the marginals of b + the mean KL of a given b, each an edge of the square; and with a first."""
    name = "forward-kl"
    whole, first_b, first_a = (
        along(name, path)
        for path in (
            [(HIGH, HIGH), (LOW, LOW)],
            [(LOW, HIGH), (LOW, LOW)],  # a is noise: the marginals of b
            [(HIGH, LOW), (LOW, LOW)],
        )
    )
    # The marginals in one dimension, by quadrature of their own.
    for m, edge in (("b", first_b), ("a", first_a)):
        q, p = (mix.marginal([m]) for mix in (TEACHER_2, STUDENT_2))
        x = {m: GRID[:, None]}
        log_q, log_p = (mix.log_prob(x, {m: torch.zeros(len(GRID))}) for mix in (q, p))
        kl = integral(log_q.exp() * (log_q - log_p))
        assert edge.item() == pytest.approx(kl.item(), abs=2e-3)
    for edge, rest in ((first_b, [(HIGH, HIGH), (LOW, HIGH)]), (first_a, [(HIGH, HIGH), (HIGH, LOW)])):
        assert (along(name, rest) + edge).item() == pytest.approx(whole.item(), rel=2e-3)


def test_the_edge_of_a_given_modality_is_the_mean_divergence_of_the_conditionals() -> None:
    """b clean and shared by both laws: E_b D(q(a | b) || p(a | b)) along the edge where b stays at t = 0."""
    b = torch.tensor([-1.5, -0.4, 0.3, 1.1], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    for name in ("reverse-kl", "jensen-shannon"):
        for value in b:
            q, p = (mix.conditional({"b": value.reshape(1, 1)}, {"b": zero}) for mix in (TEACHER_2, STUDENT_2))
            log_q, log_p = (log_density(mix, GRID, 0.0) for mix in (q, p))
            truth = integral(log_p.exp() * find(name).f((log_q - log_p).exp()))
            nodes, weights = legendre(-7.0, 6.0, 40)
            edge = torch.zeros((), dtype=torch.float64)
            for log_snr, weight in zip(nodes, weights, strict=True):
                t = PROCESS.t_of_log_snr(log_snr)
                x = GRID * (PROCESS.alpha(t) + PROCESS.sigma(t))
                joint = {"a": x[:, None], "b": value.expand(len(x), 1)}
                levels = {"a": t.expand(len(x)), "b": zero.expand(len(x))}
                # What a network is asked at (t, 0): both clean estimates of the joint laws.
                fake, real = (mix(joint, levels)["a"][:, 0] for mix in (STUDENT_2, TEACHER_2))
                log_q, log_p = log_density(q, x, t), log_density(p, x, t)
                psi = find(name).psi((log_q - log_p).exp())
                edge += weight * (2 * log_snr).exp() * integral(log_p.exp() * psi * (fake - real).square(), x)
            assert edge.item() == pytest.approx(truth.item(), rel=1e-4)


def test_the_gradient_over_two_timesteps_weighs_one_modality_and_moves_with_both() -> None:
    """Only a's error counts (omega of b is 0), but the ratio in its weight depends on b too."""
    s, t = (PROCESS.t_of_log_snr(torch.tensor(x)) for x in (0.4, -0.3))
    values = torch.tensor([0.2, 1.0, -0.1, 0.9], dtype=torch.float64, requires_grad=True)

    def student(theta: Tensor) -> GaussianMixture:
        one = torch.ones(1, dtype=torch.float64)
        means, stds = ({m: theta[i + k].reshape(1, 1) for i, m in ((0, "a"), (2, "b"))} for k in (0, 1))
        return GaussianMixture(process=PROCESS, weights=one, means=means, stds=stds)

    z, w = hermite(14)
    grids = torch.meshgrid(z, z, z, z, indexing="ij")
    weight = math.prod(torch.meshgrid(w, w, w, w, indexing="ij"), start=torch.ones(())).flatten()
    z_a, z_b, eps_a, eps_b = (grid.reshape(-1, 1) for grid in grids)
    levels = {"a": s.expand(len(z_a)), "b": t.expand(len(z_a))}
    for name in ("forward-kl", "jensen-shannon"):
        x0 = {"a": values[0] + values[1] * z_a, "b": values[2] + values[3] * z_b}
        xt = {m: PROCESS.add_noise(x0[m], eps, levels[m]) for m, eps in (("a", eps_a), ("b", eps_b))}
        fake = student(values.detach())
        log_ratio = TEACHER_2.log_prob(xt, levels) - fake.log_prob(xt, levels)
        weights = ratio_weights(find(name), log_ratio, WIDE)
        omega = {"a": torch.ones(()), "b": torch.zeros(())}
        method = replace(EXACT, divergence=name)
        each = divergence_loss(method, PROCESS, x0, xt, levels, TEACHER_2(xt, levels), fake(xt, levels), weights, omega)
        found = gradient((weight * each).sum(), values)
        grid, at_grid, cell = on_grid(s, t)
        moving = student(values)
        log_q, log_p = TEACHER_2.log_prob(grid, at_grid), moving.log_prob(grid, at_grid)
        d = (moving(grid, at_grid)["a"] - TEACHER_2(grid, at_grid)["a"])[:, 0]
        truth = gradient((cell * log_p.exp() * find(name).psi((log_q - log_p).exp()) * d.square()).sum(), values)
        torch.testing.assert_close(found, truth, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"estimator": "x"}, {"draw": "x"}, {"weight": "x"}, {"divergence": "x"}, {"low": 0.0}]
)
def test_what_is_no_method_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(METHODS["uni-instruct"], **wrong)  # type: ignore[arg-type]
