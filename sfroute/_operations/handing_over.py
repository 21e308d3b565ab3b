"""Moving the users of a rebalance, by a plan.

First those whom no pod has claimed: users in their grace period, those who are on their way, and all of services whose
pods claim nobody. Then the pods that have claimed users are asked to hand them over, a few at a time; who is not let go
within ``patience`` stays (or, with ``force``, is moved all the same). A pod that keeps ``ASKED_AT_ONCE``
users in a row is asked for no more; with ``force`` the others are then moved unasked.

The script ``statefulHandOver`` decides in one step whether a uid is claimed, and moves it by a compare-and-set. So
nobody is taken from a pod that has them, whatever happens meanwhile.

Memory is bounded by a page of keys, and by what pods are asked for at once.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from .._commands.command import Command
from .._contract import replies
from .._contract.claims import parse_record
from .._contract.keys import claim_key, left_key, link_key, request_key
from .._net.connection import encode
from .._pods.balance import Flows
from .._pods.service_view import ServiceView
from ..errors import CorruptReply, OutcomeUnknown, StoreError
from .damaged import Damaged
from .engine import Engine, Parts
from .links import LinkWriter
from .listing import Listing, may_be_sent

__all__ = ["HandingOver", "HowToMove"]

MOVES_AT_ONCE: Final = 64
ASKED_AT_ONCE: Final = 64
"""Of one pod: so many users it may have to save at once."""
POLL_SECONDS: Final = 0.1
LOOK_SECONDS: Final = 0.25
"""With a rate, nobody is moved by an older look at the pods."""
MAX_PASSES: Final = 10
"""Over all links, as long as pods let some users go and keep others."""
MAX_KEPT: Final = 10_000
"""Once pods have kept so many users, no others are asked for instead."""
ASK_AGAIN_SECONDS: Final = 5.0
"""The pod may have missed that it was asked."""

_LIFE: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


class HowToMove(NamedTuple):
    """How users may be moved.

    Attributes:
        rate: the most users per second; None for no limit.
        idle_only: leave those alone whom a pod has claimed.
        force: move those whom their pod does not let go.
        patience: seconds that a pod has for letting a user go.
    """

    rate: float | None
    idle_only: bool
    force: bool
    patience: float


class _User(NamedTuple):
    """Somebody to be moved."""

    uid: str
    source: int
    target: int
    mode: str


@dataclass(slots=True)
class _Asked:
    """A pod was asked for a user; instants by the engine's clock."""

    user: _User
    since: float
    asked_at: float


