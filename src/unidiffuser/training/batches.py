"""Which sample stands where: batch k of a data set as a function of (seed, k) alone, made in loader processes.

A data set of N samples is gone through in a new order every epoch. The number of loader processes changes nothing; nor
do the processes that train together, each of which takes its own rows of every batch.
"""

import ctypes
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unidiffuser.joint import Joint, generator, map_joint

AHEAD = 4
"""Batches that every loader process makes ahead."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The clean latents of some samples, and what is known of each."""

    x0: Joint
    """Stream -> (B, ...); zeros where a modality is missing."""
    present: dict[str, Tensor]
    """Modality -> (B,) bool: whether the sample has it."""
    label: Tensor
    """(B,) int64: the label token of each sample's source."""
    refused: tuple[str, ...] = ()
    """Values that could not be used, a sentence each."""
    lost: str = ""
    """Why the data cannot be read any more; empty if they can."""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        present = {name: x.to(device) for name, x in self.present.items()}
        x0 = map_joint(lambda x: x.to(device), self.x0)
        return replace(self, x0=x0, present=present, label=self.label.to(device))


Made = TypeVar("Made")


class Samples(Protocol):
    """What is gone through: raw pairs by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Batches(Dataset[Made], Generic[Made]):
    """The parts of every step's batch that this process takes: part k of step s has the number s A + k."""

    def __init__(
        self,
        pairs: Samples,
        batch: int,
        seed: int,
        encode: Callable[[Sequence[Mapping[str, Any]]], Made],
        device: str | torch.device = "cpu",
        *,
        parts: int = 1,
        rank: int = 0,
        size: int = 1,
        workers: int = 1,
    ) -> None:
        """
        Args:
            pairs: the data.
            batch: samples a step, over all processes.
            seed: of the order.
            encode: the raw pairs of a batch -> a joint or a `Batch`.
            device: where batches go.
            parts: A, how many parts a step's batch is cut into.
            rank, size: which process this is, of how many.
            workers: loader processes; 0: batches are made in this process, when they are asked for.
        """
        if len(pairs) < 1:
            raise ValueError("the data set is empty; training needs at least one sample")
        if batch % (parts * size):
            raise ValueError(
                f"a batch of {batch} cannot be shared by {size} processes in {parts} parts each; "
                f"make --batch a multiple of {parts * size}"
            )
        self.pairs, self.batch, self.seed, self.encode = pairs, batch, seed, encode
        self.device, self.workers = torch.device(device), workers
        self.parts, self.rank, self.rows = parts, rank, batch // (parts * size)

    def __getitem__(self, number: int) -> Made:
        return self.encode([self.pairs[i] for i in self.indices(number)])

    def places(self, number: int) -> range:
        """Which samples of its step's batch a part holds."""
        first = (number % self.parts) * (self.batch // self.parts) + self.rank * self.rows
        return range(first, first + self.rows)

    def indices(self, number: int) -> list[int]:
        """The samples of a part."""
        n, start = len(self.pairs), (number // self.parts) * self.batch
        return [self._order((start + k) // n, (start + k) % n) for k in self.places(number)]

    def _order(self, epoch: int, position: int) -> int:
        """The sample at a position of an epoch: an affine permutation i -> (a i + b) mod n with a prime to n.

        It needs no table, so an endless data set costs no memory.
        """
        n = len(self.pairs)
        g = generator(self.seed, "order", epoch)
        a, b = (int(torch.randint(n, (), generator=g)) for _ in range(2))
        while math.gcd(a, n) != 1:
            a += 1
        return (a * position + b) % n

    def from_step(self, first: int, end: int) -> Iterator[Made]:
        """The parts first, ..., end - 1, drawn ahead by the loader processes."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first, end),
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            worker_init_fn=_begin_worker,
        )
        return map(self._moved, loader)

    def following(self, end: int) -> Callable[[int], Made]:
        """A function of the part's number, to be called for one after the other; the first call says where to begin."""
        opened: list[Iterator[Made]] = []

        def at(number: int) -> Made:
            if not opened:
                opened.append(self.from_step(number, end))
            return next(opened[0])

        return at

    def _moved(self, made: Made) -> Made:
        if isinstance(made, Batch):
            return made.to(self.device)
        assert isinstance(made, dict)
        return map_joint(lambda x: x.to(self.device), made)  # type: ignore[return-value]


GRACE = 5.0
"""So many seconds a loader process works on after SIGTERM."""


def _begin_worker(_: int) -> None:
    """A loader process leaves it to the main process to act on a signal that reaches both, and dies with it.

    A terminated one still makes what the main process may be waiting for, and then leaves without a failure.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, GRACE))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
