"""Many processes over gloo: the steps of one, shards that any number reads, and no process left alone."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from paired import preset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from unidiffuser import UniDiffuser
from unidiffuser.checkpoints import training as checkpoints
from unidiffuser.train import train
from unidiffuser.training import saving
from unidiffuser.training.team import Team

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


@pytest.mark.parametrize("trouble", ["none", "no room for the shard of one", "no folder"])
def test_what_the_disk_refuses_is_told_to_all_and_nothing_half_written_stays(tmp_path: Path, trouble: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if trouble == "no folder":
        (run / "checkpoints").write_text("in the way")
    children = [saving_child(rank, tmp_path, run, full=rank == 1 and "room" in trouble) for rank in (0, 1)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    told = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    assert list(map(bool, told)) == [trouble != "none"] * 2
    assert list(run.rglob("*.tmp-*")) == []
    if trouble != "no folder":
        found = checkpoints.find(run)
        assert (found[0] if found else None) == (8 if trouble == "none" else None)


def saving_child(rank: int, place: Path, run: Path, *, full: bool) -> int:
    """One of two processes that save a state in shards; full: no file of it may have more than 4 KiB."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        patience = timedelta(seconds=60)
        dist.init_process_group("gloo", f"file://{place / 'store'}", patience, 2, rank)
        mesh = init_device_mesh("cpu", (2,))
        team = Team(rank=rank, size=2, control=dist.new_group(backend="gloo", timeout=patience))
        state = {"model.weight": distribute_tensor(torch.randn(2**14), mesh, [Shard(0)])}
        if full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        (place / f"told-{rank}").write_text(saving.save(run, 8, state, team))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


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
