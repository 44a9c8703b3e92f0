"""Every format of the released UniDiffuser gives the same model, and the diffusers folder comes out as it went in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from released_model import (
    FORMATS,
    Formats,
    converted,
    diffusers,
    original_network,
    released,
    save_diffusers,
    save_original,
    transformers,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from unidiffuser import UniDiffuser
from unidiffuser.checkpoints import convert, thu_ml
from unidiffuser.checkpoints import diffusers as diffusers_folder
from unidiffuser.joint import noise_like
from unidiffuser.networks.uvit import UViT, UViTConfig
from unidiffuser.offload import Weights


def tensors(model: UniDiffuser) -> dict[str, Tensor]:
    parts = {"network": model.part.wake().state_dict()}
    parts |= {name: codec.state() for name, codec in model.modalities.items()}
    return {f"{part}.{name}": x for part, state in parts.items() for name, x in state.items()}


def check_equal(one: UniDiffuser, other: UniDiffuser) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    for name, codec in one.modalities.items():
        assert codec.config() == other.modalities[name].config(), name
    assert one.network.describe() == other.network.describe()
    assert (one.settings, one.process_name, one.prediction) == (other.settings, other.process_name, other.prediction)


@pytest.mark.parametrize("version", ["formats", "formats_v0"])
@pytest.mark.parametrize("name", ["old", "original"])
def test_all_formats_give_one_model(version: str, name: str, request: pytest.FixtureRequest) -> None:
    places: Formats = request.getfixturevalue(version)
    check_equal(places.model("new"), places.model(name))


@pytest.mark.parametrize("labels, parameters, files", [(2, 952_509_520, 418), (0, 952_504_912, 416)])
def test_at_full_size_every_format_has_the_structure_of_the_released_network(
    labels: int, parameters: int, files: int, tmp_path: Path
) -> None:
    """Numbers and shapes are those of the authors' files (v1, v0); no memory is taken for the weights."""
    streams = {"text": (77, 64), "image.clip": (1, 512), "image.latent": (4, 64, 64)}
    config = UViTConfig(
        streams=streams, modalities=("image", "text"), dim=1536, depth=30, heads=24, patch=2, labels=labels
    )
    with torch.device("meta"):
        ours = {name: tuple(x.shape) for name, x in UViT(config).state_dict().items()}
        unet = diffusers.UniDiffuserModel(
            text_dim=64, clip_img_dim=512, num_text_tokens=77, num_attention_heads=24, attention_head_dim=64,
            in_channels=4, out_channels=4, num_layers=30, sample_size=64, patch_size=2, activation_fn="gelu",
            norm_type="layer_norm", block_type="unidiffuser", pre_layer_norm=False, use_data_type_embedding=labels > 0,
        )  # fmt: skip
        original = original_network(unet)
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == parameters
    unused = 1536 * 4 * 2 * 2 + 1536  # their class has the patch embedding twice
    assert sum(p.numel() for p in unet.parameters()) == parameters + unused
    assert len(original) == files
    expected = {
        "pos_embed": (1, 1104, 1536), "in_blocks.14.attn.qkv.weight": (4608, 1536), "decoder_pred.weight": (16, 1536),
        "mid_block.mlp.fc1.weight": (6144, 1536), "out_blocks.14.skip_linear.weight": (1536, 3072),
    }  # fmt: skip
    assert {name: tuple(original[name].shape) for name in expected} == expected
    unet.save_config(tmp_path)
    assert diffusers_folder._network(tmp_path) == config
    assert diffusers_folder._translated(config, Weights.of(unet.state_dict())).shapes == ours
    found, weights = thu_ml._network(tmp_path, Weights.of(original), None)
    assert found == config and weights.shapes == ours


def test_the_versions_differ_in_their_label(formats: Formats, formats_v0: Formats) -> None:
    new, old = formats.model(), formats_v0.model()
    assert (new.labels, new.settings.label, old.labels, old.settings.label) == (2, 1, 0, 0)
    with pytest.raises(ValueError, match="label must be a whole number from 0 to 0, not 1"):
        old.sample("text", label=1, steps=1)
    assert len(tensors(new)) == len(tensors(old)) + 2


@pytest.mark.parametrize("name", FORMATS)
def test_a_converted_folder_is_one_of_ours(formats: Formats, name: str) -> None:
    folder = formats.ours[name]
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "model.safetensors",
    ]
    card = (folder / "README.md").read_text()
    assert "agpl-3.0" in card and "2303.06555" in card


