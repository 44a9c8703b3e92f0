"""Events: who took which item, and with which query words. What every table becomes and every model learns from.

An event without words is a recommendation, an event with words is a search; nothing else tells them apart. Raw ids are
strings; inside they are row numbers of an `Index`, and word 0 is reserved for "no word", so that a query is a row of
whole numbers padded with zeros on the right.

This file knows nothing of file formats, splits or models.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NO_WORD = 0
"""The word that pads a query."""
UNKNOWN = -1
"""The row of a user or item that was never seen."""
MAX_WORDS = 10
"""Words of a query beyond these are cut off, and counted."""


class Index:
    """Raw ids in the order of their rows: id -> row and back."""

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = tuple(labels)
        self.row_of = {label: row for row, label in enumerate(self.labels)}
        if len(self.row_of) != len(self.labels):
            raise ValueError("an id occurs twice in an index; every id must have one row")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> str:
        return self.labels[row]

    def rows(self, labels: Iterable[str]) -> list[int]:
        """The row of each id, `UNKNOWN` where it has none."""
        return [self.row_of.get(label, UNKNOWN) for label in labels]


@dataclass(frozen=True, eq=False)
class Events:
    """N events as columns."""

    user: Tensor
    """(N,) int64 rows of users."""
    item: Tensor
    """(N,) int64 rows of items."""
    words: Tensor
    """(N, W) int64 words, padded with `NO_WORD` on the right; W may be 0."""

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, which: Tensor | slice) -> "Events":
        return Events(self.user[which], self.item[which], self.words[which])

    @property
    def is_search(self) -> Tensor:
        """(N,) whether the event has a word."""
        return (self.words != NO_WORD).any(1)


def no_events(width: int = 0) -> Events:
    """A table of no rows."""
    none = torch.zeros(0, dtype=torch.int64)
    return Events(none, none, torch.zeros(0, width, dtype=torch.int64))


def cat_events(parts: Sequence[Events]) -> Events:
    """Tables behind one another, their queries padded to the widest."""
    width = max(part.words.shape[1] for part in parts)
    words = [torch.nn.functional.pad(part.words, (0, width - part.words.shape[1])) for part in parts]
    return Events(torch.cat([p.user for p in parts]), torch.cat([p.item for p in parts]), torch.cat(words))


class History:
    """What users have had, found by user."""

    def __init__(self, seen: Events) -> None:
        order = torch.argsort(seen.user, stable=True)
        self.user, self.item = seen.user[order], seen.item[order]

    def pairs(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """(place in `users`, item) of everything that these users have had."""
        low = torch.searchsorted(self.user, users)
        count = torch.searchsorted(self.user, users, right=True) - low
        row = torch.arange(len(users)).repeat_interleave(count)
        offset = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        return row, self.item[low[row] + offset]


@dataclass(frozen=True, kw_only=True)
class Names:
    """The raw ids behind the rows."""

    users: Index
    items: Index
    words: Index
    """Row 0 is the empty string: no word."""

    @property
    def sizes(self) -> "Sizes":
        return Sizes(users=len(self.users), items=len(self.items), words=len(self.words))

    def query(self, words: Sequence[str]) -> tuple[list[int], list[str]]:
        """The rows of the words that are known, at most `MAX_WORDS`, and the words that are not."""
        rows = self.words.rows(words)
        known = [row for row in rows if row > NO_WORD]
        return known[:MAX_WORDS], [word for word, row in zip(words, rows, strict=True) if row <= NO_WORD]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many rows each table of a model has."""

    users: int
    items: int
    words: int
    """With the reserved word 0."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Interactions:
    """A data set, split: what to learn from, what to choose settings with, what to measure on."""

    names: Names
    train: Events
    valid: Events
    test: Events
    candidates: Mapping[str, Tensor] = field(default_factory=dict)
    """Part -> (N, C) items that each event's item is ranked against, padded with `UNKNOWN`; absent: full ranking
    only."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was met on the way here: rows read, rows dropped and why."""

    @property
    def sizes(self) -> Sizes:
        return self.names.sizes

    def part(self, name: str) -> Events:
        """The events of "train", "valid" or "test"."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        if name not in parts:
            raise ValueError(f"there is no part {name!r}; there are {', '.join(parts)}")
        return parts[name]


def padded(rows: Sequence[Sequence[int]], fill: int, width: int | None = None) -> Tensor:
    """Lists of whole numbers as one table (N, W), filled up on the right."""
    width = max(map(len, rows), default=0) if width is None else width
    table = torch.full((len(rows), width), fill, dtype=torch.int64)
    lengths = torch.tensor([min(len(row), width) for row in rows], dtype=torch.int64)
    flat = [value for row in rows for value in row[:width]]
    table[torch.arange(width) < lengths[:, None]] = torch.tensor(flat, dtype=torch.int64)
    return table
