"""Writing a checkpoint together: the first process alone, or every process its own shards.

What the disk refuses comes back as a sentence, the same for all processes in whether there is one, so that none waits
for another that has given up. What a failed attempt left is removed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unidiffuser.checkpoints import sharded
from unidiffuser.checkpoints import training as checkpoints
from unidiffuser.training.state import unsharded
from unidiffuser.training.team import Team


def save(folder: Path, step: int, state: Mapping[str, Tensor], team: Team) -> str:
    """Write a checkpoint; all processes call it together. Returns what went wrong, or nothing."""
    if unsharded(state):
        return _by_the_first(team, lambda: checkpoints.save(folder, step, state))
    aside = Path(team.tell(str(checkpoints.aside(folder, step))))
    trouble = (
        _by_the_first(team, lambda: checkpoints.prepare(aside))
        or _by_all(team, lambda: sharded.fill(aside, state))
        or _by_the_first(team, lambda: checkpoints.finish(folder, step, aside))
    )
    if trouble and team.first:
        checkpoints.sweep(folder)
    return trouble


def _by_the_first(team: Team, do: Callable[[], Any]) -> str:
    """What the disk says to the first process."""
    return str(team.tell(_attempt(do) if team.first else ""))


def _by_all(team: Team, do: Callable[[], Any]) -> str:
    """What the disk says to this process, or that it said something to another."""
    trouble = _attempt(do)
    return (trouble or "another process could not write its shards") if team.agree(int(bool(trouble))) else ""


def _attempt(do: Callable[[], Any]) -> str:
    """What the disk says to it; empty if all went well."""
    try:
        do()
    except OSError as error:
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    return ""