def test_names_of_a_converted_model(formats: Formats) -> None:
    model = formats.model()
    assert model.shapes == {"image.clip": (1, 24), "image.latent": (4, 16, 16), "text": (77, 12)}
    settings = model.settings
    assert (settings.steps, settings.solver, settings.end, settings.fresh_noise) == (50, "dpm_single_3", 0.001, True)


def test_saving_again_changes_nothing(formats: Formats, tmp_path: Path) -> None:
    model = formats.model()
    model.save(tmp_path / "again")
    again = UniDiffuser.from_pretrained(tmp_path / "again")
    check_equal(model, again)
    assert model.digest == again.digest


def test_a_vision_tower_that_lies_in_a_whole_clip(formats: Formats, tmp_path: Path) -> None:
    """clip-vit-base-patch32 and clip-vit-large-patch14 on the hub are whole CLIPs: two towers in one file."""
    source = formats.source
    sides = {
        "text_config": source.text_encoder.config.to_dict(),
        "vision_config": source.image_encoder.config.to_dict(),
    }
    whole = transformers.CLIPModel(transformers.CLIPConfig(**sides, projection_dim=24))
    whole.text_model.load_state_dict(source.text_encoder.state_dict(), strict=True)
    whole.vision_model.load_state_dict(source.image_encoder.vision_model.state_dict())
    whole.visual_projection.load_state_dict(source.image_encoder.visual_projection.state_dict())
    folder = save_original(tmp_path / "original", source)
    for name in ("clip-vit-large-patch14", "clip-vit-base-patch32"):
        (folder / name / "model.safetensors").unlink()
        whole.save_pretrained(folder / name)
    check_equal(UniDiffuser.from_pretrained(converted(folder, tmp_path / "ours")), formats.model())


def test_the_text_encoder_inside_the_caption_file(formats: Formats, tmp_path: Path) -> None:
    """Without a folder of CLIP the encoder is read from caption_decoder.pth; the tokenizer is missing, and is named."""
    folder = save_original(tmp_path / "original", formats.source)
    for name in ("clip-vit-large-patch14", "clip-vit-base-patch32", "gpt2"):
        (folder / name).rename(tmp_path / name)
    table = torch.load(folder / "caption_decoder.pth", weights_only=True)
    for name, x in formats.source.text_encoder.state_dict().items():
        table[f"module.clip_model.text_model.{name.removeprefix('text_model.')}"] = x
    torch.save(table, folder / "caption_decoder.pth")
    parts, missing = convert.read(folder)
    assert [line.partition(":")[0] for line in missing] == [
        "no sentence can be given",
        "no caption can be written",
        "no picture can be given",
    ]
    model = UniDiffuser.from_parts(parts)
    assert model.sample("image", steps=1)[0]["image"].size == (128, 128)
    for call in (
        lambda: model.sample("image", text="cat"),
        lambda: model.sample("text"),
        lambda: model.encode(text="cat"),
    ):
        with pytest.raises(ValueError, match=r"this model was converted without its \w+_tokenizer; convert it again"):
            call()
    with pytest.raises(ValueError, match="converted without its picture encoder 'vision'"):
        model.sample("text", image=model.sample("image", steps=1)[0]["image"])
    beside = {"encoder": tmp_path / "clip-vit-large-patch14", "vision": tmp_path / "clip-vit-base-patch32"}
    parts, missing = convert.read(folder, beside={**beside, "gpt2": tmp_path / "gpt2"})
    assert missing == []
    check_equal(UniDiffuser.from_parts(parts), formats.model())


