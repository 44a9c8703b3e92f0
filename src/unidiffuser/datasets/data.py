"""Open data: the samples, what their modalities are, and an account of what is used and what is not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unidiffuser.datasets.cases import RawCases
from unidiffuser.datasets.declaration import Column, Declared
from unidiffuser.datasets.encoded import EncodedCases
from unidiffuser.datasets.faults import Damaged
from unidiffuser.datasets.mixing import Chained, Mixed
from unidiffuser.datasets.rows import Rows
from unidiffuser.modalities import Modality


@dataclass(frozen=True, kw_only=True)
class Opened:
    """One source, open."""

    declared: Declared
    cases: RawCases | EncodedCases
    rows: Rows | None
    """None of encoded data."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Open data."""

    pairs: Chained | Mixed
    """The samples: raw values by modality, or, of encoded data, tensors by stream."""
    kinds: Mapping[str, Mapping[str, Any]]
    """Modality -> {"kind": a file of modalities/, and options of its `fit`}."""
    labels: int
    """How many label tokens there are; 1 is none."""
    digest: str
    """sha256 of what the data are: names, sizes and tables of the files, and the declaration."""
    sources: Sequence[Opened]
    """The sources one by one."""
    codecs: Mapping[str, Modality[Any]] | None = None
    """The fitted codecs of encoded data; None of raw data, whose codecs are still to be fitted as `kinds` says."""

    @property
    def samples(self) -> int:
        """How many rows the sources have together. `len(pairs)` is more where rows take turns or are mixed."""
        return sum(len(source.cases) for source in self.sources)

    def repeats(self, index: int) -> bool:
        """Whether sample `index` shows the row of another, in a further turn or in the place of one that is damaged."""
        return self.pairs.repeats(index)

    def values(self, modality: str, most: int | None = None) -> Iterator[Any]:
        """The raw values of a modality, every caption of a text, to fit a codec on; nothing else is decoded.

        most: at most so many rows, spread evenly over the data. Damaged ones are passed over.
        """
        rows = [
            (source.cases, row) for source in self.sources for row in _spread(len(source.cases), most, self.samples)
        ]
        for cases, row in rows:
            if isinstance(cases, RawCases) and modality in cases.wanted:
                try:
                    yield from cases.alternatives(row, [modality]).get(modality, ())
                except Damaged:
                    continue

    def report(self) -> dict[str, Any]:
        """What is used and what is not, and why, as far as is known; JSON-able. `checking.check` reads everything."""
        return {
            "samples": self.samples,
            "epoch": len(self.pairs),
            "labels": self.labels,
            "digest": self.digest,
            "encoded": self.codecs is not None,
            "modalities": {name: dict(options) for name, options in self.kinds.items()},
            "sources": [_described(source) for source in self.sources],
        }


def _spread(rows: int, most: int | None, total: int) -> Iterator[int]:
    """Row numbers, all or as many evenly spread ones as are this source's part of `most`."""
    wanted = rows if most is None else min(rows, math.ceil(most * rows / total))
    return ((k * rows) // wanted for k in range(wanted))


def _described(source: Opened) -> dict[str, Any]:
    cases = source.cases
    found: dict[str, Any] = {"path": source.declared.path, "usable": len(cases)}
    if source.rows is not None and isinstance(cases, RawCases):
        found |= {"format": source.rows.format, "rows": len(source.rows)}
        found["columns"] = {name: _shown(each.column) for name, each in cases.wanted.items()}
    found |= {"weight": source.declared.weight, "turns": cases.turns, "budget": cases.tally.budget}
    return found | cases.tally.described()


def _shown(column: Column) -> str | list[str]:
    return column.names[0] if len(column.names) == 1 else list(column.names)
