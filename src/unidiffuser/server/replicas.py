"""Scale out: the same service as a Ray Serve application.

    front     the web process as one deployment: HTTP, admission, the store. It lies where the data folder is
    worker    the engine as a deployment of any number of replicas, wherever the cluster has room

A replica is a `Link` like any other (`link`): jobs go to it and events come back as plain values. Ray places, watches
and restarts replicas and balances between them; nothing of that is made at home.
"""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from unidiffuser.server.limits import Limits
from unidiffuser.server.link import BrokenError, FatalError, Listener, LostError, RefusedError, StoppedJobError
from unidiffuser.server.serve import check_tokens, cores, data_folder, host_names

NAME = "unidiffuser"
START = 300.0
"""Seconds that replicas have to load their models."""


class Replica:
    """The engine in a Ray actor."""

    def __init__(self, folders: list[str], lanes: int, library: str) -> None:
        from unidiffuser.server.engine import Engine, on_one_thread
        from unidiffuser.server.worker import RUNNERS, load

        on_one_thread()
        self._engine = Engine(load(folders, "cpu"), lanes=lanes, library=library)
        self._pool = ThreadPoolExecutor(RUNNERS)

    def describe(self) -> list[dict[str, Any]]:
        """What the models are."""
        return self._engine.describe()

    def check(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A complete job and its cost, or why not."""
        try:
            job, cost = self._engine.check(body)
        except ValueError as error:
            return {"refused": str(error)}
        return {"result": {"job": job, "cost": cost}}

    def read(self, image: str) -> dict[str, Any]:
        """What a picture says of how it was made, or why not."""
        try:
            return {"result": self._engine.read(image)}
        except ValueError as error:
            return {"refused": str(error)}

    async def run(self, job: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of a job and then its end. A caller that goes away stops it."""
        loop, told = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
        stopped = threading.Event()

        def tell(event: dict[str, Any] | None) -> None:
            loop.call_soon_threadsafe(told.put_nowait, event)

        work = loop.run_in_executor(self._pool, self._engine.run, job, tell, stopped.is_set)
        work.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (event := await told.get()) is not None:
                yield event
            yield self._end(work)
        finally:
            stopped.set()

    @staticmethod
    def _end(work: "asyncio.Future[dict[str, Any]]") -> dict[str, Any]:
        error = work.exception()
        if error is None:
            return {"result": work.result()}
        if isinstance(error, ValueError):
            return {"refused": str(error)}
        return {"broken": f"the job failed inside the model ({type(error).__name__})"}


class ReplicaLink:
    """The web process's end of the replicas."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._running: dict[str, Any] = {}
        self._stopped: set[str] = set()

    async def start(self) -> list[dict[str, Any]]:
        """Wait until a replica has loaded its models."""
        try:
            models: list[dict[str, Any]] = await asyncio.wait_for(self._handle.describe.remote(), START)
        except Exception as error:
            raise FatalError(f"the Ray replicas do not start: {type(error).__name__}") from error
        return models

    async def check(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Have a job completed and priced."""
        answer = await self._asked(self._handle.check.remote(dict(body)))
        return answer["job"], answer["cost"]

    async def read(self, image: str) -> dict[str, Any]:
        """Have a picture's recipe read."""
        result: dict[str, Any] = await self._asked(self._handle.read.remote(image))
        return result

    async def run(self, name: str, job: Mapping[str, Any], listen: Listener) -> dict[str, Any]:
        """Have a job carried out by some replica."""
        stream = self._running[name] = self._handle.options(stream=True).run.remote(dict(job))
        try:
            async for event in stream:
                if "event" in event:
                    listen(event)
                else:
                    return dict(self._settled(event))
        except (RefusedError, BrokenError):
            raise
        except BaseException as error:
            if name in self._stopped:
                raise StoppedJobError from error
            if isinstance(error, asyncio.CancelledError):
                raise
            raise LostError from error
        finally:
            del self._running[name]
            self._stopped.discard(name)
        raise LostError

    def stop(self, name: str) -> None:
        """Ask a job to stop: its replica sees that nobody listens any more."""
        if name in self._running:
            self._stopped.add(name)
            self._running[name].cancel()

    async def lost(self) -> None:
        """Never: Ray restarts replicas by itself."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing: the deployment outlives us."""

    async def _asked(self, response: Any) -> Any:
        try:
            answer = await response
        except Exception as error:
            raise LostError from error
        return self._settled(answer)

    @staticmethod
    def _settled(answer: Mapping[str, Any]) -> Any:
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        if "broken" in answer:
            raise BrokenError(answer["broken"])
        return answer["result"]


def serve_on_ray(
    models: Sequence[str],
    *,
    library: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    tokens: Sequence[str] = (),
    data: Path | None = None,
    replicas: int = 2,
) -> str:
    """Deploy on the Ray cluster of RAY_ADDRESS, or on a local one, and stay until a signal comes.

    Returns:
        "interrupted" or "terminated", by which signal it was.

    Raises:
        ValueError: as `serve`, or no replicas.
        ModelError: a model that is missing or broken.
    """
    check_tokens(host, tokens)
    if replicas < 1:
        raise ValueError(f"--replicas must be 1 or more, not {replicas}")
    from unidiffuser.checkpoints import box, native

    folders = [str(box.find(model).resolve()) for model in models]
    for folder in folders:
        native.summary(folder)  # raises what is wrong with it, before a cluster is started
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray
    from ray import serve

    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(_application(folders, library, host, tokens, data, replicas), name=NAME, route_prefix="/")
        return wait_for_signal()
    finally:
        serve.shutdown()
        ray.shutdown()


def wait_for_signal() -> str:
    """Wait for SIGINT or SIGTERM, and say which came; Ray's own way to end by SIGTERM is to abort."""
    came: list[int] = []
    stop = threading.Event()

    def end(number: int, frame: object) -> None:
        came.append(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    while not stop.wait(1.0):
        pass
    return "terminated" if signal.SIGTERM in came else "interrupted"


def _application(
    folders: list[str], library: str, host: str, tokens: Sequence[str], data: Path | None, replicas: int
) -> Any:
    """The two deployments, bound together."""
    from ray import serve

    limits = replace(Limits(), running=Limits().running * replicas)
    lanes = max(1, cores() // replicas)
    # OpenMP reads its setting when torch is first imported, which is in the replica.
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    worker = serve.deployment(name="worker", num_replicas=replicas, max_ongoing_requests=256, ray_actor_options=options)

    def build_app() -> Any:
        from unidiffuser.server.app import build
        from unidiffuser.server.hub import Hub
        from unidiffuser.server.metrics import Metrics
        from unidiffuser.server.store import Store
        from unidiffuser.server.work import Work

        link = ReplicaLink(serve.get_deployment_handle("worker", NAME))
        hub = Hub(Work(Store(data or data_folder()), [link], limits, Metrics()))
        return build(hub, library=library, hosts=host_names(host), tokens=tokens)

    class Front:
        def __init__(self, workers: Any) -> None:
            self.workers = workers

    front = serve.deployment(name="front", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.5})
    return front(serve.ingress(build_app)(Front)).bind(worker(Replica).bind(folders, lanes, library))
