"""One step of teaching a one-step student: many distributions at once, told apart by their timesteps alone.

The rows of a batch are dealt out among distributions. In each row every modality has a role:

                 in the student's input      where teacher and critic look
    sampled      noise, at t = `begin`       the student's sample, noised to a level that is drawn
    given        data, at t = 0              data, at t = 0
    ignored      noise, at t = 1             noise, at t = 1

so one student answers for all of them. A share of the rows begins at a later node, from the student's own sample noised
again: what it meets when it is asked for 2 or 4 steps.

Two losses come out of a step, and share nothing: the student's (`instruct`) takes no gradient into the critic or the
teacher, the critic's (`critic`) none into the student. DMD adds a third, of the student alone. This file knows no raw
data and no optimiser.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from unidiffuser import divergences
from unidiffuser.critic import Critic, FrozenCritic, accuracy, adversarial_loss, judging_loss
from unidiffuser.denoiser import Denoiser, clean_estimate
from unidiffuser.divergences import RatioWeights, ratio_weights
from unidiffuser.guidance import Guidance, guided
from unidiffuser.instruct import Method, divergence_loss, draw_levels, level_weight, sample_scale
from unidiffuser.joint import Joint, Shapes, cat_joints, expand, modalities_of, modality_of
from unidiffuser.losses import Objective, noised_loss
from unidiffuser.networks import Network
from unidiffuser.process import Prediction, Process
from unidiffuser.timesteps import Roles

Timesteps = dict[str, Tensor]

FLOW_STEPS = 8
"""Steps of the teacher's flow in `Teaching.regression_loss`."""


class Pair(nn.Module):
    """A student and its critic, which are optimised together."""

    def __init__(self, student: Network, critic: Critic) -> None:
        super().__init__()
        self.student, self.critic = student, critic


class Rows:
    """The roles of the rows of a batch: consecutive shares, one a distribution."""

    def __init__(self, roles: Sequence[Roles], batch: int, shapes: Shapes) -> None:
        """roles: of each share. batch: B, dealt out as evenly as it goes. shapes: stream -> shape of one sample."""
        self.shapes, self.batch = shapes, batch
        bounds = [round(k * batch / len(roles)) for k in range(len(roles) + 1)]
        self.shares = [(r, slice(a, b)) for r, a, b in zip(roles, bounds, bounds[1:], strict=False) if a < b]
        self.sampled = {m: torch.zeros(batch, dtype=torch.bool) for m in modalities_of(shapes)}
        self.held = {m: torch.zeros(batch) for m in self.sampled}
        for one, rows in self.shares:
            for m in self.sampled:
                self.sampled[m][rows] = m in one.sampled
                self.held[m][rows] = one.held.get(m, 0.0)

    def present(self) -> dict[str, Tensor]:
        """Modality -> (B,) bool: where it is not ignored."""
        return {m: self.sampled[m] | (self.held[m] < 1) for m in self.sampled}

    def at(self, level: Tensor) -> Timesteps:
        """The timesteps (B,) of every modality when the sampled ones stand at a level (B,)."""
        return {
            m: torch.where(self.sampled[m].to(level.device), level, held.to(level)) for m, held in self.held.items()
        }

    def clean(self, samples: Joint | None, data: Joint | None) -> Joint:
        """Every stream (B, ...): the samples where it is sampled, the data where it is given, else 0; None is all 0."""
        joint = {}
        for s, shape in self.shapes.items():
            like = next(iter((samples or data or {}).values()), torch.zeros(()))
            blank = torch.zeros(self.batch, *shape, device=like.device)
            given = blank if data is None else _where(self.present()[modality_of(s)], data[s], blank)
            joint[s] = _where(self.sampled[modality_of(s)], blank if samples is None else samples[s], given)
        return joint

    def only_sampled(self, joint: Joint) -> Joint:
        """The joint with 0 wherever a stream is not sampled."""
        return {s: _where(self.sampled[modality_of(s)], x, torch.zeros_like(x)) for s, x in joint.items()}


