"""How the tests ask a running server, well and badly: every route of its schema, bytes of their own, refusals."""

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image
from running_server import CANARY, Server, data_url

JOBS = "/api/jobs"
GENERATE = "/v1/images/generations"
CHAT = "/v1/chat/completions"
NOBODY = {"name": "0" * 32, "file_name": "0.image.png"}
"""Ids that are of the right form and not there."""
PIXEL = data_url(Image.new("RGB", (1, 1), "white"))
GOOD: dict[str, dict[str, Any]] = {
    JOBS: dict(CANARY),
    GENERATE: {"prompt": "a large red circle", "unidiffuser": {"seed": 7}},
    CHAT: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]},
    "/api/recipe": {"image": PIXEL},
    "/api/session": {"token": "none"},
    "/api/search": {"words": "red"},
    "/api/taste/rank": {"sentences": ["a red circle"]},
}
"""A good body for every route that takes JSON; `operations` fails for a route that has none here."""


@dataclass(frozen=True)
class Operation:
    """One operation of the schema."""

    method: str
    template: str
    described: dict[str, Any]
    schemas: dict[str, Any]

    @property
    def path(self) -> str:
        """Ids filled in with some that are not there."""
        return self.with_ids(NOBODY)

    @property
    def ids(self) -> list[str]:
        """The names of the ids in the path."""
        return re.findall(r"\{(\w+)\}", self.template)

    def with_ids(self, ids: dict[str, str]) -> str:
        return re.sub(r"\{(\w+)\}", lambda m: ids.get(m[1], "0"), self.template)

    @property
    def content(self) -> dict[str, Any]:
        """Content type -> schema of the body."""
        return {kind: one["schema"] for kind, one in self.described.get("requestBody", {}).get("content", {}).items()}

    def parameters(self, place: str) -> list[dict[str, Any]]:
        """Those in the query or in the headers."""
        return [one for one in self.described.get("parameters", []) if one["in"] == place]


def operations(server: Server, **headers: str) -> list[Operation]:
    """All operations of the served schema."""
    answer = server.get("/openapi.json", headers=headers)
    assert answer.status_code == 200
    schema = answer.json()
    found = [
        Operation(method.upper(), path, described, schema["components"])
        for path, methods in schema["paths"].items()
        for method, described in methods.items()
    ]
    assert len(found) > 15
    return found


def routes(server: Server, **headers: str) -> list[tuple[str, str]]:
    """(method, path) of all of them."""
    return [(one.method, one.path) for one in operations(server, **headers)]


def json_operations(server: Server) -> Iterator[tuple[Operation, dict[str, Any]]]:
    """Those that take JSON, with a good body."""
    for one in operations(server):
        if "application/json" in one.content:
            yield one, GOOD[one.template]


def form_operations(server: Server) -> list[Operation]:
    """Those that take a form."""
    return [one for one in operations(server) if "multipart/form-data" in one.content]


def raw(server: Server, head: str, body: bytes = b"", wait: float = 15.0) -> bytes:
    """What the server answers to bytes of our own making."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as line:
        line.sendall(head.encode("latin-1") + body)
        line.settimeout(wait)
        found = b""
        while chunk := line.recv(65536):
            found += chunk
            if b"\r\n\r\n" in found and b"connection: close" not in found.lower():
                length = re.search(rb"content-length: (\d+)", found.lower())
                if length and len(found.partition(b"\r\n\r\n")[2]) >= int(length[1]):
                    break
        return found


def head_of(path: str, length: int | str) -> str:
    """The head of a JSON request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join(lines) + "\r\n\r\n"


def is_clean(text: str) -> bool:
    """Nothing of our insides: no path, no trace, no object, no address."""
    return not re.search(r'Traceback|File "|/src/|/tmp/|0x[0-9a-f]{6,}|<[A-Za-z_.]+ object|site-packages', text)


def refused(answer: Any, *statuses: int) -> dict[str, Any]:
    """The error of a refusal in the form that every refusal has."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    assert is_clean(answer.text), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return dict(error)
