"""Every solver against the exact flow of a mixture: its order, its ends, and the released one written anew."""

import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unidiffuser.joint import Joint
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import PROCESSES, Cosine, Process, ScaledLinear
from unidiffuser.solvers import SOLVERS, Flow, Levels, State, integrate

DETERMINISTIC = [name for name, row in SOLVERS.items() if not row.stochastic]
Paths = dict[str, Tensor]


def mixture(process: Process) -> GaussianMixture:
    """Three components over two modalities: the flow is far from linear, and each modality depends on the other."""
    return GaussianMixture(
        process=process,
        weights=torch.tensor([0.3, 0.5, 0.2]),
        means={"a": torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]]), "b": torch.tensor([[1.0], [-1.0], [0.2]])},
        stds={"a": torch.tensor(0.6), "b": torch.tensor(0.5)},
    )


def flow_along(mix: GaussianMixture, paths: Paths, noise: list[Joint] | None = None) -> Flow:
    def evaluate(x: Joint, node: int) -> Joint:
        batch = len(next(iter(x.values())))
        return mix(x, {m: t[node].expand(batch) for m, t in paths.items()})

    levels = {m: Levels.along(mix.process, t) for m, t in paths.items()}
    steps = len(next(iter(paths.values()))) - 1
    return Flow(evaluate, levels, lambda purpose: (noise or [])[int(purpose.split("/")[1])], steps)


def run(name: str, mix: GaussianMixture, paths: Paths, x: Joint, noise: list[Joint] | None = None) -> Joint:
    *_, state = integrate(SOLVERS[name].step, flow_along(mix, paths, noise), x)
    return state.x


def noisy(mix: GaussianMixture, paths: Paths, n: int, seed: int = 0) -> Joint:
    """Samples of the noised mixture where the paths start."""
    generator = torch.Generator().manual_seed(seed)
    x0 = mix.sample(n, generator)
    eps = {s: torch.randn(x.shape, generator=generator, dtype=torch.float64) for s, x in x0.items()}
    return {s: mix.process.add_noise(x, eps[s], paths[s][0].expand(n)) for s, x in x0.items()}


def order_paths(process: Process, u: Tensor) -> Paths:
    """t from 0.95 to 0.05 as smooth functions of u, at another pace for each modality.

    u^2 makes the first steps small: a multistep solver starts at order 1, and this start must not drown its order.
    """
    first, last = process.log_snr(torch.tensor([0.95, 0.05], dtype=torch.float64))
    pace = {"a": u**2, "b": u**2 * (1.3 - 0.3 * u)}
    return {m: process.t_of_log_snr(torch.lerp(first, last, share)) for m, share in pace.items()}


def exact_flow(mix: GaussianMixture, x: Joint, steps: int) -> Joint:
    """Runge and Kutta's method of order 4 on d(x / sigma) = D d(alpha / sigma): it knows nothing of our solvers."""
    paths = order_paths(mix.process, torch.linspace(0, 1, 2 * steps + 1, dtype=torch.float64))
    sigma = {m: mix.process.sigma(t) for m, t in paths.items()}
    u = torch.linspace(0, 1, 2 * steps + 1, dtype=torch.float64)
    speed = {m: derivative(mix.process, m, u) for m in paths}
    y = {m: value / sigma[m][0] for m, value in x.items()}

    def slope(y: Joint, i: int) -> Joint:
        t = {m: path[i].expand(len(y[m])) for m, path in paths.items()}
        x0 = mix({m: sigma[m][i] * value for m, value in y.items()}, t)
        return {m: speed[m][i] * x0[m] for m in y}

    h = 1.0 / steps
    for i in range(0, 2 * steps, 2):
        k1 = slope(y, i)
        k2 = slope({m: y[m] + h / 2 * k1[m] for m in y}, i + 1)
        k3 = slope({m: y[m] + h / 2 * k2[m] for m in y}, i + 1)
        k4 = slope({m: y[m] + h * k3[m] for m in y}, i + 2)
        y = {m: y[m] + h / 6 * (k1[m] + 2 * k2[m] + 2 * k3[m] + k4[m]) for m in y}
    return {m: sigma[m][-1] * value for m, value in y.items()}


