"""The original files of the released UniDiffuser, github.com/thu-ml/unidiffuser:

    uvit_v0.pth or uvit_v1.pth   the network
    caption_decoder.pth          GPT-2, and the linear layers around the text latent
    autoencoder_kl.pth           Stable Diffusion's autoencoder

The original fetches CLIP and the tokenizers when it runs. Here they are found in folders beside these files, or named,
or taken from the local cache of the hub; without them the model is converted all the same and says what it lacks.
Shapes are read off the weights. It knows no other format.
"""

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from unidiffuser.checkpoints import ModelError, hub
from unidiffuser.checkpoints.released import Piece, Pieces, piece
from unidiffuser.checkpoints.tables import read_table
from unidiffuser.networks.uvit import UViTConfig
from unidiffuser.offload import Weights
from unidiffuser.pretrained import library

NETWORKS, CAPTIONS, AUTOENCODER = ("uvit_v1.pth", "uvit_v0.pth"), "caption_decoder.pth", "autoencoder_kl.pth"
HEAD, LENGTH, PATCH_TOKENS = 64, 77, 2
NAMES = {
    "pos_embed": "position",
    "pos_embed_token": "label_position",
    "token_embedding": "label",
    "patch_embed.proj": "embed.image_latent",
    "clip_img_embed": "embed.image_clip",
    "text_embed": "embed.text",
    "decoder_pred": "head.image_latent",
    "clip_img_out": "head.image_clip",
    "text_out": "head.text",
    "attn": "attention",
    "norm1": "skip_norm",
    "norm2": "attention_norm",
    "norm3": "mlp_norm",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "skip_linear": "skip",
}
"""A piece of an original name -> ours; what is not here is called the same."""

_NAME = re.compile(r"(?<![^.])(" + "|".join(map(re.escape, sorted(NAMES, key=len, reverse=True))) + r")(?![^.])")


def recognises(folder: Path) -> bool:
    """Whether a folder holds original files."""
    return any((folder / name).is_file() for name in (*NETWORKS, CAPTIONS, AUTOENCODER))


def read(folder: Path, *, beside: Mapping[str, Path] | None = None, heads: int | None = None) -> Pieces:
    """The pieces in a folder of original files.

    Args:
        beside: folders of "encoder" (CLIP ViT-L/14), "vision" (CLIP ViT-B/32) and "gpt2" (the tokenizer), as the hub
            lays them out; absent ones are looked for beside the files and in the hub's local cache.
        heads: attention heads of the network, which its weights do not tell; 64 numbers each if absent.

    Raises:
        ModelError: a file that is missing, damaged, hostile or something else.
    """
    names = [name for name in NETWORKS if (folder / name).is_file()]
    if len(names) != 1:
        raise ModelError(f"{folder} must hold one of {' and '.join(NETWORKS)}, and it holds {len(names)}")
    original = read_table(folder / names[0])
    config, weights = _network(folder / names[0], original, heads)
    captions = read_table(folder / CAPTIONS)
    captions = captions.named({name.removeprefix("module."): name for name in captions})
    found = {name: hub.beside(folder, name, (beside or {}).get(name)) for name in ("encoder", "vision", "gpt2")}
    encoder = _clip_text(captions) if found["encoder"] is None else hub.clip_text(found["encoder"])
    return Pieces(
        name=f"unidiffuser-{names[0][5:7]}",
        network=config,
        weights=weights,
        autoencoder=_autoencoder(folder / AUTOENCODER),
        vision=None if found["vision"] is None else hub.clip_vision(found["vision"]),
        encoder=encoder,
        decoder=_decoder(folder / CAPTIONS, captions),
        prefix=captions.named(
            {name: name for name in captions if name.startswith(("encode_prefix.", "decode_prefix."))}
        ),
        clip_tokenizer=None if found["encoder"] is None else hub.clip_tokenizer(found["encoder"]),
        gpt2_tokenizer=None
        if found["gpt2"] is None
        else hub.gpt2_tokenizer(found["gpt2"], end=captions.shapes["gpt.transformer.wte.weight"][0] - 1),
    )


