"""COCO captions, parquet with bytes, arrays, and telling the formats apart."""

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import picture_folder, png, shard_members, tar, wav, which, write

from unidiffuser.datasets import Data, coco, open_data
from unidiffuser.datasets.checking import check


def seen(data: Data) -> list[tuple[int | None, str | None]]:
    samples = [data.pairs[i] for i in range(len(data.pairs))]
    return [(which(s["image"]) if "image" in s else None, s.get("text")) for s in samples]


def counts(data: Data, kind: str) -> dict[str, int]:
    return {reason: found["count"] for reason, found in data.report()["sources"][0].get(kind, {}).items()}


def coco_folder(folder: Path, n: int = 3, per_picture: int = 5, **changes: Any) -> Path:
    images = [{"id": 100 - k, "file_name": f"{k:012d}.jpg", "width": 8, "height": 8} for k in range(n)]
    said = [
        {"id": 10 * k + c, "image_id": 100 - k, "caption": f"{k} {c}"} for c in range(per_picture) for k in range(n)
    ]
    value = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": said} | changes
    files: dict[str, Any] = {f"train2017/{k:012d}.jpg": png(k) for k in range(n)}
    return write(folder, {**files, "annotations/captions_train2017.json": json.dumps(value)})


def test_all_five_captions_take_turns(tmp_path: Path) -> None:
    data = open_data(coco_folder(tmp_path))
    assert (data.samples, len(data.pairs)) == (3, 15)
    assert sorted(text for _, text in seen(data) if text) == sorted(f"{k} {c}" for k in range(3) for c in range(5))
    for turn in range(5):  # every turn shows every picture once
        assert [which(data.pairs[3 * turn + k]["image"]) for k in range(3)] == [0, 1, 2]
        assert [data.pairs[3 * turn + k]["text"].split()[0] for k in range(3)] == ["0", "1", "2"]
    assert seen(data) == seen(open_data(tmp_path))
    assert sorted(data.values("text")) == sorted(f"{k} {c}" for k in range(3) for c in range(5))


def test_the_held_out_captions_and_other_annotations_are_left_out(tmp_path: Path) -> None:
    coco_folder(tmp_path)
    empty = json.dumps({"images": [], "annotations": []})
    write(tmp_path, {"annotations/captions_val2017.json": empty, "annotations/instances_train2017.json": empty})
    assert open_data(tmp_path).samples == 3
    assert open_data(tmp_path / "annotations/captions_train2017.json").samples == 3


def test_orphans_duplicates_and_missing_pictures_are_counted(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": f"{k:012d}.jpg"} for k in (0, 1, 2, 1, 7)] + [{"id": "x"}]
    said = [{"image_id": k, "caption": str(k)} for k in (0, 2, 9)] + [{"image_id": 0, "caption": None}]
    data = open_data(coco_folder(tmp_path, images=images, annotations=said), tolerant=True)
    assert seen(data) == [(0, "0"), (1, None), (2, "2")]
    assert counts(data, "damaged") == {
        "its picture is not there": 1,
        "its captions refer to a picture that the file does not list": 1,
        "a second picture of the same id": 1,
        "a picture without an id or a file_name": 1,
        "a caption without an image_id or a text": 1,
    }


def test_a_picture_name_that_leads_out_is_a_hard_error(tmp_path: Path) -> None:
    coco_folder(tmp_path, images=[{"id": 1, "file_name": "../../x.jpg"}])
    with pytest.raises(ValueError, match="leads out of its folder"):
        open_data(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "bytes", "twice", "missing", "nothing"])
def test_damaged_coco_json_is_one_sentence(tmp_path: Path, damage: str) -> None:
    path = coco_folder(tmp_path) / "annotations/captions_train2017.json"
    text = path.read_bytes()
    replaced = {
        "cut": text[:-30],
        "bytes": text.replace(b"0 0", b"\xff 0"),
        "twice": text.replace(b'"id": 100', b'"id": 100, "id": 100'),
        "missing": text.replace(b'"info": {', b'"info" {'),
        "nothing": b'{"images": []}',
    }
    path.write_bytes(replaced[damage])
    with pytest.raises(ValueError, match=r"captions_train2017\.json (is damaged|lists no pictures)"):
        open_data(tmp_path)


def test_the_json_is_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seen(open_data(coco_folder(tmp_path)))
    for size in (1, 2, 7, 64):
        monkeypatch.setattr(coco, "PIECE", size)
        assert seen(open_data(tmp_path)) == whole


@pytest.fixture
def parquet() -> Any:
    return pytest.importorskip("pyarrow.parquet", reason="needs the extra 'data'")


