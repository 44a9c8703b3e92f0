"""The dial, the derived preset, dotted changes, missing modalities, and what a training step must be by theory."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_folders import picture_folder, write
from paired import KINDS, Paired, preset

from unidiffuser import encode as encoding
from unidiffuser.cli import main
from unidiffuser.datasets import open_data
from unidiffuser.datasets.codec_files import codec_key
from unidiffuser.joint import modalities_of
from unidiffuser.losses import Objective, draw, noised_loss
from unidiffuser.modalities.vector import Vector
from unidiffuser.networks import build
from unidiffuser.process import PROCESSES
from unidiffuser.train import train
from unidiffuser.training import codecs
from unidiffuser.training.codecs import shapes_of
from unidiffuser.training.derive import preset_for
from unidiffuser.training.encoding import Encoding, Reading
from unidiffuser.training.estimate import estimate
from unidiffuser.training.overrides import changed
from unidiffuser.training.preset import describe, differences
from unidiffuser.training.previews import distributions, make
from unidiffuser.training.sizes import NAMES, size_of

SHAPES = {"image": (3, 8, 8), "text": (4, 4)}
LARGE = {"image": {"kind": "image", "size": 72}}


@pytest.mark.parametrize("text", [*NAMES, "4M", "30M", "0.5B", "120000000"])
def test_the_dial_gives_a_network_of_about_that_size(text: str) -> None:
    size = size_of(text)
    wanted = NAMES.get(text) or {"4M": 4e6, "30M": 30e6, "0.5B": 5e8}.get(text) or float(text)
    with torch.device("meta"):
        made = build(
            {"kind": "uvit", "streams": {"x": (16, 8)}, "dim": size.dim, "depth": size.depth, "heads": size.heads}
        )
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(wanted, rel=0.25)


@pytest.mark.parametrize("text", ["giant", "3", "1e12", "", "nan", "-4M"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--size is"):
        size_of(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.lrr=1", "no setting 'training.lrr' .did you mean lr"),
        ("training=1", "has parts"),
        ("training.lr=fast", "of another kind"),
        ("training.lr=0", "above 0"),
        ("training.batch=true", "of another kind"),
        ("training.accumulate=3", "cannot be cut"),
        ("training.lr.x=1", "no parts"),
        ("pairs=1", "no setting"),
        ("sharding=zero", "'none' or 'fsdp'"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(change: str, said: str) -> None:
    name, _, value = change.partition("=")
    with pytest.raises(ValueError, match=said):
        changed(preset(), [(name, value)])


def test_changes_reach_every_level_and_are_told_apart() -> None:
    made = preset()
    other = changed(made, [("training.lr", "3e-4"), ("network.dim", "64"), ("codecs.text.width", "8"), ("ends", "0")])
    assert (other.training.lr, other.network["dim"], other.codecs["text"]["width"], other.ends) == (3e-4, 64, 8, 0.0)
    found = [line.partition(":")[0] for line in differences(describe(other), describe(made))]
    assert found == ["codecs.text.width", "ends", "network.dim", "training.lr"]


def test_runs_of_the_layout_before_codecs_go_on() -> None:
    made = describe(
        replace(
            preset(),
            codecs={"image": {"kind": "image", "autoencoder": {"size": 8}}, "text": {"kind": "text", "length": 20}},
            autoencoder_training=preset().training,
        )
    )
    old = {name: x for name, x in made.items() if name not in ("codecs", "weights", "start", "adapter", "workers")}
    old |= {"text": {"length": 20}, "autoencoder": {"size": 8}}
    for part in ("training", "autoencoder_training"):
        old[part] = {n: x for n, x in old[part].items() if n not in ("accumulate", "recompute", "compile")}
    assert [line for line in differences(made, old) if "more_ema" not in line] == []


def test_large_pictures_get_an_autoencoder_and_a_patch_that_fits() -> None:
    made = preset_for(Paired(), {"image": {"kind": "image", "size": 256}}, 3, "d", size_of("tiny"))
    assert made.codecs["image"]["autoencoder"]["size"] == 256 and made.network["patch"] == 2
    assert made.autoencoder_training is not None and made.network["labels"] == 3
    assert preset_for(Paired(), {"image": {"kind": "image", "size": 64}}, 1, "d", size_of("tiny")).network["patch"] == 4


def test_encoded_data_are_patched_by_the_grids_that_they_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = open_data(write(picture_folder(tmp_path / "raw", 6), {"data.json": json.dumps({"modalities": LARGE})}))
    encoding.encode(raw, encoding.fitted(raw), tmp_path / "encoded")
    assert main(["train", "--data", str(tmp_path / "encoded"), "--size", "tiny", "--print-config"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["network"]["patch"] == 8 and found["codecs"] == {"image": {**LARGE["image"], "channels": 3}}
    assert found["autoencoder_training"] is None


def test_a_missing_modality_is_ignored_and_the_others_train() -> None:
    made = preset(Paired(length=8, without=2))
    from unidiffuser.training.codecs import first_values, fit_codec

    codecs = {
        n: fit_codec(n, KINDS[n], lambda m, k: first_values(made.pairs, m, k), 8, None) for n in ("image", "text")
    }
    batch = Encoding(codecs, False)([Reading(made.pairs)[i] for i in range(8)])
    assert batch.present["text"].tolist() == [False, True] * 4 and batch.present["image"].all()
    seen: dict[str, torch.Tensor] = {}

    def network(xt, t, label):  # type: ignore[no-untyped-def]
        seen.update(t=t["text"], x=xt["text"])
        return {s: torch.zeros_like(x) for s, x in xt.items()}

    objective = Objective(process=PROCESSES["rectified_flow"](), prediction="eps", space="eps", ends=0.0)
    shapes = {s: tuple(x.shape[1:]) for s, x in batch.x0.items()}
    eps, t = draw(shapes, 0, 0, range(8), 0.0)
    _, parts = noised_loss(objective, network, batch.x0, eps, t, present=batch.present, expected=False)
    assert (seen["t"][::2] == 1).all() and torch.equal(seen["x"][::2], eps["text"][::2])
    torch.testing.assert_close(parts["text"], eps["text"][1::2].square().mean())
    train(preset(Paired(without=3)), Path(__import__("tempfile").mkdtemp()) / "run")


def test_the_loss_of_a_network_that_says_nothing_is_what_theory_says() -> None:
    """Predicting the noise with 0: the squared error is the variance of the noise, 1, for each stream."""
    objective = Objective(process=PROCESSES["scaled_linear"](), prediction="eps", space="eps", ends=0.1)
    eps, t = draw(SHAPES, 1, 0, range(512), 0.1)
    silent = lambda xt, t, label: {s: torch.zeros_like(x) for s, x in xt.items()}  # noqa: E731
    loss, parts = noised_loss(
        objective, silent, {s: torch.randn_like(x) for s, x in eps.items()}, eps, t, expected=True
    )
    assert loss == pytest.approx(2, abs=0.1) and all(x == pytest.approx(1, abs=0.06) for x in parts.values())


def test_timesteps_are_uniform_and_independent() -> None:
    """Chi-square over an 8 x 8 table of (t_image, t_text): 63 degrees of freedom, mean 63, deviation 11."""
    _, t = draw(dict.fromkeys(SHAPES, (1,)), 0, 0, range(6400), 0.0)
    cells = Counter(zip((t["image"] * 8).int().tolist(), (t["text"] * 8).int().tolist(), strict=True))
    chi = sum((cells[i, j] - 100) ** 2 / 100 for i in range(8) for j in range(8))
    assert 25 < chi < 115


def test_what_a_sample_is_trained_on_depends_on_its_place_alone() -> None:
    whole, t = draw(SHAPES, 3, 5, range(8), 0.1)
    half, t_half = draw(SHAPES, 3, 5, range(4, 8), 0.1)
    assert all(torch.equal(whole[s][4:], half[s]) for s in SHAPES)
    assert all(torch.equal(t[m][4:], t_half[m]) for m in modalities_of(SHAPES))


def test_gradients_reach_every_parameter() -> None:
    network = build(
        {
            "kind": "uvit",
            "streams": SHAPES,
            "dim": 32,
            "depth": 2,
            "heads": 2,
            "timestep_mlp": True,
            "rotary": True,
            "norm": "pre",
            "labels": 2,
        }
    )
    objective = Objective(process=PROCESSES["rectified_flow"](), prediction="x0", space="v", ends=0.1)
    eps, t = draw(SHAPES, 0, 0, range(16), 0.1)
    noised_loss(objective, network, eps, eps, t, torch.arange(16) % 2)[0].backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_one_batch_is_learnt_by_heart(tmp_path: Path) -> None:
    made = preset(Paired(length=2), steps=150, batch=8)
    made = changed(made, [("training.lr", "4e-3"), ("training.log_every", "10"), ("workers", "0")])
    train(made, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "network/metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-3:]) < 0.25 * losses[0]


def test_an_estimate_is_of_the_network_that_is_trained() -> None:
    made = preset()
    shapes = shapes_of(made)
    found = estimate(made, shapes)
    with torch.device("meta"):
        count = sum(p.numel() for p in build({**made.network, "streams": shapes}).parameters())
    assert found.parameters == count and found.state_bytes == 4 * count * 5
    cut = estimate(changed(made, [("training.accumulate", "4")]), shapes_of(made))
    assert cut.activation_bytes < 0.4 * found.activation_bytes
    assert cut.operations == pytest.approx(found.operations, rel=0.05)  # a few rows are padded to 16


def test_previews_show_every_distribution_and_change_no_bit(tmp_path: Path) -> None:
    made = preset()
    assert len(list(distributions({"a": 0, "b": 0, "c": 0}))) == 3**3 - 2**3
    train(made, tmp_path / "run")
    before = (tmp_path / "run/final/model.safetensors").read_bytes()
    place = make(tmp_path / "run", n=2)
    assert sorted(p.name for p in place.iterdir()) == [
        "image",
        "image-given-text",
        "image-text",
        "text",
        "text-given-image",
    ]
    assert sorted(p.name for p in (place / "image-text").iterdir()) == [
        "0.image.png",
        "0.text.txt",
        "1.image.png",
        "1.text.txt",
    ]
    train(replace(made, preview_every=4), tmp_path / "with")
    assert (tmp_path / "with/final/model.safetensors").read_bytes() == before


def test_codecs_of_a_run_come_back_and_damage_is_named_with_its_cure(tmp_path: Path) -> None:
    assert codecs.read(tmp_path / "codecs") is None
    fitted = {"vector": Vector.fit(np.random.default_rng(0).normal(2.0, 3.0, (20, 4)))}
    codecs.write(tmp_path / "codecs", fitted)
    found = codecs.read(tmp_path / "codecs")
    assert found is not None and codec_key(found) == codec_key(fitted)
    assert [path.name for path in tmp_path.iterdir()] == ["codecs"]
    weights = tmp_path / "codecs" / "codecs.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"the checksum differs\); remove that folder to fit them anew"):
        codecs.read(tmp_path / "codecs")
