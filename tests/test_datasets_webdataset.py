"""Shards: the index of a tar, whatever was done to it, and samples as img2dataset writes them."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_folders import png, shard_members, tar, which

from unidiffuser.datasets import Data, DataLost, open_data
from unidiffuser.datasets import tar as archives
from unidiffuser.datasets.checking import check
from unidiffuser.datasets.tar import Broken, Member, Passed

HEADER = 512
PER_SAMPLE = 6 * HEADER  # three members, each a header and less than a block of data
END = 10 * 1024  # what Python's tarfile pads to


def seen(data: Data) -> list[tuple[int | None, str | None]]:
    samples = [data.pairs[i] for i in range(len(data.pairs))]
    return [(which(s["image"]) if "image" in s else None, s.get("text")) for s in samples]


def counts(data: Data, kind: str) -> dict[str, int]:
    return {reason: found["count"] for reason, found in data.report()["sources"][0].get(kind, {}).items()}


def pairs(n: int) -> list[tuple[int, str]]:
    return [(k, f"picture {k}") for k in range(n)]


def shard(folder: Path, n: int = 10, **columns: Any) -> Path:
    return tar(folder / "00000.tar", shard_members(range(n), **columns))


def test_samples_of_several_shards_in_order_and_at_random(tmp_path: Path) -> None:
    tar(tmp_path / "00000.tar", shard_members(range(3)))
    tar(tmp_path / "00001.tar", shard_members(range(3, 5)))
    data = open_data(tmp_path)
    assert seen(data) == pairs(5)
    assert [which(data.pairs[i]["image"]) for i in (4, 0, 3, 3)] == [4, 0, 3, 3]
    assert data.kinds["image"]["size"] == 8


def test_the_index_is_that_of_the_standard_library(tmp_path: Path) -> None:
    long = "a" * 90 + "/" + "b" * 150 + ".txt"
    members = [("é ü.txt", b"1"), (long, b"2"), ("a.b.c.txt", b""), ("d/e.txt", b"3" * 513), ("\udcff.txt", b"4")]
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        usable = members if format != tarfile.USTAR_FORMAT else [members[0], *members[2:]]
        path = tar(tmp_path / f"{format}.tar", usable, format)
        with tarfile.open(path) as archive:
            truth = [Member(m.name, m.offset_data, m.size) for m in archive.getmembers()]
        assert list(archives.index(path)) == truth


def test_members_of_a_key_need_not_lie_together_and_keys_may_have_dots(tmp_path: Path) -> None:
    names = ["a.png", "x.y.z.png", "ü.png", "./d/b.PNG", "a.txt", "ü.txt", "d/b.txt", "x.y.z.txt"]
    contents = [png(0), png(1), png(2), png(3), b"0", b"2", b"3", b"1"]
    data = open_data(tar(tmp_path / "0.tar", list(zip(names, contents, strict=True)), tarfile.PAX_FORMAT))
    assert seen(data) == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]


def test_captions_come_from_the_json_where_there_is_no_text(tmp_path: Path) -> None:
    members = [(name, content) for name, content in shard_members(range(3)) if not name.endswith(".txt")]
    assert seen(open_data(tar(tmp_path / "0.tar", members))) == pairs(3)


def test_a_sample_without_a_picture_or_a_text_trains_the_other(tmp_path: Path) -> None:
    members = [member for member in shard_members(range(3)) if member[0] not in ("00001.png", "00002.txt")]
    data = open_data(tar(tmp_path / "0.tar", members))
    assert seen(data) == [(0, "picture 0"), (None, "picture 1"), (2, None)]
    assert counts(data, "without") == {"image": 1, "text": 1}


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


DAMAGE: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "cut inside a file": (lambda p: cut(p, 7 * PER_SAMPLE + HEADER + 20), 7, "the shard is cut inside a file"),
    "cut inside a header": (lambda p: cut(p, 7 * PER_SAMPLE + 100), 7, "the shard is cut inside a header"),
    "cut between two samples": (lambda p: cut(p, 7 * PER_SAMPLE), 7, "the shard does not end as an archive does"),
    "cut in the midst of a sample": (lambda p: cut(p, 7 * PER_SAMPLE + 1024), 7, "does not end as an archive does"),
    "a flipped byte in a header": (
        lambda p: overwrite(p, 7 * PER_SAMPLE + 30, b"\xff"),
        7,
        "a header in the shard is damaged",
    ),
    "a header of zeros": (lambda p: overwrite(p, 7 * PER_SAMPLE, bytes(512)), 7, "a header in the shard is zeroed"),
    "nothing": (lambda p: cut(p, 0), 0, "the shard is empty"),
}


@pytest.mark.parametrize("beside", ["nothing", "stats", "parquet"])
@pytest.mark.parametrize("kind", list(DAMAGE))
def test_a_damaged_shard_is_never_silent(tmp_path: Path, kind: str, beside: str) -> None:
    damage, whole, why = DAMAGE[kind]
    damage(shard(tmp_path))
    tar(tmp_path / "00001.tar", shard_members(range(10, 20)))
    if beside == "stats":
        (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 12, "successes": 10}))
    if beside == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'data'")
        import pyarrow

        rows = {"key": [f"{k:05d}" for k in range(11)], "status": ["success"] * 10 + ["failed_to_download"]}
        parquet.write_table(pyarrow.table(rows), tmp_path / "00000.parquet")
    with pytest.raises(DataLost, match="damaged or lost"):
        open_data(tmp_path)
    data = open_data(tmp_path, tolerant=True)
    assert [k for k, _ in seen(data)] == [*range(whole), *range(10, 20)]
    [(reason, lost)] = counts(data, "lost").items()
    assert why in reason
    assert lost == 10 - whole if beside != "nothing" else lost >= 10 - whole and "guess" in reason
    assert check(data)["usable"] is False


def test_a_shard_that_lost_samples_without_a_trace_is_found_by_its_stats(tmp_path: Path) -> None:
    shard(tmp_path, 8)
    (tmp_path / "00000_stats.json").write_text('{"successes": 9}')
    data = open_data(tmp_path)
    assert counts(data, "lost") == {"the shard holds fewer samples than were written to it": 1}
    (tmp_path / "00000_stats.json").write_text("{")
    with pytest.raises(ValueError, match=r"00000_stats\.json is damaged"):
        open_data(tmp_path)


def test_a_shard_without_its_end_that_has_all_its_samples_is_noted(tmp_path: Path) -> None:
    cut(shard(tmp_path), 10 * PER_SAMPLE)
    (tmp_path / "00000_stats.json").write_text('{"successes": 10}')
    data = open_data(tmp_path)
    assert seen(data) == pairs(10) and counts(data, "lost") == {}
    assert list(counts(data, "noted")) == [
        "the shard does not end as an archive does, so it may be cut between two files"
    ]


def test_a_zeroed_block_inside_a_picture_is_a_damaged_picture(tmp_path: Path) -> None:
    overwrite(shard(tmp_path), 7 * PER_SAMPLE + HEADER + 40, bytes(30))
    report = check(open_data(tmp_path))
    assert (report["damaged"], report["usable"]) == (1, True)


def test_something_after_the_end_is_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path)
    with open(path, "ab") as file:
        file.write(b"garbage")
    [(reason, _)] = counts(open_data(tmp_path, tolerant=True), "lost").items()
    assert "something follows its end" in reason


class Sentinel:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch SENTINEL",)


def test_what_is_no_picture_text_sound_or_json_is_never_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Sentinel())
    names = ["pkl", "pickle", "pyd", "pt", "pth", "npy", "cbor", "tar", "mp4", "exe", "gz", "cls"]
    members = [*shard_members(range(2)), *((f"00000.{name}", bomb) for name in names), ("no_ending", bomb)]
    data = open_data(tar(tmp_path / "data/0.tar", members))
    assert seen(data) == pairs(2)
    assert counts(data, "ignored") == {
        **{f"members .{name} are never decoded": 1 for name in names},
        "members without an ending are never decoded": 1,
    }
    check(data)
    assert not list(tmp_path.rglob("SENTINEL"))


def test_a_pickle_that_calls_itself_a_picture_or_json_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Sentinel())
    members = [*shard_members(range(18)), ("a.png", bomb), ("a.txt", b"a"), ("b.png", png(1)), ("b.json", bomb)]
    report = check(open_data(tar(tmp_path / "data/0.tar", members)))
    assert report["damaged"] == 1 and not list(tmp_path.rglob("SENTINEL"))


def test_names_that_lead_out_duplicates_and_empty_members_are_counted(tmp_path: Path) -> None:
    members = shard_members(range(40))
    members += [("../x.png", png(0)), ("/etc/y.png", png(0)), ("00003.txt", b"again"), ("zero.png", b"")]
    data = open_data(tar(tmp_path / "0.tar", members))
    assert counts(data, "damaged") == {
        "the name of a member is not UTF-8, or leads out of its folder": 2,
        "a second member of the same key and kind": 1,
        "a member has no bytes": 1,
    }
    assert seen(data)[:40] == pairs(40) and not list(tmp_path.rglob("x.png"))


def special(name: str, type: bytes, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = type
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_links_devices_and_sparse_files_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info in (
            special("hard.png", tarfile.LNKTYPE, linkname="/etc/passwd"),
            special("sym.png", tarfile.SYMTYPE, linkname="/etc/passwd"),
            special("fifo.png", tarfile.FIFOTYPE),
            special("null.png", tarfile.CHRTYPE, devmajor=1, devminor=3),
            special("folder", tarfile.DIRTYPE),
            special("sparse.png", tarfile.REGTYPE, pax_headers={"GNU.sparse.size": str(2**60)}),
        ):
            archive.addfile(info)
        for name, content in shard_members(range(2)):
            info = special(name, tarfile.REGTYPE, size=len(content))
            archive.addfile(info, io.BytesIO(content))
    passed = {entry.name: entry.why for entry in archives.index(path) if isinstance(entry, Passed)}
    assert passed == {
        "hard.png": "links are not followed",
        "sym.png": "links are not followed",
        "fifo.png": "only plain files are read",
        "null.png": "only plain files are read",
        "sparse.png": "sparse files are not read",
    }
    assert seen(open_data(path)) == pairs(2)


def test_a_bomb_of_names_is_not_read_and_a_size_beyond_the_file_is_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(special("a.png", tarfile.REGTYPE, size=0, pax_headers={"comment": "x" * 10**6}))
    assert [entry.why for entry in archives.index(path) if isinstance(entry, Passed)] == [
        "its record of names is too large"
    ]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(special("huge.png", tarfile.REGTYPE, size=9 * 2**30))
    [entry] = archives.index(path)
    assert isinstance(entry, Broken) and entry.why == "the shard is cut inside a file"


LAION: dict[str, Any] = {
    "similarity": [0.1, 0.3, 0.35, None, 0.4],
    "punsafe": [0.01, 0.9, 0.2, 0.1, 0.3],
    "LANGUAGE": ["en", "en", "de", "en", "en"],
}


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"similarity": {"min": 0.3}}, [1, 2, 4]),
        ({"SIMILARITY": {"above": 0.3, "max": 0.35}}, [2]),
        ({"punsafe": {"below": 0.5}, "LANGUAGE": {"in": ["en"]}}, [0, 3, 4]),
        ({"language": {"not_in": ["en"]}}, [2]),
        ({"WIDTH": {"min": 103}}, [3, 4]),
        ({"width": {"max": 8}}, [0, 1, 2, 3, 4]),
    ],
)
@pytest.mark.parametrize("where", ["json", "parquet"])
def test_filters_on_the_columns_of_laion(tmp_path: Path, filters: dict[str, Any], left: list[int], where: str) -> None:
    if where == "json":
        shard(tmp_path, 5, **LAION)
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'data'")
        import pyarrow

        shard(tmp_path, 5)
        sizes = {"width": [8] * 5, "original_width": [100 + k for k in range(5)]}
        table = pyarrow.table({"key": [f"{k:05d}" for k in range(5)], **LAION, **sizes})
        parquet.write_table(table, tmp_path / "00000.parquet")
    (tmp_path / "data.json").write_text(json.dumps({"filters": filters}))
    data = open_data(tmp_path)
    assert [k for k, _ in seen(data)] == left
    assert sum(counts(data, "filtered").values()) == 5 - len(left)


def test_a_filter_on_a_column_that_is_not_there_says_which_are(tmp_path: Path) -> None:
    shard(tmp_path, 2)
    (tmp_path / "data.json").write_text('{"filters": {"beauty": {"min": 5}}}')
    with pytest.raises(ValueError, match=r"no column 'beauty' to filter on; it has 'image', 'txt'"):
        open_data(tmp_path)
    (tmp_path / "data.json").write_text('{"filters": {"width": {"min": 5000}}}')
    with pytest.raises(ValueError, match="no sample that can be used \\(2 are filtered"):
        open_data(tmp_path)
