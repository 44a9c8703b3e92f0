"""The diffusers folder of a released UniDiffuser, read and written:

    model_index.json  unet/  vae/  text_encoder/  image_encoder/  text_decoder/  clip_tokenizer/  text_tokenizer/
    clip_image_processor/ (before October 2023: image_processor/)  scheduler/

model_index.json is looked at only to see that the folder is a UniDiffuser: the classes it names are never imported.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unidiffuser.checkpoints import ModelError, Parts, hub
from unidiffuser.checkpoints import diffusers_configs as configs
from unidiffuser.checkpoints.released import Pieces
from unidiffuser.checkpoints.suspect import AGAIN, listed, read_json
from unidiffuser.checkpoints.tables import find_weights, read_component_config, read_table
from unidiffuser.modalities import check_whole
from unidiffuser.modalities.clip_text import ClipText
from unidiffuser.modalities.stable_diffusion import StableDiffusion
from unidiffuser.networks.uvit import UViT, UViTConfig
from unidiffuser.offload import Weights

INDEX, STEM = "model_index.json", "diffusion_pytorch_model"
NAMES = {
    "position": "pos_embed",
    "label_position": "data_type_pos_embed_token",
    "label": "data_type_token_embedding",
    "embed.image_latent": "vae_img_in.proj",
    "embed.image_clip": "clip_img_in",
    "embed.text": "text_in",
    "head.image_latent": "vae_img_out",
    "head.image_clip": "clip_img_out",
    "head.text": "text_out",
    "norm": "transformer.norm_out",
}
"""Our name outside the blocks -> theirs."""
BLOCK_NAMES = {
    "attention.proj": "attn1.to_out.0",
    "attention_norm": "norm1",
    "mlp_norm": "norm3",
    "mlp.0": "ff.net.0.proj",
    "mlp.2": "ff.net.2",
}
"""Our name inside a block -> theirs."""
NUMBERS = (
    "num_text_tokens", "text_dim", "clip_img_dim", "in_channels", "sample_size", "num_attention_heads",
    "attention_head_dim", "num_layers", "patch_size",
)  # fmt: skip
"""The settings that describe the network."""
SKIP_NAMES = {"skip": "skip.skip_linear", "skip_norm": "skip.norm"}
QKV = tuple(f"attn1.to_{letter}.weight" for letter in "qkv")


def recognises(folder: Path) -> bool:
    """Whether a folder is a diffusers pipeline."""
    return (folder / INDEX).is_file()


def read(folder: Path) -> Pieces:
    """The pieces in a folder.

    Raises:
        ModelError: another pipeline, or a component that is missing, damaged or something else.
    """
    index = read_json(folder / INDEX)
    if index.get("_class_name") != "UniDiffuserPipeline":
        raise ModelError(f"{folder} is a {index.get('_class_name')!r}, not a UniDiffuserPipeline; give another folder")
    missing = [name for name in ("unet", "vae", "text_encoder", "text_decoder") if not (folder / name).is_dir()]
    if missing:
        raise ModelError(f"{folder} is not a whole pipeline: {', '.join(missing)} missing; {AGAIN}")
    config = _network(folder / "unet")
    return Pieces(
        name=folder.name,
        network=config,
        weights=_translated(config, read_table(find_weights(folder / "unet"))),
        autoencoder=hub.autoencoder(folder / "vae"),
        vision=_if_there(folder / "image_encoder", hub.clip_vision),
        encoder=hub.clip_text(folder / "text_encoder"),
        decoder=hub.gpt2(folder / "text_decoder"),
        prefix=_prefix(folder / "text_decoder"),
        clip_tokenizer=_if_there(folder / "clip_tokenizer", hub.clip_tokenizer),
        gpt2_tokenizer=_if_there(folder / "text_tokenizer", hub.gpt2_tokenizer),
    )


def write(folder: Path, parts: Parts, *, stored: torch.dtype = torch.float32) -> None:
    """Write a model as a diffusers folder of safetensors, all or nothing.

    Raises:
        ModelError: it is no released model, or was converted without a part.
        ValueError: the place is taken.
    """
    image, text = parts.modalities.get("image"), parts.modalities.get("text")
    network = parts.network.config
    if not (isinstance(network, UViTConfig) and isinstance(image, StableDiffusion) and isinstance(text, ClipText)):
        raise ModelError(f"{parts.name} is no UniDiffuser of the released kind; only those have a diffusers folder")
    pictures, sentences = image.config(), text.config()
    lacking = [n for n, v in {**pictures, **sentences}.items() if v is None]
    if lacking:
        raise ModelError(f"{parts.name} was converted without {', '.join(lacking)}; a diffusers folder needs them all")
    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another place")
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    try:
        _write_networks(fresh, parts, image, text, stored)
        _write_texts(fresh, pictures, sentences)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_networks(folder: Path, parts: Parts, image: StableDiffusion, text: ClipText, stored: torch.dtype) -> None:
    """The five components that have weights."""
    assert isinstance(parts.network.config, UViTConfig)
    pictures, sentences = image.config(), text.config()
    weights = Weights.of(parts.weights or parts.network.state_dict())
    captions = {f"transformer.transformer.{n}": x for n, x in text.weights.under("decoder.").items()}
    captions["transformer.lm_head.weight"] = captions["transformer.transformer.wte.weight"]
    captions |= {n: x for n, x in text.weights.items() if n.startswith(("encode_prefix.", "decode_prefix."))}
    encoder = {f"text_model.{n}": x for n, x in text.weights.under("encoder.").items()}
    vision = configs.clip("vision", pictures["vision"])
    components: dict[str, tuple[Mapping[str, Any], Mapping[str, Tensor], str]] = {
        "unet": (configs.unet(parts.network.config), _foreign(weights), STEM),
        "vae": (configs.vae(pictures), image.weights.under("autoencoder."), STEM),
        "text_encoder": (configs.clip("text", sentences["encoder"]), encoder, "model"),
        "image_encoder": (vision, image.weights.under("vision."), "model"),
        "text_decoder": (configs.decoder(sentences), captions, STEM),
    }
    for name, (config, tensors, stem) in components.items():
        _write_json(folder / name / "config.json", config)
        # Each is a copy: two names of one tensor would share memory, which the format refuses.
        table = {n: x.to(stored, copy=True).contiguous() for n, x in tensors.items()}
        save_file(table, folder / name / f"{stem}.safetensors", metadata={"format": "pt"})


def _write_texts(folder: Path, pictures: Mapping[str, Any], sentences: Mapping[str, Any]) -> None:
    """Tokenizers and settings."""
    _write_tokenizer(folder / "clip_tokenizer", "CLIPTokenizer", sentences, {"pad_token": "pad"}, "encoder")
    _write_tokenizer(folder / "text_tokenizer", "GPT2Tokenizer", sentences, {"eos_token": "end"}, "decoder")
    _write_json(folder / "clip_image_processor" / "preprocessor_config.json", configs.processor(pictures))
    _write_json(folder / "scheduler" / "scheduler_config.json", configs.SCHEDULER)
    _write_json(folder / INDEX, configs.MODEL_INDEX)


def _network(folder: Path) -> UViTConfig:
    """The network's description."""
    said = read_component_config(folder, "config.json")
    odd = {"pre_layer_norm": False, "use_timestep_embedding": False, "attention_bias": False, "activation_fn": "gelu"}
    if different := [name for name, value in odd.items() if said.get(name, value) != value]:
        raise ModelError(f"{folder} is no network of the released kind: it differs in {', '.join(different)}")
    try:
        for name in NUMBERS:
            check_whole(name, said[name], 1, 10**6)
        channels, size = said["in_channels"], said["sample_size"]
        return UViTConfig(
            streams={
                "text": (said["num_text_tokens"], said["text_dim"]),
                "image.clip": (1, said["clip_img_dim"]),
                "image.latent": (channels, size, size),
            },
            modalities=("image", "text"),
            dim=said["num_attention_heads"] * said["attention_head_dim"],
            depth=said["num_layers"],
            heads=said["num_attention_heads"],
            patch=said["patch_size"],
            labels=2 if said.get("use_data_type_embedding") else 0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}/config.json does not describe a UniDiffuser ({error}); {AGAIN}") from error


