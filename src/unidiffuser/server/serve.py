"""Serving: the application on a socket, from the first to the last signal.

It listens before the models are loaded, on loopback unless told otherwise; anything else needs a token. SIGTERM drains:
nothing new is taken on (503), what runs may end within a limit, what waits is kept in the store.
"""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from unidiffuser.server.app import build
from unidiffuser.server.guard import LOOPBACK
from unidiffuser.server.hub import Hub
from unidiffuser.server.limits import Limits
from unidiffuser.server.link import WorkerProcess
from unidiffuser.server.metrics import Metrics
from unidiffuser.server.store import Store
from unidiffuser.server.work import Work

LOG = logging.getLogger(__name__)
HEADER_TIME = 10.0
"""Seconds a client may take over the head of a request."""
MIN_TOKEN = 8


class CannotServeError(RuntimeError):
    """The models cannot be loaded; the sentence says why."""


def serve(
    models: Sequence[str],
    *,
    library: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    tokens: Sequence[str] = (),
    data: Path | None = None,
    devices: Sequence[str] = ("cpu",),
    limits: Limits | None = None,
    opened: Callable[[], None] = lambda: None,
) -> str:
    """Serve models until a signal comes; `library` is our version, `opened` is called when the models are loaded.

    Returns:
        "interrupted" or "terminated", by which signal it was.

    Raises:
        ValueError: a host beyond loopback without a token, a token too short, a taken port or data folder.
        CannotServeError: the models cannot be loaded.
    """
    check_tokens(host, tokens)
    limits, metrics = limits or Limits(), Metrics()
    listening = listen(host, port)
    store = Store(data or data_folder())
    links = [
        WorkerProcess(list(models), device=device, lanes=cores(), library=library, forward=metrics.forward)
        for device in devices
    ]
    work = Work(store, links, limits, metrics)
    app = build(Hub(work), library=library, hosts=host_names(host), tokens=tokens)
    config = uvicorn.Config(
        app, http=Protocol, ws="none", log_config=None, access_log=False, server_header=False,
        timeout_keep_alive=30, timeout_graceful_shutdown=int(limits.drain) + 5, h11_max_incomplete_event_size=32 * 1024,
        proxy_headers=False, limit_concurrency=1000,
    )  # fmt: skip
    LOG.info("listening on %s port %d; the models are being loaded", host, listening.getsockname()[1])
    server = Server(config, work, opened)
    server.run(sockets=[listening])
    if work.stations.fatal:
        raise CannotServeError(work.stations.fatal)
    return "terminated" if server.terminated else "interrupted"


def check_tokens(host: str, tokens: Sequence[str]) -> None:
    """ValueError unless it is safe to listen there with these tokens."""
    if any(len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() for token in tokens):
        raise ValueError(f"a token must have at least {MIN_TOKEN} plain characters")
    if host not in LOOPBACK and not tokens:
        raise ValueError(
            f"listening on {host} lets other machines in, which needs a token: give --token T "
            "(or UNIDIFFUSER_TOKEN in the environment), or leave --host out"
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ValueError if the address is taken or impossible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(512)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot listen on {host} port {port}: {reason}; give another --port or --host") from error
    listening.set_inheritable(False)
    return listening


def host_names(host: str) -> list[str]:
    """The names by which this server may be asked for."""
    names = [*LOOPBACK, host.lower()]
    try:
        if ipaddress.ip_address(host).is_unspecified:
            names += [socket.gethostname().lower(), *own_addresses()]
    except ValueError:
        pass
    return names


def own_addresses() -> list[str]:
    """The addresses that this machine's own name stands for."""
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)})
    except OSError:
        return []


def data_folder() -> Path:
    """Where history and results lie unless told otherwise."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "unidiffuser"


def cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Server(uvicorn.Server):
    """Uvicorn, whose first signal starts to drain, and whose beginning and end are ours to tell."""

    def __init__(self, config: uvicorn.Config, work: Work, opened: Callable[[], None]) -> None:
        super().__init__(config)
        self.work, self.terminated, self._opened, self._told = work, False, opened, False

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: tell once that all is ready, and end if it never will be."""
        if self.work.ready and not self._told:
            self._told = True
            self._opened()
        return await super().on_tick(counter) or bool(self.work.stations.fatal)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal came: the first drains, the second ends."""
        self.terminated = self.terminated or sig == signal.SIGTERM
        self.work.drain()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # the command line says how it ended


class Protocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for the head of a request."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        """Start the clock when a head is awaited, and stop it when it is there."""
        if self._awaits_head and self._head is None:
            self._head = asyncio.get_running_loop().call_later(HEADER_TIME, self._too_slow)
        elif not self._awaits_head and self._head:
            self._head.cancel()
            self._head = None

    @property
    def _awaits_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        if self._head:
            self._head.cancel()
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        self._head = None
        if self._awaits_head and not self.transport.is_closing():
            self.transport.close()


logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
