"""Everything that the library can be told about a sample a job can be told too, and gives the library's own pixels.

Only jobs that ask the same Denoiser share a forward: other labels wait for the same lanes, and what remembers is alone.
"""

import threading
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from crowd import go, together
from running_server import data_url
from tiny_model import tiny_model

from unidiffuser import Guidance, UniDiffuser
from unidiffuser.recipe import fingerprint
from unidiffuser.reuse import Reuse
from unidiffuser.server.engine import Engine
from unidiffuser.server.limits import TurnedAwayError
from unidiffuser.server.openai_jobs import size_asked
from unidiffuser.server.worker import Worker

TEXT = "a large red circle"
REUSE = {"every": 2, "outer": 1}
GUIDED = Guidance(scale=2.0, interval=(0.2, 0.8), against="unconditional")
GUIDED_JOB = {"guidance": 2.0, "guidance_interval": [0.2, 0.8], "guidance_against": "unconditional"}
# what a job says -> what the library is told
SAID: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"label": 1}, {"label": 1}),
    ({"label": 2, "guidance": 1.5}, {"label": 2, "guidance": 1.5}),
    ({"reuse": REUSE, "steps": 6}, {"reuse": Reuse(), "steps": 6}),
    ({"reuse": REUSE, "steps": 4, "n": 20}, {"reuse": Reuse(), "steps": 4, "n": 20}),  # two runs of the solver
    (
        {"reuse": REUSE, "steps": 5, "label": 1, **GUIDED_JOB},
        {"reuse": Reuse(), "steps": 5, "label": 1, "guidance": GUIDED},
    ),
    ({**GUIDED_JOB, "steps": 5}, {"guidance": GUIDED, "steps": 5}),
]  # fmt: skip


def model_with_labels() -> UniDiffuser:
    return tiny_model(depth=4, labels=3)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine({"tiny": model_with_labels()}, lanes=2)


def pixels(engine: Engine, job: dict[str, Any]) -> list[str]:
    return [sample["pixels"] for sample in go(engine, {"names": ["image"], "given": {"text": TEXT}, "seed": 5, **job})]


def test_whatever_the_library_can_be_told_alone_and_in_a_crowd(engine: Engine) -> None:
    model = model_with_labels()
    expected = [
        [fingerprint(sample["image"]) for sample in model.sample("image", text=TEXT, seed=5, **told)]
        for _, told in SAID
    ]
    assert len({each[0] for each in expected}) == len(SAID)  # every setting changes the picture
    assert [pixels(engine, job) for job, _ in SAID] == expected
    crowd = together([lambda job=job: pixels(engine, job) for job, _ in SAID * 2])  # type: ignore[misc]
    assert crowd == expected * 2


def test_a_chain_takes_them_too(engine: Engine) -> None:
    names = ["text", "image", "text", "image"]
    [chain] = model_with_labels().chain(*names, text=TEXT, seed=6, label=2, reuse=Reuse(), steps=4)
    job = {"verb": "chain", "names": names, "given": {"text": TEXT}, "seed": 6, "label": 2, "reuse": REUSE, "steps": 4}
    assert [row["values"].get("text") for row in go(engine, job)] == [link["text"] for link in chain]


def test_what_the_model_has_of_its_own_is_said_in_the_job(engine: Engine) -> None:
    plain, _ = engine.check({"names": ["image"]})
    assert (plain["label"], plain["reuse"], plain["size"], plain["steps"]) == (0, None, None, 3)
    again, _ = engine.check(plain)
    assert again == plain
    [described] = engine.describe()
    assert described["labels"] == 3
    assert [(m["size"], m["multiple"]) for m in described["modalities"]] == [([64, 64], None), (None, None)]


def test_an_interpolation_takes_its_steps(engine: Engine) -> None:
    job = {"verb": "interpolate", "names": ["text"], "given": {"text": TEXT}, "second": {"text": "a small blue square"}}
    plain, cost = engine.check({**job, "frames": 2, "steps": 3})
    assert cost == 2 * 3 * (2 + 2)
    assert len(engine.run(plain, lambda event: None, lambda: False)["samples"]) == 2
    assert engine.check({**job, "frames": 2})[0]["steps"] == 16


