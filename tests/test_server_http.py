"""The server over HTTP: what it promises, and what it does with bad requests on every route. After each of them a
fixed good request gives the same pixels."""

import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from PIL import Image
from running_server import CANARY, Server, data_url, events, running

TEXT = "a large red circle"
JOBS = "/api/jobs"
GENERATE = "/v1/images/generations"


@pytest.fixture(scope="module")
def reference(server: Server) -> str:
    return server.canary()


@pytest.fixture(autouse=True)
def _canary(server: Server, reference: str) -> Iterator[None]:
    yield
    assert server.canary() == reference


def routes(server: Server) -> list[tuple[str, str]]:
    """Every (method, path) of the schema, ids filled in with one that is not there."""
    paths = server.get("/openapi.json").json()["paths"]
    filled = {"name": "0" * 32, "file_name": "0.image.png", "sample": "0"}
    return [
        (method.upper(), re.sub(r"\{(\w+)\}", lambda m: filled[m[1]], path))
        for path, methods in paths.items()
        for method in methods
    ]


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


# ---- what it promises ------------------------------------------------------------------------------------------------


def test_the_promised_request_works_as_written(server: Server) -> None:
    body = b'{"prompt": "a large red circle", "n": 2, "response_format": "b64_json"}'
    answer = server.http.post(GENERATE, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert [len(entry["b64_json"]) > 100 for entry in answer.json()["data"]] == [True, True]


def test_http_the_library_and_the_command_line_agree(server: Server) -> None:
    from tiny_model import tiny_model

    [sample] = tiny_model().sample("image", text=TEXT, seed=7)
    value = server.done(CANARY)["samples"][0]["values"]["image"]
    assert server.picture(value).convert("RGB").tobytes() == sample["image"].tobytes()


def test_the_same_request_at_once_gives_the_same_bytes(server: Server, reference: str) -> None:
    names = [server.submit(CANARY) for _ in range(32)]
    assert len(set(names)) == 32
    assert {server.over(name)["result"]["samples"][0]["pixels"] for name in names} == {reference}


def test_events_are_replayed_from_the_last_one_seen(server: Server) -> None:
    name = server.submit({**CANARY, "previews": True, "steps": 6})
    whole = events(server.get(f"{JOBS}/{name}/events").text)
    numbers = [number for number, _, _ in whole]
    assert numbers == sorted(set(numbers)) and whole[-1][1] == "done"
    again = events(server.get(f"{JOBS}/{name}/events", headers={"last-event-id": str(numbers[-2])}).text)
    assert [event for _, event, _ in again] == ["done"]


def test_previews_show_picture_and_words(server: Server) -> None:
    name = server.submit({"names": ["image", "text"], "steps": 40, "previews": True, "seed": 1})
    shown = [data for _, event, data in events(server.get(f"{JOBS}/{name}/events").text) if event == "preview"]
    assert shown and all({"image", "text"} == set(data["samples"][0]) for data in shown)


def test_a_seed_is_chosen_and_told(server: Server) -> None:
    for body in ({"names": ["text"]}, {"names": ["text"], "seed": None}):
        found = server.over(server.submit(body))
        assert found["job"]["seed"] == found["result"]["samples"][0]["seed"] >= 0


def test_an_idempotency_key_is_one_job(server: Server) -> None:
    first = server.post(JOBS, CANARY, idempotency_key="k-1").json()["id"]
    assert server.post(JOBS, CANARY, idempotency_key="k-1").json()["id"] == first
    refused(server.post(JOBS, {**CANARY, "seed": 8}, idempotency_key="k-1"), 409)


def test_cancel_is_idempotent_and_an_unknown_job_is_not_done(server: Server) -> None:
    name = server.submit({"names": ["image"], "steps": 1000, "n": 16, "seed": 1})
    server.until(lambda: server.get(f"{JOBS}/{name}").json()["state"] == "running")
    for _ in range(2):
        assert server.http.delete(f"{JOBS}/{name}").status_code == 200
    assert server.over(name)["state"] == "cancelled"
    assert server.http.delete(f"{JOBS}/{name}").json()["state"] == "cancelled"
    done = server.submit(CANARY)
    server.over(done)
    assert server.http.delete(f"{JOBS}/{done}").json()["state"] == "done"
    for path in ("", "/events", "/result", "/files/0.image.png"):
        refused(server.get(f"{JOBS}/{'f' * 32}{path}"), 404)
    refused(server.http.delete(f"{JOBS}/{'f' * 32}"), 404)


def test_a_deadline_ends_a_job(server: Server) -> None:
    name = server.submit({"names": ["image"], "steps": 1000, "n": 8, "deadline_s": 0.5})
    assert server.over(name)["state"] == "expired"


def test_a_job_is_made_again_and_forgotten(server: Server, reference: str) -> None:
    name = server.submit(CANARY)
    server.over(name)
    again = server.http.post(f"{JOBS}/{name}/retry").json()["id"]
    assert again != name and server.over(again)["result"]["samples"][0]["pixels"] == reference
    assert server.http.delete(f"{JOBS}/{name}", params={"forget": True}).status_code == 200
    refused(server.get(f"{JOBS}/{name}"), 404)


def test_given_values_come_back_and_the_ignored_has_no_influence(server: Server, reference: str) -> None:
    loose = {**CANARY, "looseness": {"text": 1.0}}
    one = server.done(loose)["samples"][0]
    other = server.done({**loose, "given": {"text": "a small green star"}})["samples"][0]
    assert one["pixels"] == other["pixels"] != reference
    assert one["values"]["text"] == TEXT


def test_health_answers_at_once_while_work_goes_on(server: Server) -> None:
    name = server.submit({"names": ["image", "text"], "n": 16, "steps": 100, "previews": True})
    waits = []
    for _ in range(20):
        started = time.monotonic()
        assert server.get("/health").json()["status"] == "ok"
        waits.append(time.monotonic() - started)
    server.http.delete(f"{JOBS}/{name}")
    server.over(name)
    assert sorted(waits)[len(waits) // 2] < 0.5  # far from a step's length, however busy the machine


def test_metrics_and_schema_are_served(server: Server) -> None:
    text = server.get("/metrics").text
    assert "unidiffuser_jobs_ended_total" in text and "unidiffuser_forward_rows_bucket" in text
    assert server.get("/openapi.json").json()["openapi"].startswith("3.")


# ---- request values (faults 1 to 13) ---------------------------------------------------------------------------------

BAD_VALUES: list[tuple[str, Any]] = [
    *(("steps", x) for x in (0, -1, 10**9, 2**63, "50", 50.0, True, 1001)),
    *(("n", x) for x in (0, -1, 65, 10**6, "2", 1.5, False)),
    *(("seed", x) for x in (-1, 2**63, 2**64, 1.5, "7", True)),
    *(("guidance", x) for x in (-3, 1e308, "high", [1], {"image": -1}, {"Image": 1})),
    *(("looseness", x) for x in ({"text": -0.1}, {"text": 1.1}, {"nobody": 0.5}, {"text": "0.5"}, 0.5)),
    *(("names", x) for x in ([], ["image", "image"], ["sound"], "image", [1], ["../x"], ["__class__"])),
    *(
        ("given", x)
        for x in ({"text": ""}, {"text": 5}, {"text": "a zebra"}, {"text": [1, 2]}, {"sound": "x"}, {"image": TEXT})
    ),
    *(("path", x) for x in ({"image": [0, 1]}, {"image": [1, 0]}, {"text": [1, 0, 0, 0]}, {"image": [1, 2, 0, 0]})),
    *(("solver", x) for x in ("magic", "", 3, "x" * 1000)),
    *(("model", x) for x in ("other", "../tiny", "/etc/passwd", 5)),
    *(("masks", x) for x in ({"image": "data:image/png;base64,AAAA"}, {"text": TEXT})),
    *(("deadline_s", x) for x in (0, -1, "1")),
    ("verb", "paint"),
    ("second", {"image": "data:image/png;base64,AAAA"}),
]


@pytest.mark.parametrize("field, value", BAD_VALUES, ids=lambda x: repr(x)[:30])
def test_a_bad_value_is_refused_and_named(server: Server, field: str, value: Any) -> None:
    error = refused(server.post(JOBS, {**CANARY, field: value}), 422)
    assert len(error["message"]) < 600


@pytest.mark.parametrize(
    "size", ["0x0", "-1x512", "512", "512x", "512x512x3", "65x64", "100000x100000", "６４x６４", "064x064", " 64x64"]
)
def test_sizes_are_never_rounded(server: Server, size: str) -> None:
    refused(server.post(GENERATE, {"prompt": TEXT, "size": size}), 422)
    assert server.post(GENERATE, {"prompt": TEXT, "size": "64x64"}).json()["size"] == "64x64"


def test_legal_fields_over_the_budget_are_refused_with_the_cost(server: Server) -> None:
    error = refused(server.post(JOBS, {**CANARY, "n": 64, "steps": 1000}), 422)
    assert "exceeds the budget" in error["message"] and "64000" in error["message"]


def test_a_large_guidance_gives_finite_pixels(server: Server) -> None:
    assert server.done({**CANARY, "guidance": 100})["samples"][0]["pixels"]


def test_a_mistyped_field_is_guessed(server: Server) -> None:
    assert "did you mean 'steps'" in refused(server.post(JOBS, {**CANARY, "stepz": 3}), 422)["message"]
    assert "did you mean 'prompt'" in refused(server.post(GENERATE, {"promt": TEXT}), 422)["message"]


PROMPTS = [
    "",
    "   ",
    "a",
    "a " * 500_000,
    "red\0circle",
    "a \u202e red circle",
    "a\u200dred circle",
    "e" + "\u0301" * 500,
    "\ufeffa red circle",
    "🟥",
    "<script>alert(1)</script>",
    "[END]",
    "=1+1",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: ascii(p)[:24])
def test_any_prompt_is_a_result_or_a_refusal(server: Server, prompt: str) -> None:
    answer = server.post(GENERATE, {"prompt": prompt})
    if answer.status_code != 200:
        error = refused(answer, 422)
        assert "<" not in error["message"] or answer.headers["content-type"] == "application/json"


BODIES = [
    b"", b"{", b"{} x", b"[]", b"null", b'{"a": NaN}', b'{"seed": Infinity}', b'{"guidance": 1e400}',
    b'{"n": 1, "n": 2}', b'{"seed": ' + b"1" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 100_000,
    b'"\\ud800"', b'{"prompt": "\\ud800"}',
    '{"prompt": "x"}'.encode("utf-16"), b"\xff\xfe", b'{"prompt": "\xff"}',
]  # fmt: skip


@pytest.mark.parametrize("path", [JOBS, GENERATE, "/v1/chat/completions", "/api/recipe", "/api/session"])
@pytest.mark.parametrize("body", BODIES, ids=lambda b: ascii(b[:20]))
def test_a_broken_body_is_refused_in_bounded_time(server: Server, path: str, body: bytes) -> None:
    started = time.monotonic()
    refused(server.http.post(path, content=body, headers={"content-type": "application/json"}), 400, 422)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "kind",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp"],
)
def test_a_body_must_say_that_it_is_json(server: Server, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    for path in (JOBS, GENERATE, "/v1/chat/completions"):
        refused(server.http.post(path, content=b"a=1;" * 250_000, headers=headers), 415)


def test_a_compressed_body_is_refused(server: Server) -> None:
    refused(
        server.http.post(JOBS, content=b"x", headers={"content-type": "application/json", "content-encoding": "gzip"}),
        415,
    )


# ---- HTTP level (faults 29 to 40) ------------------------------------------------------------------------------------


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


def test_odd_multipart_is_refused_at_once(server: Server) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n1\r\n'
    bodies = {
        "dashes": b"--x" + b"-" * 10**7,
        "parts": b"".join(part % str(k).encode() for k in range(10**5)) + b"--x--",
        "header": b"--x\r\nContent-Disposition: form-data; name=" + b"a" * 10**7 + b"\r\n\r\n1\r\n--x--",
        "file name": b'--x\r\nContent-Disposition: form-data; name="image"; filename="'
        + b"a" * 10**7
        + b'"\r\n\r\n1\r\n--x--',
        "preamble": b"junk" * 10**6 + b"\r\n--x--",
        "no boundary": b"hello",
    }
    for name, body in bodies.items():
        started = time.monotonic()
        answer = server.http.post(
            "/v1/images/variations", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        refused(answer, 400, 413, 422)
        assert time.monotonic() - started < 20, name
    refused(
        server.http.post("/v1/images/variations", content=b"", headers={"content-type": "multipart/form-data"}),
        400,
        422,
    )


def test_many_ranges_are_answered_in_bounded_time(server: Server) -> None:
    url = server.done(CANARY)["samples"][0]["values"]["image"]["url"]
    ranges = "bytes=" + ",".join(f"{k}-{k}" for k in range(1500))
    assert server.get(url, headers={"range": ranges}).status_code in (200, 416)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "MRO", "__CLASS__"])
def test_no_method_on_any_route_fails(server: Server, method: str) -> None:
    for known, path in routes(server):
        answer = server.http.request(method, path)
        assert answer.status_code < 500 or path == "/ready", (method, path, answer.status_code)
        if method not in ("GET", "POST", "DELETE"):
            assert answer.status_code == 405, (method, path)
        assert is_clean(answer.text)
        assert known


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
    for path in (
        f"{JOBS}/{trick}",
        f"{JOBS}/{done}/files/{trick}",
        f"{JOBS}/{trick}/files/0.image.png",
        f"/studio/{trick}",
        f"/v1/models/{trick}",
    ):
        answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer[9:12] in (b"404", b"405", b"422"), (path, answer[:100])
        assert b"SQLite" not in answer and is_clean(answer.partition(b"\r\n\r\n")[2].decode())


# ---- tokens (faults 36, 37, 86) --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tiny_model import saved_model

    folder = tmp_path_factory.mktemp("locked")
    flags = ("--token", "alpha-token-1", "--token", "beta-token-22")
    with running(saved_model(folder / "tiny"), folder / "data", *flags) as found:
        yield found


def test_every_route_needs_the_token(locked: Server) -> None:
    free = {"/health", "/ready", "/api/session"}
    for method, path in routes_of(locked):
        if path in free:
            continue
        for headers in (
            {},
            {"authorization": "Bearer alpha-token"},
            {"authorization": "Bearer alpha-token-11"},
            {"authorization": "alpha-token-1"},
            {"cookie": "unidiffuser_session=alpha-token-1"},
        ):
            refused(locked.http.request(method, path, headers=headers), 401)
        refused(locked.http.request(method, path, params={"token": "alpha-token-1"}), 401)


def routes_of(locked: Server) -> list[tuple[str, str]]:
    with_token = locked.http.get("/openapi.json", headers={"authorization": "Bearer alpha-token-1"})
    assert with_token.status_code == 200
    filled = {"name": "0" * 32, "file_name": "0.image.png", "sample": "0"}
    return [
        (method.upper(), re.sub(r"\{(\w+)\}", lambda m: filled[m[1]], path))
        for path, methods in with_token.json()["paths"].items()
        for method in methods
    ]


def test_clients_never_see_each_others_jobs(locked: Server) -> None:
    alpha, beta = ({"authorization": f"Bearer {token}"} for token in ("alpha-token-1", "beta-token-22"))
    name = locked.http.post(JOBS, json=CANARY, headers=alpha).json()["id"]
    locked.until(lambda: locked.get(f"{JOBS}/{name}", headers=alpha).json()["state"] == "done")
    for path in ("", "/events", "/result", "/files/0.image.png"):
        assert locked.get(f"{JOBS}/{name}{path}", headers=alpha).status_code == 200
        refused(locked.get(f"{JOBS}/{name}{path}", headers=beta), 404)
    refused(locked.http.delete(f"{JOBS}/{name}", headers=beta), 404)
    refused(locked.http.post(f"{JOBS}/{name}/retry", headers=beta), 404)
    refused(locked.http.put(f"{JOBS}/{name}/samples/0/keep", headers=beta), 404)
    assert locked.http.post("/api/search", json={"words": "red"}, headers=beta).json()["total"] == 0
    assert locked.get(JOBS, headers=beta).json() == {"jobs": []}
    assert len(locked.get(JOBS, headers=alpha).json()["jobs"]) == 1


def test_the_page_comes_in_with_a_cookie_and_only_from_itself(locked: Server) -> None:
    refused(locked.post("/api/session", {"token": "wrong"}), 401)
    answer = locked.post("/api/session", {"token": "alpha-token-1"})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 204 and "HttpOnly" in cookie and "SameSite=strict" in cookie and "alpha" not in cookie
    locked.http.cookies.clear()
    session = {"cookie": cookie.partition(";")[0]}
    assert locked.get("/api/status", headers=session).status_code == 200
    refused(locked.http.post(JOBS, json=CANARY, headers=session), 403)  # no origin
    assert locked.http.post(JOBS, json=CANARY, headers={**session, "origin": locked.url}).status_code == 202


def test_tokens_and_prompts_are_never_logged(locked: Server) -> None:
    headers = {"authorization": "Bearer alpha-token-1"}
    locked.http.post(GENERATE, json={"prompt": "a medium teal heart"}, headers=headers)
    assert "alpha-token" not in locked.log() and "teal" not in locked.log()


def test_listening_beyond_this_machine_needs_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    from unidiffuser.cli import main

    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "--token" in capsys.readouterr().err
    assert main(["serve", "--host", "0.0.0.0", "--token", "short"]) == 2
    assert main(["serve", "--port", "70000"]) == 2


# ---- overload (faults 76, 77) ----------------------------------------------------------------------------------------


def test_a_burst_is_turned_away_with_a_time_to_come_back(server: Server) -> None:
    answers: list[Any] = []

    def burst() -> None:
        for _ in range(40):
            answers.append(server.post(JOBS, {"names": ["text"], "n": 16, "steps": 120}))

    threads = [threading.Thread(target=burst) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [a.json()["id"] for a in answers if a.status_code == 202]
    turned = [a for a in answers if a.status_code == 429]
    assert len(taken) + len(turned) == 160 and turned
    assert all(int(a.headers["retry-after"]) >= 1 for a in turned)
    for name in taken:
        server.http.delete(f"{JOBS}/{name}")
    for name in taken:
        assert server.over(name)["state"] in ("cancelled", "done")


def test_a_client_that_leaves_frees_its_place(server: Server) -> None:
    body = json.dumps({"prompt": TEXT, "n": 10, "unidiffuser": {"steps": 1000}}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(head_of(GENERATE, len(body)).encode() + body)
        server.until(lambda: server.get(JOBS).json()["jobs"][0]["state"] == "running")
        name = server.get(JOBS).json()["jobs"][0]["id"]
    assert server.over(name)["state"] == "cancelled"


def test_a_score_is_finite_and_told_with_its_error(server: Server) -> None:
    picture = data_url(Image.new("RGB", (64, 64), "red"))
    result = server.done({"verb": "score", "given": {"image": picture, "text": TEXT}, "draws": 16, "seed": 1})
    assert math.isfinite(result["bits"]) and result["error"] > 0 and result["of"] == "image"
