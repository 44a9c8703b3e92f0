"""Keeping, searching and learning from the history, without a server: the store, the ranking, the states."""

import asyncio
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from test_server_queue import row

from unidiffuser.server import history as histories
from unidiffuser.server import taste
from unidiffuser.server.history import History
from unidiffuser.server.limits import TurnedAwayError
from unidiffuser.server.sentences import said_in, words_of
from unidiffuser.server.store import Row, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path)
    yield found
    found.close()


def made(store: Store, text: str, *samples: str, owner: str = "a", **values: Any) -> Row:
    """A job that is done, given a sentence."""
    found = [{"values": {"text": said, "image": {"type": "image/png", "url": "x"}}} for said in samples or (text,)]
    job = row(owner=owner, state="done", job={"given": {"text": text}}, result={"samples": found}, **values)
    store.add(job)
    return job


# ---- marks -----------------------------------------------------------------------------------------------------------


def test_a_mark_survives_a_restart_and_goes_with_its_job(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, other = made(store, "red", "red", "red"), made(store, "blue")
    assert store.kept.add("a", one.id, 1) and store.kept.add("a", one.id, 1) and store.kept.add("a", other.id, 0)
    store.close()
    again = Store(tmp_path)
    again.recover()
    assert {(mark.job, mark.sample) for mark in again.kept.of("a")} == {(one.id, 1), (other.id, 0)}
    again.kept.remove("a", other.id, 0)
    again.delete(one.id)
    assert again.kept.of("a") == []
    again.close()


def test_nobody_marks_what_is_not_theirs_or_not_done(store: Store) -> None:
    mine = made(store, "red")
    waits = row(owner="a")
    store.add(waits)
    assert not store.kept.add("b", mine.id, 0) and not store.kept.add("a", waits.id, 0)
    assert store.kept.add("a", mine.id, 0)
    store.kept.remove("b", mine.id, 0)
    assert len(store.kept.of("a")) == 1 and store.kept.of("b") == []


def test_what_is_kept_is_bounded_and_outlives_the_rest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unidiffuser.server.kept.MOST", 2)
    jobs = [made(store, "red", created=float(k)) for k in range(6)]
    assert [store.kept.add("a", job.id, 0) for job in jobs[:3]] == [True, True, False]
    store.prune(1)
    assert {job.created for job in store.history("a", 1e12, 50)} == {0.0, 1.0, 5.0}


# ---- words -----------------------------------------------------------------------------------------------------------


def test_words_are_read_without_case_and_marks() -> None:
    assert words_of('A "Große" red-circle, don\'t ___ 2nd_one!') == [
        "a", "grosse", "red", "circle", "don't", "2nd", "one",
    ]  # fmt: skip
    assert words_of("___ !! 🟥") == []


def test_what_a_job_says_is_its_sentences_and_the_truth_of_its_pictures() -> None:
    samples = [
        {"values": {"text": "a red circle", "vector": [1.0]}, "truth": {"picture": "a large red star"}},
        {"values": {"image": {"type": "image/png", "url": "x"}}, "truth": {"picture": None}},
    ]
    given = {"text": "a circle", "vector": [0.5], "image": {"type": "image/png", "data": "aaaa"}}
    job = row(state="done", job={"given": given, "second": {"text": "a ring"}}, result={"samples": samples})
    said = said_in(job)
    assert said.sentences == ("a circle", "a ring", "a red circle", "a large red star")
    assert said.samples == (("a", "circle", "ring", "red", "large", "star"), ("a", "circle", "ring"))
    assert said_in(row(state="done", verb="interpolate", result={"samples": samples})).samples == ()


# ---- search ----------------------------------------------------------------------------------------------------------

TEXTS = [
    "a large red circle above a small blue square",
    "a small blue square",
    "red circles and a Café with a very long tail of other words that say nothing",
    "a green star",
    "a red square",
    "a yellow ring",
    "a blue ring",
]


def okapi(question: Sequence[str], texts: Sequence[str]) -> list[float]:
    """BM25 as its authors have it (k1 = 1.2, b = 0.75), whole words."""
    docs = [text.lower().split() for text in texts]
    mean = sum(map(len, docs)) / len(docs)
    scores = []
    for doc in docs:
        score = 0.0
        for word in question:
            n, f = sum(word in other for other in docs), doc.count(word)
            idf = math.log((len(docs) - n + 0.5) / (n + 0.5))
            score += max(idf, 1e-6) * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(doc) / mean))
        scores.append(score)
    return scores