def _where(mask: Tensor, x: Tensor, other: Tensor) -> Tensor:
    return torch.where(expand(mask.to(x.device), x), x, other)


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """All that stays the same from step to step."""

    method: Method
    """Which divergence, in which form."""
    teacher: Denoiser
    """The teacher; its weights take no gradient."""
    process: Process
    """Its noising process, also the student's and the critic's."""
    prediction: Prediction
    """What the outputs of student and critic stand for."""
    guidance: Guidance = Guidance()  # noqa: RUF009  (frozen)
    """How the teacher is guided; the student then needs no guidance."""
    begin: float = 0.7
    """The timestep of a sampled modality in the student's input."""
    later: tuple[float, ...] = ()
    """Further timesteps at which the student may begin, below `begin`."""
    refine: float = 0.0
    """The share of rows that begin at one of those."""
    judging: float = 0.1
    """Weight of telling real from made beside the critic's denoising error."""

    @property
    def objective(self) -> Objective:
        """What the critic's denoising minimises."""
        space: Prediction = "v" if self.prediction == "x0" else self.prediction
        return Objective(process=self.process, prediction=self.prediction, space=space)

    def draw(self, student: nn.Module, rows: Rows, data: Joint | None, g: torch.Generator) -> Joint:
        """The student's samples, every stream (B, ...); 0 where it is not sampled.

        Args:
            data: clean joint, of which the given modalities are used; None if nothing is given.
            g: the only source of randomness.
        """
        device = next(student.parameters()).device
        z, again = noise(rows, g, device), noise(rows, g, device)
        u, node = (
            torch.rand(rows.batch, generator=g),
            torch.randint(max(len(self.later), 1), (rows.batch,), generator=g),
        )
        t = rows.at(torch.full((rows.batch,), self.begin, device=device))
        xt = self._noised(rows.clean(None, data), z, t)
        late = u < self.refine
        if self.later and bool(late.any()):
            with torch.no_grad():
                first = self._answer(student, xt, t)
            later = rows.at(torch.tensor(self.later, device=device)[node])
            renoised = self._noised(rows.clean(first, data), again, later)
            xt = {s: _where(late, renoised[s], x) for s, x in xt.items()}
            t = {m: torch.where(late.to(device), later[m], x) for m, x in t.items()}
        return rows.only_sampled(self._answer(student, xt, t))

    def student_loss(
        self, critic: Critic | None, rows: Rows, x0: Joint, data: Joint | None, g: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a student minimises, and figures: the gap to the teacher, ratios out of bounds.

        Args:
            critic: None for a method whose critic is not learned.
            x0: the student's samples, differentiable, as `draw` has them.
        """
        xt, t, level = self._look(rows, x0, data, g)
        teacher, fake, logit = self._opinions(critic, rows, x0, xt, t, g)
        row = divergences.find(self.method.divergence)
        ratio = ratio_weights(row, logit, self.method.bounds)
        loss, gap = self._divergence(rows, ratio, x0, xt, level, teacher, fake)
        if self.method.adversarial:
            loss = loss + self.method.adversarial * adversarial_loss(logit).mean()
        figures = {"gap": gap}
        if row.needs_ratio:
            figures["clipped"] = ratio.clipped.float().mean()
        return loss, figures

    def critic_loss(
        self, critic: Critic, rows: Rows, x0: Joint, data: Joint | None, g: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the critic minimises: its denoising error on the student's samples, and how it tells them from data.

        Without a ratio to know nothing is judged, and data may be None.
        """
        judged = self.method.needs_ratio
        assert data is not None or not judged
        made = rows.clean({s: x.detach() for s, x in x0.items()}, data)
        eps, t = noise(rows, g, _device(made)), rows.at(self._levels(rows, g, _device(made)))
        inputs = [self._noised(made, eps, t)]
        if judged:
            inputs.append(self._noised(rows.clean(data, data), eps, t))
        output, logit = critic(cat_joints(inputs), cat_joints([t] * len(inputs)))
        raw = {s: x[: rows.batch] for s, x in output.items()}
        present = {m: x.to(_device(made)) for m, x in rows.present().items()}
        loss, errors = noised_loss(self.objective, lambda *_: raw, made, eps, t, present=present)
        figures = {f"critic.{s}": x for s, x in errors.items()}
        if judged:
            false, true = logit.float().split(rows.batch)
            loss = loss + self.judging * judging_loss(true, false)
            figures["judged"] = accuracy(true.detach(), false.detach())
        return loss, figures

    def regression_loss(self, student: nn.Module, rows: Rows, data: Joint | None, g: torch.Generator) -> Tensor:
        """The mean squared distance of the student's sample from where the teacher's flow leads from the same noise.

        The flow is `solvers.ddim`, in `FLOW_STEPS` steps from `begin` to 0. DMD (arXiv 2311.18828) draws such pairs
        beforehand, and measures in LPIPS.
        """
        device = next(student.parameters()).device
        z, weak = noise(rows, g, device), noise(rows, g, device)
        t = rows.at(torch.full((rows.batch,), self.begin, device=device))
        start = self._noised(rows.clean(None, data), z, t)
        with torch.no_grad():
            end = self._flow(rows, start, data, weak)
        gap = rows.only_sampled({s: x - end[s] for s, x in self._answer(student, start, t).items()})
        numbers = sum(x[0].numel() * int(rows.sampled[modality_of(s)].sum()) for s, x in gap.items())
        return torch.stack([x.square().sum() for x in gap.values()]).sum() / numbers

    def _flow(self, rows: Rows, xt: Joint, data: Joint | None, weak: Joint) -> Joint:
        """Where the guided teacher's probability flow leads from x_t at `begin`."""
        levels = torch.linspace(self.begin, 0.0, FLOW_STEPS + 1, device=_device(xt))
        for here, there in pairwise(levels):
            t = rows.at(here.expand(rows.batch))
            x0 = cat_joints([self._guided(roles, cut, xt, t, weak) for roles, cut in rows.shares])
            x0 = rows.clean(x0, data)
            eps = {s: self.process.eps_from_x0(x, xt[s], t[modality_of(s)]) for s, x in x0.items()}
            xt = self._noised(x0, eps, rows.at(there.expand(rows.batch)))
        return xt

    def _answer(self, student: nn.Module, xt: Joint, t: Timesteps) -> Joint:
        return {s: x.float() for s, x in clean_estimate(self.process, self.prediction, student(xt, t), xt, t).items()}

    def _noised(self, x0: Joint, eps: Joint, t: Timesteps) -> Joint:
        return {s: self.process.add_noise(x, eps[s], t[modality_of(s)]) for s, x in x0.items()}

    def _levels(self, rows: Rows, g: torch.Generator, device: torch.device) -> Tensor:
        return draw_levels(self.method, self.process, torch.rand(rows.batch, generator=g)).to(device)

    def _look(self, rows: Rows, x0: Joint, data: Joint | None, g: torch.Generator) -> tuple[Joint, Timesteps, Tensor]:
        """The samples among what is held, noised to a level (B,) that is drawn: what teacher and critic see."""
        level = self._levels(rows, g, _device(x0))
        t = rows.at(level)
        return self._noised(rows.clean(x0, data), noise(rows, g, _device(x0)), t), t, level

    def _opinions(
        self, critic: Critic | None, rows: Rows, x0: Joint, xt: Joint, t: Timesteps, g: torch.Generator
    ) -> tuple[Joint, Joint, Tensor]:
        """T(x_t), F(x_t) and the logit; functions of x_t only where the method differentiates them."""
        expanded = self.method.estimator == "expanded"
        weak = noise(rows, g, _device(xt))
        with torch.set_grad_enabled(expanded):
            parts = [self._guided(roles, cut, xt, t, weak) for roles, cut in rows.shares]
        teacher = cat_joints(parts)
        if not self.method.learned:
            return teacher, x0, torch.zeros(rows.batch, device=_device(xt))
        assert critic is not None
        with torch.set_grad_enabled(expanded or self.method.adversarial > 0):
            fake, logit = FrozenCritic(critic, self.process, self.prediction)(xt, t)
        return teacher, fake, logit

    def _guided(self, roles: Roles, cut: slice, xt: Joint, t: Timesteps, weak: Joint) -> Joint:
        """The guided teacher on one share of the rows."""
        denoiser = guided(self.teacher, roles, self.guidance, lambda: {s: x[cut] for s, x in weak.items()})
        return denoiser({s: x[cut] for s, x in xt.items()}, {m: x[cut] for m, x in t.items()})

    def _divergence(
        self, rows: Rows, ratio: RatioWeights, x0: Joint, xt: Joint, level: Tensor, teacher: Joint, fake: Joint
    ) -> tuple[Tensor, Tensor]:
        """The mean of the loss over the rows, a number of a sample, and of what it estimates."""
        teacher, fake, xt = (rows.only_sampled(joint) for joint in (teacher, fake, xt))
        numbers = sum(x[0].numel() * rows.sampled[modality_of(s)].to(x.device) for s, x in x0.items())
        omega = {s: level_weight(self.method, self.process, level).to(x) / numbers for s, x in x0.items()}
        if self.method.adaptive:
            omega = {s: w * sample_scale(teacher[s], x0[s]) for s, w in omega.items()}
        t = dict.fromkeys(rows.sampled, level)
        each = divergence_loss(self.method, self.process, x0, xt, t, teacher, fake, ratio, omega)
        gap = sum((omega[s] * ratio.psi * (fake[s] - x).flatten(1).square().sum(1)).mean() for s, x in teacher.items())
        assert isinstance(gap, Tensor)
        return each.mean(), gap.detach()


def noise(rows: Rows, g: torch.Generator, device: torch.device) -> Joint:
    """Standard normal noise for every stream (B, ...), drawn on the CPU."""
    return {s: torch.randn(rows.batch, *shape, generator=g).to(device) for s, shape in rows.shapes.items()}


def _device(joint: Mapping[str, Tensor]) -> torch.device:
    return next(iter(joint.values())).device
