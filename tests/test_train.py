"""The loop over optimiser steps: exact resume, faults, order of the data, and that it learns."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unidiffuser.checkpoints import Settings
from unidiffuser.checkpoints import training as checkpoints
from unidiffuser.datasets.scenes import Scenes
from unidiffuser.joint import generator
from unidiffuser.networks.autoencoder import AutoEncoderConfig
from unidiffuser.optimise import OptimiserSettings, fit
from unidiffuser.presets import PRESETS
from unidiffuser.train import train
from unidiffuser.training.batches import Batches
from unidiffuser.training.preset import Preset, describe

SETTINGS = OptimiserSettings(
    steps=12, batch=4, warmup=2, cooldown=0.5, ema=0.9, save_every=5, log_every=4, autocast=False
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_blocks = nn.Linear(3, 3)
        self.head = nn.Linear(3, 1)


def loss_for(
    model: Small, at: Callable[[int], None] = lambda step: None
) -> Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]:
    def loss_of(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        at(step)
        x = torch.randn(4, 3, generator=generator("data", step))
        loss = (model.head(torch.tanh(model.in_blocks(x))) - x.sum(1, keepdim=True)).square().mean()
        return loss, {"part": loss.detach()}

    return loss_of


def run(
    folder: Path, at: Callable[[int], None] = lambda step: None, settings: OptimiserSettings = SETTINGS
) -> dict[str, Tensor]:
    model = Small()
    return {
        **fit(model, loss_for(model, at), settings, folder),
        **{f"raw.{k}": v for k, v in model.state_dict().items()},
    }


def test_without_clipping_the_loop_is_plain_adamw(tmp_path: Path) -> None:
    settings = replace(SETTINGS, warmup=0, cooldown=0.0, clip=0.0, weight_decay=0.0, ema=0.0, betas=(0.9, 0.999))

    def loud(model: Small) -> Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]:
        loss_of = loss_for(model)
        return lambda step: (loss_of(step)[0] * 10.0 ** (step % 3), {})

    model, plain, clipped = Small(), Small(), Small()
    fit(model, loud(model), settings, tmp_path / "off")
    fit(clipped, loud(clipped), replace(settings, clip=1.0), tmp_path / "on")
    optimiser, loss_of = torch.optim.AdamW(plain.parameters(), lr=settings.lr, weight_decay=0.0), loud(plain)
    for step in range(settings.steps):
        optimiser.zero_grad()
        loss_of(step)[0].backward()
        optimiser.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert float((clipped.head.weight - plain.head.weight).detach().abs().max()) > 1e-4


def stop_at(stop: int, how: Callable[[], Any]) -> Callable[[int], None]:
    return lambda step: how() if step == stop else None


def crash() -> None:
    raise OSError("the power went")


@pytest.mark.parametrize("stop", [0, 3, 5, 6, 10, 11])
def test_a_run_that_crashed_and_went_on_ends_in_the_same_bits(tmp_path: Path, stop: int) -> None:
    straight = run(tmp_path / "straight")
    with pytest.raises(OSError, match="power"):
        run(tmp_path / "crashed", stop_at(stop, crash))
    resumed = run(tmp_path / "crashed")
    assert {k: torch.equal(v, resumed[k]) for k, v in straight.items()} == dict.fromkeys(straight, True)
    kept = sorted((tmp_path / "crashed/checkpoints").iterdir())
    assert len(kept) == 2 and kept[-1].name == "step-00000012"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_the_step_and_leaves(tmp_path: Path, number: int, error: type[BaseException]) -> None:
    straight = run(tmp_path / "straight")
    with pytest.raises(error) as caught:
        run(tmp_path / "asked", stop_at(7, lambda: os.kill(os.getpid(), number)))
    assert error is KeyboardInterrupt or caught.value.code == 143
    found = checkpoints.newest(tmp_path / "asked")
    assert found is not None and found[0] == 8
    resumed = run(tmp_path / "asked")
    assert all(torch.equal(v, resumed[k]) for k, v in straight.items())


def test_a_damaged_newest_checkpoint_is_passed_over_and_no_whole_one_is_an_error(tmp_path: Path) -> None:
    straight = run(tmp_path)
    newest = tmp_path / "checkpoints/step-00000012/state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    left_over = tmp_path / "checkpoints/step-00000011.tmp-1"
    left_over.mkdir()
    resumed = run(tmp_path)
    assert all(torch.equal(v, resumed[k]) for k, v in straight.items())
    assert not left_over.exists()
    for mark in (tmp_path / "checkpoints").glob("*/complete.json"):
        mark.write_text("{}")
    with pytest.raises(ValueError, match=r"all checkpoints .* are damaged"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_never_reaches_the_weights_and_stops_a_run_in_the_end(tmp_path: Path) -> None:
    model = Small()
    good = loss_for(model)

    def sometimes(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, parts = good(step)
        return (loss * float("nan") if step in (2, 3) else loss), parts

    average = fit(model, sometimes, SETTINGS, tmp_path / "some")
    assert all(x.isfinite().all() for x in [*average.values(), *model.state_dict().values()])
    lines = [json.loads(line) for line in (tmp_path / "some/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12] and lines[0]["loss"] is None

    def always(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, parts = good(step)
        return loss * float("inf"), parts

    with pytest.raises(RuntimeError, match="not finite in 11 steps in a row"):
        fit(model, always, SETTINGS, tmp_path / "all")


def test_it_learns(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=300, lr=1e-2, save_every=300)
    run(tmp_path, settings=settings)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.2 * losses[0]


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    batches = Batches(
        [{"x": i} for i in range(30)], 10, 5, lambda rows: {"x": torch.tensor([row["x"] for row in rows])}
    )
    seen = [int(i) for step in range(6) for i in batches[step]["x"]]
    assert sorted(seen[:30]) == sorted(seen[30:]) == list(range(30))
    assert seen[:30] != seen[30:] and seen[:30] != list(range(30))
    assert [joint["x"].tolist() for joint in batches.from_step(2, 4)] == [batches[k]["x"].tolist() for k in (2, 3)]
    with pytest.raises(ValueError, match="empty"):
        Batches([], 10, 5, dict)


def tiny(steps: int) -> Preset:
    settings = OptimiserSettings(steps=steps, batch=4, warmup=1, save_every=3, log_every=1)
    return Preset(
        name="tiny",
        pairs=Scenes(length=64),
        fitted_on=64,
        codecs={
            "image": {"kind": "image", "autoencoder": asdict(AutoEncoderConfig(width=16, blocks=1))},
            "text": {"kind": "text", "length": 20},
        },
        autoencoder_training=settings,
        network={"kind": "uvit", "dim": 16, "depth": 2, "heads": 2, "patch": 4},
        process="rectified_flow",
        prediction="x0",
        space="v",
        max_scale=4.0,
        ends=0.1,
        training=settings,
        settings=Settings(steps=2),
    )


def test_a_preset_gives_a_model_that_samples_and_going_on_changes_nothing(tmp_path: Path) -> None:
    straight = train(tiny(4), tmp_path / "straight")
    train(replace(tiny(4), training=replace(tiny(4).training, steps=2, cooldown=0.0)), tmp_path / "halves")
    told: list[tuple[str, int, int]] = []
    resumed = train(
        tiny(4), tmp_path / "halves", progress=lambda stage, step, steps, _: told.append((stage, step, steps))
    )
    assert told == [("network", 3, 4), ("network", 4, 4)]
    weights = straight.network.state_dict()
    assert all(x.isfinite().all() for x in weights.values())
    sampled = straight.sample("text", image=straight.sample("image", seed=1)[0]["image"], seed=2)
    assert set(sampled[0].values) == {"image", "text"}
    assert resumed.network.state_dict().keys() == weights.keys()
    assert (tmp_path / "halves/final/model.safetensors").is_file()
    with pytest.raises(ValueError, match=r"other settings .*network\.dim"):
        train(replace(tiny(4), network={"kind": "mlp"}), tmp_path / "straight")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_described(name: str) -> None:
    assert describe(PRESETS[name]())["name"] == name
