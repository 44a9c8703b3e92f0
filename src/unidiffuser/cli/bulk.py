"""The verb sample for many rows: `sample image --prompts FILE.jsonl --out FOLDER`, here or spread over many machines.

    {"text": "a large red circle"}                  a line is one row of givens; a text is itself, a file is named
    {"image": "photos/1.png", "seed": 7}            relative to the folder of the lines; a seed may be its own

    FOLDER/manifest.json    what was asked for; rows, bytes and sha256 of every shard, and which rows failed, and why
    FOLDER/00000.tar ...    samples and what they were made from, as webdataset shards: a data set like any other

Sample j of row k has the seed `seed + k n + j` and so is the same in any shard, on any machine. A shard depends on its
rows and the model alone: what is missing is made by the same line again, and a shard in which rows failed is tried
again. One row that cannot be used does not stop the others.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidiffuser import strict_json
from unidiffuser.cli import flags
from unidiffuser.cli.drawing import Drawing, shard_name
from unidiffuser.cli.spreading import carrying, check_spreading
from unidiffuser.cli.terminal import Terminal
from unidiffuser.datasets.encoded import MANIFEST, whole_shards
from unidiffuser.datasets.files import inside
from unidiffuser.datasets.shards import Written, now_and_then, write_whole
from unidiffuser.request import Request

if TYPE_CHECKING:
    from unidiffuser.pipeline import UniDiffuser

FORMAT = "unidiffuser samples 1"
SHARD = 64
MAX_SEED = 2**62
TOLD = 100
"""So many failed rows are named in the answer; the manifest has all."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of givens, as it was written."""

    line: int
    """Its line in the file; 0 if there is no file."""
    given: Mapping[str, Any]
    """Modality -> a text, the name of a file, or numbers."""
    seed: int | None = None
    """Of its first sample, if it says one."""


def sample_in_bulk(args: argparse.Namespace, terminal: Terminal) -> int:
    """Draw samples for every row of a file into checked shards; the same line goes on if stopped."""
    check_spreading(args)
    if args.like:
        raise ValueError("--like makes one picture again; it does not go with --prompts and --ray")
    if not args.out:
        raise ValueError("--prompts and --ray need --out FOLDER, where the same line goes on if it was stopped")
    if not args.names:
        raise ValueError("name what to sample: image, text, ...")
    # The one who gives work out to GPUs need not have any.
    model = flags.load(argparse.Namespace(**vars(args) | ({"device": "cpu"} if args.ray else {})))
    flags.check_names(model, args.names)
    drawing = Drawing(args, model)
    rows = read_rows(Path(args.prompts), model, drawing.asked) if args.prompts else [Row(line=0, given={})]
    shards = shared_out(rows, drawing.asked.n, args.seed or 0, SHARD if args.shard is None else args.shard)
    asked = drawing.described() | {"rows": hashlib.sha256(json.dumps(shards).encode()).hexdigest()}
    there = _begun(drawing.out, asked, args.force)
    to_do = [item for item in shards if shard_name(item["shard"]) not in there]
    total = len(rows) * drawing.asked.n

    def save(complete: bool = False) -> None:
        listed = [asdict(there[name]) for item in shards if (name := shard_name(item["shard"])) in there]
        value = {"format": FORMAT, "asked": asked, "samples": total, "complete": complete, "shards": listed}
        write_whole(drawing.out / MANIFEST, json.dumps(value, indent=1, allow_nan=False).encode())

    done = total - sum(len(item["rows"]) for item in to_do)
    with carrying(args) as carry, terminal.progress("sampling") as progress, now_and_then(save) as tick:
        for answer in carry(drawing, to_do):
            there[shard_name(answer["shard"])] = Written(**answer["written"])
            done += answer["rows"]
            progress(done, total)
            tick()
    save(complete=True)
    return _told(args, terminal, [there[shard_name(item["shard"])] for item in shards], asked)


