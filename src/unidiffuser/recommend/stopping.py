"""Early stopping: a run is measured on the validation part, ends when it gets no better, and keeps its best weights.

Every `check_every` epochs, and after the last one, the averaged weights rank the events of the validation part,
searches and recommendations in one pool; `watched` says by which metric of `evaluation`, and whether against all items
("full") or the listed candidates ("sampled"). After `patience` checks without a better one than the best before them,
the run ends. The first of equals is the best.

What was measured and the best weights are buffers of what is trained, so every checkpoint has them, and a run that was
stopped anywhere ends in the same bits. The schedule of the learning rate stays that of all epochs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unidiffuser.recommend.evaluation import Follow, full_ranking, sampled_ranking
from unidiffuser.recommend.events import Interactions
from unidiffuser.recommend.models import Model
from unidiffuser.recommend.recipes import Recipe

UNMEASURED = -1.0
"""In the place of a check that has not been: metrics are 0 or more."""


class Watched(nn.Module):
    """A model in training that is measured on the way."""

    values: Tensor

    def __init__(self, model: Model, data: Interactions, recipe: Recipe, per_epoch: int) -> None:
        """
        Args:
            recipe: whose `patience` is above 0.
            per_epoch: steps an epoch.

        Raises:
            ValueError: there is no validation part, or no list of candidates where they are asked for.
        """
        super().__init__()
        self.model, self.data, self.recipe = model, data, recipe
        self.period, self.steps = per_epoch * recipe.check_every, per_epoch * recipe.epochs
        self.how, self.metric = recipe.watched.split()
        if not len(data.valid):
            raise ValueError("early stopping needs a validation part, and this data has none; set patience=0")
        if self.how == "sampled" and "valid" not in data.candidates:
            raise ValueError(
                f"{recipe.watched!r} needs listed candidates, and this data has none; set watched='full {self.metric}'"
            )
        checks = -(-self.steps // self.period)
        self.register_buffer("values", torch.full((checks,), UNMEASURED, dtype=torch.float64))
        self.best = nn.Module()
        for name, p in model.named_parameters():
            self.best.register_buffer(_flat(name), p.detach().clone())

    def ended(self, step: int, average: Mapping[str, Tensor]) -> bool:
        """Whether the run is over at a step; measures the average of the weights where it is time to.

        Args:
            average: by the names of this module's weights.
        """
        if not step or (step % self.period and step != self.steps):
            return False
        check = -(-step // self.period) - 1
        if self.values[check] == UNMEASURED:
            weights = {name.removeprefix("model."): x for name, x in average.items()}
            value = self._measure(weights)
            if value > self.values.max():
                for name, x in weights.items():
                    self.best.get_buffer(_flat(name)).copy_(x)
            self.values[check] = value
        return check - self.kept >= self.recipe.patience

    @property
    def kept(self) -> int:
        """The check whose weights are the best, counted from 0."""
        measured = self.values.tolist()
        return measured.index(max(measured))

    def keep_best(self) -> None:
        """Give the model its best weights."""
        weights = {name: self.best.get_buffer(_flat(name)) for name, _ in self.model.named_parameters()}
        self.model.load_state_dict(weights, strict=False)

    def report(self) -> dict[str, Any]:
        """What was watched, {epoch: value}, and the epoch whose weights were kept."""
        last = self.recipe.epochs
        epochs = [min((k + 1) * self.recipe.check_every, last) for k in range(len(self.values))]
        measured = {e: x for e, x in zip(epochs, self.values.tolist(), strict=True) if x != UNMEASURED}
        return {"watched": self.recipe.watched, "epochs": measured, "kept": epochs[self.kept]}

    @torch.no_grad()
    def _measure(self, weights: Mapping[str, Tensor]) -> float:
        model, data, follow = self.model, self.data, Follow(None, 0)
        now = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.load_state_dict(weights, strict=False)
        model.eval().ready()
        if self.how == "full":
            found = full_ranking(model, data.valid, data.train, data.sizes.items, follow)
        else:
            found = sampled_ranking(model, data.valid, data.candidates["valid"], follow)
        model.load_state_dict(now, strict=False)
        model.train()
        if self.metric not in found:
            raise ValueError(f"no event of the validation part has a {self.recipe.watched!r}; watch another metric")
        value: float = found[self.metric]["mean"]
        return value


def _flat(name: str) -> str:
    """A weight's name as a buffer may have it."""
    return name.replace(".", "/")
