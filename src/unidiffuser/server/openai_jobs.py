"""From what OpenAI's clients ask to a job: whom it is for, its size, its extras."""

import re
from typing import Any

from unidiffuser.server.hub import Hub
from unidiffuser.server.limits import TurnedAwayError

SIZE = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", re.ASCII)


def kinds_of(hub: Hub, name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The picture and the sentence of a model, as the workers described them.

    Raises:
        TurnedAwayError: 404, 422 or 503.
    """
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


def size_asked(size: str | None, picture: dict[str, Any]) -> list[int]:
    """Width and height of the pictures; nothing is rounded.

    Raises:
        TurnedAwayError: 422, no size, or one that a model of a single size does not make.
    """
    own: list[int] = picture["size"]
    if size in (None, "auto"):
        return own
    found = SIZE.fullmatch(size or "")
    asked = [int(found[1]), int(found[2])] if found else None
    if asked is None or (asked != own and picture["multiple"] is None):
        other = f", or width x height in multiples of {picture['multiple']}" if picture["multiple"] else ""
        raise TurnedAwayError(422, f"size must be {written(own)} or auto{other}", "invalid", param="size")
    return asked


def written(size: list[int]) -> str:
    """A size as OpenAI writes it."""
    return f"{size[0]}x{size[1]}"


def with_extras(job: dict[str, Any], body: Any) -> dict[str, Any]:
    """A job with the client's own settings."""
    extras = body.unidiffuser.model_dump(exclude_none=True) if getattr(body, "unidiffuser", None) else {}
    loose = extras.pop("looseness", {})
    return job | {"model": body.model} | extras | {"looseness": {**job.get("looseness", {}), **loose}}
