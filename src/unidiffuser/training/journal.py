"""What a run says of itself while it trains: metrics.jsonl always, other sinks as asked.

A sink that fails is dropped with a warning; it never stops training. When a run goes on from step k, the lines after
step k are taken out, so that a resumed file is that of a straight run but for its times. Lines are JSON: a number that
is not finite is null.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Sink = Callable[[int, Mapping[str, float]], None]
"""Takes (step, figures)."""


class Journal:
    """The sinks of one stage of a run."""

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        """step: the one that the run goes on from."""
        self.sinks: dict[str, Sink] = {}
        self._try("metrics.jsonl", lambda: _lines(folder / "metrics.jsonl", step))
        if tensorboard:
            self._try("TensorBoard", lambda: _tensorboard(folder / "tensorboard", step))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell every sink; one that fails is told no more."""
        for name, sink in list(self.sinks.items()):
            try:
                sink(step, figures)
            except Exception as error:  # whatever a sink raises, training goes on
                log.warning("%s cannot be written and is left out from now on: %s", name, error)
                del self.sinks[name]

    def _try(self, name: str, make: Callable[[], Sink]) -> None:
        try:
            self.sinks[name] = make()
        except Exception as error:
            log.warning("%s cannot be opened and is left out: %s", name, error)


def _lines(path: Path, step: int) -> Sink:
    """A sink of JSON lines, each flushed; lines of later steps and a torn last one are removed first."""
    if path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        fresh = path.with_name(f".{path.name}-{os.getpid()}")
        fresh.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(fresh, path)
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (it stays open as long as the run)

    def sink(step: int, figures: Mapping[str, float]) -> None:
        safe = {k: (v if math.isfinite(v) else None) for k, v in figures.items()}
        file.write(json.dumps({"step": step, **safe}, allow_nan=False) + "\n")
        file.flush()

    return sink


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _tensorboard(folder: Path, step: int) -> Sink:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard needs the extra: pip install 'unidiffuser[tensorboard]'") from error
    writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def sink(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return sink
