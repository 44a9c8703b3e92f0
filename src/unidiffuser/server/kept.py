"""What people keep: marks on the samples of jobs that are done, in the store's database.

A mark belongs to the owner of its job and goes with it. A job of which something is kept stays in the history for as
long as it is, however long that grows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SCHEMA = """
create table if not exists kept (
    job text not null, sample integer not null, owner text not null, at real not null, primary key (job, sample)
);
create index if not exists kept_owner on kept (owner, at);
create trigger if not exists kept_goes after delete on jobs begin delete from kept where job = old.id; end;
"""
MOST = 2000
"""So many samples may an owner keep."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One sample that is kept."""

    job: str
    sample: int
    at: float
    """When it was marked, seconds since 1970."""


class Kept:
    """The marks of a store. Calls block."""

    def __init__(self, run: Callable[..., list[Any]]) -> None:
        """run: carries out a statement with its values, in one transaction, and returns what it found."""
        self._run = run

    def add(self, owner: str, job: str, sample: int) -> bool:
        """Keep a sample of an owner's job that is done; False if there is no such job, or too much is kept."""
        self._run(
            "insert or ignore into kept select id, ?, owner, ? from jobs where id = ? and owner = ? "
            "and state = 'done' and (select count(*) from kept where owner = ?) < ?",
            sample, time.time(), job, owner, owner, MOST,
        )  # fmt: skip
        return bool(self._run("select 1 from kept where job = ? and sample = ? and owner = ?", job, sample, owner))

    def remove(self, owner: str, job: str, sample: int) -> None:
        """Keep it no more."""
        self._run("delete from kept where job = ? and sample = ? and owner = ?", job, sample, owner)

    def of(self, owner: str) -> list[Mark]:
        """All that an owner keeps, the last marked first."""
        rows = self._run("select job, sample, at from kept where owner = ? order by at desc, job, sample", owner)
        return [Mark(job=job, sample=sample, at=at) for job, sample, at in rows]
