"""Encoded data: latents that the codecs made once, in checked shards. `unidiffuser data encode` writes them.

    manifest.json                 what the data were, the codecs' key, and rows, bytes and sha256 of every shard
    codecs.json, .safetensors     the codecs, so that training needs nothing else
    00-00000.safetensors, ...     the shards of source 0, and so on (`shards`)

`open_data` takes such a folder as it takes any other. Its sample i is stream -> latent, of the very sample i that the
raw data give as modality -> raw value (unless rows were damaged, which are left out here and replaced there): sources
are mixed and joined, and captions take turns, in the same way.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unidiffuser import strict_json
from unidiffuser.datasets.codec_files import codec_key, load_codecs
from unidiffuser.datasets.declaration import Declared, Join
from unidiffuser.datasets.faults import DataLost, Tally
from unidiffuser.datasets.files import inside
from unidiffuser.datasets.shards import OpenShards, Shapes, Written, write_whole
from unidiffuser.datasets.tables import sha256
from unidiffuser.modalities import Modality

FORMAT = "unidiffuser latents 1"
MANIFEST = "manifest.json"
VERIFIED_BYTES = 2**32


@dataclass(frozen=True, kw_only=True)
class EncodedSource:
    """What the manifest says of a source."""

    path: str
    """Where it was."""
    rows: int
    """Rows that it had, damaged ones among them."""
    label: int | None
    weight: float | None
    turns: int
    budget: float
    keys: list[str] | None
    """The keys that occur, if the source is joined."""
    shards: list[Written]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an encoded folder holds."""

    data: str
    """Digest of the raw data."""
    codecs: str
    """Key of the codecs."""
    stored: str
    """The number format: float32, float16 or bfloat16."""
    shard_rows: int
    """Rows a shard, damaged ones among them."""
    kinds: dict[str, dict[str, Any]]
    streams: dict[str, list[int]]
    """Stream -> shape of one sample."""
    complete: bool
    """False while it is being written."""
    sources: list[EncodedSource]

    def write(self, folder: Path) -> None:
        """Put it into the folder, in place of an older one."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)
        write_whole(folder / MANIFEST, text.encode())


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An encoded folder, open."""

    declared: Sequence[Declared]
    cases: Sequence["EncodedCases"]
    kinds: Mapping[str, Mapping[str, Any]]
    codecs: Mapping[str, Modality[Any]]
    digest: str


def is_encoded(path: Path) -> bool:
    """Whether a folder holds encoded data."""
    try:
        with open(path / MANIFEST, "rb") as file:
            return FORMAT.rsplit(" ", 1)[0].encode() in file.read(200)
    except OSError:
        return False


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; ValueError if it is damaged or from another version."""
    path = folder / MANIFEST
    try:
        value = strict_json.parse(path.read_bytes())
        if value.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        sources = [
            EncodedSource(**{**source, "shards": [Written(**shard) for shard in source["shards"]]})
            for source in value.pop("sources")
        ]
        manifest = Manifest(**value, sources=sources)
        for source in sources:
            for shard in source.shards:
                if inside(shard.file) != shard.file or min(shard.rows, shard.bytes) < 0:
                    raise ValueError("a shard's entry is impossible")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:200]}); encode the data again") from error
    return manifest


def open_encoded(folder: Path, *, verify: bool | None = None) -> Encoded:
    """Open an encoded folder.

    Args:
        folder: the folder.
        verify: whether the checksums of all shards are compared; None: if they have at most 4 GiB together.

    Raises:
        ValueError: it is not finished, its codecs are others than its latents', or a shard is missing or damaged.
    """
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise ValueError(f"{folder} is not finished; give the same `unidiffuser data encode` again, it goes on")
    codecs = load_codecs(folder)
    if codec_key(codecs) != manifest.codecs:
        raise ValueError(f"the latents in {folder} are not of the codecs beside them; encode the data again")
    shards = [shard for source in manifest.sources for shard in source.shards]
    wanted = sum(shard.bytes for shard in shards) <= VERIFIED_BYTES if verify is None else verify
    for shard in shards:
        check_shard(folder, shard, wanted)
    shapes = {name: tuple(shape) for name, shape in manifest.streams.items()}
    said = [manifest.data, manifest.codecs, manifest.stored, *(shard.sha256 for shard in shards)]
    return Encoded(
        declared=[_declared(source) for source in manifest.sources],
        cases=[EncodedCases(folder, source, shapes) for source in manifest.sources],
        kinds=manifest.kinds,
        codecs=codecs,
        digest=hashlib.sha256(" ".join(said).encode()).hexdigest(),
    )


def check_shard(folder: Path, shard: Written, content: bool) -> None:
    """ValueError unless a shard is there with its size and, if asked, its checksum."""
    path = folder / shard.file
    if not path.is_file() or path.is_symlink() or path.stat().st_size != shard.bytes:
        raise ValueError(f"the shard {path} is missing or cut short; encode the data again, or get a whole copy")
    if content and sha256(path) != shard.sha256:
        raise ValueError(f"the shard {path} is damaged: its sha256 is not the manifest's; get a whole copy of it")


def whole_shards(folder: Path, shards: Iterable[Written]) -> Iterator[Written]:
    """Those of the listed shards that are there and undamaged."""
    for shard in shards:
        with suppress(ValueError):
            check_shard(folder, shard, content=True)
            yield shard


class EncodedCases:
    """Stream -> latent, of the rows of an encoded source."""

    def __init__(self, folder: Path, source: EncodedSource, shapes: Shapes) -> None:
        self.tally = Tally(source=f"{folder} ({source.path})", budget=source.budget)
        for shard in source.shards:
            for reason, count in shard.damaged.items():
                self.tally.count("damaged", reason, times=count)
        self.shapes, self.turns = shapes, source.turns
        self.starts = np.array([0, *accumulate(shard.rows for shard in source.shards)])
        self.shards = OpenShards(folder, source.shards, shapes)
        if not len(self):
            raise DataLost(f"{self.tally.source} has no rows; encode the data again")
        self.keys: Sequence[str] | None = None
        if source.keys is not None:
            self.keys = [source.keys[key] for k in range(len(source.shards)) for key in self.shards[k].keys]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, row: int) -> str:
        """Shard and row."""
        shard, at = self._place(row)
        return f"{self.shards.shards[shard].file}:{at}"

    def case(self, row: int, turn: int) -> Mapping[str, Tensor]:
        """Stream -> latent of a row, of several captions the one whose turn it is."""
        shard, at = self._place(row)
        return self.shards[shard].row(at, turn + row, self.shapes)

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, row, "right")) - 1
        return shard, row - int(self.starts[shard])


def _declared(source: EncodedSource) -> Declared:
    join = None if source.keys is None else Join(column="key")
    return Declared(path=source.path, label=source.label, weight=source.weight, join=join)
