"""Ray Data on a local cluster of two workers: the bytes of one process, and no silent loss."""

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
from unidiffuser.cluster import Carry, WorkFailedError, cluster
from unidiffuser.datasets import open_data
from unidiffuser.modalities import text as texts

for needed in ("ray", "pandas", "pyarrow"):
    pytest.importorskip(needed, reason="the extra [ray] is not installed")
if (os.cpu_count() or 1) < 2:
    pytest.skip("two workers need two cores", allow_module_level=True)


@pytest.fixture(scope="module")
def carry() -> Iterator[Carry]:
    before = signal.getsignal(signal.SIGTERM)
    with cluster(2) as found:
        assert signal.getsignal(signal.SIGTERM) is before
        yield found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_encoding_writes_the_bytes_of_one_process(
    carry: Carry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(texts, "REPULSION_STEPS", 5)
    monkeypatch.setattr(encoding, "MOST_ROWS", 3)
    three_modalities(tmp_path / "digits")
    line = ["data", "encode", str(tmp_path / "digits"), "--json", "--out"]
    assert main([*line, str(tmp_path / "one")]) == 0
    assert main([*line, str(tmp_path / "two"), "--ray", "--workers", "2"]) == 0
    one, two = (json.loads(each) for each in capsys.readouterr().out.splitlines())
    assert one | {"out": ""} == two | {"out": ""} and one["shards"] == 5
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(open_data(tmp_path / "two").pairs[0]) == {"image", "sound", "text"}


def test_sampling_writes_the_bytes_of_one_process(
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


def test_a_worker_that_dies_does_its_item_again_and_a_failure_is_one_sentence(carry: Carry, tmp_path: Path) -> None:
    here = os.getcwd()

    def work(item: Any) -> Any:
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(1)
        raise RuntimeError(f"no\nway with {item} in {os.getcwd()}")

    with pytest.raises(WorkFailedError, match=rf"^a worker on \S+ failed: RuntimeError: no way with \[7\] in {here}$"):
        list(carry(work, [[7]]))
    assert (tmp_path / "died").exists() and list(carry(work, [])) == []
    for workers in (0, 9999):
        with pytest.raises(ValueError, match=f"{workers} workers cannot be had: each takes a CPU"), cluster(workers):
            pass
