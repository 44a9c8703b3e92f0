"""The loop over optimiser steps, written once: learning rate, averaging, checkpoints, exact resume.

    average = fit(model, loss_of, settings, folder)

The loop keeps nothing random between steps. What it is handed, a function of the step, must keep nothing either: then a
run that was stopped and one that went straight through see the same numbers and end in the same bits. It knows nothing
of modalities, data or what the loss means.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unidiffuser.checkpoints import sharded
from unidiffuser.checkpoints import training as checkpoints
from unidiffuser.training import TrainingError, memory, saving
from unidiffuser.training.journal import Journal
from unidiffuser.training.preset import OptimiserSettings as OptimiserSettings
from unidiffuser.training.state import Averages, Optimisers, state_of
from unidiffuser.training.team import Team, full, quiet

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 10
"""So many steps in a row without a finite gradient stop a run."""
MAX_FAILED_SAVES = 2
"""So many checkpoints in a row that the disk refuses stop a run."""

LossOf = Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]
"""Part of a step -> (loss, named parts to log); part k of step s of a run with A parts a step is number s A + k."""


def fit(
    model: nn.Module,
    loss_of: LossOf,
    settings: OptimiserSettings,
    folder: Path,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> dict[str, Tensor]:
    """Optimise a model in this process alone; see `fit_all`. Returns the averaged weights."""
    return fit_all(model, loss_of, settings, folder, progress)[0]


def fit_all(
    model: nn.Module,
    loss_of: LossOf,
    settings: OptimiserSettings,
    folder: Path,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
    *,
    team: Team | None = None,
    called: Any = None,
    tensorboard: bool = False,
    saved: Callable[[int], None] | None = None,
    ended: Callable[[int, Mapping[str, Tensor]], bool] | None = None,
) -> list[dict[str, Tensor]]:
    """Optimise a model until `settings.steps`, going on from the folder's newest whole checkpoint.

    Args:
        model: its weights are changed, those that are not frozen.
        loss_of: it must depend on its number and the weights alone.
        folder: where checkpoints/ and metrics.jsonl lie.
        progress: called with the step and the last logged figures.
        team: the processes that train together; None: this one alone.
        called: what `loss_of` calls in the place of the model, when many processes share it.
        tensorboard: whether figures go there as well.
        saved: told the step of every checkpoint that was written.
        ended: asked before every step and after the last one, with the number of steps taken and the average of the
            decay `ema`; True ends the run there. What it remembers must be buffers of the model.

    Returns:
        The averages of the weights that train, whole: of the decay `ema` first, then of `more_ema`.

    Raises:
        TrainingError: the loss or its gradient stayed non-finite, or the disk kept refusing checkpoints.
        SystemExit (143), KeyboardInterrupt: it was asked to stop, after a checkpoint was saved.
    """
    run = _Run(model, settings, folder, team or Team(), model if called is None else called, saved)
    run.resume()
    with _Signals(run.team) as signals, _loaders_watched():
        journal = Journal(folder, run.step, tensorboard=tensorboard) if run.team.first else None
        started, first = time.monotonic(), run.step
        while not (ended and ended(run.step, run.averages.weights[0])) and run.step < settings.steps:
            loss, parts, norm = run.take_step(loss_of)
            if run.step % settings.log_every == 0:
                figures = run.team.mean({"loss": loss, **parts}) | {"grad_norm": norm}
                speed = (run.step - first) * settings.batch / max(time.monotonic() - started, 1e-9)
                if journal:
                    journal.write(run.step, {**figures, "samples_per_second": round(speed, 1)})
                if progress:
                    progress(run.step, figures)
            asked = signals.asked()
            if run.step % settings.save_every == 0 or run.step == settings.steps or asked:
                run.save(last=bool(asked) or run.step == settings.steps)
            signals.leave(asked)
        if ended and run.step > first:
            run.save(last=True)  # with what it remembers of the last answer
    return [{name: full(x) for name, x in average.items()} for average in run.averages.weights]


@contextmanager
def _loaders_watched() -> Iterator[None]:
    """Say in one sentence that a loader process died; torch raises it wherever the main process happens to be."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            "a loader process died, perhaps for lack of memory; give the same line again: it goes on from the last "
            "checkpoint; --workers 1 takes less memory"
        ) from error