def test_only_one_label_is_in_a_forward_and_those_of_one_label_share_it() -> None:
    model, seen = model_with_labels(), []

    def note(network: Any, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[2])

    handle = model.network.register_forward_pre_hook(note)
    shared = Engine({"tiny": model}, lanes=1)
    together([lambda k=k: pixels(shared, {"label": k % 2, "steps": 12}) for k in range(8)])  # type: ignore[misc]
    handle.remove()
    assert all(len(torch.unique(label)) == 1 for label in seen)
    assert {int(label[0]) for label in seen} == {0, 1}
    assert sum(map(len, seen)) == 8 * 12 and len(seen) < 8 * 12 / 2


def test_a_job_that_remembers_is_alone_in_its_forwards() -> None:
    seen: list[int] = []
    shared = Engine({"tiny": model_with_labels()}, lanes=1, seen=lambda rows, calls: seen.append(calls))
    together([lambda: pixels(shared, {"reuse": REUSE, "steps": 6})] * 4)
    assert set(seen) == {1} and len(seen) == 4 * 6


def test_two_models_share_the_lanes_and_no_forward() -> None:
    one, two = tiny_model(), tiny_model(seed=1)
    both = Engine({"one": one, "two": two}, lanes=1)
    found = together([lambda k=k: pixels(both, {"model": ("one", "two")[k % 2]}) for k in range(6)])  # type: ignore[misc]
    expected = [fingerprint(m.sample("image", text=TEXT, seed=5)[0]["image"]) for m in (one, two)]
    assert [each[0] for each in found] == expected * 3


def test_a_converted_model_makes_every_size_that_it_can(formats: Any) -> None:
    model: UniDiffuser = formats.model()
    shared = Engine({"released": model})
    [described] = shared.describe()
    picture = next(m for m in described["modalities"] if m["media_type"] == "image")
    assert (
        picture["size"] == list(model.modalities["image"].size)
        and picture["multiple"] == model.modalities["image"].multiple
    )
    job = {"names": ["image"], "given": {"text": "cat"}, "size": [64, 96], "steps": 2, "seed": 5, "label": 1}
    [sample] = model.sample("image", text="cat", size=(64, 96), steps=2, seed=5, label=1)
    [drawn] = go(shared, job)
    assert sample["image"].size == (64, 96) and drawn["pixels"] == fingerprint(sample["image"])
    # what is given is read at the size that was asked for
    loose = {"looseness": {"image": 0.4}}
    near = {**job, "given": {"image": data_url(sample["image"]), "text": "cat"}, **loose}
    told = {"size": (64, 96), "steps": 2, "seed": 5, "label": 1, "text": "cat", **loose}
    [varied] = model.sample("image", image=sample["image"], **told)
    assert go(shared, near)[0]["pixels"] == fingerprint(varied["image"])
    own = shared.check({**job, "size": None})[1]
    wide = shared.check({**job, "size": [4 * side for side in picture["size"]]})[1]
    assert shared.check(job)[1] == own and wide == 16 * own
    with pytest.raises(ValueError, match="multiples of"):
        shared.check({**job, "size": [65, 96]})


def test_sizes_in_openais_words() -> None:
    fixed, free = ({"size": [64, 64], "multiple": multiple} for multiple in (None, 16))
    assert [size_asked(size, free) for size in (None, "auto", "64x64", "96x32")] == [[64, 64]] * 3 + [[96, 32]]
    for size, picture in [
        ("96x32", fixed),
        ("96X32", free),
        ("096x32", free),
        ("96x32x3", free),
        ("", free),
        ("９6x32", free),
    ]:
        with pytest.raises(TurnedAwayError):
            size_asked(size, picture)


def test_a_fault_of_our_own_is_told_without_its_insides() -> None:
    said: list[bytes] = []

    class Line:
        def send_bytes(self, data: bytes) -> None:
            said.append(data)

    class Failing:
        def run(self, *_: Any) -> dict[str, Any]:
            raise RuntimeError("CUDA out of memory at 0x7f0012 in /src/secret.py")

    worker: Any = Worker(Line())  # type: ignore[arg-type]
    worker._stopped["a"] = threading.Event()
    worker._run(Failing(), "a", {})
    assert len(said) == 1 and b'"broken"' in said[0] and b"out of memory" in said[0]
    assert b"0x7f" not in said[0] and b"secret" not in said[0] and worker._stopped == {}
