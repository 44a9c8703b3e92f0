"""Checkpoints of a run in progress: directories that are whole or absent.

    RUN/checkpoints/step-00001000/state.safetensors   every tensor that the run needs to go on, under flat names
                                  complete.json       its step, size and sha256, written last

A checkpoint is written into a directory aside, flushed to the disk and renamed; only then are older ones removed, of
which the newest two stay. At the start, what is damaged is passed over, loudly.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)

KEEP = 2
"""So many whole checkpoints stay."""


def save(run: Path, step: int, state: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint of a step, then remove the oldest ones."""
    final = run / "checkpoints" / f"step-{step:08d}"
    aside = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = aside / "state.safetensors"
    save_file({name: x.detach().contiguous() for name, x in state.items()}, tensors)
    _flush(tensors)
    mark = aside / "complete.json"
    mark.write_text(json.dumps({"step": step, "bytes": tensors.stat().st_size, "sha256": _sha256(tensors)}))
    _flush(mark)
    if final.exists():
        shutil.rmtree(final)
    os.rename(aside, final)
    _flush(final.parent)
    for old in _whole_names(run)[:-KEEP]:
        shutil.rmtree(old)
    return final


def newest(run: Path) -> tuple[int, dict[str, Tensor]] | None:
    """The step and state of the newest whole checkpoint; None if the run has none yet.

    Raises:
        ValueError: there are checkpoints, but all of them are damaged.
    """
    for left_over in (run / "checkpoints").glob("*.tmp-*"):
        shutil.rmtree(left_over)
    names = _whole_names(run)
    for folder in reversed(names):
        try:
            mark = json.loads((folder / "complete.json").read_text())
            if mark["sha256"] != _sha256(folder / "state.safetensors"):
                raise ValueError("its checksum differs")
            return int(mark["step"]), load_file(folder / "state.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("the checkpoint %s is damaged (%s); trying the one before it", folder, error)
    if names:
        raise ValueError(f"all checkpoints in {run / 'checkpoints'} are damaged; remove that folder to begin anew")
    return None


def _whole_names(run: Path) -> list[Path]:
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
