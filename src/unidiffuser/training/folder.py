"""Whose run a folder is: one process at a time, one preset for all time.

    RUN/lock          held as long as the process lives, by the operating system: a killed process holds nothing
    RUN/preset.json   what the run is; another preset is refused with what differs

The lock names the process and the machine that hold it. Whoever holds it removes what killed ones left half-written.
"""

import contextlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unidiffuser.training.preset import differences

PRESET = "preset.json"
HALF = re.compile(
    r"\.(preset\.json|model\.json|metrics\.jsonl|adapter\.safetensors|(codecs|given|final.*)\.(new|old))-\d+"
)
"""What files and folders are called while they are written, before they are renamed."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder.

    Raises:
        ValueError: another process holds it.
    """
    import fcntl

    run.mkdir(parents=True, exist_ok=True)
    # A record lock belongs to this process alone, not to the loader processes that it starts.
    with open(run / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(f"{run} is being trained by {holder}; wait for it, or stop it first") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        _sweep(run)
        try:
            yield
        finally:
            file.truncate(0)


def _sweep(run: Path) -> None:
    """Remove what a killed process left half-written, in the run folder and in those of its stages."""
    places = [run, *(path for path in run.iterdir() if path.is_dir())]
    for path in [path for place in places for path in place.iterdir() if HALF.fullmatch(path.name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def claim(run: Path, described: Mapping[str, Any]) -> None:
    """Write a description into a new run folder; refuse a folder of another run, saying what differs.

    Raises:
        ValueError: it is another run's, or its preset.json cannot be read.
    """
    file = run / PRESET
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            changed = differences(described, before)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"{file} cannot be read ({error}); restore it, or choose another --run folder") from error
        if changed:
            raise ValueError(
                f"{run} holds a run with other settings ({'; '.join(changed)}); "
                "choose another --run folder, or go back to those settings"
            )
    run.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}-{os.getpid()}")
    with contextlib.ExitStack() as stack:
        stack.callback(aside.unlink, missing_ok=True)
        aside.write_text(json.dumps(described, indent=1), encoding="utf-8")
        os.replace(aside, file)
