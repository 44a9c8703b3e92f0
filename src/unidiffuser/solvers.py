"""Solvers: how a noisy joint becomes a clean one when only a Denoiser is known.

With lambda = log(alpha / sigma) the probability-flow equation of every process has the exact solution

    x_t = (sigma_t / sigma_s) x_s + sigma_t int_{lambda_s}^{lambda_t} e^lambda D(lambda) dlambda   (DPM-Solver++, eq. 8)

so a solver is only a guess of D between the nodes, and what it puts out is linear in x and in clean estimates. Guessing
D as a polynomial in u = (lambda - lambda_s) / h, h = lambda_t - lambda_s, needs the moments

    M_n = sigma_t int e^lambda u^n dlambda:   M_0 = alpha_t (1 - e^-h),   M_n = alpha_t - n M_{n-1} / h.

Every modality has its own timesteps, so the coefficients differ from stream to stream while the estimates are shared.
Where lambda is infinite (alpha = 0 at the start, sigma = 0 at the end) or a stream rests, its step is of first order,
which needs no lambda: x leaves the noise, lands on D, or stays. Nothing is clipped.

This file knows nothing of roles, guidance or networks. It knows the process only through `Levels`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from unidiffuser.joint import Joint, modality_of
from unidiffuser.process import Process


@dataclass(frozen=True)
class Levels:
    """One modality's noise levels at all nodes of its path, as plain float64 numbers."""

    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    log_snr: tuple[float, ...]

    @classmethod
    def along(cls, process: Process, t: Tensor) -> "Levels":
        """The levels at timesteps t (steps + 1,)."""
        t = t.double()
        columns = (process.alpha(t), process.sigma(t), process.log_snr(t))
        return cls(*(tuple(column.tolist()) for column in columns))

    def h(self, i: int) -> float:
        """lambda_{i+1} - lambda_i; infinite at an end, nan where the modality stands still at an end."""
        return self.log_snr[i + 1] - self.log_snr[i]

    def smooth(self, i: int) -> bool:
        """Whether the step from node i moves between finite lambdas, so that D can be a polynomial in lambda there."""
        h = self.h(i)
        return math.isfinite(h) and h != 0

    def rests(self, i: int) -> bool:
        """Whether nothing changes in the step from node i."""
        return self.alpha[i + 1] == self.alpha[i] and self.sigma[i + 1] == self.sigma[i]

    def journey(self) -> tuple[int, int]:
        """The nodes at which it first leaves and last arrives."""
        moving = [i for i in range(len(self.alpha) - 1) if not self.rests(i)]
        return moving[0], moving[-1] + 1

    def run(self, i: int, limit: int) -> int:
        """How many smooth steps in a row end at node i, counted up to the limit."""
        count = 0
        while count < min(limit, i) and self.smooth(i - count - 1):
            count += 1
        return count

    def noised(self, x0: Tensor, eps: Tensor, i: int) -> Tensor:
        """alpha x0 + sigma eps at node i."""
        return self.alpha[i] * x0 + self.sigma[i] * eps

    def euler(self, i: int) -> tuple[float, float]:
        """(c, w) of x_{i+1} = c x_i + w D_i. At sigma = 0 the noise is taken as 0, its mean."""
        if self.sigma[i] == 0:
            return self.alpha[i + 1] / self.alpha[i], 0.0
        ratio = self.sigma[i + 1] / self.sigma[i]
        return ratio, self.alpha[i + 1] - self.alpha[i] * ratio

    def moments(self, i: int, j: int) -> tuple[float, float, float]:
        """(M_0, M_1, M_2) from node i to node j, both at finite lambda."""
        h, alpha = self.log_snr[j] - self.log_snr[i], self.alpha[j]
        m_0 = -alpha * math.expm1(-h)
        m_1 = alpha - m_0 / h
        return m_0, m_1, alpha - 2.0 * m_1 / h


@dataclass(frozen=True)
class Flow:
    """What a solver is given: estimates at nodes, levels, and noise."""

    evaluate: Callable[[Joint, int], Joint]
    """(x_t of the sampled streams, node) -> their clean estimates."""
    levels: Mapping[str, Levels]
    """Sampled modality -> its levels."""
    noise: Callable[[str], Joint]
    """purpose -> standard normal noise of every sampled stream."""
    steps: int
    """Number of steps; there is one node more."""

    def update(self, x: Joint, rule: Callable[[str, Levels], Tensor]) -> Joint:
        """Every stream by a rule (stream, its levels) -> its new value."""
        return {stream: rule(stream, self.levels[modality_of(stream)]) for stream in x}


