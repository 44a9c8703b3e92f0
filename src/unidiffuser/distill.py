"""Distillation: from a teacher to a student that needs one step, for all distributions of the teacher at once.

    distill(teacher, settings, run, pairs=pairs)

    RUN/critic     checkpoints and metrics.jsonl of the critic, which first learns the untrained student's law
    RUN/student    the same of both together            RUN/previews    one-step samples of the run in progress
    RUN/final      the student: a model like any other, sampled in one step

Student and critic begin as the teacher. What is random in step k is a function of (seed, k) alone, so the same call on
the same folder goes on where it was stopped and ends in the same bits. What one step does is in `teach`; the loop is in
`optimise`.
"""

import json
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unidiffuser import collapse
from unidiffuser.checkpoints import Settings, native
from unidiffuser.critic import Critic
from unidiffuser.datasets import Pairs
from unidiffuser.guidance import Guidance
from unidiffuser.instruct import METHODS, Method
from unidiffuser.joint import Joint, generator
from unidiffuser.optimise import fit
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.teach import Pair, Rows, Teaching
from unidiffuser.timesteps import assign_roles
from unidiffuser.training import TrainingError, folder, previews
from unidiffuser.training.batches import Batch, Batches
from unidiffuser.training.encoding import Encoding, Reading, Refusals
from unidiffuser.training.preset import OptimiserSettings
from unidiffuser.training.previews import distributions

log = logging.getLogger(__name__)

Follow = Callable[[int, Mapping[str, float]], None]
"""Told (step, the last figures)."""

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Told (stage, step, steps, the last figures)."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a student is taught."""

    method: Method = METHODS["uni-instruct"]
    """Which divergence, in which form."""
    guidance: Guidance | None = None
    """How the teacher is guided, which the student then has within it; None: see `guidance_of`."""
    begin: float = 0.7
    """The timestep of a sampled modality in the student's input: below 1, where the teacher's answer is no blur."""
    steps: tuple[int, ...] = (1, 2, 4)
    """With how many steps the student is to be sampled; the first is its default."""
    refine: float = 0.2
    """The share of rows that begin at a later step of one of these."""
    shares: int = 8
    """Into how many distributions the rows of a step are dealt out, at most."""
    warmup: int = 500
    """Steps of the critic alone before the student moves."""
    training: OptimiserSettings
    """Of student and critic together."""
    preview_every: int = 500
    """Steps between previews; 0: none."""
    workers: int = 1
    """Loader processes; they change no number."""

    def __post_init__(self) -> None:
        if not 0 < self.begin <= 1:
            raise ValueError(f"a student begins at a timestep above 0 and up to 1, not at {self.begin}")
        if not self.steps or any(not isinstance(n, int) or not 1 <= n <= 16 for n in self.steps):
            raise ValueError(f"a student is taught for 1 to 16 steps, not for {self.steps}")
        if not 0 <= self.refine < 1:
            raise ValueError(f"the share of rows that begin later lies from 0 to below 1, not at {self.refine}")
        for name in ("shares", "warmup", "preview_every", "workers"):
            if getattr(self, name) < (1 if name == "shares" else 0):
                raise ValueError(f"{name} cannot be {getattr(self, name)}")

    @property
    def later(self) -> tuple[float, ...]:
        """The timesteps below `begin` at which a step of the uniform grid can start."""
        nodes = {self.begin * (1 - k / n) for n in self.steps for k in range(1, n)}
        return tuple(sorted(nodes, reverse=True))


