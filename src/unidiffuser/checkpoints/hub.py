"""Components in the layout of the Hugging Face hub: a folder with config.json and weights, or a tokenizer's files.

Where a folder is not given it is looked for under usual names, then in the hub's local cache. Nothing is fetched unless
`snapshot` is told to. Code that a folder may hold is never imported. It knows no network of ours.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from unidiffuser.checkpoints import ModelError
from unidiffuser.checkpoints.released import Piece, Reader, piece
from unidiffuser.checkpoints.suspect import AGAIN, one_line
from unidiffuser.checkpoints.tables import find_weights, read_component_config, read_table
from unidiffuser.offload import Weights
from unidiffuser.pretrained import ARCHITECTURES, library

TWICE = ["*.pth", "*.ckpt"]
"""What a repository holds beside a folder with the same weights, and what is then not fetched."""
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
PLACES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "encoder": ("openai/clip-vit-large-patch14", ("text_encoder", "clip_text", "clip-vit-large-patch14")),
    "vision": ("openai/clip-vit-base-patch32", ("image_encoder", "clip_vision", "clip-vit-base-patch32")),
    "gpt2": ("openai-community/gpt2", ("text_tokenizer", "gpt2")),
}
"""Component -> its name on the hub, and the folders it may lie in."""


def snapshot(repository: str, *, download: bool = False) -> Path | None:
    """The local folder of a repository of the hub; None if it is not there and may not be fetched.

    Raises:
        ModelError: it may be fetched, and that failed.
        ValueError: the library that knows the hub is not installed.
    """
    hub = library("huggingface_hub", "a model of the hub")
    try:
        folder = Path(hub.snapshot_download(repository, local_files_only=not download, ignore_patterns=TWICE))
        if download and not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
            folder = Path(hub.snapshot_download(repository))
        return folder
    except Exception as error:  # the hub's library has a dozen classes for what may go wrong
        if not download:
            return None
        raise ModelError(f"{repository} could not be fetched from the hub ({one_line(error)})") from error


def locate(source: str | Path, *, download: bool = False) -> Path:
    """The folder of a model: a path, or a repository of the hub that is in the local cache or may be fetched.

    Raises:
        ModelError: it looks like a repository and is neither there nor may be fetched.
    """
    folder = Path(source)
    if folder.exists() or not REPOSITORY.fullmatch(str(source)):
        return folder
    found = snapshot(str(source), download=download)
    if found is None:
        raise ModelError(
            f"there is no model folder {source}, and no repository of that name in the local cache of the hub; "
            "allow it to be fetched (--download, download=True), or give a folder"
        )
    return found


def beside(folder: Path, component: str, given: Path | None = None) -> Path | None:
    """The folder of a component: the one given, one beside the model's files, or that in the local cache."""
    if given is not None:
        return given
    repository, names = PLACES[component]
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    return snapshot(repository)


def clip_text(folder: Path) -> Piece:
    """CLIP's text encoder, alone or from a whole CLIP."""
    table = _weights(folder)
    if any(name.startswith("text_model.") for name in table):
        table = table.under("text_model.")
    kept = table.named({n: n for n in table if n.startswith(("embeddings.", "encoder.", "final_layer_norm."))})
    return _piece("clip_text", folder, _described(folder, "text_config", "CLIPTextConfig"), kept)


def clip_text_projected(folder: Path, end: int) -> Piece:
    """The text encoder of a whole CLIP with its projection; end: the token at which it reads a sentence off."""
    table = _weights(folder)
    kept = table.named({n: n for n in table if n.startswith(("text_model.", "text_projection."))})
    described = _described(folder, "text_config", "CLIPTextConfig") | {"eos_token_id": end}
    return _piece("clip_text_projected", folder, described, kept)


def clip_vision(folder: Path) -> Piece:
    """CLIP's picture encoder with its projection, alone or from a whole CLIP."""
    table = _weights(folder)
    kept = table.named({n: n for n in table if n.startswith(("vision_model.", "visual_projection."))})
    return _piece("clip_vision", folder, _described(folder, "vision_config", "CLIPVisionConfig"), kept)


