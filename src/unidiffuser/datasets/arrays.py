"""Arrays: a .npz file whose arrays have a row for every sample.

    images  uint8 (N, H, W) or (N, H, W, 3)     labels  whole numbers or text (N,)     anything else  numbers (N, D)

Arrays of Python objects are pickles and are refused. All that is used is held in memory.
"""

import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from unidiffuser.datasets.faults import Tally, listed
from unidiffuser.datasets.files import Tree, scan, training_part
from unidiffuser.datasets.rows import Columns

MAX_BYTES = 2**35
BROKEN = (OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged archive raises, besides ValueError."""
USUAL = {
    "image": ("images", "image", "pictures", "x", "x_train"),
    "sound": ("sounds", "sound", "waves", "audio"),
    "text": ("text", "texts", "captions", "names", "labels", "label", "y", "y_train"),
}
"""Modality -> usual names of its array."""

Array = np.ndarray[Any, Any]


def archives(tree: Tree) -> list[str]:
    """The .npz files of a folder."""
    return tree.suffixed(".npz")


def open_arrays(root: Path, tally: Tally, names: list[str] | None = None) -> "ArrayRows":
    """The rows of the .npz file of a folder, or of the named one.

    Raises:
        ValueError: there are several, or the file is damaged, holds objects, or arrays of different lengths.
    """
    tree = scan(root, deep=not names)
    used, held_out = training_part(names or archives(tree))
    for name in held_out:
        tally.count("ignored", "it is held out: there is a part named train beside it", name)
    if len(used) != 1:
        raise ValueError(f"{root} holds {len(used)} .npz files ({listed(used)}); give one, or declare each as a source")
    return ArrayRows(root / used[0])


class ArrayRows:
    """The rows of the arrays of one file."""

    format = "arrays"

    def __init__(self, path: Path) -> None:
        self.path = path
        heads, self.identity = _heads(path)
        if not heads:
            raise ValueError(f"{path} holds no arrays")
        lengths = {name: shape[0] if shape else 0 for name, (shape, _) in heads.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of {path} have different lengths ({lengths}); each needs a row a sample")
        self.length = next(iter(lengths.values()))
        self.columns = tuple(heads)
        self.defaults = _defaults(heads)
        self.heavy: Collection[str] = [name for name, (shape, _) in heads.items() if len(shape) > 1]
        self._arrays: dict[str, Array] = {}

    def __len__(self) -> int:
        return self.length

    def name(self, row: int) -> str:
        """The file and the row's number."""
        return f"{self.path.name}:{row}"

    def cells(self, row: int, columns: Collection[str]) -> dict[str, Any]:
        """Column -> the array's row: a number, a text or an array."""
        return {name: _cell(self._array(name)[row]) for name in columns}

    def column(self, name: str) -> Iterator[Any]:
        """The cell of every row."""
        return (_cell(each) for each in self._array(name))

    def _array(self, name: str) -> Array:
        if name not in self._arrays:
            try:
                with np.load(self.path, allow_pickle=False) as file:
                    self._arrays[name] = file[name]
            except (ValueError, KeyError, *BROKEN) as error:
                raise ValueError(f"{self.path}: the array {name!r} is damaged; get a whole copy of it") from error
        return self._arrays[name]


def _heads(path: Path) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype[Any]]], Mapping[str, Any]]:
    """Array -> shape and type, from the headers alone; and the checksums that the archive keeps of its parts."""
    heads, identity, total = {}, {}, 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                with archive.open(info) as file:
                    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                    shape, _, kind = read(file)
                if kind.hasobject:
                    raise ValueError(f"the array {name!r} of {path} holds objects, which is a pickle and never read")
                heads[name] = (shape, kind)
                identity[f"{path.name}/{name}"] = f"{info.file_size}-{info.CRC:08x}"
                total += int(np.prod(shape, dtype=object)) * kind.itemsize if shape else 0
    except BROKEN as error:
        raise ValueError(f"{path} is no whole .npz file; get a whole copy of it") from error
    except ValueError as error:
        if "never read" in str(error):
            raise
        raise ValueError(f"{path} is no whole .npz file ({str(error)[:80]}); get a whole copy of it") from error
    if total > MAX_BYTES:
        raise ValueError(f"the arrays of {path} say that they hold {total} bytes; at most {MAX_BYTES} are read")
    return heads, identity


def _defaults(heads: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> Columns:
    """The modalities: usual names first, and numbers in rows as a vector."""
    lower = {name.lower(): name for name in reversed(list(heads))}
    found: dict[str, str | list[str]] = {}
    for modality, usual in USUAL.items():
        for name in (lower[each] for each in usual if each in lower):
            shape, kind = heads[name]
            fits = {
                "image": kind == np.uint8 and len(shape) in (3, 4),
                "sound": kind.kind == "f" and len(shape) == 2,
                "text": kind.kind in "iuU" and len(shape) == 1,
            }
            if fits[modality]:
                found.setdefault(modality, name)
    vectors = [
        n for n, (shape, kind) in heads.items() if kind.kind in "iuf" and len(shape) == 2 and n not in found.values()
    ]
    if len(vectors) == 1:
        found["vector"] = vectors[0]
    return found


def _cell(value: Any) -> Any:
    """A row as a plain number or text, or as an array."""
    return value.item() if isinstance(value, np.generic) else value
