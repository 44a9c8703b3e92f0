"""The usable rows of one source, decoded when they are asked for.

At the opening every row is looked at, as far as that needs no decoding: filters, nulls, the number of captions, the key
to join on. What is found is counted; what a file holds shows when it is read.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unidiffuser.datasets import filters
from unidiffuser.datasets.declaration import Column, Declared, Join
from unidiffuser.datasets.faults import Damaged, Tally, listed
from unidiffuser.datasets.rows import Rows, find_column
from unidiffuser.datasets.values import values_of
from unidiffuser.modalities import find


@dataclass(frozen=True)
class Wanted:
    """A modality as it lies in the rows of a source."""

    column: Column
    media_type: str
    options: Mapping[str, Any]


class RawCases:
    """Modality -> raw value, of the rows of a source that are used."""

    def __init__(
        self,
        rows: Rows,
        declared: Declared,
        kinds: Mapping[str, Mapping[str, Any]],
        tally: Tally,
    ) -> None:
        """kinds: modality -> its kind and options; those for which the source has no column are not in its samples."""
        self.rows, self.tally = rows, tally
        self.wanted = _wanted(rows, declared, kinds, tally.source)
        self.present: dict[str, int] = {}
        self.turns = 1
        self.picked: Any
        self.keys: Sequence[str] | None
        self.picked, self.keys = self._survey(declared)
        if not len(self.picked):
            left_out = tally.counts["filtered"].total()
            causes = [*([f"{left_out} are filtered"] if left_out else []), *([tally.worst()] if tally.bad() else [])]
            raise ValueError(f"{tally.source} has no sample that can be used ({'; '.join(causes)})")

    def __len__(self) -> int:
        return len(self.picked)

    def name(self, row: int) -> str:
        """What a person calls the row."""
        return self.rows.name(int(self.picked[row]))

    def case(self, row: int, turn: int) -> dict[str, Any]:
        """Modality -> raw value of a row; of several captions the one whose turn it is."""
        found = {name: values[(turn + row) % len(values)] for name, values in self.alternatives(row).items()}
        if not found:
            raise Damaged("it has no modality at all")
        return found

    def use_options(self, kinds: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the modalities' options, as they are once all sources are known."""
        self.wanted = {name: replace(each, options=kinds[name]) for name, each in self.wanted.items()}

    def alternatives(self, row: int, only: Collection[str] | None = None) -> dict[str, Sequence[Any]]:
        """Modality -> all its raw values, in every modality that the row has; Damaged if one cannot be used."""
        wanted = {name: each for name, each in self.wanted.items() if only is None or name in only}
        columns = {column for each in wanted.values() for column in each.column.names}
        cells = self.rows.cells(int(self.picked[row]), columns)
        found: dict[str, Sequence[Any]] = {}
        for name, each in wanted.items():
            cell = [cells[c] for c in each.column.names] if len(each.column.names) > 1 else cells[each.column.names[0]]
            if values := values_of(cell, each.media_type, each.options, each.column.values):
                found[name] = values
        return found

    def _survey(self, declared: Declared) -> tuple[Any, list[str] | None]:
        """The rows that are used, and their keys."""
        tests = filters.build(declared.filters, self.rows.columns, self.tally.source)
        light = {name: each for name, each in self.wanted.items() if not set(each.column.names) & set(self.rows.heavy)}
        join = _join_column(declared.join, self.rows, self.tally.source)
        columns = {c for each in light.values() for c in each.column.names} | {test.column for test in tests}
        columns |= {join} if join else set()
        picked, keys = np.zeros(len(self.rows), bool), []
        for row, cells in enumerate(_together(self.rows, sorted(columns))):
            if self._passes(row, cells, tests) and self._counted(row, cells, light):
                key = _key(cells[join], declared.join) if join and declared.join else ""
                if key is None:
                    self.tally.count("damaged", "it has no key to be joined on", self.rows.name(row))
                else:
                    picked[row] = True
                    keys.append(key)
        return np.flatnonzero(picked), keys if join else None

    def _passes(self, row: int, cells: Mapping[str, Any], tests: Sequence[filters.Filter]) -> bool:
        for test in tests:
            cell = cells[test.column]
            if isinstance(cell, dict):
                self.tally.count("damaged", str(cell.get("refused", "a value is a JSON object")), self.rows.name(row))
                return False
            if (reason := test.fails(cell)) is not None:
                self.tally.count("filtered", reason)
                return False
        return True

    def _counted(self, row: int, cells: Mapping[str, Any], light: Mapping[str, Wanted]) -> bool:
        """Count what a row lacks; False if it lacks all."""
        counts = {name: sum(_count(cells[c]) for c in each.column.names) for name, each in light.items()}
        if len(light) == len(self.wanted) and not any(counts.values()):
            self.tally.count("damaged", "it has no modality at all", self.rows.name(row))
            return False
        for name, count in counts.items():
            if count:
                self.present[name] = self.present.get(name, 0) + 1
            else:
                self.tally.count("without", name, self.rows.name(row))
            if light[name].media_type == "text":
                self.turns = max(self.turns, count)
        return True


def _wanted(rows: Rows, declared: Declared, kinds: Mapping[str, Mapping[str, Any]], source: str) -> dict[str, Wanted]:
    columns = declared.columns
    if columns is None:
        columns = {name: _column(each) for name, each in rows.defaults.items() if name in kinds}
    found = {}
    for modality, column in columns.items():
        media_type = find(kinds[modality]["kind"]).media_type
        names = [find_column(name, rows.columns) for name in column.names]
        if missing := [name for name, there in zip(column.names, names, strict=True) if there is None]:
            raise ValueError(f"{source} has no column {missing[0]!r}; it has {listed(rows.columns, 12)}")
        together = Column(names=tuple(name for name in names if name), values=column.values)
        found[modality] = Wanted(together, media_type, kinds[modality])
    if not found:
        raise ValueError(
            f"{source} has no column that is known to be a modality (it has {listed(rows.columns, 12)}); "
            'say in data.json which is what: {"columns": {"image": ..., "text": ...}}'
        )
    return found


def _column(names: str | list[str]) -> Column:
    return Column(names=(names,) if isinstance(names, str) else tuple(names))


def _join_column(join: Join | None, rows: Rows, source: str) -> str | None:
    if join is None:
        return None
    column = find_column(join.column, rows.columns)
    if column is None:
        raise ValueError(f"{source} has no column {join.column!r} to be joined on; it has {listed(rows.columns, 12)}")
    return column


def _key(cell: Any, join: Join) -> str | None:
    """The key in a cell; None if there is none."""
    if cell is None or isinstance(cell, dict | list) or not str(cell).strip():
        return None
    text = str(cell).strip()
    return text if join.keys is None else join.keys.get(text)


def _count(cell: Any) -> int:
    """How many values a cell holds; a refused cell counts, to be met when it is read."""
    if isinstance(cell, list):
        return sum(_count(each) for each in cell)
    return 0 if cell is None or (isinstance(cell, str) and not cell.strip()) else 1


def _together(rows: Rows, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Column -> cell, of every row."""
    if not columns:
        yield from ({} for _ in range(len(rows)))
        return
    for cells in zip(*(rows.column(column) for column in columns), strict=True):
        yield dict(zip(columns, cells, strict=True))