def _told(args: argparse.Namespace, terminal: Terminal, shards: list[Written], asked: Mapping[str, Any]) -> int:
    """Answer; exit code 1 if rows failed."""
    failed = [reason for shard in shards for reason in shard.damaged]
    lost = sum(sum(shard.damaged.values()) for shard in shards)
    answer = {"out": args.out, "samples": sum(shard.rows for shard in shards), "failed": lost, "why": failed[:TOLD]}
    answer |= {"shards": len(shards), "bytes": sum(shard.bytes for shard in shards), **asked["settings"]}
    for reason in failed[:TOLD]:
        terminal.say(f"failed: {reason}")
    size = f"{answer['bytes'] / 1e6:.1f} MB in {len(shards)} shards"
    terminal.answer(answer, [f"{args.out}: {answer['samples']} samples, {lost} failed, {size}"])
    return 1 if failed else 0


def read_rows(path: Path, model: "UniDiffuser", asked: Request) -> list[Row]:
    """The rows of a file of JSON lines; ValueError, with its number, for a line that makes no sense."""
    text = flags.reading(lambda place: Path(place).read_bytes(), str(path))
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(_row(number, strict_json.parse(line), model, asked))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not rows:
        raise ValueError(f'{path} has no rows; write one object a line, such as {{"text": "a red circle"}}')
    return rows


def _row(number: int, value: Any, model: "UniDiffuser", asked: Request) -> Row:
    if not isinstance(value, dict):
        raise ValueError('it must be an object such as {"text": "a red circle"}')
    seed = value.pop("seed", None)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < MAX_SEED):
        raise ValueError(f"the seed must be a whole number from 0 to 2^62, not {str(seed)[:40]!r}")
    flags.check_names(model, value)
    for name, told in value.items():
        if name in asked.given:
            raise ValueError(f"{name!r} is given here and by a flag; give it once")
        media = model.modalities[name].media_type
        if media != "text" and isinstance(told, str):
            inside(told)
        elif not isinstance(told, list if media == "vector" else str):
            raise ValueError(f"{name!r} must be {'a text' if media == 'text' else 'the name of a file'}")
    return Row(line=number, given=value, seed=seed)


def shared_out(rows: Sequence[Row], n: int, seed: int, size: int) -> list[dict[str, Any]]:
    """Shard k: {"shard": k, "rows": [[number of the sample, line, seed, givens], ...]}, n samples a row."""
    if size < 1:
        raise ValueError(f"--shard must be 1 or more, not {size}")
    samples = [
        [k * n + j, row.line, (seed + k * n if row.seed is None else row.seed) + j, row.given]
        for k, row in enumerate(rows)
        for j in range(n)
    ]
    return [{"shard": k, "rows": samples[at : at + size]} for k, at in enumerate(range(0, len(samples), size))]


def _begun(out: Path, asked: Mapping[str, Any], force: bool) -> dict[str, Written]:
    """The folder, ready to go on: file -> entry of the shards that need not be made again."""
    if not (out.exists() and (out.is_file() or any(out.iterdir()))):
        out.mkdir(parents=True, exist_ok=True)
        return {}
    found = _read(out)
    shards = [Written(**shard) for shard in found["shards"]]
    if differing := [what for what in asked if found["asked"].get(what) != asked[what]]:
        if shards and not force:
            raise ValueError(
                f"{out} holds samples of another request ({', '.join(differing)}); choose another --out, or use "
                "--force to replace them"
            )
        for name in [MANIFEST, *(shard.file for shard in shards)]:
            (out / name).unlink(missing_ok=True)
        return {}
    for left_over in out.glob(".*.tmp-*"):
        left_over.unlink()
    return {shard.file: shard for shard in whole_shards(out, shards) if not shard.damaged}


def _read(out: Path) -> dict[str, Any]:
    """The manifest of a folder that is not empty; ValueError if it holds something else, or is damaged."""
    if not (out / MANIFEST).is_file():
        raise ValueError(f"{out} is there already and holds no samples of many rows; choose another --out")
    try:
        found = strict_json.parse((out / MANIFEST).read_bytes())
        known = found["format"] == FORMAT and isinstance(found["asked"], dict)
        if not known or any(inside(Written(**shard).file) != shard["file"] for shard in found["shards"]):
            raise ValueError("it is of another version, or of something else")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out / MANIFEST} is no manifest of samples ({error}); choose another --out") from error
    checked: dict[str, Any] = found
    return checked
