"""How long users take from their placement to their claim. Pure.

Between the two a user is on the way: the gateway has placed them, and the pod does not count them yet. A pod's
heartbeat says how much room there is without them, so a gateway must know how many they are. Where requests queue for a
second, that is a second's arrivals: far more than the last places of a service.

So a gateway follows one user now and then. The claim record says when the pod claimed them: its fence is the server's
clock (``statefulClaim``). Who was placed earlier and has not arrived is taken for one who does not come.

All instants are seconds of one monotonic clock. Who may touch it: only the event loop.
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

from .._contract.claims import ClaimRecord

__all__ = ["Trip", "Trips"]

MOST: Final = 8
"""Users followed at once. One begins with each look, so this is enough for the longest trips."""
LONGEST: Final = 3.0
"""Seconds after which a user counts as one who does not come."""
OLD_FENCE: Final = 1.0
"""A fence so many seconds older than the placement is that of an earlier claim; less may be a difference of clocks."""


class Trip(NamedTuple):
    """A user who is followed: placed on the pod at this instant."""

    uid: str
    pod: int
    placed_at: float


class Trips:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._took = 0.0
        self._arrived = -inf
        # Trip -> for how long it is known to have lasted.
        self._under_way: dict[Trip, float] = {}
        self._looked_at = -inf
        self._wanted = True

    @property
    def seconds(self) -> float:
        """How long users take: as long as the last one who has arrived, or as one placed later has not arrived.

        0.0 as long as nothing is known, and never more than ``LONGEST``.
        """
        waited = (
            seconds for trip, seconds in self._under_way.items() if trip.placed_at > self._arrived
        )
        return max(self._took, *waited, 0.0)

    def begin(self, uid: str, pod: int, now: float) -> None:
        """The uid has been placed: follow it, if it is the first since the last look."""
        if self._wanted and len(self._under_way) < MOST:
            self._under_way[Trip(uid, pod, now)] = 0.0
            self._wanted = False

    def look(self, now: float) -> list[Trip]:
        """Those of whom it is not known whether they have arrived: to be asked for now, and ``found`` then."""
        self._looked_at, self._wanted = now, True
        for trip in [one for one in self._under_way if now - one.placed_at >= LONGEST]:
            del self._under_way[trip]
        return list(self._under_way)

    def found(
        self, trip: Trip, record: ClaimRecord | None, now: float, server_ahead: float
    ) -> None:
        """What the store says of the trip; ``record``: None if nobody has claimed the user.

        ``server_ahead``: the server's clock in seconds since 1970, less this one.
        """
        if trip not in self._under_way:
            return
        took = -inf if record is None else record.fence / 1e6 - server_ahead - trip.placed_at
        if record is None or took <= -OLD_FENCE:
            self._under_way[trip] = max(0.0, self._looked_at - trip.placed_at)
            return
        del self._under_way[trip]
        # A claim that has ended, or is another pod's, does not say when the user came to this one.
        if record.pod == trip.pod and trip.placed_at > self._arrived:
            # By this clock the user was there when the answer came, whatever clocks of servers say.
            self._took = min(max(took, 0.0), now - trip.placed_at, LONGEST)
            self._arrived = trip.placed_at
