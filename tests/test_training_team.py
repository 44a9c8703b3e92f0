"""Many processes over gloo: the steps of one, shards that any number reads, and no process left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from paired import preset

from unidiffuser import UniDiffuser
from unidiffuser.train import train

HERE = Path(__file__).parent


def start(run: Path, *changes: str, processes: int = 2) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(HERE / "paired.py"), str(run), *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(child: "subprocess.Popen[str]") -> None:
    said = child.communicate(timeout=180)[1]
    assert child.returncode == 0, said[-3000:]


def losses(run: Path) -> torch.Tensor:
    return torch.tensor([json.loads(line)["loss"] for line in (run / "network/metrics.jsonl").read_text().splitlines()])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("team") / "alone"
    train(preset(), run)
    return run


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, alone: Path, sharding: str) -> None:
    run = tmp_path / "run"
    finish(start(run, f"sharding={sharding}"))
    torch.testing.assert_close(losses(run), losses(alone), rtol=2e-3, atol=2e-3)  # bfloat16 products of other shapes
    a, b = (UniDiffuser.from_pretrained(r / "final").network.state_dict() for r in (run, alone))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 5e-3
    # Its checkpoints, shards or not, are read by one process, which goes on.
    model = train(preset(steps=14), run)
    assert len(losses(run)) >= 13 and all(x.isfinite().all() for x in model.network.state_dict().values())


def test_accumulated_parts_take_the_step_of_the_whole(tmp_path: Path, alone: Path) -> None:
    from unidiffuser.training.overrides import changed

    train(changed(preset(), [("training.accumulate", "4"), ("training.recompute", "true")]), tmp_path / "run")
    torch.testing.assert_close(losses(tmp_path / "run"), losses(alone), rtol=2e-3, atol=2e-3)


def test_when_a_process_dies_the_others_leave(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = start(run, "training.steps=100000")
    try:
        deadline = time.monotonic() + 180
        while not (run / "network/metrics.jsonl").exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(int((run / "lock").read_text().split()[1]), signal.SIGKILL)
        child.communicate(timeout=180)
        assert child.returncode != 0
    finally:
        child.terminate()
        child.wait()
