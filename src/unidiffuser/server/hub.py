"""The hub: the life of every job, from the request to the files.

    queued -> running -> done | failed | cancelled | expired
    running -> interrupted     the server itself stopped

Admission by cost, a bounded and fair queue, as many jobs on a worker at once as it takes (they share forwards there),
deadlines, cancelling, and what happens when a worker dies: a job that ran alone is to blame and fails; of several that
ran together nobody knows which it was, so each is tried again by itself, and the one that kills a second worker fails.

The hub runs in the web process's event loop. The store blocks, so it is called from threads. It knows no HTTP.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from unidiffuser.server.events import EventLog, Told
from unidiffuser.server.fair import FairQueue
from unidiffuser.server.files import stored_result
from unidiffuser.server.limits import Limits, TurnedAwayError, missing
from unidiffuser.server.link import BrokenError, FatalError, Link, LostError, RefusedError, StoppedJobError
from unidiffuser.server.metrics import Metrics
from unidiffuser.server.store import Row, Store, new_id

LOG = logging.getLogger(__name__)
RESTART_PAUSE = 1.0
PROBE_EVERY = 2.0
TRIES = 2
T = TypeVar("T")


@dataclass(eq=False)
class Live:
    """A job that is not over, or was until just now."""

    row: Row
    client: str
    log: EventLog = field(default_factory=EventLog)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    end: str = ""
    """The state it was told to end in: cancelled or expired."""
    link: "Station | None" = None


@dataclass(eq=False)
class Station:
    """A worker and what runs on it."""

    link: Link
    ready: bool = False
    running: set[str] = field(default_factory=set)


class Hub:
    """Every job of a server."""

    def __init__(self, store: Store, links: Sequence[Link], limits: Limits, metrics: Metrics) -> None:
        self.store, self.limits, self.metrics = store, limits, metrics
        self.stations = [Station(link) for link in links]
        self.models: list[dict[str, Any]] = []
        self.fatal = ""
        self.paused = ""
        self.draining = False
        self.queue = FairQueue()
        self.live: dict[str, Live] = {}
        self._suspects: set[str] = set()
        self._checks = 0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rate = 100.0  # rows a second, measured
        self._started = time.monotonic()

    # ---- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what an earlier server left, and start the workers."""
        for row in await asyncio.to_thread(self.store.recover):
            self.live[row.id] = Live(row, row.owner)
            self.live[row.id].log.number = row.last_event
            self.queue.push(row.id, row.owner, row.cost)
        for station in self.stations:
            self._spawn(self._keep_alive(station))
        self._spawn(self._dispatch())
        self._spawn(self._watch_clock())

    async def close(self) -> None:
        """Let running jobs end, within the limit; what waits stays in the store for the next server."""
        self.drain()
        deadline = time.monotonic() + self.limits.drain
        while any(station.running for station in self.stations) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(station.link.close() for station in self.stations))
        await asyncio.to_thread(self.store.close)

    def drain(self) -> None:
        """Admit nothing more, start nothing more, and let listeners go."""
        self.draining = True
        for job in self.live.values():
            if job.row.state == "queued":
                job.log.close()
                job.over.set()

    @property
    def ready(self) -> bool:
        """Whether jobs can be carried out now."""
        return bool(self.models) and not self.draining and not self.paused and any(s.ready for s in self.stations)

    def trouble(self) -> str:
        """Why not, in one sentence; empty if all is well."""
        if self.draining:
            return "the server is stopping"
        if self.fatal:
            return self.fatal
        if self.paused:
            return self.paused
        return "" if self.ready else "the models are being loaded"

    # ---- jobs ----------------------------------------------------------------------------------------------------

    async def submit(self, owner: str, client: str, body: Mapping[str, Any], key: str | None = None) -> Row:
        """A new job, or the one with the same idempotency key.

        Raises:
            TurnedAwayError: 409, 422, 429 or 503.
        """
        print_ = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if key is not None and (known := await asyncio.to_thread(self.store.by_key, owner, key)):
            if known.print != print_:
                raise TurnedAwayError(409, "this idempotency key was used with another body", "idempotency_conflict")
            return known
        self._admit(0)
        job, cost = await self._asked(lambda link: link.check(body))
        self._admit(cost)
        now = time.time()
        wait = body.get("deadline_s") or self.limits.deadline
        row = Row(
            id=new_id(), owner=owner, state="queued", verb=job["verb"], model=job["model"], job=job, cost=cost,
            created=now, deadline=now + wait, key=key, print=print_,
        )  # fmt: skip
        live = self.live[row.id] = Live(row, client)
        self.queue.push(row.id, client, cost)  # before the store, so that what is being written counts as waiting
        try:
            await asyncio.to_thread(self.store.add, row)
        except Exception:
            self.queue.remove(row.id)
            del self.live[row.id]
            if key is not None and (known := await asyncio.to_thread(self.store.by_key, owner, key)):
                return known  # the same request came twice at once
            raise
        live.log.tell("queued", {"ahead": self.queue.ahead(row.id) if row.state == "queued" else 0})
        self.metrics.admitted.labels(row.verb).inc()
        self._wake.set()
        return row

    async def again(self, row: Row) -> Row:
        """A job that is over, once more, as a new job."""
        if not row.over:
            raise TurnedAwayError(409, "this job is not over yet", "not_over")
        return await self.submit(row.owner, row.owner, _as_sent(row.job))

    async def find(self, owner: str, name: str) -> Row:
        """A job of an owner; 404 if there is none."""
        live = self.live.get(name)
        row = live.row if live else await asyncio.to_thread(self.store.get, name)
        if row is None or row.owner != owner:
            raise missing()
        return row

    async def history(self, owner: str, before: float, limit: int) -> list[Row]:
        """An owner's jobs, newest first."""
        rows = await asyncio.to_thread(self.store.history, owner, before, limit)
        return [self.live[row.id].row if row.id in self.live else row for row in rows]

    async def forget(self, row: Row) -> None:
        """Take a finished job and its files out of the history."""
        if row.over:
            await asyncio.to_thread(self.store.delete, row.id)

    async def file(self, name: str, file_name: str) -> Path | None:
        """Where a file of a job is, if there is one."""
        return await asyncio.to_thread(self.store.path, name, file_name)

    async def bytes_of(self, place: Path) -> bytes:
        """What is in a file."""
        return await asyncio.to_thread(place.read_bytes)

    async def read_recipe(self, image: str) -> dict[str, Any]:
        """What a picture says of how it was made."""
        return await self._asked(lambda link: link.read(image))

    async def cancel(self, owner: str, name: str) -> Row:
        """Stop a job; one that is over stays as it is."""
        row = await self.find(owner, name)
        await self._end(name, "cancelled")
        return row

    async def wait(self, name: str) -> Row:
        """A job when it is over; 503 if the server stops first."""
        if live := self.live.get(name):
            await live.over.wait()
            if not live.row.over:
                raise TurnedAwayError(503, "the server is stopping; the job is kept and goes on", "draining", retry=10)
            return live.row
        found = await asyncio.to_thread(self.store.get, name)
        if found is None:
            raise missing()
        return found

    async def follow(self, row: Row, number: int = 0) -> AsyncIterator[Told | None]:
        """The events of a job after a number, up to the last."""
        if live := self.live.get(row.id):
            async for told in live.log.follow(number):
                yield told
            return
        found = await asyncio.to_thread(self.store.get, row.id)
        if found and found.over:
            yield Told(max(found.last_event, number + 1), found.state, summary(found), last=True)

    # ---- admission -----------------------------------------------------------------------------------------------

    def _admit(self, cost: int) -> None:
        if self.draining:
            raise TurnedAwayError(503, "the server is stopping", "draining", retry=10)
        if not self.models:
            raise TurnedAwayError(503, self.trouble(), "not_ready", retry=2)
        if cost > self.limits.job_cost:
            raise TurnedAwayError(
                422,
                f"this exceeds the budget: it costs {cost} rows of the network and at most {self.limits.job_cost} are "
                "carried out; ask for fewer samples or steps",
                "over_budget",
            )
        waiting = self.queue.cost
        if len(self.queue) >= self.limits.queue_jobs or waiting + cost > self.limits.queue_cost:
            retry = max(1, min(600, round(waiting / self._rate)))
            self.metrics.refused.labels("queue_full").inc()
            raise TurnedAwayError(
                429,
                f"the queue is full: {len(self.queue)} jobs wait; try again in {retry} s",
                "queue_full",
                retry=retry,
            )

    async def _asked(self, question: Callable[[Link], Awaitable[T]]) -> T:
        """What a worker answers at once, beside its jobs."""
        if self._checks >= self.limits.checks:
            raise TurnedAwayError(429, "too many requests at the same moment", "busy", retry=1)
        station = next((s for s in self.stations if s.ready), None)
        if station is None:
            raise TurnedAwayError(503, self.trouble() or "the worker is starting again", "not_ready", retry=2)
        self._checks += 1
        try:
            return await question(station.link)
        except RefusedError as error:
            raise TurnedAwayError(422, str(error), "refused") from error
        except (LostError, BrokenError) as error:
            raise TurnedAwayError(503, "the worker was lost; it is starting again", "worker_lost", retry=2) from error
        finally:
            self._checks -= 1

    # ---- carrying out --------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        """Give jobs to workers, for ever."""
        while True:
            self._wake.clear()
            while not self.draining and not self.paused and (station := self._free_station()):
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

    def _free_station(self) -> Station | None:
        """The ready worker with the fewest jobs, if it takes another. While suspects are about, one job at a time."""
        most = 1 if self._suspects else self.limits.running
        free = [s for s in self.stations if s.ready and len(s.running) < most]
        return min(free, key=lambda s: len(s.running), default=None)

    async def _carry_out(self, job: Live, station: Station) -> None:
        row = job.row
        try:
            await asyncio.to_thread(self.store.set, row.id, state="running", started=row.started, tries=row.tries)
            job.log.tell("running", {})
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
            self.paused = f"results cannot be written ({error.strerror}); the queue waits until they can"
            LOG.error("job %s: %s", row.id, self.paused)
            await self._over(job, "failed", "the server could not write the result: its disk refuses")
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
            await asyncio.to_thread(self.store.set, job.row.id, state="queued")
            job.log.tell("queued", {"ahead": 0, "again": True})
            self.queue.push(job.row.id, job.client, job.row.cost)

    async def _over(self, job: Live, state: str, error: str | None = None) -> None:
        """Write the end of a job, then tell it."""
        row = job.row
        row.state, row.error, row.finished = state, error, time.time()
        row.last_event = job.log.number + 1
        self._suspects.discard(row.id)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.to_thread(
                self.store.set, row.id, state=state, error=error, finished=row.finished, result=row.result,
                last_event=row.last_event, tries=row.tries,
            )  # fmt: skip
        self.metrics.ended.labels(row.verb, state).inc()
        self.metrics.seconds.labels(row.verb).observe(row.finished - row.created)
        LOG.info("job %s %s %s cost %d seconds %.3f", row.id, row.verb, state, row.cost, row.finished - row.created)
        job.log.tell(state, summary(row), last=True)
        job.over.set()
        self.live.pop(row.id, None)

    async def _end(self, name: str, state: str) -> None:
        """Stop a job wherever it is."""
        job = self.live.get(name)
        if job is None or job.end:
            return
        job.end = state
        if self.queue.remove(name):
            await self._over(job, state, "its deadline passed while it waited" if state == "expired" else None)
        elif job.link:
            with contextlib.suppress(LostError):
                job.link.link.stop(name)

    # ---- housekeeping --------------------------------------------------------------------------------------------

    async def _keep_alive(self, station: Station) -> None:
        """Start a worker, and again whenever it dies."""
        first = True
        while not self.draining:
            try:
                models = await station.link.start()
            except FatalError as error:
                self.fatal = str(error)
                LOG.error("the worker cannot start: %s", error)
                return
            except LostError:
                await asyncio.sleep(RESTART_PAUSE)
                continue
            self.models = self.models or models
            station.ready = True
            if not first:
                self.metrics.restarts.inc()
            first = False
            self._wake.set()
            await station.link.lost()
            station.ready = False
            LOG.warning("a worker was lost with %d jobs; it is starting again", len(station.running))

    async def _watch_clock(self) -> None:
        """Deadlines, a full disk that may be free again, and the length of the history."""
        turn = 0
        while True:
            await asyncio.sleep(0.25)
            now = time.time()
            for name, job in list(self.live.items()):
                if job.row.deadline is not None and now > job.row.deadline:
                    await self._end(name, "expired")
            turn += 1
            if self.paused and turn % int(PROBE_EVERY / 0.25) == 0:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self.store.probe)
                    self.paused = ""
                    self._wake.set()
            if turn % 240 == 0:
                await asyncio.to_thread(self.store.prune, self.limits.keep)

    def _note_rate(self, row: Row) -> None:
        """Rows a second, over all jobs that run now; a slow average."""
        took = max(time.time() - (row.started or row.created), 1e-3)
        together = sum(len(station.running) for station in self.stations)
        self._rate += 0.1 * (row.cost / took * max(1, together) - self._rate)

    def _observe(self) -> None:
        self.metrics.waiting.set(len(self.queue))
        self.metrics.waiting_cost.set(self.queue.cost)
        self.metrics.running.set(sum(len(station.running) for station in self.stations))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def summary(row: Row) -> dict[str, Any]:
    """A job as clients see it."""
    return {
        "id": row.id,
        "state": row.state,
        "verb": row.verb,
        "model": row.model,
        "job": row.job,
        "cost": row.cost,
        "created": row.created,
        "started": row.started,
        "finished": row.finished,
        "error": row.error,
        "result": row.result,
    }


def _as_sent(job: Mapping[str, Any]) -> dict[str, Any]:
    """A checked job as a client would send it: files as data URLs again."""

    def sent(value: Any) -> Any:
        return f"data:{value['type']};base64,{value['data']}" if isinstance(value, dict) else value

    return dict(job) | {part: {m: sent(v) for m, v in job[part].items()} for part in ("given", "second", "masks")}
