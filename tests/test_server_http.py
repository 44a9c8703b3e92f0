"""The server over HTTP: what it promises, alone and when it is too much.

After each test a fixed good request gives the same pixels.
"""

import json
import math
import socket
import threading
import time
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from asking import GENERATE, JOBS, head_of, refused
from PIL import Image
from running_server import CANARY, Server, data_url, events

TEXT = "a large red circle"
pytestmark = pytest.mark.usefixtures("unharmed")


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


def test_the_same_request_at_once_gives_the_same_bytes(server: Server, canary: str) -> None:
    names = [server.submit(CANARY) for _ in range(32)]
    assert len(set(names)) == 32
    assert {server.over(name)["result"]["samples"][0]["pixels"] for name in names} == {canary}


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


def test_a_job_is_made_again_and_forgotten(server: Server, canary: str) -> None:
    name = server.submit(CANARY)
    server.over(name)
    again = server.http.post(f"{JOBS}/{name}/retry").json()["id"]
    assert again != name and server.over(again)["result"]["samples"][0]["pixels"] == canary
    assert server.http.delete(f"{JOBS}/{name}", params={"forget": True}).status_code == 200
    refused(server.get(f"{JOBS}/{name}"), 404)


def test_given_values_come_back_and_the_ignored_has_no_influence(server: Server, canary: str) -> None:
    loose = {**CANARY, "looseness": {"text": 1.0}}
    one = server.done(loose)["samples"][0]
    other = server.done({**loose, "given": {"text": "a small green star"}})["samples"][0]
    assert one["pixels"] == other["pixels"] != canary
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
