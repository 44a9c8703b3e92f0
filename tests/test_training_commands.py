"""The command lines of training as a person types them: check, train, kill, the same line again, sample, evaluate."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from data_folders import colour, picture_folder

from unidiffuser.cli import main

TRAIN = "train --data pictures --run {run} --size tiny --batch 16 --steps 60 --save-every 20 --seed 3"
WORDS = ("red", "green", "blue", "grey")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 small pictures with four captions, and in it a straight run."""
    place = tmp_path_factory.mktemp("place")
    rows = [{"file_name": f"{k}.png", "text": f"mostly {WORDS[k % 4]}"} for k in range(48)]
    picture_folder(place / "pictures", 48, rows)
    assert len({colour(k) for k in range(48)}) == 48
    done = subprocess.run(command(TRAIN.format(run="runs/x")), cwd=place, env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return place


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(line: str) -> list[str]:
    return [sys.executable, "-m", "unidiffuser", *line.split()]


def sums(run: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (run / "final").glob("*.safetensors")}


def said(place: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(place)
    assert main(line.split()) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_the_data_are_checked(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(place, "data check pictures --json", monkeypatch, capsys)
    assert found["usable"] and found["samples"] == 48


def test_a_killed_run_ends_in_the_bits_of_the_straight_one_and_then_is_done(place: Path) -> None:
    line = command(TRAIN.format(run="runs/killed"))
    killed = subprocess.Popen(line, cwd=place, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    checkpoints = place / "runs/killed/network/checkpoints"
    deadline = time.monotonic() + 120
    while killed.poll() is None and not list(checkpoints.glob("step-????????")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (place / "runs/killed/final").exists()
    again = subprocess.run(line, cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert sums(place / "runs/killed") == sums(place / "runs/x") != {}
    before = (place / "runs/killed/final/config.json").stat().st_mtime_ns
    done = subprocess.run(line, cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and "is done: 60 steps" in done.stderr
    assert (place / "runs/killed/final/config.json").stat().st_mtime_ns == before


def test_the_model_samples(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(place, "sample image text --model runs/x/final -n 4 --out out --json", monkeypatch, capsys)
    assert [Path(row["image"]).is_file() for row in found["samples"]] == [True] * 4


def test_the_model_is_evaluated_on_the_data(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "evaluate runs/x/final --data pictures --samples 12 --steps 4 --html report.html --json"
    found = said(place, line, monkeypatch, capsys)
    assert set(found["left_out"]) == {"clip"} and found["features"] == "random" and found["settings"] == {"steps": 4}
    rows = found["rows"]
    assert rows["image given text: class"]["numbers"]["accuracy"]["n"] == 12
    assert rows["image and text: at once against image first"]["numbers"]["discrepancy"]["p"] <= 1
    assert rows["text: likelihood bound"]["numbers"]["given the others"]["n"] == 12
    for row in rows.values():
        assert row["what"] and row["numbers"]
    text = (place / "report.html").read_text()
    assert text.count("<tr>") == len(rows) + 1 and "data:image/png" in text
    before = (place / "report.html").read_bytes()
    assert main(line.split()) == 2
    assert "report.html is there already" in capsys.readouterr().err
    assert (place / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--html x.html", "--html goes with --data"),
        ("--data nowhere", "nowhere"),
        ("--data pictures --samples 3", "samples must lie between 8"),
        ("--data pictures --only taste", "no measure 'taste'; there are likeness"),
        ("--data pictures --features x", "no features 'x'"),
        ("--data pictures --inception no.pth", "no.pth"),
    ],
)
def test_a_wrong_evaluation_is_one_sentence(
    place: Path, flags: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["evaluate", "runs/x/final", *flags.split()]) in (1, 2)
    found = capsys.readouterr()
    assert words in found.err and found.err.count("\n") == 1 and found.out == ""


@pytest.mark.parametrize(
    "flags, name, value",
    [
        ("--name other", "name", "other"),
        ("--start some/model", "start", "some/model"),
        ("--start some/model --lora-rank 4", "adapter", {"rank": 4, "alpha": 0.0}),
    ],
)
def test_a_preset_takes_the_flags_of_data(
    flags: str, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "scenes", *flags.split(), "--print-config"]) == 0
    found = json.loads(capsys.readouterr().out)[name]
    assert (found.items() >= value.items()) if isinstance(value, dict) else found == value


def test_the_written_lines_of_torchrun_are_lines_of_torchrun() -> None:
    """Its parser takes --run for --run-path, so the lines that we write down hide ours behind two dashes."""
    from torch.distributed.run import parse_args

    root = Path(__file__).parents[1]
    written = [line.split() for line in (root / "docs/scale.md").read_text().splitlines() if "    torchrun " in line]
    assert len(written) == 2
    for words in written:
        asked = parse_args(words[1:])
        assert asked.training_script == "unidiffuser" and asked.module
        assert asked.training_script_args[:2] == ["train", "--data"]
    assert "$launch -m -- unidiffuser" in (root / "runs/laion.sh").read_text()
    with pytest.raises(SystemExit):
        parse_args([word for word in written[0][1:] if word != "--"])


def test_torchrun_trains_from_the_command_line_and_then_says_that_it_is_done(place: Path) -> None:
    line = TRAIN.format(run="runs/two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", "-m", "--", "unidiffuser", *line.split()]
    done = subprocess.run(launch, cwd=place, env=ENVIRONMENT, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert (place / "runs/two/final/model.safetensors").is_file()
    again = subprocess.run(launch, cwd=place, env=ENVIRONMENT, capture_output=True, timeout=120)
    assert again.returncode == 0, again.stderr.decode()[-2000:]
    assert again.stderr.decode().count("is done: 60 steps") == 1
