"""Folders of files with a table or with texts beside them: what is used, what is counted, what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from data_folders import picture_folder, png, wav, which, write

from unidiffuser.datasets import Data, DataLost, open_data
from unidiffuser.datasets.checking import check


def seen(data: Data) -> list[tuple[int | None, str | None]]:
    """(picture, text) of every sample of an epoch."""
    samples = [data.pairs[i] for i in range(len(data.pairs))]
    return [(which(s["image"]) if "image" in s else None, s.get("text")) for s in samples]


def counts(data: Data, kind: str) -> dict[str, int]:
    """Reason -> how many, of the first source."""
    return {reason: found["count"] for reason, found in data.report()["sources"][0].get(kind, {}).items()}


PAIRS = [(k, f"picture {k}") for k in range(4)]


def test_json_lines(tmp_path: Path) -> None:
    data = open_data(picture_folder(tmp_path))
    assert seen(data) == PAIRS
    assert data.kinds == {"image": {"kind": "image", "size": 8, "channels": 3}, "text": {"kind": "text"}}
    assert (data.labels, data.pairs.label_of(2), data.codecs, data.samples) == (1, 0, None, 4)


@pytest.mark.parametrize("name", ["caption", "captions", "TEXT", "Caption"])
def test_a_caption_goes_by_several_names(tmp_path: Path, name: str) -> None:
    rows = [{"file_name": f"{k}.png", name: f"picture {k}"} for k in range(4)]
    assert seen(open_data(picture_folder(tmp_path, rows=rows))) == PAIRS


def test_csv_with_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    text = '\ufefffile_name,text\r\n0.png,"picture 0"\r\n1.png,picture 1\r\n2.png,\r\n'
    data = open_data(write(tmp_path, {"metadata.csv": text, **{f"{k}.png": png(k) for k in range(3)}}))
    assert seen(data) == [*PAIRS[:2], (2, None)]
    assert counts(data, "without") == {"text": 1}


def test_parquet_beside_pictures(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'data'")
    import pyarrow

    table = pyarrow.table({"file_name": [f"{k}.png" for k in range(4)], "text": [f"picture {k}" for k in range(4)]})
    write(tmp_path, {f"{k}.png": png(k) for k in range(4)})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    assert seen(open_data(tmp_path)) == PAIRS


def test_texts_of_the_same_name_and_each_line_is_a_caption(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{k}.png": png(k) for k in range(4)}
    files |= {
        "0.txt": "\ufeffone\r\n\r\ntwo\r\n",
        "1.txt": "three",
        "2.txt": "  \n",
        "README.txt": "hello",
        "a.pkl": "x",
    }
    data = open_data(write(tmp_path, files))
    assert seen(data) == [
        (0, "one"),
        (1, "three"),
        (2, None),
        (3, None),
        (0, "two"),
        (1, "three"),
        (2, None),
        (3, None),
    ]
    assert counts(data, "without") == {"text": 2}
    assert counts(data, "ignored") == {
        "a text without a picture or sound of its name": 1,
        "files .pkl are not decoded": 1,
    }


def test_pictures_alone(tmp_path: Path) -> None:
    data = open_data(write(tmp_path, {f"{k}.png": png(k) for k in range(3)}))
    assert list(data.kinds) == ["image"] and len(data.pairs) == 3


def test_sounds_beside_rows(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"file_name": f"{k}.wav", "text": f"sound {k}"}) + "\n" for k in range(3))
    data = open_data(write(tmp_path, {"metadata.jsonl": rows, **{f"{k}.wav": wav(k, rate=16_000) for k in range(3)}}))
    assert data.kinds["sound"] == {"kind": "sound", "sample_rate": 16_000, "frames": 8}
    sample = data.pairs[2]
    assert sample["text"] == "sound 2" and sample["sound"].shape == (400,)
    assert sample["sound"][0] == pytest.approx(200 / 32768)
    slow = open_data(tmp_path, options={"sound": {"sample_rate": 8000}}).pairs[2]["sound"]
    assert slow.shape == (200,) and slow[100] == pytest.approx(200 / 32768, abs=1e-4)


def test_numbers_of_several_columns_are_a_vector(tmp_path: Path) -> None:
    rows = "size,weight,text\n1,2.5,small\n3,4.5,large\n5,,huge\n"
    columns = {"vector": ["size", "weight"], "text": "text"}
    write(tmp_path, {"metadata.csv": rows, "data.json": json.dumps({"columns": columns})})
    data = open_data(tmp_path)
    assert data.pairs[1]["vector"].tolist() == [3.0, 4.5] and data.pairs[1]["text"] == "large"
    assert "vector" not in data.pairs[2]


def test_a_table_in_each_of_several_folders_and_what_is_held_out(tmp_path: Path) -> None:
    picture_folder(tmp_path / "train/a", 2)
    picture_folder(tmp_path / "train/b", 3)
    picture_folder(tmp_path / "test", 4)
    data = open_data(tmp_path)
    assert data.samples == 5
    assert counts(data, "ignored")["it is held out: there is a part named train beside it"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "../outside.png",
        "a/../../outside.png",
        "/etc/passwd",
        "C:\\x.png",
        "\\\\host\\x.png",
        "..\\outside.png",
        "~/x.png",
        "https://example.org/x.png",
        "file:///etc/passwd",
        "pipe:touch SENTINEL",
        "link.png",
        "a\0b.png",
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_a_hard_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.png").write_bytes(png(1))
    folder = picture_folder(
        tmp_path / "data", 1, [{"file_name": "0.png", "text": "a"}, {"file_name": name, "text": "b"}]
    )
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match=r"leads? out|is an address or a command|must be text"):
        open_data(folder)
    assert not list(tmp_path.rglob("SENTINEL"))


def test_a_link_inside_the_folder_is_followed_and_a_loop_is_not(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path, 1, [{"file_name": "again.png", "text": "a"}])
    (folder / "again.png").symlink_to("0.png")
    (folder / "loop").symlink_to(folder)
    data = open_data(folder)
    assert seen(data) == [(0, "a")]
    assert counts(data, "ignored")["it is no plain file, or a link that leads out of the folder"] == 1


def test_a_pipe_is_not_opened_and_names_are_shown_without_what_they_could_do_to_a_terminal(tmp_path: Path) -> None:
    rows = [{"file_name": name, "text": "a"} for name in ("0.png", "\x1b[31m\n.png", "\ud800.png", "x" * 5000)]
    folder = picture_folder(tmp_path, 40, rows + [{"file_name": f"{k}.png", "text": "a"} for k in range(1, 40)])
    os.mkfifo(folder / "pipe.png")
    [found] = open_data(folder).report()["sources"][0]["damaged"].values()
    assert found["first"][:2] == ["\\x1b[31m\\n.png", "\\ud800.png"] and len(found["first"][2]) == 203
    json.dumps(found, ensure_ascii=False).encode()
    picture_folder(tmp_path, 1, [{"file_name": "pipe.png", "text": "a"}])
    with pytest.raises(ValueError, match="no plain file"):
        open_data(folder)


def test_rows_without_a_picture_and_pictures_without_a_row_are_counted(tmp_path: Path) -> None:
    rows = [{"file_name": f"{k}.png", "text": f"picture {k}"} for k in (0, 1, 1, 99)]
    data = open_data(picture_folder(tmp_path, 12, rows))
    assert data.samples == 3
    assert counts(data, "damaged") == {"the file that its row names is not there": 1}
    assert counts(data, "ignored") == {"no row of the metadata names it": 10}
    assert counts(data, "noted") == {"several rows name it; each is a sample": 1}


def test_tables_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write(picture_folder(tmp_path), {"metadata.csv": "file_name,text\n0.png,a\n"})
    with pytest.raises(ValueError, match="metadata of several kinds"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("  two\r\n lines\t", "two lines"),
        ("\ufeffmark", "mark"),
        (7, "7"),
        (None, None),
        ("", None),
        (" \n", None),
        ([], None),
        ([None, ""], None),
        ([None, "one"], "one"),
    ],
)
def test_a_caption_that_is_used_or_absent(tmp_path: Path, value: Any, text: str | None) -> None:
    rows = [{"file_name": "0.png", "text": value}, {"file_name": "1.png", "text": "other"}]
    data = open_data(picture_folder(tmp_path, 2, rows))
    assert seen(data)[0] == (0, text)
    assert counts(data, "without") == ({} if text else {"text": 1})
    assert check(data)["damaged"] == 0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1.5, "its text is a number"),
        (True, "its text is true or false"),
        ({"a": 1}, "a value is a JSON object"),
        ([{"a": 1}], "its text is an object"),
        ("x" * 100_000, "its text is longer than 20000 characters"),
        ("a\0b", "control character"),
        ("\ud800", "half a surrogate pair"),
    ],
)
def test_a_caption_that_cannot_be_used_is_counted_and_another_sample_takes_its_place(
    tmp_path: Path, value: Any, reason: str
) -> None:
    rows = [{"file_name": "0.png", "text": value}, {"file_name": "1.png", "text": "other"}]
    data = open_data(picture_folder(tmp_path, 2, rows))
    report = check(data)
    assert (report["damaged"], report["usable"]) == (1, True)
    assert reason in next(iter(report["sources"][0]["damaged"]))
    assert seen(open_data(tmp_path)) == [(1, "other"), (1, "other")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"file_name": "0.png", "text": "\xff"}', "its line is not text in UTF-8"),
        (b'{"file_name": "0.png"', "its line is not valid JSON"),
        (b'{"file_name": "0.png", "file_name": "1.png"}', "its line is not valid JSON (a key occurs twice)"),
        (b'{"file_name": "0.png", "x": NaN}', "its line is not valid JSON (NaN is not JSON)"),
        (b"[" * 100_000, "its line is not valid JSON (it is nested too deeply)"),
        (b"[1]", "its line is JSON but no object"),
        (b'{"file_name": "9.png"}', "the file that its row names is not there"),
        (b'{"file_name": 5}', None),
    ],
)
def test_a_broken_line_is_counted(tmp_path: Path, line: bytes, reason: str | None) -> None:
    folder = picture_folder(tmp_path)
    with open(folder / "metadata.jsonl", "ab") as file:
        file.write(line + b"\n")
    if reason is None:
        with pytest.raises(ValueError, match="a file name must be text"):
            open_data(folder)
        return
    data = open_data(folder)
    assert seen(data) == PAIRS and counts(data, "damaged") == {reason: 1}


def test_csv_with_more_cells_than_the_header_and_bad_bytes(tmp_path: Path) -> None:
    rows = b"file_name,text\n0.png,a\n1.png,b,c\n2.png,\xff\n3.png,d\n"
    data = open_data(write(tmp_path, {"metadata.csv": rows, **{f"{k}.png": png(k) for k in range(4)}}), budget=0.5)
    assert seen(data) == [(0, "a"), (3, "d")]
    assert sum(counts(data, "damaged").values()) == 2


@pytest.mark.parametrize(
    "damage", [b"", png(0)[:30], png(0)[:-20], b"<html>", b"%PDF-1.4", b"GIF89a" + bytes(50)], ids=range(6)
)
def test_a_damaged_picture_is_counted_and_replaced_by_the_next(tmp_path: Path, damage: bytes) -> None:
    folder = picture_folder(tmp_path)
    (folder / "2.png").write_bytes(damage)
    assert seen(open_data(folder)) == [PAIRS[0], PAIRS[1], PAIRS[3], PAIRS[3]]
    report = check(open_data(folder))
    assert (report["damaged"], report["modalities"]["image"]["present"]) == (1, 3)


@pytest.mark.parametrize("size", [(4097, 4097), (1, 1), (1, 3000)])
def test_a_picture_of_any_shape_is_read_and_of_too_many_pixels_is_not(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = picture_folder(tmp_path, 2)
    (folder / "0.png").write_bytes(png(0, size))
    small = size[0] * size[1] <= 2**24
    assert check(open_data(folder, tolerant=True))["damaged"] == (0 if small else 1)


def test_an_empty_folder_an_empty_table_and_one_sample(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data that can be read"):
        open_data(tmp_path / "empty")
    with pytest.raises(ValueError, match="has no rows"):
        open_data(picture_folder(tmp_path / "none", 0))
    assert seen(open_data(picture_folder(tmp_path / "one", 1))) == PAIRS[:1]
    rows = [{"file_name": "9.png", "text": "gone"}]
    with pytest.raises(ValueError, match=r"no samples that can be used \(1: the file"):
        open_data(picture_folder(tmp_path / "damaged", 1, rows))


def test_more_damage_than_the_budget_is_no_data(tmp_path: Path) -> None:
    rows = [{"file_name": f"{k}.png", "text": "a"} for k in range(10)]
    folder = picture_folder(tmp_path, 8, rows)
    with pytest.raises(DataLost, match=r"2 of 10 samples are damaged or lost .* more than the budget of 10 %"):
        open_data(folder)
    assert open_data(folder, budget=0.2).samples == 8
    assert check(open_data(folder, tolerant=True))["usable"] is False


@pytest.mark.parametrize(
    "path", ["pipe:touch SENTINEL", "https://example.org/x.tar", "s3://a/b", "*.tar", "{0..9}.tar", "{a,b}" * 50, "no"]
)
def test_addresses_commands_and_patterns_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOPEN_REWRITE", "https=pipe:touch SENTINEL")
    with pytest.raises(ValueError, match=r"nothing is fetched or run|there is no data"):
        open_data(path)
    assert os.listdir(tmp_path) == []


def test_the_digest_says_what_the_data_are_and_not_where(tmp_path: Path) -> None:
    one, other = picture_folder(tmp_path / "one"), picture_folder(tmp_path / "other")
    assert open_data(one).digest == open_data(other).digest
    rows = [{"file_name": f"{k}.png", "text": f"pictuRe {k}"} for k in range(4)]
    assert open_data(picture_folder(tmp_path / "words", rows=rows)).digest != open_data(one).digest
    (other / "3.png").write_bytes(png(3, (64, 64)))
    assert open_data(other).digest != open_data(one).digest
