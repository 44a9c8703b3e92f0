"""Text to picture by our own code: which settings come as near to a solution of 200 steps as the released 50 steps.

    equal error   another solver and fewer steps
    + interval    guidance in an interval of timesteps only
    + reuse       inner blocks taken from earlier evaluations
    + both

The classes are searched one after the other, from what computes the least upwards: until a setting comes as near, or
costs no less than what was found before. The solution of 200 steps is guided everywhere and computes every block, so
that an interval and reuse pay for what they change; noises are held. `released.py` prints what is found.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from unidiffuser import UniDiffuser, sampling
from unidiffuser.denoiser import NetworkDenoiser
from unidiffuser.guidance import Guidance
from unidiffuser.reuse import Reuse, ReusingDenoiser
from unidiffuser.timesteps import assign_roles

SOLVERS, STEPS = ("unipc", "dpmpp_3m", "dpmpp_2m"), (10, 15, 20, 25, 30, 40)
EVERYWHERE = (0.0, 1.0)
INTERVALS = ((0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.1, 0.9), (0.2, 0.8))
REUSES = tuple(Reuse(every=every, outer=outer) for every, outer in ((2, 1), (2, 4), (3, 1), (3, 4)))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a picture is drawn."""

    solver: str
    steps: int
    interval: tuple[float, float] = EVERYWHERE
    reuse: Reuse | None = None

    def cost(self, depth: int) -> float:
        """What it computes, about, in whole evaluations of one row: two rows where it is guided."""
        low, high = self.interval
        guided = sum(low <= 1 - k / self.steps <= high for k in range(self.steps))
        return (self.steps + guided) * self._share(depth)

    def _share(self, depth: int) -> float:
        """Of the depth + 1 blocks, in the mean over evaluations."""
        if self.reuse is None:
            return 1.0
        outer = 2 * self.reuse.outer
        return (outer + (depth + 1 - outer) / self.reuse.every) / (depth + 1)

    def __str__(self) -> str:
        parts = [f"{self.steps} of {self.solver}"]
        parts += [f"guided in {self.interval[0]:g} to {self.interval[1]:g}"] * (self.interval != EVERYWHERE)
        parts += [f"reuse {self.reuse.every},{self.reuse.outer}"] if self.reuse else []
        return ", ".join(parts)


RELEASED, BEST = Setting(solver="dpm_single_3", steps=50), Setting(solver="dpmpp_3m", steps=200)


def classes(depth: int) -> dict[str, list[Setting]]:
    """Name -> settings, the cheapest first."""
    reuses = [reuse for reuse in REUSES if reuse.outer <= depth // 2]

    def made(intervals: Sequence[tuple[float, float]], reuses: Sequence[Reuse | None]) -> list[Setting]:
        found = [
            Setting(solver=solver, steps=steps, interval=interval, reuse=reuse)
            for solver, steps, interval, reuse in product(SOLVERS, STEPS, intervals, reuses)
        ]
        return sorted(found, key=lambda setting: setting.cost(depth))

    return {
        "equal error": made([EVERYWHERE], [None]),
        "+ interval": made(INTERVALS, [None]),
        "+ reuse": made([EVERYWHERE], reuses),
        "+ both": made(INTERVALS, reuses),
    }


@dataclass(frozen=True)
class Found:
    """The cheapest setting of a class that comes near enough."""

    setting: Setting
    error: float
    """Its distance to the best solution, over the size of that."""
    seconds: float


@torch.inference_mode()
def search(
    model: UniDiffuser, prompt: str, scale: float, tell: Callable[[str, Found, Found], None]
) -> dict[str, Found | None]:
    """Search every class; `tell` is told (class, what was found, the released setting) as soon as it is known."""
    given = {s: x.to(model.device) for s, x in model.encode(text=prompt).items()}
    roles = assign_roles(tuple(model.modalities), ["image"], ["text"])
    wanted = [s for s in model.shapes if s.startswith("image")]
    network, label = model.network, model.settings.label
    depth = int(vars(network.config)["depth"])

    def draw(setting: Setting) -> tuple[Any, float]:
        parts = (network, model.process, model.prediction, label, wanted)
        denoiser = NetworkDenoiser(*parts) if setting.reuse is None else ReusingDenoiser(setting.reuse, *parts)
        start = time.perf_counter()
        found = sampling.sample(
            denoiser, model.process, model.shapes, roles, [1], given=given, solver=setting.solver, steps=setting.steps,
            guidance=Guidance(scale=scale, interval=setting.interval), end=0.001, device=model.device,
        )["image.latent"].cpu()  # fmt: skip
        return found, time.perf_counter() - start

    best, _ = draw(BEST)

    def tried(setting: Setting) -> Found:
        found, took = draw(setting)
        return Found(setting, float((found - best).norm() / best.norm()), took)

    released, answers = tried(RELEASED), dict[str, Found | None]()
    least = RELEASED.cost(depth)
    for name, settings in classes(depth).items():
        cheaper = (setting for setting in settings if setting.cost(depth) < least)
        near = (found for found in map(tried, cheaper) if found.error <= released.error)
        answers[name] = found = next(near, None)
        if found is not None:
            least = found.setting.cost(depth)
            tell(name, found, released)
    return answers
