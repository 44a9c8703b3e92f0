"""Continuous batching: a sampling among others gives the bytes it gives alone, whatever the others are."""

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from crowd import go, together
from running_server import data_url
from tiny_model import tiny_model

from unidiffuser import UniDiffuser
from unidiffuser.joint import Joint, noise_like
from unidiffuser.recipe import fingerprint
from unidiffuser.server.batching import Lanes, StoppedError
from unidiffuser.server.engine import Engine

TEXT = "a large red circle"
JOBS: list[dict[str, Any]] = [
    {"names": ["image"], "given": {"text": TEXT}, "seed": 1},
    {"names": ["image", "text"], "seed": 2, "steps": 5, "guidance": 2.0},
    {"names": ["text"], "seed": 3, "steps": 4, "solver": "heun"},
    {"names": ["image"], "seed": 4, "solver": "ancestral", "n": 3},
    {"names": ["image"], "given": {"text": TEXT}, "looseness": {"text": 0.4}, "seed": 5, "solver": "unipc"},
    {"verb": "chain", "names": ["text", "image", "text"], "given": {"text": TEXT}, "seed": 6},
    {"names": ["text"], "given": {"text": "a ___ red circle"}, "seed": 7, "steps": 2},
    {"names": ["image", "text"], "path": {"image": [1, 0.5, 0, 0], "text": [1, 1, 1, 0]}, "steps": 3, "seed": 8},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine({"tiny": tiny_model()}, lanes=2)


def test_every_job_is_the_same_alone_and_among_all_others(engine: Engine) -> None:
    alone = [go(engine, job) for job in JOBS]
    crowd = together([lambda job=job: go(engine, job) for job in JOBS * 2])  # type: ignore[misc]
    assert crowd == alone * 2


def test_an_engine_draws_what_the_library_draws(engine: Engine) -> None:
    [sample] = tiny_model().sample("text", seed=3, steps=4, solver="heun")
    assert go(engine, JOBS[2])[0]["values"]["text"] == sample["text"]


def test_a_student_draws_with_its_network_and_scores_with_its_critic() -> None:
    teacher, critic = tiny_model(), tiny_model(seed=1).network
    settings = replace(teacher.settings, solver="renoise", begin=0.9)
    student = UniDiffuser(teacher.network, "cosine", "v", teacher.modalities, critic=critic, settings=settings)
    shared = Engine({"student": student})
    [sample] = student.sample("image", "text", seed=3)
    [drawn] = go(shared, {"names": ["image", "text"], "seed": 3})
    assert drawn["values"]["text"] == sample["text"] and drawn["pixels"] == fingerprint(sample["image"])
    given = {"image": sample["image"], "text": TEXT}
    [score] = student.score("image", "text", samples=8, seed=5, **given)
    plain = {"verb": "score", "given": {"image": data_url(sample["image"]), "text": TEXT}, "draws": 8, "seed": 5}
    job, _ = shared.check(plain)
    assert shared.run(job, lambda event: None, lambda: False)["bits"] == pytest.approx(score.bits, rel=1e-4)
    assert teacher.score("image", "text", samples=8, seed=5, **given)[0].bits != pytest.approx(score.bits, rel=1e-2)


def test_samplings_share_forwards() -> None:
    seen: list[tuple[int, int]] = []
    shared = Engine({"tiny": tiny_model()}, lanes=1, seen=lambda rows, calls: seen.append((rows, calls)))
    together([lambda: go(shared, {"names": ["image"], "steps": 12, "seed": 1})] * 8)
    assert sum(rows for rows, _ in seen) == 8 * 12
    assert len(seen) < 8 * 12 / 2 and max(calls for _, calls in seen) > 4


def test_a_lane_takes_no_more_rows_than_it_may() -> None:
    seen: list[int] = []
    shared = Engine({"tiny": tiny_model()}, lanes=1, rows=4, seen=lambda rows, calls: seen.append(rows))
    together([lambda: go(shared, {"names": ["image"], "seed": 1})] * 9)
    assert max(seen) <= 4


def test_only_the_call_at_fault_fails() -> None:
    started = threading.Barrier(3)

    def picky(xt: Joint, t: dict[str, Tensor]) -> Joint:
        if bool((xt["a"] > 100).any()):
            raise RuntimeError("too large")
        return {"a": xt["a"] * 2}

    lanes = Lanes(lanes=1)

    def ask(value: float) -> Any:
        with lanes.joined():
            started.wait()
            return lanes.ask(picky, {"a": torch.full((1, 2), value)}, {"a": torch.zeros(1)})["a"][0, 0].item()

    assert [str(x) for x in together([lambda: ask(1.0), lambda: ask(1000.0), lambda: ask(3.0)])] == [
        "2.0",
        "too large",
        "6.0",
    ]
    lanes.close()


def test_a_stopped_job_ends_before_its_next_evaluation(engine: Engine) -> None:
    plain, _ = engine.check({"names": ["image"], "steps": 500, "seed": 1})
    steps: list[dict[str, Any]] = []
    with pytest.raises(StoppedError):
        engine.run(plain, steps.append, lambda: len(steps) >= 3)
    assert len(steps) == 3


def test_closed_lanes_answer_nobody() -> None:
    lanes = Lanes()
    lanes.close()
    with pytest.raises(StoppedError):
        lanes.ask(lambda xt, t: xt, noise_like({"a": (2,)}, [1], "x"), {"a": torch.zeros(1)})


def test_a_job_is_refused_before_it_runs(engine: Engine) -> None:
    for job, reason in [
        ({"names": ["image"], "given": {"text": "a zebra"}}, "not in this model's vocabulary"),
        ({"names": ["sound"]}, "no modality 'sound'"),
        ({"names": ["image"], "solver": "magic"}, "no solver 'magic'"),
        ({"names": ["image"], "path": {"image": [1, 0.5, 0]}}, "must be 4 timesteps"),
        ({"names": ["image"], "given": {"text": "http://169.254.169.254/"}}, "vocabulary"),
        ({"names": ["text"], "given": {"image": "http://169.254.169.254/"}}, "not opened"),
        ({"names": ["text"], "given": {"image": "file:///etc/passwd"}}, "not opened"),
        ({"verb": "score", "given": {"text": TEXT}}, "two given"),
        ({"names": ["image"], "model": "other"}, "no model 'other'"),
    ]:
        with pytest.raises(ValueError, match=reason):
            engine.check(job)


def test_the_cost_is_what_the_network_sees() -> None:
    seen: list[int] = []
    engine = Engine({"tiny": tiny_model()}, seen=lambda rows, calls: seen.append(rows))
    for job in (
        {"names": ["image"], "n": 3},
        {"names": ["image"], "given": {"text": TEXT}, "guidance": 1.0},
        {"verb": "score", "given": {"text": TEXT, "image": picture_url()}, "draws": 16},
    ):
        plain, cost = engine.check(job)
        seen.clear()
        engine.run(plain, lambda event: None, lambda: False)
        assert sum(seen) == cost, job


def picture_url() -> str:
    from PIL import Image

    return data_url(Image.new("RGB", (64, 64), "white"))
