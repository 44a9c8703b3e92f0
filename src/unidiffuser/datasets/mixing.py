"""Several sources as one data set: one after the other, mixed by weight, or paired by what they have in common.

A *part* has rows, and turns: a row of five captions takes five turns, in each of them another caption. What sample i
is follows from (seed, i) alone, so that training resumes anywhere, with any number of loader processes.

    Chained     sample i is row i mod R in turn i div R, of R rows in all: every row once a turn
    Mixed       sources in blocks of L samples, of which source s has m_s, m_s / L nearest to its weight; an epoch is so
                long that each source is gone through at least once
    Joined      each row of the first part with rows of the others that share its key, other ones every turn: in m turns
                it meets each of the m rows of a partner once

It does not know what rows hold.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from unidiffuser.datasets.dice import Dice
from unidiffuser.datasets.faults import Damaged, DataLost, Tally

MAX_BLOCK = 1000
TOLERANCE = 1e-3


class Cases(Protocol):
    """The usable rows of one source."""

    tally: Tally
    turns: int
    """How many alternatives a row has at most."""
    keys: Sequence[str] | None
    """The key of each row, if the source is to be joined."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What a person calls the row."""

    def case(self, row: int, turn: int) -> Mapping[str, Any]:
        """Modality (or stream) -> value of a row in a turn; Damaged if it cannot be used."""


class Part(Protocol):
    """Rows that take turns, under one label."""

    label: int
    turns: int

    def __len__(self) -> int: ...

    def at(self, row: int, turn: int) -> Mapping[str, Any]:
        """The sample of a row in a turn; if the row is damaged, of the next that is not."""

    def lost(self, row: int) -> bool:
        """Whether a row was found to be damaged, so that another stands in its place."""


class Source:
    """The rows of one source as they are."""

    def __init__(self, cases: Cases, label: int = 0) -> None:
        self.cases, self.label, self.turns = cases, label, cases.turns
        self.damaged: set[int] = set()

    def __len__(self) -> int:
        return len(self.cases)

    def at(self, row: int, turn: int) -> Mapping[str, Any]:
        """The sample of a row in a turn; if the row is damaged, of the next that is not."""
        order = ((row + k) % len(self) for k in range(len(self)))
        return _expected(self.cases, _first_whole(self.cases, order, turn, self.damaged))

    def lost(self, row: int) -> bool:
        """Whether a row was found to be damaged, so that another stands in its place."""
        return row in self.damaged


