"""Tables of events: the formats, what is dropped and counted, what is refused, the splits and the negatives."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from unidiffuser.cli import main
from unidiffuser.recommend.events import UNKNOWN
from unidiffuser.recommend.splits import Protocol, split
from unidiffuser.recommend.tables import convert, format_of, is_events, read_table
from unidiffuser.recommend.tables.rows import Table


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def rows(table: Table) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(row.user, row.item, row.words) for row in table.rows(torch.arange(len(table.events)))]


EXPECTED = [("u1", "i1", ()), ("u1", "i2", ("red", "shoe")), ("u2", "i1", ("hat",))]


def test_plain_tables_in_every_spelling(tmp_path: Path) -> None:
    spellings = {
        "a.tsv": ("item\tuser\tquery\tshop", "i1\tu1\t\tx", "i2\tu1\tred shoe\tx", "i1\tu2\that\tx"),
        "b.csv": ("User_ID,Item_ID,Query", "u1,i1,", "u1,i2,\"['red', 'shoe']\"", "u2,i1,hat"),
        "c.txt": ("u1 i1", "u1 i2 red shoe", "", "u2 i1 hat"),
        "d.tsv": ("u1\ti1", "u1\ti2\tred shoe", "u2\ti1\that"),
        "e.csv": ("﻿user,item,query,label", "u1,i1,,1", "u9,i9,,0", "u1,i2,red shoe,1", "u2,i1,hat,1"),
    }
    for name, lines in spellings.items():
        table = read_table(write(tmp_path / name, *lines))
        assert rows(table) == EXPECTED, name
        assert table.names.words.labels[0] == "" and table.time is None
    assert read_table(tmp_path / "e.csv").counts["rows with label 0, dropped"] == 1
    assert read_table(tmp_path / "a.tsv").counts["columns passed over in a.tsv: shop"] == 1


def test_a_compressed_table_and_a_folder_of_parts(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "train.tsv.gz", "wt") as file:
        file.write("user\titem\nu1\ti1\nu1\ti2\n")
    write(tmp_path / "test.tsv", "user\titem", "u1\ti3")
    data = split(read_table(tmp_path), Protocol(negatives=0))
    assert (len(data.train), len(data.valid), len(data.test)) == (2, 0, 1)
    assert sorted(data.names.items.labels) == ["i1", "i2", "i3"]


def test_recbole_atomic_files_there_and_back(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\trating:float\tquery:token_seq\ttimestamp:float"
    write(tmp_path / "a.inter", header, "u1\ti1\t5\t\t3", "u1\ti2\t4\tred shoe\t2.5", "u2\ti1\t1\that\t9")
    table = read_table(tmp_path)
    assert format_of(tmp_path) == "recbole" and rows(table) == EXPECTED
    assert table.time is not None and table.time.tolist() == [3.0, 2.5, 9.0]
    files, _ = convert(tmp_path, tmp_path / "out")
    again = read_table(tmp_path / "out")
    assert [file.name for file in files] == ["out.inter"]
    assert rows(again) == EXPECTED and again.time is not None and again.time.tolist() == [3.0, 2.5, 9.0]
    with pytest.raises(ValueError, match="--force"):
        convert(tmp_path, tmp_path / "out")


def test_the_papers_files_keep_their_parts_and_candidates(tmp_path: Path) -> None:
    write(
        tmp_path / "train.csv", "user,query,Item,label", 'u1,"[3, 14]",i1,1', "u1,[],i2,1", "u2,[],i2,0", "u2,[],i3,1"
    )
    lines = ("sample_num,user,query,item,label", "0,u1,[3],i3,1", "0,u1,[3],i2,0", "0,u1,[3],i4,0", "1,u2,[],i1,1")
    write(tmp_path / "valid.csv", *lines)
    write(tmp_path / "test.csv", *lines)
    table = read_table(tmp_path)
    data = split(table, Protocol())
    assert format_of(tmp_path) == "mt-small"
    assert rows(table)[:2] == [("u1", "i1", ("3", "14")), ("u1", "i2", ())]
    assert (len(data.train), len(data.valid), len(data.test)) == (3, 2, 2)
    labels = [[data.names.items[i] for i in row if i != UNKNOWN] for row in data.candidates["test"].tolist()]
    assert labels == [["i3", "i2", "i4"], ["i1"]]
    assert table.counts["training rows with label 0, dropped"] == 1


def test_a_query_is_parsed_and_never_evaluated(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    evil = f"\"[__import__('pathlib').Path('{touched}').touch()]\""
    table = read_table(write(tmp_path / "a.csv", "user,item,query", f"u1,i1,{evil}"))
    assert not touched.exists() and len(table.names.words) > 1


def test_kuaisars_two_tables(tmp_path: Path) -> None:
    write(tmp_path / "rec_inter.csv", "user_id,item_id,click,timestamp,x", "1,5,1,10.5,0", "1,6,0,11,0")
    header = "user_id,search_session_id,keyword,item_id,click_cnt,search_session_timestamp"
    write(tmp_path / "src_inter.csv", header, '2,9,"[7, 8]",5,2,3', '2,9,"[7]",6,0,4', "2,9,[],6,1,5")
    table = read_table(tmp_path)
    assert format_of(tmp_path) == "kuaisar"
    assert rows(table) == [("1", "5", ()), ("2", "5", ("7", "8")), ("2", "6", ())]
    assert table.counts["rows that were shown and not clicked, passed over"] == 2
    assert table.counts["searches without a word, read as recommendations"] == 1


def test_clicks_that_are_no_number_are_called_clicks(tmp_path: Path) -> None:
    write(tmp_path / "src_inter.csv", "user_id,keyword,item_id,click_cnt,search_session_timestamp")
    for line, said in (("1,5,often,3", "clicks must be a number.*'often'"), ("1,5,1,noon", "a time must be.*'noon'")):
        write(tmp_path / "rec_inter.csv", "user_id,item_id,click,timestamp", line)
        with pytest.raises(ValueError, match=said):
            read_table(tmp_path)


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    long = "x" * 201
    words = " ".join(f"w{k}" for k in range(12))
    lines = (
        "u1\ti1\tred\t1",
        "u1\ti1\tred\t1",
        "u1\ti1\tred\t2",
        "\ti1\t\t1",
        f"{long}\ti1\t\t1",
        f"u2\ti2\t{words}\t4",
    )
    table = read_table(write(tmp_path / "a.tsv", "user\titem\tquery\ttime", *lines))
    assert rows(table) == [("u1", "i1", ("red",)), ("u1", "i1", ("red",)), ("u2", "i2", tuple(words.split()[:10]))]
    assert dict(table.counts) == {
        "rows read": 6,
        "exact repetitions, dropped": 1,
        "rows without a user or an item, dropped": 1,
        "rows with an id or a word of more than 200 characters, dropped": 1,
        "queries cut to 10 words": 1,
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "user\tquery\nu1\tred\n", "no column for the item"),
        ("a.tsv", "user\titem\nu1\n", "line 2: it has 1 fields, and 2 are needed"),
        ("a.tsv", "user\titem\tuser\nu1\ti1\tu1\n", "more than one column for the user"),
        ("a.tsv", "user\titem\ttime\nu1\ti1\tnoon\n", "a time must be a number"),
        ("a.tsv", "user\titem\ttime\nu1\ti1\tnan\n", "a time must be a number"),
        ("a.tsv", "user\titem\n", "holds no event"),
        ("a.tsv", "", "holds no event"),
        ("a.txt", "u1\n", "a line needs a user and an item"),
        ("a.tsv", "who\twhat\n17\t4\n", "looks like a header"),
        ("a.tsv", b"\xff\xfe\x00u", "not a text file in UTF-8"),
        ("a.tsv.gz", b"not gzip", "not a text file in UTF-8"),
        ("a.inter", "user_id:token\tquery:token_seq\nu1\tred\n", "no column for the item"),
        ("a.png", b"\x89PNG", "holds no table of events"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said):
        read_table(tmp_path / name)


def test_folders_that_are_not_one_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no"):
        read_table(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no table"):
        read_table(tmp_path)
    for name in ("a.inter", "b.inter"):
        write(tmp_path / name, "user_id:token\titem_id:token", "u\ti")
    with pytest.raises(ValueError, match=r"give one NAME\.inter"):
        read_table(tmp_path)
    write(tmp_path / "mt" / "train.csv", "user,query,item,label", "u1,[],i1,yes")
    write(tmp_path / "mt" / "test.csv", "sample_num,user,query,item,label", "0,u1,[],i1,1")
    with pytest.raises(ValueError, match="a label must be 0 or 1"):
        read_table(tmp_path / "mt")


def test_the_last_event_of_each_kind_is_tested_and_the_one_before_validates(tmp_path: Path) -> None:
    lines = [f"u1\ti{k}\t{'red' if k % 2 else ''}\t{10 - k}" for k in range(8)]  # time runs backwards through the file
    lines += ["u2\ti0\t\t1", "u2\ti1\t\t2", "u3\ti0\t\t1"]
    table = read_table(write(tmp_path / "a.tsv", "user\titem\tquery\ttime", *lines))
    data = split(table, Protocol(negatives=3))
    test = {(table.names.users[u], table.names.items[i]) for u, i in zip(data.test.user, data.test.item, strict=True)}
    valid = {
        (table.names.users[u], table.names.items[i]) for u, i in zip(data.valid.user, data.valid.item, strict=True)
    }
    assert test == {("u1", "i0"), ("u1", "i1"), ("u2", "i1")}
    assert valid == {("u1", "i2"), ("u1", "i3")}
    assert data.counts["users with one event"] == 1
    assert data.counts["test events with fewer than 3 negatives left"] == 2  # u1 has had everything
    for row, event in zip(data.candidates["test"].tolist(), range(len(data.test)), strict=True):
        had = table.events.item[table.events.user == data.test.user[event]].tolist()
        assert row[0] == int(data.test.item[event])
        others = [i for i in row[1:] if i != UNKNOWN]
        assert not set(others) & set(had) and len(set(others)) == len(others)


def test_without_time_a_seed_decides_and_the_same_seed_decides_the_same(tmp_path: Path) -> None:
    lines = [f"u{u} i{i}" for u in range(20) for i in range(6)]
    table = read_table(write(tmp_path / "a.txt", *lines))
    first, again, other = (split(table, Protocol(seed=s, negatives=0)).test.item.tolist() for s in (0, 0, 1))
    assert first == again != other


def test_nothing_left_to_learn_from_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.tsv", "user\titem", "u\ti")
    with pytest.raises(ValueError, match="no event is left for training"):
        split(read_table(tmp_path), Protocol())
    with pytest.raises(ValueError, match="negatives 0 to 10000"):
        Protocol(negatives=-1)


def test_data_check_knows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.csv", "user,item,query", "u1,i1,", "u1,i2,red shoe", "u1,i1,")
    assert main(["data", "check", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] and (found["format"], found["users"], found["items"], found["words"]) == ("plain", 1, 2, 2)
    assert (found["events"], found["searches"]) == (2, 1)
    assert found["counts"]["exact repetitions, dropped"] == 1
    bad = write(tmp_path / "b.csv", "user,item,time", "u1,i1,noon")
    assert main(["data", "check", str(bad)]) == 2
    assert "not usable" in capsys.readouterr().out
    assert not is_events(write(tmp_path / "c.csv", "image,text", "1.png,one"))
    assert not is_events(tmp_path / "nothing")