def distill(
    teacher: UniDiffuser,
    settings: Distillation,
    run: Path,
    *,
    pairs: Pairs | None = None,
    data: str = "",
    device: str = "cpu",
    progress: Progress | None = None,
) -> UniDiffuser:
    """Teach a student, going on from what the run folder holds, and save it as RUN/final.

    Args:
        teacher: any model that is no student itself.
        settings: how.
        run: the folder; see above.
        pairs: the data. Without it only what needs nothing given is taught: marginals and the joint.
        data: what names it in the run folder; its repr if empty.
        device: where to compute.
        progress: called with (stage, step, steps, figures).

    Returns:
        The student.

    Raises:
        ValueError: a teacher that is a student, a method that needs data without data, or a folder of another run or of
            another process.
        TrainingError: it cannot go on; what was trained is saved.
        SystemExit, KeyboardInterrupt: it was asked to stop; the same call goes on from there.
    """
    if teacher.critic_part is not None:
        raise ValueError(f"{teacher.name} is a student itself, with no law to be taught from; give its teacher")
    if pairs is None and settings.method.needs_ratio:
        raise ValueError(
            f"the divergence {settings.method.divergence!r} (adversarial {settings.method.adversarial:g}) needs real "
            "data to learn the ratio of both laws from; give --data, or --method sim, which needs none"
        )
    guidance = guidance_of(teacher, settings)
    settings = replace(settings, guidance=guidance)
    described = describe(teacher, settings, data or repr(pairs))
    with folder.locked(run):
        folder.claim(run, described)
        if (run / "final").is_dir() and (done := native.read(run / "final")).training == described:
            return UniDiffuser.from_parts(done)
        if settings.method.needs_ratio and guidance.on:
            log.warning(
                "the teacher is guided by %s, and the ratio is learnt from data that nobody guided: the two are not "
                "about one law; leave --guidance out, or take a method without a ratio (sim, sid, vsd)",
                guidance.scale,
            )
        student = _taught(teacher, settings, run, pairs, device, progress, described)
        student.save(run / "final", force=True)
    return student


def guidance_of(teacher: UniDiffuser, settings: Distillation) -> Guidance:
    """As asked; else none where a ratio is learnt, as that is about data, which nobody guided; else the teacher's."""
    own = teacher.settings.guidance
    return settings.guidance or (replace(own, scale=0.0) if settings.method.needs_ratio else own)


def describe(teacher: UniDiffuser, settings: Distillation, data: str) -> dict[str, Any]:
    """A distillation as JSON, for the run folder and the student's config."""
    about = {"name": teacher.name, "sha256": teacher.digest}
    return dict(json.loads(json.dumps({"teacher": about, "pairs": data, **asdict(settings)})))


def _taught(
    teacher: UniDiffuser,
    settings: Distillation,
    run: Path,
    pairs: Pairs | None,
    device: str,
    progress: Progress | None,
    described: Mapping[str, Any],
) -> UniDiffuser:
    """The critic alone, then both."""
    teacher = teacher.to(device)
    torch.manual_seed(settings.training.seed)
    pair = Pair(deepcopy(teacher.network), Critic(deepcopy(teacher.network))).to(teacher.device)
    pair.requires_grad_(True).train()
    course = _Course(teacher, settings, pairs)
    whole = partial(_as_model, teacher, settings, pair, described)
    if settings.warmup:
        alone = replace(settings.training, steps=settings.warmup, cooldown=0.0)
        course.open(alone)
        average = fit(pair.critic, partial(course.critic_loss, pair), alone, run / "critic", _told(progress, alone))
        pair.critic.load_state_dict(average)
    both = settings.training
    watching = _Watch(whole, run, settings.preview_every, pairs)
    course.open(both)
    average = fit(pair, partial(course.loss, pair, watching), both, run / "student", _told(progress, both, watching))
    pair.load_state_dict(average)
    return whole()


