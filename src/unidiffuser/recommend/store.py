"""Interactions and models as files: JSON, text, safetensors, and nothing that can run.

    DATA/    users.txt items.txt words.txt    raw ids, one a line, in the order of their rows
             events.safetensors               the columns of train, valid and test, and their candidates
             counts.json                      what was met on the way
    MODEL/   users.txt items.txt words.txt
             config.json                      format, kind, config of the model, how it was trained
             model.safetensors                its weights, and the events it has seen
             checksums.json                   sha256 of all the others

A folder is written beside its place and renamed, so it is whole or absent. Reading trusts nothing: every fault is a
`ModelError` of one sentence. Unlike `checkpoints.native` this format has id maps; it knows no codec.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unidiffuser.checkpoints import ModelError
from unidiffuser.checkpoints.native import CHECKSUMS, CONFIG, WEIGHTS, sha256
from unidiffuser.checkpoints.suspect import AGAIN, check_content, listed, naming, one_line, read_json
from unidiffuser.recommend.events import UNKNOWN, Events, Index, Interactions, Names, Sizes
from unidiffuser.recommend.models import Model, configure, find
from unidiffuser.recommend.settings import with_settings

FORMAT = 1
LABELS = ("users", "items", "words")
EVENTS, COUNTS = "events.safetensors", "counts.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class Saved:
    """A model and all it needs to answer in raw ids."""

    model: Model
    names: Names
    training: Mapping[str, Any]
    """How it was trained, for the reader; JSON-able."""


def write_model(folder: Path, saved: Saved) -> None:
    """Write a model, in the place of what an earlier run wrote there."""
    model = saved.model
    tensors = {f"model.{name}": x for name, x in model.state_dict().items()}
    tensors |= _columns("seen", model.train_events)
    config = {"format": FORMAT, "kind": model.kind, "config": asdict(model.config), "training": dict(saved.training)}
    with whole_folder(folder) as fresh:
        _write_names(fresh, saved.names)
        (fresh / CONFIG).write_text(json.dumps(config, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, fresh / WEIGHTS)
        sums = {file.name: sha256(file) for file in sorted(fresh.iterdir())}
        (fresh / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def read_model(folder: Path, settings: Mapping[str, Any] | None = None) -> Saved:
    """The model in a folder, ready to answer.

    Args:
        settings: changes to those settings that matter only when it is asked, `Model.asked`.

    Raises:
        ModelError: anything that is missing, damaged, foreign or from a newer version.
        ValueError: a setting that cannot be changed any more, or not so.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"there is no model in {folder}; give a run folder that `unidiffuser recommend train` finished"
        )
    sums = read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else {}
    for name in (*(f"{label}.txt" for label in LABELS), CONFIG, WEIGHTS):
        if not (folder / name).is_file() or name not in sums:
            raise ModelError(f"{folder} is not a whole model: {name} is missing; {AGAIN}")
        if sha256(folder / name) != sums[name]:
            raise ModelError(f"{folder / name} is damaged: its sha256 is not the one in {CHECKSUMS}; {AGAIN}")
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT or not isinstance(config.get("config"), dict):
        raise ModelError(f"{folder / CONFIG} has format {config.get('format')!r} and must have {FORMAT}; {AGAIN}")
    names, tensors = _read_names(folder), _load(folder / WEIGHTS)
    with naming(folder / CONFIG):
        described = configure(str(config.get("kind")), config["config"])
        seen = _events(folder / WEIGHTS, "seen", tensors, names.sizes)
        model = find(config["kind"])(described, names.sizes, seen)
        model.load_state_dict({k.removeprefix("model."): x for k, x in tensors.items() if k.startswith("model.")})
    if fixed := sorted(set(settings or {}) - set(model.asked)):
        free = ", ".join(model.asked) or "nothing"
        raise ValueError(f"{', '.join(fixed)} of a trained {model.kind} cannot be changed any more; {free} can")
    model.config = with_settings(model.config, settings or {}, model.kind)
    model.requires_grad_(False).eval().ready()
    return Saved(model=model, names=names, training=config.get("training", {}))


