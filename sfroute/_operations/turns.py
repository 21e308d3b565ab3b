"""Turns: what is asked for one name is done one at a time, in the order in which it was asked for.

A turn that ends goes to the one who has waited longest, directly: nobody who comes later can take it first. Who is
cancelled while waiting is passed over, and hands on a turn that it was given just then.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Turns"]


class Turns:
    """See the module's docstring. ``len()`` is the number of names whose turn somebody has."""

    def __init__(self) -> None:
        # Name -> who waits, the first come first. A name is in here while somebody has its turn.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def __contains__(self, name: str) -> bool:
        """Somebody has the name's turn."""
        return name in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    async def take(self, name: str) -> None:
        """Wait for the name's turn. Whoever has it calls ``end``."""
        waiting = self._waiting.get(name)
        if waiting is None:
            self._waiting[name] = deque()
            return
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.end(name)
            raise

    def end(self, name: str) -> None:
        """The turn is over: the next one has it."""
        waiting = self._waiting[name]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[name]
