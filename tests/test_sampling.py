"""Every distribution that `sample` can draw from, against the exact law of a mixture; and what a sample promises.

Laws are compared by a two-sample Kolmogorov-Smirnov test on 24 fixed projections of the streams that were sampled and
given, with the given ones drawn from their own law: what is compared is the joint law, so the dependence on what is
given is tested for all its values at once. p < ALARM / 24 on any projection fails: a false alarm in 10,000 seeds, and
the seeds are fixed.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from unidiffuser.guidance import Guidance
from unidiffuser.joint import Joint, modality_of, noise_like
from unidiffuser.mixture import GaussianMixture
from unidiffuser.process import PROCESSES, Cosine, Process, RectifiedFlow, ScaledLinear
from unidiffuser.sampling import GRIDS, Step, invert, sample, time_grid
from unidiffuser.solvers import SOLVERS
from unidiffuser.timesteps import Roles, assign_roles

ALARM = 1e-4
N = 1500
SEEDS = range(N)
NAMES = ("a", "b", "c")


def mixture(process: Process, *names: str) -> GaussianMixture:
    """Three components; the streams of the named modalities depend strongly on one another."""
    mix = GaussianMixture(
        process=process,
        weights=torch.tensor([0.3, 0.5, 0.2]),
        means={
            "a.x": torch.tensor([[-1.0], [1.0], [0.2]]),
            "a.y": torch.tensor([[0.5], [-0.4], [-1.2]]),
            "b": torch.tensor([[1.0, 0.0], [-1.0, 0.8], [0.1, -0.9]]),
            "c": torch.tensor([[0.1], [1.1], [-0.9]]),
        },
        stds={"a.x": torch.tensor(0.4), "a.y": torch.tensor(0.5), "b": torch.tensor(0.35), "c": torch.tensor(0.45)},
    )
    return mix.marginal(s for s in mix.means if modality_of(s) in (names or NAMES))


def shapes_of(mix: GaussianMixture) -> dict[str, tuple[int, ...]]:
    return {s: tuple(mean.shape[1:]) for s, mean in mix.means.items()}


def draw(mix: GaussianMixture, roles: Roles, seeds: Any = SEEDS, **options: Any) -> Joint:
    """`sample` in float64, with 30 steps of UniPC unless told otherwise: its error is far below what n samples show."""
    options = {"solver": "unipc", "steps": 30, "dtype": torch.float64} | options
    return sample(mix, mix.process, shapes_of(mix), roles, list(seeds), **options)


def truth(mix: GaussianMixture, n: int = N, seed: int = 0) -> Joint:
    return mix.sample(n, torch.Generator().manual_seed(seed))


def flat(joint: Joint) -> Tensor:
    return torch.cat([joint[s].flatten(1).double() for s in sorted(joint)], dim=1)


def worst_p(found: Joint, exact: Joint) -> float:
    """The smallest p-value over 24 projections: the axes first, then random directions."""
    assert found.keys() == exact.keys()
    x, y = flat(found), flat(exact)
    directions = torch.randn(24, x.shape[1], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    directions[: x.shape[1]] = torch.eye(x.shape[1])
    center, scale = y.mean(0), y.std(0)
    x, y = ((z - center) / scale @ directions.T for z in (x, y))
    return min(float(ks_2samp(p, q).pvalue) for p, q in zip(x.T.numpy(), y.T.numpy(), strict=True))


def same_law(found: Joint, exact: Joint) -> bool:
    """The two-sample test, and all first and second moments within 5 standard errors (false alarm below 2e-5)."""
    x, y = flat(found), flat(exact)
    center = y.mean(0)
    pairs = [torch.cat([z - center, torch.einsum("ni,nj->nij", z - center, z - center).flatten(1)], 1) for z in (x, y)]
    error = sum(z.var(0) / len(z) for z in pairs) ** 0.5
    off = (pairs[0].mean(0) - pairs[1].mean(0)).abs() / error
    return worst_p(found, exact) > ALARM / 24 and bool((off < 5).all())


def every_distribution(names: tuple[str, ...]) -> list[Roles]:
    found = []
    for choice in itertools.product(("sampled", "given", "ignored"), repeat=len(names)):
        who = dict(zip(names, choice, strict=True))
        if "sampled" in choice:
            found.append(assign_roles(names, *([m for m in names if who[m] == r] for r in ("sampled", "given"))))
    return found


def spelled(roles: Roles) -> str:
    return f"p({','.join(roles.sampled)}|{','.join(roles.given)})"


def holds_the_law(mix: GaussianMixture, roles: Roles, **options: Any) -> bool:
    """Whether what is sampled and given is distributed as the mixture's own marginal."""
    given = {s: x for s, x in truth(mix, seed=1).items() if modality_of(s) in roles.given}
    found = draw(mix, roles, given=given, **options)
    return same_law(found, truth(mix.marginal(found), n=4 * N, seed=2))


