"""From a table to a model that answers, in one run folder.

    RUN/preset.json  the table, how it was split, the model and its recipe (`training.folder`)
    RUN/data/        the split and the candidates, written down (`store`)
    RUN/world/       the truth, if the table is that of a world (`truth`)
    RUN/training/    checkpoints and metrics.jsonl (`optimise`), validation.json if it may stop early (`stopping`)
    RUN/final/       the model (`store`)

Everything random is a function of the seeds in preset.json, so the same call on the same folder goes on where it was
stopped and ends in the same bits.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unidiffuser.optimise import fit_all
from unidiffuser.recommend.batches import Batches
from unidiffuser.recommend.events import Interactions
from unidiffuser.recommend.models import Model, configure, find
from unidiffuser.recommend.recipes import Recipe, recipe_of
from unidiffuser.recommend.settings import with_settings
from unidiffuser.recommend.splits import Protocol, split
from unidiffuser.recommend.stopping import Watched
from unidiffuser.recommend.store import EVENTS, Saved, read_interactions, write_interactions, write_model
from unidiffuser.recommend.tables import format_of, read_table
from unidiffuser.recommend.truth import keep_truth
from unidiffuser.training import folder

VALIDATION = "validation.json"

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Told (step, steps, the last figures)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run depends on, except its table."""

    recipe: Recipe
    """The model, its settings and its training."""
    seed: int = 0
    """Of the weights, the order and the draws."""
    protocol: Protocol = field(default_factory=Protocol)
    """How the table is split."""

    def __post_init__(self) -> None:
        self.recipe.optimiser(self.recipe.batch, self.seed)  # which refuses what cannot be trained with

    @classmethod
    def of(cls, name: str, *, seed: int = 0, protocol: Protocol | None = None, **changes: Any) -> "Plan":
        """The recipe of a name with changes: fields of `Recipe`, or of the model's config.

        Raises:
            ValueError: an unknown name or setting, or a value that does not fit.
        """
        recipe = recipe_of(name)
        own = {f.name for f in dataclasses.fields(Recipe)} - {"settings", "kind"}
        settings = {**recipe.settings, **{name: x for name, x in changes.items() if name not in own}}
        configure(recipe.kind, settings)
        trained = {name: x for name, x in changes.items() if name in own}
        recipe = dataclasses.replace(with_settings(recipe, trained, f"the recipe of {name}"), settings=settings)
        return cls(recipe=recipe, seed=seed, protocol=protocol or Protocol())


def train(table: Path, plan: Plan, run: Path, *, progress: Progress | None = None) -> Saved:
    """Carry out a plan, going on from what the run folder holds, and write RUN/final.

    Args:
        table: a file or folder of events in any format of `tables`.
        progress: called with (step, steps, figures).

    Returns:
        The trained model, ready to answer.

    Raises:
        ValueError: a table that cannot be read, or a folder that belongs to a run with another plan.
        SystemExit, KeyboardInterrupt: it was asked to stop; the same call goes on from there.
    """
    described = {"data": str(table), "format": format_of(table), **_described(plan)}
    if run.exists() and not (run / folder.PRESET).is_file() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run} is there already and holds no run of this kind; choose another folder")
    with folder.locked(run):
        folder.claim(run, described)
        if not (run / "data" / EVENTS).is_file():
            keep_truth(table, run / "world")
            write_interactions(run / "data", split(read_table(table), plan.protocol))
        data = read_interactions(run / "data")
        model = fit_model(data, plan, run / "training", progress=progress)
        saved = Saved(model=model, names=data.names, training=described)
        write_model(run / "final", saved)
    return saved


def fit_model(data: Interactions, plan: Plan, where: Path, *, progress: Progress | None = None) -> Model:
    """Train a model on the training part, with its checkpoints in a folder; it goes on from those that are there."""
    kind = plan.recipe.kind
    torch.manual_seed(plan.seed)
    model = find(kind)(configure(kind, plan.recipe.settings), data.sizes, data.train)
    if model.trains and plan.recipe.epochs:
        settings = plan.recipe.optimiser(len(data.train), plan.seed)
        batches = Batches(data.train, data.sizes.items, plan.recipe.batch, plan.seed)
        watched = Watched(model, data, plan.recipe, batches.per_epoch) if plan.recipe.patience else None
        model.train()
        follow = None if progress is None else lambda step, figures: progress(step, settings.steps, figures)
        ended = watched.ended if watched else None
        average = fit_all(
            watched or model, lambda step: model.loss(*batches(step)), settings, where, follow, ended=ended
        )[0]
        if watched:
            watched.keep_best()
            (where / VALIDATION).write_text(json.dumps(watched.report(), indent=1) + "\n", encoding="utf-8")
        else:
            model.load_state_dict(average, strict=False)
    model.requires_grad_(False).eval().ready()
    return model


def _described(plan: Plan) -> dict[str, Any]:
    """A plan as JSON; of early stopping it says nothing where there is none, nor of what came later where it is as it
    always was, so that older runs go on."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    if not plan.recipe.patience:
        for name in ("patience", "check_every", "watched"):
            del plain["recipe"][name]
    for name in ("warmup", "cooldown", "clip", "beta2"):
        if getattr(plan.recipe, name) == getattr(Recipe, name):
            del plain["recipe"][name]
    return plain
