"""The API of what was kept, of searching the history, and of more like what is kept.

GET    /api/kept                                  what is kept
PUT    /api/jobs/{id}/samples/{k}/keep            keep a sample          DELETE   keep it no more
POST   /api/search                                jobs found by words, which so stand in no address and in no log
GET    /api/taste                                 how it stands          POST     fit it
POST   /api/taste/rank                            sentences, the one most like what is kept first
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from unidiffuser.server.hub import Hub
from unidiffuser.server.kept import MOST
from unidiffuser.server.limits import TurnedAwayError, missing
from unidiffuser.server.native import REFUSALS, JobId, listed, owner_of
from unidiffuser.server.schemas import JobAnswer, Strict
from unidiffuser.server.store import Row
from unidiffuser.server.strict import StrictRoute
from unidiffuser.server.taste import Tastes

Place = Annotated[str, Path(pattern=r"^(0|[1-9][0-9]{0,3})$", description="Which sample of the job, from 0.")]


class SearchBody(Strict):
    """What is looked for."""

    words: str = Field("", max_length=500, description="Words of its sentences; the last may be a beginning.")
    kept: bool = Field(False, description="Whether only jobs of which something is kept are looked through.")
    limit: int = Field(50, ge=1, le=200)


class RankBody(Strict):
    """Sentences to be ranked."""

    sentences: list[Annotated[str, Field(min_length=1, max_length=2000)]] = Field(min_length=1, max_length=256)


BODIES = (SearchBody, RankBody)


class KeptAnswer(BaseModel):
    """One sample that is kept, or is not any more."""

    job: str
    sample: int
    kept: bool


class KeptList(BaseModel):
    """All that is kept, the last marked first."""

    kept: list[KeptAnswer]


class Found(BaseModel):
    """Jobs, the best first, and how many there are beyond the limit too."""

    jobs: list[JobAnswer]
    total: int


class Weight(BaseModel):
    """What a word adds to log p(kept) / p(left)."""

    word: str
    weight: float


class Liked(BaseModel):
    """A sample that was left and is like what is kept."""

    job: str
    sample: int
    score: float


class Taste(BaseModel):
    """How it stands with "more like what you keep"."""

    state: Literal["off", "stale", "fitting", "blind", "on", "failed"]
    reason: str
    kept: int
    left: int
    needed: int
    auc: float | None
    chance: float | None
    words: list[Weight]
    liked: list[Liked]


class Ranked(BaseModel):
    """A sentence with its score, and whether the history has it."""

    sentence: str
    score: float
    had: bool


class Ranking(BaseModel):
    """Sentences, the best first."""

    ranked: list[Ranked]


def routes(hub: Hub) -> APIRouter:
    """The routes of a hub."""
    api = APIRouter(prefix="/api", route_class=StrictRoute, responses=REFUSALS)
    tastes = Tastes(hub.store)
    _add_marks(api, hub)
    _add_search(api, hub, tastes)
    _add_taste(api, tastes)
    return api


def _add_marks(api: APIRouter, hub: Hub) -> None:
    @api.get("/kept", response_model=KeptList)
    async def kept(request: Request) -> dict[str, Any]:
        """What is kept, the last marked first."""
        marks = await asyncio.to_thread(hub.store.kept.of, owner_of(request))
        return {"kept": [{"job": mark.job, "sample": mark.sample, "kept": True} for mark in marks]}

    @api.put("/jobs/{name}/samples/{sample}/keep", response_model=KeptAnswer)
    async def keep(request: Request, name: JobId, sample: Place) -> dict[str, Any]:
        """Keep a sample of a job that is done; its job then stays in the history however long that grows."""
        owner, k = owner_of(request), int(sample)
        _check(await hub.find(owner, name), k)
        if not await asyncio.to_thread(hub.store.kept.add, owner, name, k):
            raise TurnedAwayError(409, f"{MOST} samples are kept, which is the most; let one go first", "too_many_kept")
        return {"job": name, "sample": k, "kept": True}

    @api.delete("/jobs/{name}/samples/{sample}/keep", response_model=KeptAnswer)
    async def let_go(request: Request, name: JobId, sample: Place) -> dict[str, Any]:
        """Keep a sample no more; one that was not kept stays so."""
        owner, k = owner_of(request), int(sample)
        _check(await hub.find(owner, name), k)
        await asyncio.to_thread(hub.store.kept.remove, owner, name, k)
        return {"job": name, "sample": k, "kept": False}


def _add_search(api: APIRouter, hub: Hub, tastes: Tastes) -> None:
    @api.post("/search", response_model=Found)
    async def search(request: Request, body: SearchBody) -> dict[str, Any]:
        """Jobs that are done, found by the words of their sentences; without words all, the newest first."""
        owner = owner_of(request)
        only = {m.job for m in await asyncio.to_thread(hub.store.kept.of, owner)} if body.kept else None
        names = await asyncio.to_thread(tastes.person(owner).history.find, body.words, only)
        rows = {row.id: row for row in await asyncio.to_thread(hub.store.many, names[: body.limit])}
        return {"jobs": [listed(hub, rows[n]) for n in names[: body.limit] if n in rows], "total": len(names)}


def _add_taste(api: APIRouter, tastes: Tastes) -> None:
    @api.get("/taste", response_model=Taste)
    async def taste(request: Request) -> dict[str, Any]:
        """What was learnt of what you keep, or why nothing was."""
        return await tastes.state(owner_of(request))

    @api.post("/taste", status_code=202, response_model=Taste)
    async def fit(request: Request) -> dict[str, Any]:
        """Fit it to the history as it is now, in the background."""
        return await tastes.fit(owner_of(request))

    @api.post("/taste/rank", response_model=Ranking)
    async def rank(request: Request, body: RankBody) -> dict[str, Any]:
        """Sentences by how much they are like what is kept; 409 unless it is on."""
        return {"ranked": await tastes.rank(owner_of(request), body.sentences)}


def _check(row: Row, sample: int) -> None:
    """409 for a job that is not done, 404 for a sample that it does not have."""
    if row.state != "done" or row.result is None:
        raise TurnedAwayError(409, f"this job is {row.state} and has no samples to keep", "no_result")
    if sample >= len(row.result["samples"]):
        raise missing("sample")
