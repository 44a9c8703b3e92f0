"""Models of who takes which item: one file a model, all asked in the same way.

    scores(users, words, items)     log p(item | user, query) up to what does not depend on the item, or a score like it
    word_scores(users, items)       the same for the words of a query, where a model has an opinion of its own
    user_scores(items)              log p(user | item) likewise, where a model knows it

The folder is the registry: a model's kind is the name of its file. A model sees rows of `events.Events`, never raw ids
or files. A user row of -1 is someone never seen and stands for the average user; a query row of zeros asks nothing.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unidiffuser.recommend.events import Events, Sizes
from unidiffuser.recommend.settings import with_settings

Loss = tuple[Tensor, Mapping[str, Tensor]]
"""A scalar to minimise and its named parts, detached."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The events of one optimiser step."""

    events: Events
    """B events."""
    negative: Tensor
    """(B,) an item that the user has not had in training, drawn with equal chances; -1 where there is none."""
    rows: Tensor
    """(B,) where the events stand in the training data."""
    generator: torch.Generator
    """For whatever else the step draws."""


class Model(nn.Module, ABC):
    """The base of all models."""

    kind: ClassVar[str]
    """The name of the model's file."""
    Config: ClassVar[type]
    """The frozen dataclass that describes the model."""
    asked: ClassVar[tuple[str, ...]] = ()
    """Fields of the config that matter only when the model is asked, so that they may change after training."""
    config: Any

    def __init__(self, config: Any, sizes: Sizes, train: Events) -> None:
        """
        Args:
            config: an instance of `Config`.
            sizes: rows of users, items and words.
            train: the events that the model may look at, its graph or its counts.
        """
        super().__init__()
        self.config, self.sizes, self.train_events = config, sizes, train
        asked = train.user * sizes.words
        self.history = torch.unique((asked[:, None] + train.words)[train.words > 0], return_counts=True)
        self.word_counts = torch.bincount(train.words[train.words > 0], minlength=sizes.words).float()

    def loss(self, batch: Batch, epoch: int) -> Loss:
        """What training minimises on a batch, in a pass over the data that is counted from 0."""
        raise NotImplementedError(f"{self.kind} has nothing to train")

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return any(p.requires_grad for p in self.parameters())

    def ready(self) -> None:
        """Compute what scoring needs from the weights as they are now."""

    @abstractmethod
    def scores(self, users: Tensor, words: Tensor, items: Tensor | None = None) -> Tensor:
        """How well items fit, higher is better, only comparable within a row.

        Args:
            users: (B,) rows, -1 for someone never seen.
            words: (B, W) queries padded with 0; a row of zeros is a recommendation.
            items: (B, C) rows of the items that are asked for; None: all of them, in one product where the model can.

        Returns:
            (B, C) or (B, I), float32.
        """

    def shortlist(self, words: Tensor) -> int:
        """Among how many of the best of `coarse` the best of `scores` are sought for these queries (B, W); 0: among all
        items, where their scores are cheap themselves or were asked for."""
        return 0

    def coarse(self, users: Tensor, words: Tensor) -> Tensor:
        """A cheap likeness of `scores` for all items, (B, I)."""
        return self.scores(users, words)

    def word_scores(self, users: Tensor, items: Tensor | None = None) -> Tensor:
        """How likely each word is in a query of these users, for one item each (B,) if given: (B, V), word 0 is -inf.

        A model without an opinion of its own answers with the user's own words, the most frequent first, and then the
        words that all users search for.
        """
        keys, counts = self.history
        low = torch.searchsorted(keys, users * self.sizes.words)
        many = torch.searchsorted(keys, (users + 1) * self.sizes.words) - low
        row = torch.arange(len(users)).repeat_interleave(many)
        place = low[row] + torch.arange(len(row)) - (many.cumsum(0) - many)[row]
        table = torch.zeros(len(users), self.sizes.words)
        table[row, keys[place] % self.sizes.words] = counts[place].float()
        table += self.word_counts / (self.word_counts.sum() + 1)
        table[:, 0] = -torch.inf
        return table

    @property
    def names_demand(self) -> bool:
        """Whether `word_scores` of an item say more than those of the user alone."""
        return False

    def user_scores(self, items: Tensor) -> Tensor:
        """log p(user | item) up to what does not depend on the user: (B, U) for items (B,).

        Raises:
            ValueError: a model whose scores compare the items of one user only.
        """
        raise ValueError(
            f"{self.kind} cannot say who an item is for: its scores compare items for one user, not users for one "
            "item; train masked or diffusion"
        )


def kinds() -> list[str]:
    """The models that can be named: the files of this folder that hold a `Model` with that kind."""
    return [m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name not in PARTS]


PARTS = ("factors", "demand", "translation", "usual", "joint")
"""Files of this folder that models are made of."""


def find(kind: str) -> type[Model]:
    """The class of a kind; ValueError for a name that is not a file of this folder."""
    if kind not in kinds():
        raise ValueError(f"there is no model {kind!r}; there are {', '.join(kinds())}")
    module = importlib.import_module(f"{__name__}.{kind.replace('-', '_')}")
    return next(
        member
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, Model) and member.__module__ == module.__name__
    )


def configure(kind: str, settings: Mapping[str, Any]) -> Any:
    """The config of a kind with some of its fields set; an unknown or unfit one is a ValueError."""
    return with_settings(find(kind).Config(), settings, kind)