def gpt2(folder: Path) -> Piece:
    """The GPT-2 inside a caption decoder; its head, tied to the word embedding, is not needed."""
    described = read_component_config(folder, "config.json")
    return _piece("gpt2", folder, described, _weights(folder).under("transformer.transformer."))


def autoencoder(folder: Path) -> Piece:
    """Stable Diffusion's autoencoder, its attention under new or old names."""
    described = {"scaling_factor": 0.18215, "norm_num_groups": 32} | read_component_config(folder, "config.json")
    table = _weights(folder)
    return _piece("autoencoder_kl", folder, described, table.named({_OLD.sub(_renamed, name): name for name in table}))


_OLD = re.compile(r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _renamed(match: re.Match[str]) -> str:
    return _NEW[match[1]]


def _weights(folder: Path) -> Weights:
    """A component's weights without the buffers that old versions saved."""
    table = read_table(find_weights(folder))
    buffers = (".position_ids", ".attn.bias", ".attn.masked_bias")
    return table.named({name: name for name in table if not name.endswith(buffers)})


def _described(folder: Path, inside: str, owner: str) -> dict[str, Any]:
    """The settings of a part of CLIP; what the file leaves out is the library's default."""
    described = read_component_config(folder, "config.json")
    defaults: dict[str, Any] = getattr(library("transformers", "a part of CLIP"), owner)().to_dict()
    if isinstance(described.get(inside), dict):
        described = described[inside] | {n: v for n, v in described.items() if n == "projection_dim"}
    return defaults | described


def _piece(kind: str, folder: Path, described: Mapping[str, Any], weights: Weights) -> Piece:
    try:
        return piece(kind, described, weights)
    except (KeyError, TypeError, ValueError) as error:
        what = ARCHITECTURES[kind].what
        raise ModelError(f"{folder} does not describe a {what} ({one_line(error)}); {AGAIN}") from error


def clip_tokenizer(folder: Path) -> Reader:
    """CLIP's tokenizer, its padding token and the token that ends a sentence."""
    tokenizer = _tokenizer(folder, "CLIPTokenizer")
    end = tokenizer.token_to_id(_special(folder, "eos_token") or "<|endoftext|>")
    pad = tokenizer.token_to_id(_special(folder, "pad_token") or "<|endoftext|>")
    if pad is None:
        raise ModelError(f"{folder} does not know the token that sentences are padded with (pad_token); {AGAIN}")
    if end is None:
        raise ModelError(f"{folder} does not know the token that ends a sentence (eos_token); {AGAIN}")
    return Reader(saved=json.loads(tokenizer.to_str()), pad=pad, end=end)


def gpt2_tokenizer(folder: Path, end: int | None = None) -> Reader:
    """GPT-2's tokenizer and the token that ends a caption."""
    tokenizer = _tokenizer(folder, "GPT2Tokenizer")
    said = _special(folder, "eos_token")
    end = tokenizer.token_to_id(said) if end is None and said else end
    if end is None:
        raise ModelError(f"{folder} does not say which token ends a caption (eos_token); {AGAIN}")
    return Reader(saved=json.loads(tokenizer.to_str()), end=end)


def _tokenizer(folder: Path, owner: str) -> Tokenizer:
    """A tokenizer from tokenizer.json, or from vocab.json and merges.txt as the library reads them.

    What it was last told to cut and pad to is forgotten.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            made = getattr(library("transformers", "a tokenizer"), owner).from_pretrained(folder, local_files_only=True)
            tokenizer = Tokenizer.from_str(made.backend_tokenizer.to_str())
    except Exception as error:  # both libraries raise bare exceptions
        raise ModelError(f"{folder} does not hold a tokenizer ({one_line(error)}); {AGAIN}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special(folder: Path, name: str) -> str | None:
    """A special token that the tokenizer's settings name."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            token = read_component_config(folder, file).get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    return None
