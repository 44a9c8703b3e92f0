"""`sample --prompts`: many rows into checked shards; each sample that of the plain verb, none lost, none done twice."""

import json
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import saved_model, sounding_model

from unidiffuser.cli import bulk, main
from unidiffuser.datasets import open_data
from unidiffuser.datasets.checking import check
from unidiffuser.recipe import fingerprint

RED, BLUE = "a large red circle", "a small blue square"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(*rows: Any) -> str:
    """A file of these rows."""
    Path("rows.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return "rows.jsonl"


def sample(model: Path, *words: str, code: int = 0) -> str:
    assert main(["sample", *words, "--model", str(model), "-q"]) == code
    return words[-1]


def pictures(folder: str) -> dict[str, str]:
    """Member -> hash of its pixels, of all shards."""
    found = {}
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as archive:
            for name in archive.getnames():
                if name.endswith(".png"):
                    with Image.open(archive.extractfile(name)) as picture:  # type: ignore[arg-type]
                        found[name] = fingerprint(picture)
    return found


def plain(folder: str) -> list[str]:
    found = []
    for path in sorted(Path(folder).glob("*.png")):
        with Image.open(path) as picture:
            found.append(fingerprint(picture))
    return found


def test_every_sample_is_that_of_the_plain_verb_in_shards_of_any_size(model: Path, place: Path) -> None:
    prompts = lines({"text": RED}, "", {"text": BLUE, "seed": 40}, {})
    sample(model, "image", "--prompts", prompts, "-n", "2", "--seed", "7", "--shard", "4", "--out", "a")
    sample(model, "image", "--prompts", prompts, "-n", "2", "--seed", "7", "--shard", "1", "--out", "b")
    expected = plain(sample(model, "image", "--text", RED, "-n", "2", "--seed", "7", "--out", "c"))
    expected += plain(sample(model, "image", "--text", BLUE, "-n", "2", "--seed", "40", "--out", "d"))
    expected += plain(sample(model, "image", "-n", "2", "--seed", "11", "--out", "e"))
    assert list(pictures("a").values()) == list(pictures("b").values()) == expected and len(set(expected)) == 6
    assert [len(list(Path(each).glob("*.tar"))) for each in "ab"] == [2, 6]


def test_the_shards_are_a_data_set_of_the_pairs(model: Path, place: Path) -> None:
    sample(model, "image", "--prompts", lines({"text": RED}, {"text": BLUE}), "--shard", "1", "--out", "out")
    data = open_data("out")
    assert check(data)["usable"] and data.samples == 2
    assert [data.pairs[k]["text"] for k in range(2)] == [RED, BLUE] and set(data.pairs[0]) == {"image", "text"}
    with tarfile.open("out/00001.tar") as archive:
        assert archive.getnames() == ["000000001.json", "000000001.png", "000000001.txt"]
        assert json.load(archive.extractfile("000000001.json")) == {"line": 2, "seed": 1}  # type: ignore[arg-type]
        assert {member.mtime for member in archive.getmembers()} == {0}
        archive.extract("000000001.png", place, filter="data")
    sample(model, "image", "--like", "000000001.png", "--out", "again")
    assert plain("again") == list(pictures("out").values())[1:]


def test_texts_of_pictures_and_numbers(model: Path, place: Path) -> None:
    sample(model, "image", "-n", "2", "--seed", "3", "--out", "photos")
    prompts = lines({"image": "photos/0000.png"}, {"image": "photos/0001.png"})
    sample(model, "text", "--prompts", prompts, "--out", "out")
    with tarfile.open("out/00000.tar") as archive:
        told = [archive.extractfile(f"00000000{k}.txt").read().decode().strip() for k in range(2)]  # type: ignore[union-attr]
        with Image.open(archive.extractfile("000000000.png")) as given:  # type: ignore[arg-type]
            assert fingerprint(given) == plain("photos")[0] and not given.info  # nobody's photo is called synthetic
    answers = [
        sample(model, "text", "--image", f"photos/000{k}.png", "--seed", str(k), "--out", f"t{k}") for k in (0, 1)
    ]
    assert told == [Path(answer, "0000.txt").read_text().strip() for answer in answers]
    sounding_model().save("sounding")
    sample(
        Path("sounding"), "vector", "--prompts", lines({"text": RED}, {"vector": [1, 0, 0, 0]}), "--out", "v", code=1
    )
    with tarfile.open("v/00000.tar") as archive:
        about = json.load(archive.extractfile("000000000.json"))  # type: ignore[arg-type]
    sample(Path("sounding"), "vector", "--text", RED, "--seed", "0", "--out", "one")
    expected = json.loads(Path("one/0000.json").read_text())
    assert np.array_equal(np.float32(about["vector"]), np.float32(expected)) and len(expected) == 4


def test_a_row_that_cannot_be_used_is_reported_and_tried_again(
    model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photo.png").write_bytes(b"no picture")
    Path("leads.png").symlink_to("/etc/passwd")
    rows = [{}, {"image": "photo.png"}, {"image": "gone.png"}, {"image": "leads.png"}, {"text": "a zebra ___"}]
    line = ["sample", "text", "--prompts", lines(*rows), "--shard", "2", "--model", str(model)]
    line += ["--out", "out", "--json"]
    assert main(line) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["samples"], answer["failed"], answer["shards"]) == (1, 4, 3)
    for number, why in enumerate(["not a PNG", "cannot read gone.png", "leads out", "zebra"], 2):
        [reason] = [each for each in answer["why"] if each.startswith(f"line {number}: ")]
        assert why in reason
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["complete"] and sum(len(shard["damaged"]) for shard in manifest["shards"]) == 4
    sample(model, "image", "--seed", "1", "--out", "made")
    Path("photo.png").write_bytes(Path("made/0000.png").read_bytes())
    capsys.readouterr()
    assert main(line) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["samples"], answer["failed"]) == (2, 3) and list(pictures("out")) == ["000000001.png"]