def _network(path: Path, original: Weights, heads: int | None) -> tuple[UViTConfig, Weights]:
    """The network's description, read off its shapes, and its weights under our names."""
    shapes = original.shapes
    try:
        _, positions, dim = shapes["pos_embed"]
        _, channels, patch, _ = shapes["patch_embed.proj.weight"]
        text, clip = shapes["text_embed.weight"][1], shapes["clip_img_embed.weight"][1]
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} does not hold the network of a UniDiffuser: {error} is missing") from error
    patches = positions - PATCH_TOKENS - LENGTH - 1
    side = isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ModelError(f"{path} has {positions} positions, which are not {LENGTH} words, a picture and its timesteps")
    if heads is None and dim % HEAD:
        raise ModelError(f"{path} is {dim} wide, not a multiple of {HEAD}: say how many heads it has (--heads)")
    config = UViTConfig(
        streams={
            "text": (LENGTH, text),
            "image.clip": (1, clip),
            "image.latent": (channels, side * patch, side * patch),
        },
        modalities=("image", "text"),
        dim=dim,
        depth=2 * len({name.split(".")[1] for name in shapes if name.startswith("in_blocks.")}),
        heads=heads or dim // HEAD,
        mlp_ratio=shapes.get("mid_block.mlp.fc1.weight", (4 * dim,))[0] // dim,
        patch=patch,
        labels=shapes.get("token_embedding.weight", (0,))[0],
    )
    return config, original.named({_NAME.sub(lambda match: NAMES[match[1]], name): name for name in original})


def _decoder(path: Path, captions: Weights) -> Piece:
    """GPT-2, as its shapes tell; the activation is that of the library's "gpt2", which the original loads."""
    gpt = captions.under("gpt.transformer.")
    kept = [name for name in gpt if not name.endswith((".attn.bias", ".attn.masked_bias"))]
    try:
        (vocabulary, width), (positions, _) = gpt.shapes["wte.weight"], gpt.shapes["wpe.weight"]
    except KeyError as error:
        raise ModelError(
            f"{path} does not hold a caption decoder: gpt.transformer.{error.args[0]} is missing"
        ) from error
    settings = {
        "vocab_size": vocabulary,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": len({name.split(".")[1] for name in kept if name.startswith("h.")}),
        "n_head": max(width // HEAD, 1),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }
    return piece("gpt2", settings, gpt.named({name: name for name in kept}))


def _clip_text(captions: Weights) -> Piece | None:
    """The text encoder that lies in the caption decoder's file as well, if it does."""
    end = "text_model.embeddings.token_embedding.weight"
    places = [name.removesuffix(end) for name in captions if name.startswith("clip") and name.endswith(end)]
    if not places:
        return None
    tower = captions.under(f"{places[0]}text_model.")
    tower = tower.named({name: name for name in tower if not name.endswith("position_ids")})
    vocabulary, width = tower.shapes["embeddings.token_embedding.weight"]
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": tower.shapes["embeddings.position_embedding.weight"][0],
        "num_hidden_layers": len({n.split(".")[2] for n in tower if n.startswith("encoder.layers.")}),
        "num_attention_heads": max(width // HEAD, 1),
        "intermediate_size": tower.shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    return piece("clip_text", settings, tower)


def _autoencoder(path: Path) -> Piece:
    """Stable Diffusion's autoencoder under the names of diffusers, which knows how to translate them."""
    original = read_table(path)
    original = original.named({name: name for name in original if not name.startswith("loss.")})
    shapes = original.shapes
    try:
        levels = sorted({int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down.")})
        channels = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in levels]
        settings = {
            "block_out_channels": channels,
            "layers_per_block": len({n.split(".")[4] for n in shapes if n.startswith("encoder.down.0.block.")}),
            "norm_num_groups": 32,
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "latent_channels": shapes["post_quant_conv.weight"][0],
            "scaling_factor": 0.18215,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{path} does not hold Stable Diffusion's autoencoder: {error} is missing") from error
    single_file: Any = library("diffusers.loaders.single_file_utils", "reading the original autoencoder")
    described = {"down_block_types": ["DownEncoderBlock2D"] * len(channels)}
    described |= {"up_block_types": ["UpDecoderBlock2D"] * len(channels)}
    translated = single_file.convert_ldm_vae_checkpoint(dict(original), described)
    return piece("autoencoder_kl", settings, Weights.of(translated))
