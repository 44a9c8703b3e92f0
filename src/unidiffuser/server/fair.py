"""The queue: who is next, fairly, and how much waits.

Start-time fair queueing over clients: a job's start tag is the later of the queue's virtual time and its client's last
finish tag, its finish tag is that plus its cost; the least start tag goes first. So a client with a thousand jobs and
one with a single job each get their turn, and a client's own jobs keep their order. It knows no jobs but by name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """One job in the queue."""

    name: str
    client: str
    cost: int
    start: float
    order: int


class FairQueue:
    """Jobs that wait."""

    def __init__(self) -> None:
        self._jobs: dict[str, Waiting] = {}
        self._finish: dict[str, float] = {}
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, name: object) -> bool:
        return name in self._jobs

    @property
    def cost(self) -> int:
        """Of all that waits."""
        return sum(job.cost for job in self._jobs.values())

    def push(self, name: str, client: str, cost: int) -> None:
        """Queue a job."""
        start = max(self._now, self._finish.get(client, 0.0))
        self._finish[client] = start + cost
        self._count += 1
        self._jobs[name] = Waiting(name, client, cost, start, self._count)

    def pop(self, fits: int | None = None) -> str | None:
        """The next job; None if nothing waits, or if the next costs more than `fits`."""
        if not self._jobs:
            return None
        job = min(self._jobs.values(), key=lambda job: (job.start, job.order))
        if fits is not None and job.cost > fits:
            return None
        del self._jobs[job.name]
        self._now = job.start
        if not self._jobs:  # nobody has a claim on the past
            self._finish.clear()
        return job.name

    def remove(self, name: str) -> bool:
        """Take a job out, wherever it is; whether it was there."""
        return self._jobs.pop(name, None) is not None

    def ahead(self, name: str) -> int:
        """How many jobs go before one."""
        mine = self._jobs[name]
        return sum((job.start, job.order) < (mine.start, mine.order) for job in self._jobs.values())