class HandingOver:
    """See the module's docstring.

    Attributes:
        on_count: told how many more there are of what ``RebalanceProgress`` counts.
        check_turn: raises if the users may no longer be moved.
        plan_again: a pod of the plan has stopped taking users.
    """

    def __init__(
        self,
        engine: Engine,
        parts: Parts,
        writer: LinkWriter,
        listing: Listing,
        service: tuple[str, str],
        flows: Flows,
        how: HowToMove,
    ) -> None:
        self._engine = engine
        self._clock = engine.clock
        self._parts = parts
        self._writer = writer
        self._listing = listing
        self._namespace, self._service = service
        self._flows = flows
        self._how = how
        self._interval = 1.0 / how.rate if how.rate else 0.0
        self._at_once = MOVES_AT_ONCE
        if how.rate is not None:
            # Between two looks at the pods not much time passes, however low the rate.
            self._at_once = max(1, int(min(MOVES_AT_ONCE, how.rate * LOOK_SECONDS)))
        self._next_move = 0.0
        self._looked_at = -math.inf
        self._taking: set[int] = set()  # at that look
        self._asked: dict[str, _Asked] = {}
        self._let_go: Counter[int] = Counter()  # pod -> how many it let go
        self._kept_since: Counter[int] = Counter()  # pod -> how many it has kept since
        self._deaf: set[int] = set()
        self._kept: set[str] = set()
        self._ended: dict[int, list[str]] = {}  # pod -> its lives that are over
        self._damaged = Damaged()
        self._error: StoreError | None = None
        self.on_count: Callable[..., None] = lambda **more: None
        self.check_turn: Callable[[], None] = lambda: None
        self.plan_again = False

    async def run(self) -> None:
        """Move users until the plan is done, or nobody else can be moved.

        Raises the last error of the store, after all that could be moved was.
        """
        await self._pass(asking=False)
        passes = 0 if self._how.idle_only else MAX_PASSES
        while passes and self._flows.sources:
            passes -= 1
            before = len(self._kept)
            await self._pass(asking=True)
            await self._until_answered()
            for pod in self._flows.sources - self._let_go.keys():
                self._flows.drop(source=pod)
            # Others may be asked for instead of those who were kept.
            if not before < len(self._kept) < MAX_KEPT:
                break
        if self._error is not None:
            raise self._error
        if self._damaged.first is not None:
            raise self._damaged.error(
                "rebalance: users with damaged keys were left; others were moved"
            )

    async def _pass(self, *, asking: bool) -> None:
        """Go through all links once."""
        place = (self._namespace, self._service)
        for address in sorted(self._parts.topology.primaries()):
            if not self._flows.sources:
                return
            try:
                pages = self._listing.pages(self._parts, address, *place, "rebalance")
                async for uids in pages:
                    self.on_count(scanned=len(uids))
                    users = await self._of_the_plan(uids)
                    if not asking:
                        users = await self._away(users)
                    await self._treat(users, asking=asking)
                    if not self._flows.sources:
                        return
            except StoreError as error:
                self._note(error)

    def _note(self, error: StoreError) -> None:
        """What passes by itself does not end the work: starting again finds who was left."""
        if not error.retryable and not isinstance(error, OutcomeUnknown):
            raise error
        self.check_turn()
        self._error = error

    # Who

    async def _read(self, name: str, keys: Sequence[str]) -> list[object]:
        return await self._parts.commands.run_many(
            [Command("rebalance", key, name, encode(name, key)) for key in keys],
            corrupt_in_place=True,
        )

    def _link_key(self, uid: str) -> str:
        return link_key(self._namespace, uid, self._service)

    async def _of_the_plan(self, uids: Sequence[str]) -> list[tuple[str, int]]:
        """Those among the uids who are at a pod that has too many, and the pod."""
        await self._look_at_pods()
        sources = {str(pod).encode(): pod for pod in self._flows.sources}
        sendable = [uid for uid in uids if may_be_sent(self._namespace, uid, self._service)]
        values = await self._read("GET", [self._link_key(uid) for uid in sendable])
        return [
            (uid, sources[value])
            for uid, value in zip(sendable, values, strict=True)
            if isinstance(value, bytes) and value in sources
        ]

    async def _away(self, users: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Without those who seem to be claimed. Only the script can tell; this spares it most of them."""
        uids = [uid for uid, _ in users]
        ttls = await self._read("PTTL", [self._link_key(uid) for uid in uids])
        records = await self._read(
            "GET", [claim_key(self._namespace, uid, self._service) for uid in uids]
        )
        found = []
        for (uid, pod), ttl, record in zip(users, ttls, records, strict=True):
            text = record.decode("utf-8", "replace") if isinstance(record, bytes) else ""
            claim = parse_record(text)
            goes_on = claim is not None and claim.life not in self._ended.get(pod, [])
            if ttl == -1 and claim is not None and claim.pod == pod and goes_on:
                self.on_count(claimed=int(self._how.idle_only))
            else:
                found.append((uid, pod))
        return found

    # By what is known of the pods

    async def _look_at_pods(self) -> None:
        """Leave out of the plan who cannot give or take users any more."""
        self.check_turn()
        views, place = self._parts.views, (self._namespace, self._service)
        view = await views.get(*place)
        self._looked_at = self._clock()
        self._taking = {pod.id for pod in view.takers((), self._looked_at, emptied=False)}
        for pod in self._flows.targets - self._taking:
            self._flows.drop(target=pod)
            self.plan_again = True
        for pod in self._flows.sources:
            if pod not in view.pods or pod in view.gone or pod in view.emptied:
                self._flows.drop(source=pod)
        self._ended = {pod: _lives_before(view, pod) for pod in self._flows.sources}

    # Moving, and asking

    async def _treat(self, users: list[tuple[str, int]], *, asking: bool) -> None:
        waiting = [user for user in users if user[0] not in self._kept]
        while waiting:
            await self._look_at_pods()
            chosen, waiting = self._choose(waiting, asking=asking)
            if chosen:
                try:
                    async with asyncio.TaskGroup() as moves:
                        for user in chosen:
                            moves.create_task(self._move(user))
                except ExceptionGroup as errors:
                    raise errors.exceptions[0] from None
            elif asking and waiting:
                await asyncio.sleep(POLL_SECONDS)
            else:
                return
            if self._asked:
                await self._see_who_has_gone()

    async def _until_answered(self) -> None:
        """Wait for those whose pods are asked."""
        while self._asked:
            try:
                await self._look_at_pods()
                await self._see_who_has_gone()
            except StoreError as error:
                self._note(error)
            if self._asked:
                await asyncio.sleep(POLL_SECONDS)

    def _choose(
        self, users: Sequence[tuple[str, int]], *, asking: bool
    ) -> tuple[list[_User], list[tuple[str, int]]]:
        """Those whose turn it is, and those who wait for it.

        Once a pod is asked for as many as are to be moved, nobody waits: if it keeps some, the next pass finds others.
        """
        chosen: list[_User] = []
        rest: list[tuple[str, int]] = []
        asked_of: dict[int, int] = {}
        for asked in self._asked.values():
            asked_of[asked.user.source] = asked_of.get(asked.user.source, 0) + 1
        for uid, pod in users:
            mode = "away" if not asking else "force" if pod in self._deaf else "ask"
            if len(chosen) == self._at_once or (
                mode == "ask" and asked_of.get(pod, 0) >= ASKED_AT_ONCE
            ):
                rest.append((uid, pod))
                continue
            if uid in self._asked:
                continue  # a scan may show a key twice
            target = self._flows.take(pod)
            if target is None:
                # One that was taken may be given back.
                if not asking:
                    rest.append((uid, pod))
                continue
            chosen.append(_User(uid, pod, target, mode))
            asked_of[pod] = asked_of.get(pod, 0) + (mode == "ask")
        return chosen, rest

    async def _move(self, user: _User) -> None:
        try:
            await self._keep_to_rate()
            if user.target not in self._taking:
                self._flows.give_back(user.source, user.target)
                self.plan_again = True
                return
            outcome = await self._hand_over(user)
        except StoreError as error:
            self._flows.give_back(user.source, user.target)
            self.on_count(failed=1)
            if isinstance(error, CorruptReply):
                self._damaged.note(error)
            else:
                self._note(error)
            return
        if outcome == b"asked":
            now = self._clock()
            self._asked[user.uid] = _Asked(user, now, now)
            self.on_count(asked=1)
        elif outcome == b"moved":
            self._placed(user)
            self.on_count(forced=1) if user.mode == "force" else self.on_count(moved=1)
        elif outcome == b"elsewhere":
            # The pod has one less, which is what was wanted of it.
            self.on_count(elsewhere=1)
        else:
            self._flows.give_back(user.source, user.target)

    async def _ask_again(self, uid: str, one: _Asked) -> None:
        one.asked_at = self._clock()
        try:
            await self._hand_over(one.user)
        except CorruptReply as error:
            self._damaged.note(error)
            del self._asked[uid]
            self._flows.give_back(one.user.source, one.user.target)
            self.on_count(asked=-1, failed=1)

    async def _hand_over(self, user: _User) -> object:
        """What ``statefulHandOver`` replies."""
        link = (self._namespace, user.uid, self._service)
        ask_ms = max(1, int(self._how.patience * 1000))
        args: list[str | int] = [self._service, user.source, user.target, user.mode, ask_ms]
        settle_ms = int(self._engine.config.placement.settle * 1000)
        args += [self._writer.record_ms, settle_ms, *self._ended.get(user.source, [])]
        reply = await self._writer.run(
            "rebalance",
            "statefulHandOver",
            link,
            args,
            claims=True,
            more_keys=(left_key(*link), request_key(*link)),
        )
        return replies.first(reply)

    def _placed(self, user: _User) -> None:
        """The pods' loads do not show it yet."""
        self._engine.placements["moved"] += 1
        placements = self._parts.views.placements(self._namespace, self._service)
        placements.add(user.target, self._clock())

    async def _keep_to_rate(self) -> None:
        """Wait for the user's turn, and look at the pods again if that took long."""
        if self._interval:
            now = self._clock()
            self._next_move = max(self._next_move + self._interval, now)
            await asyncio.sleep(self._next_move - now)
            if self._clock() - self._looked_at >= LOOK_SECONDS:
                await self._look_at_pods()
            self.check_turn()

    # What comes of asking

    async def _see_who_has_gone(self) -> None:
        asked = list(self._asked.items())
        values = await self._read("GET", [self._link_key(uid) for uid, _ in asked])
        now = self._clock()
        for (uid, one), value in zip(asked, values, strict=True):
            user = one.user
            if value == str(user.source).encode():
                if now - one.since >= self._how.patience:
                    await self._is_kept(uid, one)
                elif now - one.asked_at >= ASK_AGAIN_SECONDS:
                    await self._ask_again(uid, one)
                continue
            del self._asked[uid]
            self._let_go[user.source] += 1
            self._kept_since[user.source] = 0
            there = value == str(user.target).encode()
            self.on_count(asked=-1, handed_over=int(there), elsewhere=int(not there))
            if there:
                self._placed(user)

    async def _is_kept(self, uid: str, one: _Asked) -> None:
        """The pod has not let the user go in time."""
        del self._asked[uid]
        self.on_count(asked=-1)
        user = one.user
        self._kept_since[user.source] += 1
        if self._kept_since[user.source] >= ASKED_AT_ONCE:
            self._deaf.add(user.source)
        if self._how.force:
            await self._move(user._replace(mode="force"))
            return
        self.on_count(kept=1)
        self._kept.add(uid)
        self._flows.give_back(user.source, user.target)
        if user.source in self._deaf:
            self._flows.drop(source=user.source)


def _lives_before(view: ServiceView, pod: int) -> list[str]:
    """The pod's lives that are over, as its state names them: nobody acts under their claims."""
    before = view.pods[pod].extra.get("before")
    lives = before.split() if isinstance(before, str) else []
    return [life for life in lives if _LIFE.fullmatch(life)]