def _theirs(ours: str) -> tuple[str, ...]:
    """The names of a weight of ours in their file: one, or three for a joint projection of query, key and value."""
    stem, _, kind = ours.rpartition(".")
    if ours in NAMES:  # a parameter without a module
        return (NAMES[ours],)
    if stem in NAMES:
        return (f"{NAMES[stem]}.{kind}",)
    match = re.fullmatch(r"(in_blocks\.\d+|mid_block|out_blocks\.\d+)\.(.+)", stem)
    assert match, ours
    place, inside = match.groups()
    if inside in SKIP_NAMES:
        return (f"transformer.transformer_{place}.{SKIP_NAMES[inside]}.{kind}",)
    block = f"transformer.transformer_{place}" + (".block" if place.startswith("out") else "")
    if inside == "attention.qkv":
        return tuple(f"{block}.{name}" for name in QKV)
    return (f"{block}.{BLOCK_NAMES[inside]}.{kind}",)


def _translated(config: UViTConfig, theirs: Weights) -> Weights:
    """Their weights under our names; what is missing stays missing."""
    if config.depth > len(theirs):
        raise ModelError(f"the network is said to have {config.depth} layers, and has {len(theirs)} weights; {AGAIN}")
    with torch.device("meta"):
        ours = UViT(config).state_dict()
    names = {name: _theirs(name) for name in ours}
    used = {name for sources in names.values() for name in sources}
    dead = {name for name in theirs if name.startswith("transformer.pos_embed.proj.")}
    if extra := sorted(theirs.keys() - used - dead):
        raise ModelError(f"the network has weights that a UniDiffuser does not have: {listed(extra)}")
    whole = {name: sources for name, sources in names.items() if all(source in theirs for source in sources)}
    shapes = {}
    for name, sources in whole.items():
        first, *others = (theirs.shapes[source] for source in sources)
        if any(other != first for other in others):
            raise ModelError(f"the network's weights {listed(list(sources))} differ in shape; {AGAIN}")
        shapes[name] = (first[0] * len(sources), *first[1:])
    return Weights(shapes, lambda name: _joined([theirs[source] for source in whole[name]]))


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _foreign(ours: Weights) -> dict[str, Tensor]:
    """Our weights under their names, with the copy of the patch embedding that their class has and does not use."""
    theirs: dict[str, Tensor] = {}
    for name, x in ours.items():
        names = _theirs(name)
        theirs |= dict(zip(names, x.chunk(len(names)), strict=True))
    for kind in ("weight", "bias"):
        theirs[f"transformer.pos_embed.proj.{kind}"] = theirs[f"vae_img_in.proj.{kind}"]
    return theirs


