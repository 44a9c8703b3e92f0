"""Captions as chat completions: a sentence about the picture in the last user message."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from unidiffuser.server.hub import Hub
from unidiffuser.server.images import sse
from unidiffuser.server.native import UNBUFFERED
from unidiffuser.server.openai_jobs import kinds_of, with_extras
from unidiffuser.server.openai_schemas import ChatBody, caption_asked, ignored
from unidiffuser.server.store import Row
from unidiffuser.server.waiting import carried_out


def add_chat(api: APIRouter, hub: Hub) -> None:
    """The route of chat completions."""

    @api.post("/chat/completions")
    async def chat(request: Request, body: ChatBody) -> Any:
        """A sentence about the picture in the last user message."""
        picture, text = kinds_of(hub, body.model)
        image, skipped = caption_asked(body)
        job = with_extras({"names": [text["name"]], "given": {picture["name"]: image}, "n": body.n or 1}, body)
        job["seed"] = body.seed if body.seed is not None else job.get("seed")
        row = await carried_out(hub, request, job)
        answer = _completion(row, text["name"], [*ignored(body), *skipped])
        if body.stream:
            return StreamingResponse(_chunks(answer), media_type="text/event-stream", headers=UNBUFFERED)
        return answer


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