def parquet_file(parquet: Any, path: Path, columns: dict[str, Any], rows_a_group: int = 3, **options: Any) -> Path:
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    parquet.write_table(table, path, row_group_size=rows_a_group, **options)
    return path


TEXTS = [f"picture {k}" for k in range(8)]


@pytest.mark.parametrize("name", ["image", "jpg", "img"])
@pytest.mark.parametrize("struct", [False, True])
def test_parquet_with_bytes_raw_or_in_a_struct(tmp_path: Path, parquet: Any, name: str, struct: bool) -> None:
    pictures: list[Any] = [png(k) for k in range(8)]
    if struct:
        pictures = [{"bytes": picture, "path": "/etc/passwd"} for picture in pictures]
    data = open_data(parquet_file(parquet, tmp_path / "0.parquet", {name: pictures, "caption": TEXTS}).parent)
    assert seen(data) == [(k, f"picture {k}") for k in range(8)]
    assert [which(data.pairs[i]["image"]) for i in (7, 0, 4, 1)] == [7, 0, 4, 1]
    assert check(data)["damaged"] == 0


def test_several_parquet_files_and_what_is_held_out(tmp_path: Path, parquet: Any) -> None:
    for name, ks in (("train-00000", range(4)), ("train-00001", range(4, 6)), ("test-00000", range(6, 8))):
        columns = {"image": [png(k) for k in ks], "text": [f"picture {k}" for k in ks]}
        parquet_file(parquet, tmp_path / f"data/{name}-of-2.parquet", columns)
    data = open_data(tmp_path)
    assert seen(data) == [(k, f"picture {k}") for k in range(6)]
    [source] = data.sources
    assert source.rows is not None and source.rows.name(4) == "data/train-00001-of-2.parquet:0"


def test_nulls_sounds_and_lists_of_captions_in_parquet(tmp_path: Path, parquet: Any) -> None:
    columns = {
        "image": [png(0), None, png(2), png(3)],
        "audio": [{"bytes": wav(k), "path": None} for k in range(4)],
        "captions": [["a", "b"], None, [], ["c"]],
    }
    data = open_data(parquet_file(parquet, tmp_path / "0.parquet", columns))
    assert [sorted(data.pairs[i]) for i in range(4)] == [
        ["image", "sound", "text"],
        ["sound"],
        ["image", "sound"],
        ["image", "sound", "text"],
    ]
    assert {data.pairs[i]["text"] for i in (0, 4)} == {"a", "b"}
    assert check(data)["modalities"]["image"]["present"] == 3


def test_a_path_in_parquet_is_not_followed(tmp_path: Path, parquet: Any) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    pictures = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": png(2), "path": None}]
    path = parquet_file(parquet, tmp_path / "data/0.parquet", {"image": pictures, "text": ["a", "b"]})
    assert next(iter(check(open_data(path))["sources"][0]["damaged"])).startswith("it holds a path and no bytes")


def test_parquet_of_addresses_says_that_it_holds_no_pictures(tmp_path: Path, parquet: Any) -> None:
    path = parquet_file(parquet, tmp_path / "0.parquet", {"url": ["https://example.org/a.jpg"], "TEXT": ["a"]})
    assert list(open_data(path).kinds) == ["text"]
    (tmp_path / "data.json").write_text('{"columns": {"image": "image", "text": "TEXT"}}')
    with pytest.raises(ValueError, match=r"no column 'image'; it has 'url', 'TEXT'"):
        open_data(tmp_path)


def test_arrow_extension_types_are_refused(tmp_path: Path, parquet: Any) -> None:
    import pyarrow

    storage = pyarrow.array([png(0)], pyarrow.binary())
    field = pyarrow.field("image", pyarrow.binary(), metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})
    table = pyarrow.table([storage], schema=pyarrow.schema([field]))
    with pytest.raises(ValueError, match="Arrow extension type, which is never read"):
        open_data(parquet_file(parquet, tmp_path / "a.parquet", table))
    known = pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), pyarrow.array([b"0" * 16], pyarrow.binary(16)))
    with pytest.raises(ValueError, match="Arrow extension type, which is never read"):
        open_data(parquet_file(parquet, tmp_path / "b.parquet", pyarrow.table({"id": known})))


@pytest.mark.parametrize("damage", ["cut", "empty", "html", "footer", "page"])
def test_damaged_parquet(tmp_path: Path, parquet: Any, damage: str) -> None:
    columns = {"image": [png(k) for k in range(8)], "text": TEXTS}
    path = parquet_file(parquet, tmp_path / "0.parquet", columns, use_dictionary=False, compression="none")
    whole = path.read_bytes()
    replaced = {
        "cut": whole[:-100],
        "empty": b"",
        "html": b"<html>",
        "footer": whole[:-60] + bytes(30) + whole[-30:],
        "page": whole[:4] + b"\xff" * 40 + whole[44:],
    }
    path.write_bytes(replaced[damage])
    if damage == "page":
        assert check(open_data(path, tolerant=True))["damaged"] == 3  # a row group
        return
    with pytest.raises(ValueError, match=r"0\.parquet (is no whole parquet file|says that)"):
        open_data(path)