def shard(file: Path, save: Any, load: Any, pattern: str, index: str) -> None:
    """Split the weights of a file in two, as the libraries name the pieces."""
    table = load(file)
    names = sorted(table)
    parts = {pattern.format(1): names[::2], pattern.format(2): names[1::2]}
    for part, chosen in parts.items():
        save({name: table[name].clone() for name in chosen}, file.with_name(part))
    places = {name: part for part, chosen in parts.items() for name in chosen}
    file.with_name(index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    file.unlink()


def test_shards_and_variants(formats: Formats, tmp_path: Path) -> None:
    folder = save_diffusers(tmp_path / "new", formats.source)
    stem = "diffusion_pytorch_model"
    shard(
        folder / "unet" / f"{stem}.safetensors", save_file, load_file,
        stem + ".fp16-{:05d}-of-00002.safetensors", f"{stem}.safetensors.index.fp16.json",
    )  # fmt: skip
    shard(
        folder / "text_decoder" / f"{stem}.bin", torch.save, lambda file: torch.load(file, weights_only=True),
        stem + "-{:05d}-of-00002.bin", f"{stem}.bin.index.json",
    )  # fmt: skip
    vae = folder / "vae" / f"{stem}.safetensors"
    vae.rename(vae.with_name(f"{stem}.fp16.safetensors"))
    check_equal(UniDiffuser.from_pretrained(converted(folder, tmp_path / "ours")), formats.model())


def test_whole_precision_is_taken_before_a_variant(formats: Formats, tmp_path: Path) -> None:
    folder = save_diffusers(tmp_path / "new", formats.source)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    half = {name: x.half().float() for name, x in load_file(file).items()}
    save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    check_equal(UniDiffuser.from_pretrained(converted(folder, tmp_path / "ours")), formats.model())


def test_a_wide_text_latent(tmp_path: Path) -> None:
    """Decoders without prefix_hidden_dim diffuse the encoder's states themselves."""
    source = released(text=128)
    model = UniDiffuser.from_pretrained(converted(save_diffusers(tmp_path / "new", source), tmp_path / "ours"))
    tokens = source.clip_tokenizer("cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    states = source.text_encoder(tokens).last_hidden_state
    torch.testing.assert_close(model.encode(text="cat")["text"], states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", ["formats", "formats_v0"])
def test_the_way_back(version: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    places: Formats = request.getfixturevalue(version)
    parts, _ = convert.read(places.ours["new"])
    convert.write(tmp_path / "back", parts, "diffusers")
    assert not list((tmp_path / "back").rglob("*.bin"))
    check_equal(places.model(), UniDiffuser.from_pretrained(converted(tmp_path / "back", tmp_path / "again")))
    convert.write(tmp_path / "half", parts, "diffusers", stored="bfloat16")
    table = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {x.dtype for x in table.values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="half is there already; choose another place"):
        convert.write(tmp_path / "half", parts, "diffusers")
    assert not list(tmp_path.glob(".*"))


def test_the_libraries_read_what_we_export(formats: Formats, tmp_path: Path) -> None:
    parts, _ = convert.read(formats.ours["new"])
    convert.write(tmp_path / "back", parts, "diffusers")
    owners = {
        "unet": diffusers.UniDiffuserModel, "vae": diffusers.AutoencoderKL,
        "text_decoder": diffusers.UniDiffuserTextDecoder, "text_encoder": transformers.CLIPTextModel,
        "image_encoder": transformers.CLIPVisionModelWithProjection,
        "clip_tokenizer": transformers.CLIPTokenizer, "text_tokenizer": transformers.GPT2Tokenizer,
    }  # fmt: skip
    back = {name: owner.from_pretrained(tmp_path / "back" / name) for name, owner in owners.items()}
    source = formats.source
    for name in ("unet", "vae", "text_decoder", "text_encoder", "image_encoder"):
        wanted = getattr(source, name).state_dict()
        found = back[name].state_dict()
        assert [n for n, x in wanted.items() if not torch.equal(x, found[n])] == [], name
    xt = noise_like(formats.model().shapes, [1], "test")
    inputs = (xt["image.latent"], xt["image.clip"], xt["text"], torch.tensor(500.5), torch.tensor(20.25))
    for a, b in zip(source.unet(*inputs), back["unet"](*inputs), strict=True):
        assert torch.equal(a, b)
    z = xt["image.latent"]
    assert torch.equal(source.vae.decode(z).sample, back["vae"].decode(z).sample)
    sentence = "a red cat"
    for name in ("clip_tokenizer", "text_tokenizer"):
        assert back[name](sentence).input_ids == getattr(source, name)(sentence).input_ids
    assert back["text_tokenizer"].eos_token_id == source.text_tokenizer.eos_token_id
    assert back["clip_tokenizer"].pad_token_id == source.clip_tokenizer.pad_token_id
    tokens = torch.tensor([source.clip_tokenizer(sentence).input_ids])
    assert torch.equal(source.text_encoder(tokens)[0], back["text_encoder"](tokens)[0])


def test_the_whole_pipeline_of_diffusers_reads_what_we_export(formats: Formats, tmp_path: Path) -> None:
    parts, _ = convert.read(formats.ours["new"])
    convert.write(tmp_path / "back", parts, "diffusers")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "back")
    pipe.set_progress_bar_config(disable=True)
    found = pipe(prompt="cat", num_inference_steps=2, height=128, width=128, generator=torch.manual_seed(0))
    assert found.images[0].size == (128, 128)
