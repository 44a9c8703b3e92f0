"""A run in progress as a model: the averaged weights of its newest checkpoint, with its codecs.

RUN/model.json    what the network is and how it is sampled, written when its training begins
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unidiffuser import lora
from unidiffuser.checkpoints import box, native, sharded
from unidiffuser.checkpoints import training as checkpoints
from unidiffuser.networks import build
from unidiffuser.pipeline import UniDiffuser
from unidiffuser.training import codecs
from unidiffuser.training.preset import Preset, describe
from unidiffuser.training.state import trained

MODEL = "model.json"


def write(run: Path, preset: Preset, network: Mapping[str, Any]) -> None:
    """Write what the network of a run is."""
    about = {**describe(preset), "network": network}
    aside = run / f".{MODEL}-{os.getpid()}"
    aside.write_text(json.dumps(about, indent=1), encoding="utf-8")
    os.replace(aside, run / MODEL)


def load(run: Path) -> tuple[int, UniDiffuser]:
    """The step of the newest checkpoint of a run, and the model that it is.

    Raises:
        ValueError: the folder holds no run that has got so far, or all of its checkpoints are damaged.
    """
    modalities = codecs.read(run / "codecs")
    found = checkpoints.find(run / "network")
    if modalities is None or found is None or not (run / MODEL).is_file():
        raise ValueError(f"{run} holds no checkpoint of a network yet; wait for the first one")
    about = json.loads((run / MODEL).read_text(encoding="utf-8"))
    network = build(about["network"])
    adapter = about["adapter"]
    if adapter:
        network.load_state_dict(native.read(box.find(about["start"])).awake().network.state_dict())
        lora.adapt(network, adapter["rank"], adapter["alpha"], adapter["layers"])
    weights = {f"average.{name}": p.detach() for name, p in trained(network)}
    with torch.no_grad():
        sharded.load_into(found[1], weights, part=True)
    if adapter:
        scale = adapter["alpha"] / adapter["rank"] if adapter["alpha"] else 1.0
        additions = lora.additions({n.removeprefix("average."): x for n, x in weights.items()}, scale)
        network = native.read(box.find(about["start"])).awake().network
        lora.merge(network, additions)
    settings = native.settings_from(about["settings"])
    return found[0], UniDiffuser(
        network, about["process"], about["prediction"], modalities, settings=settings, name=about["name"]
    )
