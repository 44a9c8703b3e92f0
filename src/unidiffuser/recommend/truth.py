"""A world as files, and the truth that a run made from it is measured against.

    WORLD/   NAME.inter             the events, RecBole's atomic file; time counts each user's events from 0
             world.json             the law: size, temper and seed
             truth.safetensors      habits, tastes, styles, and the demand of every event

A run keeps copies of the last two, so that it can be measured wherever the world has gone. Raw ids are the world's own
numbers.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from unidiffuser.checkpoints import ModelError
from unidiffuser.checkpoints.suspect import naming, one_line, read_json
from unidiffuser.recommend.evaluation import Scorer, demand_accuracy
from unidiffuser.recommend.events import Events, Names
from unidiffuser.recommend.oracle import Oracle
from unidiffuser.recommend.tables import recbole
from unidiffuser.recommend.tables.rows import Row
from unidiffuser.recommend.world import World, WorldConfig

LAW, TRUTH = "world.json", "truth.safetensors"
KIND = {"kind": "intents", "version": 1}
TABLES = ("habit", "taste", "style", "popularity", "topic")
AGAIN = "make the world again"


def write_world(config: WorldConfig, folder: Path) -> Path:
    """Make a world and write it to a folder.

    Returns:
        The file of its events.
    """
    world = World.make(config)
    events = list(world.draw())
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.inter"):
        old.unlink()
    table = folder / f"{folder.resolve().name}.inter"
    recbole.write(table, _rows(events))
    (folder / LAW).write_text(json.dumps({**KIND, **asdict(config)}, indent=1) + "\n", encoding="utf-8")
    tables = {name: np.ascontiguousarray(getattr(world, name)) for name in TABLES}
    tables["demand"] = np.array([(user, item, z) for user, item, z, _ in events], dtype=np.int64)
    save_file(tables, folder / TRUTH)
    return table


def _rows(events: list[tuple[int, int, int, tuple[int, ...]]]) -> Iterator[Row]:
    place = dict[int, int]()
    for user, item, _, words in events:
        place[user] = place.get(user, -1) + 1
        yield Row(str(user), str(item), tuple(map(str, words)), float(place[user]))


def keep_truth(table: Path, folder: Path) -> None:
    """Copy the truth of a world to a run's folder, if the table is one of a world."""
    source = table if table.is_dir() else table.parent
    if (source / LAW).is_file() and (source / TRUTH).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for name in (LAW, TRUTH):
            shutil.copyfile(source / name, folder / name)


class Truth:
    """The truth of a world, in the rows of a data set made from it."""

    def __init__(self, world: World, demand: Any, names: Names) -> None:
        """demand: (N, 3) the user, item and topic of every event, in the world's numbers."""
        self.oracle = Oracle(world, names)
        self.topic_of_word = torch.tensor(
            [int(word) // world.config.words if word else -1 for word in names.words.labels]
        )
        self.demand = {(str(user), str(item)): topic for user, item, topic in demand.tolist()}
        self.names = names

    def demand_accuracy(self, scorer: Scorer, events: Events) -> dict[str, Any]:
        """How often a scorer's likeliest word for the user and item of a recommendation is of its true demand."""
        quiet = events[~events.is_search]
        labels = (
            (self.names.users[u], self.names.items[i])
            for u, i in zip(quiet.user.tolist(), quiet.item.tolist(), strict=True)
        )
        return demand_accuracy(scorer, quiet, torch.tensor([self.demand[pair] for pair in labels]), self.topic_of_word)


def read_truth(folder: Path, names: Names) -> Truth | None:
    """The truth in a folder, None if there is none.

    Raises:
        ModelError: it is damaged or of another version. ValueError: it is not that of these names.
    """
    if not (folder / LAW).is_file():
        return None
    law = read_json(folder / LAW)
    if {name: law.pop(name, None) for name in KIND} != KIND:
        raise ModelError(f"{folder / LAW} is not the law of a world that this version knows; {AGAIN}")
    with naming(folder / LAW):
        config = WorldConfig(**law)
    try:
        tables = load_file(folder / TRUTH)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / TRUTH} cannot be read ({one_line(error)}); {AGAIN}") from error
    demand = tables.pop("demand", None)
    shapes = {
        "habit": (config.users, config.topics),
        "taste": (config.users, config.styles),
        "style": (config.items, config.styles),
        "popularity": (config.items,),
        "topic": (config.items,),
    }
    if demand is None or {name: x.shape for name, x in tables.items()} != shapes:
        raise ModelError(f"{folder / TRUTH} does not fit {LAW} beside it; {AGAIN}")
    return Truth(World(config=config, **tables), demand, names)
