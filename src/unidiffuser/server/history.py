"""A person's history in memory: found again by words, and read as samples that were kept or left.

Ranking is SQLite's own BM25 over the person's jobs alone: those with every word of the question first, then those with
some, the newest first among equals. Words count by their stem, without accents, and the last one may be the beginning
of a word. Nothing of it is written anywhere: the store is asked before every answer what came and what was forgotten.

Calls block: they are made from threads.
"""

import sqlite3
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from unidiffuser.server.limits import TurnedAwayError
from unidiffuser.server.sentences import LONGEST, Said, said_in, words_of
from unidiffuser.server.store import Store

MOST_ITEMS = 1000
"""Samples of each kind, the newest, that are learnt from."""
MOST_WORDS = 32
"""Words of a question that are read."""
AT_ONCE = 200
"""Jobs that are read from the store at a time."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample that somebody saw."""

    job: str
    sample: int
    words: tuple[str, ...]
    kept: bool


class History:
    """What one owner made."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self._owner = store, owner
        self._lock = threading.Lock()
        self._said: dict[str, Said] = {}
        self._index = _index()

    def find(self, text: str, only: Collection[str] | None = None) -> list[str]:
        """The ids of the jobs that a text finds, the best first; an empty text finds all, the newest first.

        Args:
            only: jobs that may be found; None: all.

        Raises:
            TurnedAwayError: 503, this SQLite has no full-text search.
        """
        words = words_of(text)[:MOST_WORDS]
        with self._lock:
            self._follow()
            if words:
                found = self._matches(words)
            else:
                newest = sorted(self._said, key=lambda name: self._said[name].created, reverse=True)
                found = [] if text.strip() else newest
        return [name for name in found if only is None or name in only]

    def items(self) -> list[Item]:
        """Samples with words: all that is kept, and what was left in the same time, the newest first.

        Before somebody first kept something, leaving meant nothing; so older samples are not here.
        """
        marks = {(mark.job, mark.sample) for mark in self._store.kept.of(self._owner)}
        with self._lock:
            self._follow()
            said = {name: self._said[name] for name in self._said}
        since = min((said[job].created for job, _ in marks if job in said), default=float("inf"))
        times = sorted(((one.created, name) for name, one in said.items() if one.created >= since), reverse=True)
        items = [
            Item(job=name, sample=k, words=words, kept=(name, k) in marks)
            for _, name in times
            for k, words in enumerate(said[name].samples)
            if words
        ]
        return [*[x for x in items if x.kept][:MOST_ITEMS], *[x for x in items if not x.kept][:MOST_ITEMS]]

    def sentences(self) -> set[str]:
        """The words of every sentence of the history, joined by blanks."""
        with self._lock:
            self._follow()
            return {" ".join(words_of(text)) for said in self._said.values() for text in said.sentences}

    def _matches(self, words: Sequence[str]) -> list[str]:
        if self._index is None:
            raise TurnedAwayError(503, "this server's SQLite has no full-text search (FTS5)", "no_search")
        terms = [f'"{word}"' for word in words]
        terms[-1] += "*"
        found: dict[str, None] = {}
        for link in (" AND ", " OR "):
            rows = self._index.execute(
                "select id from said where said match ? order by rank, created desc", [link.join(terms)]
            )
            found |= dict.fromkeys(name for (name,) in rows)
        return list(found)

    def _follow(self) -> None:
        """Take in what was done since, and let go of what was forgotten."""
        there = set(self._store.done(self._owner))
        for name in self._said.keys() - there:
            del self._said[name]
            if self._index:
                self._index.execute("delete from said where id = ?", [name])
        fresh = sorted(there - self._said.keys())
        for start in range(0, len(fresh), AT_ONCE):
            for row in self._store.many(fresh[start : start + AT_ONCE]):
                self._said[row.id] = said = said_in(row)
                if self._index:
                    text = "\n".join(said.sentences)[:LONGEST]
                    self._index.execute("insert into said values (?, ?, ?)", [row.id, row.created, text])


def _index() -> sqlite3.Connection | None:
    """An empty index in memory; None where SQLite was built without."""
    db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    try:
        db.execute(
            "create virtual table said using fts5"
            "(id unindexed, created unindexed, text, tokenize = 'porter unicode61 remove_diacritics 2')"
        )
    except sqlite3.OperationalError:
        db.close()
        return None
    return db
