"""The doctor: what is installed, whether the models in the box are whole, how long a sample takes."""

import os
import platform
import shutil
import time
from importlib import metadata
from typing import Any

import torch

from unidiffuser.checkpoints import ModelError, box
from unidiffuser.pipeline import UniDiffuser

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "tokenizers", "tqdm")


def examine(version: str) -> dict[str, Any]:
    """A report, JSON-able; "healthy" says whether all is well."""
    models = {name: _try_model(name) for name in box.names()}
    return {
        "healthy": all(model["whole"] for model in models.values()),
        "unidiffuser": version,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: metadata.version(name) for name in PACKAGES},
        "devices": _devices(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "models": models,
    }


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{k} ({torch.cuda.get_device_name(k)})" for k in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _try_model(name: str) -> dict[str, Any]:
    """Load a model, which compares its checksums, and draw one sample of all its modalities."""
    try:
        model = UniDiffuser.from_pretrained(name)
    except ModelError as error:
        return {"whole": False, "error": str(error)}
    started = time.monotonic()
    model.sample(*model.modalities, seed=0)
    return {"whole": True, "sha256": model.digest, "seconds_a_sample": round(time.monotonic() - started, 2)}
