"""The API that programs already speak: images and chat completions as OpenAI's clients send them.

    POST /v1/images/generations     pictures of a sentence, streamed with partial pictures if asked
    POST /v1/images/edits           a picture made anew under a mask, or varied by a sentence
    POST /v1/images/variations      pictures near a picture
    POST /v1/chat/completions       a sentence about a picture (a data URL in the last user message)
    GET  /v1/models

What is accepted but means nothing here is listed in the answer's "ignored". Our own settings come in one object,
"unidiffuser": {"seed", "steps", "guidance", "looseness", ...} (`openai_schemas.Extras`); the seed that was used is in
the answer.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from unidiffuser.server.forms import read_form
from unidiffuser.server.hub import Hub
from unidiffuser.server.images import as_format, sse
from unidiffuser.server.limits import missing
from unidiffuser.server.native import REFUSALS, UNBUFFERED, owner_of
from unidiffuser.server.openai_chat import add_chat
from unidiffuser.server.openai_jobs import kinds_of, size_asked, with_extras, written
from unidiffuser.server.openai_schemas import EditForm, ImageAnswer, ImageBody, VariationForm, form_schema, ignored
from unidiffuser.server.schemas import JobBody
from unidiffuser.server.store import Row
from unidiffuser.server.strict import StrictRoute
from unidiffuser.server.waiting import carried_out, leave

VARIATION = 0.6
"""The timestep that a variation starts from: enough of the picture is left to know it again."""


def routes(hub: Hub) -> APIRouter:
    """The OpenAI-compatible API of a hub."""
    api = APIRouter(prefix="/v1", route_class=StrictRoute, responses=REFUSALS)

    @api.get("/models")
    async def models() -> dict[str, Any]:
        """The models that are loaded."""
        return {"object": "list", "data": [_model(entry) for entry in hub.models]}

    @api.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        for entry in hub.models:
            if entry["name"] == name:
                return _model(entry)
        raise missing("model")

    @api.post("/images/generations", response_model=ImageAnswer, response_model_exclude_none=True)
    async def generations(request: Request, body: ImageBody) -> Any:
        """Pictures of a sentence."""
        picture, text = kinds_of(hub, body.model)
        job = {"names": [picture["name"]], "given": {text["name"]: body.prompt}}
        return await _images(hub, request, body, picture, job)

    @api.post(
        "/images/edits",
        response_model=ImageAnswer,
        response_model_exclude_none=True,
        openapi_extra=form_schema(EditForm),
    )
    async def edits(request: Request) -> Any:
        """A picture made anew under a mask (its transparent part, or white); without one, varied by the sentence."""
        form, files = await read_form(request, EditForm, ("image", "mask"))
        picture, text = kinds_of(hub, form.model)
        name = picture["name"]
        job: dict[str, Any] = {"names": [name], "given": {name: files["image"], text["name"]: form.prompt}}
        if "mask" in files:
            job["masks"] = {name: files["mask"]}
        else:
            job["looseness"] = {name: VARIATION}
        return await _images(hub, request, form, picture, job)

    @api.post(
        "/images/variations",
        response_model=ImageAnswer,
        response_model_exclude_none=True,
        openapi_extra=form_schema(VariationForm),
    )
    async def variations(request: Request) -> Any:
        """Pictures near a picture."""
        form, files = await read_form(request, VariationForm, ("image",))
        picture, _ = kinds_of(hub, form.model)
        name = picture["name"]
        job = {"names": [name], "given": {name: files["image"]}, "looseness": {name: VARIATION}}
        return await _images(hub, request, form, picture, job)

    add_chat(api, hub)
    return api


async def _images(hub: Hub, request: Request, body: Any, picture: dict[str, Any], job: dict[str, Any]) -> Any:
    """Submit a job for pictures and answer with them."""
    size = size_asked(body.size, picture)
    job = with_extras(job | {"n": body.n or 1} | ({"size": size} if size != picture["size"] else {}), body)
    format_ = getattr(body, "output_format", None) or "png"
    if getattr(body, "stream", None):
        count = getattr(body, "partial_images", None) or 0
        row = await hub.submit(owner_of(request), request.state.client, JobBody(**job, partials=count).plain)
        stream = _image_stream(hub, row, picture["name"], format_)
        return StreamingResponse(stream, media_type="text/event-stream", headers=UNBUFFERED)
    row = await carried_out(hub, request, job)
    data = []
    for sample in (row.result or {})["samples"]:
        value = sample["values"][picture["name"]]
        entry: dict[str, Any] = {"seed": sample["seed"]}
        if body.response_format == "url":
            entry["url"] = f"{request.url.scheme}://{request.headers['host']}{value['url']}"
        else:
            entry["b64_json"] = await _encoded(
                hub, row, value["url"], format_, getattr(body, "output_compression", None)
            )
        data.append(entry)
    return {
        "created": int(row.created),
        "data": data,
        "size": written(size),
        "output_format": "png" if body.response_format == "url" else format_,
        "ignored": ignored(body),
    }


async def _image_stream(hub: Hub, row: Row, name: str, format_: str) -> AsyncIterator[str]:
    """Partial pictures, then each finished one."""
    common = {"created_at": int(row.created), "output_format": format_}
    index = 0
    try:
        async for told in hub.follow(row):
            if told and told.name == "preview":
                value = told.data["samples"][0][name]
                image = await asyncio.to_thread(as_format, base64.b64decode(value["data"]), format_, None)
                body = {"b64_json": base64.b64encode(image).decode(), "partial_image_index": index, **common}
                yield sse("image_generation.partial_image", body)
                index += 1
    except asyncio.CancelledError:  # the client left
        await leave(hub, row)
        raise
    done = await hub.wait(row.id)
    if done.state != "done" or done.result is None:
        yield sse("error", {"error": {"message": done.error or f"the job was {done.state}", "code": done.state}})
        return
    for sample in done.result["samples"]:
        encoded = await _encoded(hub, done, sample["values"][name]["url"], format_, None)
        yield sse("image_generation.completed", {"b64_json": encoded, "seed": sample["seed"], **common})


async def _encoded(hub: Hub, row: Row, url: str, format_: str, quality: int | None) -> str:
    """A stored picture as base64, in the format asked for."""
    place = await hub.file(row.id, url.rpartition("/")[2])
    if place is None:
        raise missing("file")
    data = await hub.bytes_of(place)
    return base64.b64encode(await asyncio.to_thread(as_format, data, format_, quality)).decode()


def _model(entry: dict[str, Any]) -> dict[str, Any]:
    return {"id": entry["name"], "object": "model", "created": 0, "owned_by": "unidiffuser"}
