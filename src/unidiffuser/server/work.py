"""Carrying out: which job goes to which worker and when, what happens when a worker dies, and how a job ends.

    queued -> running -> done | failed | cancelled | expired

As many jobs run on a worker at once as it takes (they share forwards there). When a worker dies, a job that ran alone
is to blame and fails; of several that ran together nobody knows which it was, so each is tried again by itself, and the
one that kills a second worker fails. It runs in the web process's event loop; the store blocks, so it is called from
threads. It knows no client and no HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unidiffuser.server.events import EventLog
from unidiffuser.server.fair import FairQueue
from unidiffuser.server.files import stored_result
from unidiffuser.server.limits import Limits
from unidiffuser.server.link import BrokenError, Link, LostError, RefusedError, StoppedJobError
from unidiffuser.server.metrics import Metrics
from unidiffuser.server.stations import Station, Stations
from unidiffuser.server.store import Row, Store

LOG = logging.getLogger(__name__)
PROBE_EVERY = 2.0
TRIES = 2
RECENT = 16
"""Jobs that are over whose events can still be told again."""


@dataclass(eq=False)
class Live:
    """A job that is not over, or was until just now."""

    row: Row
    client: str
    log: EventLog = field(default_factory=EventLog)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    end: str = ""
    """The state it was told to end in: cancelled or expired."""
    link: Station | None = None


class Work:
    """All jobs that are not over, and the workers."""

    def __init__(self, store: Store, links: Sequence[Link], limits: Limits, metrics: Metrics) -> None:
        self.store, self.limits, self.metrics = store, limits, metrics
        self.stations = Stations(links, metrics, self.wake)
        self.paused = ""
        self.draining = False
        self.queue = FairQueue()
        self.live: dict[str, Live] = {}
        self.recent: dict[str, EventLog] = {}
        self.rate = 100.0  # rows a second, measured
        self._suspects: set[str] = set()
        self._unwritten: dict[str, Live] = {}  # over, but the disk refused to hear of it
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Take up what an earlier server left, and start the workers."""
        for row in await asyncio.to_thread(self.store.recover):
            self.live[row.id] = Live(row, row.owner)
            self.live[row.id].log.number = row.last_event
            self.queue.push(row.id, row.owner, row.cost)
        for station in self.stations.all:
            self._spawn(self.stations.keep_alive(station))
        self._spawn(self._dispatch())
        self._spawn(self._watch_clock())

    async def close(self) -> None:
        """Let running jobs end, within the limit; what waits stays in the store for the next server."""
        self.drain()
        deadline = time.monotonic() + self.limits.drain
        while self.stations.running and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.stations.close()
        await asyncio.to_thread(self.store.close)

    def drain(self) -> None:
        """Admit nothing more, start nothing more, and let listeners go."""
        self.draining = self.stations.closing = True
        for job in self.live.values():
            if job.row.state == "queued":
                job.log.close()
                job.over.set()

    @property
    def ready(self) -> bool:
        """Whether jobs can be carried out now."""
        return self.stations.ready and not self.draining and not self.paused

    def trouble(self) -> str:
        """Why not, in one sentence; empty if all is well."""
        if self.draining:
            return "the server is stopping"
        if self.stations.fatal:
            return self.stations.fatal
        if self.paused:
            return self.paused
        return "" if self.ready else "the models are being loaded"

    def log(self, name: str) -> EventLog | None:
        """The events of a job, if they are still there."""
        live = self.live.get(name)
        return live.log if live else self.recent.get(name)

    def push(self, row: Row, client: str) -> Live:
        """A new job, which waits from now on."""
        live = self.live[row.id] = Live(row, client)
        self.queue.push(row.id, client, row.cost)
        return live

    def withdraw(self, name: str) -> None:
        """Forget a job that waits."""
        self.queue.remove(name)
        del self.live[name]

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    async def _dispatch(self) -> None:
        """Give jobs to workers, for ever."""
        while True:
            self._wake.clear()
            # While suspects are about, one job at a time on each worker.
            most = 1 if self._suspects else self.limits.running
            while not self.draining and not self.paused and (station := self.stations.free(most)):
                name = self._next()
                if name is None:
                    break
                job = self.live[name]
                job.row.state, job.row.started, job.link = "running", time.time(), station
                job.row.tries += 1
                station.running.add(name)
                self._spawn(self._carry_out(job, station))
            self._observe()
            await self._wake.wait()

    def _next(self) -> str | None:
        """The next job to run: a suspect first, so that the others need not run one by one for long."""
        suspect = next((name for name in self._suspects if self.queue.remove(name)), None)
        return suspect or self.queue.pop()

    async def _carry_out(self, job: Live, station: Station) -> None:
        row = job.row
        try:
            await asyncio.to_thread(self.store.set, row.id, state="running", started=row.started, tries=row.tries)
            job.log.tell("running", {})
            if job.end:  # it was stopped before its worker knew of it
                raise StoppedJobError
            result = await station.link.run(row.id, row.job, lambda event: self._tell(job, event))
            row.result = await self._stored(row.id, result)
            self._note_rate(row)
            await self._over(job, "done")
        except RefusedError as error:
            await self._over(job, "failed", str(error))
        except BrokenError as error:
            await self._over(job, "failed", str(error))
        except StoppedJobError:
            await self._over(job, job.end or "cancelled")
        except LostError:
            await self._lost(job, station)
        except OSError as error:
            await self._refused(job, error)
        except asyncio.CancelledError:
            raise
        except Exception:
            LOG.exception("job %s failed in the hub", row.id)
            await self._over(job, "failed", "the job failed inside the server; its log says more")
        finally:
            station.running.discard(row.id)
            self._wake.set()

    def _tell(self, job: Live, event: dict[str, Any]) -> None:
        name = event.pop("event")
        if name == "preview":
            self.metrics.previews.inc()
        job.log.tell(name, event)

    async def _stored(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """The result with its files on the disk and their addresses in their place."""
        plain, files = stored_result(name, result)
        if files:
            await asyncio.to_thread(self.store.write_files, name, files)
        return plain

    async def _lost(self, job: Live, station: Station) -> None:
        """The worker died under this job, and perhaps under others."""
        # All that ran on it are here in the same turn of the loop, before any of them is taken off the station.
        alone = len(station.running) == 1
        if job.end:
            await self._over(job, job.end)
        elif alone or job.row.tries >= TRIES:
            await self._over(job, "failed", "the worker was lost while this ran")
        else:
            self._suspects.add(job.row.id)
            job.row.state, job.link = "queued", None
            try:
                await asyncio.to_thread(self.store.set, job.row.id, state="queued")
            except OSError as error:
                await self._refused(job, error)
                return
            job.log.tell("queued", {"ahead": 0, "again": True})
            self.queue.push(job.row.id, job.client, job.row.cost)

    def pause(self, error: OSError) -> None:
        """The disk refuses: nothing more is begun until it takes something again."""
        self.paused = f"results cannot be written ({error.strerror}); the queue waits until they can"
        LOG.error("%s", self.paused)

    async def _refused(self, job: Live, error: OSError) -> None:
        """What a job made, or that it runs, cannot be written."""
        self.pause(error)
        await self._over(job, "failed", "the server could not write the result: its disk refuses")

    async def _over(self, job: Live, state: str, error: str | None = None) -> None:
        """Write the end of a job, then tell it."""
        row = job.row
        row.state, row.error, row.finished = state, error, time.time()
        row.last_event = job.log.number + 1
        self._suspects.discard(row.id)
        with contextlib.suppress(asyncio.CancelledError):
            await self._write_end(job)
        self.metrics.ended.labels(row.verb, state).inc()
        self.metrics.seconds.labels(row.verb).observe(row.finished - row.created)
        LOG.info("job %s %s %s cost %d seconds %.3f", row.id, row.verb, state, row.cost, row.finished - row.created)
        job.log.tell(state, row.told, last=True)
        job.over.set()
        if row.id not in self._unwritten:
            self._leave(job)

    async def _write_end(self, job: Live) -> None:
        """Have the store know how a job ended; if the disk refuses, the job stays here, and it is tried again."""
        row = job.row
        try:
            await asyncio.to_thread(
                self.store.set, row.id, state=row.state, error=row.error, finished=row.finished, result=row.result,
                last_event=row.last_event, tries=row.tries,
            )  # fmt: skip
            self._unwritten.pop(row.id, None)
        except OSError as error:
            self._unwritten[row.id] = job
            self.pause(error)

    def _leave(self, job: Live) -> None:
        """A job that is over and written: from now on the store answers for it."""
        self.live.pop(job.row.id, None)
        self.recent[job.row.id] = job.log
        while len(self.recent) > RECENT:
            del self.recent[next(iter(self.recent))]

    async def end(self, name: str, state: str) -> None:
        """Stop a job wherever it is."""
        job = self.live.get(name)
        if job is None or job.end or job.row.over:
            return
        job.end = state
        if self.queue.remove(name):
            await self._over(job, state, "its deadline passed while it waited" if state == "expired" else None)
        elif job.link:
            with contextlib.suppress(LostError):
                job.link.link.stop(name)

    async def _watch_clock(self) -> None:
        """Deadlines, a full disk that may be free again, and the length of the history."""
        turn = 0
        while True:
            await asyncio.sleep(0.25)
            now = time.time()
            for name, job in list(self.live.items()):
                if job.row.deadline is not None and now > job.row.deadline:
                    await self.end(name, "expired")
            turn += 1
            if self.paused and turn % int(PROBE_EVERY / 0.25) == 0:
                with contextlib.suppress(OSError):
                    await self._take_up_again()
            if turn % 240 == 0:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self.store.prune, self.limits.keep)

    async def _take_up_again(self) -> None:
        """Write what could not be written, and go on. OSError if the disk still refuses."""
        await asyncio.to_thread(self.store.probe)
        for job in list(self._unwritten.values()):
            await self._write_end(job)
            if job.row.id in self._unwritten:
                return
            self._leave(job)
        self.paused = ""
        self._wake.set()

    def _note_rate(self, row: Row) -> None:
        """Rows a second, over all jobs that run now; a slow average."""
        took = max(time.time() - (row.started or row.created), 1e-3)
        together = self.stations.running
        self.rate += 0.1 * (row.cost / took * max(1, together) - self.rate)

    def _observe(self) -> None:
        self.metrics.waiting.set(len(self.queue))
        self.metrics.waiting_cost.set(self.queue.cost)
        self.metrics.running.set(self.stations.running)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
