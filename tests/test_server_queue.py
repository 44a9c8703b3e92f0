"""The queue is fair, the store survives, and events are told again."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from unidiffuser.server.events import KEPT, EventLog
from unidiffuser.server.fair import FairQueue
from unidiffuser.server.store import Row, Store, new_id


def row(**values: Any) -> Row:
    fields = {
        "id": new_id(),
        "owner": "a",
        "state": "queued",
        "verb": "sample",
        "model": "m",
        "job": {"n": 1},
        "cost": 1,
    }
    return Row(**{**fields, "created": time.time(), **values})


def test_a_client_with_one_job_does_not_wait_for_one_with_a_thousand() -> None:
    queue = FairQueue()
    for k in range(1000):
        queue.push(f"many-{k}", "many", 10)
    queue.pop()
    queue.push("single", "single", 10)
    assert queue.ahead("single") <= 1
    order = [queue.pop() for _ in range(3)]
    assert "single" in order and order.index("single") <= 1


def test_clients_share_by_cost_and_keep_their_own_order() -> None:
    queue = FairQueue()
    for k in range(10):
        queue.push(f"dear-{k}", "dear", 40)
        queue.push(f"cheap-{k}", "cheap", 10)
    order = [queue.pop() or "" for _ in range(10)]
    assert 6 <= sum(name.startswith("cheap") for name in order) <= 9
    assert [name for name in order if name.startswith("cheap")] == sorted(n for n in order if n.startswith("cheap"))


def test_what_is_removed_is_gone() -> None:
    queue = FairQueue()
    queue.push("a", "x", 5)
    assert queue.remove("a") and not queue.remove("a") and queue.pop() is None and queue.cost == 0


def test_a_store_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    waits, runs, done = row(), row(state="running"), row(state="done", result={"x": [1, "ü"]})
    for each in (waits, runs, done):
        store.add(each)
    store.write_files(done.id, [("0.image.png", b"png")])
    (store.files / new_id()).mkdir()
    (store.files / f".{new_id()}").mkdir()
    store.close()
    again = Store(tmp_path)
    assert [r.id for r in again.recover()] == [waits.id]
    interrupted, found = again.get(runs.id), again.get(done.id)
    assert interrupted and interrupted.state == "interrupted" and "try it again" in str(interrupted.error)
    assert found and found.result == {"x": [1, "ü"]}
    assert [place.name for place in again.files.iterdir()] == [done.id]
    again.close()


def test_no_name_of_a_client_becomes_a_path(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = row(state="done")
    store.add(one)
    store.write_files(one.id, [("0.image.png", b"png")])
    (tmp_path / "secret.png").write_bytes(b"secret")
    (store.files / one.id / "1.image.png").symlink_to(tmp_path / "secret.png")
    assert store.path(one.id, "0.image.png")
    for name in ("../secret.png", "1.image.png", "..", "", "/etc/passwd", "0.image.png\0", "0.image.png/", "a" * 5000):
        assert store.path(one.id, name) is None
    assert store.path("../" + one.id, "0.image.png") is None
    store.close()


def test_one_server_a_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="another server"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_newer_store_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        db.execute("pragma user_version = 99")
    with pytest.raises(ValueError, match="newer"):
        Store(tmp_path)


def test_the_history_is_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for k in range(8):
        store.add(row(state="done", created=float(k)))
    store.add(row(state="queued", created=0.0))
    store.prune(3)
    assert [r.created for r in store.history("a", 1e12, 50) if r.state == "done"] == [7.0, 6.0, 5.0]
    assert len(store.recover()) == 1
    store.close()


WRITER = """
import sys, time
from pathlib import Path
from unidiffuser.server.store import Row, Store, new_id
store = Store(Path(sys.argv[1]))
print("open", flush=True)
while True:
    name = new_id()
    fields = {"owner": "a", "state": "queued", "verb": "sample", "model": "m", "job": {"n": 1}, "cost": 1}
    store.add(Row(id=name, created=time.time(), **fields))
    store.write_files(name, [("0.image.png", b"x" * 4000), ("1.image.png", b"x" * 4000)])
    store.set(name, state="done", result={"files": 2})
