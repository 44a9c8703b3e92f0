"""Runs of `recommend`: the commands from end to end, exact resume, what is kept, and what is refused."""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from recommend_worlds import QUICK, TINY, world_data

from unidiffuser.checkpoints import ModelError
from unidiffuser.cli import main
from unidiffuser.recommend.batches import Batches
from unidiffuser.recommend.models.uditsr import UDITSR
from unidiffuser.recommend.recommender import Recommender
from unidiffuser.recommend.store import read_interactions
from unidiffuser.recommend.training import Plan, fit_model, train
from unidiffuser.recommend.truth import write_world


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 and "--json" in words else out, err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "world"
    write_world(TINY, folder)
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    """A trained run."""
    train(world, Plan.of("lightgcn-query", dim=8, epochs=5), world.parent / "run")
    return world.parent / "run"


def test_the_commands_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, folder = str(tmp_path / "world"), str(tmp_path / "runs" / "u")
    sizes = ("--users", "60", "--items", "40", "--events", "8", "--seed", "0", "--set", "topics=5")
    assert answer(capsys, "recommend", "make-world", *sizes, "--out", world + "/")[0] == 0
    code, found, _ = answer(capsys, "data", "check", world, "--json")
    assert code == 0 and (found["format"], found["events"]) == ("recbole", 480)
    line = ("recommend", "train", "--data", world + "/", "--model", "uditsr", "--run", folder, "--seed", "0")
    code, _, err = answer(capsys, *line, "--epochs", "3", "--set", "dim=8")
    assert code == 0 and "test events:" in err
    code, report, _ = answer(capsys, "recommend", "evaluate", "--run", folder, "--json")
    assert code == 0
    for who in ("model", "oracle"):
        assert set(report[who]) == {"recommendation", "search", "words", "demand"}
        for what in ("recommendation", "search"):
            assert 0 <= report[who][what]["full"]["ndcg@20"]["mean"] <= 1
            assert report[who][what]["sampled"]["lists"] == report[who][what]["events"]
    code, found, _ = answer(capsys, "recommend", "top", "--run", folder, "--user", "17", "-k", "10", "--json")
    assert code == 0 and found["known_user"] and len(found["items"]) == 10
    assert [row["score"] for row in found["items"]] == sorted((row["score"] for row in found["items"]), reverse=True)
    data = read_interactions(Path(folder) / "data")
    had = data.train.item[data.train.user == data.names.users.row_of["17"]].tolist()
    assert not {row["item"] for row in found["items"]} & {data.names.items[i] for i in had}
    query = ("recommend", "top", "--run", folder, "--user", "17", "--query", "3 14 999", "-k", "10", "--json")
    code, found, err = answer(capsys, *query)
    assert code == 0 and (found["query"], found["unknown_words"]) == (["3", "14"], ["999"]) and "999" in err
    code, found, _ = answer(capsys, "recommend", "suggest", "--run", folder, "--user", "17", "-k", "3", "--json")
    assert code == 0 and len(found["words"]) == 3
    code, table, _ = answer(capsys, "recommend", "evaluate", "--run", folder, "--part", "valid")
    assert code == 0 and "oracle" in table.splitlines()[0] and "search full ndcg@20" in table


def test_a_query_changes_what_is_found_and_again_brings_back_what_was_had(run: Path) -> None:
    model = Recommender.load(run)
    plain, asked = model.recommend("3", 5), model.search("3", ["1"], 5)
    assert plain.labels != asked.labels
    everything = model.recommend("3", 1000, again=True)
    had = model.history.pairs(torch.tensor([model.names.users.row_of["3"]]))[1].unique()
    assert len(everything.labels) == TINY.items and len(model.recommend("3", 1000).labels) == TINY.items - len(had)


