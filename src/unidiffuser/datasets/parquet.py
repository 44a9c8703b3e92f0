"""Parquet files that hold pictures and sounds as bytes, raw or as the {"bytes", "path"} of Hugging Face.

Row groups are read when a sample needs them, and the last ones are kept, up to 1 GiB a process. Random access to a
large file of large row groups is slow all the same: `unidiffuser data encode` goes through it once, in order.
Columns of Arrow extension types are refused: to read one is to run what its type says. Needs pyarrow.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from unidiffuser.datasets.faults import Damaged, DataLost, Tally, listed
from unidiffuser.datasets.files import MAX_BLOB, Tree, persistently, scan, training_part
from unidiffuser.datasets.rows import Columns, find_column, plain, refused

KEPT_BYTES = 2**30
BYTES = {
    "image": ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes"),
    "sound": ("audio", "sound", "wav", "audio_bytes"),
}
"""Modality -> usual names of a column that holds its bytes."""


def files(tree: Tree) -> list[str]:
    """The parquet files of a folder."""
    return tree.suffixed(".parquet")


def open_parquet(root: Path, tally: Tally, names: list[str] | None = None) -> "ParquetRows":
    """The rows of the parquet files below a folder, or of the named ones.

    Raises:
        ValueError: pyarrow is missing, a file is damaged, or the files differ in their columns.
    """
    tree = scan(root, deep=not names)
    used, held_out = training_part(names or files(tree))
    for name in held_out:
        tally.count("ignored", "it is held out: there is a part named train beside it", name)
    return ParquetRows(root, used, {name: tree.sizes[name] for name in used})


class ParquetRows:
    """The rows of some parquet files with the same columns."""

    format = "parquet"

    def __init__(self, root: Path, names: list[str], identity: Mapping[str, Any]) -> None:
        self.root, self.names, self.identity = root, names, identity
        schemas = [checked(root / name) for name in names]
        self.columns: tuple[str, ...] = tuple(schemas[0][0])
        for name, (columns, _) in zip(names, schemas, strict=True):
            if differing := sorted(set(columns) ^ set(self.columns)):
                raise ValueError(
                    f"{root / name} and {names[0]} differ in the columns {listed(differing)}; keep one kind"
                )
        groups = [(file, group, rows) for file, (_, sizes) in enumerate(schemas) for group, rows in enumerate(sizes)]
        self.groups = [(file, group) for file, group, _ in groups]
        self.starts = np.array([0, *accumulate(rows for _, _, rows in groups)])
        self.heavy: Collection[str] = _binary(schemas[0][0])
        self.defaults = _defaults(schemas[0][0], self.heavy)
        self._local = _Local()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, row: int) -> str:
        """The file, and the row's number in it."""
        first = next(k for k, (file, _) in enumerate(self.groups) if file == self._place(row)[0])
        return f"{self.names[self._place(row)[0]]}:{row - int(self.starts[first])}"

    def cells(self, row: int, columns: Collection[str]) -> dict[str, Any]:
        """Column -> cell; bytes as they are."""
        found = {}
        for column in columns:
            table, at = self._group(row, column)
            found[column] = _cell(table.column(0)[at].as_py())
        return found

    def column(self, name: str) -> Iterator[Any]:
        """The cell of every row; ValueError if a file holds another number of them than it says."""
        for number, file_name in enumerate(self.names):
            path = self.root / file_name
            expected = sum(np.diff(self.starts)[k] for k, (file, _) in enumerate(self.groups) if file == number)
            with _reading(path):
                for batch in _open(path).iter_batches(columns=[name], use_threads=False):
                    expected -= batch.num_rows
                    yield from (_cell(cell) for cell in batch.column(0).to_pylist())
            if expected:
                raise ValueError(f"{path} holds another number of rows than it says; get a whole copy of it")

    def _place(self, row: int) -> tuple[int, int]:
        return self.groups[int(np.searchsorted(self.starts, row, "right")) - 1]

    def _group(self, row: int, column: str) -> tuple[Any, int]:
        """The row group of a row, one column of it, and the row's place there."""
        at = int(np.searchsorted(self.starts, row, "right")) - 1
        file, group = self.groups[at]
        wanted = int(self.starts[at + 1] - self.starts[at])
        kept = self._local.groups
        if (at, column) not in kept:
            path = self.root / self.names[file]
            try:
                table = persistently(lambda: _open(path).read_row_group(group, [column], use_threads=False), self.root)
            except (Damaged, DataLost):
                raise
            except Exception as error:  # pyarrow raises OSError, ArrowInvalid, MemoryError, ... on damaged pages
                raise Damaged("its part of the parquet file is damaged") from error
            if table.num_rows != wanted:
                raise Damaged("its part of the parquet file holds another number of rows than the file says")
            kept[at, column] = table
            while len(kept) > 1 and sum(each.nbytes for each in kept.values()) > KEPT_BYTES:
                kept.popitem(last=False)
        kept.move_to_end((at, column))
        return kept[at, column], row - int(self.starts[at])


