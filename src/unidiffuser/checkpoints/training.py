"""Checkpoints of a run in progress: directories that are whole or absent.

    RUN/checkpoints/step-00001000/state.safetensors   every tensor that the run needs to go on, under flat names
                                  (or shards of it; see `sharded`)
                                  complete.json       its step, and the size and sha256 of every file, written last

A checkpoint is written into a directory aside, flushed to the disk and renamed; only then are older ones removed, of
which the newest two stay. At the start, what is damaged is passed over, loudly.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)

KEEP = 2
"""So many whole checkpoints stay."""
STATE = "state.safetensors"
MARK = "complete.json"


def save(run: Path, step: int, state: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint of a step as one file, then remove the oldest ones.

    Raises:
        OSError: the disk refuses; the checkpoints that were there still are.
    """

    def fill(aside: Path) -> None:
        try:
            save_file({name: x.detach().cpu().contiguous() for name, x in state.items()}, aside / STATE)
        except SafetensorError as error:
            raise OSError(f"cannot write {aside / STATE}: {error}") from error

    return write(run, step, fill)


def write(run: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Write a checkpoint whose files `fill` puts into a directory aside, then remove the oldest ones."""
    place = aside(run, step)
    try:
        prepare(place)
        fill(place)
        return finish(run, step, place)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def aside(run: Path, step: int) -> Path:
    """Where this process writes the checkpoint of a step before it is whole."""
    return run / "checkpoints" / f"{_name(step)}.tmp-{os.getpid()}"


def prepare(place: Path) -> None:
    """Make an empty directory aside."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def finish(run: Path, step: int, place: Path) -> Path:
    """Mark a filled directory as whole, put it in its place, and remove the oldest checkpoints."""
    files = {}
    for file in sorted(place.iterdir()):
        _flush(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    mark = place / MARK
    mark.write_text(json.dumps({"step": step, "files": files}))
    _flush(mark)
    _flush(place)
    final = run / "checkpoints" / _name(step)
    if final.exists():
        shutil.rmtree(final)
    os.rename(place, final)
    _flush(final.parent)
    for old in _places(run)[:-KEEP]:
        shutil.rmtree(old)
    return final


def find(run: Path) -> tuple[int, Path] | None:
    """The step and directory of the newest whole checkpoint; None if the run has none yet.

    Raises:
        ValueError: there are checkpoints, but all of them are damaged.
    """
    names = _places(run)
    for folder in reversed(names):
        try:
            return _whole(folder), folder
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the checkpoint %s is damaged (%s); trying the one before it", folder, error)
    if names:
        raise ValueError(
            f"all checkpoints in {run / 'checkpoints'} are damaged; restore one of them, "
            "or remove that folder to begin anew"
        )
    return None


def newest(run: Path) -> tuple[int, dict[str, Tensor]] | None:
    """The step and state of the newest whole checkpoint that is one file; what was left half-written is removed."""
    sweep(run)
    found = find(run)
    return None if found is None else (found[0], load_file(found[1] / STATE))


def sweep(run: Path) -> None:
    """Remove what a killed process left half-written."""
    for left_over in (run / "checkpoints").glob("*.tmp-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def _whole(folder: Path) -> int:
    """The step of a checkpoint all of whose files are as its mark says; else an error."""
    mark = json.loads((folder / MARK).read_text())
    files = mark.get("files", {STATE: mark})  # the mark of older runs describes one file
    for name, entry in files.items():
        if "/" in name or entry["sha256"] != _sha256(folder / name):
            raise ValueError(f"the checksum of {name} differs")
    return int(mark["step"])


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _places(run: Path) -> list[Path]:
    return sorted(p for p in (run / "checkpoints").glob("step-*") if ".tmp-" not in p.name)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the operating system put a file or a directory on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
