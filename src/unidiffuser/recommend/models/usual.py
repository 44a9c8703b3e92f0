"""What UDITSR's demand is on average, for a likeness of its scores that is one product.

The demand of a pair is taken for the sum of a user's part and an item's, q_ui ~ q_u + (q_i - q), so

    (e*_u + q_ui) . e*_i  ~  (e*_u + q_u) . e*_i + (q_i - q) . e*_i

with q_u the mean over the `POPULAR` items with the most events, and q_i - q as the average user has it. It is made only
when it is asked for: each user costs `POPULAR` passes of the generator, and all items one each, once.
"""

from functools import cached_property

import torch
from torch import Tensor

from unidiffuser.recommend.models.demand import ASKED, DemandGenerator, Shares

POPULAR = 32


class UsualDemand:
    """Means of the demands that a generator makes."""

    def __init__(self, generate: DemandGenerator, shares: Shares, items: Tensor, counts: Tensor) -> None:
        """
        Args:
            shares: of all users, the average one last, items and words.
            items: (I, d) e*_i; counts: (I,) how many events each has.
        """
        self.generate, self.shares, self.items = generate, shares, items
        self.popular = counts.topk(min(POPULAR, len(counts))).indices

    def of_users(self, users: Tensor) -> Tensor:
        """(B, d) q_u."""
        means = []
        for part in users.split(ASKED // POPULAR):
            who = torch.arange(len(part)).repeat_interleave(len(self.popular))
            demands = self.generate(self.shares.of(part), who, self.popular.repeat(len(part)))
            means.append(demands.unflatten(0, (len(part), -1)).mean(1))
        return torch.cat(means)

    @cached_property
    def item_effect(self) -> Tensor:
        """(I,) (q_i - q) . e*_i of the average user."""
        average, effects = torch.tensor([-1]), []
        shares, mean = self.shares.of(average), self.of_users(average)
        for items in torch.arange(len(self.items)).split(ASKED):
            demand = self.generate(shares, torch.zeros_like(items), items)
            effects.append(((demand - mean) * self.items[items]).sum(1))
        return torch.cat(effects)
