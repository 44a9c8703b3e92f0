"""Our server beside one that takes one request at a time and beside a plain diffusers pipeline: one machine, one run.

    python benchmarks/serving.py [--model MODEL] [--clients 1 8 32] [--seconds 10] [--steps 12] [--jobs 10000]

Three servers, each alone on the machine and in a process of its own, get the same requests: a picture of a sentence, no
guidance, the same number of steps. Each of C clients sends its next request when its last one is answered.

    ours          unidiffuser serve, as a person would start it
    one at a time the same model behind FastAPI and a lock, all cores in one sampling (`serving_peers.py`)
    diffusers     a DiTPipeline of as many blocks of the same width behind FastAPI and a lock; random weights, and only
                  the picture's tokens, where ours has the sentence's as well. Left out if diffusers is not installed

Then, of ours alone: seconds until it listens and until it is ready, previews a second, the page's first paint (if a
Chromium and playwright are there), and the memory of both processes over so many mixed jobs.

On a machine that others use as well, look at the computed seconds: what the server's processes took a sample.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from socket import socket
from typing import Any

PEERS = Path(__file__).with_name("serving_peers.py")
TEXT = "a large red circle above a small blue square"
PATIENCE = 300.0
TOLD = 10
"""How often the memory is told."""


@dataclass
class Server:
    """A server process and how to speak to it."""

    command: list[str]
    port: int
    process: subprocess.Popen[bytes] = field(init=False)
    listens: float = 0.0
    ready: float = 0.0

    def start(self) -> None:
        """Start it and wait until it carries out requests; RuntimeError with its last words if it ends."""
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (held as long as the server)
        started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        while time.monotonic() - started < PATIENCE:
            status = self.status()
            if status and not self.listens:
                self.listens = time.monotonic() - started
            if status == 200:
                self.ready = time.monotonic() - started
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip().splitlines()
        raise RuntimeError(words[-1] if words else "the server did not start")

    def status(self) -> int:
        """What /ready answers; 0 if nobody does."""
        try:
            return self.ask("GET", "/ready")[0]
        except OSError:
            return 0

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request on a connection of its own: status and JSON."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            return answer(line, method, path, body)
        finally:
            line.close()

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def answer(line: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request on an open connection: status and JSON."""
    data = None if body is None else json.dumps(body).encode()
    line.request(method, path, data, {"content-type": "application/json"} if data else {})
    got = line.getresponse()
    text = got.read()
    return got.status, json.loads(text) if text.startswith((b"{", b"[")) else text


@contextmanager
def running(command: Callable[[int], list[str]]) -> Iterator[Server]:
    """A server on a free port."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = Server(command(port), port)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def servers(model: str, folder: str) -> dict[str, Callable[[int], list[str]]]:
    """Every server by name: port -> command."""
    ours = [sys.executable, "-m", "unidiffuser", "serve", "--model", model, "--data-dir", folder, "--quiet"]
    peer = [sys.executable, str(PEERS), "--model", model]
    return {
        "ours": lambda port: [*ours, "--port", str(port)],
        "one at a time": lambda port: [*peer, "--kind", "plain", "--port", str(port)],
        "diffusers": lambda port: [*peer, "--kind", "diffusers", "--port", str(port)],
    }


def load(server: Server, clients: int, seconds: float, steps: int) -> dict[str, float]:
    """Samples a second, latencies, and computed seconds a sample, of so many clients."""
    seeds, took, lock = count(), list[float](), threading.Lock()
    begin = threading.Barrier(clients + 1)
    end = [0.0]

    def client() -> None:
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        begin.wait()
        while time.monotonic() < end[0]:
            with lock:
                seed = next(seeds)
            extras = {"seed": seed, "steps": steps, "guidance": 0.0}
            started = time.monotonic()
            status, said = answer(line, "POST", "/v1/images/generations", {"prompt": TEXT, "unidiffuser": extras})
            assert status == 200, said
            finished = time.monotonic()
            if finished <= end[0]:
                with lock:
                    took.append(finished - started)
        line.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    before, end[0] = computed(server), time.monotonic() + seconds
    begin.wait()
    for thread in threads:
        thread.join()
    spent, answered = computed(server) - before, next(seeds)
    took.sort()
    p99 = took[min(len(took) - 1, int(0.99 * len(took)))] if took else float("nan")
    return {
        "rate": len(took) / seconds,
        "p50": statistics.median(took) if took else float("nan"),
        "p99": p99,
        "computed": spent / answered,
    }


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = [int(c) for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


def computed(server: Server) -> float:
    """Processor seconds that the server's processes have had so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in family(server.process.pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def follow(server: Server, job: dict[str, Any]) -> Iterator[tuple[float, str]]:
    """Submit a job and give (seconds, name) of its events."""
    status, made = server.ask("POST", "/api/jobs", job)
    assert status == 202, made
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    line.request("GET", f"/api/jobs/{made['id']}/events")
    got = line.getresponse()
    while text := got.readline():
        if text.startswith(b"event: "):
            yield time.monotonic(), text[7:].strip().decode()
    line.close()


