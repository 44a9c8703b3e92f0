"""The server at the level of HTTP: lengths, chunks, stalls, methods, ranges, origins and paths, on every route.

After each test a fixed good request gives the same pixels.
"""

import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from asking import JOBS, form_operations, head_of, is_clean, operations, raw, refused, routes
from running_server import CANARY, Server

pytestmark = pytest.mark.usefixtures("unharmed")


def test_an_announced_body_that_is_too_large_is_refused_before_it_is_read(server: Server) -> None:
    assert raw(server, head_of(JOBS, 10**9)).startswith(b"HTTP/1.1 413")


def test_an_unannounced_body_is_cut_at_the_limit(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(48):
            yield b"x" * 2**20

    try:
        answer = server.http.post(JOBS, content=endless(), headers={"content-type": "application/json"})
        refused(answer, 413)
    except Exception as error:
        assert type(error).__name__ in ("WriteError", "RemoteProtocolError", "ReadError")  # it closed the door on us


@pytest.mark.parametrize("length", ["-1", "abc", "5\r\nContent-Length: 6", "1e3"])
def test_a_lying_length_is_refused(server: Server, length: str) -> None:
    assert raw(server, head_of(JOBS, length), b"{}").startswith(b"HTTP/1.1 400")


def test_bad_chunks_are_refused(server: Server) -> None:
    head = head_of(JOBS, 0).replace("Content-Length: 0", "Transfer-Encoding: chunked")
    assert raw(server, head, b"zz\r\n{}\r\n").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "start",
    [
        "GET / HT",
        head_of("/api/jobs", 50) + "{",
    ],
    ids=["head", "body"],
)
def test_a_client_that_stalls_is_let_go(server: Server, start: str) -> None:
    started = time.monotonic()
    answer = raw(server, start, wait=40)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 30


ODD_FORMS: dict[str, Callable[[], bytes]] = {
    "dashes": lambda: b"--x" + b"-" * 10**7,
    "parts": lambda: b"".join(PART % str(k).encode() for k in range(10**5)) + b"--x--",
    "header": lambda: b"--x\r\nContent-Disposition: form-data; name=" + b"a" * 10**7 + b"\r\n\r\n1\r\n--x--",
    "file name": lambda: FILE + b"a" * 10**7 + b'"\r\n\r\n1\r\n--x--',
    "preamble": lambda: b"junk" * 10**6 + b"\r\n--x--",
    "no boundary": lambda: b"hello",
    "twice": lambda: PART % b"model" + PART % b"model" + b"--x--",
}
PART = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n1\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="image"; filename="'


@pytest.mark.parametrize("name", ODD_FORMS)
def test_odd_forms_are_refused_at_once(server: Server, name: str) -> None:
    body = ODD_FORMS[name]()
    for one in form_operations(server):
        started = time.monotonic()
        headers = {"content-type": "multipart/form-data; boundary=x"}
        refused(server.http.request(one.method, one.path, content=body, headers=headers), 400, 413, 422)
        assert time.monotonic() - started < 20


def test_a_form_without_a_boundary_is_refused(server: Server) -> None:
    for one in form_operations(server):
        headers = {"content-type": "multipart/form-data"}
        refused(server.http.request(one.method, one.path, content=b"", headers=headers), 400, 422)


def test_many_ranges_are_answered_in_bounded_time(server: Server) -> None:
    url = server.done(CANARY)["samples"][0]["values"]["image"]["url"]
    ranges = "bytes=" + ",".join(f"{k}-{k}" for k in range(1500))
    assert server.get(url, headers={"range": ranges}).status_code in (200, 416)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "MRO", "__CLASS__"])
def test_no_method_on_any_route_fails(server: Server, method: str) -> None:
    known = routes(server)
    for path in {path for _, path in known}:
        answer = server.http.request(method, path)
        assert answer.status_code < 500 or path == "/ready", (method, path, answer.status_code)
        assert answer.status_code == 405 or (method, path) in known, (method, path)
        assert is_clean(answer.text)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"}, {"host": "evil.example"}, {"host": "evil.example:8000"}, {"host": ""},
        {"origin": "http://localhost:1"},
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_answered_to_other_sites(server: Server, headers: dict[str, str]) -> None:
    for method, path in routes(server):
        refused(server.http.request(method, path, headers=headers), 403, 400)


def test_a_link_to_the_page_may_be_followed(server: Server) -> None:
    answer = server.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    assert answer.status_code == 200


def test_every_answer_carries_the_strict_headers(server: Server) -> None:
    for method, path in [*routes(server), ("GET", "/"), ("GET", "/nowhere"), ("PUT", "/")]:
        headers = server.http.request(method, path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


TRICKS = [
    "..",
    "%2e%2e%2f",
    "..%5c",
    "/etc/passwd",
    "C:%5c",
    "%5c%5chost%5cshare",
    "%00",
    "a" * 4096,
    "CON",
    "x.",
    "0.image.png%00.txt",
    "%2e%2e%2f%2e%2e%2fjobs.sqlite",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_no_path_trick_leads_anywhere(server: Server, trick: str) -> None:
    done = server.submit(CANARY)
    server.over(done)
    ids = {"name": done, "file_name": "0.image.png"}
    tricked = [(one, {**ids, name: trick}) for one in operations(server) for name in one.ids]
    asked = [(one.method, one.with_ids(wrong)) for one, wrong in tricked] + [("GET", f"/studio/{trick}")]
    assert len(asked) > 8
    for method, path in asked:
        answer = raw(server, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer[9:12] in (b"400", b"404", b"405", b"422"), (method, path, answer[:100])
        assert b"SQLite" not in answer and is_clean(answer.partition(b"\r\n\r\n")[2].decode())
    assert server.over(done)["state"] == "done"
    assert server.get(f"{JOBS}/{done}/files/0.image.png").status_code == 200
