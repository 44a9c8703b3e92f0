"""Tables of tensors that other projects wrote: safetensors, sharded or not, and pickles read as weights only.

A pickle can name any function to be called. torch's weights-only reader knows nothing but tensors and plain containers
and refuses everything else before it runs, and what it returns must be a flat table. Pickles are read when a model is
converted, never when one is loaded.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unidiffuser.checkpoints import ModelError
from unidiffuser.checkpoints.suspect import AGAIN, check_content, one_line, read_header, read_json
from unidiffuser.offload import Weights

NESTED = ("state_dict", "model")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("{}.safetensors", ".safetensors.index{}.json", "{}.safetensors.index.json", "{}.bin", ".bin.index{}.json")
"""What follows a stem; {} stands for a variant."""
VARIANTS = ("", ".fp32", ".bf16", ".fp16")


def read_table(path: Path) -> Weights:
    """The tensors of a .safetensors file, of a pickle, or of the shards of either that an index (.json) names.

    Raises:
        ModelError: the file is missing, damaged, something else, or holds more than tensors.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}; {AGAIN}")
    if path.suffix == ".json":
        return _shards(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    return Weights.of(_pickle(path))


def _safetensors(path: Path) -> Weights:
    with open(path, "rb") as file:
        check_content(path, file.read(64))
    header = read_header(path)
    try:
        return Weights(header, safe_open(path, framework="pt").get_tensor)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({one_line(error)}); {AGAIN}") from error


def _shards(path: Path) -> Weights:
    """The tensors of many files, by the index that says where each lies."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) and Path(p).name == p for p in places.values()):
        raise ModelError(f"{path} does not say which tensor lies in which file beside it; {AGAIN}")
    tables = {name: read_table(path.with_name(name)) for name in sorted(set(places.values()))}
    if missing := [name for name, place in places.items() if name not in tables[place]]:
        raise ModelError(f"{path} names tensors that its files do not hold, such as {missing[0]}; {AGAIN}")
    shapes = {name: tables[place].shapes[name] for name, place in places.items()}
    return Weights(shapes, lambda name: tables[places[name]][name])


def _pickle(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start.startswith(b"PK") and not start.startswith(b"\x80"):
        check_content(path, start)
        raise ModelError(f"{path} is not a file of torch; {AGAIN}")
    try:
        value = _load(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, which could run code, so it was not read; get the original file"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is damaged or was not downloaded whole ({one_line(error)}); {AGAIN}") from error
    for name in NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(name), Mapping):
            value = value[name]
    if not isinstance(value, Mapping) or not all(isinstance(x, Tensor) for x in value.values()):
        raise ModelError(f"{path} is not a flat table of tensors; give the file of the weights alone")
    return {str(name): x for name, x in value.items()}


def _load(path: Path) -> Any:
    """Weights only, mapped from the disk where the file is of today's form."""
    whole = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)


def read_component_config(folder: Path, *names: str) -> dict[str, Any]:
    """The first of these JSON files that a folder holds."""
    for name in names:
        if (folder / name).is_file():
            return read_json(folder / name)
    raise ModelError(f"{folder} has no {' or '.join(names)}; {AGAIN}")


def find_weights(folder: Path) -> Path:
    """The weights in a component's folder, a file or an index of shards: whole numbers before half, no pickle first."""
    names = [stem + ending.format(variant) for variant in VARIANTS for stem in STEMS for ending in ENDINGS]
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(f"{folder} holds no weights (such as {STEMS[0]}.safetensors); {AGAIN}")
    return folder / found
