"""Text to 3-D: an object whose picture, from any side, is one that the teacher would draw of the text.

The student is a radiance field: its sample is the picture from a random side, encoded by the teacher's own codec. What
drives it is `teach`, as for any student (the third experiment of Uni-Instruct, arXiv 2505.20755):

    sds            the critic is the sample itself: the law of the object counts as one point (DreamFusion, 2209.14988)
    vsd            a critic learns the law of the object's pictures (ProlificDreamer, 2305.16213)
    uni-instruct   that, and any divergence: the ratio is learnt from pictures that the teacher draws of the text

The teacher knows nothing of sides, so a text must hold from all of them. What is random in a step is a function of
(seed, step) alone; the loop, with its checkpoints and exact resume, is in `optimise`.

    RUN/object     checkpoints and metrics.jsonl
"""

import hashlib
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unidiffuser.critic import Critic
from unidiffuser.datasets.scenes import facts, oracle
from unidiffuser.guidance import Guidance
from unidiffuser.instruct import METHODS, Method
from unidiffuser.joint import Joint, generator
from unidiffuser.marking import marked_gif
from unidiffuser.modalities import SeesPixels
from unidiffuser.modalities.image import Picture, picture_of
from unidiffuser.optimise import OptimiserSettings, fit
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.radiance import Camera, FieldConfig, RadianceField, render
from unidiffuser.teach import Rows, Teaching
from unidiffuser.timesteps import assign_roles
from unidiffuser.training import folder

Progress = Callable[[int, Mapping[str, float]], None]
"""Told (step, the last figures)."""

WAYS: Mapping[str, Method] = {
    "sds": METHODS["sds"],
    "vsd": METHODS["vsd"],
    "uni-instruct": replace(METHODS["vsd"], divergence="forward-kl", adversarial=1e-2),
}
"""The methods by name."""

GUIDANCE = 3.0
"""The scale of guidance unless told otherwise: an object is one picture, and should be a typical one."""

MOST_PIXELS = 128
"""Pixels a side at which an object is rendered at most; a teacher of larger pictures sees it enlarged."""

FRAMES, FRAME_MS = 36, 80
"""Pictures of a turntable, and how long each is shown."""


@dataclass(frozen=True, kw_only=True)
class Sculpting:
    """How an object is made."""

    method: Method = WAYS["uni-instruct"]
    """Which divergence, in which form."""
    guidance: Guidance | None = None
    """How the teacher is guided; None: as its own settings say, but with the scale `GUIDANCE`."""
    shape: FieldConfig = FieldConfig()  # noqa: RUF009  (frozen)
    """The radiance field."""
    camera: Camera = Camera()  # noqa: RUF009  (frozen)
    """From where it is seen."""
    elevations: tuple[float, float] = (-20.0, 50.0)
    """The lowest and the highest side that it is seen from, in degrees."""
    samples: int = 32
    """Samples along a ray."""
    drawn: int = 32
    """How many pictures the teacher draws of the text, for a method that needs the ratio."""
    training: OptimiserSettings = field(default_factory=lambda: optimiser())
    """Of field and critic together."""

    def __post_init__(self) -> None:
        low, high = self.elevations
        if not -90 < low <= high < 90:
            raise ValueError(f"an object is seen from elevations between -90 and 90 degrees, not {low} to {high}")
        if self.samples < 4 or self.drawn < 2:
            raise ValueError(f"a ray needs 4 samples and a ratio 2 pictures or more, not {self.samples}, {self.drawn}")


