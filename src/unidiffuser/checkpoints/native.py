"""The native format: a folder of four files, none of which can run anything.

    config.json         format version, name, network, process, prediction, modalities, settings, training (and critic)
    model.safetensors   tensors "network.<name>", "modalities.<modality>.<name>" (and "critic.<name>", of a student), in
                        float32, float16 or bfloat16
    README.md           the model card, for people; free to be edited
    checksums.json      sha256 of the first two

A folder is written beside its place and renamed, so that no half-written model is ever found. Reading trusts nothing:
sizes, names and shapes are compared before memory is taken for them, and every fault is a `ModelError` of one sentence
that names the file and the cure. It does not know how a sample is made.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unidiffuser import modalities, networks
from unidiffuser.checkpoints import ModelError, Parts, Settings
from unidiffuser.checkpoints.suspect import (
    AGAIN,
    Header,
    check_content,
    listed,
    naming,
    one_line,
    read_header,
    read_json,
)
from unidiffuser.guidance import Guidance
from unidiffuser.networks import Network
from unidiffuser.offload import Weights
from unidiffuser.process import PROCESSES
from unidiffuser.reuse import Reuse

FORMAT = 1
CONFIG, WEIGHTS, CARD, CHECKSUMS = "config.json", "model.safetensors", "README.md", "checksums.json"
NETWORKS = ("network", "critic")
"""What a model's networks are called in its config and in the names of its tensors; a critic only students have."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What a safetensors header calls them."""
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}

Stored = Literal["float32", "float16", "bfloat16"]


def write(folder: str | Path, parts: Parts, *, stored: Stored = "float32", force: bool = False) -> None:
    """Write a model to a folder, all or nothing.

    Args:
        folder: where; its parent is made if need be.
        parts: the model.
        stored: the number format of the weights in the file.
        force: replace a model that is there. Anything else that is there is never replaced.

    Raises:
        ValueError: the place is taken, or the weights are not finite.
        OSError: the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not (force and (folder / CONFIG).is_file()):
        cure = "use force (--force) to replace it" if (folder / CONFIG).is_file() else "choose another place"
        raise ValueError(f"{folder} is there already; {cure}")
    # Each is a copy: two names of one tensor would share memory, which the format refuses.
    tensors = {n: x.detach().cpu().to(DTYPES[stored], copy=True).contiguous() for n, x in _tensors(parts).items()}
    if bad := [name for name, x in tensors.items() if not bool(x.isfinite().all())]:
        raise ValueError(f"the weights {listed(bad)} are not finite as {stored}; a model must hold finite numbers")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        (fresh / CONFIG).write_text(json.dumps(_config(parts), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        # save_file leaves its file to its owner alone; a model is as readable as any other file.
        (fresh / WEIGHTS).chmod((fresh / CONFIG).stat().st_mode)
        (fresh / CARD).write_text(parts.card or f"# {parts.name}\n", encoding="utf-8")
        sums = {name: sha256(fresh / name) for name in (CONFIG, WEIGHTS)}
        (fresh / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
        for file in fresh.iterdir():
            _sync(file)
        _sync(fresh)
        _put_in_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read(folder: str | Path, *, own: bool = False) -> Parts:
    """The model in a folder, its network asleep: weights are read, and seen to be finite, when they are used.

    Args:
        folder: the folder.
        own: copy what is read, so that a file that is overwritten later changes nothing; else the file is mapped.

    Raises:
        ModelError: anything that is missing, damaged, foreign, from a newer version, or absurdly large.
    """
    folder = Path(folder)
    _check_folder(folder)
    config = _read_config(folder / CONFIG)
    sums = _check_sums(folder)
    header = read_header(folder / WEIGHTS)
    with naming(folder / CONFIG):
        found = {name: _empty_network(config[name], header) for name in NETWORKS if name in config}
    _compare(folder / WEIGHTS, found, config["modalities"], header)
    weights = _weights(folder / WEIGHTS, header, own)
    with naming(folder / CONFIG):
        codecs = {
            name: modalities.find(entry["kind"]).restore(entry["config"], weights.under(f"modalities.{name}."))
            for name, entry in config["modalities"].items()
        }
        settings = settings_from(config["settings"])
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
    return Parts(
        name=config["name"],
        network=found["network"],
        weights=weights.under("network."),
        critic=found.get("critic"),
        critic_weights=weights.under("critic.") if "critic" in found else None,
        process=config["process"],
        prediction=config["prediction"],
        modalities=codecs,
        settings=settings,
        training=config["training"],
        card=card,
        digest=digest(sums),
    )


def summary(folder: str | Path) -> dict[str, Any]:
    """What a folder says of itself without its weights being read: name, modalities, size in bytes, hash."""
    folder = Path(folder)
    _check_folder(folder)
    config = _read_config(folder / CONFIG)
    return {
        "name": config["name"],
        "folder": str(folder),
        "modalities": {name: entry["kind"] for name, entry in config["modalities"].items()},
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        "sha256": digest(_read_sums(folder)),
    }


def digest(sums: Mapping[str, str]) -> str:
    """One sha256 for a model: that of its files' hashes."""
    return hashlib.sha256("".join(f"{name} {sums[name]}\n" for name in (CONFIG, WEIGHTS)).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config(parts: Parts) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": parts.name,
        "network": parts.network.describe(),
        "process": parts.process,
        "prediction": parts.prediction,
        "modalities": {name: {"kind": m.kind, "config": m.config()} for name, m in parts.modalities.items()},
        "settings": dataclasses.asdict(parts.settings),
        "training": dict(parts.training),
        **({} if parts.critic is None else {"critic": parts.critic.describe()}),
    }


