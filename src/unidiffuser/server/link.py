"""The web process's end of a worker: start it, ask it, notice when it dies, start it again.

`Link` is all that the hub knows of a worker, so that a worker may as well live elsewhere (`replicas`).
"""

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol

LOG = logging.getLogger(__name__)

Event = dict[str, Any]
Listener = Callable[[Event], None]


class RefusedError(ValueError):
    """The model refuses what is asked; the sentence is for the client."""


class BrokenError(RuntimeError):
    """A job failed through no fault of the client; the sentence is for the client."""


class LostError(RuntimeError):
    """The worker died while it was asked."""


class StoppedJobError(RuntimeError):
    """The job was stopped, as it was told to."""


class FatalError(RuntimeError):
    """The worker cannot start; the sentence says why."""


class Link(Protocol):
    """One worker."""

    async def start(self) -> list[dict[str, Any]]:
        """Start it and return what its models are; FatalError if it cannot, LostError if it dies over it."""

    async def check(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The complete job and its cost; RefusedError, BrokenError, LostError."""

    async def read(self, image: str) -> dict[str, Any]:
        """What a picture says of how it was made; RefusedError, LostError."""

    async def run(self, name: str, job: Mapping[str, Any], listen: Listener) -> dict[str, Any]:
        """The result of a job; RefusedError, BrokenError, StoppedJobError, LostError."""

    def stop(self, name: str) -> None:
        """Ask a job to stop."""

    async def lost(self) -> None:
        """Return when a started worker has died."""

    async def close(self) -> None:
        """End the worker."""


class WorkerProcess:
    """A worker in a process of its own on this machine."""

    def __init__(
        self,
        folders: list[str],
        *,
        device: str = "cpu",
        lanes: int = 1,
        library: str = "",
        forward: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Args:
            folders: of the models, or names in the box.
            device: where they run.
            lanes: forwards side by side on a CPU.
            library: the version that recipes name.
            forward: told (rows, calls) of every forward.
        """
        self._arguments = (folders, device, lanes, library)
        self._forward = forward
        self._waiting: dict[str, tuple[asyncio.Future[Any], Listener | None]] = {}
        self._count = 0
        self._lost = asyncio.Event()
        self._connection: Connection | None = None
        self.process: multiprocessing.process.BaseProcess | None = None

    async def start(self) -> list[dict[str, Any]]:
        """Start the process and wait until its models are loaded."""
        loop = asyncio.get_running_loop()
        ours, theirs = multiprocessing.Pipe()
        self._lost = asyncio.Event()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(
            target=_work, args=(theirs, *self._arguments), name="unidiffuser-worker", daemon=True
        )
        await asyncio.to_thread(self.process.start)
        theirs.close()
        self._connection = ours
        hello: asyncio.Future[Any] = loop.create_future()
        self._waiting = {"hello": (hello, None)}
        threading.Thread(target=self._receive, args=(ours, loop), name="worker-reader", daemon=True).start()
        models: list[dict[str, Any]] = await hello
        return models

    async def check(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Have a job completed and priced."""
        answer = await self._ask(self._next(), {"do": "check", "job": body}, None)
        return answer["job"], answer["cost"]

    async def read(self, image: str) -> dict[str, Any]:
        """Have a picture's recipe read."""
        result: dict[str, Any] = await self._ask(self._next(), {"do": "read", "image": image}, None)
        return result

    async def run(self, name: str, job: Mapping[str, Any], listen: Listener) -> dict[str, Any]:
        """Have a job carried out."""
        result: dict[str, Any] = await self._ask(name, {"do": "run", "job": job}, listen)
        return result

    def stop(self, name: str) -> None:
        """Ask a job to stop."""
        if name in self._waiting:
            self._send({"do": "stop", "id": name})

    async def lost(self) -> None:
        """Return when the process has ended."""
        await self._lost.wait()

    async def close(self) -> None:
        """End the process."""
        if self.process is None:
            return
        if self._connection:
            self._connection.close()
        await asyncio.to_thread(self.process.join, 2)
        if self.process.is_alive():
            self.process.kill()
            await asyncio.to_thread(self.process.join)

    def _next(self) -> str:
        self._count += 1
        return f"question-{self._count}"

    async def _ask(self, name: str, message: dict[str, Any], listen: Listener | None) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[name] = (future, listen)
        try:
            self._send({**message, "id": name})
            return await future
        finally:
            self._waiting.pop(name, None)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            if self._connection is None:
                raise LostError
            self._connection.send_bytes(json.dumps(message, allow_nan=False).encode())
        except (OSError, ValueError) as error:
            raise LostError from error

    def _receive(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """The reader's life, in a thread of its own."""
        while True:
            try:
                message = json.loads(connection.recv_bytes())
            except (EOFError, OSError, TypeError):
                message = {"lost": True}
            try:
                loop.call_soon_threadsafe(self._received, message)
            except RuntimeError:  # the loop is closed: so is everything
                return
            if "lost" in message:
                return

    def _received(self, message: Event) -> None:
        if "forward" in message:
            if self._forward:
                self._forward(*message["forward"])
        elif "hello" in message:
            self._settle("hello", result=message["hello"])
        elif "fatal" in message:
            self._settle("hello", error=FatalError(message["fatal"]))
        elif "lost" in message:
            self._lost.set()
            for name in list(self._waiting):
                self._settle(name, error=LostError())
        elif "event" in message:
            listen = self._waiting.get(message["of"], (None, None))[1]
            if listen:
                listen({key: value for key, value in message.items() if key != "of"})
        elif "result" in message:
            self._settle(message["of"], result=message["result"])
        elif "refused" in message:
            self._settle(message["of"], error=RefusedError(message["refused"]))
        elif "broken" in message:
            self._settle(message["of"], error=BrokenError(message["broken"]))
        else:
            self._settle(message["of"], error=StoppedJobError())

    def _settle(self, name: str, result: Any = None, error: Exception | None = None) -> None:
        future = self._waiting.get(name, (None, None))[0]
        if future is None or future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)


def _work(connection: Connection, folders: list[str], device: str, lanes: int, library: str) -> None:
    """What the new process begins with. Torch is imported here and not before; OpenMP reads its setting only once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the web process decides
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s worker %(message)s")
    from unidiffuser.server.worker import work

    work(connection, folders, device, lanes, library)
