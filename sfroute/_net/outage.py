"""Whether the store can be reached: one warning when a part of it is lost, one when all of it is back.

A connection or a command that meets trouble names a place: a node, or a slot without a primary. The outage begins with
the first place and ends with the last, however many calls meet it.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Set

from ..telemetry import names
from .connection import Address

__all__ = ["Outage", "Place"]

Place = tuple[Hashable, str]
"""A node's address or a slot, and who could not reach it."""


class Outage:
    """Warns when the store is lost and when it is back; see the module's docstring.

    Attributes:
        places: what cannot be reached now.
    """

    def __init__(
        self,
        log: logging.Logger,
        clock: Callable[[], float],
        stale_answers: Callable[[], int],
        stale_if_error: float,
    ) -> None:
        self.places: set[Place] = set()
        self._log = log
        self._clock = clock
        self._stale_answers = stale_answers
        self._stale_if_error = stale_if_error
        self._since = 0.0
        self._stale_before = 0

    def began(self, place: Place, reason: str) -> None:
        """Note that a place cannot be reached."""
        if not self.places:
            self._since, self._stale_before = self._clock(), self._stale_answers()
            where = place[0]
            fields: dict[str, object] = {names.REASON: reason}
            if isinstance(where, Address):
                fields |= {names.SERVER_ADDRESS: where.host, names.SERVER_PORT: where.port}
            self._log.warning(
                "the store cannot be reached (%s: %s); cached links are served up to %g s past their time, "
                "everything else waits until its deadline",
                where if isinstance(where, Address) else "a slot",
                reason,
                self._stale_if_error,
                extra=fields,
            )
        self.places.add(place)

    def over(self, place: Place) -> None:
        """Note that a place can be reached again, or is no longer needed."""
        if place not in self.places:
            return
        self.places.discard(place)
        if not self.places:
            seconds = self._clock() - self._since
            stale = self._stale_answers() - self._stale_before
            self._log.warning(
                "the store is back after %.1f s; %d stale answers were given",
                seconds,
                stale,
                extra={names.DURATION: seconds, names.COUNT: stale},
            )

    def keep_only(self, primaries: Set[Address]) -> None:
        """Forget nodes that no longer serve slots: the slot map has changed."""
        for place in [one for one in self.places if isinstance(one[0], Address)]:
            if place[0] not in primaries:
                self.over(place)