def test_the_unknown_are_answered_sensibly(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Recommender.load(run)
    stranger = model.recommend("nobody", 5)
    assert not stranger.known_user and stranger.labels == model.search(None, [], 5).labels
    assert not model.suggest("nobody").known_user
    words = model.search("3", ["unheard", "of"], 5)
    assert words.unknown_words == ("unheard", "of") and words.labels == model.recommend("3", 5).labels
    code, _, err = answer(capsys, "recommend", "top", "--run", str(run), "--user", "x", "--query", "y", "--json")
    assert code == 0 and "never seen" in err and "this is a recommendation" in err


def test_many_users_at_once_get_what_each_gets_alone(run: Path) -> None:
    model = Recommender.load(run)
    items, scores = model.top(torch.arange(10), torch.zeros(10, 1, dtype=torch.int64), 4)
    for row in range(10):
        alone = model.recommend(model.names.users[row], 4)
        assert alone.labels == tuple(model.names.items[i] for i in items[row].tolist())
        assert alone.scores == pytest.approx(tuple(scores[row].tolist()), abs=1e-5)


def test_fitting_from_python_is_the_command(world: Path, run: Path) -> None:
    again = Recommender.fit(world, world.parent / "again", "lightgcn-query", dim=8, epochs=5)
    assert again.search("3", ["1"], 7) == Recommender.load(run).search("3", ["1"], 7)


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def stopped_and_gone_on(table: Path, plan: Plan, run: Path) -> None:
    """Train with a stop in the middle of an epoch."""
    stopped: list[int] = []

    def stop(step: int, steps: int, figures: Mapping[str, float]) -> None:
        if step > steps // 2 and not stopped:
            stopped.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(table, plan, run, progress=stop)
    assert not (run / "final").exists()
    (run / ".final.new-1").mkdir()  # as a killed process leaves it
    train(table, plan, run)
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("name", [*sorted(set(QUICK) - {"popularity"}), "uditsr-mlp", "uditsr-published"])
def test_a_run_that_was_stopped_ends_in_the_same_bits(name: str, world: Path, tmp_path: Path) -> None:
    plan = Plan.of(name, seed=4, dim=8, epochs=4, batch=32)
    train(world, plan, tmp_path / "a")
    stopped_and_gone_on(world, plan, tmp_path / "b")
    train(world, Plan.of(name, seed=5, dim=8, epochs=4, batch=32), tmp_path / "c")
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    steps = [json.loads(x)["step"] for x in (tmp_path / "b" / "training" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and len(steps) > 4


def test_so_does_one_with_weights_that_never_had_a_gradient(tmp_path: Path) -> None:
    """Of searches alone, and without supervision, the demand generator learns nothing."""
    lines = [f"u{u} i{(u * k) % 7} w{k}" for u in range(12) for k in range(1, 6)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    plan = Plan.of("uditsr", dim=4, epochs=4, batch=16, supervision=0.0)
    train(tmp_path / "a.txt", plan, tmp_path / "a")
    stopped_and_gone_on(tmp_path / "a.txt", plan, tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_the_published_recipe_is_plain_adamw_at_one_rate(tmp_path: Path) -> None:
    data, _ = world_data(TINY, tmp_path / "world")
    plan = Plan.of("uditsr-published", dim=8, epochs=3, batch=64, lr=1e-3, patience=0)
    found = fit_model(data, plan, tmp_path / "training")
    torch.manual_seed(0)
    model = UDITSR(found.config, data.sizes, data.train)
    batches = Batches(data.train, data.sizes.items, 64, 0)
    decays = [(True, 1e-5), (False, 0.0)]
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == matrix], "weight_decay": decay}
        for matrix, decay in decays
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-3)
    for step in range(3 * batches.per_epoch):
        optimiser.zero_grad()
        model.loss(*batches(step))[0].backward()
        optimiser.step()
    for name in ("user", "item", "word"):
        torch.testing.assert_close(getattr(found, name), getattr(model, name).detach(), atol=1e-4, rtol=0)


def test_a_run_can_be_measured_and_asked_wherever_its_table_has_gone(world: Path, run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    assert Recommender.load(moved).recommend("3", 5) == Recommender.load(run).recommend("3", 5)
    assert main(["recommend", "evaluate", "--run", str(moved), "--quiet"]) == 0


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(world: Path, run: Path, tmp_path: Path) -> None:
    before = weights(run)
    with pytest.raises(ValueError, match=r"other settings.*recipe\.settings\.dim"):
        train(world, Plan.of("lightgcn-query", dim=9, epochs=5), run)
    assert weights(run) == before
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no run of this kind"):
        train(world, Plan.of("mf"), tmp_path)
    assert (tmp_path / "data" / "precious.txt").read_text() == "mine"


def test_settings_that_matter_when_asked_may_change_and_others_not(world: Path, run: Path, tmp_path: Path) -> None:
    train(world, Plan.of("diffusion", dim=8, width=16, epochs=2), tmp_path / "d")
    plain, guided = (Recommender.load(tmp_path / "d", guidance=g).search("3", ["1"], 5) for g in (0.0, 3))
    assert plain.scores != guided.scores
    assert len(Recommender.load(tmp_path / "d", samples=4, steps=3).recommend("3", 5).labels) == 5
    with pytest.raises(ValueError, match="dim of a trained diffusion cannot be changed any more"):
        Recommender.load(tmp_path / "d", dim=4)
    with pytest.raises(ValueError, match="nothing can"):
        Recommender.load(run, guidance=1.0)
    with pytest.raises(ValueError, match="guidance of diffusion must be a number"):
        Recommender.load(tmp_path / "d", guidance="strong")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("top", "--run", "RUN", "--user", "3", "-k", "0"), 2, "k must be a whole number from 1"),
        (("top", "--run", "RUN/none", "--user", "3"), 1, "there is no model in"),
        (("top", "--run", "RUN", "--user", "3", "--set", "dim=4"), 2, "cannot be changed"),
        (("evaluate", "--run", "RUN", "--part", "all"), 2, "there is no part 'all'"),
        (("train", "--data", "RUN/none", "--model", "mf", "--run", "NEW"), 2, "there is no"),
        (("train", "--data", "WORLD", "--model", "tree", "--run", "NEW"), 2, "there is no model 'tree'; there are"),
        (("train", "--data", "WORLD", "--model", "mf", "--run", "NEW", "--set", "dim=x"), 2, "a whole number"),
        (("train", "--data", "WORLD", "--model", "mf", "--run", "NEW", "--set", "lr=0"), 2, "lr must be"),
        (("train", "--data", "WORLD", "--model", "mf", "--run", "NEW", "--set", "lr=fast"), 2, "lr of the recipe"),
        (("train", "--data", "WORLD", "--model", "mf", "--run", "NEW", "--epochs", "-1"), 2, "epochs must be"),
        (("train", "--data", "WORLD", "--model", "mf", "--run", "NEW", "--seed", "-1"), 2, "seed"),
        (("train", "--data", "WORLD", "--model", "mf", "--run", "NEW", "--negatives", "-3"), 2, "negatives"),
        (("make-world", "--out", "WORLD"), 2, "--force"),
        (("make-world", "--out", "NEW", "--users", "0"), 2, "at least one of its users"),
        (("make-world", "--out", "NEW", "--set", "gravity=9"), 2, "a world has no setting gravity"),
        (("make-world", "--out", "NEW", "--set", "topics=2.5"), 2, "topics of a world must be a whole number"),
        (("convert", "--data", "WORLD", "--out", "WORLD"), 2, "--force"),
        (("dance",), 2, "there is no verb 'recommend dance'"),
    ],
)
def test_mistakes_get_one_sentence(
    words: tuple[str, ...], code: int, said: str, world: Path, run: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"RUN": str(run), "WORLD": str(world), "NEW": str(tmp_path / "new")}
    line = [places.get(w.partition("/")[0], w.partition("/")[0]) + "".join(w.partition("/")[1:]) for w in words]
    found, out, err = answer(capsys, "recommend", *line)
    assert found == code and said in err and out == "" and len(err.splitlines()) == 1, err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["users.txt", "config.json", "model.safetensors", "checksums.json"])