@dataclass(frozen=True)
class Point:
    """What was at a node: x_t and the clean estimate made there."""

    x: Joint
    x0: Joint


@dataclass(frozen=True)
class State:
    """Where an integration stands: x_t at a node, and the nodes before it, the latest first."""

    node: int
    x: Joint
    past: tuple[Point, ...] = ()


def combine(c: float, x: Tensor, *terms: tuple[float, Tensor]) -> Tensor:
    """c x + sum of w D over the terms (w, D)."""
    out = c * x
    for w, estimate in terms:
        out = out + w * estimate
    return out


def _next(state: State, x: Joint, point: Point) -> State:
    return State(state.node + 1, x, (point, *state.past[:1]))


def ddim(flow: Flow, state: State) -> State:
    """D constant over the step (Song et al. 2021). For a Denoiser this is Euler's method, in alpha / sigma."""
    return _multistep(flow, state, order=1)


def dpmpp_2m(flow: Flow, state: State) -> State:
    """D linear through the last two nodes (DPM-Solver++, algorithm 2)."""
    return _multistep(flow, state, order=2)


def dpmpp_3m(flow: Flow, state: State) -> State:
    """D quadratic through the last three nodes, integrated exactly."""
    return _multistep(flow, state, order=3)


def _multistep(flow: Flow, state: State, order: int) -> State:
    i, x0 = state.node, flow.evaluate(state.x, state.node)
    estimates = (x0, *(point.x0 for point in state.past))

    def rule(stream: str, v: Levels) -> Tensor:
        c, _ = v.euler(i)
        weights = _multistep_weights(v, i, min(order, len(estimates)))
        return combine(c, state.x[stream], *((w, d[stream]) for w, d in zip(weights, estimates, strict=False)))

    return _next(state, flow.update(state.x, rule), Point(state.x, x0))


def _multistep_weights(v: Levels, i: int, order: int) -> tuple[float, ...]:
    """Weights of D_i, D_{i-1}, ... for the step from node i, of the highest order its smooth past allows."""
    order = min(order, 1 + v.run(i, order - 1)) if v.smooth(i) else 1
    if order == 1:
        return (v.euler(i)[1],)
    m_0, m_1, m_2 = v.moments(i, i + 1)
    r_0 = v.h(i - 1) / v.h(i)
    if order == 2:
        slope = 0.5 * m_0 / r_0  # M_0 / 2 for M_1, as published: the same to this order, and steadier in long steps
        return m_0 + slope, -slope
    # u = 0, -r_0, -(r_0 + r_1): D = D_i + c_1 u + c_2 u^2 through all three.
    r_1 = v.h(i - 2) / v.h(i)
    far = r_0 + r_1
    near_weight = (m_1 * far + m_2) / (-r_0 * r_1)
    far_weight = (m_1 * r_0 + m_2) / (far * r_1)
    return m_0 - near_weight - far_weight, near_weight, far_weight


def heun(flow: Flow, state: State) -> State:
    """The mean of D at both ends of the step, the second at Euler's guess (1 evaluation where all end at t = 0)."""
    i, x0 = state.node, flow.evaluate(state.x, state.node)
    guess = flow.update(state.x, lambda s, v: combine(v.euler(i)[0], state.x[s], (v.euler(i)[1], x0[s])))
    if all(v.sigma[i + 1] == 0 for v in flow.levels.values()):
        return _next(state, guess, Point(state.x, x0))
    x0_end = flow.evaluate(guess, i + 1)

    def rule(stream: str, v: Levels) -> Tensor:
        c, w = v.euler(i)
        if v.sigma[i + 1] == 0:
            return guess[stream]
        if v.sigma[i] == 0:  # backwards from data: the mean of eps, 0 here and (guess - alpha D) / sigma there
            return combine(1.5, guess[stream], (-0.5 * v.alpha[i + 1], x0_end[stream]))
        return combine(c, state.x[stream], (0.5 * w, x0[stream]), (0.5 * w, x0_end[stream]))

    return _next(state, flow.update(state.x, rule), Point(state.x, x0))