def optimiser(steps: int = 400, seed: int = 0) -> OptimiserSettings:
    """So many steps of 4 views; the field learns 300 times as fast as the critic.

    Raises:
        ValueError: no step.
    """
    if steps < 1:
        raise ValueError(f"an object is made in 1 step or more, not in {steps}")
    return OptimiserSettings(
        steps=steps,
        batch=4,
        lr=1e-4,
        rates={"field": 300.0},
        warmup=min(20, steps),
        cooldown=0.3,
        weight_decay=0.0,
        ema=0.9,
        save_every=max(steps // 6, 1),
        log_every=max(steps // 30, 1),
        autocast=False,
        seed=seed,
    )


class Sculpture(nn.Module):
    """A field, and the critic that learns beside it if the method has one."""

    def __init__(self, field: RadianceField, critic: Critic | None) -> None:
        super().__init__()
        self.field, self.critic = field, critic


def sculpt(
    teacher: UniDiffuser, given: Mapping[str, Any], settings: Sculpting, run: Path, *, progress: Progress | None = None
) -> RadianceField:
    """Make an object, going on from what the run folder holds.

    Args:
        teacher: any model with a modality of pictures, that is no student itself.
        given: modality -> value; what its pictures should be of, such as {"text": "a red circle"}.
        settings: how.
        run: the folder; see above.
        progress: called with (step, figures).

    Raises:
        ValueError: a teacher that makes no pictures or is a student, a value that it does not take, or a folder of
            another run or of another process.
        TrainingError: it cannot go on; what was made so far is saved.
        SystemExit, KeyboardInterrupt: it was asked to stop; the same call goes on from there.
    """
    if teacher.critic_part is not None:
        raise ValueError(f"{teacher.name} is a student itself, with no law to be taught from; give its teacher")
    guidance = settings.guidance or replace(teacher.settings.guidance, scale=GUIDANCE)
    settings = replace(settings, guidance=guidance)
    studio = _Studio(teacher, given, settings)
    with folder.locked(run):
        folder.claim(run, describe(teacher, studio.given, settings))
        device, seed = teacher.device, settings.training.seed
        field = RadianceField(settings.shape, generator(seed, "field")).to(device)
        torch.manual_seed(seed)  # of the critic's head
        critic = Critic(deepcopy(teacher.network)).requires_grad_(True) if settings.method.learned else None
        both = Sculpture(field, critic).to(device).train()
        studio.open()
        average = fit(both, partial(studio.loss, both), settings.training, run / "object", progress)
        both.load_state_dict(average, strict=False)
    return field.requires_grad_(False)


def describe(teacher: UniDiffuser, given: Joint, settings: Sculpting) -> dict[str, Any]:
    """A run as JSON, for its folder; what is given by the hash of its latents."""
    about = {"name": teacher.name, "sha256": teacher.digest}
    latents = {s: hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest() for s, x in given.items()}
    return dict(json.loads(json.dumps({"teacher": about, "given": latents, **asdict(settings)})))


class _Studio:
    """The loss of an object as a function of the step."""

    def __init__(self, teacher: UniDiffuser, given: Mapping[str, Any], settings: Sculpting) -> None:
        assert settings.guidance is not None
        self.teacher, self.settings, self.values = teacher, settings, given
        self.name, self.codec = pictures_of(teacher)
        if self.name in given:
            raise ValueError(f"an object is made from any side, so no {self.name} can be given; describe it instead")
        roles = assign_roles(teacher.modalities, [self.name], given)
        self.rows = Rows([roles], settings.training.batch, teacher.shapes)
        values, _ = teacher.codecs.given([self.name], 1, given, {}, [settings.training.seed])
        self.given = teacher.codecs.encode(values, [settings.training.seed])
        self.teaching = Teaching(
            method=settings.method,
            teacher=teacher.denoiser,
            process=teacher.process,
            prediction=teacher.prediction,
            guidance=settings.guidance,
        )

    def open(self) -> None:
        """Have the teacher draw what the ratio is learnt from."""
        self.drawn: Joint = {}
        if self.settings.method.needs_ratio:
            seed, n = self.settings.training.seed, self.settings.drawn
            samples = self.teacher.sample(
                self.name, n=n, seed=seed, guidance=self.settings.guidance, **dict(self.values)
            )
            self.drawn = self.teacher.codecs.encode({self.name: [sample[self.name] for sample in samples]})

    def loss(self, both: Sculpture, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The field's loss and the critic's; their gradients do not meet."""
        g = generator(self.settings.training.seed, "sculpting", step)
        x0, data = self._views(both.field, g), self._data(g)
        own, figures = self.teaching.student_loss(both.critic, self.rows, x0, data, g)
        total = own
        if both.critic is not None:
            loss, more = self.teaching.critic_loss(both.critic, self.rows, x0, data, g)
            total, figures = own + loss, figures | more
        return total, {"object": own.detach(), **figures}

    def _views(self, field: RadianceField, g: torch.Generator) -> Joint:
        """Pictures of the object from random sides, as every stream (B, ...); 0 where it is not a picture's."""
        azimuth, elevation = sides(self.settings, self.rows.batch, g, field.ground.device)
        camera, samples = self.settings.camera, self.settings.samples
        pixels, _ = render(field, camera, azimuth, elevation, rendered(self.codec), samples=samples, generator=g)
        views = self.codec.encode_pixels(pixels)
        seen = {f"{self.name}.{s}" if s else self.name: x for s, x in views.items()}
        return {
            s: seen.get(s, torch.zeros(self.rows.batch, *shape).to(pixels)) for s, shape in self.rows.shapes.items()
        }

    def _data(self, g: torch.Generator) -> Joint:
        """What is given, and some of the teacher's pictures, as every stream (B, ...)."""
        device, data = self.teacher.device, {}
        chosen = torch.randint(self.settings.drawn, (self.rows.batch,), generator=g)
        for s, shape in self.rows.shapes.items():
            if s in self.given:
                data[s] = self.given[s].expand(self.rows.batch, *shape).to(device)
            elif s in self.drawn:
                data[s] = self.drawn[s][chosen].to(device)
            else:
                data[s] = torch.zeros(self.rows.batch, *shape, device=device)
        return data


def pictures_of(teacher: UniDiffuser) -> tuple[str, SeesPixels]:
    """The modality of pictures, the first if there are several, and its codec.

    Raises:
        ValueError: there is none.
    """
    for name, codec in teacher.modalities.items():
        if isinstance(codec, SeesPixels):
            return name, codec
    kinds = ", ".join(f"{name} of kind {codec.kind!r}" for name, codec in teacher.modalities.items())
    raise ValueError(f"an object is made through a modality of pictures, and {teacher.name} has only {kinds}")


def rendered(codec: SeesPixels) -> int:
    """Pixels a side at which an object is rendered for this codec."""
    return min(codec.side, MOST_PIXELS)


def sides(settings: Sculpting, n: int, g: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Azimuths and elevations (n,) in degrees, uniform."""
    low, high = settings.elevations
    u = torch.rand(2, n, generator=g).to(device)
    return 360.0 * u[0], low + (high - low) * u[1]


@torch.no_grad()
def views(field: RadianceField, settings: Sculpting, size: int, n: int, seed: int) -> Tensor:
    """Pixels (n, 3, S, S) of an object from random sides, which depend on the seed alone."""
    azimuth, elevation = sides(settings, n, generator(seed, "views"), field.ground.device)
    return _pixels(field, settings, azimuth, elevation, size)


@torch.no_grad()
def turntable(field: RadianceField, settings: Sculpting, size: int) -> list[Picture]:
    """Pictures of one turn, a little from above."""
    azimuth = torch.arange(FRAMES, device=field.ground.device) * (360.0 / FRAMES)
    pixels = _pixels(field, settings, azimuth, torch.full_like(azimuth, 15.0), size)
    return [picture_of(each) for each in pixels.cpu()]


def write_gif(frames: Sequence[Picture], path: Path) -> None:
    """Write pictures as one that turns for ever, marked as synthetic."""
    first, *rest = frames
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=FRAME_MS, loop=0)
    path.write_bytes(marked_gif(buffer.getvalue()))


def _pixels(field: RadianceField, settings: Sculpting, azimuth: Tensor, elevation: Tensor, size: int) -> Tensor:
    """A view at a time, for memory."""
    parts = zip(azimuth.split(1), elevation.split(1), strict=True)
    return torch.cat([render(field, settings.camera, a, e, size, samples=settings.samples)[0] for a, e in parts])


def read_right(pixels: Tensor, sentence: str) -> dict[str, Any] | None:
    """The share of pictures that the scenes' oracle reads as a caption says; None if it reads none of that kind.

    Returns:
        "share"; "unreadable", the share that shows no scene; "wrong", kind of fact -> how often it was wrong.
    """
    said = oracle.read_caption(sentence)
    if said is None or pixels.shape[1:] != (3, 64, 64):
        return None
    seen = oracle.read_all([picture_of(each) for each in pixels.cpu()])
    wrong: dict[str, int] = {}
    for scene in seen:
        for fact, holds in facts.agreement(said, scene).items() if scene is not None else ():
            wrong[fact] = wrong.get(fact, 0) + (not holds)
    return {
        "share": sum(facts.agrees(said, scene) for scene in seen) / len(seen),
        "unreadable": sum(scene is None for scene in seen) / len(seen),
        "wrong": {fact: count for fact, count in wrong.items() if count},
    }


def diversity(seen: Sequence[Tensor]) -> float:
    """How different objects look from the same sides: the mean over pairs of the root mean squared difference.

    seen: of each object its views (n, 3, S, S) in [-1, 1].
    """
    if len(seen) < 2:
        raise ValueError("diversity is between objects; make two or more")
    return statistics.fmean(float((a - b).square().mean().sqrt()) for a, b in combinations(seen, 2))
