"""Tokens: who may come in, on every route, and what one client may know of another."""

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from asking import GENERATE, JOBS, refused, routes
from running_server import CANARY, Server, running

ALPHA = {"authorization": "Bearer alpha-token-1"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tiny_model import saved_model

    folder = tmp_path_factory.mktemp("locked")
    flags = ("--token", "alpha-token-1", "--token", "beta-token-22")
    with running(saved_model(folder / "tiny"), folder / "data", *flags) as found:
        yield found


def test_every_route_needs_the_token(locked: Server) -> None:
    free = {"/health", "/ready", "/api/session"}
    for method, path in routes(locked, **ALPHA):
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
    for method, path in routes(locked, **ALPHA):
        if method != "GET":
            refused(locked.http.request(method, path, headers=session), 403)  # no origin
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