def dpm_single_3(flow: Flow, state: State) -> State:
    """Groups of three steps that each start anew, and a last one of 2 and 1, of 1, or of 2 (DPM-Solver++, "fast" form).

    One evaluation a step. Inside a group D is built from the group's own nodes. The released UniDiffuser samples with
    this, 50 steps, on the uniform grid from t = 1 to 1/1000. The order is 3 where steps % 3 == 2; a lone last step is
    of order 1.
    """
    i, x0 = state.node, flow.evaluate(state.x, state.node)
    points = (Point(state.x, x0), *state.past)

    def rule(stream: str, v: Levels) -> Tensor:
        start, stop = _group(i, *v.journey())
        anchor = i - v.run(i, min(i - start, len(state.past))) if v.smooth(i) else i
        origin = points[i - anchor]
        if anchor == i:
            c, w = v.euler(i)
            return combine(c, origin.x[stream], (w, origin.x0[stream]))
        m_0, m_1, _ = v.moments(anchor, i + 1)
        share = (v.log_snr[i] - v.log_snr[anchor]) / (v.log_snr[i + 1] - v.log_snr[anchor])
        slope = (0.5 * m_0 if stop - anchor == 2 else m_1) / share
        c = v.sigma[i + 1] / v.sigma[anchor]
        return combine(c, origin.x[stream], (m_0 - slope, origin.x0[stream]), (slope, x0[stream]))

    return _next(state, flow.update(state.x, rule), points[0])


def _group(i: int, first: int, last: int) -> tuple[int, int]:
    """First and last node of the group that step i belongs to: groups of 3, 3, ..., then 2 and 1, or 1, or 2."""
    rest = (last - first) % 3 or 3
    if i < last - rest:
        start = i - (i - first) % 3
        return start, start + 3
    if rest == 3:
        return (last - 3, last - 1) if i < last - 1 else (last - 1, last)
    return last - rest, last


def unipc(flow: Flow, state: State) -> State:
    """UniPC of order 2 with B_2(h) (Zhao et al. 2023): each new estimate first corrects the x it was made at, for free.

    The predictor is `dpmpp_2m`; the corrector puts D through the new estimate and the two before it.
    """
    i, x0 = state.node, flow.evaluate(state.x, state.node)
    x = flow.update(state.x, lambda stream, v: _corrected(stream, v, state, x0)) if state.past else state.x
    estimates = (x0, *(point.x0 for point in state.past))

    def rule(stream: str, v: Levels) -> Tensor:
        weights = _multistep_weights(v, i, min(2, len(estimates)))
        terms = ((w, d[stream]) for w, d in zip(weights, estimates, strict=False))
        return combine(v.euler(i)[0], x[stream], *terms)

    return _next(state, flow.update(x, rule), Point(x, x0))


def _corrected(stream: str, v: Levels, state: State, x0: Joint) -> Tensor:
    """x_i again, from x_{i-1}, now that D_i is known."""
    last, new = state.node - 1, x0[stream]
    if not v.smooth(last):
        return state.x[stream]
    origin = state.past[0]
    m_0, m_1, m_2 = v.moments(last, last + 1)
    c = v.sigma[last + 1] / v.sigma[last]
    if len(state.past) < 2 or not v.run(last, 1):
        return combine(c, origin.x[stream], (0.5 * m_0, origin.x0[stream]), (0.5 * m_0, new))
    # u = 1, 0, -r: D = D_{i-1} + c_1 u + c_2 u^2 through all three.
    r = v.h(last - 1) / v.h(last)
    new_weight, old_weight = (m_2 + r * m_1) / (1.0 + r), (m_2 - m_1) / (r + r * r)
    middle = (m_0 - new_weight - old_weight, origin.x0[stream])
    return combine(c, origin.x[stream], (new_weight, new), middle, (old_weight, state.past[1].x0[stream]))


def ancestral(flow: Flow, state: State) -> State:
    """x_{i+1} from q(x_{i+1} | x_i, x0 = D_i) (Ho et al. 2020, eq. 7): the reverse SDE with D constant in the step."""
    return _reverse_sde(flow, state, order=1)


def sde_dpmpp_2m(flow: Flow, state: State) -> State:
    """The reverse SDE with D linear through the last two nodes (DPM-Solver++, eq. 19)."""
    return _reverse_sde(flow, state, order=2)


