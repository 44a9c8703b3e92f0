"""A worker without a model, a process or torch: it does what it is told."""

import asyncio
from collections.abc import Mapping
from typing import Any

from unidiffuser.server.link import Listener, LostError, StoppedJobError


class Puppet:
    """A `Link` whose jobs run until the test ends them."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[asyncio.Future[dict[str, Any]], Listener]] = {}
        self.started: list[str] = []
        self._died = asyncio.Event()

    async def start(self) -> list[dict[str, Any]]:
        self._died = asyncio.Event()
        return [{"name": "m"}]

    async def check(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        await asyncio.sleep(0)
        return {**body, "verb": "sample", "model": "m"}, 1

    async def read(self, image: str) -> dict[str, Any]:
        raise NotImplementedError

    async def run(self, name: str, job: Mapping[str, Any], listen: Listener) -> dict[str, Any]:
        self.started.append(name)
        self.running[name] = (asyncio.get_running_loop().create_future(), listen)
        try:
            return await self.running[name][0]
        finally:
            del self.running[name]

    def stop(self, name: str) -> None:
        if name in self.running and not self.running[name][0].done():
            self.running[name][0].set_exception(StoppedJobError())

    def die(self) -> None:
        for future, _ in self.running.values():
            if not future.done():
                future.set_exception(LostError())
        self._died.set()

    async def lost(self) -> None:
        await self._died.wait()

    async def close(self) -> None:
        pass