def _tensors(parts: Parts) -> dict[str, Tensor]:
    weights = parts.weights or parts.network.state_dict()
    tensors = {f"network.{name}": x for name, x in weights.items()}
    if parts.critic is not None:
        weights = parts.critic_weights or parts.critic.state_dict()
        tensors |= {f"critic.{name}": x for name, x in weights.items()}
    for modality, codec in parts.modalities.items():
        tensors |= {f"modalities.{modality}.{name}": x for name, x in codec.state().items()}
    return tensors


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename, moving an older model out of the way first; it is removed last."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_folder(folder: Path) -> None:
    """Refuse what is not a folder with a config and weights, saying what it probably is."""
    if folder.suffix.lower() in PICKLES or (folder.is_dir() and not (folder / CONFIG).exists() and _pickle_in(folder)):
        raise ModelError(
            f"{folder} is a pickle, which can run code when it is opened, so it is never read; "
            "convert it to safetensors first (unidiffuser convert does, for a released UniDiffuser) and give the "
            "folder with config.json and model.safetensors"
        )
    if folder.is_file():
        raise ModelError(f"{folder} is a file; give the folder that holds {CONFIG} and {WEIGHTS}")
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {folder}; give a folder that holds {CONFIG} and {WEIGHTS}")
    if (folder / "model_index.json").exists():
        raise ModelError(f"{folder} is a diffusers pipeline; run: unidiffuser convert {folder} NEW_FOLDER")
    for name in (CONFIG, WEIGHTS, CHECKSUMS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} is not a whole model: {name} is missing; {AGAIN}")


def _pickle_in(folder: Path) -> bool:
    return any(file.suffix.lower() in PICKLES for file in folder.iterdir())


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    version = config.get("format")
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
        raise ModelError(f"{path} has format {version}, newer than the {FORMAT} this version reads; update unidiffuser")
    if version != FORMAT or isinstance(version, bool):
        raise ModelError(f"{path} is not a unidiffuser config: format is {version!r} and must be {FORMAT}; {AGAIN}")
    wanted = {"format": int, "name": str, "network": dict, "process": str, "prediction": str}
    wanted |= {"modalities": dict, "settings": dict, "training": dict}
    wanted |= {"critic": dict} if "critic" in config else {}
    missing, unknown = sorted(wanted.keys() - config.keys()), sorted(config.keys() - wanted.keys())
    if missing or unknown:
        raise ModelError(f"{path} has the wrong keys: missing {missing}, unknown {unknown}; {AGAIN}")
    for key, kind in wanted.items():
        if not isinstance(config[key], kind):
            raise ModelError(f"{path}: {key!r} must be of type {kind.__name__}; {AGAIN}")
    if config["process"] not in PROCESSES:
        raise ModelError(f"{path}: process must be one of {', '.join(PROCESSES)}, not {config['process']!r}")
    if config["prediction"] not in ("eps", "v", "x0"):
        raise ModelError(f"{path}: prediction must be eps, v or x0, not {config['prediction']!r}")
    _check_modalities(path, config["modalities"])
    return config


