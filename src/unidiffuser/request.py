"""A request: one call of `sample` as plain values, whoever asks: flags, a recipe, another program.

It turns a recipe back into the call that made it, and writes the recipe of each sample of a call. It does not know
flags or files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from unidiffuser.answers import Glimpse, Progress, Sample
from unidiffuser.codecs import Latent
from unidiffuser.guidance import Guidance
from unidiffuser.pipeline import Scale, UniDiffuser
from unidiffuser.recipe import Recipe, fingerprint, given_entry, given_value
from unidiffuser.reuse import Reuse


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `UniDiffuser.sample` takes; see there."""

    names: tuple[str, ...]
    """The modalities to sample."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Modality -> raw value, the same for all samples, or a list of one each."""
    n: int = 1
    """How many samples."""
    seed: int | None = None
    """Of the first; random if absent."""
    steps: int | None = None
    """Solver steps; the model's own if absent."""
    solver: str | None = None
    """The solver; the model's own if absent."""
    guidance: Scale | None = None
    """The guidance; the model's own if absent."""
    looseness: Mapping[str, float] = field(default_factory=dict)
    """Given modality -> the timestep it is held at."""
    masks: Mapping[str, Any] = field(default_factory=dict)
    """Modality given in part -> where it is to be made."""
    path: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Sampled modality -> its own timesteps."""
    label: int | None = None
    """The global label; the model's own if absent."""
    reuse: Reuse | None = None
    """How inner blocks are reused; the model's own if absent."""
    size: tuple[int, int] | None = None
    """Width and height of the pictures; the model's own if absent."""

    def draw(
        self,
        model: UniDiffuser,
        on_step: Progress | None = None,
        watch: Callable[[Glimpse], None] | None = None,
        *,
        seeds: Sequence[int] | None = None,
    ) -> list[Sample]:
        """The samples; seeds: one each, in the place of `seed` and the numbers after it."""
        return model.sample(
            *self.names,
            n=self.n,
            seed=self.seed if seeds is None else seeds,
            steps=self.steps,
            solver=self.solver,
            guidance=self.guidance,
            label=self.label,
            reuse=self.reuse,
            size=self.size,
            looseness=self.looseness,
            masks=self.masks,
            path=self.path,
            on_step=on_step,
            watch=watch,
            **self.given,
        )

    def draw_chain(
        self,
        model: UniDiffuser,
        on_step: Progress | None = None,
        on_link: Callable[[int, list[Sample]], None] | None = None,
    ) -> list[list[Sample]]:
        """The chains through the named modalities; see `UniDiffuser.chain`."""
        return model.chain(
            *self.names,
            n=self.n,
            seed=self.seed,
            steps=self.steps,
            solver=self.solver,
            guidance=self.guidance,
            label=self.label,
            reuse=self.reuse,
            size=self.size,
            on_step=on_step,
            on_link=on_link,
            **self.given,
        )

    def link(self, model: UniDiffuser, link: int, sample: Sample) -> "Request":
        """The request that makes one link of a chain again."""
        name = self.names[link]
        given = {other: value for other, value in sample.values.items() if other != name}
        if link > (self.names[0] in self.given) and model.modalities[before := self.names[link - 1]].lossy:
            given[before] = sample.latent(before)
        return replace(self, names=(name,), given=given, n=1, seed=sample.seed)

    def recipe(self, model: UniDiffuser, sample: Sample, library: str) -> Recipe:
        """All that one of the samples depends on."""
        settings = model.choose(self.steps, self.solver, self.guidance, self.label, self.reuse)
        codecs = model.modalities
        pictures = [sample[name] for name in self.names if codecs[name].media_type == "image"]
        asis = {name for name, raw in self.given.items() if name in self.names or isinstance(raw, Latent)}
        whole = {name: raw if name in asis else sample[name] for name, raw in self.given.items()}
        return Recipe(
            model=model.name,
            model_sha256=model.digest,
            library=library,
            sampled=self.names,
            given={name: given_entry(codecs[name].media_type, raw) for name, raw in whole.items()},
            masks={name: given_entry("image", mask) for name, mask in self.masks.items()},
            seed=sample.seed,
            steps=settings.steps,
            solver=settings.solver,
            guidance={**asdict(settings.guidance), "interval": list(settings.guidance.interval)},
            looseness=dict(self.looseness),
            path={name: list(values) for name, values in self.path.items()},
            label=settings.label,
            size=self.size or (),
            reuse=asdict(settings.reuse) if settings.reuse else {},
            dtype=str(model.dtype).removeprefix("torch."),
            pixels=fingerprint(pictures[0]) if len(pictures) == 1 else "",
        )


def request_of(recipe: Recipe, instead: Mapping[str, Any] | None = None) -> Request:
    """The call that a recipe describes.

    Args:
        recipe: checked, but otherwise a stranger's.
        instead: given modality -> raw value to take in place of the recipe's.

    Raises:
        ValueError: a given value that the recipe keeps only the hash of, and that is not in `instead`.
    """
    instead = dict(instead or {})
    return Request(
        names=recipe.sampled,
        given={name: given_value(name, entry) for name, entry in recipe.given.items() if name not in instead} | instead,
        n=1,
        seed=recipe.seed,
        steps=recipe.steps,
        solver=recipe.solver,
        guidance=guidance_of(recipe),
        looseness=recipe.looseness,
        masks={name: given_value(name, entry) for name, entry in recipe.masks.items()},
        path=recipe.path,
        label=recipe.label,
        reuse=Reuse(**recipe.reuse) if recipe.reuse else None,
        size=(recipe.size[0], recipe.size[1]) if recipe.size else None,
    )


def made_alike(recipe: Recipe, again: Recipe) -> bool | None:
    """Whether a picture came out as its recipe says; None if something else was asked for, or if no picture came."""
    if not recipe.pixels or replace(again, pixels="", library="") != replace(recipe, pixels="", library=""):
        return None
    return again.pixels == recipe.pixels


def guidance_of(recipe: Recipe) -> Guidance:
    """The guidance of a recipe."""
    values = dict(recipe.guidance)
    return Guidance(**values | {"interval": tuple(values["interval"])})
