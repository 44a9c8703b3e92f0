"""A world small enough for whole training runs in tests: 8 x 8 pictures, the words for them, and two numbers.

python tests/paired.py RUN [NAME=VALUE ...]      trains a few thousand weights on it, for tests that kill a process
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unidiffuser.training.derive import preset_for
from unidiffuser.training.overrides import changed
from unidiffuser.training.preset import Preset
from unidiffuser.training.sizes import Size

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128, 128, 128)}
SIDES = ("left", "right", "upper", "lower")
KINDS = {"image": {"kind": "image", "size": 8}, "text": {"kind": "text", "width": 4}, "vector": {"kind": "vector"}}
MINUTE = Size(parameters=0, dim=32, depth=2, heads=2, lr=2e-3, batch=8, steps=12)


@dataclass(frozen=True)
class Paired:
    """Sample i: a coloured half of a picture, and "red left"; every `without`-th pair lacks its text."""

    length: int = 37
    without: int = 0
    names: tuple[str, ...] = ("image", "text")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        colour, side = list(COLOURS)[index % 4], SIDES[index // 4 % 4]
        pixels = np.full((8, 8, 3), 255, np.uint8)
        half = {"left": np.s_[:, :4], "right": np.s_[:, 4:], "upper": np.s_[:4], "lower": np.s_[4:]}[side]
        pixels[half] = COLOURS[colour]
        pair = {
            "image": pixels,
            "text": f"{colour} {side}",
            "vector": np.array([index % 4, index // 4 % 4], np.float32),
        }
        if self.without and index % self.without == 0:
            del pair["text"]
        return {name: pair[name] for name in self.names if name in pair}

    def label_of(self, index: int) -> int:
        return 0


def preset(pairs: Any = None, **options: Any) -> Preset:
    """A run of a minute's fraction; options as for `preset_for`."""
    pairs = pairs or Paired()
    kinds = {name: KINDS[name] for name in pairs.names}
    return preset_for(pairs, kinds, 1, "paired", options.pop("size", MINUTE), **{"seed": 3, "save_every": 4, **options})


def main(arguments: list[str]) -> None:
    """Train as a process of its own."""
    import torch

    from unidiffuser.train import train

    torch.set_num_threads(1)
    made = preset()
    train(changed(made, [tuple(a.split("=", 1)) for a in arguments[1:]]), Path(arguments[0]))  # type: ignore[misc]


if __name__ == "__main__":
    from unidiffuser.cli.terminal import Terminal, guarded

    def run(_: Any, terminal: Terminal) -> int:
        main(sys.argv[1:])
        return 0

    import argparse

    sys.exit(guarded(run, argparse.Namespace(json=False, quiet=False, debug=False)))
