"""`unidiffuser data`: what it says of a data set, its exit codes, and encoding from the command line."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from data_folders import picture_folder, shard_members, tar
from tiny_model import saved_model

from unidiffuser.cli import main
from unidiffuser.datasets import open_data


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_good_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, "data", "check", str(picture_folder(tmp_path)))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "usable",
        "image: 4 samples; image, size 8, channels 3",
        "text: 4 samples; text",
        f"{tmp_path} (folder): 4 samples of 4 rows",
        "  image from file_name, text from text",
    ]


def test_what_is_damaged_missing_and_ignored_is_said_with_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{"file_name": f"{k}.png", "text": f"picture {k}"} for k in range(25)]
    rows[3]["text"] = None
    rows.append({"file_name": "gone.png", "text": "a"})
    folder = picture_folder(tmp_path, 26, rows)
    (folder / "7.png").write_bytes(b"no picture")
    code, out, _ = answer(capsys, "data", "check", str(folder))
    assert code == 0
    assert "24 samples of 25 rows" in out
    assert "  damaged: 1 x the file that its row names is not there (gone.png)" in out
    assert (
        "  damaged: 1 x the file given is not a PNG, JPEG or WebP picture that can be read; convert it (7.png)" in out
    )
    assert "  without: 1 x text (3.png)" in out
    assert "  ignored: 1 x no row of the metadata names it (25.png)" in out
    code, out, err = answer(capsys, "data", "check", str(folder), "--json")
    report = json.loads(out)
    assert (code, err, report["usable"], report["damaged"], report["samples"]) == (0, "", True, 2, 25)
    assert report["modalities"]["text"]["present"] == 23


def test_exit_code_2_when_it_cannot_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = picture_folder(tmp_path / "data", 10)
    for k in range(3):
        (folder / f"{k}.png").write_bytes(b"no picture")
    code, out, _ = answer(capsys, "data", "check", str(folder))
    assert code == 2 and out.startswith(f"not usable: {folder}: 3 of 10 samples are damaged or lost (3: the file given")
    assert "7 samples of 10 rows" in out
    assert answer(capsys, "data", "check", str(folder), "--budget", "0.3")[0] == 0
    for path, why in ((str(tmp_path / "nowhere"), "there is no data"), ("pipe:touch x", "nothing is fetched or run")):
        code, out, _ = answer(capsys, "data", "check", path, "--json")
        assert code == 2 and json.loads(out)["usable"] is False and why in json.loads(out)["why"]


def test_a_traversal_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = picture_folder(tmp_path, 1, [{"file_name": "../../etc/passwd", "text": "a"}])
    code, out, err = answer(capsys, "data", "check", str(folder))
    assert code == 2 and out.count("\n") == 1 and "leads out of its folder" in out and "Traceback" not in out + err


def test_a_shard_that_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(tmp_path / "00000.tar", shard_members(range(10)))
    path.write_bytes(path.read_bytes()[: 5 * 3072])
    code, out, _ = answer(capsys, "data", "check", str(tmp_path))
    assert code == 0 and "  lost: 1 x the shard does not end as an archive does" in out
    (tmp_path / "00000_stats.json").write_text('{"successes": 10}')
    code, out, _ = answer(capsys, "data", "check", str(tmp_path))
    assert code == 2 and "  lost: 5 x the shard does not end as an archive does" in out


def test_encode_with_fitted_codecs_then_with_the_same_ones_on_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = picture_folder(tmp_path / "first", 4)
    code, out, _ = answer(capsys, "data", "encode", str(first), "--out", str(tmp_path / "a"), "--json")
    made = json.loads(out)
    assert (code, made["samples"], made["damaged"], made["shards"]) == (0, 4, 0, 1)
    second = picture_folder(tmp_path / "second", 2)
    line = ["data", "encode", str(second), "--out", str(tmp_path / "b"), "--codecs", str(tmp_path / "a"), "--json"]
    assert json.loads(answer(capsys, *line)[1])["codecs_sha256"] == made["codecs_sha256"]
    code, out, _ = answer(capsys, "data", "check", str(tmp_path / "b"))
    assert code == 0 and f"{tmp_path / 'b'}" not in out.splitlines()[0]
    assert set(open_data(tmp_path / "b").pairs[1]) == {"image", "text"}


def test_encode_with_the_codecs_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved_model(tmp_path / "model")
    rows = [{"file_name": f"{k}.png", "text": "a large red circle"} for k in range(3)]
    folder = picture_folder(tmp_path / "data", 3, rows)
    code, out, err = answer(
        capsys, "data", "encode", str(folder), "--out", str(tmp_path / "out"), "--model", str(model)
    )
    assert (code, err) == (0, "") and out.startswith(f"{tmp_path / 'out'}: 3 samples, 0 damaged, ")
    assert open_data(tmp_path / "out").pairs[0]["image"].shape == (3, 64, 64)


def test_encode_for_pictures_of_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"file_name": f"{k}.png", "text": "a large red circle"} for k in range(3)]
    folder, out = picture_folder(tmp_path / "data", 3, rows), tmp_path / "out"
    line = ["data", "encode", str(folder), "--out", str(out)]
    model = ["--model", str(saved_model(tmp_path / "model"))]
    assert answer(capsys, *line, *model, "--size", "32x32")[0] == 0
    assert open_data(out).pairs[0]["image"].shape == (3, 32, 32)
    for flags, said in (([*model, "--size", "32x16"], "are square"), (["--size", "32x32"], "is for the codecs of")):
        code, _, err = answer(capsys, *line, *flags)
        assert code == 2 and said in err and err.count("\n") == 1


def test_encode_on_a_cluster_hands_the_shards_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["data", "encode", str(picture_folder(tmp_path / "data", 3)), "--out", str(tmp_path / "out"), "--ray"]
    monkeypatch.setattr("unidiffuser.cli.extras.find_spec", lambda module: None)
    code, _, err = answer(capsys, *line)
    assert code == 2 and "pip install 'unidiffuser[ray]' (ray, pandas, pyarrow is missing)" in err
    monkeypatch.undo()
    given: list[Any] = []

    def carry(work: Any, places: Any) -> Any:
        given.extend(places)
        return map(work, places)

    def cluster(workers: int | None, *, gpus: bool) -> Any:
        given.append((workers, gpus))
        return nullcontext(carry)

    monkeypatch.setattr("unidiffuser.cluster.cluster", cluster)
    monkeypatch.setattr("unidiffuser.cli.spreading.need", lambda *_: None)
    assert answer(capsys, *line, "--workers", "3")[0] == 0
    assert given == [(3, False), (0, 0)] and open_data(tmp_path / "out").samples == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "--workers goes with --ray"),
        (["--stored", "int8"], "--stored must be float32, float16, bfloat16, not 'int8'"),
        (["--model", "a", "--codecs", "b"], "give one of them"),
        (["--codecs", "nowhere"], "holds no fitted codecs"),
        (["--model", "nowhere"], "there is no model 'nowhere'"),
    ],
)
def test_wrong_use_of_encode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    folder = str(picture_folder(tmp_path / "data", 1))
    code, out, err = answer(capsys, "data", "encode", folder, "--out", str(tmp_path / "out"), *words)
    assert code in (1, 2) and out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_verbs_of_data_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, "data", "--help")
    assert (code, err) == (0, "") and out.startswith("usage: unidiffuser data VERB") and "data encode" in out
    code, out, err = answer(capsys, "data")
    assert (code, out) == (2, "") and "data check" in err
    code, out, err = answer(capsys, "data", "chekc", "x")
    assert (code, out) == (2, "") and "there is no verb 'data chekc'" in err and "did you mean data check?" in err
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", "--help"])
    assert stop.value.code == 0 and "usage: unidiffuser data check" in capsys.readouterr().out
