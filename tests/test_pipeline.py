"""Raw data in, raw data out: roles, seeds and parts, on a model with random weights."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import LARGE_CIRCLE, SIZE, tiny_model

from unidiffuser import Guidance, Sample, UniDiffuser
from unidiffuser.joint import noise_like


@pytest.fixture(scope="module")
def model() -> UniDiffuser:
    return tiny_model()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def alike(a: Sample, b: Sample) -> bool:
    return a.seed == b.seed and list(a.values) == list(b.values) and all(same(a[name], b[name]) for name in a.values)


@pytest.mark.parametrize("given", [{}, {"text": LARGE_CIRCLE}])
def test_sample_k_is_the_same_in_any_batch(model: UniDiffuser, given: dict[str, Any]) -> None:
    names = [name for name in model.modalities if name not in given]
    options: dict[str, Any] = {"guidance": 1.0, **given}
    together = model.sample(*names, n=5, seed=40, **options)
    assert [sample.seed for sample in together] == [40, 41, 42, 43, 44]
    for batch in (1, 2, 3):
        assert all(map(alike, together, model.sample(*names, n=5, seed=40, batch=batch, **options)))
    assert alike(model.sample(*names, seed=[44, 40], n=2, **options)[0], together[4])


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_the_denoiser_is_the_same_to_the_bit_in_any_batch(model: UniDiffuser, rows: int) -> None:
    xt = noise_like(model.shapes, range(16), "test")
    t = {"image": torch.linspace(0, 1, 16), "text": torch.linspace(1, 0, 16)}
    whole = model.denoiser(xt, t)
    part = model.denoiser({s: x[:rows] for s, x in xt.items()}, {m: value[:rows] for m, value in t.items()})
    assert all(torch.equal(part[stream], whole[stream][:rows]) for stream in xt)


@pytest.mark.parametrize("instructions", ["SSE4_2", "AVX2", "AVX512"])
def test_and_so_it_is_on_older_processors(instructions: str) -> None:
    """Intel's MKL, where torch uses it, can be told to do as if; elsewhere this repeats the test above."""
    names = "tests/test_pipeline.py::test_the_denoiser_is_the_same_to_the_bit_in_any_batch"
    environment = {**os.environ, "MKL_ENABLE_INSTRUCTIONS": instructions}
    environment.pop("MKL_CBWR", None)  # this process has set it; the other one shall do so itself
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", names]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_given_comes_back_and_matters(model: UniDiffuser, picture: Image.Image) -> None:
    one, other = model.sample("text", n=2, seed=[3, 3], image=[picture, Image.new("RGB", (SIZE, SIZE))])
    assert same(one["image"], picture)
    assert one["text"] != other["text"]


def test_the_ignored_has_no_influence(model: UniDiffuser) -> None:
    alone = model.sample("image", seed=5)[0]["image"]
    for text in (LARGE_CIRCLE, "a small green star"):
        assert same(model.sample("image", seed=5, text=text, looseness={"text": 1.0})[0]["image"], alone)
    assert not same(model.sample("image", seed=5, text=LARGE_CIRCLE)[0]["image"], alone)


def test_settings_are_the_models_unless_told_otherwise(model: UniDiffuser) -> None:
    default = model.sample("image", "text", seed=1)[0]
    assert alike(default, model.sample("image", "text", seed=1, steps=3, solver="dpmpp_2m", guidance=0.0)[0])
    for other in ({"steps": 4}, {"solver": "ancestral"}, {"guidance": Guidance(scale=3.0)}):
        assert not alike(default, model.sample("image", "text", seed=1, **other)[0])


def test_a_random_seed_is_told(model: UniDiffuser) -> None:
    one, two = model.sample("text"), model.sample("text")
    assert one[0].seed != two[0].seed
    assert alike(model.sample("text", seed=one[0].seed)[0], one[0])


