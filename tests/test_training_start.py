"""Where training begins from: a trained model of another grid, with fewer modalities, or with low-rank additions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paired import Paired, preset
from torch import Tensor

from unidiffuser import UniDiffuser, lora
from unidiffuser.checkpoints import ModelError, adapter, native
from unidiffuser.modalities.image import Image
from unidiffuser.modalities.text import Text
from unidiffuser.modalities.vector import Vector
from unidiffuser.networks import build
from unidiffuser.networks.uvit import UViT
from unidiffuser.train import train
from unidiffuser.training import warm
from unidiffuser.training.codecs import shapes_of
from unidiffuser.training.estimate import estimate
from unidiffuser.training.overrides import changed
from unidiffuser.training.preset import Adapting
from unidiffuser.training.sizes import Size

THREE = Paired(names=("image", "text", "vector"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("start") / "run"
    train(preset(), run)
    return run / "final"


def noisy(model: UniDiffuser, batch: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    g = torch.Generator().manual_seed(1)
    joint = {s: torch.randn(batch, *shape, generator=g) for s, shape in model.shapes.items()}
    return joint, {m: torch.rand(batch, generator=g) for m in model.modalities}


def test_a_grown_model_is_the_old_one_where_the_new_modality_is_ignored(trained: Path) -> None:
    old = native.read(trained).awake()
    streams = {**old.network.config.streams, "vector": (1, 2)}
    network = warm.started(old, {"streams": streams})
    xt, t = noisy(UniDiffuser.from_parts(old))
    with torch.inference_mode():
        was = old.network(xt, t)
        now = network({**xt, "vector": torch.randn(3, 1, 2)}, {**t, "vector": torch.ones(3)})
        seen = network({**xt, "vector": torch.randn(3, 1, 2)}, {**t, "vector": torch.full((3,), 0.5)})
    for stream in was:
        torch.testing.assert_close(now[stream], was[stream], rtol=0, atol=2e-6)
    assert any((seen[s] - was[s]).abs().max() > 1e-3 for s in was)  # where it is not ignored, it is looked at


def test_a_modality_grows_onto_a_trained_model(tmp_path: Path, trained: Path) -> None:
    model = train(preset(THREE, start=str(trained)), tmp_path / "run")
    assert set(model.modalities) == {"image", "text", "vector"}
    sampled = model.sample("vector", text="red left", seed=1, steps=2)
    assert sampled[0]["vector"].shape == (2,)


def test_positions_of_another_grid_are_interpolated(trained: Path) -> None:
    old = native.read(trained).awake()
    codecs = warm.codecs_of(str(trained), {"image": {"size": 16}})
    assert codecs["image"].streams == {"": (3, 16, 16)}
    streams = {"image": (3, 16, 16), "text": old.network.config.streams["text"]}
    network = warm.started(old, {"streams": streams})
    assert isinstance(network, UViT) and isinstance(old.network, UViT)
    before, after = old.network.places(), network.places()
    coarse = old.network.position[0, before["image"]].reshape(4, 4, -1)
    fine = network.position[0, after["image"]].reshape(8, 8, -1)
    torch.testing.assert_close(fine.mean((0, 1)), coarse.mean((0, 1)), rtol=0, atol=5e-3)
    torch.testing.assert_close(network.position[0, after["text"]], old.network.position[0, before["text"]])
    assert torch.equal(
        network.state_dict()["mid_block.mlp.0.weight"], old.network.state_dict()["mid_block.mlp.0.weight"]
    )


def test_data_without_a_modality_of_the_start_train_the_others(tmp_path: Path, trained: Path) -> None:
    model = train(preset(Paired(names=("image",)), start=str(trained)), tmp_path / "run")
    assert set(model.modalities) == {"image", "text"}


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"has image, text, but the data has no text"):
        warm.started(native.read(trained).awake(), {"streams": {"image": (3, 8, 8)}})
    with pytest.raises(ModelError, match="there is no model"):
        train(preset(start="nowhere"), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="say which one with --start"):
        preset(adapter=Adapting(rank=2))


def test_data_encoded_with_other_codecs_than_those_of_the_start_are_refused(tmp_path: Path, trained: Path) -> None:
    theirs = native.read(trained).modalities
    text = Text.fit(["red left", "green right"], width=4)
    for name, other in (("image", Image(size=8, channels=1)), ("text", text)):
        made = replace(preset(start=str(trained)), encoders={**theirs, name: other})
        with pytest.raises(ValueError, match=rf"the {name} of these data .*`data encode --model {trained}`"):
            train(made, tmp_path / "run")
    assert not (tmp_path / "run/codecs").exists()


def test_data_encoded_with_the_codecs_of_the_start_keep_their_size_and_bring_new_modalities(trained: Path) -> None:
    theirs = native.read(trained).modalities
    encoders = {"image": Image(size=16), "text": theirs["text"], "vector": Vector.fit([[0.0, 1.0], [1.0, 0.0]])}
    known = warm.known_codecs(replace(preset(THREE, start=str(trained)), encoders=encoders))
    assert known == encoders


def test_an_estimate_of_low_rank_additions_counts_them_alone_as_trained(trained: Path) -> None:
    other = Size(parameters=0, dim=64, depth=2, heads=2, lr=2e-3, batch=8, steps=12)  # the network is that of the start
    made = preset(start=str(trained), adapter=Adapting(rank=2), size=other)
    network = native.read(trained).awake().network
    whole = sum(p.numel() for p in network.parameters())
    lora.adapt(network, 2, 0.0, ("attention", "mlp", "skip"))
    added = sum(p.numel() for p in network.parameters()) - whole
    found = estimate(made, shapes_of(made))
    assert (found.parameters, found.trained) == (whole + added, added)
    assert found.state_bytes == 4 * (whole + added + 4 * added)
    assert "million of them trained" in found.lines(made)[0]


def test_an_adapter_changes_nothing_at_first_and_its_file_makes_the_model(tmp_path: Path, trained: Path) -> None:
    old = native.read(trained).awake().network
    network = build(old.describe())
    network.load_state_dict(old.state_dict())
    lora.adapt(network, 2, 0.0, ("attention",))
    xt, t = noisy(UniDiffuser.from_pretrained(trained))
    with torch.inference_mode():
        assert all(torch.equal(x, old(xt, t)[s]) for s, x in network(xt, t).items())
    assert all(("down" in n or "up" in n) == p.requires_grad for n, p in network.named_parameters())
    run = tmp_path / "run"
    made = train(preset(start=str(trained), adapter=Adapting(rank=2)), run)
    additions, base = adapter.read(run / "adapter.safetensors")
    assert base == native.read(trained).digest and len(additions.layers) > 5
    merged = UniDiffuser.from_pretrained(trained)
    lora.merge(merged.network, additions)
    for name, x in made.network.state_dict().items():
        torch.testing.assert_close(merged.network.state_dict()[name], x)
    untouched = {n for n in old.state_dict() if n.partition(".")[0] in ("position", "embed", "head", "norm")}
    assert all(torch.equal(made.network.state_dict()[n], old.state_dict()[n]) for n in untouched)


def test_an_adapter_resumes_to_the_same_bits(tmp_path: Path, trained: Path) -> None:
    made = preset(start=str(trained), adapter=Adapting(rank=2))
    straight = train(made, tmp_path / "straight")
    train(changed(made, [("training.steps", "8"), ("training.cooldown", "0.0")]), tmp_path / "halves")
    whole = train(changed(made, [("training.cooldown", "0.0")]), tmp_path / "whole")
    resumed = train(changed(made, [("training.cooldown", "0.0")]), tmp_path / "halves")
    assert all(torch.equal(x, resumed.network.state_dict()[n]) for n, x in whole.network.state_dict().items())
    assert straight.network.state_dict().keys() == resumed.network.state_dict().keys()


def test_a_run_goes_on_from_its_own_start_alone(tmp_path: Path, trained: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(trained, base)
    made = preset(start=str(base), adapter=Adapting(rank=2), steps=8)
    train(made, run)
    shutil.rmtree(run / "final")
    older = {name: x for name, x in json.loads((run / "preset.json").read_text()).items() if name != "start_sha256"}
    (run / "preset.json").write_text(json.dumps(older))
    train(made, run)  # as older runs were: it was not known which one it began from
    before = (run / "final/config.json").read_bytes()
    train(preset(seed=4), tmp_path / "other")
    shutil.rmtree(base)
    shutil.copytree(tmp_path / "other/final", base)
    for steps in (8, 12):
        with pytest.raises(ValueError, match=r"other settings \(start_sha256: it was \S+, now "):
            train(preset(start=str(base), adapter=Adapting(rank=2), steps=steps), run)
    assert (run / "final/config.json").read_bytes() == before


def test_an_adapter_of_another_model_or_a_broken_file_is_refused(tmp_path: Path, trained: Path) -> None:
    other = lora.Additions({"mid_block.mlp.0": (torch.zeros(2, 7), torch.zeros(9, 2))}, 1.0)
    network = native.read(trained).awake().network
    with pytest.raises(ValueError, match=r"is 9 x 7, but the model's is .*another model"):
        lora.merge(network, other)
    with pytest.raises(ValueError, match="does not have"):
        lora.merge(network, replace(other, layers={"nowhere": other.layers["mid_block.mlp.0"]}))
    for data in (b"", b"<html>", b"\x80\x04rubbish", (trained / "model.safetensors").read_bytes()):
        (tmp_path / "file.safetensors").write_bytes(data)
        with pytest.raises(ModelError):
            adapter.read(tmp_path / "file.safetensors")
    with pytest.raises(ModelError, match="there is no adapter"):
        adapter.read(tmp_path / "absent")
