"""From a table to a model that answers, in one run folder.

    RUN/run.json     the table, how it was split, the model and its recipe
    RUN/data/        the split and the candidates, written down (`store`)
    RUN/world/       the truth, if the table is that of a world (`truth`)
    RUN/training/    checkpoints and metrics.jsonl (`optimise`)
    RUN/final/       the model (`store`)

Everything random is a function of the seeds in run.json, so the same call on the same folder goes on where it was
stopped and ends in the same bits.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unidiffuser.optimise import fit
from unidiffuser.recommend.batches import Batches
from unidiffuser.recommend.events import Interactions
from unidiffuser.recommend.models import Model, configure, find
from unidiffuser.recommend.recipes import Recipe, recipe_of
from unidiffuser.recommend.splits import Protocol, split
from unidiffuser.recommend.store import EVENTS, Saved, read_interactions, write_interactions, write_model
from unidiffuser.recommend.tables import format_of, read_table
from unidiffuser.recommend.truth import keep_truth

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Told (step, steps, the last figures)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run depends on, except its table."""

    kind: str
    """Which model, a name of `models.kinds()`."""
    recipe: Recipe
    """Its settings and its training."""
    seed: int = 0
    """Of the weights, the order and the draws."""
    protocol: Protocol = field(default_factory=Protocol)
    """How the table is split."""

    @classmethod
    def of(cls, kind: str, *, seed: int = 0, protocol: Protocol | None = None, **changes: Any) -> "Plan":
        """The recipe of a kind with changes: fields of `Recipe`, or of the model's config.

        Raises:
            ValueError: an unknown kind or setting, or a value that does not fit.
        """
        recipe = recipe_of(kind)
        own = {f.name for f in dataclasses.fields(Recipe)} - {"settings"}
        settings = {**recipe.settings, **{name: x for name, x in changes.items() if name not in own}}
        configure(kind, settings)
        recipe = dataclasses.replace(
            recipe, settings=settings, **{name: x for name, x in changes.items() if name in own}
        )
        if not (recipe.epochs >= 0 and recipe.batch >= 1 and recipe.lr > 0):
            raise ValueError(
                f"epochs is 0 or more, batch 1 or more and lr above 0, not {recipe.epochs}, {recipe.batch}, {recipe.lr}"
            )
        return cls(kind=kind, recipe=recipe, seed=seed, protocol=protocol or Protocol())


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
    _claim(run, described)
    if not (run / "data" / EVENTS).is_file():
        keep_truth(table, run / "world")
        write_interactions(run / "data", split(read_table(table), plan.protocol))
    data = read_interactions(run / "data")
    model = fit_model(data, plan, run / "training", progress=progress)
    saved = Saved(model=model, names=data.names, training=described)
    write_model(run / "final", saved)
    return saved


def fit_model(data: Interactions, plan: Plan, folder: Path, *, progress: Progress | None = None) -> Model:
    """Train a model on the training part, with its checkpoints in a folder; it goes on from those that are there."""
    torch.manual_seed(plan.seed)
    model = find(plan.kind)(configure(plan.kind, plan.recipe.settings), data.sizes, data.train)
    settings = plan.recipe.optimiser(len(data.train), plan.seed)
    if model.trains and settings.steps:
        batches = Batches(data.train, data.sizes.items, plan.recipe.batch, plan.seed)
        model.train()
        follow = None if progress is None else lambda step, figures: progress(step, settings.steps, figures)
        average = fit(model, lambda step: model.loss(*batches(step)), settings, folder, follow)
        model.load_state_dict(average, strict=False)
    model.requires_grad_(False).eval().ready()
    return model


def _described(plan: Plan) -> dict[str, Any]:
    return dict(json.loads(json.dumps({"model": plan.kind, **dataclasses.asdict(plan)})))


def _claim(run: Path, described: Mapping[str, Any]) -> None:
    """Write the plan into a new run folder; refuse a folder of another one."""
    file = run / "run.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if differing := sorted(k for k in {*described, *before} if described.get(k) != before.get(k)):
            names = ", ".join(differing)
            raise ValueError(
                f"{run} holds a run with another {names}; choose another folder, or the settings of {file}"
            )
    elif run.exists() and any(run.iterdir()):
        raise ValueError(f"{run} is there already and holds no run of this kind; choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
