"""Twenty ways in which diffusers' pipeline of this model goes wrong or stops, one test each, that ours does not.

Each test's docstring says what was found there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_model import Formats, converted, released, save_diffusers
from released_truth import encoded, photo, recorded, words
from torch import Tensor

from unidiffuser import UniDiffuser
from unidiffuser.captions import Captioning, beam_search
from unidiffuser.guidance import Guidance
from unidiffuser.joint import noise_like
from unidiffuser.lora import Additions
from unidiffuser.reuse import Reuse
from unidiffuser.stages import _prepared
from unidiffuser.training.preset import OptimiserSettings
from unidiffuser.training.team import Team


@pytest.fixture(scope="module")
def model(formats: Formats) -> UniDiffuser:
    return formats.model()


def latents(samples: Any, stream: str = "image.latent") -> Tensor:
    return torch.stack([sample.streams[stream] for sample in samples])


def test_01_a_model_is_saved_as_safetensors_and_comes_back(model: UniDiffuser, tmp_path: Path) -> None:
    """save_pretrained raises: the tied head and the word embedding share memory."""
    model.save(tmp_path / "saved")
    again = UniDiffuser.from_pretrained(tmp_path / "saved")
    [one], [two] = (each.sample("text", seed=1, steps=2) for each in (model, again))
    assert one["text"] == two["text"] and torch.equal(one.streams["text"], two.streams["text"])


def test_02_a_decoder_file_without_its_head_writes_the_same_captions(formats: Formats) -> None:
    """The missing head stays random, or without memory."""
    text = {"text": 3 * torch.randn(3, 77, 12, generator=torch.Generator().manual_seed(3))}
    assert formats.model("old").decode(text)["text"] == words(formats, text["text"])


def test_03_text_is_encoded_under_every_version_of_names(formats: Formats) -> None:
    """An option of the text encoder asks for an attribute that the library renamed."""
    for name in ("new", "old"):
        found = formats.model(name).encode(text="cat")["text"]
        torch.testing.assert_close(found, encoded(formats, "cat"), rtol=1e-4, atol=1e-5)


def test_04_what_is_guided_away_from_has_an_effect_and_unknown_options_are_refused(model: UniDiffuser) -> None:
    """A negative prompt is encoded at every call and never used."""
    against = [
        latents(model.sample("image", text="cat", seed=1, steps=2, guidance=Guidance(scale=3.0, against=kind)))
        for kind in ("marginal", "empty")
    ]
    assert (against[0] - against[1]).abs().max() > 0.1
    with pytest.raises(ValueError, match="this model has no modality 'negative_prompt'"):
        model.sample("image", text="cat", negative_prompt="dog")


def test_05_text_starts_from_standard_normal_noise(model: UniDiffuser) -> None:
    """Noise is drawn in the width of the encoder and sent through a linear layer: its deviation is about 0.56."""
    with recorded(model.network) as calls:
        model.sample("text", n=8, seed=0, steps=1)
        model.sample("image", n=8, seed=0, steps=1)
    for call in calls:
        for x in (call.xt["text"], call.xt["image.latent"]):
            assert abs(float(x.std()) - 1) < 0.08 and abs(float(x.mean())) < 0.08


def test_06_timesteps_are_those_the_network_was_trained_with(model: UniDiffuser) -> None:
    """999, 979, ... for what is sampled beside 1000 for pure noise: one too low."""
    with recorded(model.network) as calls:
        model.sample("image", text="cat", seed=1, steps=50, guidance=0)
        model.sample("image", seed=1, steps=1)
    t = [1000 * float(call.t["image"][0]) for call in calls]
    assert t[:3] == pytest.approx([1000, 980.02, 960.04], abs=1e-3) and t[49] == pytest.approx(20.98, abs=1e-3)
    assert float(calls[0].t["text"][0]) == 0 and float(calls[50].t["text"][0]) == 1


def test_07_fractional_timesteps_are_honoured_as_numbers_and_as_tensors(model: UniDiffuser) -> None:
    """A plain number is cut to a whole one."""
    xt = noise_like(model.shapes, [1], "test")
    number, tensor, cut = (
        model.predict_noise(xt, {"image": t, "text": 0.5}) for t in (0.1234, torch.tensor(0.1234), 0.123)
    )
    assert all(torch.equal(number[s], tensor[s]) for s in xt)
    assert (number["text"] - cut["text"]).abs().max() > 1e-5


def test_08_the_same_call_gives_the_same_picture_whatever_was_called_before(tmp_path: Path) -> None:
    """Whether the text is narrowed depends on how the task was chosen, where the two widths are equal."""
    source = released(text=128)
    wide = UniDiffuser.from_pretrained(converted(save_diffusers(tmp_path / "new", source), tmp_path / "ours"))
    [before] = wide.sample("image", text="cat", seed=1, steps=2)
    wide.sample("text", "image", seed=1, steps=1)
    wide.sample("text", image=photo(), seed=1, steps=1)
    assert wide.sample("image", text="cat", seed=1, steps=2) == [before]


def test_09_every_deterministic_solver_comes_to_the_same_end_and_others_are_refused(model: UniDiffuser) -> None:
    """Schedulers in other units are taken, and give wrong pictures."""
    best = latents(model.sample("image", text="cat", seed=1, steps=200, guidance=0, solver="heun"))
    for solver in ("ddim", "heun", "dpmpp_2m", "dpmpp_3m", "dpm_single_3", "unipc"):
        found = latents(model.sample("image", text="cat", seed=1, steps=50, guidance=0, solver=solver))
        assert float((found - best).norm() / best.norm()) < (0.2 if solver == "ddim" else 0.05), solver
    with pytest.raises(ValueError, match="there is no solver 'euler'; choose one of"):
        model.sample("image", text="cat", solver="euler")


def test_10_pictures_of_any_size_are_taken_and_made(model: UniDiffuser) -> None:
    """Another size than the model's own is a bare error of shapes."""
    assert model.sample("text", image=photo(301, 77), seed=1, steps=1)
    for size in ((64, 192), (160, 160)):
        [one] = model.sample("image", text="cat", seed=1, steps=1, size=size)
        assert one["image"].size == size
        assert model.sample("text", image=one["image"], size=size, seed=1, steps=1)
    with pytest.raises(ValueError, match="cannot make pictures of 100 x 64; width and height must be multiples of 16"):
        model.sample("image", size=(100, 64))