def test_what_is_done_is_not_done_again_and_damage_is_repaired(
    model: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = lines(*({"text": RED} for _ in range(4)))
    line = ["image", "--prompts", prompts, "--shard", "1", "--out"]
    sample(model, *line, "straight")
    ticks = iter(range(100))

    def interrupted(done: int, total: int) -> None:
        if next(ticks) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unidiffuser.cli.terminal.Terminal.progress", lambda *_: nullcontext(interrupted))
        sample(model, *line, "out", code=130)
    assert not json.loads(Path("out/manifest.json").read_text())["complete"]
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("*.tar")}
    assert sorted(before) == ["00000.tar", "00001.tar"]
    sample(model, *line, "out")
    whole = {path.name: path.read_bytes() for path in Path("straight").iterdir()}
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == whole and len(whole) == 5
    assert all(Path("out", name).stat().st_mtime_ns == when for name, when in before.items())
    Path("out/00002.tar").write_bytes(whole["00002.tar"][:-1] + b"x")
    sample(model, *line, "out")
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == whole
    assert all(Path("out", name).stat().st_mtime_ns == when for name, when in before.items())


def test_another_request_is_not_mixed_in(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = lines({"text": RED})
    line = ["sample", "image", "--prompts", prompts, "--model", str(model), "--out", "out"]
    assert main(line) == 0
    before = Path("out/00000.tar").read_bytes()
    for change in (["--seed", "1"], ["--steps", "2"], ["-n", "2"], ["--no-metadata"], ["--size", "64x64"]):
        assert main([*line, *change]) == 2
        assert "holds samples of another request" in capsys.readouterr().err
    lines({"text": BLUE})
    assert main(line) == 2 and Path("out/00000.tar").read_bytes() == before
    assert main([*line, "--force"]) == 0 and Path("out/00000.tar").read_bytes() != before
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years")
    for folder, why in (("mine", "holds no samples"), ("rows.jsonl", "holds no samples")):
        assert main([*line[:-1], folder, "--force"]) == 2 and why in capsys.readouterr().err
    Path("out/manifest.json").write_text(Path("out/manifest.json").read_text().replace("00000.tar", "../rows.jsonl"))
    assert main([*line, "--force"]) == 2 and "is no manifest of samples" in capsys.readouterr().err
    assert Path("rows.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "line 2: "),
        ("[1]", 'line 2: it must be an object such as {"text"'),
        ('{"text": "a", "text": "b"}', "line 2: a key occurs twice"),
        ('{"txet": "a"}', "line 2: this model has no modality 'txet'; it has image, text; did you mean text?"),
        ('{"text": 3}', "line 2: 'text' must be a text"),
        ('{"image": 3}', "line 2: 'image' must be the name of a file"),
        ('{"image": "../a.png"}', "line 2: the file name '../a.png' leads out of its folder"),
        ('{"image": "https://a/b.png"}', "line 2: the file name 'https://a/b.png' is an address"),
        ('{"seed": -1}', "line 2: the seed must be a whole number"),
        ('{"seed": true}', "line 2: the seed must be a whole number"),
    ],
)
def test_a_line_that_makes_no_sense_stops_it_at_once(
    model: Path, place: Path, capsys: pytest.CaptureFixture[str], row: str, why: str
) -> None:
    prompts = lines({"text": RED}, row)
    assert main(["sample", "image", "--prompts", prompts, "--model", str(model), "--out", "out"]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1 and not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--out", "out", "--text", RED], "'text' is given here and by a flag"),
        (["--out", "out", "-n", "0"], "-n must be 1 or more"),
        (["--out", "out", "--shard", "0"], "--shard must be 1 or more"),
        (["--out", "out", "--workers", "2"], "--workers goes with --ray"),
        (["--out", "out", "--solver", "none"], "solver"),
        (["--out", "out", "--like", "a.png"], "does not go with --prompts"),
        ([], "need --out FOLDER"),
    ],
)
def test_wrong_use(model: Path, place: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str) -> None:
    prompts = lines({"text": RED})
    assert main(["sample", "image", "--prompts", prompts, "--model", str(model), *words]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1
    assert main(["sample", "image", "--prompts", prompts, "--model", str(model), "--out", "out"]) == 0


def test_flags_of_many_rows_alone(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "image", "--model", str(model), "--shard", "2"]) == 2
    assert "go with --prompts" in capsys.readouterr().err
    assert main(["sample", "image", "--prompts", "gone.jsonl", "--model", str(model), "--out", "out"]) == 2
    assert "cannot read gone.jsonl" in capsys.readouterr().err
    assert main(["sample", "image", "--prompts", lines(""), "--model", str(model), "--out", "out"]) == 2
    assert "has no rows" in capsys.readouterr().err


def test_rows_are_shared_out_in_order() -> None:
    rows = [bulk.Row(line=1, given={}), bulk.Row(line=4, given={}, seed=9)]
    shards = bulk.shared_out(rows, 2, 5, 3)
    assert [[(i, line, seed) for i, line, seed, _ in shard["rows"]] for shard in shards] == [
        [(0, 1, 5), (1, 1, 6), (2, 4, 9)],
        [(3, 4, 10)],
    ]
