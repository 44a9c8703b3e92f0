"""Popularity: an item's score is how many events it has. What every model has to beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unidiffuser.recommend.events import Events, Sizes
from unidiffuser.recommend.models import Model


@dataclass(frozen=True, kw_only=True)
class PopularityConfig:
    """There is nothing to set."""


class Popularity(Model):
    """Counts of the training events."""

    kind = "popularity"
    Config = PopularityConfig

    def __init__(self, config: PopularityConfig, sizes: Sizes, train: Events) -> None:
        super().__init__(config, sizes, train)
        self.counts = torch.bincount(train.item, minlength=sizes.items).float()

    def scores(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Tensor:
        if items is None:
            return self.counts.expand(len(users), -1)
        return self.counts[items]
