"""The worker process: it owns the models of one device and carries out jobs, many at a time.

Messages are JSON objects, one a `send_bytes`, so that nothing that arrives can be more than data:

    to the worker      {"do": "check", "id", "job"}    {"do": "run", "id", "job"}    {"do": "stop", "id"}
                       {"do": "read", "id", "image"}
    from the worker    {"hello": models} or {"fatal": sentence}, once;   {"forward": [rows, calls]}
                       {"of": id, "event": ...} on the way, and one of these at the end:
                       {"of": id, "result"}   {"of": id, "refused": sentence}   {"of": id, "stopped": true}
                       {"of": id, "broken": sentence}

A worker that loses its web process ends. It writes no file and opens no connection.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from unidiffuser.checkpoints import ModelError, box, native
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.server.batching import StoppedError
from unidiffuser.server.engine import Engine, on_one_thread

CHECKERS, RUNNERS = 2, 64
CPU_ROWS, DEVICE_ROWS = 16, 128
"""At most so many rows a forward: what a core has in hand at a time, and what keeps a GPU busy."""
LOG = logging.getLogger(__name__)


def work(connection: Connection, folders: list[str], device: str, lanes: int, library: str) -> None:
    """Load the models, then serve jobs until the connection ends."""
    worker = Worker(connection)
    try:
        on_one_thread()
        lanes, rows = (lanes, CPU_ROWS) if device == "cpu" else (1, DEVICE_ROWS)
        engine = Engine(load(folders, device), library=library, lanes=lanes, rows=rows, seen=worker.forward)
    except (ModelError, ValueError, OSError) as error:
        worker.say({"fatal": str(error)})
        return
    worker.say({"hello": engine.describe()})
    worker.serve(engine)


def load(folders: list[str], device: str) -> dict[str, UniDiffuser]:
    """The models of folders (or of names in the box) by their own names.

    Raises:
        ModelError: one of them is no whole model.
        ValueError: two have one name, or there is no such device.
    """
    models: dict[str, UniDiffuser] = {}
    for folder in folders:
        model = UniDiffuser.from_parts(native.read(box.find(folder), own=True)).to(device)
        for part in filter(None, (model.part, model.critic_part)):
            part.wake()
        if model.name in models:
            raise ValueError(
                f"two models are called {model.name!r}, and requests could not tell them apart; "
                f"leave one out or change the name in {folder}/config.json and save the model again"
            )
        models[model.name] = model
    return models


class Worker:
    """The worker's end of the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._stopped: dict[str, threading.Event] = {}

    def say(self, message: Mapping[str, Any]) -> None:
        """Send one message; without a web process there is nothing left to do."""
        data = json.dumps(message, allow_nan=False).encode()
        try:
            with self._lock:
                self._connection.send_bytes(data)
        except OSError:
            os._exit(1)

    def forward(self, rows: int, calls: int) -> None:
        """Tell of one forward."""
        self.say({"forward": [rows, calls]})

    def serve(self, engine: Engine) -> None:
        """Take messages until the connection ends, then end at once: nobody waits for what still runs."""
        checkers = ThreadPoolExecutor(CHECKERS, "check")
        runners = ThreadPoolExecutor(RUNNERS, "run")
        while True:
            try:
                message = json.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)
            if message["do"] == "check":
                checkers.submit(self._answer, message["id"], partial(_checked, engine, message["job"]))
            elif message["do"] == "read":
                checkers.submit(self._answer, message["id"], partial(engine.read, message["image"]))
            elif message["do"] == "run":
                self._stopped[message["id"]] = threading.Event()
                runners.submit(self._run, engine, message["id"], message["job"])
            elif event := self._stopped.get(message["id"]):
                event.set()

    def _answer(self, name: str, question: Callable[[], Mapping[str, Any]]) -> None:
        try:
            self.say({"of": name, "result": question()})
        except ValueError as error:
            self.say({"of": name, "refused": str(error)})
        except StoppedError:
            raise
        except Exception as error:
            self._broken(name, error)

    def _told(self, name: str, event: Mapping[str, Any]) -> None:
        self.say({"of": name, **event})

    def _run(self, engine: Engine, name: str, job: Mapping[str, Any]) -> None:
        stopped = self._stopped[name]
        emit = partial(self._told, name)
        try:
            self._answer(name, partial(engine.run, job, emit, stopped.is_set))
        except StoppedError:
            self.say({"of": name, "stopped": True})
        finally:
            del self._stopped[name]

    def _broken(self, name: str, error: Exception) -> None:
        """Our own fault, or the machine's. What it was goes to the log; the client gets no inner detail."""
        LOG.error("job %s failed", name, exc_info=error)
        short = "out of memory" if "memory" in str(error).lower() else type(error).__name__
        self.say({"of": name, "broken": f"the job failed inside the model ({short}); the server's log says more"})
        if "CUDA error" in str(error):
            os._exit(1)  # the device's context is lost with it; a new process gets a new one


def _checked(engine: Engine, job: Mapping[str, Any]) -> dict[str, Any]:
    plain, cost = engine.check(job)
    return {"job": plain, "cost": cost}