"""


def test_kill_9_leaves_no_half_job(tmp_path: Path) -> None:
    for k in range(5):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "src"}) as writer:
            assert writer.stdout and writer.stdout.readline() == b"open\n"
            time.sleep(0.03 + 0.02 * k)
            writer.send_signal(signal.SIGKILL)
        store = Store(tmp_path)
        store.recover()
        jobs = store.history("a", 1e12, 100_000)
        assert jobs
        for one in jobs:
            whole = (store.files / one.id).is_dir() and len(list((store.files / one.id).iterdir())) == 2
            assert (one.state == "done" and whole and one.result == {"files": 2}) or one.state == "queued"
        store.close()


def test_events_are_told_again_from_any_number() -> None:
    async def listen() -> None:
        log = EventLog()
        for k in range(5):
            log.tell("step", {"done": k})
        log.tell("done", {}, last=True)
        heard = [told.number async for told in log.follow(3) if told]
        assert heard == [4, 5, 6]

    asyncio.run(listen())


def test_a_hundred_listeners_hear_the_end_and_one_that_never_reads_costs_nothing() -> None:
    async def listen() -> None:
        log = EventLog()
        idle = log.follow()
        first = asyncio.ensure_future(anext(idle))

        async def last() -> str:
            names = [told.name async for told in log.follow() if told]
            return names[-1]

        listeners = [asyncio.ensure_future(last()) for _ in range(100)]
        await asyncio.sleep(0)
        for k in range(3 * KEPT):
            log.tell("step", {"done": k})
            if k % 100 == 0:
                await asyncio.sleep(0)
        log.tell("done", {}, last=True)
        assert set(await asyncio.gather(*listeners)) == {"done"}
        assert len(log.after(0)) == KEPT
        await first

    asyncio.run(listen())


@pytest.mark.parametrize("letters, least, most", [(100, 40, 40), (2**20, 7, 8), (30 * 2**20, 1, 1)])
def test_pictures_on_the_way_are_kept_within_bounds(letters: int, least: int, most: int) -> None:
    picture = {"type": "image/png", "data": "A" * letters}
    log = EventLog()
    for k in range(60):
        log.tell("step", {"done": k})
        log.tell("preview", {"step": k, "samples": [{"image": picture, "text": "a red circle"}]})
    log.tell("done", {}, last=True)
    shown = [told.data["step"] for told in log.after(0) if told.name == "preview"]
    assert least <= len(shown) <= most and shown[-1] == 59
    assert sum(told.name == "step" for told in log.after(0)) == 60 and log.after(0)[-1].last


def test_a_client_that_leaves_while_its_job_waits_frees_its_place(tmp_path: Path) -> None:
    from puppet import Puppet

    from unidiffuser.server.hub import Hub
    from unidiffuser.server.limits import Limits, TurnedAwayError
    from unidiffuser.server.metrics import Metrics
    from unidiffuser.server.waiting import carried_out
    from unidiffuser.server.work import Work

    class Gone:
        """A request whose client has left."""

        state = type("State", (), {"owner": "a", "client": "a"})

        async def is_disconnected(self) -> bool:
            return True

    async def leave() -> None:
        puppet: Any = Puppet()
        limits = Limits(running=1, grace=0.05, drain=0.0)
        hub = Hub(Work(Store(tmp_path), [puppet], limits, Metrics()))
        await hub.work.open()
        while not hub.work.ready:
            await asyncio.sleep(0.01)
        running = await hub.submit("a", "a", {"seed": 1})
        while not puppet.running:
            await asyncio.sleep(0.01)
        gone: Any = Gone()
        with pytest.raises(TurnedAwayError) as caught:
            await carried_out(hub, gone, {"names": ["image"]})
        assert caught.value.status == 409 and len(hub.work.queue) == 0
        assert list(puppet.running) == [running.id] and puppet.started == [running.id]
        await hub.work.close()

    asyncio.run(leave())