def _reverse_sde(flow: Flow, state: State, order: int) -> State:
    i, x0 = state.node, flow.evaluate(state.x, state.node)
    last = all(v.sigma[i + 1] == 0 for v in flow.levels.values())
    noise = state.x if last else flow.noise(f"step/{i}")

    def rule(stream: str, v: Levels) -> Tensor:
        x, d = state.x[stream], x0[stream]
        if v.rests(i):
            return x
        ratio = v.sigma[i + 1] / v.sigma[i]
        keep = ratio * v.alpha[i] / v.alpha[i + 1]  # e^-h
        fresh = 1.0 - keep * keep
        terms = [(v.alpha[i + 1] * fresh, d), (v.sigma[i + 1] * math.sqrt(fresh), noise[stream])]
        if order == 2 and state.past and v.smooth(i) and v.run(i, 1):
            slope = 0.5 * v.alpha[i + 1] * fresh * v.h(i) / v.h(i - 1)
            terms += [(slope, d), (-slope, state.past[0].x0[stream])]
        return combine(ratio * keep, x, *terms)

    return _next(state, flow.update(state.x, rule), Point(state.x, x0))


def renoise(flow: Flow, state: State) -> State:
    """x_{i+1} = alpha D_i + sigma * fresh noise, for a Denoiser that answers with samples: a student's.

    If D_i has the law of the data then so has the clean part of x_{i+1}, at every node. A Denoiser that answers with
    means loses spread at every step: with it this solver is of order 0.
    """
    i, x0 = state.node, flow.evaluate(state.x, state.node)
    last = all(v.sigma[i + 1] == 0 for v in flow.levels.values())
    noise = state.x if last else flow.noise(f"step/{i}")
    x = flow.update(state.x, lambda s, v: state.x[s] if v.rests(i) else v.noised(x0[s], noise[s], i + 1))
    return _next(state, x, Point(state.x, x0))


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A row of the table: a step and what it promises."""

    step: Callable[[Flow, State], State]
    order: int
    """The error falls as steps^-order: of every sample where deterministic, of the law where stochastic; 0: not at all,
    the solver is for Denoisers that answer with samples."""
    evaluations: int = 1
    """Evaluations of the Denoiser a step."""
    stochastic: bool = False
    """Whether it draws noise on the way."""


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(step=ddim, order=1),
    "heun": Solver(step=heun, order=2, evaluations=2),
    "dpmpp_2m": Solver(step=dpmpp_2m, order=2),
    "dpmpp_3m": Solver(step=dpmpp_3m, order=3),
    "dpm_single_3": Solver(step=dpm_single_3, order=3),
    "unipc": Solver(step=unipc, order=3),
    "ancestral": Solver(step=ancestral, order=1, stochastic=True),
    "sde_dpmpp_2m": Solver(step=sde_dpmpp_2m, order=2, stochastic=True),
    "renoise": Solver(step=renoise, order=0, stochastic=True),
}
"""Every solver by name. Euler's method is "ddim": for a Denoiser the two are the same."""


def integrate(
    step: Callable[[Flow, State], State],
    flow: Flow,
    x: Joint,
    *,
    amend: Callable[[Joint, int, int], Joint] | None = None,
    rounds: int = 1,
) -> Iterator[State]:
    """All steps, one state after each.

    Args:
        step: of a row of the table.
        flow: what there is to integrate.
        x: the sampled streams at node 0.
        amend: (x, node, round) -> x, applied before every step; a changed x has no past, so each step starts anew.
        rounds: how often each step is taken, x being noised back in between. A step that ends at t = 0 is taken once:
            it lands on a mean, not on a draw, and what is noised back from there would be too narrow.
    """
    state = State(0, x)
    for node in range(flow.steps):
        ends = any(v.sigma[node + 1] == 0 and v.sigma[node] > 0 for v in flow.levels.values())
        for turn in range(1 if ends else rounds):
            if turn:
                state = State(node, _noise_back(flow, state.x, node, turn))
            if amend:
                state = State(node, amend(state.x, node, turn))
            state = step(flow, state)
        yield state


def _noise_back(flow: Flow, x: Joint, node: int, turn: int) -> Joint:
    """x_i from q(x_i | x_{i+1})."""
    noise = flow.noise(f"back/{node}/{turn}")

    def rule(stream: str, v: Levels) -> Tensor:
        keep = v.alpha[node] / v.alpha[node + 1]
        variance = v.sigma[node] ** 2 - (keep * v.sigma[node + 1]) ** 2
        return combine(keep, x[stream], (math.sqrt(max(variance, 0.0)), noise[stream]))

    return flow.update(x, rule)