def derivative(process: Process, modality: str, u: Tensor) -> Tensor:
    """d(alpha / sigma) / du = exp(lambda) dlambda/du along a path."""
    first, last = process.log_snr(torch.tensor([0.95, 0.05], dtype=torch.float64))
    share, rate = (u**2, 2 * u) if modality == "a" else (1.3 * u**2 - 0.3 * u**3, 2.6 * u - 0.9 * u**2)
    return torch.exp(torch.lerp(first, last, share)) * (last - first) * rate


def distance(x: Joint, y: Joint) -> float:
    return math.sqrt(sum((x[s] - y[s]).square().mean().item() for s in x))


@cache
def start_and_truth(process: Process) -> tuple[Joint, Joint]:
    """Where the paths of `order_paths` start, and where the exact flow ends."""
    mix = mixture(process)
    x = noisy(mix, order_paths(process, torch.zeros(1, dtype=torch.float64)), 32)
    return x, exact_flow(mix, x, 150)


@pytest.mark.parametrize("process", [Cosine(), PROCESSES["rectified_flow"]()], ids=["cosine", "rectified_flow"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_measured_order_is_the_claimed_one(name: str, process: Process) -> None:
    x, truth = start_and_truth(process)
    errors = {}
    for n in (59, 119):  # both 2 more than a multiple of 3: dpm_single_3 then has no lone last step
        paths = order_paths(process, torch.linspace(0, 1, n + 1, dtype=torch.float64))
        errors[n] = distance(truth, run(name, mixture(process), paths, x))
    order = math.log(errors[59] / errors[119]) / math.log(119 / 59)
    assert order == pytest.approx(SOLVERS[name].order, abs=0.25)


@pytest.mark.parametrize("name", [name for name, row in SOLVERS.items() if row.stochastic and row.order])
def test_measured_weak_order_is_the_claimed_one(name: str) -> None:
    """The law's error, seen in E[x^2]: its change from n to 2n steps falls by 2^order from one doubling to the next.

    All step sizes follow one Brownian path, so that the changes have little noise.
    """
    process = Cosine()
    mix = mixture(process).marginal(["b"])
    first, last = process.log_snr(torch.tensor([0.95, 0.05], dtype=torch.float64))
    sizes = (64, 32, 16)
    paths = {n: {"b": process.t_of_log_snr(torch.linspace(first, last, n + 1, dtype=torch.float64))} for n in sizes}
    x = noisy(mix, paths[16], 30_000)
    eps = torch.randn(64, 30_000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moments = []
    for n in sizes:
        moments.append(run(name, mix, paths[n], x, [{"b": e} for e in eps])["b"].square().mean())
        eps = halved(Levels.along(process, paths[n]["b"]), eps)
    order = math.log2(abs(moments[2] - moments[1]) / abs(moments[1] - moments[0]))
    assert order == pytest.approx(SOLVERS[name].order, abs=0.25)


def halved(levels: Levels, eps: Tensor) -> Tensor:
    """The noise of steps twice as long: two steps of the reverse SDE with D = 0, seen as one."""

    def step(i: int, j: int) -> tuple[float, float]:
        ratio = levels.sigma[j] / levels.sigma[i]
        keep = ratio * levels.alpha[i] / levels.alpha[j]
        return ratio * keep, levels.sigma[j] * math.sqrt(1 - keep**2)

    pairs = []
    for i in range(0, len(eps), 2):
        (_, near), (carry, far), (_, both) = step(i, i + 1), step(i + 1, i + 2), step(i, i + 2)
        pairs.append((carry * near * eps[i] + far * eps[i + 1]) / both)
    return torch.stack(pairs)


def released_solver(mix: GaussianMixture, x: Tensor, nodes: Tensor, orders: list[int]) -> Tensor:
    """The released sampler's groups, written anew from the formulas of the DPM-Solver++ paper."""
    process, i = mix.process, 0
    alpha, sigma, lam = process.alpha(nodes), process.sigma(nodes), process.log_snr(nodes)

    def model(x: Tensor, node: int) -> Tensor:
        return mix({"b": x}, {"b": nodes[node].expand(len(x))})["b"]

    for order in orders:
        j = i + order
        h, d = lam[j] - lam[i], model(x, i)
        end = sigma[j] / sigma[i] * x - alpha[j] * torch.expm1(-h) * d
        if order > 1:
            r1 = (lam[i + 1] - lam[i]) / h
            x1 = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * torch.expm1(-r1 * h) * d
            d1 = model(x1, i + 1) - d
        if order == 2:
            end = end - alpha[j] / (2 * r1) * torch.expm1(-h) * d1
        if order == 3:
            r2 = (lam[i + 2] - lam[i]) / h
            x2 = sigma[i + 2] / sigma[i] * x - alpha[i + 2] * torch.expm1(-r2 * h) * d
            x2 = x2 + r2 / r1 * alpha[i + 2] * (torch.expm1(-r2 * h) / (r2 * h) + 1) * d1
            end = end + alpha[j] / r2 * (torch.expm1(-h) / h + 1) * (model(x2, i + 2) - d)
        x, i = end, j
    return x


@pytest.mark.parametrize("steps, orders", [(50, [3] * 16 + [2]), (9, [3, 3, 2, 1]), (10, [3, 3, 3, 1]), (3, [2, 1])])
def test_dpm_single_3_is_the_released_solver(steps: int, orders: list[int]) -> None:
    mix = mixture(ScaledLinear()).marginal(["b"])
    nodes = torch.linspace(1.0, 1e-3, steps + 1, dtype=torch.float64)
    x = noisy(mix, {"b": nodes}, 16)
    found = run("dpm_single_3", mix, {"b": nodes}, x)
    torch.testing.assert_close(found["b"], released_solver(mix, x["b"], nodes, orders), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", [make() for make in PROCESSES.values()], ids=list(PROCESSES))
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_ends_are_exact_and_finite(name: str, process: Process, steps: int) -> None:
    """From alpha = 0 to sigma = 0: nothing is infinite, and the last thing put out is a clean estimate."""
    mix, nodes = mixture(process), torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x, estimates = noisy(mix, {"a": nodes, "b": nodes}, 4), []
    flow = flow_along(mix, {"a": nodes, "b": nodes}, [x] * steps)
    recording = Flow(
        lambda x, i: estimates.append(flow.evaluate(x, i)) or estimates[-1], flow.levels, flow.noise, steps
    )
    *_, state = integrate(SOLVERS[name].step, recording, x)
    assert all(torch.equal(state.x[s], estimates[-1][s]) and state.x[s].isfinite().all() for s in x)
    assert len(estimates) == steps * SOLVERS[name].evaluations - (SOLVERS[name].evaluations - 1)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_stream_that_rests_stays_and_one_that_moves_is_not_disturbed(name: str) -> None:
    """b waits in its noise, then runs alone; a runs first and is left untouched where it has arrived."""
    mix, n = mixture(Cosine()), 8
    down = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    paths = {"a": torch.cat([down, torch.zeros(n)]), "b": torch.cat([torch.ones(n), down])}
    x, noise = noisy(mix, paths, 4), [noisy(mix, paths, 4, seed=k) for k in range(2 * n)]
    states = list(integrate(SOLVERS[name].step, flow_along(mix, paths, noise), x))
    assert all(torch.equal(state.x["b"], x["b"]) for state in states[:n])
    assert all(torch.equal(state.x["a"], states[n - 1].x["a"]) for state in states[n:])
    # At t = 1 the other says nothing, so a runs as if it were alone; b runs as if a had been given.
    alone = run(name, mix.marginal(["a"]), {"a": down}, {"a": x["a"]}, noise)
    torch.testing.assert_close(states[-1].x["a"], alone["a"])
    a = states[-1].x["a"]
    for k in range(4):
        given = mix.conditional({"a": a[k : k + 1]}, {"a": torch.zeros(1)})
        later = [{"b": e["b"][k : k + 1]} for e in noise[n:]]
        b = run(name, given, {"b": down}, {"b": x["b"][k : k + 1]}, later)["b"]
        torch.testing.assert_close(states[-1].x["b"][k], b[0])


def paths_with_a_rest(n: int) -> Paths:
    """a stops at t = 0.5 until b is clean, and goes on: three legs of n steps."""
    leg, rest = torch.linspace(0.5, 0, n + 1, dtype=torch.float64), torch.full((n - 1,), 0.5, dtype=torch.float64)
    return {"a": torch.cat([leg + 0.5, rest, leg]), "b": torch.cat([leg + 0.5, leg[1:-1], 0 * leg])}


@cache
def truth_with_a_rest() -> tuple[Joint, Joint]:
    mix, paths = mixture(Cosine()), paths_with_a_rest(200)
    x = noisy(mix, paths, 32)
    return x, run("heun", mix, paths, x)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_rest_half_way_keeps_the_flow(name: str) -> None:
    """What a solver knew of a modality before its rest must not mislead it after: the others have moved."""
    x, truth = truth_with_a_rest()
    coarse, fine = (distance(truth, run(name, mixture(Cosine()), paths_with_a_rest(n), x)) for n in (20, 40))
    assert fine < 0.6 * coarse
    assert fine < (0.05 if SOLVERS[name].order == 1 else 0.01)


@pytest.mark.parametrize("process", [make() for make in PROCESSES.values()], ids=list(PROCESSES))
def test_noise_put_back_restores_the_level(process: Process) -> None:
    """Rounds alternate between x_{i+1}, here drawn exactly, and x_i, which must have its own mean and spread again."""
    t, n = torch.linspace(1, 0, 5, dtype=torch.float64), 40_000
    levels = Levels.along(process, t)
    generator = torch.Generator().manual_seed(0)
    noise = lambda _: {"a": torch.randn(n, generator=generator, dtype=torch.float64)}  # noqa: E731
    flow, turns = Flow(lambda x, _: x, {"a": levels}, noise, 4), []

    def exact(flow: Flow, state: State) -> State:
        level = state.node + 1
        return State(level, {"a": levels.noised(torch.full((n,), 3.0), flow.noise("")["a"], level)})

    def watch(x: Joint, node: int, turn: int) -> Joint:
        turns.append((node, turn))
        if turn:
            assert abs(x["a"].mean() - 3 * levels.alpha[node]) < 5 / n**0.5
            assert x["a"].std().item() == pytest.approx(levels.sigma[node], rel=5 / (2 * n) ** 0.5)
        return x

    assert [state.node for state in integrate(exact, flow, noise(""), amend=watch, rounds=3)] == [1, 2, 3, 4]
    assert turns == [(node, turn) for node in range(3) for turn in range(3)] + [(3, 0)]  # the landing is taken once


def test_heun_backwards_undoes_heun_forwards() -> None:
    mix = mixture(Cosine())
    x0 = mix.sample(16, torch.Generator().manual_seed(0))
    errors = []
    for n in (40, 80, 160):
        t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        z = run("heun", mix, {"a": t, "b": t}, x0)
        errors.append(distance(x0, run("heun", mix, {"a": t.flip(0), "b": t.flip(0)}, z)))
    assert errors[0] < 0.001
    assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3


def test_the_page_of_solvers_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[1] / "docs" / "solvers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == set(SOLVERS)
