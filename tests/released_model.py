"""Small released models with random weights: the libraries' own parts, as a diffusers folder and as original files.

Everything here is said in the libraries' words or in those of the original files, so that what the tests compare with
does not lean on our own translation.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unidiffuser import UniDiffuser
from unidiffuser.checkpoints import convert

diffusers = pytest.importorskip("diffusers", reason="the extra 'released' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'released' is not installed")

HEADS, HEAD, DEPTH, SIDE, WIDTH, CLIP, TEXT = 2, 64, 4, 16, 128, 24, 12
FORMATS = ("new", "old", "original")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Released:
    """The parts, as the libraries make them."""

    unet: Any
    vae: Any
    text_encoder: Any
    image_encoder: Any
    text_decoder: Any
    clip_tokenizer: Any
    text_tokenizer: Any


@dataclass(frozen=True)
class Formats:
    """One model in every format, and what became of each."""

    source: Released
    theirs: dict[str, Path]
    """Format -> folder."""
    ours: dict[str, Path]
    """Format -> converted folder."""

    def model(self, name: str = "new", **options: Any) -> UniDiffuser:
        """The model converted from one of the formats."""
        return UniDiffuser.from_pretrained(self.ours[name], **options)


def formats(folder: Path, labels: bool) -> Formats:
    """Write one model in every format, and convert each."""
    source = released(labels)
    theirs = {
        "new": save_diffusers(folder / "new", source),
        "old": save_diffusers(folder / "old", source, old=True),
        "original": save_original(folder / "original", source),
    }
    return Formats(source, theirs, {name: converted(place, folder / f"ours-{name}") for name, place in theirs.items()})


def converted(source: Path, place: Path) -> Path:
    """A folder of any format as one of ours; nothing is missing."""
    parts, missing = convert.read(source)
    assert missing == []
    convert.write(place, parts)
    return place


def released(labels: bool = True, seed: int = 0, text: int = TEXT) -> Released:
    """Parts with random weights; nothing stays at its initial 0 or 1."""
    torch.manual_seed(seed)
    clip_tokenizer, text_tokenizer = _clip_tokenizer(), _gpt2_tokenizer()
    unet = diffusers.UniDiffuserModel(
        text_dim=text, clip_img_dim=CLIP, num_text_tokens=77, num_attention_heads=HEADS, attention_head_dim=HEAD,
        in_channels=4, out_channels=4, num_layers=DEPTH, sample_size=SIDE, patch_size=2, activation_fn="gelu",
        norm_type="layer_norm", block_type="unidiffuser", pre_layer_norm=False, use_data_type_embedding=labels,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=32, sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    tower = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=WIDTH, vocab_size=len(clip_tokenizer), max_position_embeddings=77,
            bos_token_id=0, eos_token_id=1, pad_token_id=1, **tower,
        )
    )  # fmt: skip
    image_encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(hidden_size=WIDTH, image_size=32, patch_size=4, projection_dim=CLIP, **tower)
    )
    text_decoder = diffusers.UniDiffuserTextDecoder(
        prefix_length=77, prefix_inner_dim=WIDTH, prefix_hidden_dim=text if text < WIDTH else None,
        vocab_size=len(text_tokenizer), n_positions=200, n_embd=WIDTH, n_layer=2, n_head=2,
    )  # fmt: skip
    parts = (unet, vae, text_encoder, image_encoder, text_decoder)
    for part in parts:
        part.requires_grad_(False).eval()
        for name, p in part.named_parameters():
            if "norm" in name or "ln_" in name or p.ndim < 2:
                p.add_(0.1 * torch.randn_like(p))
    text_decoder.transformer.lm_head.weight.mul_(8.0)  # sharp enough that captions differ
    unet.transformer.pos_embed.proj.load_state_dict(unet.vae_img_in.proj.state_dict())
    return Released(*parts, clip_tokenizer, text_tokenizer)


def _clip_tokenizer() -> Any:
    words = ["<|startoftext|>", "<|endoftext|>", "!", ",", "!</w>", ",</w>"]
    vocabulary = [*words, *LETTERS, *(f"{x}</w>" for x in LETTERS), "re", "red</w>", "at</w>", "cat</w>"]
    return transformers.CLIPTokenizer(
        vocab={token: k for k, token in enumerate(vocabulary)},
        merges=[("r", "e"), ("re", "d</w>"), ("a", "t</w>"), ("c", "at</w>")],
    )


def _gpt2_tokenizer() -> Any:
    vocabulary = [*LETTERS, "Ġ", *(f"Ġ{x}" for x in LETTERS), "<|endoftext|>"]
    tokenizer = transformers.GPT2Tokenizer(
        vocab={token: k for k, token in enumerate(vocabulary)}, merges=[("Ġ", x) for x in LETTERS]
    )
    tokenizer.add_special_tokens({"eos_token": "<|EOS|>"})
    return tokenizer


def save_diffusers(folder: Path, model: Released, *, old: bool = False) -> Path:
    """As a diffusers folder: of today, or as the hub had it in 2023 (pickles, old names)."""
    for name in ("unet", "vae", "text_decoder"):
        part = getattr(model, name)
        part.save_pretrained(folder / name, safe_serialization=False)  # today's diffusers cannot save it otherwise
        if not old and name != "text_decoder":
            part.save_pretrained(folder / name)
            (folder / name / "diffusion_pytorch_model.bin").unlink()
    for name in ("text_encoder", "image_encoder", "clip_tokenizer", "text_tokenizer"):
        getattr(model, name).save_pretrained(folder / name)
    if old:
        _age(folder)
    index = {"_class_name": "UniDiffuserPipeline", "_diffusers_version": "0.17.0"}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _age(folder: Path) -> None:
    """Names of 2023: a prefix and positions in the text encoder, masks in the decoder, old attention in the VAE."""
    from safetensors.torch import load_file

    encoder = folder / "text_encoder"
    table = load_file(encoder / "model.safetensors")
    table = {f"text_model.{name.removeprefix('text_model.')}": x for name, x in table.items()}
    table["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(table, encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    path = folder / "text_decoder" / "diffusion_pytorch_model.bin"
    table = torch.load(path, weights_only=True)
    del table["transformer.lm_head.weight"]
    for k in range(2):
        table[f"transformer.transformer.h.{k}.attn.bias"] = torch.ones(1, 1, 200, 200, dtype=torch.bool).tril()
        table[f"transformer.transformer.h.{k}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(table, path)
    path = folder / "vae" / "diffusion_pytorch_model.bin"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    table = torch.load(path, weights_only=True)
    for new, was in names.items():
        table = {n.replace(f"attentions.0.{new}.", f"attentions.0.{was}."): x for n, x in table.items()}
    torch.save(table, path)


def save_original(folder: Path, model: Released) -> Path:
    """As the files of github.com/thu-ml/unidiffuser, with the encoders and tokenizers in folders beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    version = "v1" if model.unet.config.use_data_type_embedding else "v0"
    torch.save(original_network(model.unet), folder / f"uvit_{version}.pth")
    captions = {f"module.gpt.{n}": x for n, x in model.text_decoder.transformer.state_dict().items()}
    captions["module.gpt.transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    for layer in ("encode_prefix", "decode_prefix"):
        captions |= {f"module.{layer}.{n}": x for n, x in getattr(model.text_decoder, layer).state_dict().items()}
    captions["module.clip_project.weight"] = torch.zeros(2, 2)
    torch.save(captions, folder / "caption_decoder.pth")
    torch.save(original_autoencoder(model.vae), folder / "autoencoder_kl.pth")
    model.text_encoder.save_pretrained(folder / "clip-vit-large-patch14")
    model.clip_tokenizer.save_pretrained(folder / "clip-vit-large-patch14")
    model.image_encoder.save_pretrained(folder / "clip-vit-base-patch32")
    model.text_tokenizer.save_pretrained(folder / "gpt2")
    return folder


def original_network(unet: nn.Module) -> dict[str, Tensor]:
    """The network's weights under the names of uvit_v0.pth and uvit_v1.pth."""
    theirs, ours = unet.state_dict(), {}
    outside = {
        "vae_img_in.proj": "patch_embed.proj", "clip_img_in": "clip_img_embed", "text_in": "text_embed",
        "vae_img_out": "decoder_pred", "clip_img_out": "clip_img_out", "text_out": "text_out",
        "transformer.norm_out": "norm", "data_type_token_embedding": "token_embedding",
    }  # fmt: skip
    inside = {
        "attn1.to_out.0": "attn.proj", "norm1": "norm2", "norm3": "norm3", "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2", "skip.skip_linear": "skip_linear", "skip.norm": "norm1",
    }  # fmt: skip
    ours["pos_embed"] = theirs.pop("pos_embed")
    if "data_type_pos_embed_token" in theirs:
        ours["pos_embed_token"] = theirs.pop("data_type_pos_embed_token")
    for name, x in theirs.items():
        stem, _, kind = name.rpartition(".")
        if stem in outside:
            ours[f"{outside[stem]}.{kind}"] = x
        elif name.startswith("transformer.transformer_"):
            place, _, rest = stem.removeprefix("transformer.transformer_").partition(".")
            if place != "mid_block":
                number, _, rest = rest.partition(".")
                place = f"{place}.{number}"
            rest = rest.removeprefix("block.")
            if rest in inside:
                ours[f"{place}.{inside[rest]}.{kind}"] = x
            elif rest == "attn1.to_q":
                block = name.removesuffix("to_q.weight")
                ours[f"{place}.attn.qkv.weight"] = torch.cat([theirs[f"{block}to_{c}.weight"] for c in "qkv"])
    return ours


def original_autoencoder(vae: nn.Module) -> dict[str, Tensor]:
    """The autoencoder's weights under the names of latent diffusion."""
    ours = {}
    for name, x in vae.state_dict().items():
        side, _, rest = name.partition(".")
        if side in ("quant_conv", "post_quant_conv"):
            ours[name] = x
            continue
        words = rest.split(".")
        if words[0] == "down_blocks":
            kind = {"resnets": "block", "downsamplers": "downsample"}[words[2]]
            words = ["down", words[1], kind, *(words[3:] if kind == "block" else words[4:])]
        elif words[0] == "up_blocks":
            kind = {"resnets": "block", "upsamplers": "upsample"}[words[2]]
            words = ["up", str(3 - int(words[1])), kind, *(words[3:] if kind == "block" else words[4:])]
        elif words[0] == "mid_block" and words[1] == "resnets":
            words = ["mid", f"block_{int(words[2]) + 1}", *words[3:]]
        elif words[0] == "mid_block":
            part = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[words[3]]
            words = ["mid", "attn_1", part, words[-1]]
            x = x if part == "norm" or x.ndim == 1 else x[:, :, None, None]
        rest = ".".join(words).replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        ours[f"{side}.{rest}"] = x
    return ours
