"""Evaluation of models that are right, wrong or mute by construction."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from unidiffuser import evaluate
from unidiffuser.datasets.scenes import Scenes, frequencies, grammar
from unidiffuser.joint import Joint
from unidiffuser.metrics import total_variation
from unidiffuser.process import Cosine

SEED, N = 3, 16
WORLD = Scenes(seed=99)
ASKED = [Scenes(seed=SEED, split=split)[i] for split in ("test", "heldout") for i in range(N)]


@dataclass
class Fake:
    """A model that answers from the true world: with true pairs, with pairs some scenes apart, or nothing readable."""

    shift: int = 0
    mute: bool = False
    process: Cosine = field(default_factory=Cosine)
    device: str = "cpu"
    modalities: tuple[str, ...] = ("image", "text")
    seeds: list[int] = field(default_factory=list)

    def sample(self, *names: str, n: int, seed: int, steps: int = 1, **given: Any) -> list[dict[str, Any]]:
        self.seeds += range(seed, seed + n)
        rows = [{m: v[k] if isinstance(v, list) else v for m, v in given.items()} for k in range(n)]
        return [self._answer(seed + k, row) for k, row in enumerate(rows)]

    def _answer(self, seed: int, given: dict[str, Any]) -> dict[str, Any]:
        asked = [i for i, pair in enumerate(ASKED) if given and all(pair[m] == raw for m, raw in given.items())]
        if asked:
            image = text = ASKED[(asked[0] + self.shift) % len(ASKED)]
        else:
            image, text = WORLD[seed % 10_000], WORLD[seed % 10_000 + self.shift]
        if self.mute:
            return {"image": image["image"].resize((8, 8)).resize((64, 64)), "text": text["text"] + " and"}
        return {"image": image["image"], "text": text["text"]}

    def encode(self, **values: list[Any]) -> Joint:
        place = {
            m: [next(i for i, pair in enumerate(ASKED) if pair[m] == raw) for raw in raws] for m, raws in values.items()
        }
        return {m: torch.tensor(places).reshape(-1, 1).float() for m, places in place.items()}

    def decode(self, joint: Joint) -> dict[str, list[Any]]:
        return {"image": [ASKED[int(i) + self.shift]["image"] for i in joint["image"][:, 0]]}

    def posterior(self, xt: Joint, t: dict[str, torch.Tensor]) -> Joint:
        return xt


def run(model: Fake, **options: Any) -> dict[str, Any]:
    return evaluate.evaluate_scenes(model, N, seed=SEED, batch=N, **options)  # type: ignore[arg-type]


def test_a_true_model_is_true_everywhere() -> None:
    rows = run(Fake())["rows"]
    assert list(rows) == list(evaluate.PROMISES)
    assert {name: row["rate"] for name, row in rows.items() if row.get("rate", 1.0) != 1.0} == {}
    assert all(row["oracle"]["rate"] == 1.0 for row in rows.values() if "oracle" in row)
    for name, row in rows.items():
        if name.startswith("facts"):
            assert row["distance"] < 2.5 * row["floor"], name


def test_a_false_model_is_false_and_it_says_in_what() -> None:
    rows = run(Fake(shift=1))["rows"]
    for name in ("image_given_text", "image_given_text_heldout", "text_given_image", "joint", "autoencoder"):
        assert rows[name]["rate"] < 0.2, name
        assert rows[name]["wrong"]["colour"] > 8
    assert rows["grammar"]["rate"] == 1.0


def test_what_cannot_be_read_is_wrong() -> None:
    rows = run(Fake(mute=True))["rows"]
    assert rows["joint"]["rate"] == rows["grammar"]["rate"] == rows["text_given_image"]["rate"] == 0.0
    assert rows["facts_text"]["distance"] == 1.0
    assert rows["image_given_text"]["rate"] < 0.3


def test_the_same_seed_gives_the_same_numbers_in_any_batch() -> None:
    seen: list[tuple[str, int, int]] = []
    a = run(Fake(), progress=lambda *what: seen.append(what))
    model = Fake()
    b = evaluate.evaluate_scenes(model, N, seed=SEED, batch=5)  # type: ignore[arg-type]
    assert len(model.seeds) == len(set(model.seeds)) > 7 * N
    for report in (a, b):
        del report["rows"]["seconds"], report["uses"]
    assert a == b
    assert ("joint", N, N) in seen


def test_the_report_is_json_and_a_table() -> None:
    report = run(Fake(), settings={"steps": 3})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    table = evaluate.markdown(report)
    assert "| joint sample: caption and picture agree | 100.0 % (80.6 to 100.0) | 100.0 % | 90 % | 99 % |" in table
    assert len({line.count("|") for line in table.split("\n\n")[1].splitlines()}) == 1


@pytest.mark.parametrize("rate, shown", [(0.89, "90 %, missed"), (0.9, "90 %")])
def test_the_table_says_which_rates_are_too_low(rate: float, shown: str) -> None:
    report = run(Fake())
    report["rows"]["joint"]["rate"] = rate
    assert f"| {shown} | 99 % |" in evaluate.markdown(report)


def test_the_table_says_which_distances_are_too_large() -> None:
    report = run(Fake())
    report["rows"]["facts_image"]["distance"] = 0.061
    assert "| 0.06, missed | 0.02 |" in evaluate.markdown(report)
    report["rows"]["facts_image"]["distance"] = 0.06
    [row] = [line for line in evaluate.markdown(report).splitlines() if "pictures alone" in line]
    assert "| 0.06 | 0.02 |" in row


def test_frequencies_are_those_of_the_world() -> None:
    truth = Scenes(seed=1, split="test")
    seen = frequencies.count(truth.facts(i) for i in range(4000))
    said = frequencies.count(grammar.read(truth[i]["text"]) for i in range(1000))
    assert dict(total_variation(seen, frequencies.law(said=False)))["worst"] < 0.025
    assert dict(total_variation(said, frequencies.law(said=True)))["worst"] < 0.05
    assert all(sum(p.values()) == pytest.approx(1) for p in frequencies.law(said=True).values())


@pytest.mark.parametrize("samples, seed, batch", [(7, 0, 1), (10_001, 0, 1), (8, -1, 1), (8, 0, 0)])
def test_bad_numbers_are_refused(samples: int, seed: int, batch: int) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        evaluate.evaluate_scenes(Fake(), samples, seed=seed, batch=batch)  # type: ignore[arg-type]


def test_a_model_of_other_things_is_refused() -> None:
    with pytest.raises(ValueError, match="no modality text"):
        run(Fake(modalities=("image", "sound")))
