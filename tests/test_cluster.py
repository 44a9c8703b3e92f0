"""Ray Data on a local cluster of two workers: the bytes of one process, and nothing lost when a worker dies."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_folders import picture_folder
from test_datasets_mixing import three_modalities
from tiny_model import saved_model

from unidiffuser import encode as encoding
from unidiffuser.cli import main
from unidiffuser.datasets import open_data
from unidiffuser.modalities import text as texts

for needed in ("ray", "pandas", "pyarrow"):
    pytest.importorskip(needed, reason="the extra [ray] is not installed")
if (os.cpu_count() or 1) < 2:
    pytest.skip("two workers need two cores", allow_module_level=True)

from unidiffuser.cluster import Carry, WorkFailedError, cluster


@pytest.fixture(scope="module")
def carry() -> Iterator[Carry]:
    before = signal.getsignal(signal.SIGTERM)
    with cluster(2) as found:
        assert signal.getsignal(signal.SIGTERM) is before
        yield found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_answer_comes_once_also_of_a_worker_that_dies(carry: Carry, tmp_path: Path) -> None:
    here = os.getcwd()

    def work(item: Any) -> Any:
        if item == [3] and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(1)
        return {"item": item, "folder": os.getcwd(), "process": os.getpid()}

    answers = list(carry(work, [[k] for k in range(8)]))
    assert sorted(answer["item"] for answer in answers) == [[k] for k in range(8)]
    assert {answer["folder"] for answer in answers} == {here} and (tmp_path / "died").exists()
    assert os.getpid() not in {answer["process"] for answer in answers}
    assert list(carry(work, [])) == []


def test_a_failure_is_one_sentence_and_too_many_workers_are_refused(carry: Carry) -> None:
    def work(item: Any) -> Any:
        raise (ValueError if item else RuntimeError)("no\nway")

    with pytest.raises(WorkFailedError, match=r"^a worker on \S+ failed: no way$"):
        list(carry(work, [1]))
    with pytest.raises(WorkFailedError, match=r"failed: RuntimeError: no way$"):
        list(carry(work, [0]))
    with pytest.raises(ValueError, match="9999 workers need a CPU each, and the cluster has "), cluster(9999):
        pass


def test_encoding_on_two_workers_writes_the_bytes_of_one_process(
    carry: Carry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(texts, "REPULSION_STEPS", 5)
    monkeypatch.setattr(encoding, "MOST_ROWS", 3)
    three_modalities(tmp_path / "digits")
    line = ["data", "encode", str(tmp_path / "digits"), "--json", "--out"]
    assert main([*line, str(tmp_path / "one")]) == 0
    assert main([*line, str(tmp_path / "two"), "--ray", "--workers", "2"]) == 0
    one, two = (json.loads(each) for each in capsys.readouterr().out.splitlines())
    assert one | {"out": ""} == two | {"out": ""} and one["shards"] > 3
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(open_data(tmp_path / "two").pairs[0]) == {"image", "sound", "text"}


def test_sampling_on_two_workers_writes_the_bytes_of_one_process(
    carry: Carry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_model(tmp_path / "tiny")
    picture_folder(tmp_path / "photos", 1)
    rows = [{"text": "a large red circle"}, {"image": "photos/0.png"}, {"text": "a ___ circle"}, {"seed": 9}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = [
        "sample",
        "text",
        "--prompts",
        "rows.jsonl",
        "-n",
        "2",
        "--shard",
        "3",
        "--model",
        "tiny",
        "--json",
        "--out",
    ]
    assert main([*line, "one"]) == 1
    assert main([*line, "two", "--ray", "--workers", "2"]) == 1
    one, two = (json.loads(each) for each in capsys.readouterr().out.splitlines())
    assert one | {"out": ""} == two | {"out": ""}
    assert (one["samples"], one["failed"]) == (6, 2)  # a text to be sampled cannot be given whole
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and len(contents(tmp_path / "one")) == 4
