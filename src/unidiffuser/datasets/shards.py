"""A shard of encoded data: the latents of some rows of one source, a safetensors file.

    stream:<name>      (V, ...)   the latents of V values, in the order of the rows
    first:<modality>   (N,)       int64, where the values of a row begin in the streams of the modality
    count:<modality>   (N,)       int64, how many there are: 0 where the row lacks it, 5 for five captions
    key                (N,)       int64, the row's key, a place in the source's list of keys; only if it is joined

Files are written aside, flushed and renamed, so that a half-written one never has its name.
"""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unidiffuser.datasets.faults import Damaged
from unidiffuser.datasets.files import persistently
from unidiffuser.joint import streams_of

KEPT_OPEN = 64
SAVE_SECONDS = 10
"""Between one writing of a manifest and the next; who is killed makes the shards of so long again."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the manifest says of a shard."""

    file: str
    rows: int
    bytes: int
    sha256: str
    damaged: Mapping[str, int]
    """Reason -> how many rows were left out."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file aside, flush it to the disk, and give it its name."""
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_shard(path: Path, tensors: Mapping[str, Tensor], rows: int, damaged: Mapping[str, int]) -> Written:
    """Write a shard; the bytes depend on the tensors alone."""
    data = save({name: x.contiguous() for name, x in tensors.items()})
    write_whole(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return Written(file=path.name, rows=rows, bytes=len(data), sha256=digest, damaged=dict(damaged))


@contextmanager
def now_and_then(save: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Inside, a function to call often, which calls `save` every SAVE_SECONDS; it is called at the end in any case."""
    last = time.monotonic()

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last > SAVE_SECONDS:
            save()
            last = time.monotonic()

    try:
        yield tick
    finally:
        save()


class ShardFile:
    """An open shard."""

    def __init__(self, path: Path, rows: int, shapes: Shapes) -> None:
        """Raises OSError, or Damaged if the file is not the shard of these rows and shapes."""
        try:
            self._file: Any = safe_open(path, framework="pt")
            names = set(self._file.keys())
            self.spans = {
                name.removeprefix("first:"): (
                    self._file.get_tensor(name).tolist(),
                    self._file.get_tensor(name.replace("first:", "count:")).tolist(),
                )
                for name in names
                if name.startswith("first:")
            }
            self.keys: list[int] = self._file.get_tensor("key").tolist() if "key" in names else []
            for stream, shape in shapes.items():
                if f"stream:{stream}" in names:
                    there = tuple(self._file.get_slice(f"stream:{stream}").get_shape())
                    if there[1:] != tuple(shape):
                        raise ValueError(f"{stream} has the shape {there[1:]}")
            if any(len(part) != rows for spans in self.spans.values() for part in spans):
                raise ValueError("another number of rows")
        except (ValueError, SafetensorError) as error:
            raise Damaged(f"its shard {path.name} cannot be read") from error

    def row(self, row: int, turn: int, shapes: Shapes) -> dict[str, Tensor]:
        """Stream -> latent of a row, of several values the one whose turn it is."""
        found = {}
        for modality, (firsts, counts) in self.spans.items():
            if counts[row]:
                value = firsts[row] + turn % counts[row]
                for stream in streams_of(modality, shapes):
                    found[stream] = self._file.get_slice(f"stream:{stream}")[value : value + 1][0].float()
        return found


class OpenShards:
    """The shards of a source that are open in this process, the last ones used."""

    def __init__(self, folder: Path, shards: list[Written], shapes: Shapes) -> None:
        self.folder, self.shards, self.shapes = folder, shards, shapes
        self._open: OrderedDict[int, ShardFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, index: int) -> ShardFile:
        if index not in self._open:
            shard = self.shards[index]
            path = self.folder / shard.file
            self._open[index] = persistently(lambda: ShardFile(path, shard.rows, self.shapes), self.folder)
            while len(self._open) > KEPT_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(index)
        return self._open[index]
