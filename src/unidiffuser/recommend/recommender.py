"""Raw ids in, raw ids out: a trained model that recommends, searches and suggests.

    recommender = Recommender.fit("events.tsv", "runs/u")      # or Recommender.load("runs/u")
    recommender.recommend("17", 10)               # p(item | user)
    recommender.search("17", ["3", "14"], 10)     # p(item | user, query)
    recommender.suggest("17")                     # p(query | user), word by word
    recommender.demand("17", "203")               # p(query | user, item), word by word
    recommender.audience("203")                   # p(user | item)

A user who was never seen is the average user, and a word that was never seen is left out; the answer says so. What a
user has had in training is not recommended again unless it is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unidiffuser.recommend.events import UNKNOWN, History, Index, padded
from unidiffuser.recommend.store import Saved, read_model
from unidiffuser.recommend.training import Plan, Progress, train

MAX_K = 10_000
CELLS = 40_000_000
"""So many scores are held at a time."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A ranked list, and what it is for."""

    labels: tuple[str, ...]
    """Raw ids of items, or words, the best first."""
    scores: tuple[float, ...]
    """Their scores, falling."""
    known_user: bool
    """False: nobody of this id was seen, and the list is that of the average user."""
    query: tuple[str, ...] = ()
    """The words that were read."""
    unknown_words: tuple[str, ...] = ()
    """The words that were never seen and left out."""
    shortlist: int = 0
    """Among how many items the best were sought by their exact scores; 0: among all."""


class Recommender:
    """A trained model with its id maps."""

    def __init__(self, saved: Saved) -> None:
        self.model, self.names, self.training = saved.model, saved.names, saved.training
        self.history = History(saved.model.train_events)

    @classmethod
    def fit(
        cls,
        table: str | Path,
        run: str | Path,
        model: str = "uditsr",
        *,
        seed: int = 0,
        progress: Progress | None = None,
        **changes: Any,
    ) -> "Recommender":
        """Train a model on a table of events, going on where an earlier call with the same run folder stopped.

        Args:
            table: a file or folder in any format of `tables`.
            run: the folder of its checkpoints, its split and in the end the model.
            model: a row of `recipes.RECIPES`.
            seed: of the weights and the order.
            progress: called with (step, steps, figures).
            changes: fields of the recipe or of the model's config, such as epochs=10 or dim=32.

        Raises:
            ValueError: an unknown model or setting, a table that cannot be read, the folder of another run.
        """
        return cls(train(Path(table), Plan.of(model, seed=seed, **changes), Path(run), progress=progress))

    @classmethod
    def load(cls, run: str | Path, **settings: Any) -> "Recommender":
        """The model of a run folder, or of a model folder.

        Args:
            settings: those that matter only when a model is asked, such as the diffusion's guidance.

        Raises:
            ModelError: it is missing or damaged. ValueError: a setting that cannot be changed so.
        """
        run = Path(run)
        return cls(read_model(run / "final" if (run / "final").is_dir() else run, settings))

    def recommend(self, user: str, k: int = 10, *, again: bool = False) -> Answer:
        """The k best items for a user; with `again`, also those that the user has had."""
        return self.search(user, (), k, again=again)

    def search(self, user: str | None, query: Sequence[str], k: int = 10, *, again: bool = False) -> Answer:
        """The k best items for a user and the words of a query; user None is nobody in particular."""
        known, unknown = self.names.query(query)
        row = UNKNOWN if user is None else self.names.users.rows([user])[0]
        words = padded([known], 0)
        items, scores = self.top(torch.tensor([row]), words, k, again=again)
        there = scores[0].isfinite()
        return Answer(
            labels=tuple(self.names.items[i] for i in items[0][there].tolist()),
            scores=tuple(scores[0][there].tolist()),
            known_user=row != UNKNOWN,
            query=tuple(self.names.words[w] for w in known),
            unknown_words=tuple(unknown),
            shortlist=self.model.shortlist(words),
        )

    def suggest(self, user: str, k: int = 10) -> Answer:
        """The k words that a user is most likely to search for."""
        row = self.names.users.rows([user])[0]
        return _answer(self.model.word_scores(torch.tensor([row]))[0], self.names.words, k, row != UNKNOWN)

    def demand(self, user: str, item: str, k: int = 10) -> Answer:
        """The k words that most likely say why a user takes an item, p(query | user, item).

        Raises:
            ValueError: an item that was never seen, or a model that knows no demand.
        """
        if not self.model.names_demand:
            raise ValueError(
                f"this {self.model.kind} cannot say why an item is taken: it has no demand of a user and an item; "
                "train uditsr with its generator, masked or diffusion"
            )
        row, of = self.names.users.rows([user])[0], self._item(item)
        return _answer(self.model.word_scores(torch.tensor([row]), of)[0], self.names.words, k, row != UNKNOWN)

    def audience(self, item: str, k: int = 10, *, again: bool = False) -> Answer:
        """The k users that an item is most likely for, p(user | item); with `again`, also those who have had it.

        Raises:
            ValueError: an item that was never seen, or a model whose scores compare no users.
        """
        of = self._item(item)
        table = self.model.user_scores(of)[0]
        if not again:
            table[self.history.user[self.history.item == of]] = -torch.inf
        return _answer(table, self.names.users, k, True)

    def _item(self, label: str) -> Tensor:
        row = self.names.items.rows([label])[0]
        if row == UNKNOWN:
            raise ValueError(f"item {label!r} was never seen in training; give one of the table's items")
        return torch.tensor([row])

    @torch.no_grad()
    def top(self, users: Tensor, words: Tensor, k: int, *, again: bool = False) -> tuple[Tensor, Tensor]:
        """The best items of many at once, in rows: one product over all items where the model is one, otherwise pair by
        pair, or among a shortlist of those that `Model.coarse` finds; `Model.shortlist` says when.

        Args:
            users: (B,) rows, -1 for nobody in particular; words: (B, W).

        Returns:
            (B, k) rows of items and their scores, -inf where no item is left.
        """
        k, rows = min(_count(k), self.model.sizes.items), max(1, CELLS // self.model.sizes.items)
        parts = zip(users.split(rows), words.split(rows), strict=True)
        found = [self._top(*part, k, again) for part in parts]
        return torch.cat([items for items, _ in found]), torch.cat([scores for _, scores in found])

    def _top(self, users: Tensor, words: Tensor, k: int, again: bool) -> tuple[Tensor, Tensor]:
        count = self.model.shortlist(words)
        table = self.model.coarse(users, words) if count else self.model.scores(users, words)
        if not again:
            table = table.clone()
            table[self.history.pairs(users)] = -torch.inf
        if not count:
            best = table.topk(k)
            return best.indices, best.values
        near = table.topk(min(max(count, k), table.shape[1]))
        scores = self.model.scores(users, words, near.indices).masked_fill(near.values == -torch.inf, -torch.inf)
        best = scores.topk(k)
        return near.indices.gather(1, best.indices), best.values


def _answer(table: Tensor, names: Index, k: int, known_user: bool) -> Answer:
    """The k best of a table (N,) of scores, without what is impossible."""
    scores, rows = table.topk(min(_count(k), len(table)))
    there = scores.isfinite()
    labels = tuple(names[row] for row in rows[there].tolist())
    return Answer(labels=labels, scores=tuple(scores[there].tolist()), known_user=known_user)


def _count(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise ValueError(f"k must be a whole number from 1 to {MAX_K}, not {k!r}")
    return k
