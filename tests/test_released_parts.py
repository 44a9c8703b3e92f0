"""Every part of a converted model against the part it came from, as the two libraries compute it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from released_model import FORMATS, Formats, transformers
from released_truth import encoded, photo, words
from torch import Tensor
from torch.nn import functional as F

from unidiffuser import UniDiffuser
from unidiffuser.joint import noise_like
from unidiffuser.modalities.clip_text import _Continuation

TIMES = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.9604, 0.12345), (0.001, 0.7)]


@pytest.fixture(scope="module")
def model(formats: Formats) -> UniDiffuser:
    return formats.model()


def noisy(model: UniDiffuser, batch: int = 2) -> dict[str, Tensor]:
    return noise_like(model.shapes, range(batch), "test")


def predicted(model: UniDiffuser, xt: Mapping[str, Tensor], times: tuple[float, float], label: int | None) -> Any:
    batch = len(xt["text"])
    t = {name: torch.full((batch,), value) for name, value in zip(("image", "text"), times, strict=True)}
    labels = None if label is None else torch.full((batch,), label)
    return model.network(xt, t, labels)


@pytest.mark.parametrize("version", ["formats", "formats_v0"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_network_is_that_of_diffusers(version: str, name: str, request: pytest.FixtureRequest) -> None:
    places: Formats = request.getfixturevalue(version)
    model, unet = places.model(name), places.source.unet
    model.part.wake()
    xt = noisy(model)
    for times in TIMES:
        for label in (0, 1) if version == "formats" else (None,):
            ours = predicted(model, xt, times, label)
            n_image, n_text = (torch.tensor(1000 * t) for t in times)
            # the library asks for a data type, and does not look at it where there is none
            theirs = unet(xt["image.latent"], xt["image.clip"], xt["text"], n_image, n_text, data_type=label or 0)
            for stream, out in zip(("image.latent", "image.clip", "text"), theirs, strict=True):
                torch.testing.assert_close(ours[stream], out, rtol=1e-4, atol=2e-5)


def test_labels_and_timesteps_matter(model: UniDiffuser) -> None:
    xt = noisy(model)
    outputs = [predicted(model, xt, t, k)["text"] for t, k in (((0.5, 0.5), 0), ((0.5, 0.5), 1), ((0.5005, 0.5), 0))]
    assert all((a - b).abs().max() > 1e-4 for k, a in enumerate(outputs) for b in outputs[:k])


@pytest.mark.parametrize("times", [*TIMES, (0.0, 0.5), (0.5, 0.0)])
def test_predict_noise_is_the_network_in_the_units_of_the_library(
    formats: Formats, model: UniDiffuser, times: tuple[float, float]
) -> None:
    xt = noisy(model)
    found = model.predict_noise(xt, {"image": times[0], "text": torch.full((2,), times[1])}, label=0)
    theirs = formats.source.unet(
        xt["image.latent"], xt["image.clip"], xt["text"], *(torch.tensor(1000 * t) for t in times), data_type=0
    )
    assert {s: tuple(x.shape) for s, x in found.items()} == {
        "text": (2, 77, 12),
        "image.clip": (2, 1, 24),
        "image.latent": (2, 4, 16, 16),
    }
    for stream, out in zip(("image.latent", "image.clip", "text"), theirs, strict=True):
        torch.testing.assert_close(found[stream], out, rtol=1e-4, atol=2e-5)


def test_predict_noise_asks_another_denoiser_that_was_put_there(model: UniDiffuser) -> None:
    xt, t = noisy(model), 0.5
    found = model.through(lambda settings: lambda xt, t: xt).predict_noise(xt, {"image": t, "text": t})
    for stream, x in xt.items():
        torch.testing.assert_close(found[stream], model.process.eps_from_x0(x, x, torch.full((2,), t)))


@pytest.mark.parametrize("height, width", [(16, 8), (8, 32), (24, 24)])
def test_grids_of_other_shapes(formats: Formats, model: UniDiffuser, height: int, width: int) -> None:
    """The library's own blocks, put together by hand for a grid that its model scrambles or refuses."""
    unet, generator = formats.source.unet, torch.Generator().manual_seed(1)
    z = torch.randn(1, 4, height, width, generator=generator)
    c, y = torch.randn(1, 1, 24, generator=generator), torch.randn(1, 77, 12, generator=generator)
    h, w, half = height // 2, width // 2, 64
    table = unet.pos_embed[:, 2 + 77 + 1 :].reshape(1, 8, 8, 128).permute(0, 3, 1, 2)
    table = F.interpolate(table, (h, w), mode="bilinear", align_corners=False).permute(0, 2, 3, 1).reshape(1, h * w, -1)
    angles = [1000 * t * torch.exp(-torch.arange(half) * np.log(10000) / half) for t in (0.7, 0.2)]
    times = [torch.cat([angle.cos(), angle.sin()])[None, None] for angle in angles]
    label = unet.data_type_token_embedding(torch.tensor([1]))[:, None] + unet.data_type_pos_embed_token
    patches = (
        torch.stack(
            [
                F.linear(
                    z[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(), unet.vae_img_in.proj.weight.flatten(1)
                )
                for i in range(h)
                for j in range(w)
            ]
        )[None]
        + unet.vae_img_in.proj.bias
    )
    words_, clip = unet.text_in(y), unet.clip_img_in(c)
    x = torch.cat([*times, words_, clip, patches], 1) + torch.cat([unet.pos_embed[:, :80], table], 1)
    x = torch.cat([x[:, :2], label, x[:, 2:]], 1)
    body, skips = unet.transformer, []
    for block in body.transformer_in_blocks:
        skips.append(x := block(x))
    x = body.transformer_mid_block(x)
    for block in body.transformer_out_blocks:
        x = block["block"](block["skip"](x, skips.pop()))
    tokens = unet.vae_img_out(body.norm_out(x))[0, -h * w :]
    wanted = torch.zeros(4, height, width)
    for i in range(h):
        for j in range(w):
            wanted[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = tokens[i * w + j].view(2, 2, 4).permute(2, 0, 1)
    ours = predicted(model, {"text": y, "image.clip": c, "image.latent": z}, (0.7, 0.2), 1)
    torch.testing.assert_close(ours["image.latent"][0], wanted, rtol=1e-4, atol=2e-5)


def test_text_latents(formats: Formats, model: UniDiffuser) -> None:
    for sentence in ("a red cat", "cat, cat!", "abcdefghijklmnopqrstuvwxyz"):
        torch.testing.assert_close(
            model.encode(text=sentence)["text"], encoded(formats, sentence), rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(model.codecs.empty(["text"])["text"], encoded(formats, ""), rtol=1e-4, atol=1e-5)


def test_a_sentence_that_is_too_long_is_refused_and_not_cut(model: UniDiffuser) -> None:
    with pytest.raises(
        ValueError, match="the text has 82 tokens, its begin and end counted; this model takes at most 77: shorten"
    ):
        model.sample("image", text="x " * 80)


def test_special_tokens_in_a_sentence_are_words(model: UniDiffuser) -> None:
    codec: Any = model.modalities["text"]
    letters = [codec.reading.token_to_id(letter) for letter in "endoftext"]
    assert set(letters) <= set(codec.tokens("cat<|endoftext|>cat")), "it was read as the token and not as its letters"


def pixels_of(picture: PIL.Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_picture_latents(formats: Formats, model: UniDiffuser) -> None:
    picture = photo(128, 128)
    posterior = formats.source.vae.encode(pixels_of(picture)).latent_dist
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(model.encode(image=picture)["image.latent"], 0.18215 * posterior.mean, **close)
    drawn = model.codecs.encode({"image": [picture] * 2}, [7, 8])["image.latent"]
    eps = (drawn / 0.18215 - posterior.mean) / posterior.std
    assert abs(float(eps.mean())) < 0.1 and abs(float(eps.std()) - 1) < 0.1
    assert (drawn[0] - drawn[1]).abs().max() > 0.01


def test_pictures_are_cut_around_their_middle_and_resized_by_lanczos(model: UniDiffuser) -> None:
    wide = photo(300, 200)
    square = wide.crop((50, 0, 250, 200)).resize((128, 128), PIL.Image.Resampling.LANCZOS)
    for stream, x in model.encode(image=wide).items():
        torch.testing.assert_close(x, model.encode(image=square)[stream])


@pytest.mark.parametrize("size", [(128, 128), (160, 96), (96, 144)])
def test_clip_embeddings(formats: Formats, model: UniDiffuser, size: tuple[int, int]) -> None:
    picture = photo(*size)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    views = processor(picture, return_tensors="pt").pixel_values
    wanted = formats.source.image_encoder(pixel_values=views).image_embeds[:, None]
    found = model.resized(*size).encode(image=picture)["image.clip"]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert abs(float(found.norm()) - 1) > 0.01  # not normalised


def test_pictures_are_decoded(formats: Formats, model: UniDiffuser) -> None:
    streams = noise_like(model.shapes, [1, 2], "test")
    pictures = model.decode({s: x for s, x in streams.items() if s != "text"})["image"]
    decoded = formats.source.vae.decode(streams["image.latent"] / 0.18215).sample.clamp(-1, 1)
    ours = torch.cat([pixels_of(picture) for picture in pictures])
    assert (ours - decoded).abs().max() < 1.01 / 127.5


def test_the_caption_decoder_with_its_cache(formats: Formats, model: UniDiffuser) -> None:
    """Token by token, the sequences changing places, as without a cache."""
    codec: Any = model.modalities["text"]
    decoder = formats.source.text_decoder
    generator = torch.Generator().manual_seed(5)
    prefix = decoder.decode_prefix(torch.randn(3, 77, 12, generator=generator))
    tokens = torch.randint(0, 50, (3, 5), generator=generator)
    state, order = _Continuation.begin(codec.parts["decoder"].wake(), prefix), torch.arange(3)
    for k in range(6):
        whole = torch.cat([prefix, decoder.transformer.transformer.wte(tokens[:, :k])], 1)
        wanted = decoder.transformer(inputs_embeds=whole).logits[:, -1]
        torch.testing.assert_close(state.logits, wanted[order], rtol=1e-3, atol=1e-3)
        if k < 5:
            turn = torch.tensor([2, 0, 1])
            order = order[turn]
            state = state.take(turn).extend(tokens[order, k])


def test_captions(formats: Formats, model: UniDiffuser) -> None:
    latents = 3 * torch.randn(6, 77, 12, generator=torch.Generator().manual_seed(3))
    ours = model.decode({"text": latents})["text"]
    assert ours == words(formats, latents)
    assert len(set(ours)) > 2  # or the comparison would say little
    assert ours[4:5] == model.decode({"text": latents[4:5]})["text"]
