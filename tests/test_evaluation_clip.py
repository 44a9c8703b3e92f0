"""CLIP score: a tiny CLIP with random weights, beside the formula as the library's whole model computes it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from test_evaluation import COLOURS, Fake, N, drawn, folder, report

from unidiffuser.datasets import Data, open_data
from unidiffuser.evaluation import MEASURES, lines
from unidiffuser.evaluation.clip import Clip
from unidiffuser.evaluation.report import measure, prepare
from unidiffuser.evaluation.trial import NotMeasured
from unidiffuser.modalities.image import Image

transformers = pytest.importorskip("transformers", reason="the extra [released] is not installed")

SIDE, LONGEST = 32, 8
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    tokenizer = transformers.CLIPTokenizer(vocab={token: k for k, token in enumerate(words)}, merges=[])
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": LONGEST, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=tower | text | {"pad_token_id": 1},
        vision_config=tower | {"image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    place = tmp_path_factory.mktemp("clip") / "tiny-clip"
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return open_data(folder(tmp_path_factory.mktemp("data") / "colours"))


def restated(place: Path, pictures: Sequence[PIL.Image.Image], texts: Sequence[str]) -> list[float]:
    """The formula, one pair at a time, with the library's whole model and its own tokenizer."""
    model = transformers.CLIPModel.from_pretrained(place, local_files_only=True).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place, local_files_only=True)
    found = []
    for picture, text in zip(pictures, texts, strict=True):
        short = min(picture.size)
        width, height = SIDE * picture.width // short, SIDE * picture.height // short
        resized = np.asarray(picture.convert("RGB").resize((width, height), PIL.Image.Resampling.BICUBIC))
        left, top = (width - SIDE) // 2, (height - SIDE) // 2
        pixels = resized[top : top + SIDE, left : left + SIDE] / 255
        x = torch.tensor((pixels - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)[None]
        tokens = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model(input_ids=tokens, pixel_values=x)
        cosine = float(out.logits_per_image) / float(model.logit_scale.detach().exp())
        found.append(100 * max(cosine, 0.0))
    return found


def test_the_score_is_the_formula(clip: Path) -> None:
    dice = np.random.default_rng(0)
    pictures = [drawn(colour, dice) for colour in COLOURS]
    pictures += [pictures[0].resize((20, 12)), pictures[1].resize((9, 30)), pictures[2].convert("L")]
    texts = ["red", "green", "", "a", "blue and much longer than it reads", "blue"]
    found = Clip(clip).scores(pictures, texts)
    assert found == pytest.approx(restated(clip, pictures, texts), abs=1e-3)
    flipped = Clip(clip).scores(pictures, [*texts[1:], texts[0]])
    assert max(found) > 0 and np.abs(np.subtract(found, flipped)).max() > 0.1


def test_the_report_has_it_for_both_conditionals_with_truth_and_wrong_pairs(clip: Path, data: Data) -> None:
    trial = prepare(Fake(), data, N, clip=clip)  # type: ignore[arg-type]
    found = measure(trial, ["clip"])
    assert list(found["rows"]) == ["image given text: CLIP score", "text given image: CLIP score"]
    asked = trial.reference.asked
    truth = np.mean(restated(clip, [pair["image"] for pair in asked], [pair["text"] for pair in asked]))
    pictures = trial.drawn["image", ("text",)]
    value = np.mean(restated(clip, pictures, [trial.pair(k)["text"] for k in range(N)]))
    row = found["rows"]["image given text: CLIP score"]
    assert row["features"] == f"clip ({clip})" and row["n"] == N
    assert row["numbers"]["score"]["truth"] == pytest.approx(truth, abs=1e-3)
    assert row["numbers"]["score"]["value"] == pytest.approx(value, abs=1e-3)
    assert 0 < row["numbers"]["score of wrong pairs"]["n"] < len(asked)
    assert any(line.startswith(f"text given image: CLIP score [clip ({clip})]: score ") for line in lines(found))


def test_without_weights_it_is_one_sentence_and_the_rest_is_measured(
    clip: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(clip, tmp_path / "damaged")
    (tmp_path / "damaged/model.safetensors").write_bytes(b"x")
    shutil.copytree(clip, tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    for given, why in (
        (None, "no repository of that name in the local cache of the hub; allow it to be fetched (--download"),
        (tmp_path / "nowhere", "does not hold a tokenizer"),
        (tmp_path / "damaged", "model.safetensors"),
        (tmp_path / "other", "CLIP text encoder with its projection"),
    ):
        options: dict[str, Any] = {} if given is None else {"clip": given}
        trial = prepare(Fake(), data, 8, **options)  # type: ignore[arg-type]
        with pytest.raises(NotMeasured, match="the CLIP score needs a CLIP, see --clip: ") as caught:
            measure(trial, ["clip"])
        assert why in str(caught.value) and "\n" not in str(caught.value)
    some = {name: MEASURES[name] for name in ("classes", "clip")}
    monkeypatch.setattr("unidiffuser.evaluation.report.MEASURES", some)
    found = report(Fake(), data, samples=8)
    assert "image given text: class" in found["rows"] and list(found["left_out"]) == ["clip"]
    assert any(line.startswith("clip was not measured: the CLIP score needs a CLIP") for line in lines(found))


def test_it_needs_a_picture_and_a_text(data: Data) -> None:
    model = Fake(modalities={"image": Image(size=8)})
    with pytest.raises(NotMeasured, match="between a picture and a text"):
        measure(prepare(model, data, 8), ["clip"])  # type: ignore[arg-type]