def test_a_damaged_model_is_refused(what: str, run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    file = moved / "final" / what
    file.write_bytes(file.read_bytes()[:-9] + b"x")
    with pytest.raises(ModelError):
        Recommender.load(moved)
    file.unlink()
    with pytest.raises(ModelError):
        Recommender.load(moved)


def test_data_of_a_run_that_do_not_fit_their_id_maps_are_refused(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run / "data", tmp_path / "data")
    (moved / "users.txt").write_text("0\n1\n")
    with pytest.raises(ModelError, match="does not fit the id maps"):
        read_interactions(moved)


def test_one_user_with_one_event_and_one_item_trains_and_answers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only one\n")
    for name in QUICK:
        changes = {} if name == "popularity" else {"epochs": 1, "dim": 8}
        train(tmp_path / "a.txt", Plan.of(name, **changes), tmp_path / name)
        model = Recommender.load(tmp_path / name)
        assert model.recommend("only", 3).labels == ()
        assert model.recommend("only", 3, again=True).labels == ("one",)
        assert model.suggest("only").labels == ()
    assert main(["recommend", "evaluate", "--run", str(tmp_path / "mf")]) == 2


def test_users_who_had_everything_leave_nothing_to_compare_with_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("".join(f"u{u} i{i} red\n" for u in range(4) for i in range(3)))
    train(tmp_path / "a.txt", Plan.of("lightgcn-query", epochs=2, dim=4), tmp_path / "run")
    code, report, _ = answer(capsys, "recommend", "evaluate", "--run", str(tmp_path / "run"), "--json")
    assert code == 0 and "oracle" not in report
    assert report["model"]["search"]["sampled"] == {"lists": 0, "lists without negatives": 4}
    assert report["model"]["search"]["full"]["mrr"]["mean"] == 1.0 and "gauc" not in report["model"]["search"]["full"]
    assert report["counts"]["test events with fewer than 99 negatives left"] == 4
