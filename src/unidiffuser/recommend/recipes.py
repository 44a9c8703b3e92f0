"""How each model is trained unless the user says otherwise: one named recipe a row, and a kind may have several.

The numbers are starting points for worlds of some ten thousand events. The epochs of `lightgcn-query` (15 rather than
40) and `masked` (8 rather than 20) were chosen on the validation part of a world of their own, the others were not;
`benchmarks/recommend_table.py` measures them as they are. `uditsr-published` is trained as the paper's code does it:
plain AdamW at one rate, without warm-up, cooldown, clipping or averaging (but its weight decay spares the biases).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from unidiffuser.optimise import OptimiserSettings
from unidiffuser.recommend.models.uditsr import UDITSRConfig
from unidiffuser.recommend.ranking import CUTS

WATCHABLE = [
    *(f"full {name}@{k}" for name in ("hit", "recall", "ndcg") for k in CUTS),
    *("full mrr", "full gauc"),
    *(f"sampled {name}@{k}" for name in ("hit", "ndcg") for k in CUTS),
    *("sampled mrr", "sampled auc", "sampled gauc"),
]
"""What a run can be stopped by: the metrics of `evaluation`; see `stopping`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model's settings and how long and how fast it learns."""

    kind: str
    """Which model, a name of `models.kinds()`."""
    epochs: int = 40
    """Passes over the training events."""
    batch: int = 1024
    """Events a step."""
    lr: float = 1e-2
    """Peak learning rate."""
    warmup: int = 100
    """Steps over which the rate rises to its peak, at most a tenth of all; 0: none."""
    cooldown: float = 0.5
    """Share of the steps, at the end, over which it falls to 0; 0: it stays."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: any."""
    beta2: float = 0.99
    """AdamW's decay of the squared gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, tables among them."""
    ema: float = 0.95
    """Decay a step of the averaged weights."""
    patience: int = 0
    """Checks on the validation part without a better one after which training ends, the best weights kept; 0: it goes
    through all epochs, and the last weights are the model."""
    check_every: int = 1
    """Epochs between checks."""
    watched: str = "full hit@5"
    """The metric of a check, one of `WATCHABLE`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's config that differ from its defaults."""

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1:
            raise ValueError(f"epochs must be 0 or more and batch 1 or more, not {self.epochs} and {self.batch}")
        if self.patience < 0 or self.check_every < 1:
            raise ValueError("patience is 0 (off) or more and check_every 1 or more")
        if self.watched not in WATCHABLE:
            raise ValueError(f"watched is one of {', '.join(WATCHABLE)}, not {self.watched!r}")

    def optimiser(self, events: int, seed: int) -> OptimiserSettings:
        """The settings of the loop for so many training events."""
        steps = max(self.epochs, 1) * math.ceil(events / self.batch)
        return OptimiserSettings(
            steps=steps,
            batch=self.batch,
            lr=self.lr,
            warmup=min(self.warmup, steps // 10),
            cooldown=self.cooldown,
            clip=self.clip,
            betas=(0.9, self.beta2),
            weight_decay=self.weight_decay,
            ema=self.ema,
            autocast=False,
            save_every=max(100, steps // 10),
            log_every=max(1, min(50, steps // 20)),
            seed=seed,
        )


RECIPES: dict[str, Recipe] = {
    "popularity": Recipe(kind="popularity", epochs=0),
    "mf": Recipe(kind="mf"),
    "lightgcn": Recipe(kind="lightgcn"),
    "lightgcn-query": Recipe(kind="lightgcn-query", epochs=15),
    "uditsr": Recipe(kind="uditsr", lr=3e-3),
    "uditsr-mlp": Recipe(kind="uditsr", lr=3e-3, settings={"head": "mlp"}),
    "uditsr-published": Recipe(
        kind="uditsr",
        epochs=100,
        batch=256,
        lr=1e-4,
        warmup=0,
        cooldown=0.0,
        clip=0.0,
        beta2=0.999,
        weight_decay=1e-5,
        ema=0.0,
        patience=10,
        watched="sampled hit@5",
        settings=asdict(UDITSRConfig.reference()),
    ),
    "masked": Recipe(kind="masked", epochs=8, batch=256),
    "diffusion": Recipe(kind="diffusion", batch=256),
}
"""Name -> recipe."""


def recipe_of(name: str) -> Recipe:
    """The recipe of a name, or ValueError."""
    if name not in RECIPES:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
