"""Look at every sample of a data set and say what will be used, what is damaged, and why."""

from collections.abc import Callable
from typing import Any

from unidiffuser.datasets.cases import RawCases
from unidiffuser.datasets.data import Data
from unidiffuser.datasets.encoded import EncodedCases, check_shard
from unidiffuser.datasets.faults import Damaged, DataLost

Progress = Callable[[int, int], None]


def check(data: Data, progress: Progress | None = None) -> dict[str, Any]:
    """Decode everything once.

    Args:
        data: open data, best opened with `tolerant`.
        progress: called with (rows done, rows in all).

    Returns:
        `Data.report` with, added, "usable" (whether the damage is within the budget), "why" (a sentence if not),
        "damaged" and "lost" (how many), and for each modality how many samples have it ("present").
    """
    done, present = 0, dict.fromkeys(data.kinds, 0)
    reasons = []
    for source in data.sources:
        cases = source.cases
        rows = len(cases) + cases.tally.bad()
        for row in range(len(cases)):
            for name in _look(cases, row):
                present[name] = present.get(name, 0) + 1
            done += 1
            if progress is not None:
                progress(done, data.samples)
        try:
            if isinstance(cases, EncodedCases):
                for shard in cases.shards.shards:
                    check_shard(cases.shards.folder, shard, content=True)
            cases.tally.check_budget(rows)
        except ValueError as error:
            reasons.append(str(error))
    report = data.report()
    for name, options in report["modalities"].items():
        options["present"] = present[name]
    counts = [source.cases.tally.counts for source in data.sources]
    for source, each in zip(report["sources"], data.sources, strict=True):
        source["usable"] -= len(each.cases.tally.seen)
    return {
        "usable": not reasons,
        **({"why": reasons[0]} if reasons else {}),
        "damaged": sum(each["damaged"].total() for each in counts),
        "lost": sum(each["lost"].total() for each in counts),
        **report,
    }


def _look(cases: Any, row: int) -> set[str]:
    """The modalities of a row that can be decoded; a damaged row is counted and has none."""
    try:
        found = cases.alternatives(row) if isinstance(cases, RawCases) else cases.case(row, 0)
        if not found:
            raise Damaged("it has no modality at all")
        return {name.partition(".")[0] for name in found}
    except DataLost:
        raise
    except Damaged as error:
        name = f"{cases.name(row)} ({row})"
        cases.tally.seen.add(name)
        cases.tally.count("damaged", str(error), cases.name(row))
        return set()