def _check_modalities(path: Path, entries: dict[str, Any]) -> None:
    if not entries:
        raise ModelError(f"{path} names no modality; {AGAIN}")
    for name, entry in entries.items():
        if not modalities.NAME.fullmatch(name):
            raise ModelError(f"{path}: a modality cannot be called {name!r}; use small letters, digits and _")
        if not isinstance(entry, dict) or set(entry) != {"kind", "config"} or not isinstance(entry["config"], dict):
            raise ModelError(f"{path}: the modality {name!r} must have a kind and a config, nothing else; {AGAIN}")
        if entry["kind"] not in modalities.kinds():
            raise ModelError(
                f"{path}: there is no modality kind {entry['kind']!r}; there are {', '.join(modalities.kinds())}"
            )


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from JSON; a TypeError names an unknown one."""
    values = dict(values)
    guidance = values.pop("guidance", {})
    if "interval" in guidance:
        guidance = guidance | {"interval": tuple(guidance["interval"])}
    reuse = values.pop("reuse", None)
    return Settings(guidance=Guidance(**guidance), reuse=None if reuse is None else Reuse(**reuse), **values)


def _read_sums(folder: Path) -> dict[str, str]:
    sums = read_json(folder / CHECKSUMS)
    if set(sums) != {CONFIG, WEIGHTS} or not all(isinstance(value, str) for value in sums.values()):
        raise ModelError(f"{folder / CHECKSUMS} must hold the sha256 of {CONFIG} and {WEIGHTS}, nothing else; {AGAIN}")
    return sums


def _check_sums(folder: Path) -> dict[str, str]:
    sums = _read_sums(folder)
    with open(folder / WEIGHTS, "rb") as file:
        check_content(folder / WEIGHTS, file.read(64))
    for name, wanted in sums.items():
        if sha256(folder / name) != wanted:
            raise ModelError(f"{folder / name} is damaged: its sha256 is not the one in {CHECKSUMS}; {AGAIN}")
    return sums


def _empty_network(description: Mapping[str, Any], header: Header) -> Network:
    """The network of a description, without memory for its weights."""
    depth = description.get("depth", 0)
    if isinstance(depth, int) and depth > len(header):
        raise ModelError(
            f"the network's depth is said to be {depth}, but {WEIGHTS} holds only {len(header)} tensors; {AGAIN}"
        )
    with torch.device("meta"):
        return networks.build(description)


def _compare(path: Path, found: Mapping[str, Network], entries: Mapping[str, Any], header: Header) -> None:
    """Refuse weights that are not exactly those of the networks; what the codecs need they check themselves."""
    wanted = {f"{n}.{name}": tuple(x.shape) for n, network in found.items() for name, x in network.state_dict().items()}
    prefixes = tuple(f"modalities.{name}." for name in entries)
    missing = sorted(wanted.keys() - header.keys())
    extra = sorted(name for name in header.keys() - wanted.keys() if not name.startswith(prefixes))
    shapes = [f"{n} is {header[n]}, not {shape}" for n, shape in wanted.items() if header.get(n, shape) != shape]
    faults = [("missing", missing), ("unknown", extra), ("of another shape", shapes)]
    if report := [f"{what}: {listed(names)}" for what, names in faults if names]:
        raise ModelError(f"{path} does not hold the weights of its config, {'; '.join(report)}; {AGAIN}")


def _weights(path: Path, header: Header, own: bool) -> Weights:
    """The tensors of a file, each looked at once for numbers that are not finite.

    They are used as they lie in the file, mapped; or, if they must be our own or in other numbers, read: pages of a map
    that were looked at count as this program's memory until all of the file is let go.
    """
    try:
        mapped, apart = (safe_open(path, framework="pt", backend=backend) for backend in ("mmap", "pread"))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({one_line(error)}); {AGAIN}") from error
    finite: set[str] = set()

    def read(name: str, apart_from_file: bool = own) -> Tensor:
        x: Tensor = (apart if apart_from_file else mapped).get_tensor(name)
        if name not in finite and not bool(x.isfinite().all()):
            raise ModelError(f"{path} holds weights that are NaN or infinite ({name}); {AGAIN}")
        finite.add(name)
        return x

    def cast(name: str, dtype: torch.dtype) -> Tensor:
        as_stored = mapped.get_slice(name).get_dtype() == CODES.get(dtype)
        return read(name, own or not as_stored).to(dtype)

    return Weights(header, read, cast)
