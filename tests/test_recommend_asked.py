"""Why an item is taken and who it is for: p(query | user, item) and p(user | item), by those models that know them."""

import json
from pathlib import Path

import pytest
import torch
from recommend_worlds import SMALL, TINY, quick_model, world_data

from unidiffuser.cli import main
from unidiffuser.recommend.events import Interactions
from unidiffuser.recommend.recommender import Recommender
from unidiffuser.recommend.store import Saved, write_model
from unidiffuser.recommend.truth import Truth

Asked = tuple[Recommender, Interactions, Truth]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The masked joint after a short training on a world."""
    folder = tmp_path_factory.mktemp("asked")
    data, truth = world_data(SMALL, folder / "world")
    model = quick_model("masked", data, folder)
    return Recommender(Saved(model=model, names=data.names, training={})), data, truth


def test_the_demand_of_a_recommendation_is_mostly_of_its_items_topic(asked: Asked) -> None:
    model, data, truth = asked
    topic, right = truth.oracle.world.topic, []
    for row in (~data.test.is_search).nonzero()[:60, 0].tolist():
        user, item = data.names.users[int(data.test.user[row])], data.names.items[int(data.test.item[row])]
        answer = model.demand(user, item, 3)
        assert answer.known_user and len(answer.labels) == 3
        right.append(int(answer.labels[0]) // SMALL.words == topic[int(item)])
    assert sum(right) / len(right) > 0.5  # one in eight by chance


def test_an_audience_is_of_users_who_take_the_item_more_often_than_others_do(asked: Asked) -> None:
    model, data, truth = asked
    everyone = torch.arange(data.sizes.users)
    p = truth.oracle.probabilities(everyone, torch.zeros(len(everyone), 1, dtype=torch.int64))  # (U, I)
    lifts = []
    for item in range(0, data.sizes.items, 5):
        had = data.train.user[data.train.item == item]
        chosen = model.audience(data.names.items[item], 20)
        rows = torch.tensor(data.names.users.rows(chosen.labels))
        assert len(rows) == 20 and not bool(torch.isin(rows, had).any())
        assert list(chosen.scores) == sorted(chosen.scores, reverse=True)
        lifts.append(float(p[rows, item].mean() / p[:, item].mean()))
    assert sum(lifts) / len(lifts) > 1.3
    again = model.audience(data.names.items[0], data.sizes.users, again=True)
    assert {data.names.users[u] for u in data.train.user[data.train.item == 0].tolist()} <= set(again.labels)


def test_the_commands_say_the_same(asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, _ = asked
    write_model(tmp_path / "final", Saved(model=model.model, names=data.names, training={}))
    item = data.names.items[4]
    line = ["recommend", "demand", "--run", str(tmp_path), "--user", "7", "--item", item, "-k", "3", "--json"]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(row["word"] for row in found["words"]) == model.demand("7", item, 3).labels
    assert main(["recommend", "audience", "--run", str(tmp_path), "--item", item, "-k", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(row["user"] for row in found["users"]) == model.audience(item, 3).labels
    assert main([*line[:6], "--item", "no such thing"]) == 2
    assert "was never seen in training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [("mf", {}, False), ("uditsr", {"generator": False}, False), ("uditsr", {}, True)],
)
def test_models_that_cannot_answer_say_so(name: str, changes: dict[str, bool], why: bool, tmp_path: Path) -> None:
    data, _ = world_data(TINY, tmp_path / "world", negatives=5)
    model = quick_model(name, data, tmp_path, dim=4, epochs=1, **changes)
    recommender = Recommender(Saved(model=model, names=data.names, training={}))
    user, item = data.names.users[0], data.names.items[0]
    with pytest.raises(ValueError, match=f"{name} cannot say who an item is for"):
        recommender.audience(item)
    if why:
        assert recommender.demand(user, item, 2).labels
        return
    with pytest.raises(ValueError, match=f"{name} cannot say why an item is taken"):
        recommender.demand(user, item)
