"""Run the codecs over a data set once, and keep the latents: `encode(data, codecs, folder)`.

Shard k of a source holds its rows k n, ..., k n + n - 1, and depends on them and on the codecs alone. So the shards may
be made in any order and in any process, and encoding that was stopped makes those that are missing, with the same bytes
in the end. What the folder holds is in `datasets.encoded`. This file knows no network and no timestep.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unidiffuser.cluster import Carry
from unidiffuser.codecs import Codecs
from unidiffuser.datasets.cases import RawCases
from unidiffuser.datasets.codec_files import CONFIG, STATE, codec_key, load_codecs, save_codecs
from unidiffuser.datasets.data import Data
from unidiffuser.datasets.encoded import (
    MANIFEST,
    EncodedSource,
    Manifest,
    is_encoded,
    read_manifest,
    whole_shards,
)
from unidiffuser.datasets.faults import Damaged
from unidiffuser.datasets.shards import Written, now_and_then, write_shard
from unidiffuser.joint import Joint, cat_joints
from unidiffuser.modalities import Modality, find

Progress = Callable[[int, int], None]
Stored = Literal["float32", "float16", "bfloat16"]
Place = Sequence[int]
"""(number of the source, number of the shard in it)."""

BATCH = 32
SHARD_BYTES = 2**28
MOST_ROWS = 4096
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def fitted(data: Data, most: int = 10_000) -> dict[str, Modality[Any]]:
    """Codecs as the data's `kinds` say, fitted on up to `most` rows; of texts on all of them, for every word counts."""
    found = {}
    for name, options in data.kinds.items():
        kind = find(options["kind"])
        rest = {key: value for key, value in options.items() if key != "kind"}
        found[name] = kind.fit(data.values(name, None if kind.media_type == "text" else most), **rest)
    return found


def encode(
    data: Data,
    codecs: Mapping[str, Modality[Any]],
    out: Path,
    *,
    stored: Stored = "float32",
    force: bool = False,
    progress: Progress | None = None,
    device: str = "cpu",
    carry: Carry = map,
) -> Manifest:
    """Encode every row of every source into `out`, going on where an earlier call stopped.

    Args:
        data: raw data.
        codecs: modality -> codec, for all modalities of the data.
        out: a new folder, or one that an earlier call began.
        stored: the number format of the latents.
        force: replace encoded data of other codecs or other data.
        progress: called with (rows done, rows in all).
        device: where codecs with large parts work.
        carry: what has the shards made: `map` here and one by one, what `cluster.cluster` gives on other machines.

    Raises:
        ValueError: the data are encoded already, a codec is missing, the place is taken.
        DataLost: more is damaged than the budget allows.
    """
    if data.codecs is not None:
        raise ValueError("these data are encoded already; give the raw data")
    if missing := [name for name in data.kinds if name not in codecs]:
        raise ValueError(f"there is no codec for {missing[0]!r}; there are codecs for {', '.join(codecs)}")
    used = Codecs({name: codecs[name] for name in data.kinds})
    planned = _planned(data, used, stored)
    there = _begun(out, planned, force)
    save_codecs(out, used.modalities)
    making = Making(data, used, planned, out, device)
    to_do = [place for place in making.places() if _name(place) not in there]
    done = data.samples - sum(len(making.rows(place)) for place in to_do)
    making.count(there)
    with now_and_then(lambda: _listed(planned, making, there).write(out)) as tick:
        for answer in carry(making, to_do):
            place: Place = answer["place"]
            making.meet(place, answer["damaged"])
            there[_name(place)] = Written(**answer["written"])
            done += len(making.rows(place))
            tick()
            if progress is not None:
                progress(done, data.samples)
    manifest = replace(_listed(planned, making, there), complete=True)
    manifest.write(out)
    return manifest


