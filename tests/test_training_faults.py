"""A run under fire: what kills, fills, damages or disturbs it, and that no step is lost.

The kills come at random instants; `KILLS=100 pytest tests/test_training_faults.py -k instants` sends a hundred.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paired import Paired, preset
from torch import Tensor

from unidiffuser import optimise
from unidiffuser.checkpoints import training as checkpoints
from unidiffuser.train import train
from unidiffuser.training import TrainingError, folder, saving
from unidiffuser.training.overrides import changed
from unidiffuser.training.state import Optimisers

KILLS = int(os.environ.get("KILLS", "5"))
HERE = Path(__file__).parent


def digest(run: Path) -> dict[str, str]:
    """The sha256 of every weight file of a finished run."""
    files = sorted(run.glob("final*/*.safetensors"))
    assert files
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    train(preset(), run)
    return run


def same(run: Path, straight: Path) -> bool:
    lines = [
        [{k: v for k, v in json.loads(line).items() if k != "samples_per_second"} for line in text.splitlines()]
        for text in ((r / _METRICS).read_text() for r in (run, straight))
    ]
    return digest(run) == digest(straight) and lines[0] == lines[1]


_METRICS = "network/metrics.jsonl"


def forked(run: Path, made: Any) -> int:
    """Train in a child that has torch already; its process number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(made, run)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def test_kills_at_random_instants_lose_at_most_an_interval(tmp_path: Path, straight: Path) -> None:
    dice, kills, finished = random.Random(5), 0, 0
    made, begin = preset(), time.monotonic()
    assert os.waitpid(forked(tmp_path / "timed", made), 0)[1] == 0
    span = time.monotonic() - begin
    while kills < KILLS:
        run, before = tmp_path / f"run-{finished}", kills
        while True:
            child = forked(run, made)
            # Somewhere in the time that a whole run takes; more of it where a slow machine has not come to an end yet.
            deadline = time.monotonic() + dice.uniform(0, span * (1 + (kills - before) / 8))
            gone = 0
            while time.monotonic() < deadline and not gone:
                gone, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.002)
            if gone:
                assert status == 0
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            reached = [json.loads(line)["step"] for line in _whole_lines(run / _METRICS)]
            found = checkpoints.find(run / "network") if (run / "network").exists() else None
            assert max(reached, default=0) - (found[0] if found else 0) <= made.training.save_every
        assert same(run, straight)
        assert [p.name for p in run.rglob("*") if ".tmp-" in p.name or p.name.startswith(".")] == []
        finished += 1


def test_what_killed_processes_left_half_written_goes_and_what_a_person_put_there_stays(
    tmp_path: Path, straight: Path
) -> None:
    run = tmp_path / "run"
    left = ["final.old-17", "final-0.9.new-17", "codecs.new-17", "preset.json-17", "network/.metrics.jsonl-17"]
    left = [name if "/" in name else f".{name}" for name in left] + ["previews/.given.new-17"]
    own = [".notes-17", ".final.new-draft", "network/metrics.jsonl-17", "codecs.old-17/kept"]
    for name in [*(f"{name}/x" if name.endswith(("old-17", "new-17")) else name for name in left), *own]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("half")
    train(preset(), run)
    assert [name for name in left if (run / name).exists()] == []
    assert [name for name in own if not (run / name).exists()] == []
    assert digest(run) == digest(straight)


def _whole_lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_with_its_code(tmp_path: Path, straight: Path, number: int, code: int) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(HERE / "paired.py"), str(run), "training.steps=100000", "training.save_every=50000"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _until(lambda: len(list(_whole_lines(run / _METRICS))) > 2, child)
    child.send_signal(number)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == code, said
    assert "Traceback" not in said
    found = checkpoints.find(run / "network")
    assert found and found[0] >= json.loads(list(_whole_lines(run / _METRICS))[-1])["step"]


def _until(true: Callable[[], bool], child: "subprocess.Popen[str]") -> None:
    for _ in range(1200):
        if true():
            return
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("it took more than a minute")


def test_going_on_with_other_workers_and_twice_in_a_row_changes_no_bit(tmp_path: Path, straight: Path) -> None:
    run, made = tmp_path / "run", preset()
    for steps, workers in ((5, 0), (10, 2), (12, 3)):
        stopping = replace(made.training, steps=12)
        with pytest.MonkeyPatch.context() as patch:
            if steps < 12:
                patch.setattr(optimise._Run, "take_step", _stopped_at(steps))
                with pytest.raises(SystemExit):
                    train(replace(made, training=stopping, workers=workers), run)
            else:
                train(replace(made, training=stopping, workers=workers), run)
    assert same(run, straight)


