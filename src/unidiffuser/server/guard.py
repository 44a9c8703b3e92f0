"""The door: what every request must pass, whatever route it is for, before anything of it is read.

    Host            one of ours, so that a name that was rebound to this address leads nowhere
    Origin          ours if there is one; nothing from another site but a plain visit to the page
    token           needed unless the server listens on loopback only; compared in constant time; never in an address
    body            announced or not, at most so many bytes, and in bearable time; not compressed
    answer          a strict content policy, no sniffing, no framing, no referrer

It is ASGI, around the whole application, so a route cannot forget it.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from unidiffuser.server.limits import Limits, TurnedAwayError
from unidiffuser.server.metrics import Metrics

LOG = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "unidiffuser_session"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/health", "/ready", "/api/session", "/favicon.ico")
"""Paths that need no token, with the page itself, which holds no secret."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """The middleware."""

    def __init__(
        self, app: App, *, hosts: Sequence[str], tokens: Sequence[str], limits: Limits, metrics: Metrics
    ) -> None:
        """
        Args:
            app: what is guarded.
            hosts: names that this server answers to, without ports; "*" for any.
            tokens: who may come in; with none, everybody may.
        """
        self.app, self.hosts, self.limits, self.metrics = app, set(hosts), limits, metrics
        self.tokens = [token.encode() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        status = 0

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in present]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, _Body(receive, self.limits).receive, sending)
        except TurnedAwayError as refusal:
            if status == 0:
                await _answer(sending, refusal)
        finally:
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
            self.metrics.requests.labels(method, str(status)).inc()

    def _check(self, scope: Scope) -> None:
        headers = _Headers(scope)
        host = headers.one("host")
        name = _name_of(host)
        if "*" not in self.hosts and name not in self.hosts:
            raise TurnedAwayError(403, "this server does not answer to that host name", "bad_host")
        self._check_origin(scope, headers, host)
        self._check_body(headers, self.limits)
        owner, by_cookie = self._owner(headers)
        if owner is None and not _is_open(scope):
            raise TurnedAwayError(401, "a token is needed: send the header authorization: Bearer TOKEN", "unauthorised")
        if by_cookie and scope["method"] not in SAFE and not headers.get("origin"):
            raise TurnedAwayError(403, "a request with a cookie must say its origin", "bad_origin")
        client = scope.get("client")
        scope.setdefault("state", {})
        scope["state"] |= {"owner": owner or "", "client": f"{owner}/{client[0] if client else ''}"}

    def _check_origin(self, scope: Scope, headers: "_Headers", host: str) -> None:
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise TurnedAwayError(403, "requests from other sites are not answered", "bad_origin")
        site = headers.get("sec-fetch-site") or "none"
        visit = (
            scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        )  # a link to the page, followed
        if site not in ("none", "same-origin") and not visit:
            raise TurnedAwayError(403, "requests from other sites are not answered", "bad_origin")

    @staticmethod
    def _check_body(headers: "_Headers", limits: Limits) -> None:
        if headers.get("content-encoding") not in (None, "identity"):
            raise TurnedAwayError(415, "send the body as it is, not compressed", "compressed")
        length = headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise TurnedAwayError(400, "content-length must be a number", "bad_length")
        if length is not None and int(length[:20]) > limits.body:
            raise TurnedAwayError(413, f"the body is larger than {limits.body >> 20} MiB", "too_large")

    def _owner(self, headers: "_Headers") -> tuple[str | None, bool]:
        """Whose token comes with the request, and whether it came as the page's cookie."""
        if not self.tokens:
            return "local", False
        kind, _, token = (headers.get("authorization") or "").partition(" ")
        if kind.lower() == "bearer":
            return self.owner_of(token.strip()), False
        try:
            cookie = SimpleCookie(headers.get("cookie") or "").get(COOKIE)
        except CookieError:
            cookie = None
        return (self.owner_of_session(cookie.value), True) if cookie else (None, False)

    def owner_of(self, token: str) -> str | None:
        """The owner that a token stands for; every token is compared, each in constant time."""
        found = None
        for known in self.tokens:
            if hmac.compare_digest(known, token.encode()):
                found = known
        return hashlib.sha256(found).hexdigest()[:16] if found else None

    def owner_of_session(self, session: str) -> str | None:
        """The owner of a page's cookie, which is made of the token and says nothing about it."""
        found = None
        for known in self.tokens:
            if hmac.compare_digest(session_of(known.decode()).encode(), session.encode()):
                found = known
        return hashlib.sha256(found).hexdigest()[:16] if found else None


def session_of(token: str) -> str:
    """The value of the page's cookie for a token."""
    return hmac.new(token.encode(), b"unidiffuser session", hashlib.sha256).hexdigest()


class _Body:
    """A request body that must not be too large or too slow."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._seen, self._whole, self._deadline = 0, False, time.monotonic() + limits.total

    async def receive(self) -> MutableMapping[str, Any]:
        """The next message; TurnedAwayError 413 or 408."""
        if self._whole:
            return await self._receive()  # waits for the client to leave
        left = min(self._limits.idle, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.01))
        except TimeoutError as error:
            raise TurnedAwayError(408, "the request took too long to arrive", "slow") from error
        self._seen += len(message.get("body", b""))
        self._whole = message["type"] != "http.request" or not message.get("more_body")
        if self._seen > self._limits.body:
            raise TurnedAwayError(413, f"the body is larger than {self._limits.body >> 20} MiB", "too_large")
        return message


class _Headers:
    """Header values by name."""

    def __init__(self, scope: Scope) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def get(self, name: str) -> str | None:
        """The only value, None if there is none; 400 if there are several."""
        values = self._values.get(name, [])
        if len(set(values)) > 1:
            raise TurnedAwayError(400, f"the header {name} is there twice", "bad_header")
        return values[0] if values else None

    def one(self, name: str) -> str:
        """The only value; 400 if there is none."""
        value = self.get(name)
        if value is None:
            raise TurnedAwayError(400, f"the header {name} is missing", "bad_header")
        return value


def _name_of(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_open(scope: Scope) -> bool:
    """Whether a path needs no token."""
    path = scope["path"]
    return path in OPEN or path == "/" or path.startswith("/studio/")


async def _answer(send: Send, refusal: TurnedAwayError) -> None:
    """A refusal as a response; the connection ends, since the body may not have been read."""
    body = json.dumps(error_body(refusal)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"cache-control", b"no-store"),
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.retry is not None:
        headers.append((b"retry-after", str(refusal.retry).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(refusal: TurnedAwayError) -> dict[str, Any]:
    """The body of every error, in the form that clients of the OpenAI API know."""
    kind = KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}
