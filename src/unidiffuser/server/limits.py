"""How much the server takes on, and the answers when it is too much."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Costs are rows of the network: samples x steps x evaluations x branches of guidance."""

    job_cost: int = 20_000
    """A job that costs more will never fit."""
    queue_cost: int = 100_000
    """All that waits together."""
    queue_jobs: int = 256
    """Jobs that wait."""
    running: int = 32
    """Jobs that run side by side on one worker."""
    checks: int = 64
    """Requests that are looked at at the same time."""
    deadline: float = 3600.0
    """Seconds after which a job gives up, unless its client says sooner."""
    grace: float = 2.0
    """Seconds between a client's leaving and the end of the job it waited for."""
    drain: float = 20.0
    """Seconds that running jobs have to end when the server stops."""
    keep: int = 10_000
    """Finished jobs in the history."""
    body: int = 32 * 2**20
    """Bytes of a request."""
    idle: float = 10.0
    """Seconds a client may take to send the next bytes of a request."""
    total: float = 60.0
    """Seconds a client may take to send a whole request."""


class TurnedAwayError(Exception):
    """A request that is not taken on; `status` is the HTTP status, `retry` the seconds after which to ask again."""

    def __init__(self, status: int, message: str, code: str, *, retry: int | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.retry, self.param = status, message, code, retry, param


def missing(what: str = "job") -> TurnedAwayError:
    """There is no such thing, or it belongs to somebody else."""
    return TurnedAwayError(404, f"there is no such {what}", "not_found")
