"""A converted model in use: the engine's features with no code of their own, low memory, numbers, the command line."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from released_model import Formats
from released_truth import photo, recorded

from unidiffuser import UniDiffuser, int8
from unidiffuser.checkpoints import ModelError, hub
from unidiffuser.cli import main
from unidiffuser.joint import generator
from unidiffuser.modalities.image import pixels_of
from unidiffuser.modalities.stable_diffusion import StableDiffusion
from unidiffuser.offload import Offloaded
from unidiffuser.radiance import FieldConfig, RadianceField
from unidiffuser.reuse import Reuse
from unidiffuser.text_to_3d import Sculpting, optimiser, pictures_of, rendered, sculpt, views

HALF, REST = slice(0, 8), slice(8, 16)


@pytest.fixture(scope="module")
def model(formats: Formats) -> UniDiffuser:
    return formats.model()


def run(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = main(shlex.split(line)[1:])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


# ---------------------------------------------------------------- the engine's features


def test_a_sample_is_the_same_in_any_batch(model: UniDiffuser) -> None:
    options: dict[str, Any] = {"text": "cat", "steps": 3, "guidance": 2.0}
    together = model.sample("image", n=3, seed=4, **options)
    for k in range(3):
        [alone] = model.sample("image", seed=4 + k, **options)
        assert torch.equal(alone.streams["image.latent"], together[k].streams["image.latent"])
        assert alone["image"].tobytes() == together[k]["image"].tobytes()
    small = model.sample("image", n=3, seed=4, batch=1, **options)
    assert [one["image"].tobytes() for one in small] == [one["image"].tobytes() for one in together]


def test_infilling_keeps_what_is_known(model: UniDiffuser) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 255
    given = photo(128, 128)
    [one] = model.sample("image", text="cat", image=given, masks={"image": mask}, seed=2, steps=2)
    [other] = model.sample("image", text="cat", image=given, masks={"image": mask}, seed=3, steps=2)
    apart = one.streams["image.latent"] - other.streams["image.latent"]
    left, right = apart[..., HALF], apart[..., REST]
    # The known cells are a draw from the encoder's posterior by each seed, and near one another; the others are made.
    assert left.abs().mean() < 0.5 * right.abs().mean()
    known = model.codecs.encode({"image": [given]}, [2])["image.latent"][0, ..., HALF]
    torch.testing.assert_close(one.streams["image.latent"][..., HALF], known)


def test_looseness_holds_what_is_given_at_a_timestep(model: UniDiffuser) -> None:
    with recorded(model.network) as calls:
        model.sample("text", image=photo(), looseness={"image": 0.25}, seed=1, steps=2, guidance=0)
    assert {float(call.t["image"][0]) for call in calls} == {0.25}


def test_gibbs_variation_and_interpolation(model: UniDiffuser) -> None:
    [chain] = model.chain("text", "image", "text", "image", text="cat", seed=1, steps=1)
    assert [sorted(link.values) for link in chain] == [["image", "text"]] * 3
    frames = model.interpolate({"image": photo(seed=1)}, {"image": photo(seed=2)}, frames=3, steps=40)
    assert [frame["image"].size for frame in frames] == [(128, 128)] * 3


def test_pixels_with_gradients_are_encoded_as_pictures_are(model: UniDiffuser) -> None:
    [image] = [codec for codec in model.modalities.values() if isinstance(codec, StableDiffusion)]
    picture = image.check(photo(128, 128))
    pixels = pixels_of(picture)[None].requires_grad_(True)
    seen, told = image.encode_pixels(pixels), image.encode([picture])
    torch.testing.assert_close(seen["latent"], told["latent"], rtol=1e-4, atol=1e-4)
    assert torch.cosine_similarity(seen["clip"], told["clip"], -1).item() > 0.999  # theirs is rounded to 8 bits
    for stream, goal in told.items():
        gap = (image.encode_pixels(pixels)[stream] - 0.9 * goal).square().sum()
        (slope,) = torch.autograd.grad(gap, pixels)
        step = 1e-3 * gap.detach() / slope.square().sum()  # to first order it takes a thousandth away
        left = (image.encode_pixels(pixels - step * slope)[stream] - 0.9 * goal).square().sum()
        assert float((1 - left / gap).detach()) == pytest.approx(1e-3, rel=0.2), stream


def test_an_object_is_made_through_it(model: UniDiffuser, tmp_path: Path) -> None:
    training = replace(optimiser(2), batch=2, warmup=1)
    settings = Sculpting(training=training, shape=FieldConfig(resolution=8), samples=8, drawn=2)
    field = sculpt(model, {"text": "cat"}, settings, tmp_path)
    assert not torch.equal(field.colour, RadianceField(settings.shape, generator(0, "field")).colour)
    assert views(field, settings, rendered(pictures_of(model)[1]), 1, 0).shape == (1, 3, 128, 128)


def test_scoring_explains_both_streams_of_a_picture(model: UniDiffuser) -> None:
    [score] = model.score("image", "text", image=photo(), text="cat", samples=2)
    assert {s: bits.shape for s, bits in score.maps.items()} == {"image.latent": (16, 16), "image.clip": (1,)}
    assert score.bits == pytest.approx(sum(float(bits.sum()) for bits in score.maps.values()), rel=1e-3)


def test_only_the_heads_that_are_asked_for(model: UniDiffuser) -> None:
    with recorded(model.network) as calls:
        model.sample("text", seed=1, steps=1)
        model.sample("image", seed=1, steps=1)
    assert [set(call.wanted) for call in calls] == [{"text"}, {"image.latent", "image.clip"}]


def test_reuse_of_inner_blocks(model: UniDiffuser) -> None:
    exact, reused = (model.sample("image", text="cat", seed=1, steps=6, reuse=r)[0] for r in (None, Reuse(every=2)))
    assert exact["image"].tobytes() != reused["image"].tobytes()


def test_many_prompts_in_one_call(model: UniDiffuser) -> None:
    found = model.sample("image", text=["cat", "red"], n=2, seed=[8, 8], steps=1)
    assert found[0]["image"].tobytes() != found[1]["image"].tobytes()


# ---------------------------------------------------------------- memory and numbers


@contextmanager
def watched() -> Iterator[list[dict[str, int]]]:
    """The bytes of the parts that are awake, by kind, whenever one woke."""
    awake: dict[int, tuple[str, int]] = {}
    seen: list[dict[str, int]] = []
    wake, sleep = Offloaded.wake, Offloaded.sleep

    def woken(self: Offloaded[Any]) -> Any:
        module = wake(self)
        awake[id(self)] = (type(module).__name__, sum(x.nbytes for x in module.state_dict().values()))
        seen.append(dict(awake.values()))
        return module

    def slept(self: Offloaded[Any]) -> None:
        sleep(self)
        awake.pop(id(self), None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Offloaded, "wake", woken)
        patch.setattr(Offloaded, "sleep", slept)
        yield seen
        seen.append(dict(awake.values()))


def test_low_memory_holds_one_part_at_a_time_and_draws_the_same(formats: Formats, model: UniDiffuser) -> None:
    low = formats.model(low_memory=True)
    assert not low.part.awake
    with watched() as seen:
        [one] = low.sample("image", text="cat", seed=1, steps=2)
        low.sample("text", image=photo(), seed=1, steps=1)
        low.score("image", "text", image=photo(), text="cat", samples=2)
        low.interpolate({"text": "cat"}, {"text": "red"}, frames=2, steps=2)
    assert {name for each in seen for name in each} == {
        "UViT",
        "AutoencoderKL",
        "CLIPTextModel",
        "CLIPVisionModelWithProjection",
        "GPT2Model",
    }
    assert max(len(each) for each in seen) == 1 and seen[-1] == {}
    [same] = model.sample("image", text="cat", seed=1, steps=2)
    assert one["image"].tobytes() == same["image"].tobytes()


def test_without_low_memory_the_parts_stay(formats: Formats) -> None:
    kept = formats.model()
    with watched() as seen:
        kept.sample("image", text="cat", seed=1, steps=1)
    assert set(seen[-1]) == {"UViT", "AutoencoderKL", "CLIPTextModel"}
    assert "GPT2Model" not in {name for each in seen for name in each}, "what is not needed is not loaded"


def test_half_precision_halves_the_parts_and_stays_near(formats: Formats, model: UniDiffuser) -> None:
    sizes = []
    for dtype in (torch.float32, torch.bfloat16):
        with watched() as seen:
            formats.model(dtype=dtype).sample("image", text="cat", seed=1, steps=1)
        sizes.append(seen[-1]["UViT"])
    assert sizes[0] == 2 * sizes[1]
    xt = model.encode(text="cat", image=photo())
    t = {"image": 0.5, "text": 0.5}
    exact, half = model.predict_noise(xt, t), formats.model(dtype=torch.bfloat16).predict_noise(xt, t)
    assert {x.dtype for x in half.values()} == {torch.float32}
    for stream in xt:
        assert 0 < float((exact[stream] - half[stream]).norm() / exact[stream].norm()) < 0.1


def test_int8_is_of_the_network_and_the_rest_is_in_half_precision(formats: Formats, model: UniDiffuser) -> None:
    try:
        int8.check(torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    eight = formats.model(dtype=torch.int8)
    xt, t = model.encode(text="cat", image=photo()), {"image": 0.5, "text": 0.5}
    exact, near = model.predict_noise(xt, t), eight.predict_noise(xt, t)
    for stream in xt:
        assert 0 < float((exact[stream] - near[stream]).norm() / exact[stream].norm()) < 0.1
    assert eight.sample("image", text="cat", seed=1, steps=2)[0]["image"].size == (128, 128)
    assert {part.dtype for part in eight.modalities["image"].parts.values()} == {torch.bfloat16}


def test_half_precision_weights_in_the_file(formats: Formats, tmp_path: Path) -> None:
    formats.model().save(tmp_path / "half", stored="bfloat16")
    folders = (formats.ours["new"], tmp_path / "half")
    whole, half = ((folder / "model.safetensors").stat().st_size for folder in folders)
    assert half < 0.55 * whole
    assert UniDiffuser.from_pretrained(tmp_path / "half").sample("text", seed=1, steps=1)


# ---------------------------------------------------------------- names of the hub


@pytest.fixture
def fetched(formats: Formats, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is asked of the hub; the repository someone/small is there, and nothing else."""
    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        if repository != "someone/small" and options.get("local_files_only"):
            raise OSError("not in the cache")
        if repository != "someone/small":
            raise OSError("no network")
        return str(formats.ours["new"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_repository_of_the_hub_is_looked_for_in_the_local_cache_alone(fetched: list[dict[str, Any]]) -> None:
    assert UniDiffuser.from_pretrained("someone/small").labels == 2
    with pytest.raises(ModelError, match="no repository of that name in the local cache of the hub; allow"):
        UniDiffuser.from_pretrained("someone/else")
    assert [each["local_files_only"] for each in fetched] == [True, True]


def test_a_repository_of_the_hub_is_fetched_if_that_is_said(fetched: list[dict[str, Any]]) -> None:
    UniDiffuser.from_pretrained("someone/small", download=True)
    assert fetched == [
        {"repository": "someone/small", "local_files_only": False, "ignore_patterns": ["*.pth", "*.ckpt"]}
    ]
    with pytest.raises(ModelError, match=r"someone/else could not be fetched from the hub \(no network\)"):
        UniDiffuser.from_pretrained("someone/else", download=True)


def test_a_folder_that_is_there_is_never_looked_up(
    formats: Formats, fetched: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats.model().save(tmp_path / "someone" / "small")
    monkeypatch.chdir(tmp_path)
    UniDiffuser.from_pretrained("someone/small")
    assert fetched == [] and hub.locate("a/b/c") == Path("a/b/c")


# ---------------------------------------------------------------- the command line


def test_convert_and_sample(
    formats: Formats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photo().save("photo.png")
    for name in ("original", "new"):
        told = json.loads(run(f"unidiffuser convert {formats.theirs[name]} ours-{name} --json", capsys))
        assert told == {"model": f"ours-{name}", "format": "native", "missing": []}
    line = 'unidiffuser sample image --model ours-new --text "a red cat" --steps 2 --guidance 7 --size 96x160 --out out'
    answer = json.loads(run(f"{line} --json --seed 1 --dtype bfloat16 --low-memory --device cpu --label 0", capsys))
    assert PIL.Image.open("out/0000.png").size == (96, 160) and answer["label"] == 0
    texts = [
        json.loads(run(f"unidiffuser sample text --model {m} --image photo.png -n 2 --seed 3 --steps 2 --json", capsys))
        for m in ("ours-new", "ours-original")
    ]
    new, original = ([row["text"] for row in each["samples"]] for each in texts)
    assert new == original
    run("unidiffuser convert ours-new back --to diffusers -q", capsys)
    assert (tmp_path / "back" / "model_index.json").is_file()
    assert main(["convert", str(formats.theirs["new"]), "back"]) == 2
    assert "back is there already; use --force to replace it" in capsys.readouterr().err


def test_a_picture_of_another_size_is_made_again_from_its_recipe(
    formats: Formats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = f"--model {formats.ours['new']}"
    run(f"unidiffuser sample image {model} --text cat --steps 3 --reuse 2 --size 64x96 --seed 5 --out a", capsys)
    answer = json.loads(run(f"unidiffuser sample image {model} --like a/0000.png --out b --json", capsys))
    assert answer["reproduced"] is True


def test_a_link_of_a_chain_says_that_its_latent_is_not_in_the_recipe(
    formats: Formats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photo().save("photo.png")
    model = f"--model {formats.ours['new']}"
    run(f"unidiffuser chain image text image {model} --image photo.png --steps 1 --seed 1 --out a", capsys)
    assert main(shlex.split(f"sample image {model} --like a/0000-02.png --out b")) == 2
    assert "was a link of a chain, of whose latent the recipe keeps only the hash" in capsys.readouterr().err
    run(f"unidiffuser chain text image {model} --text cat --steps 1 --seed 1 --out c", capsys)
    answer = json.loads(run(f"unidiffuser sample image {model} --like c/0000-01.png --out d --json", capsys))
    assert answer["reproduced"] is True


def test_captions_may_be_sampled(formats: Formats, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"unidiffuser sample text --model {formats.ours['new']} --steps 1 --seed 1 -n 3"
    searched, sampled, again = (run(line + p, capsys) for p in ("", " --top-p 0.9", " --top-p 0.9"))
    assert searched != sampled == again
    assert main(shlex.split(line.removeprefix("unidiffuser ") + " --top-p 1.5")) == 2
    assert "top_p must lie above 0 and at most at 1, not 1.5" in capsys.readouterr().err
