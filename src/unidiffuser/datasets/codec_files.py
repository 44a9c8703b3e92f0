"""The fitted codecs of a data set or a run as two files, and the key that tells one set of codecs from another.

codecs.json           {"sha256": of the other file, "codecs": modality -> {"kind", "config"}}
codecs.safetensors    tensors "<modality>.<name>"
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unidiffuser import modalities, strict_json
from unidiffuser.datasets.shards import write_whole
from unidiffuser.modalities import Modality

CONFIG, STATE = "codecs.json", "codecs.safetensors"

Codecs = Mapping[str, Modality[Any]]


def codec_key(codecs: Codecs) -> str:
    """sha256 over the kind, the config and the weights of every codec: latents of other codecs have another key."""
    digest = hashlib.sha256()
    for name in sorted(codecs):
        codec = codecs[name]
        said = {"name": name, "kind": codec.kind, "config": codec.config()}
        digest.update(json.dumps(said, sort_keys=True, allow_nan=False).encode())
        for part, x in sorted(codec.state().items()):
            flat = x.detach().cpu().contiguous()
            digest.update(f"{part} {flat.dtype} {tuple(flat.shape)}".encode())
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def save_codecs(folder: Path, codecs: Codecs) -> None:
    """Write the codecs into a folder that is there."""
    described = {name: {"kind": codec.kind, "config": codec.config()} for name, codec in codecs.items()}
    tensors: dict[str, Tensor] = {}
    for name, codec in codecs.items():
        tensors |= {f"{name}.{part}": x.detach().cpu().contiguous().clone() for part, x in codec.state().items()}
    state = save(tensors)
    config = {"sha256": hashlib.sha256(state).hexdigest(), "codecs": described}
    write_whole(folder / STATE, state)
    write_whole(folder / CONFIG, json.dumps(config, allow_nan=False).encode())


def load_codecs(folder: Path, cure: str = "encode the data again") -> dict[str, Modality[Any]]:
    """The codecs in a folder.

    Args:
        cure: what a person should do about damage.

    Raises:
        ValueError: they are missing or damaged.
    """
    try:
        config = strict_json.parse((folder / CONFIG).read_bytes())
        state = (folder / STATE).read_bytes()
        if config["sha256"] != hashlib.sha256(state).hexdigest():
            raise ValueError("the checksum differs")
        tensors = load(state)
        return {
            name: modalities.find(each["kind"]).restore(
                each["config"],
                {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")},
            )
            for name, each in config["codecs"].items()
        }
    except OSError as error:
        raise ValueError(f"{folder} holds no fitted codecs ({CONFIG}, {STATE}); give a folder that does") from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"the codecs in {folder} are damaged ({str(error)[:200]}); {cure}") from error
