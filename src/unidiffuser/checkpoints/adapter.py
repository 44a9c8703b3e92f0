"""Low-rank additions as one safetensors file: "LAYER.down", "LAYER.up", and in its metadata the scale and the base.

The file is read as a stranger's: its header is checked before its tensors are, and every fault is a `ModelError`.
"""

import math
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unidiffuser.checkpoints import ModelError
from unidiffuser.checkpoints.suspect import check_content, one_line, read_header
from unidiffuser.lora import Additions

FORMAT = "unidiffuser-lora-1"


def write(path: Path, what: Additions, *, base: str) -> None:
    """Write additions to a file, all or nothing. base: the sha256 of the model that they add to."""
    tensors = {
        f"{n}.{part}": x.contiguous() for n, pair in what.layers.items() for part, x in zip(_PARTS, pair, strict=True)
    }
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        save_file(tensors, aside, metadata={"format": FORMAT, "scale": repr(what.scale), "base": base})
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


_PARTS = ("down", "up")


def read(path: str | Path) -> tuple[Additions, str]:
    """The additions in a file, and the sha256 of the model they were made for.

    Raises:
        ModelError: it is missing, damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no adapter {path}; give the adapter.safetensors of a run with --lora")
    with open(path, "rb") as file:
        check_content(path, file.read(64))
    header = read_header(path)
    try:
        with safe_open(path, "pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).float() for name in header}
        scale = float(about.get("scale", "nan"))
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path} is not a whole adapter ({one_line(error)}); get it again") from error
    names = {name.rpartition(".")[0] for name in tensors}
    whole = about.get("format") == FORMAT and tensors.keys() == {f"{n}.{p}" for n in names for p in _PARTS}
    if not whole or not math.isfinite(scale) or not all(x.ndim == 2 for x in tensors.values()):
        raise ModelError(f"{path} is no adapter of this library; give the adapter.safetensors of a run with --lora")
    if bad := [name for name, x in tensors.items() if not bool(x.isfinite().all())]:
        raise ModelError(f"{path} holds {bad[0]} with NaN or infinite numbers; train the adapter again")
    layers = {name: (tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in sorted(names)}
    return Additions(layers, scale), about.get("base", "")
