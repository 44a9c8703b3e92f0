"""Uni-Instruct: the gradient of any f-divergence between a student's law and a teacher's, from scores alone.

A student draws x0 = G(z); both laws are noised, x_t = alpha x0 + sigma eps, each sampled modality at a timestep of its
own. T(x_t) is the teacher's clean estimate, F(x_t) that of the critic, which has learnt the student's law. With

    d = F - T,   e = x0 - F,   r = q_t / p_t,   psi = r^2 f''(r),   lambda = log(alpha / sigma),   SNR = exp(2 lambda)

Uni-Instruct (arXiv 2505.20755, theorem 3.1) reads, in clean estimates and for any time weight W,

    J = int W E[ psi SNR ||d||^2 ] d(-lambda)          (= D_f(q || p) for W = 1).

Its gradient, <.> being held constant, everything else differentiated through x0 and x_t ("expanded"; omega = W SNR):

    omega { 2 <psi> d.e + <psi - r psi'> ||d||^2  -  <2 r psi' d.e - r^2 psi'' ||d||^2> <(alpha / sigma^2) d>.x_t }
            SIM / SiD     Flow Generator Matching    how the weights themselves move, as grad psi = r psi' (s_q - s_p)

The last term is the one that the released code leaves out; without it the student of a forward KL covers less than that
of a reverse KL (docs/one-step.md). The same objective by parts, up to its two ends and without a derivative of T or F
("integral"; the gradient of DMD and f-distill, who choose its weight freely):

    omega' <psi d>.x0,   omega' = 2 omega - d omega / d lambda

The file knows tensors, no network: T and F come as joints that are functions of x_t, or not where that is not needed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unidiffuser import divergences
from unidiffuser.divergences import RatioWeights
from unidiffuser.joint import Joint, modality_of
from unidiffuser.process import Process

Estimator = Literal["expanded", "integral"]
Draw = Literal["log_snr", "timestep"]

SMALLEST_DISTANCE = 1e-5

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "likelihood": lambda alpha, sigma: (alpha / sigma).square(),  # W = 1: the divergence of the clean laws
    "x0": lambda alpha, sigma: torch.ones_like(alpha),  # W = 1 / SNR: every noise level counts
    "karras": lambda alpha, sigma: (sigma / alpha) ** (1 / 7),  # SiD: uniform in the index of Karras' grid, rho = 7
    "dreamfusion": lambda alpha, sigma: sigma * alpha.square(),  # sigma^2 on (eps - eps_T) in the gradient of x_t
}
"""omega by name: (alpha, sigma) -> the weight of squared errors of x0 at a drawn noise level."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to teach: which divergence, in which form, with which weights. `METHODS` names the published ones."""

    divergence: str
    """A row of `divergences.DIVERGENCES`, or power:A."""
    estimator: Estimator = "expanded"
    """The form of the gradient; see the head of this file."""
    flow: float = 1.0
    """Share of the Flow-Generator-Matching term: 1 is exact, 0 leaves SIM; SiD's alpha is 1 - flow / 2."""
    ratio_gradient: bool = True
    """Whether the weight of the SIM term is differentiated; False is the detached weight of the released code."""
    weight: str = "x0"
    """A row of `WEIGHTS`."""
    draw: Draw = "log_snr"
    """What is uniform over the noise levels that are drawn."""
    low: float = 0.02
    """The smallest timestep drawn."""
    high: float = 0.98
    """The largest timestep drawn."""
    adaptive: bool = False
    """Divide each stream of a sample by mean |x0 - T|, as SiD and DMD do."""
    learned: bool = True
    """Whether F is learnt; if not it is x0 itself, the law of a student that is one point (SDS)."""
    adversarial: float = 0.0
    """Weight of the non-saturating loss log(1 + 1/r), beside the mean over all numbers of a sample."""
    matched: bool = False
    """In the integral form: take 2 omega - d omega / d lambda, with which it equals the expanded form with omega."""
    regression: float = 0.0
    """Weight of the squared distance from where the teacher's flow leads from the same noise (DMD), beside the mean."""
    bounds: tuple[float, float] = (0.1, 20.0)
    """Smallest and largest ratio r; see `divergences`."""

    def __post_init__(self) -> None:
        divergences.find(self.divergence)
        for name, value, known in (
            ("estimator", self.estimator, ("expanded", "integral")),
            ("draw", self.draw, ("log_snr", "timestep")),
            ("weight", self.weight, tuple(WEIGHTS)),
        ):
            if value not in known:
                raise ValueError(f"the {name} of a method must be one of {', '.join(known)}, not {value!r}")
        if not 0 < self.low < self.high < 1:
            raise ValueError(f"noise levels lie at timesteps 0 < low < high < 1, not from {self.low} to {self.high}")
        if self.matched and self.weight == "likelihood":
            raise ValueError(
                "matched to the weight 'likelihood' the integral form lies wholly at the clean end, where no network "
                "is exact; choose the expanded form or another weight"
            )

    @property
    def needs_ratio(self) -> bool:
        """Whether q_t / p_t must be known, for which real data is needed."""
        return divergences.find(self.divergence).needs_ratio or self.adversarial > 0


def by_parts(method: Method) -> Method:
    """The integral form of the objective of a method: of an expanded one, whole and with the time weight that matches.

    The normaliser is left out: it is no function of the noise level, so nothing matches it. A method whose own form is
    the integral one is itself.

    Raises:
        ValueError: its weight cannot be matched.
    """
    if method.estimator == "integral":
        return method
    return replace(method, estimator="integral", matched=True, flow=1.0, ratio_gradient=True, adaptive=False)


