"""How many users one life of a pod takes, and how many more. Pure; the clock is injected.

A user has a *place* from the moment at which the store is asked for the claim until the claim is released or lost, and
after a release for the grace period: who comes back within that time finds it free. So the users of a pod are never
more than ``max_claims``, and nobody who has a place is refused.

Who may touch it: only the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final, Literal

__all__ = ["Room"]

LOOK_SECONDS: Final = 1.0
"""Between two looks for those whose grace is over: each goes through all."""


class Room:
    """See the module's docstring.

    Args:
        clock: seconds, monotonic.
        max_claims: how many users have a place; None for any number.

    Attributes:
        paused: nobody new is taken.
        on_change: called when the room may have changed.
    """

    def __init__(self, clock: Callable[[], float], max_claims: int | None) -> None:
        self._clock = clock
        self.max_claims = max_claims
        self.paused = False
        self.on_change: Callable[[], None] = lambda: None
        # Uid -> until when it may come back. Nobody is in both, and nobody who holds a claim is in either.
        self._away: dict[str, float] = {}
        self._asking: dict[str, float] = {}
        self._look_at = inf

    def why_not(self, uid: str, claims: int) -> Literal["full", "paused"] | None:
        """Why a uid without a claim cannot be taken, None if it can; ``claims``: how many there are or may be."""
        if self._away.get(uid, 0.0) > self._clock():
            return None
        if self.paused:
            return "paused"
        return "full" if self.left(claims) == 0 else None

    def left(self, claims: int) -> int | None:
        """How many more users it takes, None for any number; ``claims``: how many there are or may be."""
        if self.max_claims is None:
            return None
        self._forget_who_stays_away()
        return max(0, self.max_claims - claims - len(self._asking) - len(self._away))

    def ask(self, uid: str) -> None:
        """The store is being asked for a claim of the uid, which has none."""
        self._asking[uid] = self._away.pop(uid, 0.0)

    def answered(self, uid: str, *, taken: bool) -> None:
        """It has been asked; ``taken``: the claim counts as one from now on."""
        until = self._asking.pop(uid, 0.0)
        if until and not taken:
            self._stays_away(uid, until)
        self.on_change()

    def let_go(self, uid: str, grace: int) -> None:
        """The claim is released, with so many seconds of grace; with none if negative."""
        if grace > 0:
            self._stays_away(uid, self._clock() + grace)
        self.on_change()

    def _stays_away(self, uid: str, until: float) -> None:
        self._forget_who_stays_away()
        self._away[uid] = until
        self._look_at = min(self._look_at, until)

    def _forget_who_stays_away(self) -> None:
        now = self._clock()
        if now >= self._look_at:
            self._away = {uid: until for uid, until in self._away.items() if until > now}
            self._look_at = max(min(self._away.values(), default=inf), now + LOOK_SECONDS)
