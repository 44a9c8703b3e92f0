"""Rows as they are read, and how they become a table of whole numbers.

A format yields `Row`s and counts what it passes over in a `Tally`; `collect` gives every raw id a row number, in the
order of first sight, cuts long queries, drops exact repetitions, and counts that too.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unidiffuser.recommend.events import MAX_WORDS, UNKNOWN, Events, Index, Names, padded

PARTS = ("", "train", "valid", "test")
"""What a row may belong to; the empty name is for a table that is not split yet."""
MAX_ID = 200
"""No raw id and no word is longer."""

Tally = Counter[str]
"""What was met, in words -> how often."""


class Row(NamedTuple):
    """One line of a table."""

    user: str
    item: str
    words: tuple[str, ...] = ()
    time: float | None = None
    part: str = ""
    list_id: str = ""
    """Rows of one part with the same list id are candidates of one ranking."""
    positive: bool = True
    """Whether the user took the item; only a list may hold others."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """All events of a data set, in the order they were read."""

    names: Names
    events: Events
    time: Tensor | None
    """(N,) float64; None if any event has none."""
    part: Tensor
    """(N,) int64, the event's place in `PARTS`."""
    candidates: Tensor | None
    """(N, C) int64: the given candidates of each event, its own item first, padded with `UNKNOWN`; None if none were
    given."""
    counts: Tally = field(default_factory=Counter)

    def rows(self, which: Tensor) -> Iterator[Row]:
        """Some events in raw ids."""
        events, names = self.events[which], self.names
        times = [None] * len(which) if self.time is None else self.time[which].tolist()
        for user, item, words, time in zip(
            events.user.tolist(), events.item.tolist(), events.words.tolist(), times, strict=True
        ):
            yield Row(names.users[user], names.items[item], tuple(names.words[w] for w in words if w), time)


def usable(row: Row, tally: Tally) -> bool:
    """Whether a row has a user and an item of bearable length; what it lacks is counted."""
    if not row.user or not row.item:
        tally["rows without a user or an item, dropped"] += 1
    elif max(len(row.user), len(row.item), *map(len, row.words), 0) > MAX_ID:
        tally[f"rows with an id or a word of more than {MAX_ID} characters, dropped"] += 1
    elif any("\n" in label or "\r" in label for label in (row.user, row.item, *row.words)):
        tally["rows with a line break inside an id or a word, dropped"] += 1
    else:
        return True
    return False


def collect(rows: Iterable[Row], tally: Tally, source: Path) -> Table:
    """The table of all usable rows.

    Raises:
        ValueError: there is no event in them.
    """
    columns = _Columns()
    for row in _kept(rows, tally):
        tally[f"queries cut to {MAX_WORDS} words"] += len(row.words) > MAX_WORDS
        columns.add(row)
    if not columns.user:
        raise ValueError(f"{source} holds no event; give a table with a row for each time that a user took an item")
    return columns.table(tally)


class _Columns:
    """Rows as columns of whole numbers while they are read."""

    def __init__(self) -> None:
        self.users, self.items, self.words = dict[str, int](), dict[str, int](), {"": 0}
        self.queries: dict[tuple[int, ...], int] = {}
        self.lists: dict[tuple[str, str], int] = {}
        self.listed: dict[int, list[int]] = {}
        self.user, self.item, self.query, self.part, self.list = (array("q") for _ in range(5))
        self.time = array("d")

    def add(self, row: Row) -> None:
        """Take a row in: an event, or a candidate of a list."""
        item = self.items.setdefault(row.item, len(self.items))
        number = self.lists.setdefault((row.part, row.list_id), len(self.lists)) if row.list_id else -1
        if not row.positive:
            self.listed.setdefault(number, []).append(item)
            return
        words = tuple(self.words.setdefault(word, len(self.words)) for word in row.words[:MAX_WORDS])
        self.user.append(self.users.setdefault(row.user, len(self.users)))
        self.item.append(item)
        self.query.append(self.queries.setdefault(words, len(self.queries)))
        self.part.append(PARTS.index(row.part))
        self.list.append(number)
        self.time.append(math.nan if row.time is None else row.time)

    def table(self, tally: Tally) -> Table:
        """All that was read, each event once."""
        columns = [np.asarray(column) for column in (self.user, self.item, self.query, self.part, self.list)]
        keep = torch.from_numpy(_first_of_each([*columns, np.asarray(self.time).view(np.int64)]))
        tally["exact repetitions, dropped"] += len(self.user) - len(keep)
        user, item, query, part, number = (torch.from_numpy(column)[keep] for column in columns)
        time = torch.tensor(self.time, dtype=torch.float64)[keep]
        listed = [self.listed.get(n, []) for n in number.tolist()]
        return Table(
            names=Names(users=Index(self.users), items=Index(self.items), words=Index(self.words)),
            events=Events(user, item, padded(list(self.queries), 0)[query]),
            time=None if bool(time.isnan().any()) else time,
            part=part,
            candidates=torch.cat([item[:, None], padded(listed, UNKNOWN)], 1) if self.listed else None,
            counts=Counter({what: n for what, n in tally.items() if n}),
        )


def _first_of_each(columns: list[Any]) -> Any:
    """The places, in order, of the rows that none before them equals."""
    order = np.lexsort(columns[::-1])
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    return np.sort(order[fresh])


def _kept(rows: Iterable[Row], tally: Tally) -> Iterator[Row]:
    for row in rows:
        tally["rows read"] += 1
        if usable(row, tally):
            yield row
