"""The hub: what clients may do with jobs, and how many of them are taken on.

Admission by cost, a bounded and fair queue, idempotency, and the history. What happens to a job that was taken on is
the matter of `work`. The hub runs in the web process's event loop; the store blocks, so it is called from threads. It
knows no HTTP.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from unidiffuser.server.events import Told
from unidiffuser.server.limits import TurnedAwayError, missing
from unidiffuser.server.link import BrokenError, Link, LostError, RefusedError
from unidiffuser.server.store import Row, new_id
from unidiffuser.server.work import Work

T = TypeVar("T")


class Hub:
    """Every job of a server, as its clients may see it."""

    def __init__(self, work: Work) -> None:
        self.work, self.store, self.limits, self.metrics = work, work.store, work.limits, work.metrics
        self._checks = 0

    @property
    def models(self) -> list[dict[str, Any]]:
        """What the workers said of their models."""
        return self.work.stations.models

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
        live = self.work.push(row, client)  # before the store, so that what is being written counts as waiting
        live.log.tell("queued", {"ahead": self.work.queue.ahead(row.id)})
        try:
            await asyncio.to_thread(self.store.add, row)
        except Exception as error:
            self.work.withdraw(row.id)
            if isinstance(error, OSError):
                self.work.pause(error)
            if key is not None and (known := await asyncio.to_thread(self.store.by_key, owner, key)):
                return known  # the same request came twice at once
            raise
        self.metrics.admitted.labels(row.verb).inc()
        self.work.wake()
        return row

    async def again(self, row: Row) -> Row:
        """A job that is over, once more, as a new job."""
        if not row.over:
            raise TurnedAwayError(409, "this job is not over yet", "not_over")
        return await self.submit(row.owner, row.owner, _as_sent(row.job))

    async def find(self, owner: str, name: str) -> Row:
        """A job of an owner; 404 if there is none."""
        live = self.work.live.get(name)
        row = live.row if live else await asyncio.to_thread(self.store.get, name)
        if row is None or row.owner != owner:
            raise missing()
        return row

    async def history(self, owner: str, before: float, limit: int) -> list[Row]:
        """An owner's jobs, newest first."""
        rows = await asyncio.to_thread(self.store.history, owner, before, limit)
        return [self.work.live[row.id].row if row.id in self.work.live else row for row in rows]

    async def forget(self, row: Row) -> None:
        """Take a finished job and its files out of the history."""
        if row.over:
            self.work.recent.pop(row.id, None)
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
        await self.work.end(name, "cancelled")
        return row

    async def wait(self, name: str) -> Row:
        """A job when it is over; 503 if the server stops first."""
        if live := self.work.live.get(name):
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
        if log := self.work.log(row.id):
            async for told in log.follow(number):
                yield told
            return
        found = await asyncio.to_thread(self.store.get, row.id)
        if found and found.over:
            yield Told(found.last_event, found.state, found.told, last=True)

    def _admit(self, cost: int) -> None:
        if self.work.draining:
            raise TurnedAwayError(503, "the server is stopping", "draining", retry=10)
        if not self.work.stations.models:
            raise TurnedAwayError(503, self.work.trouble(), "not_ready", retry=2)
        if cost > self.limits.job_cost:
            raise TurnedAwayError(
                422,
                f"this exceeds the budget: it costs {cost} rows of the network and at most {self.limits.job_cost} are "
                "carried out; ask for fewer samples or steps",
                "over_budget",
            )
        waiting = self.work.queue.cost
        if len(self.work.queue) >= self.limits.queue_jobs or waiting + cost > self.limits.queue_cost:
            retry = max(1, min(600, round(waiting / self.work.rate)))
            self.metrics.refused.labels("queue_full").inc()
            raise TurnedAwayError(
                429,
                f"the queue is full: {len(self.work.queue)} jobs wait; try again in {retry} s",
                "queue_full",
                retry=retry,
            )

    async def _asked(self, question: Callable[[Link], Awaitable[T]]) -> T:
        """What a worker answers at once, beside its jobs."""
        if self._checks >= self.limits.checks:
            raise TurnedAwayError(429, "too many requests at the same moment", "busy", retry=1)
        link = self.work.stations.any_link()
        if link is None:
            raise TurnedAwayError(503, self.work.trouble() or "the worker is starting again", "not_ready", retry=2)
        self._checks += 1
        try:
            return await question(link)
        except RefusedError as error:
            raise TurnedAwayError(422, str(error), "refused") from error
        except (LostError, BrokenError) as error:
            raise TurnedAwayError(503, "the worker was lost; it is starting again", "worker_lost", retry=2) from error
        finally:
            self._checks -= 1


def _as_sent(job: Mapping[str, Any]) -> dict[str, Any]:
    """A checked job as a client would send it: files as data URLs again."""

    def sent(value: Any) -> Any:
        return f"data:{value['type']};base64,{value['data']}" if isinstance(value, dict) else value

    return dict(job) | {part: {m: sent(v) for m, v in job[part].items()} for part in ("given", "second", "masks")}
