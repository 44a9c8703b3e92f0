"""Rows: what every format makes of its files, before anything is decoded.

A row has cells by column. A cell is what JSON can hold, a numpy array, or a `Blob` whose bytes are read when they are
needed. What a column means for a model, the declaration says; this file knows no modality.
"""

import json
import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from unidiffuser.datasets.files import Blob

Refused = dict[str, str]
"""A cell that cannot be used: {"refused": why}. It makes its sample damaged when it is looked at."""

Columns = Mapping[str, str | list[str]]
"""Modality -> the column, or the columns together, that hold it."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "caption", "captions", "prompt", "label_text"),
    "similarity": ("similarity", "clip_similarity_vitl14", "clip_similarity_vitb32", "clip_similarity"),
    "punsafe": ("punsafe", "p_unsafe", "nsfw_score", "nsfw_score_opennsfw2"),
    "pwatermark": ("pwatermark", "p_watermark", "watermark_score"),
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2", "aesthetics"),
    "language": ("language", "lang"),
    "width": ("original_width", "width", "image_width"),
    "height": ("original_height", "height", "image_height"),
}
"""What LAION, COYO and img2dataset call one thing, most wanted first. An exact name comes before all of them."""


def refused(why: str) -> Refused:
    """A cell that cannot be used."""
    return {"refused": why}


class Rows(Protocol):
    """The rows of a source, with random access."""

    format: str
    """The name of the format."""
    columns: tuple[str, ...]
    """All columns."""
    defaults: Columns
    """The modalities that the format finds by itself."""
    heavy: Collection[str]
    """The columns that are too much work to look through at the opening."""
    identity: Mapping[str, Any]
    """File -> its size or the hash of its content: what the data is."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What a person calls the row."""

    def cells(self, row: int, columns: Collection[str]) -> dict[str, Any]:
        """Column -> cell, None where the row has none. Raises Damaged."""

    def column(self, name: str) -> Iterator[Any]:
        """The cell of every row, in order; of a file its name, or a `Blob`."""


class Packed:
    """Many small JSON objects in one piece of memory, which loader processes share."""

    def __init__(self, objects: Iterable[Mapping[str, Any]] = ()) -> None:
        self.data = bytearray()
        self.ends = array("Q")
        for each in objects:
            self.append(each)

    def append(self, value: Mapping[str, Any]) -> None:
        """Put one more at the end."""
        self.data += json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        self.ends.append(len(self.data))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = self.ends[index - 1] if index else 0
        value: dict[str, Any] = json.loads(self.data[start : self.ends[index]].decode("utf-8", "surrogatepass"))
        return value


class FileRows:
    """Rows of packed cells, some of which name files below a root."""

    def __init__(
        self,
        *,
        format: str,
        root: Path,
        rows: Packed,
        columns: Iterable[str],
        files: Collection[str],
        defaults: Columns,
        identity: Mapping[str, Any],
    ) -> None:
        """files: the columns whose cells are names of files."""
        self.format, self.root, self.rows, self.columns = format, root, rows, tuple(columns)
        self.files, self.defaults, self.identity = frozenset(files), defaults, identity
        self.heavy: Collection[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """The row's first file, or its number."""
        cells = self.rows[row]
        return next((str(cells[name]) for name in self.columns if name in self.files and cells.get(name)), f"row {row}")

    def cells(self, row: int, columns: Collection[str]) -> dict[str, Any]:
        """Column -> cell; a file as a `Blob`."""
        cells = self.rows[row]
        found = {name: cells.get(name) for name in columns}
        for name in self.files.intersection(found):
            if isinstance(file := found[name], str):
                found[name] = Blob(self.root / file, self.root)
        return found

    def column(self, name: str) -> Iterator[Any]:
        """The cell of every row."""
        return (self.rows[row].get(name) for row in range(len(self)))


def find_column(name: str, columns: Collection[str]) -> str | None:
    """The column of this name, or of another spelling of it."""
    if name in columns:
        return name
    lower = {column.lower(): column for column in reversed(list(columns))}
    group = next((spellings for spellings in ALIASES.values() if name.lower() in spellings), (name.lower(),))
    return next((lower[spelling] for spelling in (*group, name.lower()) if spelling in lower), None)


def plain(value: Any) -> Any:
    """A cell as JSON can hold it; NaN (pandas writes it for nothing) and what is neither text nor number are none."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else None