def test_a_lie_about_the_number_of_rows_is_an_error_before_training(tmp_path: Path, parquet: Any) -> None:
    path = parquet_file(parquet, tmp_path / "0.parquet", {"image": [png(k) for k in range(8)], "text": TEXTS}, 8)
    data = path.read_bytes()
    # Thrift writes a count as a zigzag varint: 8 rows are 0x10, behind the tag of an i64 field
    lie = data.replace(b"\x16\x10", b"\x16\x7e")
    assert lie != data
    path.write_bytes(lie)
    with pytest.raises(ValueError, match=r"0\.parquet"):
        open_data(path)


def test_without_pyarrow_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1")
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"needs pyarrow, which is not installed: pip install 'unidiffuser\[data\]'"):
        open_data(tmp_path)


def arrays(path: Path, **values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **values)
    return path


IMAGES = (np.arange(6)[:, None, None] * np.ones((6, 28, 28))).astype(np.uint8)


def test_images_and_labels(tmp_path: Path) -> None:
    data = open_data(arrays(tmp_path / "digits.npz", images=IMAGES, labels=np.arange(6, dtype=np.uint8)).parent)
    assert data.kinds["image"] == {"kind": "image", "size": 32, "channels": 1}
    sample = data.pairs[3]
    assert sample["text"] == "3" and np.asarray(sample["image"])[0, 0] == 3 and check(data)["damaged"] == 0


def test_labels_may_have_names_and_numbers_may_be_a_vector(tmp_path: Path) -> None:
    features = np.arange(12.0).reshape(6, 2)
    arrays(tmp_path / "a.npz", images=IMAGES, labels=np.arange(6), features=features)
    columns = {"image": "images", "text": {"column": "labels", "names": ["zero", "one", "two"]}, "numbers": "features"}
    kinds = {"image": {}, "text": {}, "numbers": {"kind": "vector"}}
    (tmp_path / "data.json").write_text(json.dumps({"columns": columns, "modalities": kinds, "budget": 0.5}))
    data = open_data(tmp_path)
    assert data.pairs[2]["text"] == "two" and data.pairs[2]["numbers"].tolist() == [4.0, 5.0]
    assert check(data)["sources"][0]["damaged"]["a value has no name in the declaration"]["count"] == 3


def test_an_array_of_objects_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sentinel:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch SENTINEL",)

    monkeypatch.chdir(tmp_path)
    path = arrays(tmp_path / "a.npz", images=IMAGES, labels=np.array([Sentinel()] * 6, object))
    with pytest.raises(ValueError, match="holds objects, which is a pickle and never read"):
        open_data(path)
    assert not (tmp_path / "SENTINEL").exists()


def test_damaged_arrays(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", images=IMAGES, labels=np.arange(5))
    with pytest.raises(ValueError, match="different lengths"):
        open_data(path)
    whole = arrays(tmp_path / "b.npz", images=IMAGES, labels=np.arange(6)).read_bytes()
    for content in (whole[:200], b"", b"PK\3\4" + bytes(50), whole[:60] + b"\xff" * 40 + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz"):
            check(open_data(path))


def test_a_lie_about_the_size_of_an_array_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("images.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64)})
    with pytest.raises(ValueError, match="say that they hold 4096000000000 bytes"):
        open_data(tmp_path / "a.npz")


def test_a_folder_of_several_formats_is_not_guessed_about(tmp_path: Path) -> None:
    picture_folder(tmp_path)
    tar(tmp_path / "0.tar", shard_members(range(5, 7)))
    with pytest.raises(ValueError, match=r'say which in data\.json: \{"format": "folder"\}'):
        open_data(tmp_path)
    (tmp_path / "data.json").write_text('{"format": "webdataset"}')
    assert seen(open_data(tmp_path)) == [(5, "picture 5"), (6, "picture 6")]


def test_what_img2dataset_leaves_beside_its_shards_is_no_second_format(tmp_path: Path, parquet: Any) -> None:
    tar(tmp_path / "00000.tar", shard_members(range(3)))
    parquet_file(parquet, tmp_path / "00000.parquet", {"key": [f"{k:05d}" for k in range(3)]})
    (tmp_path / "00000_stats.json").write_text('{"successes": 3}')
    assert open_data(tmp_path).samples == 3


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.zip", "a.mp4", "a"])
def test_a_file_in_no_known_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="in no format that can be read"):
        open_data(tmp_path / name)
