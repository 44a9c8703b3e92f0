"""The native API: jobs, what happens to them, and what the server is. The page uses nothing else.

POST   /api/jobs                 202, a new job        GET  /api/jobs                the history
GET    /api/jobs/{id}            how it stands         DELETE /api/jobs/{id}         stop it, or forget it
POST   /api/jobs/{id}/retry      once more             GET  /api/jobs/{id}/events    server-sent events
GET    /api/jobs/{id}/result     what came of it       GET  /api/jobs/{id}/files/... a picture, a sound
GET    /api/jobs/{id}/film       it moves, as a GIF    POST /api/recipe              what a picture says of itself
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from unidiffuser.server.files import TYPE
from unidiffuser.server.film import film
from unidiffuser.server.guard import COOKIE, Guard, session_of
from unidiffuser.server.hub import Hub
from unidiffuser.server.limits import TurnedAwayError, missing
from unidiffuser.server.schemas import MAX_N, ErrorAnswer, JobAnswer, JobBody, JobList, PictureBody, Status, Strict
from unidiffuser.server.store import Row
from unidiffuser.server.strict import StrictRoute

JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="The id of a job.")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
EventId = Annotated[int, Query(ge=0, le=2**53, description="The last event that was seen.")]
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "Not a request that can be read.", 401: "No token.", 403: "Not from here.", 404: "No such thing.",
        408: "Too slow.", 409: "At odds with what is there.", 413: "Too large.", 415: "Not JSON.",
        422: "It makes no sense, or never will fit.", 429: "The queue is full.", 503: "Not now.",
    }.items()
}  # fmt: skip


class SessionBody(Strict):
    """A token, once, for a cookie."""

    token: str = Field(min_length=1, max_length=512)


def routes(hub: Hub, guard: Guard, library: str) -> APIRouter:
    """The native API of a hub."""
    api = APIRouter(prefix="/api", route_class=StrictRoute, responses=REFUSALS)
    _add_status(api, hub, guard, library)
    _add_jobs(api, hub)
    _add_results(api, hub)
    return api


def _add_status(api: APIRouter, hub: Hub, guard: Guard, library: str) -> None:
    """What the server is, and who may come in."""

    @api.get("/status", response_model=Status)
    async def status() -> dict[str, Any]:
        """What this server is, what it can do, and how busy it is."""
        return {
            "version": library,
            "ready": hub.work.ready,
            "trouble": hub.work.trouble(),
            "models": hub.models,
            "queue": {"waiting": len(hub.work.queue), "running": hub.work.stations.running},
            "limits": {"job_cost": hub.limits.job_cost, "queue_jobs": hub.limits.queue_jobs},
        }

    @api.post("/session", status_code=204)
    async def sign_in(body: SessionBody) -> Response:
        """A cookie for the page, in place of the token."""
        if guard.tokens and guard.owner_of(body.token) is None:
            raise TurnedAwayError(401, "that is not a token of this server", "unauthorised")
        answer = Response(status_code=204)
        if guard.tokens:
            answer.set_cookie(COOKIE, session_of(body.token), httponly=True, samesite="strict", max_age=30 * 86_400)
        return answer

    @api.delete("/session", status_code=204)
    async def sign_out() -> Response:
        """Forget the cookie."""
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer


def _add_jobs(api: APIRouter, hub: Hub) -> None:
    """Jobs: made, looked at, stopped, made again."""

    @api.post("/jobs", status_code=202, response_model=JobAnswer)
    async def create(request: Request, response: Response, body: JobBody, key: Key = None) -> dict[str, Any]:
        """Queue a job. The same Idempotency-Key with the same body is the same job."""
        row = await hub.submit(owner_of(request), request.state.client, body.plain, key)
        response.headers["location"] = f"/api/jobs/{row.id}"
        return told(hub, row)

    @api.get("/jobs", response_model=JobList)
    async def history(
        request: Request,
        before: Annotated[float, Query(ge=0, le=1e12)] = 1e12,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> dict[str, Any]:
        """Jobs, newest first, without the files that were given; `before` is the creation time of the last one seen."""
        rows = await hub.history(owner_of(request), before, limit)
        return {"jobs": [listed(hub, row) for row in rows]}

    @api.get("/jobs/{name}", response_model=JobAnswer)
    async def read(request: Request, name: JobId) -> dict[str, Any]:
        """How a job stands."""
        return told(hub, await hub.find(owner_of(request), name))

    @api.delete("/jobs/{name}", response_model=JobAnswer)
    async def stop(
        request: Request,
        name: JobId,
        forget: Annotated[bool, Query(description="Also take a finished job out of the history.")] = False,
    ) -> dict[str, Any]:
        """Stop a job within one step; one that is over stays as it is."""
        row = await hub.cancel(owner_of(request), name)
        if forget:
            await hub.forget(row)
        return told(hub, row)

    @api.post("/jobs/{name}/retry", status_code=202, response_model=JobAnswer)
    async def retry(request: Request, response: Response, name: JobId) -> dict[str, Any]:
        """The same job once more, seed and all, as a new one."""
        row = await hub.again(await hub.find(owner_of(request), name))
        response.headers["location"] = f"/api/jobs/{row.id}"
        return told(hub, row)


def _add_results(api: APIRouter, hub: Hub) -> None:
    """What happens to a job and what comes of it, and what a picture says of how it was made."""
    drawing = asyncio.Semaphore(FILMS)

    @api.get(
        "/jobs/{name}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def events(
        request: Request,
        name: JobId,
        after: EventId = 0,
        last: Annotated[str | None, Header(alias="Last-Event-ID", max_length=32)] = None,
    ) -> StreamingResponse:
        """What happens to a job, from its beginning or after an event, until it is over."""
        row = await hub.find(owner_of(request), name)
        number = int(last) if last and last.isascii() and last.isdigit() else after
        return StreamingResponse(event_stream(hub, row, number), media_type="text/event-stream", headers=UNBUFFERED)

    @api.get("/jobs/{name}/result", response_model=dict[str, Any])
    async def result(request: Request, name: JobId) -> dict[str, Any]:
        """What came of a job; 409 unless it is done."""
        row = await hub.find(owner_of(request), name)
        if row.state != "done" or row.result is None:
            raise TurnedAwayError(409, row.error or f"this job is {row.state} and has no result", "no_result")
        return row.result

    @api.get(
        "/jobs/{name}/files/{file_name}",
        response_class=Response,
        responses={200: {"content": {kind: {} for kind in sorted(set(TYPE.values()))}}},
    )
    async def file(
        request: Request, name: JobId, file_name: Annotated[str, Path(pattern=r"^[0-9a-z._]{1,64}$")]
    ) -> Response:
        """A file of a job."""
        await hub.find(owner_of(request), name)
        place = await hub.file(name, file_name)
        if place is None:
            raise missing("file")
        headers = {"cache-control": "private, max-age=31536000, immutable", "accept-ranges": "none"}
        return Response(await hub.bytes_of(place), media_type=TYPE[place.suffix[1:]], headers=headers)

    @api.get(
        "/jobs/{name}/film",
        response_class=Response,
        responses={200: {"content": {"image/gif": {}}, "description": "A GIF."}},
    )
    async def moving(request: Request, name: JobId, sample: Annotated[int, Query(ge=0, lt=MAX_N)] = 0) -> Response:
        """A chain, an interpolation, or a sample settling out of noise, as a moving picture; 409 if there is none."""
        row = await hub.find(owner_of(request), name)
        async with drawing:
            data = await film(hub, row, sample)
        return Response(data, media_type="image/gif", headers={"cache-control": "no-store"})

    @api.post("/recipe", response_model=dict[str, Any])
    async def recipe(body: PictureBody) -> dict[str, Any]:
        """What a picture says of how it was made, as far as it can be understood."""
        return await hub.read_recipe(body.image)


FILMS = 2
"""Films that are drawn at the same time."""
UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def event_stream(hub: Hub, row: Row, number: int) -> AsyncIterator[str]:
    """Server-sent events; a colon line now and then keeps the connection alive."""
    yield "retry: 1000\n\n"
    async for event in hub.follow(row, number):
        if event is None:
            yield ": alive\n\n"
        else:
            data = json.dumps(event.data, allow_nan=False)
            yield f"id: {event.number}\nevent: {event.name}\ndata: {data}\n\n"


def owner_of(request: Request) -> str:
    """Whose request it is; the guard has seen to it."""
    owner: str = request.state.owner
    return owner


def told(hub: Hub, row: Row) -> dict[str, Any]:
    """A job as clients see it, with its place in the queue."""
    waits = row.state == "queued" and row.id in hub.work.queue
    return row.told | {"ahead": hub.work.queue.ahead(row.id) if waits else None}


def listed(hub: Hub, row: Row) -> dict[str, Any]:
    """A job among many: without the data of the files that it was given, of which a long history would have much."""
    job = told(hub, row)

    def light(value: Any) -> Any:
        return {"type": value["type"]} if isinstance(value, dict) else value

    parts = {part: {m: light(v) for m, v in row.job[part].items()} for part in ("given", "second", "masks")}
    return job | {"job": row.job | parts}
