"""Bad values in requests, by hand and by the schema: each is refused in one sentence that names it.

After each test a fixed good request gives the same pixels.
"""

import time
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from asking import GENERATE, JOBS, PIXEL, form_operations, json_operations, operations, refused
from running_server import CANARY, Server

TEXT = "a large red circle"
pytestmark = pytest.mark.usefixtures("unharmed")


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
    *(("label", x) for x in (-1, 1, 70_000, "0", 0.5)),
    *(("reuse", x) for x in (True, {"every": 1}, {"every": 2, "outer": 9}, {"each": 2}, 2)),
    *(("size", x) for x in ([64], [0, 64], [64, 64, 64], "64x64", [64.5, 64], [10**6, 10**6], [64, 64])),
    *(("guidance_interval", x) for x in ([0.9, 0.1], [0, 2], [0], 0.5)),
    *(("guidance_against", x) for x in ("nothing", "", 1)),
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
    elsewhere = refused(server.post(JOBS, {**CANARY, "prompt": TEXT}), 422)["message"]
    assert "no field 'prompt'" in elsewhere and "mean 'prompt'" not in elsewhere


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


@pytest.mark.parametrize("body", BODIES, ids=lambda b: ascii(b[:20]))
def test_a_broken_body_is_refused_in_bounded_time(server: Server, body: bytes) -> None:
    for one, _ in json_operations(server):
        started = time.monotonic()
        headers = {"content-type": "application/json"}
        refused(server.http.request(one.method, one.path, content=body, headers=headers), 400, 422)
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "kind",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp"],
)
def test_a_body_must_say_that_it_is_json(server: Server, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    for one, _ in json_operations(server):
        refused(server.http.request(one.method, one.path, content=b"a=1;" * 250_000, headers=headers), 415)


@pytest.mark.parametrize("kind", [None, "application/json", "application/x-www-form-urlencoded"])
def test_a_form_must_say_that_it_is_one(server: Server, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    for one in form_operations(server):
        refused(server.http.request(one.method, one.path, content=b"image=1;" * 100_000, headers=headers), 415)


def test_a_compressed_body_is_refused(server: Server) -> None:
    for one in operations(server):
        for kind in one.content:
            headers = {"content-type": kind, "content-encoding": "gzip"}
            refused(server.http.request(one.method, one.path, content=b"x", headers=headers), 415)


# ---- what the schema itself calls wrong, on every route --------------------------------------------------------------

POOL: list[Any] = [
    -1, 0, 2**63, 2**64, 10**30, 1.5, 1e308, True, "50", "", "..", "é", "x" * 30_000, [], [[]], [1], ["x"], [2.5, -1],
    [0.1] * 2000, {}, {"../x": 1}, {"Image": 0.5}, {"image": -1}, {"image": "x"}, {"a": {}},
    {f"m{k}": 0 for k in range(80)},
]  # fmt: skip


def wrong_for(schema: dict[str, Any], schemas: dict[str, Any]) -> list[Any]:
    """Of the pool what a schema does not allow, read by a validator that is not ours."""
    jsonschema = pytest.importorskip("jsonschema", reason="the extra [api-tests] is not installed")
    whole = {**schema, "components": schemas}
    checker = jsonschema.Draft202012Validator(whole)
    return [value for value in POOL if not checker.is_valid(value)]


def resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return dict(schemas["schemas"][reference.rpartition("/")[2]]) if reference else schema


def test_every_field_of_every_body_refuses_what_the_schema_forbids(server: Server) -> None:
    tried = 0
    for one, good in json_operations(server):
        body = resolved(one.content["application/json"], one.schemas)
        for field, schema in body["properties"].items():
            for value in wrong_for(schema, one.schemas):
                error = refused(server.http.request(one.method, one.path, json={**good, field: value}), 400, 422)
                assert len(error["message"]) < 600, (one.path, field, str(value)[:40])
                tried += 1
    assert tried > 600


def test_every_field_must_be_written_right_and_those_that_are_needed_must_be_there(server: Server) -> None:
    for one, good in json_operations(server):
        body = resolved(one.content["application/json"], one.schemas)
        for field in body["properties"]:
            error = refused(server.http.request(one.method, one.path, json={**good, field.upper(): 1}), 422)
            assert f"{field.upper()!r}" in error["message"]
        for field in body.get("required", []):
            less = {name: value for name, value in good.items() if name != field}
            assert field in refused(server.http.request(one.method, one.path, json=less), 422)["message"]
        assert "stepz" in refused(server.http.request(one.method, one.path, json={**good, "stepz": 1}), 422)["message"]


def test_every_query_refuses_what_the_schema_forbids(server: Server) -> None:
    tried = 0
    for one in operations(server):
        for parameter in one.parameters("query"):
            for text in ("", "x", "-1", "1e99", "NaN", "9" * 40, "maybe", "0x1", "1 2"):
                answer = server.http.request(one.method, one.path, params={parameter["name"]: text})
                assert answer.status_code < 500, (one.path, parameter["name"], text)
                refused(answer, 404, 422)
                tried += answer.status_code == 422
    assert tried > 15


def test_what_a_verb_does_not_take_is_refused_and_not_dropped(server: Server) -> None:
    from unidiffuser.server.schemas import TAKEN

    sent: dict[str, Any] = {"n": 2, "frames": 4, "draws": 8, "label": 1, "size": [64, 64], "masks": {"image": PIXEL}}
    for verb, taken in TAKEN.items():
        for field in set(sent) - taken:
            body = {**CANARY, "verb": verb, field: sent[field]}
            if verb == "interpolate":
                body["second"] = {"text": TEXT}
            if verb == "score":
                del body["names"]
            assert f"{field!r} means nothing" in refused(server.post(JOBS, body), 422)["message"]
