"""What one life of a pod holds: claims, sessions, the lease, and the events not read yet. Pure; the clock is injected.

The rules, stated once:

- A claim is *held* from the reply that made it until it is released, or lost. It is *sure* unless the server has said
  that the link changed, its primary has not answered for as long as a lease, or the lease has run out since it was
  confirmed: then the store is asked first.
- ``owns(uid)`` is true while the uid's claim is held and sure, and the lease runs. The lease runs until the instant at
  which the last stored heartbeat was sent, plus ``lease``; once it has run out no claim is sure any more.
- A claim lives as long as the application wants it: by ``accept``, until ``release``; by sessions, until the last one
  ends. Of several claims that ``accept`` gave for one uid, in whichever life, only the newest can release it. It keeps
  its turn if the store is asked about it again.
- An event waits until it is read. There is at most one ``Lost`` for a uid, and none once the application has let the
  claim go by itself; and at most one ``Handover``, for a claim that is held. So what waits is bounded by what the
  application holds.

Who may touch it: only the event loop changes anything. Other threads may call ``owns``: it reads a dict and two
numbers, each in one step, and an answer that is outdated a moment later is what every answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Final, Literal

from ..types import Claim, Handover, Isolated, Lost, PodEvent, Rejoined, Superseded

if TYPE_CHECKING:
    from .._lookups.cache import Epoch

__all__ = ["ClaimTable", "Held"]

UNSURE: Final = -1
"""No generation has this number."""

_turns: Final = count(1)
"""Of one process: what an earlier life has given must not pass for what a later one gave."""

Reason = Literal["moved", "removed", "superseded"]

_EventKey = str | type[PodEvent] | tuple[type[Handover], str]
"""Of events with the same key only the last one waits: a uid for its ``Lost``."""


class Held:
    """One claim. Only ``ClaimTable`` and the module that confirms claims change it.

    Attributes:
        claim: what the application was given last.
        accepted: the application holds it by ``accept``.
        sessions: how many sessions hold it.
        generation: the table's when it was last known to be this life's.
        stretch: the epoch of the lane in which it was confirmed last. Until that is over the server pushes changes of
            the link, if it does at all. None before.
        due_since: since when it waits for being confirmed, or is being confirmed; None: it does not.
        over: it was released or lost.
        asked: the pod that the application was asked to hand it over to, and until when that counts.
        to: the pod that it goes to once nobody holds it any more: the application has agreed. None: to nobody.
        grace: seconds for which the link waits there for the user.
    """

    __slots__ = (
        "accepted",
        "asked",
        "claim",
        "due_since",
        "generation",
        "grace",
        "over",
        "sessions",
        "stretch",
        "to",
    )

    def __init__(self, claim: Claim, generation: int) -> None:
        self.claim = claim
        self.accepted = False
        self.sessions = 0
        self.generation = generation
        self.stretch: Epoch | None = None
        self.due_since: float | None = None
        self.over = False
        self.asked: tuple[int, float] | None = None
        self.to: int | None = None
        self.grace = 0

    @property
    def wanted(self) -> bool:
        """The application holds it."""
        return self.accepted or self.sessions > 0


class ClaimTable:
    """See the module's docstring.

    Attributes:
        clock: the clock.
        lease: in seconds, ``inf`` without one.
        generation: counts how often the lease ran out; a claim confirmed in an earlier one is not sure.
        lease_end: the instant at which the lease ends, by the clock.
        lost: reason -> claims lost.
        on_event: called when there is something to read.
    """

    def __init__(self, clock: Callable[[], float], lease: float | None) -> None:
        self.clock = clock
        self.lease = inf if lease is None else lease
        self._held: dict[str, Held] = {}
        self._events: dict[_EventKey, PodEvent] = {}
        self._isolated = False
        self._ended = False
        self.generation = 0
        self.lease_end = -inf
        self.lost: dict[Reason, int] = {"moved": 0, "removed": 0, "superseded": 0}
        self.on_event: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        """Every claim held, the newest first."""
        return reversed(self._held.values())

    def lost_by_reason(self) -> dict[str, int]:
        """A copy of ``lost``. Any thread may call this."""
        return {str(reason): count for reason, count in self.lost.items()}

    def get(self, uid: str) -> Held | None:
        """The uid's claim, if it is held."""
        return self._held.get(uid)

    def owns(self, uid: str) -> bool:
        """True if this life may act for the uid now. Any thread may call this."""
        held = self._held.get(uid)
        return (
            held is not None
            and held.generation == self.generation
            and self.clock() < self.lease_end
        )

    def is_sure(self, held: Held) -> bool:
        """True unless the store must be asked about it first."""
        return held.generation == self.generation and self.clock() < self.lease_end

    # Claims

    def take(
        self,
        uid: str,
        pod: int,
        fence: int,
        how: Literal["placed", "kept", "inherited"],
        since: int,
        *,
        for_session: bool = False,
    ) -> Held:
        """The store has given the uid to this life; ``since``: the generation in which it was asked.

        A session that had to ask draws no turn of its own: whoever has accepted the uid still has the newest claim.
        """
        held = self._held.get(uid)
        if held is not None and held.claim.fence != fence:
            # Another fence is another claim: somebody else had the uid meanwhile, and the loss was not told yet.
            self.lose(held, "superseded" if how == "inherited" else "removed", pod)
            held = None
        turn = held.claim.turn if held is not None and for_session else next(_turns)
        claim = Claim(True, pod, fence, how, uid, turn)
        if held is None:
            held = self._held[uid] = Held(claim, since)
        else:
            held.claim = claim
            held.generation = since
            if not for_session:
                held.to = None  # the application wants the uid here
            waiting = self._events.get((Handover, uid))
            if isinstance(waiting, Handover):
                self._events[Handover, uid] = Handover(uid, claim, waiting.to)
        return held

    def refused(self, uid: str, owner: int) -> Claim:
        """What the application is told if another pod has the uid."""
        return Claim(False, owner, 0, "refused", uid, next(_turns))

    def doubt(self, held: Held) -> None:
        """Its link has changed. The claim is in doubt until it is confirmed."""
        held.generation = UNSURE
        held.stretch = None

    def confirmed(self, held: Held, since: int) -> None:
        """The claim is this life's, as of the generation in which the store was asked."""
        held.generation = since

    def drop(self, held: Held) -> None:
        """The application has released the uid."""
        held.over = True
        uid = held.claim.uid
        if self._held.get(uid) is held:
            del self._held[uid]
            self._events.pop((Handover, uid), None)
        event = self._events.get(uid)
        if isinstance(event, Lost) and event.claim.fence == held.claim.fence:
            del self._events[uid]

    def forget_loss(self, uid: str) -> None:
        """The application releases a uid whose loss it may not have read yet."""
        self._events.pop(uid, None)

    def lose(self, held: Held, reason: Reason, owner: int | None) -> None:
        """The claim is lost, and the application is told."""
        if held.over:
            return
        held.over = True
        uid = held.claim.uid
        if self._held.get(uid) is held:
            del self._held[uid]
            self._events.pop((Handover, uid), None)
        self.lost[reason] += 1
        self._add(uid, Lost(uid, held.claim, reason, owner))

    def ask(self, held: Held, target: int, seconds: float) -> None:
        """Ask the application to hand the uid over; once for each request, which counts for so many seconds."""
        now = self.clock()
        if held.over or held.to is not None or self._held.get(held.claim.uid) is not held:
            return
        if held.asked is not None and held.asked[0] == target and now < held.asked[1]:
            return
        held.asked = target, now + seconds
        self._add((Handover, held.claim.uid), Handover(held.claim.uid, held.claim, target))

    # The lease

    def renew(self, sent: float) -> bool:
        """A heartbeat sent at this instant is stored. True if the lease had run out: all claims are doubtful."""
        if self._ended:
            return False
        lapsed = self.lapsed_for()
        was_isolated = self._isolate() if lapsed > 0 else self._isolated
        if was_isolated:
            # Before the lease runs again: none of them is sure.
            self.generation += 1
        self.lease_end = max(self.lease_end, sent + self.lease)
        if was_isolated and self.clock() < self.lease_end:
            self._isolated = False
            self._add(Rejoined, Rejoined(lapsed))
        return was_isolated

    def lapsed_for(self) -> float:
        """Seconds since the lease ran out; 0.0 while it runs, and before it began."""
        return max(0.0, self.clock() - self.lease_end) if self.lease_end > -inf else 0.0

    def lease_left(self) -> float:
        """Seconds until the lease runs out; negative afterwards."""
        return self.lease_end - self.clock()

    def check_lease(self) -> float:
        """Seconds until the lease runs out; tells the application if it has."""
        left = self.lease_left()
        if left <= 0 and not self._ended:
            self._isolate()
        return left

    def _isolate(self) -> bool:
        if not self._isolated:
            self._isolated = True
            if self._events.pop(Rejoined, None) is not None and Isolated in self._events:
                return True  # not read yet: the reader sees one isolation
            self._add(Isolated, Isolated())
        return True

    def supersede(self, pod: int, by: str | None) -> None:
        """A newer life has the pod's id: everything is lost."""
        self.end()
        self._add(Superseded, Superseded(by))
        for held in list(self._held.values()):
            self.lose(held, "superseded", pod)

    def end(self) -> None:
        """This life is over: it owns nothing any more, whatever is stored late."""
        self._ended = True
        self.lease_end = -inf

    # Events

    def _add(self, key: _EventKey, event: PodEvent) -> None:
        # At the end, even if an event of its kind is waiting already.
        self._events.pop(key, None)
        self._events[key] = event
        self.on_event()

    def next_event(self) -> PodEvent | None:
        """The oldest event not read yet."""
        key = next(iter(self._events), None)
        return None if key is None else self._events.pop(key)
