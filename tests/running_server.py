"""A real server in a process of its own, on a free port, for the tests that speak HTTP; and how they speak to it."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
from PIL import Image

ROOT = Path(__file__).parents[1]
CANARY = {"names": ["image"], "given": {"text": "a large red circle"}, "seed": 7}
PATIENCE = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process of `unidiffuser serve`."""

    def __init__(self, model: Path, data: Path, *flags: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data, self.log_path = data, data.with_suffix(".log")
        command = [sys.executable, "-m", "unidiffuser", "serve", "--port", str(self.port)]
        command += ["--model", str(model), "--data-dir", str(data), *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def log(self) -> str:
        return self.log_path.read_text()

    def ready(self, patience: float = PATIENCE) -> "Server":
        """Wait until jobs are carried out."""
        self.until(lambda: self.get("/ready").status_code == 200, patience)
        return self

    def until(self, holds: Any, patience: float = PATIENCE) -> None:
        """Wait until something holds; a server that has ended is a failure."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                if holds():
                    return
            except httpx.TransportError:
                if self.process.poll() is not None:
                    break
            time.sleep(0.05)
        raise AssertionError(f"it did not come to pass; the log: {self.log()[-2000:]}")

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def submit(self, job: dict[str, Any], **headers: str) -> str:
        answer = self.post("/api/jobs", job, **headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def over(self, name: str) -> dict[str, Any]:
        """A job when it is over."""
        found: dict[str, Any] = {}

        def ended() -> bool:
            found.update(self.get(f"/api/jobs/{name}").json())
            return found["state"] not in ("queued", "running")

        self.until(ended)
        return found

    def done(self, job: dict[str, Any]) -> dict[str, Any]:
        """The result of a job."""
        ended = self.over(self.submit(job))
        assert ended["state"] == "done", ended
        return dict(ended["result"])

    def picture(self, value: dict[str, str]) -> Image.Image:
        return Image.open(io.BytesIO(self.get(value["url"]).content))

    def canary(self) -> str:
        """The pixels of the fixed good request."""
        return str(self.done(CANARY)["samples"][0]["pixels"])

    def workers(self) -> list[int]:
        """The process ids of the workers: the children that are not Python's resource tracker."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")  # a thread of the web process started it
        children = [pid for task in tasks for pid in task.read_text().split()]
        found = []
        for pid in children:
            with suppress(OSError):  # it has just ended
                found += [int(pid)] * (b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return found

    def worker(self) -> int:
        """The only one."""
        [found] = self.workers()
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(
    model: Path, data: Path, *flags: str, port: int | None = None, patience: float = PATIENCE
) -> Iterator[Server]:
    server = Server(model, data, *flags, port=port)
    try:
        yield server.ready(patience)
    finally:
        server.close()


def data_url(picture: Image.Image, format_: str = "PNG", **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    return bytes_url(buffer.getvalue())


def bytes_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def events(text: str) -> list[tuple[int, str, Any]]:
    """(number, name, data) of server-sent events."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "data" in lines:
            found.append((int(lines.get("id", 0)), lines.get("event", ""), json.loads(lines["data"])))
    return found
