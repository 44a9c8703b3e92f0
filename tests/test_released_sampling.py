"""Whole samplers against an independent re-statement of the original's, given the same noise (`released_truth`)."""

from typing import Any

import numpy as np
import pytest
import torch
from released_model import Formats
from released_truth import Original, encoded, flat, level, orders, photo, recorded, solve, words
from torch import Tensor

from unidiffuser import UniDiffuser

SCALE, SEEDS = 3.0, [5, 11]
IMAGE = ("image.latent", "image.clip")


@pytest.fixture(scope="module")
def model(formats: Formats) -> UniDiffuser:
    return formats.model()


def draw(model: UniDiffuser, *names: str, steps: int = 5, **given: Any) -> Any:
    """Two samples, and the calls of the network."""
    with recorded(model.network) as calls:
        samples = model.sample(*names, n=2, seed=SEEDS, steps=steps, guidance=SCALE, **given)
    return samples, calls


def truth(model: UniDiffuser, formats: Formats, calls: Any) -> Original:
    return Original(formats.source.unet, model.shapes, calls, 2, SCALE)


def drawn(samples: Any, *streams: str) -> Tensor:
    return flat(*(torch.stack([sample.streams[s] for sample in samples]) for s in streams))


def start(calls: Any, *streams: str) -> Tensor:
    return flat(*(calls[0].rows(s, 0, 2) for s in streams)).double()


def close(ours: Tensor, theirs: Tensor) -> None:
    assert float((ours.double() - theirs).abs().max() / theirs.abs().max()) < 2e-4


def pixels(formats: Formats, latents: Tensor) -> np.ndarray[Any, Any]:
    decoded = formats.source.vae.decode(latents.float() / 0.18215).sample
    return ((0.5 * (decoded + 1)).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()


def check_pictures(formats: Formats, samples: Any, latents: Tensor) -> None:
    ours = np.stack([np.asarray(sample["image"]) for sample in samples]).astype(float)
    assert np.abs(ours - pixels(formats, latents)).max() < 1.0


@pytest.mark.parametrize("steps", [1, 4, 5, 6])
def test_text_to_image(formats: Formats, model: UniDiffuser, steps: int) -> None:
    samples, calls = draw(model, "image", text="a red cat", steps=steps)
    original = truth(model, formats, calls)
    text = encoded(formats, "a red cat").expand(2, -1, -1)
    assert len(calls) == steps == sum(orders(steps))
    x = solve(original.image_given_text(text), start(calls, *IMAGE), steps)
    close(drawn(samples, *IMAGE), x)
    check_pictures(formats, samples, original.split(x)[0])


def test_text_to_image_in_the_fifty_steps_of_the_default(formats: Formats, model: UniDiffuser) -> None:
    assert (model.settings.steps, model.settings.guidance.scale) == (50, 7.0)
    samples, calls = draw(model, "image", text="a red cat", steps=50)
    text = encoded(formats, "a red cat").expand(2, -1, -1)
    close(drawn(samples, *IMAGE), solve(truth(model, formats, calls).image_given_text(text), start(calls, *IMAGE), 50))


def test_image_to_text(formats: Formats, model: UniDiffuser) -> None:
    samples, calls = draw(model, "text", image=photo())
    z, c = (calls[0].rows(s, 0, 2) for s in IMAGE)
    y = solve(truth(model, formats, calls).text_given_image(z, c), start(calls, "text"), 5)
    close(drawn(samples, "text"), y)
    assert [sample["text"] for sample in samples] == words(formats, drawn(samples, "text").view(2, 77, -1))


def test_joint(formats: Formats, model: UniDiffuser) -> None:
    samples, calls = draw(model, "image", "text")
    original = truth(model, formats, calls)
    x = solve(original.joint, start(calls, *IMAGE, "text"), 5)
    close(drawn(samples, *IMAGE, "text"), x)
    check_pictures(formats, samples, original.split(x[:, : -77 * 12])[0])
    assert [sample["text"] for sample in samples] == words(formats, drawn(samples, "text").view(2, 77, -1))


@pytest.mark.parametrize("name, streams", [("image", IMAGE), ("text", ("text",))])
def test_each_alone_is_not_guided(formats: Formats, model: UniDiffuser, name: str, streams: tuple[str, ...]) -> None:
    samples, calls = draw(model, name)
    original = truth(model, formats, calls)
    assert all(len(call.xt["text"]) == 2 for call in calls)
    close(drawn(samples, *streams), solve(getattr(original, name), start(calls, *streams), 5))


def test_noise_of_what_is_ignored_is_drawn_again_at_every_call(model: UniDiffuser) -> None:
    _, calls = draw(model, "image")
    draws = torch.stack([call.xt["text"] for call in calls])
    assert len(draws.flatten(1).unique(dim=0)) == len(calls)
    assert abs(float(draws.mean())) < 0.05 and abs(float(draws.std()) - 1) < 0.05


def test_image_variation_hands_on_the_latent(formats: Formats, model: UniDiffuser) -> None:
    with recorded(model.network) as calls:
        chains = model.chain("image", "text", "image", image=photo(), n=2, seed=3, steps=4, guidance=SCALE)
    (first, second), half = zip(*chains, strict=True), len(calls) // 2
    z, c = (calls[0].rows(s, 0, 2) for s in IMAGE)
    y = solve(truth(model, formats, calls[:half]).text_given_image(z, c), start(calls, "text"), 4)
    close(drawn(first, "text"), y)
    there = truth(model, formats, calls[half:]).image_given_text(drawn(first, "text").view(2, 77, -1))
    close(drawn(second, *IMAGE), solve(there, start(calls[half:], *IMAGE), 4))
    assert second[0]["text"] == first[0]["text"] == words(formats, drawn(first, "text").view(2, 77, -1))[0]


def test_text_variation_hands_on_the_latent_and_the_embedding(formats: Formats, model: UniDiffuser) -> None:
    with recorded(model.network) as calls:
        chains = model.chain("text", "image", "text", text="a red cat", n=2, seed=3, steps=4, guidance=SCALE)
    (first, second), half = zip(*chains, strict=True), len(calls) // 2
    text = encoded(formats, "a red cat").expand(2, -1, -1)
    x = solve(truth(model, formats, calls[:half]).image_given_text(text), start(calls, *IMAGE), 4)
    close(drawn(first, *IMAGE), x)
    back = truth(model, formats, calls[half:])
    z, c = back.split(drawn(first, *IMAGE))
    close(drawn(second, "text"), solve(back.text_given_image(z, c), start(calls[half:], "text"), 4))


def test_latents_may_be_given_again(model: UniDiffuser) -> None:
    [one] = model.sample("image", text="cat", seed=1, steps=2)
    again, mixed = model.sample("text", image=[one.latent("image"), one["image"]], n=2, seed=4, steps=2)
    torch.testing.assert_close(again.streams["image.latent"], one.streams["image.latent"])
    assert (mixed.streams["image.latent"] - one.streams["image.latent"]).abs().max() > 0.01
    assert again["image"] == one["image"]
    with pytest.raises(ValueError, match="the latent given for 'text' has the streams"):
        model.sample("image", text=one.latent("image"))


def test_levels_of_the_truth_are_the_published_ones() -> None:
    assert [round(level(t)[0] ** 2, 5) for t in (0.001, 0.5, 1.0)] == [0.99915, 0.27767, 0.00466]
    assert round(level(1.0)[2], 3) == -2.682 and round(level(0.001)[2], 3) == 3.535
    assert orders(50) == [3] * 16 + [2]
