"""Requests read strictly: JSON as RFC 8259 has it and nothing more, checked before any model of ours sees it.

Refused, where Python's own parser lets them through: a key that occurs twice, NaN and infinities, numbers beyond a
float, integers of thousands of digits, half a surrogate pair, nesting without end, text that is not UTF-8, and a body
that does not say that it is JSON.
"""

import difflib
import json
import math
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from unidiffuser.server.limits import TurnedAwayError

MAX_DIGITS = 40
MAX_DEPTH = 32


class StrictRoute(APIRoute):
    """A route whose requests are read strictly, if it takes a body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a request whose JSON is already read."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise TurnedAwayError(415, "send JSON, with the header content-type: application/json", "not_json")
            read = _ReadRequest(request.scope, request.receive)
            read.value = parse(await read.body())
            return await handler(read)

        return handle


class _ReadRequest(Request):
    value: Any

    async def json(self) -> Any:
        return self.value


def parse(data: bytes) -> Any:
    """A JSON text from a stranger; TurnedAwayError 400 in one sentence."""
    try:
        text = data.decode("utf-8")
        _check_depth(text)
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_whole, parse_float=_finite
        )
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be encoded
    except UnicodeDecodeError as error:
        raise TurnedAwayError(400, "the body is not UTF-8", "bad_json") from error
    except UnicodeEncodeError as error:
        raise TurnedAwayError(400, "the body holds half a surrogate pair", "bad_json") from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise TurnedAwayError(400, f"the body is not JSON: {reason[:100]}", "bad_json") from error
    return value


def complaint(error: RequestValidationError, fields: Iterable[str]) -> TurnedAwayError:
    """What a request lacks, naming the first field at fault and never its value. fields: all names there are."""
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    field = ".".join(place)[:100]
    if first["type"] == "extra_forbidden":
        wrong = place[-1] if place else ""
        near = difflib.get_close_matches(
            wrong, [name for name in fields if name != wrong], 1
        )  # it may be of other bodies
        message = f"there is no field {field!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    else:
        message = f"{field or 'the request'}: {first['msg'][:300]}".removeprefix("the request: Value error, ")
        message = message.replace("Value error, ", "")
    return TurnedAwayError(422, message, "invalid", param=field or None)


def _check_depth(text: str) -> None:
    depth = deepest = 0
    for character in text if text.count("[") + text.count("{") > MAX_DEPTH else "":
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:  # brackets inside strings count too: no honest sentence has so many
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
