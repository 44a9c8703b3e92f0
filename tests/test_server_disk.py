"""A disk that refuses at any moment: no job is lost or hangs, and its end is written when there is room again."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

import httpx2 as httpx
from puppet import Puppet

from unidiffuser.server import work as work_file
from unidiffuser.server.app import build
from unidiffuser.server.hub import Hub
from unidiffuser.server.limits import Limits
from unidiffuser.server.metrics import Metrics
from unidiffuser.server.store import DiskRefusesError, Row, Store, new_id
from unidiffuser.server.work import Work

BODY = {"n": 1}


class Disk(Store):
    """A store whose disk refuses to change a job into some states while `full` names them."""

    full: tuple[str, ...] = ()

    def set(self, name: str, **values: Any) -> None:
        if values["state"] in self.full:
            raise DiskRefusesError(None, "database or disk is full")
        super().set(name, **values)

    def probe(self) -> None:
        if self.full:
            raise DiskRefusesError(None, "database or disk is full")


def served(folder: Path, act: Callable[[Hub, Disk, Puppet], Awaitable[None]]) -> None:
    async def run() -> None:
        disk, puppet = Disk(folder), Puppet()
        hub = Hub(Work(disk, [puppet], Limits(drain=0.0), Metrics()))
        await hub.work.open()
        await until(lambda: hub.work.ready)
        await asyncio.wait_for(act(hub, disk, puppet), 30)
        await hub.work.close()

    asyncio.run(run())


async def until(holds: Callable[[], Any]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_file, "PROBE_EVERY", 0.25)


def test_sqlite_says_that_the_disk_is_full_and_the_store_says_so_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store._db.execute(f"pragma max_page_count = {store._db.execute('pragma page_count').fetchone()[0]}")
    with pytest.raises(DiskRefusesError, match="full") as refused:
        store.add(Row(id=new_id(), owner="a", state="queued", verb="sample", model="m", job={"text": "x" * 100_000},
                      cost=1, created=1.0))  # fmt: skip
    assert refused.value.strerror == "database or disk is full"
    store.close()


@pytest.mark.parametrize("refused", [("running",), ("running", "failed")])
def test_a_job_that_cannot_be_begun_fails_and_the_queue_waits(tmp_path: Path, refused: tuple[str, ...]) -> None:
    async def act(hub: Hub, disk: Disk, puppet: Puppet) -> None:
        disk.full = refused
        first = await hub.submit("me", "me", BODY)
        over = await hub.wait(first.id)
        assert over.state == "failed" and "its disk refuses" in str(over.error)
        assert not hub.work.ready and "cannot be written" in hub.work.trouble() and puppet.started == []
        assert (await hub.find("me", first.id)).state == "failed"
        disk.full = ()
        await until(lambda: hub.work.ready)
        found = disk.get(first.id)
        assert found and found.state == "failed" and not hub.work.live
        second = await hub.submit("me", "me", BODY)
        await until(lambda: second.id in puppet.running)
        puppet.running[second.id][0].set_result({"samples": []})
        assert (await hub.wait(second.id)).state == "done"

    served(tmp_path, act)


def test_a_job_that_is_done_stays_so_and_is_written_when_there_is_room(tmp_path: Path) -> None:
    async def act(hub: Hub, disk: Disk, puppet: Puppet) -> None:
        job = await hub.submit("me", "me", BODY)
        await until(lambda: job.id in puppet.running)
        disk.full = ("done", "failed")
        puppet.running[job.id][0].set_result({"samples": []})
        assert (await hub.wait(job.id)).state == "done"
        assert (await hub.cancel("me", job.id)).state == "done"
        written = disk.get(job.id)
        assert written and written.state == "running"
        disk.full = ()
        await until(lambda: hub.work.ready)
        written = disk.get(job.id)
        assert written and written.state == "done" and written.result == {"samples": []}

    served(tmp_path, act)


def test_a_job_that_cannot_be_remembered_is_not_taken_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(hub: Hub, disk: Disk, puppet: Puppet) -> None:
        def refuse(row: Any) -> None:
            raise DiskRefusesError(None, "database or disk is full")

        disk.full = ("running",)
        monkeypatch.setattr(disk, "add", refuse)
        transport = httpx.ASGITransport(build(hub, library="0", hosts=["localhost"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.post("/api/jobs", json={"names": ["image"]})
            assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
            assert "cannot be written down here now (database or disk is full)" in answer.json()["error"]["message"]
            assert (await client.get("/ready")).status_code == 503
        assert not hub.work.live

    served(tmp_path, act)
