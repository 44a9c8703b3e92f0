"""More like what you keep: a small model of what one person keeps, fitted to their own history and nothing else.

    off      fewer than `NEEDED` samples with words are kept, or left: it says how many more are needed
    stale    there are enough, and nothing was fitted to them yet
    fitting  a process of its own fits `recommend.taste`; one at a time, at most `TIME_LIMIT` seconds
    blind    fitted, but words do not tell what is kept from what is left: no better than chance on held-out sentences
    on       fitted, and better than chance
    failed   the fit broke off

The web process never imports torch: what comes back from the fit is one number a word, and a sentence's score is their
sum. It is kept in memory; after a restart it is fitted again when somebody asks for it.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unidiffuser.server.history import History, Item
from unidiffuser.server.limits import TurnedAwayError
from unidiffuser.server.sentences import words_of
from unidiffuser.server.store import Store

LOG = logging.getLogger(__name__)
NEEDED = 20
"""So many samples with words must be kept, and as many left. With ten of each none of four simulated people could be
told from chance (docs/recommend.md), with twenty three of the four."""
TIME_LIMIT = 60.0
GROWN = 1.2
"""So many times more left samples than it was fitted to make a fit stale, as does any change of what is kept."""
SHOWN_WORDS, SHOWN_ITEMS = 12, 12
PROGRAM = ("-P", "-m", "unidiffuser.recommend.taste")


@dataclass(eq=False)
class Person:
    """One owner's history and what was learnt from it."""

    history: History
    kept: frozenset[tuple[str, int]] = frozenset()
    """What the fit was made of."""
    left: int = 0
    fitted: dict[str, Any] | None = None
    """As `recommend.taste` writes it."""
    trouble: str = ""
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def fitting(self) -> bool:
        """Whether a fit is on its way."""
        return self.task is not None and not self.task.done()


