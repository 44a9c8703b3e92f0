"""Early stopping: when a run ends, which weights it keeps, that measuring changes nothing, and exact resume."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from recommend_worlds import TINY

from unidiffuser.cli import main
from unidiffuser.recommend.evaluation import Follow, full_ranking, sampled_ranking
from unidiffuser.recommend.recipes import RECIPES, WATCHABLE
from unidiffuser.recommend.splits import Protocol
from unidiffuser.recommend.stopping import Watched
from unidiffuser.recommend.store import read_interactions, read_model
from unidiffuser.recommend.training import VALIDATION, Plan, train
from unidiffuser.recommend.truth import write_world

QUICK = {"dim": 8, "epochs": 12, "batch": 64}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopping") / "world"
    write_world(TINY, folder)
    return folder


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def checks(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "training" / VALIDATION).read_text()))


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "training" / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name != "samples_per_second"} for line in found]


@pytest.mark.parametrize(
    ("values", "patience", "every", "last", "kept"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.9], 2, 1, 4, 2),  # an equal one is no better one
        ([0.5, 0.4, 0.6, 0.4, 0.3, 0.2], 2, 1, 5, 3),
        ([0.1, 0.2, 0.1, 0.1], 1, 2, 6, 4),
        ([0.1, 0.2, 0.3], 5, 5, 12, 12),  # never out of patience; the last epoch is measured too
    ],
)
def test_it_ends_when_patience_does_and_keeps_the_best(
    values: list[float], patience: int, every: int, last: int, kept: int, world: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[Mapping[str, torch.Tensor]] = []

    def measure(self: Watched, average: Mapping[str, torch.Tensor]) -> float:
        seen.append({name: x.clone() for name, x in average.items()})
        return values[len(seen) - 1]

    monkeypatch.setattr(Watched, "_measure", measure)
    plan = Plan.of("mf", patience=patience, check_every=every, **QUICK)
    saved = train(world, plan, tmp_path / "run")
    found = checks(tmp_path / "run")
    assert found["kept"] == kept and list(found["epochs"].values()) == values[: len(seen)]
    assert int(list(found["epochs"])[-1]) == last
    asked = len(seen)
    again = train(world, plan, tmp_path / "run")  # it is over: nothing is measured any more
    assert len(seen) == asked and checks(tmp_path / "run") == found
    best = seen[values.index(max(values[: len(seen)]))]
    for model in (saved.model, again.model):
        assert all(torch.equal(x, best[name]) for name, x in model.named_parameters())


@pytest.mark.parametrize("watched", ["full ndcg@20", "sampled hit@5"])
def test_what_is_watched_is_the_evaluations_own_figure_of_the_kept_weights(
    watched: str, world: Path, tmp_path: Path
) -> None:
    train(world, Plan.of("lightgcn-query", patience=3, watched=watched, **QUICK), tmp_path / "run")
    found, data = checks(tmp_path / "run"), read_interactions(tmp_path / "run" / "data")
    model = read_model(tmp_path / "run" / "final").model
    if watched.startswith("full"):
        again = full_ranking(model, data.valid, data.train, data.sizes.items, Follow(None, 0))["ndcg@20"]["mean"]
    else:
        again = sampled_ranking(model, data.valid, data.candidates["valid"], Follow(None, 0))["hit@5"]["mean"]
    assert found["epochs"][str(found["kept"])] == pytest.approx(again, abs=1e-12)
    assert again == max(found["epochs"].values())


def test_all_that_is_measured_can_be_watched(world: Path, tmp_path: Path) -> None:
    model = train(world, Plan.of("popularity"), tmp_path / "run").model
    data = read_interactions(tmp_path / "run" / "data")
    full = full_ranking(model, data.valid, data.train, data.sizes.items, Follow(None, 0))
    sampled = sampled_ranking(model, data.valid, data.candidates["valid"], Follow(None, 0))
    found = {f"full {name}" for name in full} | {f"sampled {name}" for name in sampled if "lists" not in name}
    assert found == set(WATCHABLE)


@pytest.mark.parametrize("name", ["uditsr", "masked"])
def test_measuring_changes_nothing_that_is_trained(name: str, world: Path, tmp_path: Path) -> None:
    train(world, Plan.of(name, seed=1, **QUICK), tmp_path / "plain")
    train(world, Plan.of(name, seed=1, patience=1000, check_every=3, **QUICK), tmp_path / "watched")
    assert lines(tmp_path / "plain") == lines(tmp_path / "watched")
    assert not (tmp_path / "plain" / "training" / VALIDATION).exists()
    described = json.loads((tmp_path / "plain" / "preset.json").read_text())["recipe"]
    later = {"patience", "check_every", "watched", "warmup", "cooldown", "clip", "beta2"}
    assert not later & set(described)  # so that older runs go on


@pytest.mark.parametrize("name", ["lightgcn-query", "uditsr"])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_that_was_stopped_anywhere_ends_in_the_same_bits(name: str, at: int, world: Path, tmp_path: Path) -> None:
    plan = Plan.of(name, seed=2, patience=1, **QUICK)
    train(world, plan, tmp_path / "a")
    stopped: list[int] = []

    def stop(step: int, steps: int, figures: Mapping[str, float]) -> None:
        if step >= at and not stopped:
            stopped.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(world, plan, tmp_path / "b", progress=stop)
    for _ in range(2):  # and once more, when it is over already
        train(world, plan, tmp_path / "b")
        assert weights(tmp_path / "a") == weights(tmp_path / "b")
        assert checks(tmp_path / "a") == checks(tmp_path / "b") and lines(tmp_path / "a") == lines(tmp_path / "b")


def test_the_command_says_what_was_kept(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["recommend", "train", "--data", str(world), "--model", "mf", "--run", str(tmp_path / "run")]
    changes = ["--epochs", "3", "--set", "patience=1", "--set", "watched=full mrr", "--set", "dim=4"]
    assert main([*line, *changes, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["validation"]
    assert found == checks(tmp_path / "run") and f"kept epoch {found['kept']}: full mrr 0." in err


def test_the_published_recipe_stops_as_the_published_code_does() -> None:
    recipe = RECIPES["uditsr-published"]
    assert (recipe.patience, recipe.check_every, recipe.watched) == (10, 1, "sampled hit@5")
    assert all(other.patience == 0 for name, other in RECIPES.items() if name != "uditsr-published")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patience": -1}, "patience is 0"),
        ({"check_every": 0}, "check_every 1 or more"),
        ({"watched": "hit@5"}, "watched is one of full hit@1"),
        ({"watched": "sampled recall@5"}, "not 'sampled recall@5'"),
        ({"patience": 2.5}, "patience of the recipe of mf must be a whole number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Plan.of("mf", **settings)


def test_data_without_what_is_watched_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"u{u} i{i}" for u in range(4) for i in range(2)))
    with pytest.raises(ValueError, match="needs a validation part"):
        train(tmp_path / "a.txt", Plan.of("mf", patience=1), tmp_path / "none")
    (tmp_path / "b.txt").write_text("\n".join(f"u{u} i{(u + i) % 9}" for u in range(9) for i in range(5)))
    plan = Plan.of("mf", patience=1, watched="sampled mrr", protocol=Protocol(negatives=0))
    with pytest.raises(ValueError, match="needs listed candidates"):
        train(tmp_path / "b.txt", plan, tmp_path / "unlisted")
