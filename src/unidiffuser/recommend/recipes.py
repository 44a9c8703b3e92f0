"""How each kind of model is trained unless the user says otherwise: settings chosen on the validation part of the
worlds
of `benchmarks/recommend_table.py`, with the same number of trials a kind.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unidiffuser.optimise import OptimiserSettings
from unidiffuser.recommend.models import find


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model's settings and how long and how fast it learns."""

    epochs: int = 40
    """Passes over the training events."""
    batch: int = 1024
    """Events a step."""
    lr: float = 1e-2
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, tables among them."""
    ema: float = 0.95
    """Decay a step of the averaged weights."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's config that differ from its defaults."""

    def optimiser(self, events: int, seed: int) -> OptimiserSettings:
        """The settings of the loop for so many training events."""
        steps = self.epochs * math.ceil(events / self.batch)
        return OptimiserSettings(
            steps=steps,
            batch=self.batch,
            lr=self.lr,
            warmup=min(100, steps // 10),
            cooldown=0.5,
            weight_decay=self.weight_decay,
            ema=self.ema,
            autocast=False,
            save_every=max(100, steps // 10),
            log_every=max(1, min(50, steps // 20)),
            seed=seed,
        )


RECIPES: dict[str, Recipe] = {
    "mf": Recipe(),
    "lightgcn": Recipe(),
    "lightgcn-query": Recipe(),
    "uditsr": Recipe(lr=3e-3),
    "masked": Recipe(epochs=20),
    "diffusion": Recipe(epochs=20),
}
"""Kind -> recipe; a kind without one has nothing to train."""


def recipe_of(kind: str) -> Recipe:
    """The recipe of a kind; ValueError for a kind that does not exist."""
    find(kind)
    return RECIPES.get(kind, Recipe(epochs=0))
