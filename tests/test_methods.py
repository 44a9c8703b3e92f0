"""Every published method against its own formula, in its paper's variables; and what a step may and may not touch."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from unidiffuser.collapse import COLLAPSED, spread, told, variety
from unidiffuser.critic import Critic
from unidiffuser.denoiser import NetworkDenoiser
from unidiffuser.guidance import Guidance
from unidiffuser.instruct import METHODS, Method
from unidiffuser.joint import Joint
from unidiffuser.mixture import GaussianMixture
from unidiffuser.networks.mlp import MLP, MLPConfig
from unidiffuser.process import Cosine
from unidiffuser.teach import FLOW_STEPS, Pair, Rows, Teaching
from unidiffuser.timesteps import assign_roles

PROCESS = Cosine()
SHAPES = {"a": (2,), "b": (3,)}
NUMBERS = 5
BATCH = 6


class Seen:
    """A closed-form teacher that remembers what it was asked last."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(5)
        self.mixture = GaussianMixture(
            process=PROCESS,
            weights=torch.tensor([0.4, 0.6]),
            means={s: torch.randn(2, *shape, generator=g) for s, shape in SHAPES.items()},
            stds={s: torch.full((2, *shape), 0.5) for s, shape in SHAPES.items()},
        )

    def __call__(self, xt: Joint, t: dict[str, Tensor]) -> Joint:
        self.xt, self.t = {s: x.detach() for s, x in xt.items()}, t
        return self.mixture(xt, t)


def network(seed: int) -> MLP:
    torch.manual_seed(seed)
    return MLP(MLPConfig(streams=SHAPES, dim=16, depth=1))


def critic_of(seed: int = 1) -> Critic:
    """A critic that already judges."""
    critic = Critic(network(seed))
    for parameter in critic.head.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.5)
    return critic.double()


def samples(seed: int = 2) -> Joint:
    g = torch.Generator().manual_seed(seed)
    return {s: torch.randn(BATCH, *shape, generator=g, dtype=torch.float64) for s, shape in SHAPES.items()}


def together() -> Rows:
    return Rows([assign_roles(SHAPES, SHAPES)], BATCH, SHAPES)