class Making:
    """Makes the shard of a place: here, or as a copy in another process, where the codecs are those in the folder."""

    def __init__(self, data: Data, codecs: Codecs, planned: Manifest, out: Path, device: str) -> None:
        self.planned, self.out, self.device = planned, out, device
        self.given: Codecs | None = codecs
        self.cases = [source.cases for source in data.sources]
        self.keys = [{key: k for k, key in enumerate(source.keys or [])} for source in planned.sources]

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "codecs"}
        return {**kept, "given": None}

    def places(self) -> Iterator[Place]:
        """All shards, in order."""
        for number, cases in enumerate(self.cases):
            yield from ((number, k) for k in range(-(-len(cases) // self.planned.shard_rows)))

    def rows(self, place: Place) -> range:
        """The rows of a shard, damaged ones among them."""
        first = place[1] * self.planned.shard_rows
        return range(first, min(first + self.planned.shard_rows, len(self.cases[place[0]])))

    def __call__(self, place: Place) -> dict[str, Any]:
        """Write a shard. Returns {"place", "written": its entry, "damaged": [[why, name], ...]}, all of it plain."""
        cases = self.cases[place[0]]
        assert isinstance(cases, RawCases)
        path = self.out / _name(place)
        written, damaged = _write(path, cases, self.rows(place), self.keys[place[0]], self.codecs, self.planned.stored)
        return {"place": list(place), "written": asdict(written), "damaged": damaged}

    @cached_property
    def codecs(self) -> Codecs:
        """The codecs, where they work; ValueError if the folder holds others than were planned."""
        codecs = self.given or Codecs(load_codecs(self.out))
        if self.given is None and codec_key(codecs.modalities) != self.planned.codecs:
            raise ValueError(f"the codecs in {self.out} are not those of this encoding; is the folder shared?")
        for codec in codecs.modalities.values():
            codec.to(self.device)
        return codecs

    def count(self, there: Mapping[str, Written]) -> None:
        """Count the damaged rows of the shards that were there before."""
        for place in self.places():
            if (written := there.get(_name(place))) is not None:
                for reason, count in written.damaged.items():
                    self.cases[place[0]].tally.count("damaged", reason, times=count)

    def meet(self, place: Place, damaged: Iterable[Sequence[str]]) -> None:
        """Count and log the damaged rows of a shard; DataLost if it is more than the budget."""
        cases = self.cases[place[0]]
        for reason, name in damaged:
            cases.tally.met(Damaged(reason), name, len(cases))


def _name(place: Place) -> str:
    """The file of a shard."""
    return f"{place[0]:02d}-{place[1]:05d}.safetensors"


def _listed(planned: Manifest, making: Making, there: Mapping[str, Written]) -> Manifest:
    """The manifest that lists the shards that are there, in order."""
    shards: list[list[Written]] = [[] for _ in planned.sources]
    for place in making.places():
        if (name := _name(place)) in there:
            shards[place[0]].append(there[name])
    sources = [replace(source, shards=each) for source, each in zip(planned.sources, shards, strict=True)]
    return replace(planned, sources=sources)


def _planned(data: Data, codecs: Codecs, stored: Stored) -> Manifest:
    """The manifest of an encoding that has not begun."""
    row_bytes = sum(4 * torch.Size(shape).numel() for shape in codecs.shapes.values())
    sources = []
    for source in data.sources:
        cases = source.cases
        keys = None if cases.keys is None else sorted(set(cases.keys))
        said = {"label": source.declared.label, "weight": source.declared.weight, "turns": cases.turns}
        sources.append(
            EncodedSource(
                path=Path(source.declared.path).name,
                rows=len(cases),
                budget=cases.tally.budget,
                keys=keys,
                shards=[],
                **said,  # type: ignore[arg-type]
            )
        )
    return Manifest(
        data=data.digest,
        codecs=codec_key(codecs.modalities),
        stored=stored,
        shard_rows=max(1, min(MOST_ROWS, SHARD_BYTES // max(row_bytes, 1))),
        kinds={name: dict(options) for name, options in data.kinds.items()},
        streams={name: list(shape) for name, shape in codecs.shapes.items()},
        complete=False,
        sources=sources,
    )


def _begun(out: Path, planned: Manifest, force: bool) -> dict[str, Written]:
    """The folder, ready to go on: file -> entry of the whole shards that are there, if they are of this plan."""
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not is_encoded(out):
        raise ValueError(f"{out} is there already and holds no encoded data; choose another place")
    if is_encoded(out):
        found = read_manifest(out)
        differing = _differing(found, planned)
        if not differing:
            for left_over in out.glob(".*.tmp-*"):
                left_over.unlink()
            return {shard.file: shard for source in found.sources for shard in whole_shards(out, source.shards)}
        if not force:
            raise ValueError(
                f"{out} holds latents of {' and '.join(differing)}; choose another place, or use force (--force) to "
                "replace them"
            )
        _clear(out, found)
    out.mkdir(parents=True, exist_ok=True)
    planned.write(out)
    return {}


def _clear(out: Path, found: Manifest) -> None:
    """Remove an older encoding, its manifest first; whatever else lies there stays."""
    names = [shard.file for source in found.sources for shard in source.shards]
    for name in [MANIFEST, CONFIG, STATE, *names]:
        (out / name).unlink(missing_ok=True)


def _differing(found: Manifest, planned: Manifest) -> list[str]:
    """In what an encoding that is there differs from the one that is wanted."""
    pairs = {
        "other data": (found.data, planned.data),
        "other codecs": (found.codecs, planned.codecs),
        "another number format": (found.stored, planned.stored),
        "another number of rows a shard": (found.shard_rows, planned.shard_rows),
    }
    return [what for what, (there, wanted) in pairs.items() if there != wanted]


def _write(
    path: Path, cases: RawCases, rows: range, places: Mapping[str, int], codecs: Codecs, stored: str
) -> tuple[Written, list[list[str]]]:
    """Encode some rows of a source into a shard; places: key -> its number, of a source that is joined.

    Returns the shard's entry, and why and by what name each row that was left out is known.
    """
    values: dict[str, list[Any]] = {name: [] for name in cases.wanted}
    first: dict[str, list[int]] = {name: [] for name in cases.wanted}
    count: dict[str, list[int]] = {name: [] for name in cases.wanted}
    damaged: list[list[str]] = []
    keys: list[int] = []
    for row in rows:
        try:
            found = _checked(cases, row, codecs)
        except Damaged as error:
            damaged.append([str(error), f"{cases.name(row)} ({row})"])
            continue
        for name in values:
            first[name].append(len(values[name]))
            count[name].append(len(found.get(name, ())))
            values[name] += found.get(name, ())
        keys += [places[cases.keys[row]]] if cases.keys is not None else []
    tensors: dict[str, Tensor] = {}
    for name, raws in values.items():
        for stream, x in _latents(codecs.modalities[name], raws).items():
            tensors[f"stream:{name}.{stream}" if stream else f"stream:{name}"] = x.to(DTYPES[stored])
        tensors |= {f"first:{name}": torch.tensor(first[name]), f"count:{name}": torch.tensor(count[name])}
    if cases.keys is not None:
        tensors["key"] = torch.tensor(keys)
    reasons = Counter(reason[:200] for reason, _ in damaged)
    return write_shard(path, tensors, len(rows) - len(damaged), reasons), damaged


def _checked(cases: RawCases, row: int, codecs: Codecs) -> dict[str, list[Any]]:
    """Modality -> the values of a row in the form that its codec takes; Damaged if it does not take one."""
    found = cases.alternatives(row)
    if not found:
        raise Damaged("it has no modality at all")
    try:
        return {name: [codecs.modalities[name].check(raw) for raw in raws] for name, raws in found.items()}
    except ValueError as error:
        raise Damaged(f"its codec does not take it: {error}") from error


def _latents(codec: Modality[Any], raws: list[Any]) -> Joint:
    """All values of a modality in a shard, in batches. Of no values no rows."""
    with torch.inference_mode():
        if not raws:
            return {stream: torch.zeros(0, *shape) for stream, shape in codec.streams.items()}
        return cat_joints([codec.encode_together(raws[k : k + BATCH]) for k in range(0, len(raws), BATCH)])
