"""Whose run a folder is: one process at a time, one preset for all time.

    RUN/lock          held as long as the process lives, by the operating system: a killed process holds nothing
    RUN/preset.json   what the run is; another preset is refused with what differs

The lock names the process and the machine that hold it.
"""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unidiffuser.training.preset import differences

PRESET = "preset.json"


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
        try:
            yield
        finally:
            file.truncate(0)


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