def _prefix(folder: Path) -> Weights:
    """The linear layers around the text latent; without a narrow latent they are the identity."""
    table = read_table(find_weights(folder))
    names = [name for name in table if name.startswith(("encode_prefix.", "decode_prefix."))]
    said = read_component_config(folder, "config.json")
    if said.get("prefix_hidden_dim") is not None:
        return table.named({name: name for name in names})
    width = int(said["prefix_inner_dim"])
    layers = ("encode_prefix", "decode_prefix")
    identity = {f"{layer}.weight": torch.eye(width) for layer in layers}
    return Weights.of(identity | {f"{layer}.bias": torch.zeros(width) for layer in layers})


def _if_there(folder: Path, read: Any) -> Any:
    return read(folder) if folder.is_dir() else None


def _write_tokenizer(
    folder: Path, owner: str, sentences: Mapping[str, Any], special: Mapping[str, str], part: str
) -> None:
    """tokenizer.json, and the older pair of vocab.json and merges.txt. special: their name -> ours of a token."""
    saved = sentences["clip_tokenizer" if part == "encoder" else "gpt2_tokenizer"]
    _write_json(folder / "tokenizer.json", saved)
    _write_json(folder / "vocab.json", saved["model"]["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    length = sentences[part]["max_position_embeddings" if part == "encoder" else "n_positions"]
    numbers = {theirs: sentences[ours] for theirs, ours in special.items()}
    _write_json(folder / "tokenizer_config.json", configs.tokenizer(owner, saved, numbers, length))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
