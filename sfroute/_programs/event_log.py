"""The events of a pod, numbered, for any number of readers: server-sent events, and where a reader left off.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Final

__all__ = ["EventLog"]

KEPT: Final = 10_000
"""So many events a reader may be behind. One that is further behind is told so (``missed``)."""
PING_SECONDS: Final = 15.0
"""Between comments, by which both sides notice that the other has gone."""


class EventLog:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._last = 0
        self._news = asyncio.Event()
        self._closed = False

    def add(self, name: str, fields: Mapping[str, object]) -> None:
        """Tell all readers."""
        self._last += 1
        data = json.dumps({**fields}, separators=(",", ":"))
        self._events.append(
            (self._last, f"id: {self._last}\nevent: {name}\ndata: {data}\n\n".encode())
        )
        self._wake()

    def close(self) -> None:
        """No event will follow."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def after(self, last: int) -> AsyncIterator[bytes]:
        """What follows the event with this number, as long as there may be more; 0: from the first one kept."""
        if last > self._last:  # of an earlier process
            last = 0
        yield b": these are the events of a pod\n\n"
        while True:
            news, closed = self._news, self._closed
            first = self._events[0][0] if self._events else self._last + 1
            if last + 1 < first:
                missed = first - last - 1
                yield f'event: missed\ndata: {{"events":{missed}}}\n\n'.encode()
                last = first - 1
            some = [(number, text) for number, text in self._events if number > last]
            if some:
                last = some[-1][0]
                yield b"".join(text for _, text in some)
            elif closed:
                return
            else:
                try:
                    async with asyncio.timeout(PING_SECONDS):
                        await news.wait()
                except TimeoutError:
                    yield b":\n\n"
