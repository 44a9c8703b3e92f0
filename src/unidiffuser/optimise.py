"""The loop over optimiser steps, written once: learning rate, averaging, checkpoints, exact resume.

    average = fit(model, loss_of, settings, folder)

The loop keeps nothing random between steps. What it is handed, a function of the step, must keep nothing either: then a
run that was stopped and one that went straight through see the same numbers and end in the same bits. It knows nothing
of modalities, data or what the loss means.
"""

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unidiffuser.checkpoints import training as checkpoints

log = logging.getLogger(__name__)

MAX_BAD_STEPS = 10
"""So many steps in a row without a finite gradient stop a run."""


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """How a model is optimised."""

    steps: int
    """Optimiser steps in all."""
    batch: int
    """Samples a step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: int = 200
    """Steps of linear warm-up."""
    cooldown: float = 0.2
    """Share of the steps, at the end, over which the rate falls linearly to 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's moments."""
    ema: float = 0.9995
    """Decay a step of the averaged weights, which are the ones that are kept; shorter while the run is young."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    autocast: bool = True
    """Matrix products in bfloat16."""
    save_every: int = 1000
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Of the weights, the data order, the timesteps and the noise."""


def fit(
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, Mapping[str, Tensor]]],
    settings: OptimiserSettings,
    folder: Path,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> dict[str, Tensor]:
    """Optimise a model until `settings.steps`, going on from the folder's newest whole checkpoint.

    Args:
        model: its weights are changed.
        loss_of: step -> (loss, named parts to log). It must depend on the step and the weights alone.
        folder: where checkpoints/ and metrics.jsonl lie.
        progress: called with the step and the last logged figures.

    Returns:
        The averaged weights.

    Raises:
        RuntimeError: the loss or its gradient stayed non-finite.
        SystemExit (143), KeyboardInterrupt: it was asked to stop, after a checkpoint was saved.
    """
    optimiser = _optimiser(model, settings)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = _resume(folder, model, average, optimiser)
    started, bad = time.monotonic(), 0
    with _Signals() as signals, open(folder / "metrics.jsonl", "a", encoding="utf-8") as metrics:
        for step in range(first, settings.steps):
            loss, parts = loss_of(step)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            bad = 0 if math.isfinite(norm.item()) else bad + 1
            if bad > MAX_BAD_STEPS:
                raise RuntimeError(
                    f"the loss was not finite in {bad} steps in a row, the last one {step}; lower the learning rate"
                )
            if not bad:
                _update(optimiser, settings.lr * _rate(step, settings))
                _average(average, model, min(settings.ema, 1 - 1 / (step + 2)))
            model.zero_grad(set_to_none=True)
            done = step + 1
            if done % settings.log_every == 0:
                speed = (done - first) * settings.batch / (time.monotonic() - started)
                figures = {"loss": loss.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in parts.items()}}
                _write_line(metrics, {"step": done, **figures, "samples_per_second": round(speed, 1)})
                if progress:
                    progress(done, figures)
            if done % settings.save_every == 0 or done == settings.steps or signals.received:
                checkpoints.save(folder, done, _state(model, average, optimiser))
            signals.leave_if_asked()
    return average


def _rate(step: int, settings: OptimiserSettings) -> float:
    """The share of the peak learning rate: up linearly, level, down linearly."""
    up = (step + 1) / max(settings.warmup, 1)
    down = (settings.steps - step) / max(settings.cooldown * settings.steps, 1)
    return min(1.0, up, down)


def _optimiser(model: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW; only matrices and kernels decay."""
    kinds = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": p, "weight_decay": decay} for p, decay in zip(kinds, (settings.weight_decay, 0.0), strict=True)
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def _update(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()


@torch.no_grad()
def _average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.parameters()], 1 - decay)


def _state(model: nn.Module, average: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a run needs to go on, under flat names."""
    state = {f"model.{name}": x for name, x in model.state_dict().items()}
    state |= {f"average.{name}": x for name, x in average.items()}
    for index, values in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{index}.{name}": torch.as_tensor(x) for name, x in values.items()}
    return state


def _resume(folder: Path, model: nn.Module, average: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> int:
    """Load the newest whole checkpoint of a folder, if there is one; the step to go on from."""
    folder.mkdir(parents=True, exist_ok=True)
    found = checkpoints.newest(folder)
    if found is None:
        return 0
    step, state = found
    model.load_state_dict({name.removeprefix("model."): x for name, x in state.items() if name.startswith("model.")})
    for name, x in average.items():
        x.copy_(state[f"average.{name}"])
    saved: dict[int, dict[str, Tensor]] = {}
    for name, x in state.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            saved.setdefault(int(index), {})[key] = x
    optimiser.load_state_dict({**optimiser.state_dict(), "state": saved})
    log.info("going on from step %d of %s", step, folder)
    return step


def _write_line(file: Any, figures: Mapping[str, float]) -> None:
    """One JSON line; a number that is not finite becomes null, which JSON can say."""
    safe = {k: (v if math.isfinite(v) else None) for k, v in figures.items()}
    file.write(json.dumps(safe, allow_nan=False) + "\n")
    file.flush()


class _Signals:
    """Remember SIGINT and SIGTERM until the step is done and saved; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "_Signals":
        self.before = {s: signal.signal(s, self._remember) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        self.received = number
        signal.signal(number, self.before[signal.Signals(number)])

    def leave_if_asked(self) -> None:
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
