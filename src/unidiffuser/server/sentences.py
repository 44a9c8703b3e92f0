"""What was said in a job: the sentences that it was given and made, and the words of each of its samples.

A value that is a string is a sentence; pictures, sounds and numbers say nothing, but for models of the scenes the truth
of a picture is a sentence too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unidiffuser.server.store import Row

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
LONGEST = 20_000
"""Characters of a job's sentences that are read."""
MOST_KNOWN = 100
"""Words of a sample, the first, that are compared."""
SEEN = ("sample", "chain")
"""Verbs whose samples somebody may want more of."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """The words of a job."""

    created: float
    sentences: tuple[str, ...]
    """Each once, in the order of their coming."""
    samples: tuple[tuple[str, ...], ...]
    """For every sample that somebody may want more of, each of its words once; empty for one without words."""


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared: without case and without marks."""
    return [word.casefold() for word in WORD.findall(text)]


def said_in(row: Row) -> Said:
    """What a finished job says."""
    given = [*_sentences(row.job.get("given", {})), *_sentences(row.job.get("second", {}))]
    made = [[*_sentences(sample.get("values", {})), *_truth(sample)] for sample in (row.result or {})["samples"]]
    every = dict.fromkeys([*given, *(text for texts in made for text in texts)])
    known = [dict.fromkeys(word for text in (*given, *texts) for word in words_of(text[:LONGEST])) for texts in made]
    return Said(
        created=row.created,
        sentences=tuple(every),
        samples=tuple(tuple(words)[:MOST_KNOWN] for words in known) if row.verb in SEEN else (),
    )


def _sentences(values: Mapping[str, Any]) -> Iterator[str]:
    return (value for value in values.values() if isinstance(value, str))


def _truth(sample: Mapping[str, Any]) -> Iterator[str]:
    picture = sample.get("truth", {}).get("picture")
    if picture:
        yield picture
