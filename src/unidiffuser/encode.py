"""Run the codecs over a data set once, and keep the latents: `encode(data, codecs, folder)`.

Shard k of a source holds its rows k n, ..., k n + n - 1, and depends on them and on the codecs alone, so encoding can
be stopped and goes on at the shard where it was, with the same bytes in the end. What the folder holds is in
`datasets.encoded`. This file knows no network and no timestep.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unidiffuser.codecs import Codecs
from unidiffuser.datasets.cases import RawCases
from unidiffuser.datasets.codec_files import CONFIG, STATE, codec_key, save_codecs
from unidiffuser.datasets.data import Data
from unidiffuser.datasets.encoded import (
    MANIFEST,
    EncodedSource,
    Manifest,
    check_shard,
    is_encoded,
    read_manifest,
)
from unidiffuser.datasets.faults import Damaged
from unidiffuser.datasets.shards import Written, write_shard
from unidiffuser.joint import Joint, cat_joints
from unidiffuser.modalities import Modality, find

Progress = Callable[[int, int], None]
Stored = Literal["float32", "float16", "bfloat16"]

BATCH = 32
SHARD_BYTES = 2**28
MOST_ROWS = 4096
SAVE_SECONDS = 10
"""Between one writing of the manifest and the next; a killed encoding makes the shards of so long again."""
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
) -> Manifest:
    """Encode every row of every source into `out`, going on where an earlier call stopped.

    Args:
        data: raw data.
        codecs: modality -> codec, for all modalities of the data.
        out: a new folder, or one that an earlier call began.
        stored: the number format of the latents.
        force: replace encoded data of other codecs or other data.
        progress: called with (rows done, rows in all).

    Raises:
        ValueError: the data are encoded already, a codec is missing, the place is taken.
        DataLost: more is damaged than the budget allows.
    """
    if data.codecs is not None:
        raise ValueError("these data are encoded already; give the raw data")
    if missing := [name for name in data.kinds if name not in codecs]:
        raise ValueError(f"there is no codec for {missing[0]!r}; there are codecs for {', '.join(codecs)}")
    used = Codecs({name: codecs[name] for name in data.kinds})
    manifest = _begun(out, _planned(data, used, stored), force)
    save_codecs(out, used.modalities)
    done, saved = 0, time.monotonic()
    try:
        for rows in _shards(data, used, manifest, out):
            done += rows
            if time.monotonic() - saved > SAVE_SECONDS:
                manifest.write(out)
                saved = time.monotonic()
            if progress is not None:
                progress(done, data.samples)
        manifest = replace(manifest, complete=True)
    finally:
        manifest.write(out)
    return manifest


def _shards(data: Data, codecs: Codecs, manifest: Manifest, out: Path) -> Iterator[int]:
    """Write what the manifest does not list, and list it; yields the rows of each shard, those that were there too."""
    for number, source in enumerate(data.sources):
        cases, kept, keys = source.cases, manifest.sources[number].shards, manifest.sources[number].keys
        assert isinstance(cases, RawCases)
        places = {key: place for place, key in enumerate(keys or [])}
        for shard in kept:
            for reason, count in shard.damaged.items():
                cases.tally.count("damaged", reason, times=count)
        for k, first in enumerate(range(0, len(cases), manifest.shard_rows)):
            rows = range(first, min(first + manifest.shard_rows, len(cases)))
            if k >= len(kept):
                kept.append(
                    _write(out / f"{number:02d}-{k:05d}.safetensors", cases, rows, places, codecs, manifest.stored)
                )
            yield len(rows)


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


def _begun(out: Path, planned: Manifest, force: bool) -> Manifest:
    """The folder, ready to go on: with the whole shards that are there, if they are of this plan."""
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not is_encoded(out):
        raise ValueError(f"{out} is there already and holds no encoded data; choose another place")
    if is_encoded(out):
        found = read_manifest(out)
        differing = _differing(found, planned)
        if not differing:
            for left_over in out.glob(".*.tmp-*"):
                left_over.unlink()
            kept = [replace(source, shards=list(_whole(out, source.shards))) for source in found.sources]
            return replace(planned, sources=kept)
        if not force:
            raise ValueError(
                f"{out} holds latents of {' and '.join(differing)}; choose another place, or use force (--force) to "
                "replace them"
            )
        _clear(out, found)
    out.mkdir(parents=True, exist_ok=True)
    planned.write(out)
    return planned


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
    }
    return [what for what, (there, wanted) in pairs.items() if there != wanted]


def _whole(out: Path, shards: Iterable[Written]) -> Iterable[Written]:
    """The shards up to the first that is damaged."""
    for shard in shards:
        try:
            check_shard(out, shard, content=True)
        except ValueError:
            return
        yield shard


def _write(path: Path, cases: RawCases, rows: range, places: Mapping[str, int], codecs: Codecs, stored: str) -> Written:
    """Encode some rows of a source into a shard; places: key -> its number, of a source that is joined."""
    values: dict[str, list[Any]] = {name: [] for name in cases.wanted}
    first: dict[str, list[int]] = {name: [] for name in cases.wanted}
    count: dict[str, list[int]] = {name: [] for name in cases.wanted}
    damaged: Counter[str] = Counter()
    keys: list[int] = []
    for row in rows:
        try:
            found = _checked(cases, row, codecs)
        except Damaged as error:
            damaged[str(error)[:200]] += 1
            cases.tally.met(error, f"{cases.name(row)} ({row})", len(cases))
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
    return write_shard(path, tensors, len(rows) - damaged.total(), damaged)


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
