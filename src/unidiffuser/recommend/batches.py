"""Batches of events as a function of the step alone, so that a run can stop and go on anywhere.

Every epoch goes through the training events once, in an order of its own. Each event comes with one item drawn with
equal chances from those that its user has not had in training. It knows no model.
"""

import torch

from unidiffuser.joint import generator
from unidiffuser.recommend.events import Events
from unidiffuser.recommend.models import Batch

TRIES = 20
"""A user whose draws hit what they have had so many times is given up: they have had nearly everything."""


class Batches:
    """Batch k of some training events."""

    def __init__(self, events: Events, items: int, size: int, seed: int) -> None:
        """items: how many there are. size: events a batch; the last one of an epoch may be smaller."""
        if size < 1:
            raise ValueError(f"a batch holds at least one event, not {size}")
        self.events, self.items, self.size, self.seed = events, items, size, seed
        self.had = torch.unique(events.user * items + events.item)
        self.order = (-1, torch.zeros(0))

    @property
    def per_epoch(self) -> int:
        """Batches of one pass over the events."""
        return -(-len(self.events) // self.size)

    def __call__(self, step: int) -> tuple[Batch, int]:
        """The batch of a step, and the epoch it belongs to."""
        epoch, place = divmod(step, self.per_epoch)
        if self.order[0] != epoch:
            dice = generator(self.seed, "order", epoch)
            self.order = (epoch, torch.randperm(len(self.events), generator=dice))
        rows = self.order[1][place * self.size : (place + 1) * self.size]
        dice = generator(self.seed, "step", step)
        events = self.events[rows]
        return Batch(events, self._negatives(events, dice), rows, dice), epoch

    def _negatives(self, events: Events, dice: torch.Generator) -> torch.Tensor:
        """(B,) an item that each user has not had, -1 where none was found."""
        drawn = torch.randint(self.items, (len(events),), generator=dice)
        for _ in range(TRIES):
            if not len(wrong := self._had(events.user, drawn).nonzero()[:, 0]):
                return drawn
            drawn[wrong] = torch.randint(self.items, (len(wrong),), generator=dice)
        drawn[self._had(events.user, drawn)] = -1
        return drawn

    def _had(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B,) whether each user has had an item."""
        keys = users * self.items + items
        place = torch.searchsorted(self.had, keys).clamp(max=len(self.had) - 1)
        return self.had[place] == keys