class Tastes:
    """The people of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._people: dict[str, Person] = {}
        self._turn = asyncio.Semaphore(1)

    def person(self, owner: str) -> Person:
        """An owner; one whom nobody has asked for yet is new."""
        if owner not in self._people:
            self._people[owner] = Person(History(self._store, owner))
        return self._people[owner]

    async def state(self, owner: str) -> dict[str, Any]:
        """How it stands with somebody; `native.Taste`."""
        person = self.person(owner)
        items = await asyncio.to_thread(person.history.items)
        return _told(person, items)

    async def fit(self, owner: str) -> dict[str, Any]:
        """Begin to fit, unless that is under way or the last fit still holds; how it stands then.

        Raises:
            TurnedAwayError: 409, there is not enough to learn from.
        """
        person = self.person(owner)
        items = await asyncio.to_thread(person.history.items)
        if short := _lacking(items):
            raise TurnedAwayError(409, short, "too_few_kept")
        if not person.fitting and _state(person, items) not in ("on", "blind"):
            person.task = asyncio.create_task(self._fit(person, items))
        return _told(person, items)

    async def rank(self, owner: str, sentences: Sequence[str]) -> list[dict[str, Any]]:
        """Sentences by their score, the best first.

        Raises:
            TurnedAwayError: 409, nothing better than chance was learnt.
        """
        person = self.person(owner)
        items = await asyncio.to_thread(person.history.items)
        if _state(person, items) != "on" or person.fitted is None:
            raise TurnedAwayError(409, f"this is not on: {_reason(person, items)}", "not_on")
        known = await asyncio.to_thread(person.history.sentences)
        rows = [
            {"sentence": text, "score": _score(person.fitted, words), "had": " ".join(words) in known}
            for text in dict.fromkeys(sentences)
            for words in [words_of(text)]
        ]
        return sorted(rows, key=lambda row: -row["score"])

    async def _fit(self, person: Person, items: Sequence[Item]) -> None:
        async with self._turn:
            started = time.monotonic()
            try:
                person.fitted = await carry_out([[item.words, item.kept] for item in items])
                person.trouble = ""
            except (OSError, ValueError, TimeoutError) as error:
                person.fitted, person.trouble = None, "the fit broke off; the server's log says more"
                LOG.error("a taste could not be fitted: %s", str(error) or type(error).__name__)
            person.kept, person.left = _marks(items), len(items) - len(_marks(items))
            LOG.info("a taste was fitted to %d samples in %.1f seconds", len(items), time.monotonic() - started)


async def carry_out(rows: Sequence[Any]) -> dict[str, Any]:
    """Have a process of its own fit; whatever ends this ends it.

    Raises:
        OSError, ValueError, TimeoutError: it could not begin, it broke, it took too long.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, *PROGRAM,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        asked = json.dumps({"rows": rows, "seed": 0}).encode()
        out, err = await asyncio.wait_for(process.communicate(asked), TIME_LIMIT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        kind = err.decode(errors="replace").strip().rpartition("\n")[2].partition(":")[0]  # the rest may hold words
        raise ValueError(f"exit code {process.returncode}, {kind[:100]}")
    found: dict[str, Any] = json.loads(out)
    return found


def _told(person: Person, items: Sequence[Item]) -> dict[str, Any]:
    state, fitted = _state(person, items), person.fitted or {}
    told: dict[str, Any] = {
        "state": state,
        "reason": _reason(person, items),
        "kept": len(_marks(items)),
        "left": len(items) - len(_marks(items)),
        "needed": NEEDED,
        "auc": fitted.get("auc"),
        "chance": fitted.get("chance"),
        "words": [],
        "liked": [],
    }
    if state != "on" or person.fitted is None:
        return told
    weights = sorted(fitted["weights"].items(), key=lambda entry: -abs(entry[1]))
    told["words"] = [{"word": word, "weight": weight} for word, weight in weights[:SHOWN_WORDS]]
    left = {item.words: item for item in reversed(items) if not item.kept}  # the newest of the same words
    best = sorted(left.values(), key=lambda item: -_score(fitted, item.words))[:SHOWN_ITEMS]
    told["liked"] = [{"job": x.job, "sample": x.sample, "score": _score(fitted, x.words)} for x in best]
    return told


def _state(person: Person, items: Sequence[Item]) -> str:
    if _lacking(items):
        return "off"
    if person.fitting:
        return "fitting"
    fresh = _marks(items) == person.kept and len(items) - len(person.kept) <= GROWN * person.left
    if not fresh:
        return "stale"
    if person.fitted is None:
        return "failed"
    auc, chance = person.fitted["auc"], person.fitted["chance"]
    return "on" if auc is not None and auc > chance else "blind"


def _reason(person: Person, items: Sequence[Item]) -> str:
    state = _state(person, items)
    if state == "off":
        return _lacking(items)
    if state == "blind":
        return "words do not tell yet what you keep from what you leave: it guesses no better than chance"
    return {"stale": "it can be fitted now", "fitting": "it is being fitted", "failed": person.trouble, "on": ""}[state]


def _lacking(items: Sequence[Item]) -> str:
    """What is missing, in one sentence; empty if nothing is."""
    kept = len(_marks(items))
    if kept < NEEDED:
        return f"keep {NEEDED - kept} more samples with words: {kept} of {NEEDED} are kept"
    left = len(items) - kept
    if left < NEEDED:
        return f"make {NEEDED - left} more samples that you do not keep: {left} of {NEEDED} were left"
    return ""


def _marks(items: Sequence[Item]) -> frozenset[tuple[str, int]]:
    return frozenset((item.job, item.sample) for item in items if item.kept)


def _score(fitted: dict[str, Any], words: Sequence[str]) -> float:
    """log p(kept) / p(left), natural logarithm; every word counts once."""
    prior: float = fitted["prior"]
    return prior + sum(fitted["weights"].get(word, 0.0) for word in dict.fromkeys(words))
