"""Declarations of several sources: mixed by weight, joined by class, labelled; and what is refused in them."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from data_folders import picture_folder, wav, which, write

from unidiffuser.datasets import declaration, open_data
from unidiffuser.datasets.checking import check
from unidiffuser.datasets.faults import BUDGET, Damaged, Tally
from unidiffuser.datasets.mixing import Chained, Joined, Mixed, Source, shares, shuffled


class Rows:
    """Cases that say which row and turn they are."""

    def __init__(
        self, name: str, n: int, turns: int = 1, keys: list[str] | None = None, damaged: set[int] | None = None
    ):
        self.what, self.n, self.turns, self.keys = name, n, turns, keys
        self.damaged = damaged or set()
        self.tally = Tally(source=name, budget=1.0)

    def __len__(self) -> int:
        return self.n

    def name(self, row: int) -> str:
        return str(row)

    def case(self, row: int, turn: int) -> Mapping[str, Any]:
        if row in self.damaged:
            raise Damaged("it is damaged")
        return {self.what: (row, turn)}


def declare(folder: Path, **declaration: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(declaration))
    return folder


def test_chained_sources_show_every_row_once_a_turn() -> None:
    data = Chained([Source(Rows("a", 3, turns=2), 0), Source(Rows("b", 2), 1)])
    assert len(data) == 10
    assert [data[i] for i in range(5)] == [{"a": (k, 0)} for k in range(3)] + [{"b": (k, 0)} for k in range(2)]
    assert [data[i] for i in range(5, 10)] == [{"a": (k, 1)} for k in range(3)] + [{"b": (k, 1)} for k in range(2)]
    assert [data.label_of(i) for i in range(10)] == [0, 0, 0, 1, 1] * 2
    for index in (-1, 10):
        with pytest.raises(IndexError):
            data[index]


@hypothesis.given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.05, 10), min_size=4, max_size=4),
    seed=st.integers(0, 2**63 - 1),
)
@hypothesis.settings(max_examples=20)
def test_mixed_sources_keep_their_weights_and_every_row_is_seen_equally_often(
    sizes: list[int], weights: list[float], seed: int
) -> None:
    weights = weights[: len(sizes)]
    mixed = Mixed([Source(Rows(str(s), n), s) for s, n in enumerate(sizes)], weights, seed)
    hypothesis.assume(len(mixed) < 5_000)
    seen: list[Counter[int]] = [Counter() for _ in sizes]
    for i in range(len(mixed)):
        [(name, (row, _))] = mixed[i].items()
        assert mixed.label_of(i) == int(name)
        seen[int(name)][row] += 1
    for n, weight, count in zip(sizes, weights, seen, strict=True):
        assert count.total() / len(mixed) == pytest.approx(weight / sum(weights), abs=2e-3)
        assert len(count) == n and max(count.values()) - min(count.values()) <= 1


def test_the_order_of_mixed_sources_depends_on_the_seed_and_the_index_alone() -> None:
    def order(seed: int, indices: range) -> list[Any]:
        mixed = Mixed([Source(Rows("a", 50)), Source(Rows("b", 7))], [3, 1], seed)
        return [mixed[i] for i in indices]

    assert order(1, range(40)) == order(1, range(40)) != order(2, range(40))
    assert order(1, range(20, 40)) == order(1, range(40))[20:]
    first = [name for sample in order(1, range(8)) for name in sample]
    assert Counter(first[:4]) == Counter(first[4:]) == {"a": 3, "b": 1}


@pytest.mark.parametrize(("weights", "counts"), [([1, 1], [1, 1]), ([3, 1], [3, 1]), ([0.7, 0.2, 0.1], [7, 2, 1])])
def test_small_weights_make_small_blocks(weights: list[float], counts: list[int]) -> None:
    assert shares(weights) == counts
    assert min(shares([1, 1e-9])) == 1


@hypothesis.given(n=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_a_shuffle_is_a_permutation(n: int, seed: int) -> None:
    assert sorted(shuffled(i, n, seed, 1) for i in range(n)) == list(range(n))


def test_joined_rows_meet_every_partner_of_their_key_once() -> None:
    one = Rows("one", 4, keys=["x", "y", "x", "z"])
    other = Rows("other", 5, keys=["y", "x", "x", "x", "w"])
    joined = Chained([Joined([one, other], seed=3)])
    assert joined.turns == 3
    samples = [joined[i] for i in range(len(joined))]
    for row, partners in ((0, [1, 2, 3]), (1, [0, 0, 0]), (2, [1, 2, 3])):
        assert sorted(samples[4 * turn + row]["other"][0] for turn in range(3)) == partners
    assert all(set(samples[4 * turn + 3]) == {"one"} for turn in range(3))  # no partner: the modality is absent
    assert one.tally.counts["without"] == {"a partner in other": 1}
    assert other.tally.counts["ignored"] == {"no row of one has their key": 1}
    assert samples == [Chained([Joined([one, other], seed=3)])[i] for i in range(12)]


def test_partners_depend_on_the_seed_and_their_captions_take_turns() -> None:
    keys = ["k"] * 30
    first = [[dict(Joined([Rows("a", 30, keys=keys), Rows("b", 30, keys=keys)], seed).at(r, 0))["b"] for r in range(30)]
             for seed in (0, 1)]  # fmt: skip
    assert first[0] != first[1] and len(set(first[0])) > 10
    joined = Joined([Rows("a", 1, keys=["k"]), Rows("b", 2, turns=3, keys=["k"] * 2)])
    assert joined.turns == 6
    assert sorted(joined.at(0, turn)["b"] for turn in range(6)) == [(r, t) for r in range(2) for t in range(3)]


def test_a_damaged_partner_is_replaced_within_its_class() -> None:
    one, other = Rows("a", 2, keys=["x", "y"]), Rows("b", 3, keys=["x", "x", "y"], damaged={1, 2})
    joined = Joined([one, other])
    assert [joined.at(0, turn)["b"][0] for turn in range(4)] == [0] * 4
    assert joined.at(1, 0) == {"a": (1, 0)}
    assert other.tally.counts["damaged"] == {"it is damaged": 2}
    assert Joined([Rows("a", 2, keys=["x", "x"], damaged={0}), Rows("b", 1, keys=["x"])]).at(0, 0)["a"] == (1, 0)


def three_modalities(folder: Path) -> Path:
    """Written digits in a .npz, spoken digits as wave files, words in a table: joined by class."""
    folder.mkdir()
    images = (np.arange(6)[:, None, None] * np.ones((6, 8, 8))).astype(np.uint8)
    np.savez(folder / "written.npz", images=images, labels=np.array([0, 1, 2, 0, 1, 2]))
    names = ["zero", "one", "two"]
    rows = [{"file_name": f"{w}{k}.wav", "text": w} for w in names for k in range(2)]
    files: dict[str, Any] = {"spoken/metadata.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}
    files |= {f"spoken/{w}{k}.wav": wav(2 * names.index(w) + k + 1) for w in names for k in range(2)}
    files["words/metadata.csv"] = "digit,word\n" + "".join(f"{k},{w}\n" for k, w in enumerate(names))
    write(folder, files)
    sources: list[dict[str, Any]] = [
        {"path": "written.npz", "columns": {"image": "images"}, "join": "labels"},
        {
            "path": "spoken",
            "columns": {"sound": "file_name"},
            "join": {"column": "text", "keys": {"zero": 0, "one": 1, "two": 2}},
        },
        {"path": "words", "columns": {"text": "word"}, "join": "digit"},
    ]
    return declare(folder, sources=sources)


def test_three_modalities_paired_by_class(tmp_path: Path) -> None:
    data = open_data(three_modalities(tmp_path / "digits"))
    assert (sorted(data.kinds), len(data.pairs), data.labels) == (["image", "sound", "text"], 12, 1)
    for i in range(len(data.pairs)):
        sample = data.pairs[i]
        digit = int(np.asarray(sample["image"])[0, 0]) % 3
        assert sample["text"] == ["zero", "one", "two"][digit]
        assert (round(float(sample["sound"][0]) * 327.68) - 1) // 2 == digit
    heard = {(i % 6, round(float(data.pairs[i]["sound"][0]) * 327.68)) for i in range(12)}
    assert len(heard) == 12  # each picture meets both sounds of its class
    assert check(data)["usable"]


def test_sources_that_share_no_key_are_refused(tmp_path: Path) -> None:
    folder = three_modalities(tmp_path / "digits")
    said = json.loads((folder / "data.json").read_text())
    said["sources"][1]["join"] = "text"
    (folder / "data.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"share no value of the columns .* \(0, 1, 2 against one, two, zero\)"):
        open_data(folder)


def two_folders(folder: Path, **second: Any) -> list[dict[str, Any]]:
    picture_folder(folder / "a", 3)
    rows = [{"file_name": f"{k}.png", "text": f"b {k}"} for k in range(2)]
    picture_folder(folder / "b", 2, rows)
    return [{"path": "a"}, {"path": "b", **second}]


def test_sources_one_after_the_other_and_their_labels(tmp_path: Path) -> None:
    sources = two_folders(tmp_path)
    for paths in (declare(tmp_path, sources=sources), [tmp_path / "a", tmp_path / "b"]):
        data = open_data(paths)
        assert [data.pairs.label_of(i) for i in range(5)] == [0, 0, 0, 1, 1] and data.labels == 2
        assert [data.pairs[i]["text"] for i in (2, 3)] == ["picture 2", "b 0"]
    same = open_data(declare(tmp_path, sources=[{"path": "a", "label": 0}, {"path": "b", "label": 0}]))
    assert same.labels == 1 and same.pairs.label_of(4) == 0


def test_sources_mixed_by_weight(tmp_path: Path) -> None:
    two_folders(tmp_path)
    data = open_data(declare(tmp_path, sources=[{"path": "a", "weight": 1}, {"path": "b", "weight": 3}]), seed=5)
    texts = [data.pairs[i]["text"][0] for i in range(len(data.pairs))]
    assert len(texts) == 12 and texts.count("b") == 9
    assert [data.pairs.label_of(i) for i in range(12)] == [int(t == "b") for t in texts]


def test_a_declaration_in_a_folder_stays_in_it_and_one_that_is_named_may_not(tmp_path: Path) -> None:
    picture_folder(tmp_path / "elsewhere", 3)
    for path in ("../elsewhere", str(tmp_path / "elsewhere")):
        folder = declare(tmp_path / "own", path=path)
        with pytest.raises(ValueError, match="leads out of its folder"):
            open_data(folder)
        assert open_data(folder / "data.json").samples == 3
    (tmp_path / "own/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out of its folder"):
        open_data(declare(tmp_path / "own", path="link"))


@pytest.mark.parametrize("path", ["https://example.org/x", "pipe:touch SENTINEL", "*.tar", "{a,b}", "gone"])
def test_a_source_that_is_an_address_a_command_or_not_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r"nothing is fetched or run|there is no data"):
        open_data(declare(tmp_path, path=path) / "data.json")


WRONG: list[tuple[Any, str]] = [
    ([], "must be a JSON object"),
    ({"source": []}, "unknown entry 'source'"),
    ({"sources": []}, "at least one source"),
    ({"sources": [{}], "columns": {"text": "a"}}, "'columns' stands beside 'sources'"),
    ({"sources": [{"path": 5}]}, "the path of source 0 must be a text"),
    ({"sources": [{"weigth": 1}]}, "unknown entry 'weigth'"),
    ({"weight": 0}, "it must be above 0"),
    ({"weight": True}, "must be a number"),
    ({"label": -1}, "whole number from 0 to 1023"),
    ({"label": 1}, r"the labels of the sources are \[1\]; 0 is missing"),
    ({"budget": 2}, "a share from 0 to 1"),
    ({"format": "zip"}, "there is no format 'zip'; there are folder"),
    ({"columns": {}}, "is empty"),
    ({"columns": {"Image": "file_name"}}, "cannot be called 'Image'"),
    ({"columns": {"image": "picture"}}, "no column 'picture'; it has 'file_name', 'text'"),
    ({"columns": {"image": {"columns": "x"}}}, "unknown entry 'columns'"),
    ({"columns": {"colour": "text"}}, "no kind of modality called 'colour'"),
    ({"modalities": {}}, "'modalities' is empty"),
    ({"modalities": {"image": {"kind": "video"}}}, "there is no modality 'video'"),
    ({"modalities": {"image": {"sizes": 64}}}, "has no option 'sizes'; choose from size, channels"),
    ({"modalities": {"sound": {"sample_rate": "x"}}}, "must be a whole number from 1000"),
    ({"modalities": {"sound": {}}}, "no column that is known to be a modality|no source has a column"),
    ({"modalities": {"image": {}}, "columns": {"text": "text"}}, "not among 'modalities'"),
    ({"filters": {"text": {}}}, "tests nothing"),
    ({"filters": {"text": {"least": 1}}}, "unknown entry 'least'"),
    ({"filters": {"text": {"min": "a"}}}, "must be a number"),
    ({"filters": {"text": {"in": "a"}}}, "must be a list"),
    ({"join": "text"}, "one source alone has 'join'"),
    ({"sources": [{"path": "."}, {"path": ".", "weight": 1}]}, "some sources have a weight and others do not"),
    ({"sources": [{"join": "text"}, {"join": "text"}]}, "are joined and both have 'image'"),
    ({"sources": [{"join": "a"}, {"join": "a", "label": 1}]}, "only the first has a weight and a label"),
    ({"sources": [{"join": "a"}, {"join": "a"}]}, "no column 'a' to be joined on"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_declaration_is_one_sentence(tmp_path: Path, value: Any, message: str) -> None:
    picture_folder(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message) as caught:
        open_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_declarations_of_the_documentation_are_declarations() -> None:
    page = (Path(__file__).parents[1] / "docs/data.md").read_text()
    blocks = re.findall(r"^```json\n(.*?)^```", page, flags=re.M | re.S)
    assert [len(declaration.parse(json.loads(block)).sources) for block in blocks] == [2, 3]


@pytest.mark.parametrize("text", ["", "{", '{"budget": NaN}', '{"budget": 1, "budget": 1}', "[" * 10**5, "\ud800{}"])
def test_a_declaration_that_is_no_json(tmp_path: Path, text: str) -> None:
    picture_folder(tmp_path)
    (tmp_path / "data.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"data\.json"):
        open_data(tmp_path)


def test_modalities_of_ones_own_name_and_several_columns_of_captions(tmp_path: Path) -> None:
    rows = [{"file_name": f"{k}.png", "short": f"s{k}", "long": f"l{k}" if k else None} for k in range(3)]
    picture_folder(tmp_path, 3, rows)
    declare(
        tmp_path,
        modalities={"photo": {"kind": "image", "size": 16}, "title": {"kind": "text", "length": 4}},
        columns={"photo": "file_name", "title": ["short", "long"]},
    )
    data = open_data(tmp_path)
    assert data.kinds == {
        "photo": {"kind": "image", "size": 16, "channels": 3},
        "title": {"kind": "text", "length": 4},
    }
    said = [(which(data.pairs[i]["photo"]), data.pairs[i]["title"]) for i in range(len(data.pairs))]
    assert sorted(said) == [(0, "s0"), (0, "s0"), (1, "l1"), (1, "s1"), (2, "l2"), (2, "s2")]


def test_the_values_of_a_modality_are_spread_over_all_sources(tmp_path: Path) -> None:
    data = open_data(declare(tmp_path, sources=two_folders(tmp_path)))
    assert list(data.values("text")) == ["picture 0", "picture 1", "picture 2", "b 0", "b 1"]
    assert list(data.values("text", most=2)) == ["picture 0", "picture 1", "b 0"]
    assert [which(picture) for picture in data.values("image", most=2)] == [0, 1, 0]
    assert list(data.values("sound")) == []


def test_the_digest_knows_the_declaration(tmp_path: Path) -> None:
    two_folders(tmp_path)
    digests = {open_data(declare(tmp_path, path="a", budget=budget)).digest for budget in (BUDGET, 0.2)}
    digests.add(open_data(declare(tmp_path, path="a", modalities={"image": {"size": 24}, "text": {}})).digest)
    assert len(digests) == 3
