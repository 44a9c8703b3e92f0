"""The API that programs already speak: images and chat completions as OpenAI's clients send them.

    POST /v1/images/generations     pictures of a sentence, streamed with partial pictures if asked
    POST /v1/images/edits           a picture made anew under a mask, or varied by a sentence
    POST /v1/images/variations      pictures near a picture
    POST /v1/chat/completions       a sentence about a picture (a data URL in the last user message)
    GET  /v1/models

What is accepted but means nothing here is listed in the answer's "ignored". Our own settings come in one object,
"unidiffuser": {"seed", "steps", "solver", "guidance", "looseness"}; the seed that was used is in the answer.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from unidiffuser.server.hub import Hub
from unidiffuser.server.images import as_format, sse
from unidiffuser.server.limits import TurnedAwayError, missing
from unidiffuser.server.native import REFUSALS, UNBUFFERED, owner_of
from unidiffuser.server.openai_schemas import (
    ChatBody,
    EditForm,
    ImageAnswer,
    ImageBody,
    VariationForm,
    caption_asked,
    form_schema,
    ignored,
)
from unidiffuser.server.schemas import JobBody
from unidiffuser.server.store import Row
from unidiffuser.server.strict import StrictRoute

VARIATION = 0.6
"""The timestep that a variation starts from: enough of the picture is left to know it again."""
LIMITS = {"max_files": 2, "max_fields": 24, "max_part_size": 64 * 1024}
MAX_FILE = 24 * 2**20
CHUNK = 2**20


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
        picture, text = _kinds(hub, body.model)
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
        form, files = await _form(request, EditForm, ("image", "mask"))
        picture, text = _kinds(hub, form.model)
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
        form, files = await _form(request, VariationForm, ("image",))
        picture, _ = _kinds(hub, form.model)
        name = picture["name"]
        job = {"names": [name], "given": {name: files["image"]}, "looseness": {name: VARIATION}}
        return await _images(hub, request, form, picture, job)

    @api.post("/chat/completions")
    async def chat(request: Request, body: ChatBody) -> Any:
        """A sentence about the picture in the last user message."""
        picture, text = _kinds(hub, body.model)
        image, skipped = caption_asked(body)
        job = _with_extras({"names": [text["name"]], "given": {picture["name"]: image}, "n": body.n or 1}, body)
        job["seed"] = body.seed if body.seed is not None else job.get("seed")
        row = await _carried_out(hub, request, job)
        answer = _completion(row, text["name"], [*ignored(body), *skipped])
        if body.stream:
            return StreamingResponse(_chunks(answer), media_type="text/event-stream", headers=UNBUFFERED)
        return answer

    return api


async def _images(hub: Hub, request: Request, body: Any, picture: dict[str, Any], job: dict[str, Any]) -> Any:
    """Submit a job for pictures and answer with them."""
    _check_size(body.size, picture)
    n = body.n or 1
    job = _with_extras(job | {"n": n, "model": body.model}, body)
    format_ = getattr(body, "output_format", None) or "png"
    if getattr(body, "stream", None):
        count = getattr(body, "partial_images", None) or 0
        row = await hub.submit(owner_of(request), request.state.client, _plain(job | {"partials": count}))
        stream = _image_stream(hub, row, picture["name"], format_)
        return StreamingResponse(stream, media_type="text/event-stream", headers=UNBUFFERED)
    row = await _carried_out(hub, request, job)
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
        "size": f"{picture['size']}x{picture['size']}",
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
        await _leave(hub, row)
        raise
    done = await hub.wait(row.id)
    if done.state != "done" or done.result is None:
        yield sse("error", {"error": {"message": done.error or f"the job was {done.state}", "code": done.state}})
        return
    for sample in done.result["samples"]:
        encoded = await _encoded(hub, done, sample["values"][name]["url"], format_, None)
        yield sse("image_generation.completed", {"b64_json": encoded, "seed": sample["seed"], **common})


async def _carried_out(hub: Hub, request: Request, job: dict[str, Any]) -> Row:
    """A job that is waited for; when its client leaves it is stopped, after a grace."""
    row = await hub.submit(owner_of(request), request.state.client, _plain(job))
    waiting = asyncio.ensure_future(hub.wait(row.id))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await asyncio.wait({waiting}, timeout=hub.limits.grace)
        if not waiting.done():
            await _leave(hub, row)
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


async def _leave(hub: Hub, row: Row) -> None:
    await hub.cancel(row.owner, row.id)


async def _encoded(hub: Hub, row: Row, url: str, format_: str, quality: int | None) -> str:
    """A stored picture as base64, in the format asked for."""
    place = await hub.file(row.id, url.rpartition("/")[2])
    if place is None:
        raise missing("file")
    data = await hub.bytes_of(place)
    return base64.b64encode(await asyncio.to_thread(as_format, data, format_, quality)).decode()


async def _form(request: Request, schema: type[Any], names: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """The fields of a multipart form, strictly, and its files as data URLs."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise TurnedAwayError(415, "send a form with files, as multipart/form-data", "not_multipart")
    fields: dict[str, Any] = {}
    files: dict[str, str] = {}
    async with request.form(**LIMITS) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in fields or name in files:
                raise TurnedAwayError(400, f"the field {name[:40]!r} is there twice", "twice", param=name[:40])
            if isinstance(value, UploadFile):
                if name not in names:
                    raise TurnedAwayError(422, f"there is no file field {name[:40]!r} here", "invalid", param=name[:40])
                files[name] = await _data_url(value)
            else:
                fields[name] = value
    for name in names[:1]:
        if name not in files:
            raise TurnedAwayError(422, f"the file field {name!r} is missing", "invalid", param=name)
    return schema.read(fields), files


