"""The life of jobs as a state machine: submit, steps, ends, cancels, deaths and restarts in any order, with listeners
that come, are cut off and go on from the last event they saw; against a plain model of what must hold.

    a number of an event stands for one event for ever, across restarts, and each listener hears rising numbers
    a listener that stays hears exactly one end, last, and it is the end that the job has
    a job that is over stays as it is; what was forgotten and what never was is not found
    a job that was stopped ends, whenever it was stopped; no job runs again after a kill unless it is asked for again

Everything is real but the worker, which does what it is told, and the threads of the store, which run in the loop.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from puppet import Puppet

from unidiffuser.server.hub import Hub
from unidiffuser.server.limits import Limits, TurnedAwayError
from unidiffuser.server.metrics import Metrics
from unidiffuser.server.store import OVER, Store
from unidiffuser.server.work import Work

T = TypeVar("T")
OWNER = "a"
SIDE_BY_SIDE = 2
RESULT = {"samples": []}
PAUSES = st.integers(0, 6)
"""Turns of the loop after a rule: too few for everything to happen, so that the next rule falls in between."""


async def at_once(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """`asyncio.to_thread` without a thread, but with the same chance for others to go on meanwhile."""
    await asyncio.sleep(0)
    return call(*arguments, **options)


class Heard:
    """A listener: what it was told, in order."""

    def __init__(self, job: str, after: int, goes_on: bool) -> None:
        self.job, self.after, self.goes_on = job, after, goes_on
        self.told: list[tuple[int, str]] = []
        self.task: asyncio.Task[None] | None = None

    async def listen(self, hub: Hub) -> None:
        row = await hub.find(OWNER, self.job)
        async for told in hub.follow(row, self.after):
            if told:
                self.told.append((told.number, told.name))


class Life(RuleBasedStateMachine):
    """Jobs, listeners and what must hold of them."""

    jobs = Bundle("jobs")
    listeners = Bundle("listeners")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="unidiffuser-test-"))
        self.patch = patch("asyncio.to_thread", at_once)
        self.patch.start()
        self.loop = asyncio.new_event_loop()
        self.numbers: dict[str, dict[int, str]] = {}
        self.ends: dict[str, str] = {}
        self.forgotten: set[str] = set()
        self.stopped: set[str] = set()
        self.keys: dict[str, tuple[int, str]] = {}
        self.runs: dict[str, int] = {}
        self.deaths = 0
        self.heard: list[Heard] = []
        self.open()

    # ---- the machine's hands -----------------------------------------------------------------------------------------

    def open(self) -> None:
        async def opened() -> None:
            self.puppet = Puppet()
            self.store = Store(self.folder)
            limits = Limits(running=SIDE_BY_SIDE, drain=0.0)
            self.hub = Hub(Work(self.store, [self.puppet], limits, Metrics()))
            await self.hub.work.open()

        self.loop.run_until_complete(opened())
        self.settle()

    def do(self, work: Awaitable[T], pause: int = 0) -> T:
        async def done() -> T:
            found = await work
            await self.turns(pause)
            return found

        return self.loop.run_until_complete(done())

    @staticmethod
    async def turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    def settle(self) -> None:
        self.loop.run_until_complete(self.turns(60))

    def refusal(self, work: Awaitable[Any]) -> int:
        try:
            self.do(work)
        except TurnedAwayError as error:
            return error.status
        return 200

    def state(self, job: str) -> str:
        return self.do(self.hub.find(OWNER, job)).state

    # ---- what can happen ---------------------------------------------------------------------------------------------

    @rule(target=jobs, seed=st.integers(0, 2), key=st.sampled_from([None, None, "k", "l"]), pause=PAUSES)
    def submit(self, seed: int, key: str | None, pause: int) -> Any:
        if not self.hub.work.ready:
            self.settle()
        work = self.hub.submit(OWNER, OWNER, {"seed": seed}, key)
        known = self.keys.get(key or "")
        if known and known[1] not in self.forgotten:
            if known[0] != seed:
                assert self.refusal(work) == 409
                return multiple()
            assert self.do(work, pause).id == known[1]
            return multiple()
        row = self.do(work, pause)
        self.numbers[row.id] = {}
        if key:
            self.keys[key] = (seed, row.id)
        return row.id

    @rule(name=st.data(), pause=PAUSES)
    def step(self, name: Any, pause: int) -> None:
        running = sorted(self.puppet.running)
        if running:
            listen = self.puppet.running[name.draw(st.sampled_from(running))][1]
            listen({"event": "step", "done": 1, "total": 9})
        self.do(asyncio.sleep(0), pause)

    @rule(name=st.data(), pause=PAUSES)
    def finish(self, name: Any, pause: int) -> None:
        running = sorted(self.puppet.running)
        if running:
            future = self.puppet.running[name.draw(st.sampled_from(running))][0]
            if not future.done():
                future.set_result(dict(RESULT))
        self.do(asyncio.sleep(0), pause)

    @rule(job=jobs, pause=PAUSES)
    def cancel(self, job: str, pause: int) -> None:
        if job in self.forgotten:
            assert self.refusal(self.hub.cancel(OWNER, job)) == 404
            return
        self.do(self.hub.cancel(OWNER, job), pause)
        self.stopped.add(job)

    @rule(pause=PAUSES)
    def submit_and_cancel(self, pause: int) -> None:
        """Stopped while it is on its way to the worker."""
        if self.hub.work.ready:
            row = self.do(self.hub.submit(OWNER, OWNER, {"seed": 0}), pause)
            self.numbers[row.id] = {}
            self.do(self.hub.cancel(OWNER, row.id))
            self.settle()
            assert self.state(row.id) == "cancelled"

    @rule(job=jobs)
    def forget(self, job: str) -> None:
        self.settle()
        if job in self.forgotten:
            return
        row = self.do(self.hub.find(OWNER, job))
        self.do(self.hub.forget(row))
        if row.state in OVER:
            self.forgotten.add(job)

    @rule(target=listeners, job=jobs, after=st.integers(0, 4))
    def listen(self, job: str, after: int) -> Any:
        if job in self.forgotten:
            assert self.refusal(self.hub.find(OWNER, job)) == 404
            return multiple()
        return self.come(job, after)

    @rule(target=listeners, one=consumes(listeners))
    def cut_off_and_go_on(self, one: Heard) -> Any:
        assert one.task
        one.task.cancel()
        self.settle()
        if one.job in self.forgotten or (one.told and one.told[-1][1] in OVER):
            return multiple()
        return self.come(one.job, one.told[-1][0], goes_on=True) if one.told else self.come(one.job, one.after)

    def come(self, job: str, after: int, goes_on: bool = False) -> Heard:
        one = Heard(job, after, goes_on)
        one.task = self.loop.create_task(one.listen(self.hub))
        self.heard.append(one)
        self.settle()
        return one

    @rule(pause=PAUSES)
    def the_worker_dies(self, pause: int) -> None:
        self.deaths += 1
        self.puppet.die()
        self.do(asyncio.sleep(0), pause)

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        self.settle()
        before = {job: self.state(job) for job in self.numbers if job not in self.forgotten}
        if kill:
            self.store._db.close()  # nothing more is written, as after kill -9
            self.store._handle.close()
            for task in list(self.hub.work._tasks):
                task.cancel()
        else:
            self.do(self.hub.work.close())
        self.settle()
        self.count_runs()
        self.open()
        for job, state in before.items():
            now = self.state(job)
            allowed = {"queued": {"queued", "running"}, "running": {"interrupted"}}.get(state, {state})
            assert now in allowed, (state, now)

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def count_runs(self) -> None:
        for job in self.puppet.started:
            self.runs[job] = self.runs.get(job, 0) + 1
        self.puppet.started = []

    def teardown(self) -> None:
        try:
            self.settle()
            self.check()
            self.finish_all()
            self.check()
            for job, state in {job: self.state(job) for job in self.numbers if job not in self.forgotten}.items():
                assert state in OVER
                end = self.come(job, 0)
                assert end.told[-1][1] == state
                again = self.come(job, end.told[-1][0])  # the end is told to whoever has seen it
                assert again.told == end.told[-1:]
                ahead = self.come(job, 2**40)  # and to whoever has seen more than there is
                assert ahead.told[-1][1] == state
            self.check()
        finally:
            self.do(self.hub.work.close())
            self.settle()
            for one in self.heard:
                assert one.task
                one.task.cancel()
            self.settle()
            self.loop.close()
            self.patch.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def finish_all(self) -> None:
        for _ in range(200):
            for future, _listen in list(self.puppet.running.values()):
                if not future.done():
                    future.set_result(dict(RESULT))
            self.settle()
            if not self.puppet.running and not self.hub.work.live:
                return
        raise AssertionError(f"these never end: {list(self.hub.work.live)}")

    def check(self) -> None:
        self.count_runs()
        for job in self.numbers:
            if job in self.forgotten:
                assert self.refusal(self.hub.find(OWNER, job)) == 404
                continue
            state = self.state(job)
            if job in self.ends:
                assert state == self.ends[job], (self.ends[job], state)
            if state in OVER:
                self.ends[job] = state
            if job in self.stopped:
                assert state in OVER, f"a job that was stopped is {state}"
            assert self.runs.get(job, 0) <= (2 if self.deaths else 1)
        assert self.refusal(self.hub.find(OWNER, "0" * 32)) == 404
        assert self.refusal(self.hub.find("somebody else", next(iter(self.numbers), "0" * 32))) == 404
        for one in self.heard:
            numbers = [number for number, _ in one.told]
            assert numbers == sorted(set(numbers))
            if one.goes_on and numbers:
                assert numbers[0] > one.after, "an event that a client would take for one that it has seen"
            for number, name in one.told:
                assert self.numbers[one.job].setdefault(number, name) == name
            ends = [name for _, name in one.told if name in OVER]
            assert ends == ([one.told[-1][1]] if one.told and one.told[-1][1] in OVER else [])
            if ends and one.job not in self.forgotten:
                assert ends[0] == self.state(one.job)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=50, stateful_step_count=30, deadline=None, database=None, derandomize=True)
