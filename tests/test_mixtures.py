"""`runs/mixtures.py`: what it teaches comes to rest at the minimum, and what it measured is what the docs say."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture
def mixtures() -> ModuleType:
    """The recipe, on a coarser grid and with fewer steps."""
    spec = importlib.util.spec_from_file_location("mixtures", ROOT / "runs/mixtures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(CELLS=90, STEPS=200, BATCH=256)
    return module


@pytest.mark.parametrize("name", ["forward-kl", "jeffreys"])
def test_the_exact_form_finds_the_minimum_from_elsewhere_and_the_detached_one_does_not(
    name: str, mixtures: ModuleType
) -> None:
    minimum, lowest = mixtures.minimise(name, mixtures.starts()[0])
    start = minimum + torch.tensor([0.3, -0.3, 0.2, -0.2])
    method = replace(mixtures.EXACT, divergence=name)
    exact = mixtures.teach(method, start)
    detached = mixtures.teach(replace(method, ratio_gradient=False), start)
    excess = [mixtures.divergence(name, theta).item() / lowest - 1 for theta in (exact, detached, start)]
    assert mixtures.off(exact, minimum) < 0.05 < mixtures.off(detached, minimum)
    assert -1e-9 < excess[0] < 0.005 < excess[1] < excess[2]


def test_the_table_of_the_docs_is_what_was_measured() -> None:
    lines = (ROOT / "docs/one-step.md").read_text(encoding="utf-8").split("## What is measured")[1].splitlines()
    shown = {line.split("`")[1]: [float(x) for x in NUMBER.findall(line)] for line in lines if line.startswith("| `")}
    measured = json.loads((ROOT / "runs/mixtures.json").read_text(encoding="utf-8"))
    from unidiffuser.divergences import DIVERGENCES

    assert [*shown] == [row["divergence"] for row in measured] == [*DIVERGENCES]
    for row in measured:
        numbers = [*row["minimum"], row["at_minimum"], row["reached_off"], 100 * row["reached_excess"]]
        numbers += [row["detached_off"], 100 * row["detached_excess"]]
        places = [0.001] * 4 + [0.0001, 0.001, 0.01, 0.001, 0.1]
        for said, true, place in zip(shown[row["divergence"]], numbers, places, strict=True):
            assert abs(said - true) <= 0.501 * place, (row["divergence"], said, true)
