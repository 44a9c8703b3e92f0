"""Faults: processes that are killed, disks that are full, signals. Nothing is lost and nothing runs twice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from running_server import CANARY, Server, running
from tiny_model import saved_model

LONG = {"names": ["image"], "steps": 1000, "n": 8, "seed": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def fragile(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose worker the tests kill."""
    with running(model, tmp_path_factory.mktemp("fragile") / "data") as server:
        yield server


def started(server: Server, job: dict[str, object]) -> str:
    name = server.submit(dict(job))
    server.until(lambda: server.get(f"/api/jobs/{name}").json()["state"] == "running")
    return name


def test_a_worker_that_dies_fails_its_job_alone(fragile: Server) -> None:
    reference = fragile.canary()
    name = started(fragile, LONG)
    os.kill(fragile.worker(), signal.SIGKILL)
    fragile.until(lambda: fragile.get(f"/api/jobs/{name}").json()["state"] == "failed")
    assert "worker was lost" in fragile.over(name)["error"]
    fragile.ready()
    assert fragile.canary() == reference
    assert "unidiffuser_worker_restarts_total 1.0" in fragile.get("/metrics").text


def test_a_worker_that_dies_while_it_loads_is_started_again(fragile: Server) -> None:
    for _ in range(2):
        fragile.until(lambda: fragile.workers() != [])
        os.kill(fragile.worker(), signal.SIGKILL)
        fragile.until(lambda: fragile.get("/ready").status_code == 503)
    fragile.ready()
    fragile.canary()


def test_of_several_jobs_the_innocent_are_carried_out(fragile: Server) -> None:
    reference = fragile.canary()
    names = [started(fragile, {**CANARY, "steps": 1000, "n": 2}) for _ in range(2)]
    waiting = fragile.submit(dict(CANARY))
    os.kill(fragile.worker(), signal.SIGKILL)
    assert [fragile.over(name)["state"] for name in names] == ["done", "done"]
    ended = fragile.over(waiting)
    assert ended["state"] == "done" and ended["result"]["samples"][0]["pixels"] == reference


def test_a_web_process_that_dies_leaves_everything_in_the_store(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(model, data) as server:
        reference = server.canary()
        done = server.submit(dict(CANARY))
        server.over(done)
        first = started(server, LONG)
        # more than run side by side, so that some wait
        waiting = [server.submit({"names": ["image"], "steps": 300, "seed": k}) for k in range(40)]
        worker = server.worker()
        server.process.kill()
        server.process.wait()
        server.until(lambda: not Path(f"/proc/{worker}").exists() or _is_zombie(worker))
    with running(model, data) as server:
        history = {job["id"]: job["state"] for job in server.get("/api/jobs?limit=200").json()["jobs"]}
        assert {done, first, *waiting} <= set(history)
        assert history[done] == "done" and history[first] == "interrupted"
        assert server.get(f"/api/jobs/{done}/files/0.image.png").status_code == 200
        ends = {name: server.over(name)["state"] for name in waiting}
        assert set(ends.values()) <= {"done", "interrupted"} and "done" in ends.values()
        again = server.http.post(f"/api/jobs/{first}/retry")
        assert again.status_code == 202 and again.json()["job"]["seed"] == 3
        server.http.delete(f"/api/jobs/{again.json()['id']}")
        assert server.canary() == reference


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_sigterm_drains_and_keeps_the_queue(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(model, data) as server:
        server.submit({"names": ["image"], "steps": 200})
        waiting = [server.submit({"names": ["image"], "steps": 200, "n": 4}) for _ in range(40)]
        assert server.stop(signal.SIGTERM) == 143
    with running(model, data) as server:
        assert {server.over(name)["state"] for name in waiting} <= {"done", "interrupted"}


def test_ctrl_c_ends_with_130(model: Path, tmp_path: Path) -> None:
    with running(model, tmp_path / "data") as server:
        assert server.stop(signal.SIGINT) == 130


def test_results_that_cannot_be_written_fail_the_job_and_pause_the_queue(model: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    data = tmp_path / "data"
    data.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(data)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with running(model, data) as server:
            reference = server.canary()
            filler = data / "filler"
            name = started(server, {**CANARY, "steps": 400})
            with open(filler, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 4096)
                except OSError:
                    pass
            server.until(lambda: server.get("/ready").status_code == 503)
            assert "cannot be written" in server.get("/ready").json()["trouble"]
            filler.unlink()
            server.ready()
            assert server.over(name)["state"] == "failed"
            assert server.canary() == reference
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def test_a_model_replaced_on_the_disk_changes_nothing_that_is_loaded(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "tiny")
    with running(folder, tmp_path / "data") as server:
        reference, loaded = server.canary(), server.get("/api/status").json()["models"][0]["sha256"]
        (folder / "model.safetensors").write_bytes(b"junk")
        assert server.canary() == reference
        assert server.done(CANARY)["model_sha256"] == loaded


@pytest.mark.parametrize("fault", ["missing", "unknown", "empty", "twice"])
def test_a_model_that_cannot_be_served_is_one_sentence(model: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "broken"
    if fault == "empty":
        folder.mkdir()
    names = {"twice": [str(model), str(model)], "unknown": ["nobody"]}.get(fault, [str(folder)])
    flags = [flag for name in names for flag in ("--model", name)]
    command = [sys.executable, "-m", "unidiffuser", "serve", "--port", "0", "--data-dir", str(tmp_path / "d"), *flags]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1 and last.startswith("unidiffuser: ") and "Traceback" not in ended.stderr
    assert "the studio is at" not in ended.stderr
    sentences = {
        "missing": "no model folder",
        "unknown": "there is no model 'nobody'",
        "empty": "not a whole model",
        "twice": "two models are called",
    }
    assert sentences[fault] in last


def test_no_connection_leaves_this_machine(model: Path, tmp_path: Path) -> None:
    """The whole service in a network namespace with nothing but loopback."""
    check = "ip link set lo up 2>/dev/null || ifconfig lo up"
    if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "sh", "-c", check], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from running_server import running\n"
        "with running(Path(sys.argv[2]), Path(sys.argv[3])) as server: print(json.dumps(server.canary()))"
    )
    command = ["unshare", "-n", "sh", "-c", f'({check}); exec "$0" "$@"', sys.executable, "-c", script]
    arguments = [str(Path(__file__).parent), str(model), str(tmp_path / "data")]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert len(json.loads(ended.stdout)) == 64
