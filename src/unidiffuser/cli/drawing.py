"""Samples of some rows as one shard: `Drawing`, the work that bulk sampling gives out.

A shard is a webdataset tar: of each sample what was sampled, a picture with its recipe, what it was made from, and a
.json with its line, its seed and its numbers. Its bytes depend on the rows and the model alone.
"""

import argparse
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiffuser import __version__
from unidiffuser.cli import flags
from unidiffuser.cli.outputs import Outputs
from unidiffuser.datasets.files import inside
from unidiffuser.datasets.shards import Written, write_whole
from unidiffuser.recipe import given_entry
from unidiffuser.request import Request

if TYPE_CHECKING:
    from unidiffuser.answers import Sample
    from unidiffuser.pipeline import UniDiffuser

WRITTEN = ("size", "top_p", "dtype", "no_metadata", "mark_only", "watermark")
"""Flags that change what is written."""


class Drawing:
    """Draws the samples of a shard and writes it: here, or as a copy in another process, which loads the model."""

    def __init__(self, args: argparse.Namespace, model: "UniDiffuser") -> None:
        self.args, self.out, self.digest = args, Path(args.out), model.digest
        self.root = Path(args.prompts).parent if args.prompts else Path()
        self.model = model

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("model", "asked")}

    @cached_property
    def model(self) -> "UniDiffuser":
        """The model; ValueError if another one lies there than where the work was given out."""
        found = flags.load(self.args)
        if found.digest != self.digest:
            raise ValueError(f"the model here is {found.digest[:10]}, not {self.digest[:10]}; put the same one there")
        return found

    @cached_property
    def asked(self) -> Request:
        """What the flags ask for, the same for every row."""
        base, given = Request(names=tuple(self.args.names)), flags.given(self.args, self.model)
        asked = flags.request(self.args, base, given, self.model)
        if asked.n < 1:
            raise ValueError(f"-n must be 1 or more, not {asked.n}")
        return asked

    def described(self) -> dict[str, Any]:
        """All that the shards depend on beside the rows, as JSON: another description is another set of samples."""
        codecs, asked = self.model.modalities, self.asked
        found = {
            "sampled": asked.names,
            "settings": flags.settings(self.model, asked) | {"seed": self.args.seed or 0, "n": asked.n},
            "given": {name: given_entry(codecs[name].media_type, raw) for name, raw in asked.given.items()},
            "masks": {name: given_entry("image", mask) for name, mask in asked.masks.items()},
            "written": {name: vars(self.args)[name] for name in WRITTEN},
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Write a shard. Returns {"shard", "rows", "written": its entry}, all of it plain."""
        failed: dict[str, int] = {}
        groups: dict[tuple[str, ...], list[tuple[Any, dict[str, Any]]]] = {}
        for row in item["rows"]:
            try:
                values = self._values(row[3])
                groups.setdefault(tuple(sorted(values)), []).append((row, values))
            except (ValueError, OSError) as error:
                reason = f"line {row[1]}: {' '.join(str(error).split())}"
                failed[reason] = failed.get(reason, 0) + 1
        with tempfile.TemporaryDirectory() as place:
            for group in groups.values():
                self._draw(group, Path(place))
            data = packed(Path(place))
        write_whole(self.out / shard_name(item["shard"]), data)
        written = Written(
            file=shard_name(item["shard"]),
            rows=len(item["rows"]) - sum(failed.values()),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            damaged=failed,
        )
        return {"shard": item["shard"], "rows": len(item["rows"]), "written": asdict(written)}

    def _values(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Modality -> raw value of what a row and the flags give, looked at by the codecs."""
        values = dict(self.asked.given)
        for name, value in told.items():
            codec = self.model.modalities[name]
            is_file = codec.media_type != "text" and isinstance(value, str)
            values[name] = flags.reading(codec.read, str(self._place(value))) if is_file else value
        for name, value in values.items():
            codec = self.model.modalities[name]
            if name in self.asked.names and name not in self.asked.looseness:
                codec.part(value, self.asked.masks.get(name))
            else:
                codec.check(value)
        return values

    def _place(self, name: str) -> Path:
        """A file that a row names; ValueError if it is a link that leads out of the folder."""
        place = self.root / inside(name)
        if not place.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"the file {name[:80]!r} is a link that leads out of its folder; copy it there")
        return place

    def _draw(self, group: Sequence[tuple[Any, dict[str, Any]]], folder: Path) -> None:
        """Draw rows that give the same modalities, and write them."""
        given = {name: [values[name] for _, values in group] for name in group[0][1]}
        seeds = [row[2] for row, _ in group]
        drawn = replace(self.asked, given=given, n=len(group)).draw(self.model, seeds=seeds)
        for (row, values), sample in zip(group, drawn, strict=True):
            self._write(row, replace(self.asked, given=values, n=1, seed=sample.seed), sample, folder)

    def _write(self, row: Any, asked: Request, sample: "Sample", folder: Path) -> None:
        """The files of one sample: what was sampled, with its recipe; what was given; and line, seed and numbers."""
        args, codecs = self.args, self.model.modalities
        outputs = Outputs(folder=folder, codecs=codecs, marked=not args.no_metadata, words=args.watermark or "")
        stem, files = f"{row[0]:09d}", {n: x for n, x in sample.values.items() if codecs[n].media_type != "vector"}
        recipe = None if args.no_metadata or args.mark_only else asked.recipe(self.model, sample, __version__)
        outputs.write(stem, {name: value for name, value in files.items() if name in asked.names}, recipe)
        for name in files.keys() - set(asked.names):
            codecs[name].write(files[name], outputs.path(stem, name))
        about = {"line": row[1], "seed": sample.seed}
        about |= {name: value.tolist() for name, value in sample.values.items() if name not in files}
        (folder / f"{stem}.json").write_text(json.dumps(about, allow_nan=False) + "\n", encoding="utf-8")


def packed(folder: Path) -> bytes:
    """The files of a folder as a tar archive whose bytes depend on names and contents alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(folder.iterdir()):
            info, data = tarfile.TarInfo(path.name), path.read_bytes()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shard_name(shard: int) -> str:
    """The file of a shard."""
    return f"{shard:05d}.tar"
