"""The best items of many users at once: in parts, by a product, and by a shortlist."""

import json
from pathlib import Path

import pytest
import torch
from recommend_worlds import TINY

from unidiffuser.cli import main
from unidiffuser.recommend import recommender
from unidiffuser.recommend.recommender import Recommender
from unidiffuser.recommend.training import Plan, train
from unidiffuser.recommend.truth import write_world

USERS = torch.tensor([0, 5, -1, 17, 39])
WORDS = torch.tensor([[0, 0], [1, 2], [0, 0], [0, 0], [3, 0]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("top")
    write_world(TINY, folder / "world")
    train(folder / "world", Plan.of("uditsr", dim=8, epochs=20, batch=64), folder / "run")
    return folder / "run"


def test_in_parts_is_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recommender.load(run)
    items, scores = model.top(USERS, WORDS, 6)
    assert items.shape == scores.shape == (5, 6)
    monkeypatch.setattr(recommender, "CELLS", 2 * TINY.items)
    again = model.top(USERS, WORDS, 6)
    assert torch.equal(items, again[0])
    torch.testing.assert_close(scores, again[1])


def test_a_shortlist_of_everything_is_exact(run: Path) -> None:
    exact, listed = (Recommender.load(run, shortlist=n) for n in (0, TINY.items))
    for again in (False, True):
        items, scores = exact.top(USERS, WORDS, 7, again=again)
        found = listed.top(USERS, WORDS, 7, again=again)
        assert torch.equal(items, found[0])
        torch.testing.assert_close(scores, found[1])


def test_a_shortlist_has_exact_scores_nothing_that_was_had_and_most_of_the_best(run: Path) -> None:
    exact, listed = Recommender.load(run), Recommender.load(run, shortlist=12)
    users = torch.arange(TINY.users)
    words = torch.zeros(TINY.users, 1, dtype=torch.int64)
    items, scores = listed.top(users, words, 5)
    torch.testing.assert_close(scores, exact.model.scores(users, words, items))
    row, had = exact.history.pairs(users)
    assert not bool((items[row] == had[:, None]).any())
    best, _ = exact.top(users, words, 5)
    shared = (items[:, :, None] == best[:, None, :]).any(1).double().mean()
    assert float(shared) > 0.8  # 12 of 30 by chance would hold 0.4
    assert bool((scores[:, :-1] >= scores[:, 1:]).all())
    more, _ = listed.top(users, words, 20)
    assert more.shape == (TINY.users, 20)


def test_a_shortlist_changes_only_how_it_is_asked(run: Path) -> None:
    assert Recommender.load(run, shortlist=12).search("3", ["1"], 5) == Recommender.load(run).search("3", ["1"], 5)
    with pytest.raises(ValueError, match="shortlist is -1"):
        Recommender.load(run, shortlist=-2)


def test_an_answer_says_whether_it_is_of_a_shortlist(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for settings, expected in (([], 0), (["--set", "shortlist=12"], 12)):
        assert main(["recommend", "top", "--run", str(run), "--user", "3", "--json", *settings]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["shortlist"] == expected
        assert ("shortlist=0 compares all" in err) == bool(expected)


def test_a_query_of_nobody_in_particular(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "top", "--run", str(run), "--query", "1", "-k", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["user"] is None and "never seen" not in err
    assert tuple(row["item"] for row in found["items"]) == Recommender.load(run).search(None, ["1"], 4).labels
    assert main(["recommend", "top", "--run", str(run)]) == 2
    assert "give --user ID, --query WORDS, or both" in capsys.readouterr().err