def previews(server: Server) -> float:
    """Previews a second of one sampling that runs for some seconds."""
    job = {"names": ["image", "text"], "steps": 300, "previews": True}
    shown = [at for at, name in follow(server, job) if name == "preview"]
    return (len(shown) - 1) / (shown[-1] - shown[0]) if len(shown) > 1 else 0.0


def paint(server: Server) -> float | None:
    """Seconds to the first paint of the page, the middle of five visits; None without a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    script = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    found = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(5):
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.port}")
            page.wait_for_selector("body[data-ready=true]")
            found.append(page.evaluate(script) / 1000)
            page.close()
        browser.close()
    return statistics.median(found)


def memory(server: Server) -> dict[str, float]:
    """MiB that the web process and its worker hold."""
    pid = server.process.pid
    worker = [c for c in family(pid)[1:] if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    held = {}
    for name, process in (("web", pid), ("worker", worker[0])):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        held[name] = next(int(text.split()[1]) / 1024 for text in lines if text.startswith("VmRSS"))
    return held


MIX: list[dict[str, Any]] = [
    {"names": ["image"], "given": {"text": TEXT}, "steps": 2, "previews": True},
    {"names": ["text"], "steps": 2},
    {"names": ["image", "text"], "steps": 3, "n": 2, "guidance": 2.0},
    {"verb": "chain", "names": ["text", "image", "text"], "given": {"text": TEXT}, "steps": 1},
    {"names": ["image"], "steps": 1000, "n": 8},
    {"names": ["nobody"]},
]
"""Jobs of every kind; the fifth is cancelled, the last is refused."""


def soak(server: Server, jobs: int) -> list[dict[str, float]]:
    """The memory after each tenth of so many mixed jobs."""
    numbers, lock, told = count(), threading.Lock(), [memory(server)]

    def client() -> None:
        while True:
            with lock:
                number = next(numbers)
                if number >= jobs:
                    return
                if number and number % max(1, jobs // TOLD) == 0:
                    told.append(memory(server))
            kind = MIX[number % len(MIX)]
            status, made = server.ask("POST", "/api/jobs", {**kind, "seed": number})
            while status == 429:
                time.sleep(0.5)
                status, made = server.ask("POST", "/api/jobs", {**kind, "seed": number})
            assert status == (422 if kind["names"] == ["nobody"] else 202), made
            if kind.get("steps") == 1000:
                server.ask("DELETE", f"/api/jobs/{made['id']}")
            while status == 202 and server.ask("GET", f"/api/jobs/{made['id']}")[1]["state"] in ("queued", "running"):
                time.sleep(0.02)

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [*told, memory(server)]


def line(name: str, clients: int, row: dict[str, float]) -> str:
    """One measurement as a line of the table."""
    latency = f"p50 {row['p50']:6.3f} s  p99 {row['p99']:6.3f} s"
    computed = f"computed {row['computed']:.4f} s a sample"
    return f"{name:14} {clients:3} clients  {row['rate']:7.2f} samples/s  {latency}  {computed}"


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="scenes", help="a model in the box, or a folder (default: scenes)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: 10)")
    parser.add_argument("--steps", type=int, default=12, help="of each sample (default: 12)")
    parser.add_argument("--jobs", type=int, default=10_000, help="for the memory; 0: leave it out (default: 10000)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in servers(args.model, folder).items():
            if name == "diffusers" and find_spec("diffusers") is None:
                print("diffusers: not installed, left out")
                continue
            try:
                with running(command) as server:
                    load(server, 1, 1.0, args.steps)  # the first forward of a process is slow
                    rows = {c: load(server, c, args.seconds, args.steps) for c in args.clients}
                    found["load"][name] = rows
                    for clients, row in rows.items():
                        print(line(name, clients, row), flush=True)
                    if name == "ours":
                        found |= alone(server, args.jobs)
            except RuntimeError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
    for name in ("one at a time", "diffusers"):
        for clients, row in found["load"].get(name, {}).items():
            ratio = found["load"]["ours"][clients]["rate"] / row["rate"] if row["rate"] else float("inf")
            print(f"ours against {name}, {clients} clients: {ratio:.2f} x")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


def alone(server: Server, jobs: int) -> dict[str, Any]:
    """What is measured of ours only."""
    figures: dict[str, Any] = {"listens": server.listens, "ready": server.ready, "previews": previews(server)}
    print(
        f"listens after {server.listens:.2f} s, ready after {server.ready:.2f} s; {figures['previews']:.1f} previews/s"
    )
    if (first := paint(server)) is not None:
        figures["first_paint"] = first
        print(f"first paint after {first:.3f} s")
    if jobs:
        figures["memory"] = told = soak(server, jobs)
        for name in ("web", "worker"):
            print(f"memory of the {name} process over {jobs} jobs, MiB: {', '.join(f'{m[name]:.0f}' for m in told)}")
    return figures


if __name__ == "__main__":
    sys.exit(main())