async def _data_url(file: UploadFile) -> str:
    data = await file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise TurnedAwayError(413, f"a file is larger than {MAX_FILE >> 20} MiB", "too_large")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _kinds(hub: Hub, name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The picture and the sentence of a model."""
    if not hub.models:
        raise TurnedAwayError(503, hub.work.trouble(), "not_ready", retry=2)
    entry = next((m for m in hub.models if name in (None, m["name"])), None)
    if entry is None:
        known = ", ".join(m["name"] for m in hub.models)
        raise TurnedAwayError(
            404, f"there is no model of that name; there are {known}", "model_not_found", param="model"
        )
    kinds = {m["media_type"]: m for m in reversed(entry["modalities"])}
    if "image" not in kinds or "text" not in kinds:
        raise TurnedAwayError(422, f"the model {entry['name']} has no picture and sentence", "no_such_modality")
    return kinds["image"], kinds["text"]


def _check_size(size: str | None, picture: dict[str, Any]) -> None:
    own = f"{picture['size']}x{picture['size']}"
    if size not in (None, "auto", own):
        raise TurnedAwayError(422, f"size must be {own} or auto: this model makes no other", "invalid", param="size")


def _with_extras(job: dict[str, Any], body: Any) -> dict[str, Any]:
    """A job with the client's own settings."""
    extras = body.unidiffuser.model_dump(exclude_none=True) if getattr(body, "unidiffuser", None) else {}
    loose = extras.pop("looseness", {})
    return job | {"model": body.model} | extras | {"looseness": {**job.get("looseness", {}), **loose}}


def _plain(job: dict[str, Any]) -> dict[str, Any]:
    """The whole body of a native job."""
    return JobBody(**job).plain


def _model(entry: dict[str, Any]) -> dict[str, Any]:
    return {"id": entry["name"], "object": "model", "created": 0, "owned_by": "unidiffuser"}


def _completion(row: Row, name: str, skipped: list[str]) -> dict[str, Any]:
    samples = (row.result or {})["samples"]
    return {
        "id": f"chatcmpl-{row.id}",
        "object": "chat.completion",
        "created": int(row.created),
        "model": row.model,
        "choices": [
            {
                "index": k,
                "message": {"role": "assistant", "content": sample["values"][name], "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for k, sample in enumerate(samples)
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        "seed": row.job["seed"],
        "ignored": skipped,
    }


async def _chunks(answer: dict[str, Any]) -> AsyncIterator[str]:
    """A completion as a stream: the sentence is drawn as a whole, so it comes as one piece."""
    head = {key: answer[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for choice in answer["choices"]:
        delta = {"role": "assistant", "content": choice["message"]["content"]}
        yield sse(None, {**head, "choices": [{"index": choice["index"], "delta": delta, "finish_reason": None}]})
        yield sse(None, {**head, "choices": [{"index": choice["index"], "delta": {}, "finish_reason": "stop"}]})
    yield "data: [DONE]\n\n"