class _Local(threading.local):
    """The row groups that a thread keeps; another process begins with none."""

    def __init__(self) -> None:
        self.groups: OrderedDict[tuple[int, str], Any] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Local, ()


class _reading:
    """Turns what pyarrow raises over a damaged file into one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        arrow = type(error).__module__.startswith("pyarrow")  # its ArrowInvalid is a ValueError of many lines
        if isinstance(error, Exception) and (arrow or not isinstance(error, ValueError | ImportError)):
            raise ValueError(f"{self.path} is no whole parquet file; get a whole copy of it") from error


def _open(path: Path) -> Any:
    """A parquet file; ValueError if pyarrow is missing."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path} needs pyarrow, which is not installed: pip install 'unidiffuser[data]'") from error
    return pyarrow.parquet.ParquetFile(path, pre_buffer=False)


def checked(path: Path) -> tuple[dict[str, Any], list[int]]:
    """Column -> Arrow type, and the rows of each row group, of a file whose figures agree with each other."""
    with _reading(path):
        file = _open(path)
        schema, meta = file.schema_arrow, file.metadata
        for column in schema:
            if _extended(column):
                raise ValueError(
                    f"{path}: the column {column.name!r} is of an Arrow extension type, which is never read; "
                    "write it as plain bytes, text or numbers"
                )
        groups = [meta.row_group(k) for k in range(meta.num_row_groups)]
        sizes = [group.num_rows for group in groups]
        if sum(sizes) != meta.num_rows or meta.num_rows > path.stat().st_size or min(sizes, default=0) < 0:
            raise ValueError(f"{path} says that it holds {meta.num_rows} rows, which cannot be; get a whole copy of it")
        return {column.name: column.type for column in schema}, sizes


def _extended(column: Any) -> bool:
    import pyarrow

    named = b"ARROW:extension:name" in (column.metadata or {})
    kinds = [column.type, *(column.type.field(k).type for k in range(column.type.num_fields))]
    return named or any(isinstance(kind, pyarrow.BaseExtensionType) for kind in kinds)


def _binary(types: Mapping[str, Any]) -> list[str]:
    """The columns of bytes, raw or in a struct that holds "bytes"."""
    from pyarrow import types as arrow

    def holds_bytes(kind: Any) -> bool:
        if arrow.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(arrow.is_binary(kind) or arrow.is_large_binary(kind))

    return [name for name, kind in types.items() if holds_bytes(kind)]


def _defaults(columns: Collection[str], binary: Collection[str]) -> Columns:
    """The modalities: bytes and words under usual names."""
    found: dict[str, str | list[str]] = {}
    for modality, usual in BYTES.items():
        if column := next((name for name in usual if name in binary), None):
            found[modality] = column
    if text := find_column("text", [name for name in columns if name not in binary]):
        found["text"] = text
    return found


def _cell(value: Any) -> Any:
    """A cell with bytes as bytes: those of a {"bytes", "path"} too, whose path is never followed."""
    if isinstance(value, dict):
        return value.get("bytes") if isinstance(value.get("bytes"), bytes) else _no_bytes(value)
    if isinstance(value, bytes) and len(value) > MAX_BLOB:
        raise Damaged(f"it is larger than {MAX_BLOB >> 20} MiB")
    return value if isinstance(value, bytes) else plain(value)


def _no_bytes(value: Mapping[str, Any]) -> Any:
    return refused("it holds a path and no bytes; paths in parquet are not followed") if value.get("path") else None


def plain_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file of text and numbers, of all columns or some; what is neither is none."""
    checked(path)
    with _reading(path):
        for batch in _open(path).iter_batches(columns=columns, use_threads=False):
            for row in batch.to_pylist():
                yield {name: plain(cell) for name, cell in row.items()}
