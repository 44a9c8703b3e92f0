"""What goes wrong with data, said once and counted: nothing is skipped silently.

    Damaged     one sample cannot be used; it is counted, and another takes its place
    DataLost    the data as a whole cannot be used any more, for too much is damaged or the folder is gone: a run saves
                and stops

A `Tally` counts for one source, by kind and reason:

    damaged     samples that cannot be used
    lost        samples that must have been there, in a shard that is cut short
    filtered    samples that the declaration's filters leave out
    ignored     files, rows or columns that are no part of the data, and why
    without     samples that lack a modality, and still train the others
    noted       what is used, but worth a look
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

BUDGET = 0.1
"""The share of a source's samples that may be damaged, unless the user says otherwise; one sample always may."""

KINDS = ("damaged", "lost", "filtered", "ignored", "without", "noted")
FIRST = 5
MAX_REASONS = 50
OTHER = "other reasons"


class Damaged(ValueError):
    """A sample that cannot be used; the message is why, without its name."""


class DataLost(ValueError):
    """The data cannot be used any more; the message is one sentence with the cure."""


@dataclass
class Tally:
    """What was counted of one source."""

    source: str
    """How messages name the source."""
    budget: float = BUDGET
    """The share of samples that may be damaged or lost."""
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    """Kind -> reason -> how many."""
    first: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """(kind, reason) -> the names of the first few."""
    seen: set[str] = field(default_factory=set)
    """The damaged samples that were met while reading, so that each counts once."""

    def count(self, kind: str, reason: str, name: str = "", times: int = 1) -> None:
        """Count something; a name is kept if it is among the first."""
        counts = self.counts[kind]
        if reason not in counts and len(counts) >= MAX_REASONS:
            reason = OTHER
        counts[reason] += times
        names = self.first.setdefault((kind, reason), [])
        if name and len(names) < FIRST:
            names.append(printable(name))

    def met(self, error: Damaged, name: str, total: int) -> None:
        """Count a damaged sample met while reading one of `total`, and log it, once.

        Raises:
            DataLost: with this one it is more than the budget.
        """
        if name in self.seen:
            return
        self.seen.add(name)
        self.count("damaged", str(error), name)
        log.warning("%s: %s is skipped: %s", self.source, printable(name), error)
        self.check_budget(total)

    def bad(self) -> int:
        """How many samples are damaged or lost."""
        return self.counts["damaged"].total() + self.counts["lost"].total()

    def check_budget(self, total: int) -> None:
        """DataLost if of `total` samples more are damaged or lost than the budget allows."""
        if (bad := self.bad()) > max(1, math.floor(self.budget * total)):
            raise DataLost(
                f"{self.source}: {bad} of {total} samples are damaged or lost ({self.worst()}), more than the budget "
                f"of {100 * self.budget:g} %; repair them (`unidiffuser data check` lists them) or raise the budget"
            )

    def described(self) -> dict[str, Any]:
        """Kind -> reason -> {"count", "first"}, as JSON can hold it."""
        return {
            kind: {
                reason: {"count": n, "first": self.first.get((kind, reason), [])} for reason, n in counts.most_common()
            }
            for kind, counts in self.counts.items()
            if counts
        }

    def worst(self) -> str:
        """The most frequent reasons why samples are damaged or lost."""
        both = (self.counts["damaged"] + self.counts["lost"]).most_common(2)
        return "; ".join(f"{n}: {reason}" for reason, n in both)


def printable(name: str) -> str:
    """A stranger's name so that it can be shown anywhere: no control characters, no half surrogate pairs, not long."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name[:200]
    )
    return shown + ("..." if len(name) > 200 else "")


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first few of many names, quoted."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")
