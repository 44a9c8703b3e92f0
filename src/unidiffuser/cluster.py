"""Work that is spread over the machines of a Ray cluster by Ray Data.

    with cluster(workers=8) as carry:
        for answer in carry(work, items): ...

    work            a function of one item; every worker process calls a copy of it
    items, answers  plain JSON values; answers come as they are ready, in any order

Ray starts the workers, hands items out, and calls a worker that died into being again, its item with it: so `work` must
do the same when it does an item twice. A relative path means the same everywhere, for workers go to the folder that we
are in; what `work` reads and writes lies on a file system that all machines see. It knows no data and no model.
"""

import json
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

MOST_BLOCKS = 10_000
"""More items than this are handed out several at a time."""

Work = Callable[[Any], Any]
Carry = Callable[[Work, Sequence[Any]], Iterator[Any]]
"""Who has work done: (a function, items) -> its answers. In this process, one after the other, that is `map`."""


class WorkFailedError(Exception):
    """An item that a worker could not do; what others did before it is done."""


@contextmanager
def cluster(workers: int | None = None, *, gpus: bool = False) -> Iterator[Carry]:
    """Join the cluster of RAY_ADDRESS, or start one of this machine's own; inside, what carries work out on it.

    One that this process has joined already is used, and stays.

    Args:
        workers: processes of one CPU each; None: as many as the cluster has room for.
        gpus: each needs a GPU instead.

    Raises:
        ValueError: the cluster has room for fewer, or there is to be none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its core prints an error at Ray Data's every start
    import ray

    joined = ray.is_initialized()
    if not joined:
        with _signals_kept():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        what = "GPU" if gpus else "CPU"
        room = int(ray.cluster_resources().get(what, 0))
        chosen = room if workers is None else workers
        if not 1 <= chosen <= room:
            raise ValueError(f"{chosen} workers cannot be had: each takes a {what}, and the cluster has {room}")
        yield partial(_carried, chosen, gpus)
    finally:
        if not joined:
            ray.shutdown()


def _carried(workers: int, gpus: bool, work: Work, items: Sequence[Any]) -> Iterator[Any]:
    """The answers to some items.

    Raises:
        WorkFailedError: a worker failed at one.
    """
    if not items:
        return
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = [{"item": json.dumps(item)} for item in items]
    asked = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))
    worker: Any = Worker  # a class is taken too, but Ray's types do not say so
    answered = asked.map(
        worker,
        fn_constructor_args=(ray.put(work), os.getcwd()),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        num_cpus=None if gpus else 1,
        num_gpus=1 if gpus else None,
    )
    for row in answered.iter_rows():
        answer = json.loads(row["answer"])
        if "failed" in answer:
            raise WorkFailedError(answer["failed"])
        yield answer["done"]


class Worker:
    """What Ray keeps in each process: a copy of the work. Failures are answers too: none is tried again in vain."""

    def __init__(self, work: Any, folder: str) -> None:
        """work: the function, or Ray's reference to it. folder: where the one who asks is."""
        self._work, self.folder = work, folder

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """{"item": JSON} -> {"answer": JSON}."""
        try:
            os.chdir(self.folder)
            return {"answer": json.dumps({"done": self.work(json.loads(row["item"]))})}
        except Exception as error:
            traceback.print_exc()  # to the log that Ray keeps of the worker
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            sentence = f"a worker on {socket.gethostname()} failed: {kind}{' '.join(str(error).split())}"
            return {"answer": json.dumps({"failed": sentence})}

    @property
    def work(self) -> Work:
        """The function, fetched when it is first needed."""
        import ray

        if isinstance(self._work, ray.ObjectRef):
            self._work = ray.get(self._work)
        found: Work = self._work
        return found


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours for SIGTERM; ours comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
