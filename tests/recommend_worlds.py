"""Small worlds and tables that the tests of `recommend` share."""

from pathlib import Path

from unidiffuser.recommend.events import Interactions
from unidiffuser.recommend.splits import Protocol, split
from unidiffuser.recommend.tables import read_table
from unidiffuser.recommend.training import Plan, fit_model
from unidiffuser.recommend.truth import Truth, read_truth, write_world
from unidiffuser.recommend.world import WorldConfig

TINY = WorldConfig(users=40, items=30, events=8, topics=4, words=2, styles=3)
SMALL = WorldConfig(users=600, items=150, events=10, topics=8, breadth=0.3)
QUICK = {
    "popularity": {},
    "mf": {"dim": 16, "epochs": 30},
    "lightgcn": {"dim": 16, "epochs": 30},
    "lightgcn-query": {"dim": 16, "epochs": 30},
    "uditsr": {"dim": 16, "epochs": 30, "lr": 0.01},
    "masked": {"dim": 16, "width": 32, "epochs": 12},
    "diffusion": {"dim": 16, "width": 32, "epochs": 25},
}
"""Model -> changes of its recipe that train it in a second or two."""


def world_data(config: WorldConfig, folder: Path, negatives: int = 20) -> tuple[Interactions, Truth]:
    """A world, split, and its truth."""
    table = write_world(config, folder)
    data = split(read_table(table), Protocol(negatives=negatives))
    truth = read_truth(folder, data.names)
    assert truth is not None
    return data, truth


def quick_model(name: str, data: Interactions, where: Path, **changes: object):  # type: ignore[no-untyped-def]
    """A model that had a second or two to learn."""
    return fit_model(data, Plan.of(name, **{**QUICK[name], **changes}), where / name)