@dataclass
class _Run:
    """A run between two steps."""

    model: nn.Module
    settings: OptimiserSettings
    folder: Path
    team: Team
    called: Any
    saved: Callable[[int], None] | None
    step: int = 0
    bad: int = 0
    failed_saves: int = 0

    def __post_init__(self) -> None:
        self.optimisers = Optimisers(self.model, self.settings)
        self.averages = Averages(self.model, (self.settings.ema, *self.settings.more_ema))

    def resume(self) -> None:
        """Load the newest whole checkpoint of the folder, if there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # All moments are there from the start, so that a state has the same names whatever has had a gradient so far.
        self.optimisers.begin()
        if self.team.first:
            checkpoints.sweep(self.folder)
        found = self.team.tell(_findable(self.folder) if self.team.first else None)
        if found is None:
            return
        if isinstance(found, str):
            raise ValueError(found)
        step, place = found
        with torch.no_grad():
            sharded.load_into(Path(place), state_of(self.model, self.averages, self.optimisers))
        self.step = step
        log.info("going on from step %d of %s", step, self.folder)

    def take_step(self, loss_of: LossOf) -> tuple[float, dict[str, float], float]:
        """One step of the optimiser, unless its gradient is not finite. Returns the loss, its parts, and the norm."""
        with self._guarded(whole=True):
            loss, parts, norm = self._gradient(loss_of)
        self._count(math.isfinite(norm))
        if not self.bad:
            with self._guarded(whole=False):
                self.optimisers.step(rate(self.step, self.settings))
                self.averages.update(self.step)
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        return loss, parts, norm

    def _gradient(self, loss_of: LossOf) -> tuple[float, dict[str, float], float]:
        """The gradient of a step, clipped, part after part. Returns as `take_step`."""
        loss, parts = 0.0, dict[str, float]()
        count = self.settings.accumulate
        for k in range(count):
            with quiet(self.called, last=k == count - 1):
                one, its_parts = loss_of(self.step * count + k)
                (one / count).backward()
            loss += one.item() / count
            for name, x in its_parts.items():
                parts[name] = parts.get(name, 0.0) + float(x) / count
        weights = [p for p in self.model.parameters() if p.grad is not None]
        return loss, parts, float(full(nn.utils.clip_grad_norm_(weights, self.settings.clip or math.inf)))

    @contextmanager
    def _guarded(self, *, whole: bool) -> Iterator[None]:
        """Before an error goes on, save what was trained so far, if the weights are whole: not amid their change."""
        try:
            yield
        except Exception as error:
            self.model.zero_grad(set_to_none=True)
            saved = whole and self.step > 0 and self.team.size == 1
            if saved:
                self.save(last=True)
            if memory.is_short(error):
                raise TrainingError(memory.sentence(self.settings, saved)) from error
            raise

    def _count(self, finite: bool) -> None:
        """Count steps in a row without a finite gradient."""
        self.bad = 0 if finite else self.bad + 1
        if self.bad:
            log.warning("the gradient of step %d is not finite; the step is left out", self.step)
        if self.bad > MAX_BAD_STEPS:
            raise TrainingError(
                f"the loss was not finite in {self.bad} steps in a row, the last one {self.step}; "
                "lower the learning rate and give the same line again: it goes on from the last checkpoint"
            )

    def save(self, last: bool) -> None:
        """Write a checkpoint; a disk that refuses is forgiven once, unless it was the last chance."""
        state = state_of(self.model, self.averages, self.optimisers)
        trouble = saving.save(self.folder, self.step, state, self.team)
        if not trouble:
            self.failed_saves = 0
            if self.saved and self.team.first:
                self.saved(self.step)
            return
        self.failed_saves += 1
        log.warning("the checkpoint of step %d could not be written: %s", self.step, trouble)
        if last or self.failed_saves >= MAX_FAILED_SAVES:
            raise TrainingError(
                f"no checkpoint could be written to {self.folder}: {trouble}; the older ones are whole: "
                "make room and give the same line again"
            )


def _findable(folder: Path) -> tuple[int, str] | str | None:
    """The newest whole checkpoint's step and place, or what is wrong with all of them."""
    try:
        found = checkpoints.find(folder)
    except ValueError as error:
        return str(error)
    return None if found is None else (found[0], str(found[1]))


def rate(step: int, settings: OptimiserSettings) -> float:
    """The share of the peak learning rate: up linearly, level, down linearly."""
    up = (step + 1) / max(settings.warmup, 1)
    down = (settings.steps - step) / max(settings.cooldown * settings.steps, 1)
    return min(1.0, up, down)


class _Signals:
    """Remember SIGINT and SIGTERM until the step is done and saved; a second one acts at once."""

    def __init__(self, team: Team) -> None:
        self.received, self.team = 0, team

    def __enter__(self) -> "_Signals":
        self.before = {s: signal.signal(s, self._remember) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        self.received = number
        signal.signal(number, self.before[signal.Signals(number)])

    def asked(self) -> int:
        """The signal that came to this process or to another of the team, or 0."""
        return self.team.agree(self.received)

    def leave(self, number: int) -> None:
        """Stop as the signal asks."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
