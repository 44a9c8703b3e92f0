"""The store: jobs in SQLite, the files they made in folders beside it.

A job is one row, written in one transaction; its files are written beside their place, synced and renamed *before* the
row says that it is done. So whichever process dies whenever, a job that is done has all its files, and a file without
a job is swept at the next start. Ids are made here and are the only names that reach the disk. Calls block: they are
made from threads. One process owns a store at a time.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unidiffuser.server import kept

REFUSALS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
ID = re.compile(r"[0-9a-f]{32}")
VERSION = 1
SCHEMA = """
create table if not exists jobs (
    id text primary key, owner text not null, state text not null, verb text not null, model text not null,
    job text not null, cost integer not null, created real not null, started real, finished real, deadline real,
    error text, result text, tries integer not null, last_event integer not null, key text, print text not null
);
create unique index if not exists jobs_key on jobs (owner, key) where key is not null;
create index if not exists jobs_owner on jobs (owner, created);
create index if not exists jobs_state on jobs (state);
"""
GAP = 2**20
"""More events than a job ever has: after a restart its events are numbered from beyond those that were told before."""
OVER = ("done", "failed", "cancelled", "expired", "interrupted")
"""States in which nothing will happen any more."""


@dataclass(kw_only=True)
class Row:
    """One job as it is stored."""

    id: str
    owner: str
    state: str
    verb: str
    model: str
    job: dict[str, Any]
    cost: int
    created: float
    started: float | None = None
    finished: float | None = None
    deadline: float | None = None
    error: str | None = None
    result: dict[str, Any] | None = None
    tries: int = 0
    last_event: int = 0
    key: str | None = None
    print: str = ""
    """sha256 of the body as it was sent: the same key with another body is a mistake."""

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more."""
        return self.state in OVER

    @property
    def told(self) -> dict[str, Any]:
        """As its client sees it."""
        return {name: getattr(self, name) for name in TOLD}


TOLD = ("id", "state", "verb", "model", "job", "cost", "created", "started", "finished", "error", "result")
COLUMNS = [field.name for field in fields(Row)]


def new_id() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


class DiskRefusesError(OSError):
    """What should be remembered cannot be written."""


class Store:
    """A folder of jobs."""

    def __init__(self, folder: Path) -> None:
        """Open or make it; ValueError if another server has it open, or if a newer version wrote it."""
        self.folder = folder
        self.files = folder / "results"
        self.files.mkdir(parents=True, exist_ok=True)
        self._handle = open(folder / "lock", "w")  # noqa: SIM115  (held as long as the store)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._handle.close()
            raise ValueError(f"another server uses {folder}; stop it, or give another --data-dir") from error
        self._lock = threading.Lock()
        self._db = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False, isolation_level=None)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        version = self._db.execute("pragma user_version").fetchone()[0]
        if version > VERSION:
            raise ValueError(f"{folder} was written by a newer unidiffuser; update, or give another --data-dir")
        self._db.executescript(SCHEMA + kept.SCHEMA)
        self._db.execute(f"pragma user_version = {VERSION}")
        self.kept = kept.Kept(self._run)

    def recover(self) -> list[Row]:
        """After a start: what ran is interrupted, strays are swept; the jobs that wait, oldest first."""
        now = time.time()
        self._run("update jobs set last_event = last_event + ? where state in ('queued', 'running')", GAP)
        self._run("update jobs set state = 'interrupted', finished = ?, "
                  "error = 'the server stopped while this ran; try it again' where state = 'running'", now)  # fmt: skip
        known = {row[0] for row in self._run("select id from jobs where state = 'done'")}
        for place in self.files.iterdir():
            if place.name not in known:
                shutil.rmtree(place, ignore_errors=True)
        return self._rows("where state = 'queued' order by created")

    def close(self) -> None:
        """Close it for the next."""
        with self._lock:
            self._db.close()
        self._handle.close()

    def add(self, row: Row) -> None:
        """A new job."""
        values = [_stored(getattr(row, name)) for name in COLUMNS]
        self._run(f"insert into jobs ({', '.join(COLUMNS)}) values ({', '.join('?' * len(COLUMNS))})", *values)

    def set(self, name: str, **values: Any) -> None:
        """Change some columns of a job."""
        assert set(values) <= set(COLUMNS)
        self._run(
            f"update jobs set {', '.join(f'{column} = ?' for column in values)} where id = ?",
            *map(_stored, values.values()),
            name,
        )

    def get(self, name: str) -> Row | None:
        """A job by its id."""
        return next(iter(self._rows("where id = ?", name)), None)

    def by_key(self, owner: str, key: str) -> Row | None:
        """A job by its client's idempotency key."""
        return next(iter(self._rows("where owner = ? and key = ?", owner, key)), None)

    def history(self, owner: str, before: float, limit: int) -> list[Row]:
        """A client's jobs, newest first."""
        return self._rows("where owner = ? and created < ? order by created desc limit ?", owner, before, limit)

    def done(self, owner: str) -> list[str]:
        """The ids of a client's jobs that are done."""
        return [name for (name,) in self._run("select id from jobs where owner = ? and state = 'done'", owner)]

    def many(self, names: Sequence[str]) -> list[Row]:
        """Jobs by their ids, in no order; those that are not there are left out."""
        return self._rows(f"where id in ({', '.join('?' * len(names))})", *names)

    def delete(self, name: str) -> None:
        """Forget a job and its files."""
        self._run("delete from jobs where id = ?", name)
        shutil.rmtree(self.files / name, ignore_errors=True)

    def prune(self, keep: int) -> None:
        """Forget the oldest finished jobs beyond so many, but none of which something is kept."""
        over = ", ".join(f"'{state}'" for state in OVER)
        for (name,) in self._run(
            f"select id from jobs where state in ({over}) and id not in (select job from kept) "
            "order by created desc limit -1 offset ?",
            keep,
        ):
            self.delete(name)

    def write_files(self, name: str, files: Sequence[tuple[str, bytes]]) -> None:
        """All files of a job, (file name, bytes), or none. OSError if the disk refuses."""
        assert ID.fullmatch(name)
        fresh = self.files / f".{name}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            for file_name, data in files:
                with open(fresh / file_name, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            fresh.rename(self.files / name)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def probe(self) -> None:
        """OSError if nothing can be written."""
        place = self.folder / ".probe"
        try:
            place.write_bytes(b"\0" * 2**20)
        finally:
            place.unlink(missing_ok=True)

    def path(self, name: str, file_name: str) -> Path | None:
        """A file of a job, if there is one; both names were made here."""
        if not ID.fullmatch(name) or not re.fullmatch(r"[0-9]{1,4}\.[a-z0-9_]{1,32}\.[a-z0-9]{1,8}", file_name):
            return None
        place = self.files / name / file_name
        return place if place.is_file() and not place.is_symlink() else None

    def _run(self, statement: str, *values: Any) -> list[Any]:
        """The rows of a statement. DiskRefusesError if it cannot be written down."""
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF in REFUSALS:  # the rest of the code tells their kinds apart
                    raise DiskRefusesError(None, str(error)) from error
                raise

    def _rows(self, rest: str, *values: Any) -> list[Row]:
        rows = []
        for found in self._run(f"select {', '.join(COLUMNS)} from jobs {rest}", *values):
            row = dict(zip(COLUMNS, found, strict=True))
            for column in ("job", "result"):
                row[column] = json.loads(row[column]) if row[column] else row[column]
            rows.append(Row(**row))
        return rows


def _stored(value: Any) -> Any:
    """As SQLite holds it."""
    return json.dumps(value, allow_nan=False) if isinstance(value, Mapping) else value
