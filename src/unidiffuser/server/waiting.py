"""Jobs whose client waits for them in one request, as OpenAI's clients do: when it leaves they are stopped."""

import asyncio
from typing import Any

from fastapi import Request

from unidiffuser.server.hub import Hub
from unidiffuser.server.limits import TurnedAwayError
from unidiffuser.server.native import owner_of
from unidiffuser.server.schemas import JobBody
from unidiffuser.server.store import Row


async def carried_out(hub: Hub, request: Request, job: dict[str, Any]) -> Row:
    """A job that is waited for; when its client leaves it is stopped, after a grace."""
    row = await hub.submit(owner_of(request), request.state.client, JobBody(**job).plain)
    waiting = asyncio.ensure_future(hub.wait(row.id))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await asyncio.wait({waiting}, timeout=hub.limits.grace)
        if not waiting.done():
            await leave(hub, row)
        done = await waiting
    finally:
        leaving.cancel()
    if done.state == "done":
        return done
    if done.state == "expired":
        raise TurnedAwayError(503, done.error or "the deadline passed", "expired", retry=5)
    if done.state == "cancelled":
        raise TurnedAwayError(409, "the job was stopped", "cancelled")
    raise TurnedAwayError(503, done.error or "the job failed", done.state, retry=2)


async def _left(request: Request) -> None:
    """Return when the client has gone."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


async def leave(hub: Hub, row: Row) -> None:
    """The client of a job has gone: stop it."""
    await hub.cancel(row.owner, row.id)