def test_11_a_picture_that_is_not_square_is_not_scrambled(model: UniDiffuser) -> None:
    """As many tokens in another shape come out as a square. (Against the library's own blocks: test_released_parts.)"""
    wide, square = model.resized(256, 64), model
    xt = {s: x.half().float() for s, x in noise_like(wide.shapes, [1], "test").items()}
    assert xt["image.latent"].shape == (1, 4, 8, 32) and square.shapes["image.latent"] == (4, 16, 16)
    flipped = xt | {"image.latent": xt["image.latent"].clone()}
    flipped["image.latent"][..., 5, 29] += 3.0
    t = {"image": 0.5, "text": 0.5}
    changed = (wide.predict_noise(flipped, t)["image.latent"] - wide.predict_noise(xt, t)["image.latent"]).abs()
    rows, columns = np.unravel_index(int(changed[0].amax(0).argmax()), (8, 32))
    assert (rows // 2, columns // 2) == (2, 14)


def test_12_many_pictures_and_many_seeds_in_one_call(model: UniDiffuser) -> None:
    """Lists of pictures, and of generators, raise."""
    pictures = [photo(seed=k) for k in range(3)]
    together = model.sample("text", image=pictures, n=3, seed=[9, 2, 5], steps=2)
    for one, picture, seed in zip(together, pictures, (9, 2, 5), strict=True):
        [alone] = model.sample("text", image=picture, seed=seed, steps=2)
        assert alone["text"] == one["text"] and torch.equal(alone.streams["text"], one.streams["text"])


def test_13_arrays_are_the_pictures_they_are(model: UniDiffuser) -> None:
    """Numbers from 0 to 1 are scaled by 1/255 a second time."""
    picture = photo(128, 128)
    for stream, x in model.encode(image=np.asarray(picture)).items():
        assert torch.equal(x, model.encode(image=picture)[stream])
    with pytest.raises(ValueError, match="an image array must be uint8"):
        model.encode(image=np.asarray(picture) / 255)


def test_14_latents_are_taken_in_their_true_shape(model: UniDiffuser) -> None:
    """Latents of text are asked for in one width and used in another, so none can be given."""
    [one] = model.sample("text", seed=1, steps=2)
    assert one.streams["text"].shape == (77, 12)
    with recorded(model.network) as calls:
        model.sample("image", text=one.latent("text"), seed=2, steps=1)
    assert torch.equal(calls[0].rows("text", 0, 1)[0], one.streams["text"])


def test_15_results_stand_in_the_order_of_what_was_given(model: UniDiffuser) -> None:
    """Two counters order their results in two ways."""
    texts = ["cat", "red", "cat", "at"]
    found = model.sample("image", text=texts, n=4, seed=3, steps=1)
    assert [one["text"] for one in found] == texts and [one.seed for one in found] == [3, 4, 5, 6]


def test_16_as_many_pairs_as_were_asked_for(model: UniDiffuser) -> None:
    """Four are asked for and one comes."""
    found = model.sample("image", "text", n=4, seed=0, steps=1)
    assert len(found) == 4 and len({one["image"].tobytes() for one in found}) == 4


def test_17_weak_guidance_acts_and_each_modality_has_its_own(model: UniDiffuser) -> None:
    """0 < scale < 1 counts as 1, and one scale serves both modalities."""
    off, half, full = (latents(model.sample("image", text="cat", seed=1, steps=1, guidance=s)) for s in (0, 0.5, 1.0))
    torch.testing.assert_close(half, (off + full) / 2, rtol=1e-3, atol=1e-3)
    assert (full - off).abs().max() > 0.01
    none, image, text = (
        model.sample("image", "text", seed=1, steps=3, guidance=scale) for scale in ({}, {"image": 1.0}, {"text": 1.0})
    )
    assert (latents(image) - latents(none)).abs().max() > 0.01
    assert (latents(text, "text") - latents(none, "text")).abs().max() > 0.01
    with pytest.raises(ValueError, match=r"must lie between 1 \(off\)"):
        Guidance.from_g(0.5)


def test_18_no_part_is_left_in_training_mode(formats: Formats, model: UniDiffuser) -> None:
    """Dropout is live in a caption decoder that was handed over by hand."""
    modules = [model.part.wake()]
    modules += [part.wake() for codec in model.modalities.values() for part in vars(codec)["parts"].values()]
    assert len(modules) == 5 and not any(each.training for module in modules for each in module.modules())
    assert model.encode(text="cat")["text"].equal(model.encode(text="cat")["text"])


def test_19_adapters_and_reuse_work(formats: Formats) -> None:
    """No adapters, no caches on the model."""
    own = formats.model()
    [before] = own.sample("text", seed=1, steps=2)
    width = own.network.state_dict()["mid_block.attention.proj.weight"].shape[0]
    generator = torch.Generator().manual_seed(0)
    pair = (torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator))
    own.add(Additions({"mid_block.attention.proj": pair}, 1.0), 0.5)
    [after] = own.sample("text", seed=1, steps=2)
    assert (before.streams["text"] - after.streams["text"]).abs().max() > 1e-3
    assert own.digest != formats.model().digest
    calls = {place: counted(own.network, place) for place in ("mid_block", "out_blocks.1")}
    exact, reused = (
        latents(own.sample("image", text="cat", seed=1, steps=6, guidance=1.0, reuse=how))
        for how in (None, Reuse(every=2))
    )
    assert [len(each) for each in calls.values()] == [6 + 3, 6 + 6]
    assert 0 < float((reused - exact).norm() / exact.norm()) < 0.5