class Joined:
    """Rows of several sources that share a key."""

    def __init__(self, cases: Sequence[Cases], seed: int = 0, label: int = 0) -> None:
        """cases: the first gives the rows, the others their partners. A row without a partner lacks its modalities."""
        self.first, self.others, self.seed, self.label = cases[0], list(cases[1:]), seed, label
        self.damaged: list[set[int]] = [set() for _ in cases]
        self.members = [_by_key(other) for other in self.others]
        self.turns = self.first.turns
        for other, members in zip(self.others, self.members, strict=True):
            self.turns = max(self.turns, max(map(len, members.values()), default=1) * other.turns)
        self._count_unpaired()

    def __len__(self) -> int:
        return len(self.first)

    def at(self, row: int, turn: int) -> Mapping[str, Any]:
        """The sample of a row in a turn; if the row is damaged, of the next that is not."""
        order = ((row + k) % len(self) for k in range(len(self)))
        return _expected(self.first, next((one for k in order if (one := self._paired(k, turn)) is not None), None))

    def lost(self, row: int) -> bool:
        """Whether a row was found to be damaged, so that another stands in its place."""
        return row in self.damaged[0]

    def _paired(self, row: int, turn: int) -> dict[str, Any] | None:
        """A row and its partners; None if the row itself is damaged."""
        assert self.first.keys is not None
        found = _first_whole(self.first, [row], turn, self.damaged[0])
        if found is None:
            return None
        sample = dict(found)
        for k, (other, members) in enumerate(zip(self.others, self.members, strict=True)):
            if (rows := members.get(self.first.keys[row])) is not None:
                start = Dice(self.seed, k, row).below(len(rows)) + turn
                order = (int(rows[(start + step) % len(rows)]) for step in range(len(rows)))
                sample |= _first_whole(other, order, turn // len(rows), self.damaged[k + 1]) or {}
        return sample

    def _count_unpaired(self) -> None:
        assert self.first.keys is not None
        own = set(self.first.keys)
        for other, members in zip(self.others, self.members, strict=True):
            if not own & members.keys():
                few = [", ".join(sorted(keys)[:3]) for keys in (own, members.keys())]
                raise ValueError(
                    f"{self.first.tally.source} and {other.tally.source} share no value of the columns they are joined "
                    f"on ({few[0]} against {few[1]}); give `keys` that make them alike"
                )
            alone = sum(key not in members for key in self.first.keys)
            if alone:
                self.first.tally.count("without", f"a partner in {other.tally.source}", times=alone)
            unused = sum(len(rows) for key, rows in members.items() if key not in own)
            if unused:
                other.tally.count("ignored", f"no row of {self.first.tally.source} has their key", times=unused)


class Chained:
    """Parts one after the other, in as many turns as the one that needs most."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.rows = int(self.ends[-1])
        self.turns = max(part.turns for part in parts)

    def __len__(self) -> int:
        return self.rows * self.turns

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        part, row = self._place(index)
        return part.at(row, index // self.rows)

    def label_of(self, index: int) -> int:
        """The label of the part that a sample comes from."""
        return self._place(index)[0].label

    def repeats(self, index: int) -> bool:
        """Whether another sample shows the row of this one: it takes a further turn, or was found to be damaged."""
        part, row = self._place(index)
        return index >= self.rows or part.lost(row)

    def _place(self, index: int) -> tuple[Part, int]:
        check_index(index, len(self))
        row = index % self.rows
        k = int(np.searchsorted(self.ends, row, "right"))
        return self.parts[k], row - (int(self.ends[k - 1]) if k else 0)


class Mixed:
    """Parts mixed by weight."""

    def __init__(self, parts: Sequence[Part], weights: Sequence[float], seed: int = 0) -> None:
        self.parts, self.seed = list(parts), seed
        self.counts = shares(weights)
        self.block = sum(self.counts)
        # source s has its k-th place of a block at (k + 1/2) / m_s of the way, so that all are spread evenly
        places = sorted(((k + 0.5) / m, s, k) for s, m in enumerate(self.counts) for k in range(m))
        self.slots = [(s, k) for _, s, k in places]
        blocks = (-(-len(part) * part.turns // m) for part, m in zip(parts, self.counts, strict=True))
        self.length = self.block * max(blocks)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        check_index(index, self.length)
        part, row, turn = self._place(index)
        return part.at(row, turn)

    def label_of(self, index: int) -> int:
        """The label of the part that a sample comes from."""
        check_index(index, self.length)
        return self.parts[self.slots[index % self.block][0]].label

    def repeats(self, index: int) -> bool:
        """Whether another sample shows the row of this one: it takes a further turn, or was found to be damaged."""
        check_index(index, self.length)
        part, row, turn = self._place(index)
        return turn > 0 or part.lost(row)

    def _place(self, index: int) -> tuple[Part, int, int]:
        """The part of a sample, its row and its turn."""
        s, k = self.slots[index % self.block]
        part = self.parts[s]
        turn, position = divmod(index // self.block * self.counts[s] + k, len(part))
        return part, shuffled(position, len(part), self.seed, s, turn), turn


def shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights to a thousandth, as small as can be, none of them 0."""
    total = math.fsum(weights)
    wanted = [weight / total for weight in weights]
    for block in range(len(weights), MAX_BLOCK + 1):
        counts = [max(1, round(share * block)) for share in wanted]
        if all(abs(n / sum(counts) - share) <= TOLERANCE for n, share in zip(counts, wanted, strict=True)):
            return counts
    return [max(1, round(share * MAX_BLOCK)) for share in wanted]


def shuffled(position: int, n: int, *key: int) -> int:
    """Where a position of 0 .. n - 1 goes in the order of a key: i -> (a i + b) mod n with a prime to n."""
    dice = Dice(*key)
    a, b = 1 + dice.below(n), dice.below(n)
    while math.gcd(a, n) != 1:
        a += 1
    return (a * position + b) % n


def check_index(index: int, length: int) -> None:
    """IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside 0 .. {length - 1}")


def _by_key(cases: Cases) -> dict[str, Any]:
    """Key -> the rows that have it, as an array."""
    assert cases.keys is not None
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(cases.keys):
        rows.setdefault(key, []).append(row)
    return {key: np.array(each, np.int64) for key, each in rows.items()}


def _first_whole(cases: Cases, rows: Iterable[int], turn: int, damaged: set[int]) -> Mapping[str, Any] | None:
    """The first of some rows that is not damaged, if any; a damaged one is counted, and not tried again."""
    for row in rows:
        if row in damaged:
            continue
        try:
            return cases.case(row, turn)
        except Damaged as error:
            damaged.add(row)
            cases.tally.met(error, cases.name(row), len(cases))
    return None


def _expected(cases: Cases, found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if found is None:
        raise DataLost(f"{cases.tally.source}: no sample of it can be used")
    return found