def _stopped_at(step: int) -> Callable[..., Any]:
    take = optimise._Run.take_step

    def taken(self: Any, loss_of: Any) -> Any:
        result = take(self, loss_of)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    return taken


@pytest.mark.parametrize("where", ["save_file", "fsync", "rename", "write_text"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, broken = tmp_path / "run", [0]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def full(*args: Any, **kwargs: Any) -> Any:
            if any(f"step-{step:08d}" in str(a) or broken[0] == 2 for a in args for step in (8,)) and broken[0]:
                raise OSError(errno.ENOSPC, "No space left on device", "the disk")
            return real(*args, **kwargs)

        return full

    owner: Any = {"save_file": checkpoints, "fsync": os, "rename": os, "write_text": Path}[where]
    real = getattr(owner, where)
    take = saving.save

    def saved(place: Path, step: int, *rest: Any) -> str:
        broken[0] = 2 if step == 8 else 0
        monkeypatch.setattr(owner, where, failing(real))
        try:
            return take(place, step, *rest)
        finally:
            broken[0] = 0
            monkeypatch.setattr(owner, where, real)

    monkeypatch.setattr(saving, "save", saved)
    train(preset(), run)  # one refusal is forgiven
    assert "could not be written" in caplog.text and "No space" in caplog.text
    assert same(run, straight)


def test_a_disk_that_stays_full_stops_the_run_and_the_same_line_goes_on(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", checkpoints.save

    def full(place: Path, step: int, state: Mapping[str, Tensor]) -> Path:
        if step > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(place))
        return real(place, step, state)

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(TrainingError, match=r"no checkpoint could be written .*No space.*make room"):
        train(preset(), run)
    found = checkpoints.find(run / "network")
    assert found and found[0] == 4
    monkeypatch.undo()
    train(preset(), run)
    assert same(run, straight)


@pytest.mark.parametrize("damage", ["truncate", "flip", "no mark", "empty mark", "missing file"])
def test_a_damaged_newest_checkpoint_is_passed_over_loudly(
    tmp_path: Path, straight: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "final")
    newest = run / "network/checkpoints/step-00000012"
    state, mark = newest / checkpoints.STATE, newest / checkpoints.MARK
    if damage == "truncate":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "flip":
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 4
        state.write_bytes(data)
    elif damage == "no mark":
        mark.unlink()
    elif damage == "empty mark":
        mark.write_text("[]")
    else:
        state.unlink()
    train(preset(), run)
    assert "step-00000012 is damaged" in caplog.text
    assert same(run, straight)


def test_when_all_checkpoints_are_damaged_the_run_refuses(tmp_path: Path, straight: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "final")
    for state in run.glob("network/checkpoints/*/state.safetensors"):
        state.write_bytes(b"")
    with pytest.raises(ValueError, match=r"all checkpoints .* are damaged"):
        train(preset(), run)


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path, straight: Path) -> None:
    run = tmp_path / "run"
    ready, wait = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with folder.locked(run):
            os.write(ready[1], b"x")
            os.read(wait[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(ValueError, match=rf"is being trained by process {child} on "):
        train(preset(), run)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    train(preset(), run)
    assert same(run, straight)


@pytest.mark.parametrize("change", ["network.dim=64", "training.seed=4", "ends=0.2", "codecs.text.width=8", "space=x0"])
def test_another_configuration_is_refused_with_the_difference(tmp_path: Path, straight: Path, change: str) -> None:
    name, _, value = change.partition("=")
    with pytest.raises(ValueError, match=rf"other settings \({name}: it was .*, now \"?{value}"):
        train(changed(preset(), [(name, value)]), straight)


def test_other_data_are_refused(straight: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings \(pairs: it was"):
        train(replace(preset(), data="others"), straight)


@pytest.mark.parametrize(
    "change", ["training.log_every=5", "workers=0", "training.steps=14", "training.accumulate=2", "preview_every=100"]
)
def test_a_harmless_change_goes_on(tmp_path: Path, straight: Path, change: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    name, _, value = change.partition("=")
    train(changed(preset(), [(name, value)]), run)


def test_the_same_call_on_a_finished_run_trains_nothing(straight: Path) -> None:
    told: list[Any] = []
    before = (straight / "final/model.safetensors").stat().st_mtime_ns
    train(preset(), straight, progress=lambda *said: told.append(said))
    assert not told and (straight / "final/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("where", "step", "said"),
    [
        ("forward", 6, "the weights are saved"),
        ("backward", 6, "the weights are saved"),
        ("machine", 6, "the weights are saved"),
        ("step", 4, "the run goes on from its last checkpoint"),  # some weights have moved, and others may have not
    ],
)
def test_out_of_memory_keeps_what_was_trained_and_says_what_to_change(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, where: str, step: int, said: str
) -> None:
    from unidiffuser import stages

    loss_of, move, calls = stages.noised_loss, Optimisers.step, [0]

    def refuse(*_: Any) -> None:
        if where == "machine":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        raise torch.OutOfMemoryError("out of memory")

    def greedy(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 7 and where in ("forward", "machine"):
            refuse()
        loss, parts = loss_of(*args, **kwargs)
        if calls[0] == 7 and where == "backward":
            loss.register_hook(refuse)
        return loss, parts

    def moved(self: Optimisers, share: float) -> None:
        move(self, share)
        if calls[0] == 7 and where == "step":
            refuse()

    monkeypatch.setattr(stages, "noised_loss", greedy)
    monkeypatch.setattr(Optimisers, "step", moved)
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=rf"8 samples does not fit in memory; {said}.*training\.accumulate=2"):
        train(preset(), run)
    found = checkpoints.find(run / "network")
    assert found and found[0] == step
    monkeypatch.undo()
    train(preset(), run)
    assert same(run, straight)


@dataclass(frozen=True)
class Broken(Paired):
    """From the sample `at` of an epoch's reading on, something goes wrong in the loader."""

    how: str = "refuse"
    every: int = 1

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        pair = dict(super().__getitem__(index))
        if index % self.every == 0:
            if self.how == "unreadable":
                raise ValueError("the picture is damaged")
            if self.how == "unknown word":
                pair["text"] = "purple above"
            if self.how == "die" and multiprocessing.parent_process():  # in a loader, not where the tests run
                os.kill(os.getpid(), signal.SIGKILL)
        return pair


def test_values_that_cannot_be_used_are_counted_and_too_many_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = preset(Broken(length=400, how="unreadable", every=200), steps=30)
    train(few, tmp_path / "few")
    many = replace(preset(Broken(length=400, how="unknown word", every=10), steps=60), values=_plain_values)
    with pytest.raises(TrainingError, match=r"values among \d+ samples could not be used.*purple"):
        train(many, tmp_path / "many")
    assert "purple" in caplog.text and checkpoints.find(tmp_path / "many/network")


def _plain_values(name: str, most: int) -> Iterator[Any]:
    return (Paired()[i][name] for i in range(16))


def test_a_loader_process_that_dies_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    dying = replace(preset(Broken(length=400, how="die", every=350), steps=100, seed=1), values=_plain_values)
    with pytest.raises(TrainingError, match="a loader process died"):
        train(dying, tmp_path / "run")


@pytest.mark.parametrize("length", [1, 3])
def test_fewer_samples_than_a_batch_are_gone_through_again(tmp_path: Path, length: int) -> None:
    train(preset(Paired(length=length), steps=3), tmp_path / "run")
    assert (tmp_path / "run/final").is_dir()


@pytest.mark.parametrize("place", ["metrics.jsonl", "tensorboard"])
def test_a_sink_that_fails_never_stops_training(
    tmp_path: Path, straight: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    (run / "network").mkdir(parents=True)
    if place == "metrics.jsonl":
        (run / "network" / place).mkdir()
    else:
        (run / "network" / place).write_text("in the way")
    train(replace(preset(), tensorboard=True), run)
    assert digest(run) == digest(straight) and "left out" in caplog.text


@pytest.mark.parametrize("where", ["batch", "gradient", "weight"])
def test_numbers_that_are_not_finite_never_reach_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from unidiffuser import stages

    real, calls = stages.noised_loss, [0]

    def poisoned(objective: Any, network: Any, x0: Any, *rest: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5 and where == "batch":
            x0 = {s: x * float("nan") for s, x in x0.items()}
        loss, parts = real(objective, network, x0, *rest, **kwargs)
        if calls[0] == 5 and where == "gradient":
            loss = loss + (next(network.parameters()).sum() * 0).sqrt()
        if calls[0] == 5 and where == "weight":
            loss = loss * 1e38 * 10
        return loss, parts

    monkeypatch.setattr(stages, "noised_loss", poisoned)
    model = train(preset(), tmp_path / "run")
    assert calls[0] == 12
    assert all(bool(x.isfinite().all()) for x in model.network.state_dict().values())
    found = checkpoints.newest(tmp_path / "run/network")
    assert found and all(bool(x.isfinite().all()) for x in found[1].values())