def test_19_activations_may_be_computed_again_in_the_backward_pass(formats: Formats) -> None:
    """No gradient checkpointing."""
    (plain, once), (again, twice) = (gradients(formats.model(), recompute) for recompute in (False, True))
    assert twice == 2 * once > 0
    for name, gradient in plain.items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(again[name], gradient, msg=name)


def gradients(model: UniDiffuser, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Of a training step of the network, by name; and how often a block was computed for them."""
    network = model.part.settle().requires_grad_(True)
    calls = counted(network, "mid_block.attention")
    called = _prepared(network, OptimiserSettings(steps=1, batch=2, recompute=recompute), Team(), "none")
    xt = noise_like(model.shapes, [1, 2], "test")
    t = {"image": torch.tensor([0.3, 0.9]), "text": torch.tensor([0.7, 0.1])}
    outputs = called(xt, t, torch.tensor([0, 1]))
    torch.stack([x.square().mean() for x in outputs.values()]).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}, len(calls)


def counted(network: torch.nn.Module, place: str) -> list[int]:
    """A list that grows whenever this part of a network is computed."""
    calls: list[int] = []
    network.get_submodule(place).register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_20_the_search_does_not_lose_small_probabilities_in_half_precision() -> None:
    """softmax and then log: in float16 what is below 6e-8 becomes minus infinity."""

    class Sure:
        logits = torch.tensor([[0.0, 30.0, 5.0, -10.0]], dtype=torch.float16)

        def take(self, rows: Tensor) -> "Sure":
            taken = Sure()
            taken.logits = self.logits.expand(len(rows), -1) if len(self.logits) == 1 else self.logits[rows]
            return taken

        def extend(self, tokens: Tensor) -> "Sure":
            return self

    _, _, means = beam_search(Sure(), 0, Captioning(beams=4, max_tokens=2))
    assert bool(means.isfinite().all())
