"""What a run can be optimised with: Muon beside AdamW, a compiled network, and figures for TensorBoard."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paired import Paired, preset
from safetensors.torch import load_file

from unidiffuser import stages
from unidiffuser.checkpoints import training as checkpoints
from unidiffuser.joint import Joint
from unidiffuser.train import train
from unidiffuser.training.journal import Journal
from unidiffuser.training.overrides import changed
from unidiffuser.training.preset import Preset
from unidiffuser.training.state import Optimisers

MUON = ("training.muon", "0.01")


def with_muon() -> Preset:
    return changed(preset(), [MUON])


def weights(run: Path) -> Joint:
    return load_file(next((run / "final").glob("*.safetensors")))


def equal(a: Joint, b: Joint) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def crashed(run: Path, made: Preset, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """A run whose process fails after some steps."""
    step: Callable[[Any, float], None] = Optimisers.step
    taken = [0]

    def failing(self: Optimisers, share: float) -> None:
        if taken[0] == after:
            raise OSError("the power went")
        taken[0] += 1
        step(self, share)

    with monkeypatch.context() as patch:
        patch.setattr(Optimisers, "step", failing)
        with pytest.raises(OSError, match="power"):
            train(made, run)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("muon") / "straight"
    train(with_muon(), run)
    return run


@pytest.mark.parametrize("after", [4, 7, 11])
def test_muon_that_went_on_ends_in_the_same_bits(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    crashed(tmp_path / "run", with_muon(), monkeypatch, after)
    train(with_muon(), tmp_path / "run")
    assert equal(weights(tmp_path / "run"), weights(straight))


def test_the_moments_of_muon_are_saved_and_without_them_the_bits_differ(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    crashed(run, with_muon(), monkeypatch, 6)
    found = checkpoints.newest(run / "network")
    assert found is not None and found[0] == 4
    state = load_file(run / "network/checkpoints/step-00000004/state.safetensors")
    momenta = {name: x for name, x in state.items() if name.startswith("muon.")}
    matrices = [n for n, x in state.items() if n.startswith("model.") and "block" in n and x.ndim == 2]
    assert len(momenta) == len(matrices) > 4 and all(bool(x.any()) for x in momenta.values())
    monkeypatch.setattr("unidiffuser.checkpoints.sharded.load_file", lambda path: _without(load_file(path)))
    train(with_muon(), run)
    assert not equal(weights(run), weights(straight))


def _without(state: Joint) -> Joint:
    return {name: torch.zeros_like(x) if name.startswith("muon.") else x for name, x in state.items()}


def test_muon_changes_matrices_in_blocks_and_not_the_rate_of_the_rest(straight: Path, tmp_path: Path) -> None:
    train(preset(), tmp_path / "run")
    assert not equal(weights(tmp_path / "run"), weights(straight))


def test_muon_and_shards_do_not_go_together() -> None:
    sharded = changed(preset(), [("sharding", "fsdp")])
    assert sharded.sharding == "fsdp"
    for made in ([MUON, ("sharding", "fsdp")], [("sharding", "fsdp"), MUON]):
        with pytest.raises(ValueError, match="Muon needs whole matrices") as caught:
            changed(preset(), made)
        assert "training.muon=0" in str(caught.value)


def test_a_compiled_run_takes_the_steps_of_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is captured and then run by torch's own kernels, so that no minute goes into a compiler."""
    compiled, graphs = torch.compile, list[Any]()

    def captured(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(stages.torch, "compile", lambda called: compiled(called, backend=captured))
    pairs = Paired(without=5)
    train(changed(preset(pairs), [("training.compile", "true")]), tmp_path / "compiled")
    assert graphs
    train(preset(pairs), tmp_path / "plain")
    assert equal(weights(tmp_path / "compiled"), weights(tmp_path / "plain"))


def test_figures_for_tensorboard_can_be_read_back_and_are_those_of_a_straight_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Journal(tmp_path, 0, tensorboard=True)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    again = Journal(tmp_path, 2, tensorboard=True)  # the process was killed, and the last checkpoint is of step 2
    again.write(3, {"loss": 3.5})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 3.5)]


def test_a_run_tells_tensorboard_what_it_tells_its_journal(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(replace(changed(preset(), [("training.log_every", "3")]), tensorboard=True), tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "run/network/tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [3, 6, 9, 12]
    assert {"loss", "grad_norm", "image", "text"} <= set(found.Tags()["scalars"])
