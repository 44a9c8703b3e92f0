"""The workers: each is started, watched, and started again when it dies; and which of them takes the next job.

It knows no job but by name.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unidiffuser.server.link import FatalError, Link, LostError
from unidiffuser.server.metrics import Metrics

LOG = logging.getLogger(__name__)
RESTART_PAUSE = 1.0


@dataclass(eq=False)
class Station:
    """A worker and what runs on it."""

    link: Link
    ready: bool = False
    running: set[str] = field(default_factory=set)


class Stations:
    """All workers."""

    def __init__(self, links: Sequence[Link], metrics: Metrics, wake: Callable[[], None]) -> None:
        """wake: called when a worker becomes ready."""
        self.all = [Station(link) for link in links]
        self.models: list[dict[str, Any]] = []
        self.fatal = ""
        self.closing = False
        self._metrics, self._wake = metrics, wake

    @property
    def ready(self) -> bool:
        """Whether one of them carries out jobs."""
        return bool(self.models) and any(station.ready for station in self.all)

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(len(station.running) for station in self.all)

    def any_link(self) -> Link | None:
        """A worker that answers questions beside its jobs, if one is ready."""
        return next((station.link for station in self.all if station.ready), None)

    def free(self, most: int) -> Station | None:
        """The ready worker with the fewest jobs, if it runs fewer than `most`."""
        free = [station for station in self.all if station.ready and len(station.running) < most]
        return min(free, key=lambda station: len(station.running), default=None)

    async def keep_alive(self, station: Station) -> None:
        """Start a worker, and again whenever it dies, until all are closed."""
        first = True
        while not self.closing:
            try:
                models = await station.link.start()
            except FatalError as error:
                self.fatal = str(error)
                LOG.error("the worker cannot start: %s", error)
                return
            except LostError:
                if first and not self.closing:
                    self.fatal = "the worker process ended while it loaded the models; the log above says why"
                    return
                await asyncio.sleep(RESTART_PAUSE)
                continue
            self.models = self.models or models
            station.ready = True
            if not first:
                self._metrics.restarts.inc()
            first = False
            self._wake()
            await station.link.lost()
            station.ready = False
            LOG.warning("a worker was lost with %d jobs; it is starting again", len(station.running))

    async def close(self) -> None:
        """End them all."""
        await asyncio.gather(*(station.link.close() for station in self.all))
