"""Jobs on an engine, one alone or many at once."""

import threading
from collections.abc import Callable
from typing import Any

from unidiffuser.server.engine import Engine


def go(engine: Engine, job: dict[str, Any]) -> list[Any]:
    """The samples of a job."""
    plain, _ = engine.check(job)
    samples: list[Any] = engine.run(plain, lambda event: None, lambda: False)["samples"]
    return samples


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """All at once, each in a thread of its own."""
    found: list[Any] = [None] * len(works)

    def run(k: int) -> None:
        try:
            found[k] = works[k]()
        except Exception as error:
            found[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
