"""The ownership of one life of a pod: claims made, kept, let go and lost, and the lease under which it acts for them.

``claims.py`` has the rules and the state, ``confirming.py`` finds out what was lost, the heartbeats renew the lease.
Here they meet the store and the application.

For one uid one thing is done at a time, in the order in which it was asked for: else a release that is repeated after a
lost answer could undo an accept that came after it.

A claim whose making was given up (a caller who went away, an answer that never came) is nobody's: it is let go in the
background, unless the uid is accepted again meanwhile. So is one whose release failed.

Who may touch it: only the event loop; any thread may call ``owns``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from math import inf, isfinite
from typing import Any, Final

from .._contract import replies
from .._contract.keys import link_key
from ..errors import ConfigError, NoRoom, OutcomeUnknown, SfrouteError, StoreError, StoreUnavailable
from ..telemetry import AgentStats
from ..telemetry.logs import log_fields
from ..telemetry.records import of_no_call
from ..types import PERSIST_FOREVER, Claim, PodEvent
from .claims import ClaimTable, Held, Reason
from .confirming import Confirmer
from .engine import Engine, Parts
from .links import LinkWriter
from .room import Room
from .turns import Turns

__all__ = ["Ownership", "suspended_time"]

LET_GO_AGAIN_SECONDS: Final = 1.0
"""Between two attempts to release a claim that nobody holds."""

suspended_time: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
"""Seconds on a clock that never jumps and, where the system has one, counts the time for which it was suspended."""


class Ownership:
    """See the module's docstring.

    Attributes:
        table: the claims, the lease and the events.
        room: how many more users it takes.
        empty: set while no claim is held, and at the end.
        ended: this life is over; ``check`` says why.
        sessions: how many sessions there are.
        on_rival: called when another life of the pod was seen to have a claim of this one.
    """

    def __init__(
        self,
        engine: Engine,
        writer: LinkWriter,
        place: tuple[str, str, int, str],
        *,
        lease: float | None,
        confirm_every: tuple[float, float],
        max_claims: int | None = None,
    ) -> None:
        self._engine = engine
        self._log = engine.config.logger_for("agent")
        self._writer = writer
        self._namespace, self._service, self._pod, self._life = place
        self._confirm_every = confirm_every
        self.table = ClaimTable(suspended_time, lease)
        self.owns = self.table.owns
        self.room = Room(suspended_time, max_claims)
        self.sessions = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self.on_rival: Callable[[], None] = lambda: None
        self._confirmer: Confirmer | None = None
        self._turns = Turns()
        self._readable = asyncio.Event()
        self._letting_go: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[bool]] = set()
        self._lease_timer: asyncio.TimerHandle | None = None
        self._confirmed = ""
        self.ended = False
        self._superseded = False
        self.table.on_event = self._readable.set

    @property
    def left(self) -> int:
        """How many uids this life holds, as far as it knows."""
        return len(self.table) + len(self._letting_go)

    def stats(self, heartbeats: tuple[int, int], drain_left: int | None) -> AgentStats:
        """What metrics tell; ``heartbeats``: those stored, and those that were not."""
        confirmer, left = self._confirmer, self.table.lease_left()
        return AgentStats(
            claims=len(self.table),
            sessions=self.sessions,
            beats=heartbeats[0],
            beats_failed=heartbeats[1],
            drain_left=drain_left,
            lease_margin=left if isfinite(left) else None,
            lost=self.table.lost_by_reason(),
            confirmed=confirmer.confirmations if confirmer is not None else 0,
            reasserted=confirmer.mended["claimed"] if confirmer is not None else 0,
        )

    def take(self, pod: int) -> None:
        """This is the pod's id; before ``start``."""
        self._pod = pod

    def start(self, parts: Parts) -> None:
        """Be ready for claims."""
        place = (self._namespace, self._service, self._pod, self._life)
        self._confirmer = Confirmer(
            parts, self.table, place, self._confirm_every, self._is_lost, self._log
        )
        # Gateways must see that this pod has nobody to claim again.
        self._confirmer.confirm_all()

    def check(self) -> None:
        """Raise ``ConfigError`` if this life is over."""
        if self._superseded:
            raise ConfigError(
                f"another process has started as pod {self._pod} since; this agent has stopped"
            )
        if self.ended:
            raise ConfigError("the agent is not running")

    def confirmed(self) -> str:
        """The histories of the store by which all claims were last confirmed, for the pod's state."""
        parts, confirmer = self._engine.parts, self._confirmer
        if parts is not None and confirmer is not None and confirmer.settled:
            self._confirmed = parts.lineage.histories()
        return self._confirmed

    def end(self) -> list[asyncio.Task[Any]]:
        """End this life. Its links stay for the next one, or for another pod.

        Returns what is still under way: releases may finish, which the store's deadline bounds.
        """
        self._end()
        for task in self._letting_go.values():
            task.cancel()
        return [*self._letting_go.values(), *self._leaving]

    def _end(self) -> None:
        self.ended = True
        self.table.end()
        if self._confirmer is not None:
            self._confirmer.close()
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        self.empty.set()
        self._readable.set()

    def abandon(self) -> None:
        """In a forked child: this life is the parent's. The child owns nothing, and leaves what it inherited alone."""
        self.ended = True
        self.table.end()

    # The lease

    def renewed(self, sent: float) -> None:
        """A heartbeat that was sent at this instant, by ``suspended_time``, is stored."""
        if self.table.renew(sent) and self._confirmer is not None:
            self._confirmer.confirm_all()
        if self._lease_timer is None:
            self._watch_lease()

    def _watch_lease(self) -> None:
        self._lease_timer = None
        left = self.table.check_lease()
        # Afterwards the next stored heartbeat begins anew.
        if 0 < left < inf and not self.ended:
            self._lease_timer = asyncio.get_running_loop().call_later(left, self._watch_lease)

    def superseded(self, by: str | None) -> None:
        """A newer life has the pod's id."""
        self._superseded = True
        self.table.supersede(self._pod, by)
        self._end()

    # Claims

    async def accept(self, uid: str) -> Claim:
        """Claim the uid for the application, which will release it. Raises what the store raises."""
        await self._turns.take(uid)
        try:
            self.check()
            held, claim = await self._claim(uid)
            if held is not None:
                held.accepted = True
            return claim
        finally:
            self._turns.end(uid)

    async def release(
        self, uid: str, claim: Claim | None, grace: int, to: int | None = None
    ) -> bool:
        """Release a uid that was accepted. With a claim, only if that is the newest. True if it was this life's.

        ``grace``: seconds, or ``PERSIST_FOREVER`` for none. ``to``: the pod that has the uid afterwards, whose link
        waits there for so long; once the last session has ended. Raises what the store raises. Cancelling this does not
        keep it from happening.
        """
        if uid in self._turns:
            return await self._finish(self._release_in_turn(uid, claim, grace, to))
        return await self._release_in_turn(uid, claim, grace, to)

    async def _release_in_turn(
        self, uid: str, claim: Claim | None, grace: int, to: int | None
    ) -> bool:
        await self._turns.take(uid)
        try:
            self.check()
            held = self.table.get(uid)
            self._let_go_no_more(uid)
            if held is None:
                self.table.forget_loss(uid)
                if claim is not None:
                    return False
                return await self._release_or_later(uid, 0, grace)
            if claim is not None and claim.turn != held.claim.turn:
                return False
            held.accepted = False
            if to is not None:
                held.to, held.grace = to, grace
            return await self._let_go(held, grace) if not held.wanted else True
        finally:
            self._turns.end(uid)

    async def enter(self, uid: str) -> tuple[Held | None, Claim]:
        """Begin a session of the uid. None and the refusal if another pod has it."""
        await self._turns.take(uid)
        try:
            self.check()
            held = self.table.get(uid)
            claim = held.claim if held is not None else None
            if held is None or claim is None or not (held.wanted and self.table.is_sure(held)):
                held, claim = await self._claim(uid, for_session=True)
            if held is not None:
                held.sessions += 1
                self.sessions += 1
            return held, claim
        finally:
            self._turns.end(uid)

    async def leave(self, held: Held, grace: int) -> None:
        """End a session. The last one releases the uid; in the background if the store cannot be reached.

        Cancelling this does not keep it from happening. Once this life is over the link stays.
        """
        held.sessions -= 1
        self.sessions -= 1
        if held.wanted or self.ended:
            return
        await self._finish(self._leave(held, grace))

    async def _finish(self, letting_go: Coroutine[Any, Any, bool]) -> bool:
        """Do it to the end, whatever becomes of the caller."""
        task = asyncio.get_running_loop().create_task(letting_go)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return await asyncio.shield(task)

    async def _leave(self, held: Held, grace: int) -> bool:
        uid = held.claim.uid
        await self._turns.take(uid)
        try:
            if held.wanted or self.ended:
                return False  # somebody has come back meanwhile
            if held.over:
                self.table.drop(held)
                return False
            return await self._let_go(held, grace)
        except SfrouteError as error:
            self._log.warning(
                "pod %d could not let a user go yet: %s",
                self._pod,
                error,
                extra=log_fields(self._namespace, self._service, self._pod, error=error),
            )
            return False
        finally:
            self._turns.end(uid)

    async def _claim(self, uid: str, *, for_session: bool = False) -> tuple[Held | None, Claim]:
        if self.table.get(uid) is not None or uid in self._letting_go:
            return await self._ask_for_claim(uid, for_session)
        why_not = self.room.why_not(uid, self.left)
        if why_not is not None:
            raise NoRoom(self._pod, why_not, self.room.max_claims)
        self.room.ask(uid)
        try:
            return await self._ask_for_claim(uid, for_session)
        finally:
            # A claim that may have been made is released in the background, and counts until then.
            has_place = self.table.get(uid) is not None or uid in self._letting_go
            self.room.answered(uid, taken=has_place)

    async def _ask_for_claim(self, uid: str, for_session: bool) -> tuple[Held | None, Claim]:
        since = self.table.generation
        link = (self._namespace, uid, self._service)
        args: list[str | int] = [self._service, self._pod, self._life, self._writer.record_ms]
        try:
            reply = await self._writer.run("accept", "statefulClaim", link, args, claims=True)
        except StoreUnavailable:
            raise
        except (SfrouteError, asyncio.CancelledError):
            # It may have happened all the same, without anybody's knowledge.
            if self.table.get(uid) is None:
                self._let_go_later(uid, PERSIST_FOREVER)
            raise
        # If this life ended meanwhile, the link stays as its others do.
        self.check()
        owner, how, fence = replies.claimed(reply, link_key(*link))
        if how == "refused":
            held = self.table.get(uid)
            if held is not None:
                self._is_lost(held, "moved", owner)
            return None, self.table.refused(uid, owner)
        self._let_go_no_more(uid)
        before = self.table.get(uid)
        held = self.table.take(uid, self._pod, fence, how, since, for_session=for_session)
        self.empty.clear()
        if self._confirmer is not None:
            if held is before:
                self._confirmer.add(held)
            else:
                self._confirmer.begin(held)
        return held, held.claim

    async def _let_go(self, held: Held, grace: int) -> bool:
        uid, fence, to = held.claim.uid, held.claim.fence, held.to
        if to is not None:
            grace = held.grace
        # At once: from now on nobody is told that it is ours.
        self.table.drop(held)
        try:
            return await self._release_or_later(uid, fence, grace, to)
        finally:
            self._note_emptiness()

    async def _release_or_later(
        self, uid: str, fence: int, grace: int, to: int | None = None
    ) -> bool:
        """Go on trying in the background if this fails, or is cancelled."""
        try:
            return await self._release(uid, fence, grace, to)
        except (SfrouteError, asyncio.CancelledError):
            self._let_go_later(uid, grace, fence, to)
            raise

    async def _release(self, uid: str, fence: int, grace: int, to: int | None = None) -> bool:
        link = (self._namespace, uid, self._service)
        args: list[str | int] = [self._service, grace, self._pod, self._life, fence]
        args += [self._writer.record_ms, *([] if to is None else [to])]
        reply = await self._writer.run("release", "statefulReleaseClaim", link, args, claims=True)
        released = replies.first(reply) == 1
        # Who comes back within the grace period has a place here, unless that is at another pod.
        self.room.let_go(uid, grace if released and to is None else PERSIST_FOREVER)
        return released

    def _let_go_later(self, uid: str, grace: int, fence: int = 0, to: int | None = None) -> None:
        before = self._letting_go.get(uid)
        # A task that is done may still be listed. It knows nothing of this claim.
        if not self.ended and (before is None or before.done()):
            task = asyncio.get_running_loop().create_task(
                self._keep_letting_go(uid, grace, fence, to), context=of_no_call()
            )
            self._letting_go[uid] = task
            task.add_done_callback(partial(self._letting_go_done, uid))

    def _letting_go_done(self, uid: str, task: asyncio.Task[None]) -> None:
        if self._letting_go.get(uid) is task:
            del self._letting_go[uid]

    def _let_go_no_more(self, uid: str) -> None:
        """The uid was claimed again, or released. Call this while holding the uid's turn: the task only waits."""
        task = self._letting_go.pop(uid, None)
        if task is not None:
            task.cancel()

    async def _keep_letting_go(self, uid: str, grace: int, fence: int, to: int | None) -> None:
        while True:
            await self._turns.take(uid)
            try:
                if self.table.get(uid) is not None:
                    return  # accepted again
                await self._release(uid, fence, grace, to)
                return
            except StoreError as error:
                if not error.retryable and not isinstance(error, OutcomeUnknown):
                    return
            except SfrouteError:  # the router was closed
                return
            finally:
                self._turns.end(uid)
            await asyncio.sleep(LET_GO_AGAIN_SECONDS)

    # Losses

    def _is_lost(self, held: Held, reason: Reason, owner: int | None) -> None:
        self.table.lose(held, reason, owner)
        self._note_emptiness()
        self.room.on_change()
        if reason == "superseded":
            self.on_rival()

    def _note_emptiness(self) -> None:
        if not len(self.table):
            self.empty.set()

    async def events(self) -> AsyncGenerator[PodEvent, None]:
        """Every event, as it comes; ends when this life is over and all are read."""
        while True:
            self._readable.clear()
            while (event := self.table.next_event()) is not None:
                yield event
            if self.ended:
                return
            await self._readable.wait()
