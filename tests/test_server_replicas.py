"""The service on a local Ray cluster of two replicas: the same answers, spread over both, and one may die."""

import os
import signal
import threading
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("ray", reason="the extra [ray] is not installed")

from running_server import CANARY, running
from tiny_model import saved_model, tiny_model

from unidiffuser.recipe import fingerprint


def replicas() -> list[int]:
    """The process ids of the replicas of the worker deployment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(b"ray::ServeReplica:unidiffuser:worker"):
                found.append(int(place.parent.name))
        except OSError:  # it has just ended
            continue
    return found


def test_two_replicas_answer_as_the_library_does(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "tiny")
    [expected] = tiny_model().sample("image", text=CANARY["given"]["text"], seed=7)  # type: ignore[index]
    with running(model, tmp_path / "data", "--ray", "--replicas", "2", patience=300) as server:
        assert server.canary() == fingerprint(expected["image"])
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(server.canary())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {fingerprint(expected["image"])} and len(found) == 8
        server.until(lambda: len(replicas()) == 2)
        os.kill(replicas()[0], signal.SIGKILL)
        server.until(lambda: server.done(CANARY)["samples"][0]["pixels"] == fingerprint(expected["image"]))
        server.until(lambda: len(replicas()) == 2)
        assert server.stop(signal.SIGTERM) == 143