class Paper:
    """What the papers' formulas are written in, all as functions of the samples x0, stream by stream."""

    def __init__(self, x0: Joint, seen: Seen, critic: Critic, low: Joint) -> None:
        self.x0 = x0
        t = seen.t["a"]
        self.alpha, self.sigma = PROCESS.alpha(t)[:, None], PROCESS.sigma(t)[:, None]
        self.eps = {s: (seen.xt[s] - self.alpha * x) / self.sigma for s, x in low.items()}
        self.xt = {s: self.alpha * x + self.sigma * self.eps[s] for s, x in x0.items()}
        self.real = seen.mixture(self.xt, seen.t)
        output, self.logit = critic(self.xt, seen.t)
        self.fake = {s: PROCESS.x0_from("x0", out, self.xt[s], t) for s, out in output.items()}

    def score(self, clean: Tensor, s: str) -> Tensor:
        return (self.alpha * clean - self.xt[s]) / self.sigma**2

    def noise(self, clean: Tensor, s: str) -> Tensor:
        return (self.xt[s] - self.alpha * clean) / self.sigma

    @property
    def karras(self) -> Tensor:
        return ((self.sigma / self.alpha) ** (1 / 7))[:, 0]

    def scale(self, s: str) -> Tensor:
        """1 / mean |x0 - T|."""
        return 1 / (self.x0[s] - self.real[s]).detach().abs().mean(1)

    def ratio(self) -> Tensor:
        return self.logit.detach().exp().clamp(0.1, 20.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def pull(field: Tensor, x: Tensor) -> Tensor:
    """A loss whose gradient by x is the field."""
    return dot(field.detach(), x)


def sds(p: Paper, s: str) -> Tensor:
    """DreamFusion, eq. 3: w(t) (eps_T - eps) dx_t, w = sigma^2."""
    return p.sigma[:, 0] ** 2 * pull(p.noise(p.real[s], s) - p.eps[s], p.xt[s])


def vsd(p: Paper, s: str) -> Tensor:
    """ProlificDreamer, eq. 9: w(t) (eps_T - eps_phi) dx_t."""
    return p.sigma[:, 0] ** 2 * pull(p.noise(p.real[s], s) - p.noise(p.fake[s], s), p.xt[s])


def diff_instruct(p: Paper, s: str) -> Tensor:
    """Diff-Instruct, eq. 7: w(t) (s_phi - s_q) dx_t; here w = sigma^2 / alpha^2."""
    return ((p.sigma / p.alpha) ** 2)[:, 0] * pull(p.score(p.fake[s], s) - p.score(p.real[s], s), p.xt[s])


def dmd(p: Paper, s: str) -> Tensor:
    """DMD, algorithm 2: (fake - real) / mean |x - real|, onto the sample."""
    return p.scale(s) * pull(p.fake[s] - p.real[s], p.x0[s])


def sim(p: Paper, s: str) -> Tensor:
    """SIM with the squared distance: 2 w(t) (s_phi - s_q) . (grad log p(x_t | x0) - s_phi), w = sigma^4 / alpha^2."""
    s_q, s_p, a = p.score(p.real[s], s), p.score(p.fake[s], s), -p.eps[s] / p.sigma
    return 2 * (p.sigma**4 / p.alpha**2)[:, 0] * dot(s_p - s_q, a - s_p)


def sid(p: Paper, s: str, share: float = 1.2) -> Tensor:
    """SiD, eq. 23 (its alpha is `share`), twice: (T - F) . (T - x0) - alpha ||T - F||^2, over mean |x0 - T|."""
    y = p.real[s] - p.fake[s]
    return 2 * p.karras * p.scale(s) * (dot(y, p.real[s] - p.x0[s]) - share * dot(y, y))


def sida(p: Paper, s: str) -> Tensor:
    return sid(p, s, 1.0)


def f_distill(p: Paper, s: str) -> Tensor:
    """f-distill: h(r) (s_phi - s_q) dx_t, h(r) = r for the forward KL; here times sigma^2 / alpha^2."""
    return p.ratio() * diff_instruct(p, s)


FORMULAS: dict[str, Callable[[Paper, str], Tensor]] = {
    "sds": sds,
    "vsd": vsd,
    "diff-instruct": diff_instruct,
    "dmd": dmd,
    "sim": sim,
    "sid": sid,
    "sida": sida,
    "f-distill": f_distill,
}


def gradients(method: Method, formula: Callable[[Paper], Tensor]) -> tuple[Joint, Joint]:
    """By the samples: of what we minimise, and of a formula (B,) in the same draw of noise."""
    seen, critic, low = Seen(), critic_of(), samples()
    teaching = Teaching(method=method, teacher=seen, process=PROCESS, prediction="x0")
    ours = {s: x.clone().requires_grad_() for s, x in low.items()}
    loss, _ = teaching.student_loss(critic, together(), ours, None, torch.Generator().manual_seed(3))
    assert loss.shape == ()
    theirs = {s: x.clone().requires_grad_() for s, x in low.items()}
    paper = Paper(theirs, seen, critic, low)
    value = (formula(paper) / NUMBERS).mean()
    if method.adversarial:
        value = value + method.adversarial * softplus(-paper.logit).mean()
    return tuple(  # type: ignore[return-value]
        dict(zip(x, torch.autograd.grad(y, list(x.values())), strict=True)) for x, y in ((ours, loss), (theirs, value))
    )


def agree(method: Method, formula: Callable[[Paper], Tensor]) -> bool:
    ours, theirs = gradients(method, formula)
    return all(torch.allclose(ours[s], theirs[s], rtol=1e-4, atol=1e-7) for s in SHAPES)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_named_method_is_its_paper(name: str) -> None:
    def formula(p: Paper) -> Tensor:
        return torch.stack([FORMULAS[name](p, s) for s in SHAPES]).sum(0)

    assert agree(METHODS[name], formula)
    # And none of the others, lest the comparison be blind.
    others = [other for other in METHODS if other not in (name, "diff-instruct") and agree(METHODS[other], formula)]
    assert others == []


def test_every_named_method_is_held_against_a_formula() -> None:
    assert {*FORMULAS, "uni-instruct"} == set(METHODS)


@pytest.mark.parametrize("share", [0.5, 1.0, 1.2])
def test_sid_with_a_half_is_the_exact_reverse_kl_and_with_one_is_sim(share: float) -> None:
    def formula(p: Paper) -> Tensor:
        return torch.stack([sid(p, s, share) for s in SHAPES]).sum(0)

    assert agree(replace(METHODS["sid"], flow=2 * (1 - share)), formula)
    assert agree(replace(METHODS["sid"], flow=1.0), formula) == (share == 0.5)
    assert agree(replace(METHODS["sid"], flow=0.0), formula) == (share == 1.0)


def test_uni_instruct_is_the_whole_of_the_theorem() -> None:
    """With the forward KL, in scores, over both modalities: 2 <psi> D.(a - s_phi) + <psi - r psi'> ||D||^2, and the
    gradient of the weight. Inside the bounds psi = r psi' = r; beyond them psi is constant.
    """

    def formula(p: Paper) -> Tensor:
        first, second, drift = torch.zeros(3, BATCH).double()
        for s in SHAPES:
            s_q, s_p, a = p.score(p.real[s], s), p.score(p.fake[s], s), -p.eps[s] / p.sigma
            weight = (p.sigma**4 / p.alpha**2)[:, 0] * p.karras * p.scale(s)
            first = first + weight * dot(s_p - s_q, a - s_p)
            second = second + weight * dot(s_p - s_q, s_p - s_q)
            drift = drift + pull(s_q - s_p, p.xt[s])
        r = p.ratio()
        inside = (p.logit.detach().exp() > 0.1) & (p.logit.detach().exp() < 20)
        assert 0 < inside.sum() < BATCH  # both are met
        return 2 * r * first + r * ~inside * second + 2 * r * inside * first.detach() * drift

    assert agree(METHODS["uni-instruct"], formula)
    assert not agree(replace(METHODS["uni-instruct"], ratio_gradient=False), formula)


def test_the_regression_of_dmd_is_the_distance_from_the_teachers_own_flow() -> None:
    """The flow is taken again by hand, for two distributions in one batch."""
    teaching = Teaching(method=METHODS["dmd"], teacher=Seen().mixture, process=PROCESS, prediction="x0", begin=0.8)
    roles = [assign_roles(SHAPES, ["a"], ["b"]), assign_roles(SHAPES, ["b"])]
    rows, data, student = Rows(roles, BATCH, SHAPES), samples(7), network(3).double()
    found = teaching.regression_loss(student, rows, data, torch.Generator().manual_seed(4))
    g = torch.Generator().manual_seed(4)
    z = {s: torch.randn(BATCH, *shape, generator=g) for s, shape in SHAPES.items()}
    total, count = 0.0, 0
    for one, cut in rows.shares:
        (name,) = one.sampled
        held = {m: torch.full((BATCH // 2,), t, dtype=torch.float64) for m, t in one.held.items()}
        other = {m: data[m][cut] if t[0] == 0 else z[m][cut].double() for m, t in held.items()}
        start = x = PROCESS.sigma(torch.tensor(0.8)) * z[name][cut]
        levels = torch.linspace(0.8, 0.0, FLOW_STEPS + 1, dtype=torch.float64)
        for here, there in pairwise(levels):
            t = held | {name: here.expand(BATCH // 2)}
            clean = teaching.teacher({**other, name: x}, t)[name]
            # Euler's step of x / alpha in sigma / alpha, the probability flow of any process.
            ratio = PROCESS.sigma(there) / PROCESS.sigma(here)
            x = ratio * x + (PROCESS.alpha(there) - PROCESS.alpha(here) * ratio) * clean
        t = held | {name: torch.full((BATCH // 2,), 0.8, dtype=torch.float64)}
        answer = student({**other, name: start}, t)[name]
        total, count = total + (answer - x).square().sum(), count + x.numel()
    torch.testing.assert_close(found, total / count, rtol=1e-5, atol=1e-7)  # type: ignore[operator]


def test_guidance_is_within_what_is_taught() -> None:
    """The teacher of p(a | b) is D + s (D - D_a), D_a knowing nothing of b; SDS shows it as omega (x0 - T)."""
    seen, low = Seen(), samples()
    rows = Rows([assign_roles(SHAPES, ["a"], ["b"])], BATCH, SHAPES)
    guidance = Guidance(scale=2.0)
    teaching = Teaching(method=METHODS["sds"], teacher=seen, process=PROCESS, prediction="x0", guidance=guidance)
    x0 = {s: x.clone().requires_grad_() for s, x in low.items()}
    loss, _ = teaching.student_loss(None, rows, x0, samples(8), torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(loss, [x0["a"]])
    xt, t = ({name: x[:BATCH] for name, x in both.items()} for both in (seen.xt, seen.t))
    full = seen.mixture(xt, t)["a"]
    alone = seen.mixture.marginal(["a"])({"a": xt["a"]}, {"a": t["a"]})["a"]
    omega = (PROCESS.sigma(t["a"]) * PROCESS.alpha(t["a"]).square())[:, None]
    expected = omega * (low["a"] - (full + 2.0 * (full - alone))) / SHAPES["a"][0] / BATCH
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_a_step_touches_only_what_it_teaches() -> None:
    teacher, student, critic = network(4).requires_grad_(False), network(5), Critic(network(6))
    pair = Pair(student, critic)
    for name in ("uni-instruct", "f-distill", "sida", "vsd"):
        method = METHODS[name]
        teaching = Teaching(
            method=method, teacher=NetworkDenoiser(teacher, PROCESS, "x0"), process=PROCESS, prediction="x0"
        )
        rows, data, g = together(), {s: x.float() for s, x in samples().items()}, torch.Generator().manual_seed(1)
        x0 = teaching.draw(student, rows, data, g)
        own, _ = teaching.student_loss(critic, rows, x0, data, g)
        own.backward()
        assert all(p.grad is None for p in critic.parameters()), name
        assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters()), name
        pair.zero_grad(set_to_none=True)
        loss, _ = teaching.critic_loss(critic, rows, teaching.draw(student, rows, data, g), data, g)
        loss.backward()
        assert all(p.grad is None for p in student.parameters()), name
        assert all(p.grad is not None for p in critic.network.parameters()), name
        assert any(p.grad is not None for p in critic.head.parameters()) == method.needs_ratio, name
        pair.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in teacher.parameters())


def test_ratios_that_overflow_are_clipped_and_counted() -> None:
    critic = critic_of()
    torch.nn.init.constant_(critic.head[-1].bias, 1e4)
    teaching = Teaching(method=METHODS["uni-instruct"], teacher=Seen(), process=PROCESS, prediction="x0")
    x0 = {s: x.requires_grad_() for s, x in samples().items()}
    loss, figures = teaching.student_loss(critic, together(), x0, None, torch.Generator().manual_seed(1))
    loss.backward()
    assert figures["clipped"] == 1 and math.isfinite(loss.item())
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in x0.values())


class Answers(torch.nn.Module):
    """A student or a teacher by hand: a function of the noisy joint."""

    def __init__(self, answer: Callable[[Joint], Joint]) -> None:
        super().__init__()
        self.answer, self.device = answer, torch.nn.Parameter(torch.zeros(()))

    def forward(self, xt: Joint, _: dict[str, Tensor]) -> Joint:
        return self.answer(xt)


def test_one_constant_distribution_or_stream_cannot_hide_among_the_others() -> None:
    roles = [assign_roles(SHAPES, ["a"]), assign_roles(SHAPES, ["b"], ["a"]), assign_roles(SHAPES, SHAPES)]
    rows, g = Rows(roles, 24, SHAPES), torch.Generator().manual_seed(3)
    data, other = ({s: torch.randn(24, *shape, generator=g) for s, shape in SHAPES.items()} for _ in range(2))
    x0 = rows.only_sampled(other)
    assert 0.5 < spread(rows, x0, data) < 1.2
    for name, cut in (("a", slice(0, 8)), ("b", slice(8, 16)), ("b", slice(16, 24))):
        constant = {s: x.clone() for s, x in x0.items()}
        constant[name][cut] = 1.0
        assert spread(rows, constant, data) == 0, name
    few = Rows(roles, 6, SHAPES)  # two rows are no sample of their own
    assert spread(few, {s: torch.tensor([1.0, 1, 2, 2, 3, 3])[:, None].expand(6, 2) for s in x0}, None) > 0


def test_a_student_that_follows_what_is_given_and_ignores_its_noise_has_no_variety() -> None:
    roles = [assign_roles(SHAPES, ["a"], ["b"]), assign_roles(SHAPES, ["a"]), assign_roles(SHAPES, ["b"])]
    rows, g = Rows(roles, 24, SHAPES), torch.Generator().manual_seed(3)
    data = {s: torch.randn(24, *shape, generator=g) for s, shape in SHAPES.items()}
    teaching = Teaching(
        method=METHODS["sim"], teacher=Seen().mixture, process=PROCESS, prediction="x0", later=(0.3,), refine=0.5
    )
    teacher = Answers(lambda xt: xt)

    def of(answer: Callable[[Joint], Joint]) -> float:
        return variety(teaching, Answers(answer), teacher, rows, data, torch.Generator().manual_seed(1)).item()

    assert of(teacher.answer) == 1.0
    assert of(lambda xt: {s: 0.2 * x + 7.0 for s, x in xt.items()}) == pytest.approx(0.2, abs=1e-4)
    assert of(lambda xt: {s: torch.zeros_like(x) for s, x in xt.items()}) == 0.0

    def follows(xt: Joint) -> Joint:
        """Like the teacher, but for the first share, where its answer is what is given."""
        return {"a": torch.cat([xt["b"][:8, :2], xt["a"][8:]]), "b": xt["b"]}

    assert of(follows) == 0.0
    x0 = teaching.draw(Answers(follows), rows, data, torch.Generator().manual_seed(2))
    assert spread(rows, x0, data) > COLLAPSED  # which is why that figure is not enough
    assert "100%" not in told({"spread": 1.0, "variety": 0.25}) and "25%" in told({"spread": 1.0, "variety": 0.25})
    assert told({"spread": 0.31, "variety": 0.31}) == ""


def test_the_spread_is_one_for_the_data_and_falls_with_collapse() -> None:
    rows, data = together(), samples(9)
    assert spread(rows, data, data).item() == pytest.approx(1.0)
    assert spread(rows, {s: 0.1 * x + 5 for s, x in data.items()}, data).item() == pytest.approx(0.1)
    assert spread(rows, {s: torch.zeros_like(x) for s, x in data.items()}, None).item() == 0
    alone = Rows([assign_roles(SHAPES, ["a"], ["b"])], BATCH, SHAPES)
    moved = {"a": 2 * data["a"], "b": torch.zeros_like(data["b"])}  # what is given does not count
    assert spread(alone, moved, data).item() == pytest.approx(2.0)


def test_the_average_of_a_young_run_is_short() -> None:
    """The ramp of the averages: after k steps the decay is at most 1 - 1 / (k + 1)."""
    from unidiffuser.training.state import Averages

    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    averages = Averages(model, (0.9,))
    torch.nn.init.ones_(model.weight)
    found = []
    for step in range(30):
        averages.update(step)
        found.append(averages.weights[0]["weight"].item())
    assert found[:3] == pytest.approx([1 - 1 / 2, 1 - 1 / 3, 1 - 1 / 4])  # the mean of the weights so far
    assert found[29] == pytest.approx(1 - (1 - found[28]) * 0.9)
