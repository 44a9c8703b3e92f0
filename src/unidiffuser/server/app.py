"""The application: the native API, the OpenAI one, health and metrics, and the page, behind one guard."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from unidiffuser.server import keeping, native, openai, openai_schemas, schemas
from unidiffuser.server.guard import App, Guard, error_body
from unidiffuser.server.hub import Hub
from unidiffuser.server.limits import TurnedAwayError
from unidiffuser.server.store import DiskRefusesError
from unidiffuser.server.strict import complaint

LOG = logging.getLogger(__name__)
STUDIO = Path(__file__).parent / "studio"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
SUMMARY = "One diffusion model for every distribution of a set of modalities, over HTTP."


def build(hub: Hub, *, library: str, hosts: Sequence[str], tokens: Sequence[str] = ()) -> App:
    """The guarded application of a hub, which it opens and closes.

    Args:
        hub: who does the work.
        library: our version.
        hosts: names that it answers to.
        tokens: who may come in; none: everybody.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await hub.work.open()
        yield
        await hub.work.close()

    app = FastAPI(
        title="unidiffuser",
        version=library,
        summary=SUMMARY,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    guard = Guard(app, hosts=hosts, tokens=tokens, limits=hub.limits, metrics=hub.metrics)
    app.include_router(native.routes(hub, guard, library))
    app.include_router(keeping.routes(hub))
    app.include_router(openai.routes(hub))
    _add_health(app, hub, library)
    _add_page(app)
    _add_errors(app)
    return guard


def _add_health(app: FastAPI, hub: Hub, library: str) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the web process lives."""
        return {"status": "ok", "version": library}

    @app.get("/ready", responses={503: {"description": "Not now."}})
    async def ready() -> JSONResponse:
        """Whether jobs are carried out."""
        state = {"ready": hub.work.ready, "trouble": hub.work.trouble()}
        return JSONResponse(
            state, 200 if hub.work.ready else 503, headers={} if hub.work.ready else {"retry-after": "2"}
        )

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(hub.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    """The page: the files of studio/, read once; no name from a client becomes a path."""
    pages = {
        place.name: (place.read_bytes(), TYPES[place.suffix]) for place in STUDIO.iterdir() if place.suffix in TYPES
    }

    def answer(name: str) -> Response:
        if name not in pages:
            raise TurnedAwayError(404, "there is no such page", "not_found")
        data, kind = pages[name]
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return answer("index.html")

    @app.get("/studio/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return answer(name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return answer("icon.svg")


def _add_errors(app: FastAPI) -> None:
    """One form for everything that goes wrong, and nothing of our insides in it."""
    bodies = [*vars(schemas).values(), *keeping.BODIES, *vars(openai_schemas).values()]
    fields = {name for body in bodies for name in getattr(body, "model_fields", ())}

    def answer(refusal: TurnedAwayError, headers: dict[str, str] | None = None) -> JSONResponse:
        retry = {"retry-after": str(refusal.retry)} if refusal.retry is not None else {}
        return JSONResponse(error_body(refusal), refusal.status, headers={**(headers or {}), **retry})

    async def turned_away(request: Request, error: Any) -> JSONResponse:
        return answer(error)

    async def invalid(request: Request, error: Any) -> JSONResponse:
        return answer(complaint(error, fields))

    async def http(request: Request, error: Any) -> JSONResponse:
        text = {404: "there is nothing at this address", 405: "this address does not take that method"}
        message = text.get(error.status_code, str(error.detail)[:200])
        return answer(TurnedAwayError(error.status_code, message, "http"), dict(error.headers or {}))

    async def refused(request: Request, error: Any) -> JSONResponse:
        return answer(TurnedAwayError(503, f"this cannot be written down here now ({error.strerror})", "disk", retry=2))

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        LOG.error("a request failed", exc_info=error)
        return answer(TurnedAwayError(500, "the server failed at this; its log says more", "internal"))

    app.add_exception_handler(TurnedAwayError, turned_away)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(DiskRefusesError, refused)
    app.add_exception_handler(Exception, unexpected)