def test_the_order_is_that_of_bm25(store: Store) -> None:
    jobs = {made(store, text, created=float(k)).id: k for k, text in enumerate(TEXTS)}
    found = [jobs[name] for name in History(store, "a").find("blue")]
    scores = okapi(["blue"], TEXTS)
    assert found == sorted((k for k, x in enumerate(scores) if x > 0), key=lambda k: -scores[k])
    assert found != sorted(found) and len(found) == 3


def test_all_words_come_before_some_and_the_newest_first_among_equals(store: Store) -> None:
    jobs = {made(store, text, created=float(k)).id: k for k, text in enumerate([*TEXTS, "a blue ring"])}
    history = History(store, "a")

    def find(text: str) -> list[int]:
        return [jobs[name] for name in history.find(text)]

    assert find("red square")[0] == 4 and find("red square")[1] == 0 and set(find("red square")) == {0, 1, 2, 4}
    assert find("blue ring")[:2] == [7, 6]
    assert find("cafe") == [2] and find("CIRCLE") == find("circles") == find("circ")  # accents, stems, beginnings
    assert find("") == [7, 6, 5, 4, 3, 2, 1, 0] and find("!?") == find("zebra") == []
    assert find('" OR red NEAR(') != [] and find("text:red") == find("text red")  # no syntax of a client's
    only = {name for name, k in jobs.items() if k in (0, 5)}
    assert [jobs[name] for name in history.find("red", only)] == [0]


def test_a_history_follows_what_is_done_and_forgotten_and_is_ones_own(store: Store) -> None:
    mine, theirs = made(store, "a red circle"), made(store, "a red star", owner="b")
    history = History(store, "a")
    assert history.find("red") == [mine.id] and History(store, "b").find("red") == [theirs.id]
    later = made(store, "a red ring", created=time.time() + 1)
    store.add(row(owner="a", state="running", job={"given": {"text": "red"}}))
    assert set(history.find("red")) == {mine.id, later.id}
    store.delete(mine.id)
    assert history.find("red") == [later.id] and history.find("circle") == []
    assert history.sentences() == {"a red ring"}


def test_without_full_text_search_it_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "_index", lambda: None)
    made(store, "red")
    history = History(store, "a")
    assert len(history.find("")) == 1
    with pytest.raises(TurnedAwayError, match="no full-text search"):
        history.find("red")


# ---- taste -----------------------------------------------------------------------------------------------------------


def test_what_was_made_before_anything_was_kept_was_not_left(store: Store) -> None:
    made(store, "old", created=1.0)
    both = made(store, "red", "red one", "red two", "", created=2.0)
    made(store, "new", created=3.0)
    history = History(store, "a")
    assert history.items() == []
    store.kept.add("a", both.id, 1)
    items = history.items()
    assert [(x.words, x.kept) for x in items] == [
        (("red", "two"), True), (("new",), False), (("red", "one"), False), (("red",), False),
    ]  # fmt: skip


def filled(store: Store, kept: int, left: int) -> None:
    for k in range(kept):
        store.kept.add("a", made(store, f"red {k}", created=10.0 + k).id, 0)
    for k in range(left):
        made(store, f"blue {k}", created=100.0 + k)


GOOD = {"prior": -0.5, "weights": {"red": 2.0, "blue": -2.0, "circle": 0.1}, "auc": 0.9, "chance": 0.7}


