"""What a lane says of its router in ``CLIENT LIST``, every ten seconds, for ``sfroute gateways``.

It renames its connection, with the answer of a heartbeat at hand. Who may touch it: only the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from .._contract.introduction import with_figures
from .._net.connection import Connection, renaming

__all__ = ["SAY_EVERY", "SelfReport"]

SAY_EVERY: Final = 10.0
"""Seconds between two reports on one connection."""


class _Ignored:
    """Where the server does not like the new name, the old one stays."""

    def on_reply(self, reply: object) -> None:
        """It decides nothing."""

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        """The next connection says it again."""


class SelfReport:
    """The reports of one lane. ``entries`` tells how many answers the cache has."""

    def __init__(
        self, introduction: str, clock: Callable[[], float], entries: Callable[[], int]
    ) -> None:
        self._introduction = introduction
        self._clock = clock
        self._entries = entries
        self.begin()

    def begin(self) -> None:
        """For a new connection, of which nothing is known."""
        self._due, self._lag = -inf, 0.0

    def heartbeat(self, connection: Connection | None, since: float) -> None:
        """A ping sent at ``since`` was answered."""
        now = self._clock()
        self._lag = max(self._lag, now - since)
        if now >= self._due and connection is not None:
            name = with_figures(self._introduction, self._entries(), self._lag)
            connection.send(renaming(name), (_Ignored(),))
            self._due, self._lag = now + SAY_EVERY, 0.0
