"""What happens to a job, in order and bounded: everything can be told again, and the end is never lost.

An event has a number that only grows, so a listener that was cut off says the last one it saw and goes on from there.
The log keeps the last `KEPT` events and of pictures on the way the last `PREVIEWS`, or fewer where they are large; a
listener holds nothing but its place in the log, so one that never reads costs nothing.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

KEPT, PREVIEWS = 1200, 40
PREVIEW_LETTERS = 8 * 2**20
"""Base64 letters of all pictures on the way that are kept of a job."""
BEAT = 15.0
"""Seconds of silence after which a listener gets a sign of life."""


@dataclass(frozen=True)
class Told:
    """One event."""

    number: int
    name: str
    data: dict[str, Any]
    last: bool = False
    """Whether the job is over."""


class EventLog:
    """The events of one job."""

    def __init__(self) -> None:
        self.number = 0
        self._events: deque[Told] = deque(maxlen=KEPT)
        self._changed = asyncio.Event()
        self.closed = False

    def tell(self, name: str, data: dict[str, Any], *, last: bool = False) -> None:
        """Add an event and wake the listeners."""
        self.number += 1
        self._events.append(Told(self.number, name, data, last))
        if name == "preview":
            self._thin_out()
        self._wake()

    def close(self) -> None:
        """End all listeners; the job itself may go on elsewhere."""
        self.closed = True
        self._wake()

    def after(self, number: int) -> list[Told]:
        """The events since one, of those that are kept."""
        return [event for event in self._events if event.number > number]

    async def follow(self, number: int = 0) -> AsyncIterator[Told | None]:
        """The events after a number as they come, up to the last; None is a sign of life.

        The last is told again to whoever has seen it, and after a number that was never told all that is new is told.
        """
        ended = bool(self._events) and self._events[-1].last
        number = min(number, self.number - ended)
        while not self.closed:
            changed = self._changed
            for event in self.after(number):
                number = event.number
                yield event
                if event.last:
                    return
            try:
                await asyncio.wait_for(changed.wait(), BEAT)
            except TimeoutError:
                yield None

    def _thin_out(self) -> None:
        """Let the oldest pictures go, but never the latest."""
        shown = [event for event in self._events if event.name == "preview"]
        while len(shown) > PREVIEWS or (len(shown) > 1 and sum(map(_letters, shown)) > PREVIEW_LETTERS):
            self._events.remove(shown.pop(0))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _letters(event: Told) -> int:
    """How large the pictures of a preview are."""
    values = (value for sample in event.data.get("samples", ()) for value in sample.values())
    return sum(len(value["data"]) for value in values if isinstance(value, dict))