def test_a_picture_in_part_keeps_its_part(model: UniDiffuser, picture: Image.Image) -> None:
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, (0, 0, SIZE // 2, SIZE))
    made = np.asarray(model.sample("image", seed=2, image=picture, masks={"image": mask})[0]["image"])
    assert same(made[:, SIZE // 2 :], np.asarray(picture)[:, SIZE // 2 :])
    assert not same(made[:, : SIZE // 2], np.asarray(picture)[:, : SIZE // 2])


def test_a_sentence_in_part_keeps_its_words(model: UniDiffuser) -> None:
    for sample in model.sample("text", n=6, seed=2, text="a ___ red circle above a ___ blue square"):
        words = sample["text"].split()
        if len(words) == 9:  # a blank may be filled with the end of the sentence
            assert [*words[:1], *words[2:6], *words[7:]] == ["a", "red", "circle", "above", "a", "blue", "square"]


def test_predicted_noise_is_that_of_the_velocity(model: UniDiffuser) -> None:
    xt = noise_like(model.shapes, range(3), "test")
    t = {"image": torch.tensor([0.2, 0.5, 1.0]), "text": torch.tensor([0.9, 0.3, 0.6])}
    velocity = model.network(xt, t)
    for stream, eps in model.predict_noise(xt, t).items():
        angle = t[stream].reshape(-1, *[1] * (xt[stream].ndim - 1)) * torch.pi / 2
        assert torch.allclose(eps, angle.sin() * xt[stream] + angle.cos() * velocity[stream], atol=1e-5)


def test_a_chain_is_its_links(model: UniDiffuser) -> None:
    chains = model.chain("text", "image", "text", n=2, seed=8, text=LARGE_CIRCLE)
    for chain in chains:
        image, text = chain
        assert image["text"] == LARGE_CIRCLE and same(text["image"], image["image"])
        assert alike(model.sample("image", seed=image.seed, text=LARGE_CIRCLE)[0], image)
        assert alike(model.sample("text", seed=text.seed, image=image["image"])[0], text)
    assert all(map(alike, chains[1], model.chain("text", "image", "text", seed=9, text=LARGE_CIRCLE)[0]))
    assert len({sample.seed for chain in chains for sample in chain}) == 4


def test_a_chain_may_begin_from_nothing(model: UniDiffuser) -> None:
    start, text = model.chain("image", "text", seed=8)[0]
    assert alike(start, model.sample("image", seed=start.seed)[0])
    assert same(text["image"], start["image"])


def test_interpolation_begins_and_ends_where_it_should(model: UniDiffuser, picture: Image.Image) -> None:
    ends = [{"image": picture, "text": LARGE_CIRCLE}, {"image": picture.rotate(90), "text": LARGE_CIRCLE}]
    for of in (["image"], ["image", "text"]):
        frames = model.interpolate(*ends, *of, frames=3, steps=40)
        for frame, end in ((frames[0], ends[0]), (frames[2], ends[1])):
            error = np.asarray(frame["image"], float) - np.asarray(end["image"], float)
            assert (
                np.abs(error).mean() < 10
            )  # random weights bend the way more than trained ones; strangers differ by 85
            assert frame["text"] == LARGE_CIRCLE


def test_a_score_is_the_sum_of_its_map(model: UniDiffuser, picture: Image.Image) -> None:
    (score,) = model.score("image", "text", samples=8, image=picture, text=LARGE_CIRCLE)
    assert score.maps["image"].shape == (SIZE, SIZE)
    assert score.maps["image"].sum() == pytest.approx(score.bits)
    assert score.error > 0
    (score,) = model.score("text", "image", samples=8, image=picture, text=LARGE_CIRCLE)
    assert score.maps["text"].shape == (20,)


def test_progress_reaches_its_end_and_may_cancel(model: UniDiffuser) -> None:
    seen: list[tuple[int, int]] = []
    model.sample("text", n=3, batch=2, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 6) for k in range(1, 7)]
    seen.clear()
    model.chain("text", "image", seed=0, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 6) for k in range(1, 7)]

    def cancel(done: int, total: int) -> None:
        raise InterruptedError(done)

    with pytest.raises(InterruptedError, match="1"):
        model.sample("text", on_step=cancel)


def test_raw_values_and_streams_are_two_forms(model: UniDiffuser, picture: Image.Image) -> None:
    joint = model.encode(image=picture, text=[LARGE_CIRCLE])
    assert {s: tuple(x.shape) for s, x in joint.items()} == {s: (1, *shape) for s, shape in model.shapes.items()}
    back = model.decode(joint)
    assert same(back["image"][0], picture) and back["text"] == [LARGE_CIRCLE]


def test_inputs_are_left_alone(model: UniDiffuser, picture: Image.Image) -> None:
    before = picture.tobytes()
    state = torch.get_rng_state()
    model.sample("text", image=picture, seed=1)
    assert picture.tobytes() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_guidance_against_the_empty_sentence_is_that_formula(model: UniDiffuser) -> None:
    """One step from pure noise: x0 = D + s (D - D_empty), with the sentence of no words as what is known less."""
    options: dict[str, Any] = {"text": LARGE_CIRCLE, "seed": 3, "steps": 1, "solver": "ddim"}
    [guided] = model.sample("image", guidance=Guidance(scale=2.0, against="empty"), **options)
    codec = model.modalities["text"]
    assert codec.decode(codec.empty()) == [""]
    start = noise_like({"image": model.shapes["image"]}, [3], "start")["image"]
    t = {"image": torch.ones(1), "text": torch.zeros(1)}
    with torch.inference_mode():
        said = [
            model.denoiser({"image": start, "text": text}, t)["image"]
            for text in (model.encode(text=LARGE_CIRCLE)["text"], codec.empty()[""])
        ]
    expected = model.decode({"image": said[0] + 2.0 * (said[0] - said[1])})["image"][0]
    assert same(guided["image"], expected)
    with pytest.raises(ValueError, match="cannot be empty; use guidance against 'marginal'"):
        model.sample("text", image=expected, guidance=Guidance(scale=2.0, against="empty"))