class _Course:
    """The losses of a distillation as functions of the step."""

    def __init__(self, teacher: UniDiffuser, settings: Distillation, pairs: Pairs | None) -> None:
        self.teacher, self.settings, self.pairs = teacher, settings, pairs
        assert settings.guidance is not None
        self.teaching = Teaching(
            method=settings.method,
            teacher=teacher.denoiser,
            process=teacher.process,
            prediction=teacher.prediction,
            guidance=settings.guidance,
            begin=settings.begin,
            later=settings.later,
            refine=settings.refine,
        )
        names = tuple(teacher.modalities)
        every = [assign_roles(names, sampled, given) for sampled, given in distributions(teacher.modalities)]
        self.roles = [roles for roles in every if pairs is not None or not roles.given]
        self.refusals = Refusals()

    def open(self, stage: OptimiserSettings) -> None:
        """Begin a stage: its batches are asked for in order."""
        self.stage = stage
        self.following: Callable[[int], Batch] | None = None
        if self.pairs is not None:
            encode = Encoding(self.teacher.modalities, stage.autocast)
            batches = Batches[Batch](
                Reading(self.pairs), stage.batch, stage.seed, encode, self.teacher.device, workers=self.settings.workers
            )
            self.following = batches.following(stage.steps)

    def loss(self, pair: Pair, watch: "_Watch", step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The student's loss and the critic's; their gradients do not meet."""
        watch.look(step)
        rows, data, g = self._row(step)
        with self._autocast():
            x0 = self.teaching.draw(pair.student, rows, data, g)
            own, figures = self.teaching.student_loss(pair.critic, rows, x0, data, g)
            critic, more = self.teaching.critic_loss(pair.critic, rows, x0, data, g)
            if share := self.settings.method.regression:
                gap = self.teaching.regression_loss(pair.student, rows, data, g)
                own, figures["regression"] = own + share * gap, gap.detach()
        if (step // self.stage.accumulate + 1) % self.stage.log_every == 0:
            figures["spread"] = collapse.spread(rows, x0, data)
            noise = generator(self.stage.seed, "variety", step)
            figures["variety"] = collapse.variety(self.teaching, pair.student, self.teacher.network, rows, data, noise)
        return own + critic, {"student": own.detach(), **figures, **more}

    def critic_loss(self, pair: Pair, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The critic's loss alone."""
        rows, data, g = self._row(step)
        with self._autocast():
            with torch.no_grad():
                x0 = self.teaching.draw(pair.student, rows, data, g)
            return self.teaching.critic_loss(pair.critic, rows, x0, data, g)

    def _row(self, step: int) -> tuple[Rows, Joint | None, torch.Generator]:
        """The roles of a step's rows, their data, and what else is random; the distributions take turns."""
        count = min(self.settings.shares, len(self.roles))
        turn = [self.roles[(step * count + k) % len(self.roles)] for k in range(count)]
        rows = Rows(turn, self.stage.batch, self.teacher.shapes)
        data = None if self.following is None else self._whole(self.following(step))
        return rows, data, generator(self.stage.seed, "teaching", step)

    def _whole(self, batch: Batch) -> Joint:
        """The clean latents, rows that lack a modality being replaced by others."""
        self.refusals.add(batch)
        good = torch.stack(list(batch.present.values())).all(0).nonzero()[:, 0]
        if not len(good):
            raise TrainingError("no sample of a batch has all modalities of the teacher; see `unidiffuser data check`")
        return {s: x[good[torch.arange(len(x), device=x.device) % len(good)]] for s, x in batch.x0.items()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.teacher.device.type, torch.bfloat16, enabled=self.stage.autocast)


class _Watch:
    """Previews on the way, and a word when the student has collapsed."""

    def __init__(self, student: Callable[[], UniDiffuser], run: Path, every: int, pairs: Pairs | None) -> None:
        self.student, self.run, self.every = student, run, every
        self.given = run / "previews" / "given"
        self.said = False
        if every and pairs is not None:
            previews.write_given(self.given, pairs, student().modalities)

    def look(self, step: int) -> None:
        """Write one-step samples of every distribution, when it is time."""
        if self.every and step % self.every == 0:
            model = self.student()
            given = previews.read_given(self.given, model, previews.EXAMPLES)
            previews.write(model, self.run / "previews" / f"step-{step:08d}", given, previews.EXAMPLES)

    def hear(self, step: int, figures: Mapping[str, float]) -> None:
        """Say it once if the samples lie too near to one another."""
        if not self.said and (what := collapse.told(figures)):
            self.said = True
            log.warning(
                "the student has collapsed at step %d: %s; lower the learning rate, or raise --warmup, and begin in "
                "another folder",
                step,
                what,
            )


def _told(progress: Progress | None, stage: OptimiserSettings, watch: _Watch | None = None) -> Follow:
    """What the loop tells the figures."""

    def tell(step: int, figures: Mapping[str, float]) -> None:
        if watch:
            watch.hear(step, figures)
        if progress:
            progress("student" if watch else "critic", step, stage.steps, figures)

    return tell


def _as_model(teacher: UniDiffuser, settings: Distillation, pair: Pair, described: Mapping[str, Any]) -> UniDiffuser:
    """The student as it is now."""
    own = Settings(steps=settings.steps[0], solver="renoise", begin=settings.begin, guidance=Guidance())
    return UniDiffuser(
        deepcopy(pair.student).cpu(),
        teacher.process_name,
        teacher.prediction,
        teacher.modalities,
        settings=own,
        critic=deepcopy(pair.critic.network).cpu(),
        name=f"{teacher.name}-{settings.steps[0]}step",
        training=described,
    )
