"""Splits and negatives: made from a seed, and written down with the run.

A table that comes in parts keeps them. Another is split by user and kind of event, searches and recommendations apart:
the last of three or more is tested on, the one before it validates; the last of two is tested on; one alone stays in
training. Last means by time, and where there is no time, by a seeded draw.

An event's negatives are drawn without repetition and with equal chances from the items that its user has in no part. It
knows no file.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from unidiffuser.joint import generator
from unidiffuser.recommend.events import UNKNOWN, Events, Interactions
from unidiffuser.recommend.tables.rows import PARTS, Table


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a table becomes something to learn from and to measure on."""

    seed: int = 0
    """Of the split, where there is no time, and of the negatives."""
    negatives: int = 99
    """Items that each measured event is ranked against beside its own; 0: full ranking only."""

    def __post_init__(self) -> None:
        if self.seed < 0 or not 0 <= self.negatives <= 10_000:
            raise ValueError(f"a seed is 0 or more and the negatives 0 to 10000, not {self.seed} and {self.negatives}")


def split(table: Table, protocol: Protocol) -> Interactions:
    """The parts of a table and the candidates of their events.

    Raises:
        ValueError: no event is left to learn from.
    """
    counts = Counter(table.counts)
    part = table.part if bool((table.part > 0).any()) else _last_out(table, protocol.seed)
    parts = {name: table.events[part == PARTS.index(name)] for name in PARTS[1:]}
    if not len(parts["train"]):
        raise ValueError("no event is left for training; give a table with a training part or more events")
    counts |= {f"{name} events": len(events) for name, events in parts.items()}
    counts["users with one event"] = int((torch.bincount(table.events.user) == 1).sum())
    for name, seen in (("user", parts["train"].user), ("item", parts["train"].item)):
        held = torch.isin(getattr(parts["test"], name), seen)
        counts[f"test events whose {name} is not in training"] = int((~held).sum())
    candidates = {}
    for name in ("valid", "test"):
        if table.candidates is not None:
            candidates[name] = table.candidates[part == PARTS.index(name)]
        elif protocol.negatives:
            negatives = draw_negatives(parts[name], table.events, table.names.sizes.items, protocol, name)
            counts[f"{name} events with fewer than {protocol.negatives} negatives left"] = int(
                (negatives[:, -1:] == UNKNOWN).sum()
            )
            candidates[name] = torch.cat([parts[name].item[:, None], negatives], 1)
    kept = {what: n for what, n in counts.items() if n or what.endswith(" events")}
    return Interactions(names=table.names, candidates=candidates, counts=kept, **parts)


def _last_out(table: Table, seed: int) -> Tensor:
    """(N,) the part of each event: see the head of this file."""
    n = len(table.events)
    # A shuffle decides where time does not: among events without one, and among those of one moment.
    shuffle = torch.randperm(n, generator=generator(seed, "split"))
    time = torch.zeros(n, dtype=torch.float64) if table.time is None else table.time
    kind = table.events.user * 2 + table.events.is_search
    order = shuffle[torch.argsort(time[shuffle], stable=True)]
    order = order[torch.argsort(kind[order], stable=True)]
    sizes = torch.bincount(kind)
    size, start = sizes[kind[order]], (sizes.cumsum(0) - sizes)[kind[order]]
    from_last = start + size - 1 - torch.arange(n)
    part = torch.full((n,), PARTS.index("train"))
    part[order[(from_last == 0) & (size >= 2)]] = PARTS.index("test")
    part[order[(from_last == 1) & (size >= 3)]] = PARTS.index("valid")
    return part


def draw_negatives(part: Events, everything: Events, items: int, protocol: Protocol, name: str) -> Tensor:
    """(N, negatives) for the events of a part, padded with `UNKNOWN` where a user has too few items left."""
    wanted, dice = protocol.negatives, generator(protocol.seed, "negatives", name)
    order = torch.argsort(everything.user, stable=True)
    owned = everything.item[order].split(torch.bincount(everything.user).tolist())
    table = torch.full((len(part), wanted), UNKNOWN)
    free = torch.ones(items, dtype=torch.bool)
    for row, user in enumerate(part.user.tolist()):
        free[owned[user]] = False
        left = free.nonzero()[:, 0]
        chosen = left[torch.randperm(len(left), generator=dice)[:wanted]]
        table[row, : len(chosen)] = chosen
        free[owned[user]] = True
    return table