@pytest.mark.parametrize("process", [Cosine(), RectifiedFlow()], ids=["cosine", "rectified_flow"])
@pytest.mark.parametrize("roles", every_distribution(("a", "b")), ids=spelled)
def test_every_distribution_of_two_modalities(roles: Roles, process: Process) -> None:
    assert holds_the_law(mixture(process, "a", "b"), roles)


@pytest.mark.parametrize("roles", every_distribution(NAMES), ids=spelled)
def test_every_distribution_of_three_modalities(roles: Roles) -> None:
    assert len(every_distribution(NAMES)) == 3**3 - 2**3
    assert holds_the_law(mixture(Cosine()), roles)


@pytest.mark.parametrize("solver", [name for name, row in SOLVERS.items() if row.order])
def test_every_solver_draws_the_law(solver: str) -> None:
    steps = 400 if SOLVERS[solver].order == 1 else 60
    mix = mixture(Cosine(), "a", "b")
    roles = assign_roles(("a", "b"), ["a", "b"])
    if SOLVERS[solver].stochastic:  # noise of 400 steps for each of 1500 seeds is slow to draw
        found = draw(mix, roles, range(500), solver=solver, steps=steps // 2)
        assert same_law(found, truth(mix, n=4 * N, seed=2))
    else:
        assert holds_the_law(mix, roles, solver=solver, steps=steps)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_renoise_draws_the_law_of_a_denoiser_that_answers_with_samples(steps: int) -> None:
    """A draw from p(x0 | x_t), not its mean: then every number of steps is exact."""
    mix = mixture(Cosine(), "a", "b")
    fresh = torch.Generator().manual_seed(5)

    def answer(xt: Joint, t: dict[str, Tensor]) -> Joint:
        k = torch.multinomial(torch.softmax(mix._log_parts(xt, t), 1), 1, generator=fresh)[:, 0]
        drawn = {}
        for s, x in xt.items():
            mean, variance, _ = mix._noised(s, x, t[s[0]])
            row, std = torch.arange(N), mix.stds[s].flatten(1)
            gain = mix.process.alpha(t[s[0]])[:, None] * std[k].square() / variance[row, k]
            centre = mix.means[s].flatten(1)[k] + gain * (x.flatten(1) - mean[row, k])
            left = mix.process.sigma(t[s[0]])[:, None] * std[k] / variance[row, k].sqrt()
            eps = torch.randn(centre.shape, generator=fresh, dtype=torch.float64)
            drawn[s] = (centre + left * eps).reshape(x.shape).to(x.dtype)
        return drawn

    roles = assign_roles(("a", "b"), ["a", "b"])
    options = {"solver": "renoise", "steps": steps, "dtype": torch.float64}
    found = sample(answer, mix.process, shapes_of(mix), roles, list(SEEDS), **options)  # type: ignore[arg-type]
    assert same_law(found, truth(mix, n=4 * N, seed=2))


def test_a_start_below_one_is_noise_of_that_level() -> None:
    seen = []
    shapes = {"a": (2,)}
    sample(
        lambda xt, t: seen.append((xt, t)) or xt, Cosine(), shapes, assign_roles(["a"], ["a"]), [3, 4],
        solver="renoise", steps=2, begin=0.6,
    )  # fmt: skip
    (xt, t), (_, later) = seen
    noise = noise_like(shapes, [3, 4], "start")["a"]
    torch.testing.assert_close(xt["a"], Cosine().sigma(torch.tensor(0.6)).float() * noise)
    assert (t["a"].tolist(), later["a"].tolist()) == (pytest.approx([0.6] * 2), pytest.approx([0.3] * 2))


@pytest.mark.parametrize("solver", ["unipc", "ancestral"])
def test_a_start_near_values_of_the_law_keeps_the_law(solver: str) -> None:
    """Values of the law noised to t have the law of x_t, so the way back gives it again; nearer moves less."""
    mix, roles = mixture(Cosine(), "a", "b"), assign_roles(("a", "b"), ["a", "b"])
    origin, moved = truth(mix), []
    for level in (0.2, 0.7):
        steps = 30 if solver == "unipc" else 150
        found = draw(mix, roles, origin=origin, near={"a": level, "b": level}, solver=solver, steps=steps)
        assert same_law(found, truth(mix, n=4 * N, seed=2))
        moved.append(float((flat(found) - flat(origin)).square().mean().sqrt()))
    assert 0.02 < moved[0] < 0.5 * moved[1]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")], ids=["a first", "b first"])
def test_one_modality_first_gives_the_joint_law(order: tuple[str, str]) -> None:
    """p(a) p(b | a) = p(b) p(a | b) = p(a, b): only the path differs."""
    down = time_grid(Cosine(), 25).tolist()
    path = {order[0]: down + [0.0] * 25, order[1]: [1.0] * 25 + down}
    assert holds_the_law(mixture(Cosine(), "a", "b"), assign_roles(("a", "b"), ["a", "b"]), path=path, steps=50)


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_looseness_is_the_conditional_on_a_noisy_given(level: float) -> None:
    """For every y0: y_t = noised y0, x ~ p(x | y_t). The exact x is drawn from the posterior of each y_t by itself."""
    mix, n = mixture(Cosine(), "a", "b"), 1000
    y0 = truth(mix, n, seed=1)["b"]
    found = draw(mix, assign_roles(("a", "b"), ["a"], ["b"], {"b": level}), range(n), given={"b": y0})
    assert torch.equal(found["b"], y0)
    generator, t = torch.Generator().manual_seed(2), torch.tensor([level])
    y0 = truth(mix, n, seed=4)["b"]
    eps = torch.randn(y0.shape, generator=generator, dtype=torch.float64)
    yt = mix.process.add_noise(y0, eps, t.expand(n))
    rows = [mix.conditional({"b": yt[k : k + 1]}, {"b": t}).sample(1, generator) for k in range(n)]
    exact = {s: torch.cat([row[s] for row in rows]) for s in rows[0]} | {"b": y0}
    assert same_law(found, exact)
    assert not same_law(found, truth(mix, 4 * N, seed=3))  # which is not the conditional on y0


def test_the_comparison_of_laws_bites() -> None:
    mix = mixture(Cosine(), "a", "b")
    exact, other = truth(mix, n=4 * N, seed=2), truth(mix, seed=1)
    assert same_law(other, exact)
    assert not same_law(other | {"b": other["b"].roll(1, 0)}, exact)  # the same marginals, but unrelated
    assert not same_law({s: 1.1 * x for s, x in other.items()}, exact)
    assert not same_law({s: x + 0.15 for s, x in other.items()}, exact)


@pytest.mark.parametrize("process", [PROCESSES["scaled_linear"](), PROCESSES["linear"]()], ids=["scaled", "linear"])
def test_a_process_that_keeps_data_at_t_1_is_off_by_little(process: Process) -> None:
    """Their alpha(1) is 0.068 and 0.007, yet sampling starts from pure noise: the moments move by no more than that."""
    mix = mixture(process, "a", "b")
    found, exact = (flat(x) for x in (draw(mix, assign_roles(("a", "b"), ["a", "b"])), truth(mix, 100_000)))
    torch.testing.assert_close(found.mean(0), exact.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(found.T.cov(), exact.T.cov(), rtol=0, atol=0.1)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("process", [make() for make in PROCESSES.values()], ids=list(PROCESSES))
def test_grids_fall_from_start_to_end(grid: str, process: Process) -> None:
    for steps, start, end in ((1, 1.0, 0.0), (7, 1.0, 0.0), (50, 1.0, 1e-3), (20, 0.8, 0.2)):
        t = time_grid(process, steps, grid, start, end)
        assert (t.shape, t.dtype, t[0], t[-1]) == ((steps + 1,), torch.float64, start, end)
        assert (t.diff() < 0).all()


def test_the_released_grid() -> None:
    """50 steps from 1000 to 1, as the network of the released model sees them: 1000, 980.02, 960.04, ..., 20.98, 1."""
    t = 1000 * time_grid(ScaledLinear(), 50, end=1e-3)
    torch.testing.assert_close(t[[0, 1, 2, 49, 50]], torch.tensor([1000, 980.02, 960.04, 20.98, 1]).double())


def infill(resample: int, value: float, n: int = 300) -> tuple[Tensor, Tensor]:
    """a's second number given its first: samples, and draws of the exact conditional."""
    process = Cosine()
    means, std = torch.tensor([[-1.2, -0.8], [1.0, 0.9], [0.0, -0.2]]), torch.tensor(0.45)
    weights = torch.tensor([0.3, 0.5, 0.2])
    whole = GaussianMixture(process=process, weights=weights, means={"a": means}, stds={"a": std})
    parts = {"known": means[:, :1], "rest": means[:, 1:]}
    apart = GaussianMixture(process=process, weights=weights, means=parts, stds=dict.fromkeys(parts, std))
    observed = {"known": torch.full((1, 1), value, dtype=torch.float64)}
    exact = apart.conditional(observed, {"known": torch.zeros(1)}).sample(20_000, torch.Generator().manual_seed(0))
    known = {"a": (torch.full((n, 2), value, dtype=torch.float64), torch.tensor([True, False]))}
    found = draw(whole, assign_roles(("a",), ["a"]), range(n), known=known, resample=resample, steps=25)
    assert (found["a"][:, 0] == value).all()
    return found["a"][:, 1], exact["rest"][:, 0]


def test_infilling_tends_to_the_exact_conditional() -> None:
    """Replacement alone is off by about 0.5 in the mean; the error falls with the rounds to below what n shows."""
    errors = []
    for resample in (0, 3, 14):
        found, exact = infill(resample, value=-0.8)
        errors.append(float(found.mean() - exact.mean()))
    assert errors[0] > 0.3
    assert 0.5 * errors[0] > errors[1] > 2 * abs(errors[2])
    assert abs(errors[2]) < 4 * exact.std() / len(found) ** 0.5
    assert ks_2samp(found.numpy(), exact.numpy()).pvalue > 1e-3


def test_samples_do_not_depend_on_their_batch() -> None:
    """Bit for bit: with givens held loosely, an ignored modality, guidance, parts known, and a stochastic solver."""
    mix = mixture(Cosine())
    given = {"b": truth(mix, 6)["b"]}
    x0, mask = truth(mix, 6)["a.x"], torch.tensor([[True], [False]] * 3)
    roles = assign_roles(NAMES, ["a"], ["b"], {"b": 0.2})

    def rows(index: list[int], **options: Any) -> Joint:
        return draw(
            mix, roles, [100 + k for k in index], given={"b": given["b"][index]}, guidance=Guidance(scale=1.5),
            known={"a.x": (x0[index], mask[index])}, solver="sde_dpmpp_2m", steps=5, resample=1, **options,
        )  # fmt: skip

    for options in ({}, {"fresh_noise": True}, {"path": {"a": [1.0, 0.8, 0.5, 0.3, 0.1, 0.0]}}):
        together = rows([0, 1, 2, 3, 4, 5], **options)
        for index in ([3], [5, 2], [4, 0, 1]):
            assert all(torch.equal(x, together[s][index]) for s, x in rows(index, **options).items())


def test_a_given_modality_comes_back_as_it_was_given_and_nothing_is_written_to() -> None:
    mix = mixture(Cosine())
    x = {s: value.float() for s, value in truth(mix, 4).items()}
    given, start = {s: x[s] for s in ("b", "c")}, {s: x[s] for s in ("a.x", "a.y")}
    known = {"a.x": (x["a.x"], torch.ones(4, 1, dtype=torch.bool))}
    before = {s: value.clone() for s, value in x.items()}
    roles = assign_roles(NAMES, ["a"], ["b", "c"], {"c": 0.5})
    found = draw(mix, roles, range(4), given=given, start=start, known=known, guidance=Guidance(scale=2.0), steps=3)
    assert all(torch.equal(found[s], x[s]) for s in ("b", "c", "a.x"))
    assert all(torch.equal(value, before[s]) for s, value in x.items())
    assert list(found) == list(mix.means)


def test_an_ignored_modality_has_no_influence() -> None:
    """Held at t = 1 a modality says nothing, whatever it holds; and one that is never named is its pure noise."""
    mix = mixture(Cosine())
    x = truth(mix, 4)
    loose = assign_roles(NAMES, ["a"], ["b", "c"], {"c": 1.0})
    one = draw(mix, loose, range(4), given={"b": x["b"], "c": x["c"]}, steps=4)
    two = draw(mix, loose, range(4), given={"b": x["b"], "c": 5 + x["c"]}, steps=4)
    unnamed = draw(mix, assign_roles(NAMES, ["a"], ["b"]), range(4), given={"b": x["b"]}, steps=4)
    for s in ("a.x", "a.y"):
        assert torch.equal(one[s], two[s]) and torch.equal(one[s], unnamed[s])


def test_what_a_held_modality_shows_to_the_denoiser() -> None:
    """Ignored: standard normal noise at t = 1, fixed, or new at each evaluation. Loosely given: noised once."""
    mix, seen = mixture(Cosine()), []

    def spy(xt: Joint, t: dict[str, Tensor]) -> Joint:
        seen.append((xt, {m: value.clone() for m, value in t.items()}))
        return mix(xt, t)

    y = truth(mix, 2000)["b"]
    roles = assign_roles(NAMES, ["a"], ["b"], {"b": 0.4})
    shapes = shapes_of(mix)
    for fresh in (False, True):
        seen.clear()
        sample(spy, mix.process, shapes, roles, list(range(2000)), given={"b": y}, steps=2, fresh_noise=fresh)
        (first, t), (second, _) = seen
        assert (t["b"] == torch.tensor(0.4)).all() and (t["c"] == 1).all() and (t["a"] == 1).all()
        assert torch.equal(first["c"], second["c"]) is not fresh
        assert torch.equal(first["b"], second["b"])
        level = torch.tensor([0.4])
        eps = (first["b"] - mix.process.alpha(level) * y) / mix.process.sigma(level)
        for noise in (first["c"], second["c"], eps, first["a.x"]):
            assert abs(noise.mean()) < 0.1 and noise.std().item() == pytest.approx(1.0, abs=0.1)
        # No noise of a sample is used twice.
        table = torch.stack([first["c"][:, 0], eps[:, 0], first["a.x"][:, 0], first["a.y"][:, 0]]).corrcoef()
        assert (table - torch.eye(4)).abs().max() < 0.1


@pytest.mark.parametrize("solver", ["heun", "ddim", "unipc"])
def test_noise_found_by_inversion_leads_back(solver: str) -> None:
    mix = mixture(Cosine())
    x = truth(mix, 50)
    roles = assign_roles(NAMES, ["a", "c"], ["b"])
    x0, given = {s: x[s] for s in ("a.x", "a.y", "c")}, {"b": x["b"]}
    errors = []
    for steps in (50, 200):
        options = {"given": given, "solver": solver, "steps": steps, "dtype": torch.float64}
        noise = invert(mix, mix.process, shapes_of(mix), roles, x0, list(range(50)), **options)
        again = draw(mix, roles, range(50), start=noise, **options)
        errors.append(max(float((again[s] - x0[s]).square().mean()) ** 0.5 for s in x0))
    assert errors[0] < 0.1 and errors[1] < errors[0] / 3


def test_inverted_data_is_noise() -> None:
    mix = mixture(Cosine(), "a")
    noise = invert(
        mix, mix.process, shapes_of(mix), assign_roles(("a",), ["a"]), truth(mix), list(SEEDS), dtype=torch.float64
    )
    normal = {
        s: torch.randn(4 * N, *shape, generator=torch.Generator().manual_seed(k)).double()
        for k, (s, shape) in enumerate(shapes_of(mix).items())
    }
    assert same_law(noise, normal)


def test_a_callback_sees_every_step_and_may_cancel() -> None:
    mix = mixture(Cosine())
    roles, steps = assign_roles(NAMES, ["a"], ["b"]), []
    given = {"b": truth(mix, 2)["b"]}
    found = draw(mix, roles, range(2), given=given, steps=4, on_step=steps.append)
    assert [(step.index, step.steps) for step in steps] == [(k, 4) for k in range(4)]
    assert [step.timesteps for step in steps] == [{"a": t, "b": 0.0, "c": 1.0} for t in (0.75, 0.5, 0.25, 0.0)]
    assert all(torch.equal(steps[-1].x0[s], found[s]) for s in ("a.x", "a.y"))

    def cancel(step: Step) -> None:
        if step.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(mix, roles, range(2), given=given, steps=4, on_step=cancel)


def test_bad_input_is_refused_in_a_sentence() -> None:
    mix = mixture(Cosine())
    x = truth(mix, 2)
    roles = assign_roles(NAMES, ["a"], ["b"])
    good: dict[str, Any] = {"given": {"b": x["b"]}, "steps": 2}
    mask = torch.ones(1, dtype=torch.bool)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "from 1 to 1000"),
        ({"steps": 1001}, "from 1 to 1000"),
        ({"steps": 2.0}, "from 1 to 1000"),
        ({"solver": "magic"}, "no solver 'magic'; choose one of ddim"),
        ({"grid": "magic"}, "no grid 'magic'; choose one of uniform"),
        ({"end": 1.0}, "runs from a start down to an end"),
        ({"end": math.nan}, "runs from a start down to an end"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [-1, 0]}, "whole number from 0"),
        ({"given": {}}, "must hold the streams b, not none"),
        ({"given": {"b": x["b"], "c": torch.full((2, 1), math.nan)}}, "'c' must hold finite"),
        ({"given": {"b": x["b"], "a.x": x["a.x"]}}, "must hold the streams b, not b, a.x"),
        ({"given": {"b": x["b"][:1]}}, r"shape \(2, 2\), not \(1, 2\)"),
        ({"given": {"b": x["b"].long()}}, "finite floating-point"),
        ({"given": {"b": x["b"] * math.inf}}, "finite floating-point"),
        ({"start": {"a.x": x["a.x"]}}, "start must hold the streams a.x, a.y"),
        ({"path": {"b": [1, 0.5, 0]}}, "a path is for what is sampled"),
        ({"path": {"a": [1, 0]}}, "must be 3 timesteps"),
        ({"path": {"a": [1, 1.5, 0]}}, "fall or rest"),
        ({"path": {"a": [0.9, 0.5, 0]}}, "from 1 to 0"),
        ({"path": {"a": [1, math.nan, 0]}}, "fall or rest"),
        ({"known": {"b": (x["b"], mask)}}, "not a sampled stream"),
        ({"known": {"a.x": (x["a.x"], mask.float())}}, "must be boolean"),
        ({"known": {"a.x": (x["a.x"], mask.expand(3, 1))}}, "fit"),
        ({"known": {"a.x": (x["a.x"] * math.nan, mask)}}, "finite"),
        ({"resample": -1}, "resample must be a whole number from 0 to 100"),
        ({"resample": 1.5}, "resample must be a whole number from 0 to 100"),
        ({"empty": {"b": torch.zeros(1, 3)}}, "empty 'b' must have the shape"),
        ({"empty": {"a.x": torch.zeros(1, 1)}}, "empty must hold the streams a.x, a.y"),
        ({"roles": assign_roles(("a", "d"), ["a"])}, "roles are needed for a, b, c, not for a, d"),
        ({"guidance": Guidance(scale={"d": 1.0})}, "guidance names 'd'"),
    ]
    assert draw(mix, roles, range(2), **good)
    for wrong, says in bad:
        options = good | wrong
        with pytest.raises(ValueError, match=says):
            draw(mix, options.pop("roles", roles), options.pop("seeds", range(2)), **options)
    with pytest.raises(ValueError, match="cannot be inverted; choose one of ddim"):
        invert(mix, mix.process, shapes_of(mix), assign_roles(NAMES, ["b"]), {"b": x["b"]}, [0, 1], solver="ancestral")