def watch(store: Store, answer: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The states from before a fit to after it, and of a ranking."""
    asked: list[Any] = []
    go_on = asyncio.Event()

    async def carry_out(rows: Any) -> Any:
        asked.append(json.loads(json.dumps(rows)))
        await go_on.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(taste, "carry_out", carry_out)

    async def story() -> list[dict[str, Any]]:
        tastes = taste.Tastes(store)
        states = [await tastes.state("a"), await tastes.fit("a"), await tastes.fit("a")]
        go_on.set()
        await asyncio.gather(tastes.person("a").task)  # type: ignore[arg-type]
        states.append(await tastes.state("a"))
        assert len(asked) == 1 and len(asked[0]) == states[0]["kept"] + states[0]["left"]
        if states[-1]["state"] == "on":
            states.append({"ranked": await tastes.rank("a", ["Red ring", "blue 3", "zebra", "Red ring"])})
        else:
            with pytest.raises(TurnedAwayError, match="this is not on"):
                await tastes.rank("a", ["red"])
        made(store, "one more", created=500.0)
        states.append(await tastes.state("a"))
        store.kept.add("a", made(store, "and kept", created=501.0).id, 0)
        states.append(await tastes.state("a"))
        return states

    return asyncio.run(story())


def test_it_is_fitted_once_and_again_only_when_something_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(store, 20, 25)
    before, first, second, on, ranked, grown, changed = watch(store, GOOD, monkeypatch)
    assert [x["state"] for x in (before, first, second, on, grown, changed)] == [
        "stale", "fitting", "fitting", "on", "on", "stale",
    ]  # fmt: skip
    assert (on["kept"], on["left"], on["auc"], grown["left"]) == (20, 25, 0.9, 26)
    assert [one["word"] for one in on["words"]] == ["red", "blue", "circle"]
    assert len(on["liked"]) == 12 and all(one["score"] == pytest.approx(-2.5) for one in on["liked"])
    assert [(one["sentence"], one["had"]) for one in ranked["ranked"]] == [
        ("Red ring", False), ("zebra", False), ("blue 3", True),
    ]  # fmt: skip
    assert [one["score"] for one in ranked["ranked"]] == pytest.approx([1.5, -0.5, -2.5])


@pytest.mark.parametrize(
    ("answer", "state"),
    [({**GOOD, "auc": 0.69}, "blind"), ({**GOOD, "auc": None, "chance": None}, "blind"), (TimeoutError(), "failed")],
)
def test_what_words_do_not_tell_stays_off(
    store: Store, answer: Any, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, 20, 20)
    *_, after, _, _ = watch(store, answer, monkeypatch)
    assert after["state"] == state and after["reason"] and after["words"] == after["liked"] == []


@pytest.mark.parametrize(
    ("kept", "left", "said"),
    [(0, 30, "keep 20 more samples with words: 0 of 20"), (19, 30, "keep 1 more"), (20, 12, "make 8 more samples")],
)
def test_with_too_little_it_is_off_and_says_what_is_missing(store: Store, kept: int, left: int, said: str) -> None:
    filled(store, kept, left)

    async def story() -> None:
        tastes = taste.Tastes(store)
        state = await tastes.state("a")
        assert state["state"] == "off" and said in state["reason"]
        for ask in (tastes.fit("a"), tastes.rank("a", ["red"])):
            with pytest.raises(TurnedAwayError) as refused:
                await ask
            assert refused.value.status == 409 and said in refused.value.message

    asyncio.run(story())


@pytest.mark.parametrize(
    "program",
    ["import time; time.sleep(60)", "raise ValueError('a secret sentence')", "print('no JSON')"],
)
def test_a_fit_that_hangs_or_breaks_ends_and_tells_no_words(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taste, "PROGRAM", ("-c", program))
    monkeypatch.setattr(taste, "TIME_LIMIT", 0.3)
    with pytest.raises((ValueError, TimeoutError)) as ended:
        asyncio.run(taste.carry_out([[["secret"], True]]))
    assert "secret" not in str(ended.value)
