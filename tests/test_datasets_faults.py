"""Faults while samples are read: damage within and beyond the budget, a folder that goes away and comes back."""

import errno
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data_folders import picture_folder, png, shard_members, tar, which
from torch.utils.data import DataLoader, Dataset

from unidiffuser.datasets import Data, DataLost, files, open_data
from unidiffuser.datasets.faults import OTHER, Damaged, Tally
from unidiffuser.datasets.files import training_part


def shards(folder: Path) -> Path:
    return tar(folder / "0.tar", shard_members(range(12))).parent


def parquets(folder: Path) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'data'")
    import pyarrow

    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"image": [png(k) for k in range(12)]}), folder / "0.parquet", row_group_size=1)
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda folder: picture_folder(folder, 12),
    "webdataset": shards,
    "parquet": parquets,
}


def test_one_damaged_picture_among_many_is_logged_once_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = picture_folder(tmp_path, 50)
    (folder / "17.png").write_bytes(b"no picture")
    data = open_data(folder)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [which(data.pairs[i]["image"]) for i in range(50)] == [k if k != 17 else 18 for k in range(50)]
    assert len(caplog.records) == 1 and "17.png is skipped: the file given is not a PNG" in caplog.text
    [found] = data.report()["sources"][0]["damaged"].values()
    assert found == {"count": 1, "first": ["17.png"]}


def test_more_than_the_budget_stops_with_the_reasons(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path, 20)
    for k in (3, 4, 5):
        (folder / f"{k}.png").write_bytes(png(k)[:-20])
    data = open_data(folder)
    with pytest.raises(DataLost, match=r"3 of 20 samples are damaged or lost \(3: the picture given is damaged"):
        for i in range(20):
            data.pairs[i]


def test_a_budget_of_nothing_lets_one_sample_be_damaged_and_no_more() -> None:
    tally = Tally(source="x", budget=0.0)
    tally.met(Damaged("why"), "a", 10)
    tally.met(Damaged("why"), "a", 10)
    with pytest.raises(DataLost):
        tally.met(Damaged("why"), "b", 10)


def test_a_tally_does_not_grow_without_bound() -> None:
    tally = Tally(source="x")
    for k in range(1000):
        tally.count("damaged", f"reason {k}", f"name {k}")
    described = tally.described()["damaged"]
    assert len(described) == 51 and described[OTHER]["count"] == 950 and len(described[OTHER]["first"]) == 5


def test_a_file_that_is_gone_is_one_damaged_sample_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.time, "sleep", pytest.fail)
    folder = picture_folder(tmp_path, 20)
    data = open_data(folder)
    (folder / "5.png").unlink()
    assert which(data.pairs[5]["image"]) == 6
    [reason] = data.report()["sources"][0]["damaged"]
    assert reason == "its file cannot be read (No such file or directory)"


@pytest.mark.parametrize("how", ["removed", "emptied"])
@pytest.mark.parametrize("format", FOLDERS)
def test_a_folder_that_is_gone_is_lost_after_a_few_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, how: str
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    folder = FOLDERS[format](tmp_path / "data")
    data = pickle.loads(pickle.dumps(open_data(folder)))  # as in another process, with nothing kept
    shutil.rmtree(folder)
    if how == "emptied":
        folder.mkdir()  # as a mount point without its mount
    with pytest.raises(DataLost, match=r"cannot be read any more \(No such file or directory\); bring the folder back"):
        data.pairs[3]
    assert waited == list(files.WAITS)
    assert data.report()["sources"][0].get("damaged") is None


def test_a_folder_that_comes_back_within_the_attempts_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = picture_folder(tmp_path / "data", 3)
    data = open_data(folder)
    away = folder.rename(tmp_path / "away")
    monkeypatch.setattr(files.time, "sleep", lambda _: away.rename(folder))
    assert which(data.pairs[1]["image"]) == 1


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
def test_a_file_that_stays_unreadable_is_damaged_after_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waited.append)
    data = open_data(picture_folder(tmp_path, 20))

    def failing(path: Path, mode: str) -> Any:
        if Path(path).name == "4.png":
            raise OSError(error, "the disk says no, in its own words")
        return open(path, mode)

    monkeypatch.setattr(files, "open", failing, raising=False)
    assert [which(data.pairs[i]["image"]) for i in (3, 4, 4)] == [3, 5, 5]
    assert waited == list(files.WAITS)  # once: a damaged row is not tried again


def test_a_shard_that_got_shorter_loses_its_last_samples(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", shard_members(range(20)))
    data = open_data(tmp_path)
    os.truncate(path, 19 * 3072 + 600)
    assert [which(data.pairs[i]["image"]) for i in (18, 19)] == [18, 0]
    os.truncate(path, 10 * 3072)
    with pytest.raises(DataLost, match=r"3 of 20 samples are damaged or lost \(3: its file is cut short\)"):
        [data.pairs[i] for i in range(10, 20)]


class Worker(Dataset[Any]):
    """A data set in loader processes."""

    def __init__(self, data: Data) -> None:
        self.pairs = data.pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        sample = self.pairs[index]
        return torch.tensor([which(sample["image"]), self.pairs.label_of(index)])


@pytest.mark.parametrize("format", FOLDERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_see_the_same_samples(tmp_path: Path, format: str, workers: int) -> None:
    data = open_data(FOLDERS[format](tmp_path))
    data.pairs[0]
    loader: DataLoader[Any] = DataLoader(Worker(data), batch_size=4, num_workers=workers)
    assert torch.cat(list(loader))[:, 0].tolist() == list(range(12))


def test_open_data_can_be_sent_to_another_process(tmp_path: Path) -> None:
    picture_folder(tmp_path / "a", 5)
    tar(tmp_path / "b/0.tar", shard_members(range(5, 8)))
    data = open_data([tmp_path / "a", tmp_path / "b"])
    again = pickle.loads(pickle.dumps(data))
    assert [which(again.pairs[i]["image"]) for i in range(8)] == list(range(8))
    assert again.digest == data.digest


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["a", "b"], ["a", "b"]),
        (["test", "val"], ["test", "val"]),
        (["train", "test", "extra"], ["train", "extra"]),
        (["captions_train2017.json", "captions_val2017.json"], ["captions_train2017.json"]),
        (["data/train-00000.parquet", "data/validation-00000.parquet"], ["data/train-00000.parquet"]),
        (["training", "latest", "evaluate"], ["training", "latest", "evaluate"]),
    ],
)
def test_parts_that_are_held_out(names: list[str], train: list[str]) -> None:
    assert training_part(names) == (train, [name for name in names if name not in train])