def write_interactions(folder: Path, data: Interactions) -> None:
    """Write a data set as it was split, with its candidates."""
    parts = {name: data.part(name) for name in ("train", "valid", "test")}
    tensors = {k: x for name, events in parts.items() for k, x in _columns(name, events).items()}
    tensors |= {f"{name}.candidates": x for name, x in data.candidates.items()}
    with whole_folder(folder) as fresh:
        _write_names(fresh, data.names)
        save_file({name: x.contiguous() for name, x in tensors.items()}, fresh / EVENTS)
        (fresh / COUNTS).write_text(json.dumps(dict(data.counts), indent=1) + "\n", encoding="utf-8")


def read_interactions(folder: Path) -> Interactions:
    """The data set in a folder.

    Raises:
        ModelError: it is missing or damaged.
    """
    if not (folder / EVENTS).is_file():
        raise ModelError(f"there is no data set in {folder}; train the run again from its table")
    names, tensors = _read_names(folder), _load(folder / EVENTS)
    parts = {name: _events(folder / EVENTS, name, tensors, names.sizes) for name in ("train", "valid", "test")}
    candidates = {name: tensors[f"{name}.candidates"] for name in parts if f"{name}.candidates" in tensors}
    for name, x in candidates.items():
        fits = x.dtype == torch.int64 and x.ndim == 2 and len(x) == len(parts[name])
        if not fits or (x.numel() and not (int(x.min()) >= UNKNOWN and int(x.max()) < names.sizes.items)):
            raise ModelError(f"{folder / EVENTS}: the candidates of {name!r} do not fit the id maps beside it; {AGAIN}")
    return Interactions(names=names, candidates=candidates, counts=read_json(folder / COUNTS), **parts)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place when all went well; what a killed process left half-done is removed."""
    for left_over in (*folder.parent.glob(f".{folder.name}.new-*"), *folder.parent.glob(f".{folder.name}.old-*")):
        shutil.rmtree(left_over, ignore_errors=True)
    fresh, old = (folder.with_name(f".{folder.name}.{what}-{os.getpid()}") for what in ("new", "old"))
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_names(folder: Path, names: Names) -> None:
    for label in LABELS:
        text = "".join(f"{line}\n" for line in getattr(names, label).labels)
        (folder / f"{label}.txt").write_bytes(text.encode())


def _read_names(folder: Path) -> Names:
    found = {}
    for label in LABELS:
        path = folder / f"{label}.txt"
        try:
            found[label] = Index(path.read_bytes().decode().split("\n")[:-1])
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is not a list of ids ({one_line(error)}); {AGAIN}") from error
    if found["words"].labels[:1] != ("",):
        raise ModelError(f"{folder / 'words.txt'} must begin with an empty line, which is no word; {AGAIN}")
    return Names(**found)


def _columns(name: str, events: Events) -> dict[str, Tensor]:
    return {f"{name}.user": events.user, f"{name}.item": events.item, f"{name}.words": events.words}


def _load(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        check_content(path, file.read(64))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file ({one_line(error)}); {AGAIN}") from error
    if bad := [name for name, x in tensors.items() if not bool(x.isfinite().all())]:
        raise ModelError(f"{path} holds weights that are NaN or infinite ({listed(bad)}); {AGAIN}")
    return tensors


def _events(path: Path, name: str, tensors: Mapping[str, Tensor], sizes: Sizes) -> Events:
    """Columns from a file, held against the id maps."""
    try:
        events = Events(*(tensors[f"{name}.{column}"] for column in ("user", "item", "words")))
        user, item, words = events.user, events.item, events.words
        whole = all(x.dtype == torch.int64 for x in (user, item, words)) and words.ndim == 2
        fits = (
            whole
            and user.shape == item.shape == words.shape[:1]
            and all(
                not x.numel() or (int(x.min()) >= 0 and int(x.max()) < n)
                for x, n in ((user, sizes.users), (item, sizes.items), (words, sizes.words))
            )
        )
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} has no whole table {name!r}; {AGAIN}") from error
    if not fits:
        raise ModelError(f"{path}: the table {name!r} does not fit the id maps beside it; {AGAIN}")
    return events