def draw_levels(method: Method, process: Process, u: Tensor) -> Tensor:
    """Timesteps (B,) of uniform numbers u (B,) in [0, 1]."""
    if method.draw == "timestep":
        return torch.lerp(torch.full_like(u, method.low), torch.full_like(u, method.high), u)
    ends = process.log_snr(torch.tensor([method.low, method.high], dtype=torch.float64, device=u.device))
    return process.t_of_log_snr(torch.lerp(ends[0], ends[1], u.double())).to(u)


def level_weight(method: Method, process: Process, t: Tensor) -> Tensor:
    """The weight (B,), float64, of a noise level drawn at t: omega, or what matches it in the integral form.

    Matching is about densities over lambda; levels drawn uniformly in t have -dt / dlambda of theirs in the draw.
    """
    with torch.enable_grad():
        log_snr = process.log_snr(t.detach()).requires_grad_()
        t_of = process.t_of_log_snr(log_snr)
        omega = WEIGHTS[method.weight](process.alpha(t_of), process.sigma(t_of))
        if not method.matched:
            return omega.detach()
        drawn = torch.ones_like(omega)
        if method.draw == "timestep":
            (drawn,) = torch.autograd.grad(-t_of.sum(), log_snr, create_graph=True)
        (slope,) = torch.autograd.grad((omega * drawn + 0.0 * log_snr).sum(), log_snr)
        return (2.0 * omega - slope / drawn).detach()


def sample_scale(teacher: Tensor, x0: Tensor) -> Tensor:
    """1 / mean |x0 - T|, (B,), without gradient: SiD's and DMD's normaliser of one stream."""
    distance = (x0 - teacher).detach().abs().flatten(1).mean(1)
    return 1.0 / distance.clamp(min=SMALLEST_DISTANCE)


def divergence_loss(
    method: Method,
    process: Process,
    x0: Joint,
    xt: Joint,
    t: Mapping[str, Tensor],
    teacher: Joint,
    fake: Joint,
    ratio: RatioWeights,
    omega: Mapping[str, Tensor],
) -> Tensor:
    """What to minimise for one draw of noise, (B,): its expected gradient is that of the objective.

    Args:
        method: the form, and which of its terms.
        process: the noising process of the teacher.
        x0: the sampled streams as the student drew them, (B, ...).
        xt: the same streams noised, as differentiable functions of x0.
        t: modality -> (B,) timesteps in (0, 1).
        teacher, fake: T(x_t) and F(x_t); functions of x_t in the expanded form.
        ratio: the weights of the divergence at x_t.
        omega: modality or stream -> (B,): the weight of its noise level; 0 leaves it out of J. Every stream of x0 that
            a gradient reaches must be here all the same: the weights depend on all of them.
    """
    if method.estimator == "integral":
        pull = {s: _weight_of(omega, s) * _dot((fake[s] - teacher[s]).detach(), x) for s, x in x0.items()}
        return _total(ratio.psi * value for value in pull.values())
    d = {s: fake[s] - teacher[s] for s in x0}
    sim = _total(_weight_of(omega, s) * _dot(d[s], x0[s] - fake[s]) for s in x0)
    flow = _total(_weight_of(omega, s) * _dot(d[s], d[s]) for s in x0)
    moved = -method.flow * ratio.psi_2 * flow.detach()
    if method.ratio_gradient:
        moved = moved + 2.0 * ratio.psi_1 * sim.detach()
    drift = _total(_score_factor(process, t[modality_of(s)], x) * _dot(d[s].detach(), xt[s]) for s, x in xt.items())
    return 2.0 * ratio.psi * sim + method.flow * ratio.flow * flow - moved * drift


def _weight_of(omega: Mapping[str, Tensor], stream: str) -> Tensor:
    """The weight of a stream: its own, or its modality's."""
    return omega[stream] if stream in omega else omega[modality_of(stream)]


def _score_factor(process: Process, t: Tensor, x: Tensor) -> Tensor:
    """alpha / sigma^2, (B,): from a difference of clean estimates to one of scores."""
    return (process.alpha(t) / process.sigma(t).square()).to(x.dtype)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar products of B samples, (B,)."""
    return (a * b).flatten(1).sum(1)


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


METHODS: dict[str, Method] = {
    "sds": Method(divergence="reverse-kl", estimator="integral", weight="dreamfusion", draw="timestep", learned=False),
    "vsd": Method(divergence="reverse-kl", estimator="integral", weight="dreamfusion", draw="timestep"),
    "diff-instruct": Method(divergence="reverse-kl", estimator="integral"),
    "dmd": Method(divergence="reverse-kl", estimator="integral", draw="timestep", adaptive=True, regression=0.25),
    "sim": Method(divergence="reverse-kl", flow=0.0),
    "sid": Method(divergence="reverse-kl", flow=-0.4, weight="karras", adaptive=True),
    "sida": Method(divergence="reverse-kl", flow=0.0, weight="karras", adaptive=True, adversarial=1e-3),
    "f-distill": Method(divergence="forward-kl", estimator="integral", adversarial=1e-3),
    "uni-instruct": Method(divergence="forward-kl", weight="karras", adaptive=True, adversarial=1e-3),
}
"""The published methods by name; docs/one-step.md says what each leaves out of the exact gradient."""
