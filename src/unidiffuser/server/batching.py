"""Continuous batching: many samplings at once, one forward for all that wait.

Everything that draws or scores asks a Denoiser, and nothing else (the seam). So a sampling that runs in a thread of its
own and is handed a *shared* Denoiser is batched with all others without knowing it: the call waits until a lane is
free, the lane puts all that wait for the same Denoiser behind one another along the batch, asks it once, and hands each
its rows back. Every row has its own timesteps, so samplings with other roles, steps, solvers or guidance share a
forward, and a new one joins at its first call. Those that ask another Denoiser (another model, another label, one that
remembers) or have other shapes wait for the same lanes, but share no forward.

A row is the same to the bit in any batch (the networks promise that on one thread), so a lane computes on one thread,
and there are as many lanes as cores. It knows no jobs, no requests and no raw data.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unidiffuser.denoiser import Denoiser
from unidiffuser.joint import Joint, batch_size, cat_joints


class StoppedError(Exception):
    """Nobody wants the answer any more: the sampling was cancelled, or the lanes are closed."""


@dataclass(frozen=True, eq=False)
class _Call:
    """One evaluation that waits."""

    denoiser: Denoiser
    xt: Joint
    t: dict[str, Tensor]
    rows: int
    answer: "Future[Joint]" = field(default_factory=Future)


class Lanes:
    """Where Denoisers are asked, shared by any number of threads."""

    def __init__(self, *, lanes: int = 1, rows: int = 16, seen: Callable[[int, int], None] | None = None) -> None:
        """
        Args:
            lanes: forwards at the same time; as many as cores on a CPU, one on a GPU.
            rows: at most so many rows a forward, unless a single call has more.
            seen: called with (rows, calls) of each forward, for statistics.
        """
        self._rows, self._seen = rows, seen
        self._lanes, self._busy, self._running, self._closed = lanes, 0, 0, False
        self._waiting: list[_Call] = []
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._serve, name=f"lane-{k}", daemon=True) for k in range(lanes)]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def joined(self) -> Iterator[None]:
        """While one sampling runs: the lanes wait for its calls, a little, to put them together with others'."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def shared(self, denoiser: Denoiser, before: Callable[[], None]) -> Denoiser:
        """A Denoiser for one sampling that has joined. `before` is called ahead of every evaluation; it may raise."""

        def ask(xt: Joint, t: dict[str, Tensor]) -> Joint:
            before()
            return self.ask(denoiser, xt, t)

        return ask

    def ask(self, denoiser: Denoiser, xt: Joint, t: dict[str, Tensor]) -> Joint:
        """The clean estimates, computed together with whatever else waits for the same Denoiser."""
        call = _Call(denoiser, xt, t, batch_size(xt))
        with self._changed:
            if self._closed:
                raise StoppedError
            self._waiting.append(call)
            self._changed.notify_all()
        return call.answer.result()

    def close(self) -> None:
        """Refuse what waits and stop the lanes."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for call in waiting:
            call.answer.set_exception(StoppedError())
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """The life of a lane."""
        with torch.inference_mode():
            while calls := self._next():
                self._compute(calls)
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _next(self) -> list[_Call]:
        """Wait for this lane's fair share of the calls that wait; empty when the lanes are closed.

        A lane does not start on less than its share of all samplings as long as another is at work: else one lane would
        run ahead with a single row while all the rest gathers in the other.
        """
        with self._changed:
            while not self._closed:
                share = max(1, self._running // self._lanes)
                if self._waiting and (len(self._waiting) >= share or not self._busy):
                    self._busy += 1
                    return self._take(-(-len(self._waiting) // max(1, self._lanes - self._busy + 1)))
                self._changed.wait()
            return []

    def _take(self, count: int) -> list[_Call]:
        """The first call that waits and those after it that can share its forward: at most `count` calls, and no more
        than about `rows` rows. The first goes first whatever it is, so none waits for ever.
        """
        taken: list[_Call] = []
        kind, rows = _kind(self._waiting[0]), 0
        for call in [call for call in self._waiting if _kind(call) == kind]:
            if len(taken) == count or (taken and rows + call.rows > self._rows):
                break
            self._waiting.remove(call)
            taken.append(call)
            rows += call.rows
        return taken

    def _compute(self, calls: list[_Call]) -> None:
        """One forward for all; if it fails, one for each, so that only the call at fault fails."""
        if self._seen:
            self._seen(sum(call.rows for call in calls), len(calls))
        try:
            xt, t = cat_joints([call.xt for call in calls]), cat_joints([call.t for call in calls])
            together = calls[0].denoiser(xt, t)
        except Exception as error:
            if len(calls) == 1:
                calls[0].answer.set_exception(error)
            else:
                for call in calls:
                    self._compute([call])
            return
        start = 0
        for call in calls:
            rows = slice(start, start + call.rows)
            call.answer.set_result({stream: x[rows] for stream, x in together.items()})
            start += call.rows


def _kind(call: _Call) -> tuple[object, ...]:
    """What calls must share to be put into one batch: whom they ask, shapes and number formats."""
    return (id(call.denoiser), *((stream, x.shape[1:], x.dtype) for stream, x in call.xt.items()))
