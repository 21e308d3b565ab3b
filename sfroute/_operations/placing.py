"""Routing: from what is known of a uid and of the pods to a ``Link``; placing and moving uids."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from math import inf

from .._contract import replies
from .._contract.keys import claim_key, left_key, link_key
from .._lookups.answers import error_for_one
from .._lookups.cache import Entry, Flight
from .._net.timeouts import seconds_of
from .._pods.policies import Policy, PowerOfTwoChoices, candidates, check_policy, room_is_going
from .._pods.views import Seen
from ..errors import (
    NoRoutablePod,
    OutcomeUnknown,
    RouterClosed,
    SfrouteError,
    StoreError,
    StoreUnavailable,
)
from ..telemetry import CURRENT, SharedWork
from ..types import Link, LinkSource, Pod
from .engine import Engine, Parts
from .forgotten import Forgotten
from .links import LinkReader, LinkWriter, check_lookup
from .takers import Takers, marked, nobody
from .terms import RouteTerms

__all__ = ["Routes"]

MAX_CANDIDATES = 8
"""Candidates sent with a placement: the script takes the first; the others are for those that have gone meanwhile."""
MAX_GONE = 256
"""Gone pods sent with a placement. A link found at another one is moved in a further round."""
HEARD_SECONDS = 2.5
"""How long a uid that nobody may take, because all pods are silent, waits for one to be heard: a heartbeat."""
LISTEN_SECONDS = 0.1
"""Between two looks at the pods meanwhile."""
LAST_LOOK = 0.25
"""Seconds before its deadline at which a call that waits looks for the last time."""
MAX_ROUNDS = 4
"""How often a link is found to be at yet another pod that is gone before that counts as trouble."""

_OUTCOMES: dict[object, LinkSource] = {b"kept": "store", b"placed": "placed", b"moved": "moved"}


def link_of_entry(entry: Entry, now: float, *, stale: bool = False) -> Link | None:
    """The link that a cached entry tells of, None for an absent one."""
    pod = entry.pod
    return None if pod is None else Link(pod, entry.persistent, "cache", stale, now - entry.sent)


def link_of_flight(flight: Flight, now: float) -> Link | None:
    """The link that a finished flight tells of, None for an absent one."""
    entry = flight.entry
    if entry is None or entry.pod is None:
        return None
    if flight.stale or not flight.from_store:
        return link_of_entry(entry, now, stale=flight.stale)
    return Link(entry.pod, entry.persistent, "store")


def wants_extension(entry: Entry, now: float, persist_seconds: int) -> bool:
    """True if half of a temporary link's time is gone. Not sooner: every extension invalidates every gateway's
    entry.
    """
    return entry.expires != inf and entry.expires - now < persist_seconds / 2


@dataclass(frozen=True, slots=True)
class _Call:
    """One ``route()``: its link, its terms, and the instant until which all of its stages together may take."""

    link: _LinkName
    terms: RouteTerms
    give_up: float


_LinkName = tuple[str, str, str]
"""Namespace, uid, service: checked."""
_Question = tuple[Hashable, float]
"""Terms, and when the pods were read by which they are met."""
_Placing = tuple[asyncio.Task[Link], SharedWork, float]
"""The task, who is in it, and the instant at which the call gives up that began it."""


class Routes:
    """Decides whether a link stays, and places or moves the uid where it does not."""

    def __init__(self, engine: Engine, reader: LinkReader, writer: LinkWriter) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._policy: Policy = PowerOfTwoChoices()
        self._forgotten = Forgotten(engine, reader)
        # Placements under way: who asks the same meanwhile waits for the same answer.
        self._placing: dict[_LinkName, dict[_Question, _Placing]] = {}
        writer.on_change = self._link_changed

    def cached(self, link: _LinkName, persist_seconds: int, exclude: frozenset[int]) -> Link | None:
        """The link if the cache and the pod view agree that it may be used as it is. Any thread may call this."""
        parts = self._engine.parts
        if parts is None:
            return None
        cache = self._engine.cache
        try:
            entry = cache.fresh(link)
            if entry is None:
                return None
            pod = entry.pod
            if pod is None or pod in exclude:
                return None
            now = self._engine.clock()
            if wants_extension(entry, now, persist_seconds):
                return None
        except TypeError:  # an argument of the wrong type: the checks have the words for it
            return None
        view = parts.views.usable(link[0], link[2])
        if view is None or not view.keeps(pod):
            return None
        if view.draining and view.lets_go(
            pod, persistent=entry.persistent, persist_seconds=persist_seconds
        ):
            return None
        cache.counts.hits += 1
        hits = self._engine.telemetry.hits
        if hits is not None:
            append, context = hits
            append(("route", link, now, self._engine.clock(), context(), entry))
        return Link(
            pod,
            entry.persistent,
            "cache",
            False,
            now - entry.sent,
            "silent" if pod in view.spared else "current",
            view.addresses.get(pod),
        )

    async def past_cache(
        self, link: _LinkName, terms: RouteTerms, give_up: float | None = None
    ) -> Link:
        """The link by what the store says; the uid is placed or moved if need be.

        ``give_up``: the call's deadline, as an instant. None: the configured one.

        Raises ``NoRoutablePod``, and what the store raises.
        """
        check_policy(terms.policy)
        if give_up is None:
            give_up = self._engine.clock() + self._engine.config.retry.deadline
        call = _Call(link, terms, give_up)
        parts = await self._opened(call)
        routed = await self._decided(parts, call)
        record = CURRENT.get()
        if record is not None:
            if routed.source in {"placed", "moved"}:
                record.source = routed.source
            if routed.pod_view != "current":
                record.pod_view = routed.pod_view
        return routed

    async def _decided(self, parts: Parts, call: _Call) -> Link:
        """The link as it is decided; again, as long as the caller waits, while nobody may take the uid."""
        # It is for the last look to say why nobody may.
        wait_until = self._engine.clock() + min(call.terms.wait, self._left(call) - LAST_LOOK)
        record = CURRENT.get()
        while True:
            flight = await self._looked_up(call)
            if record is not None:
                record.source = "store" if flight.from_store else "cache"
            try:
                return await self._decide(parts, call, flight)
            except NoRoutablePod:
                if self._engine.clock() + LISTEN_SECONDS > wait_until:
                    raise
            if await parts.views.closes_within(LISTEN_SECONDS):
                raise RouterClosed

    async def _looked_up(self, call: _Call) -> Flight:
        return await self._reader.look_up(
            "route", call.link, call.terms.fresh, give_up=call.give_up
        )

    async def _pod_beside(self, call: _Call) -> int | None:
        """The pod of the uid beside which this one is placed, which is routed first; None if there is none."""
        terms = call.terms
        if terms.beside is None:
            return None
        link = (call.link[0], terms.beside, call.link[2])
        its_terms = replace(terms, exclude=frozenset(), beside=None, wait=0.0)
        other = _Call(link, its_terms, call.give_up)
        parts = await self._opened(other)
        return (await self._decide(parts, other, await self._looked_up(other))).pod

    async def _opened(self, call: _Call) -> Parts:
        parts = self._engine.parts_here()
        if parts is not None:
            return parts
        # look_up() checks them too, but opening comes first and may take until the deadline.
        check_lookup(call.link)
        return await self._engine.opened_by(call.give_up, "route")

    def _left(self, call: _Call) -> float:
        return max(0.0, call.give_up - self._engine.clock())

    async def _decide(self, parts: Parts, call: _Call, flight: Flight) -> Link:
        found = link_of_flight(flight, self._engine.clock())
        if found is None:
            claimed = await self._forgotten.until_claimed(parts, call.link, call.give_up)
            if claimed is not None:
                return await self._decide(parts, call, claimed)
            takers = await self._takers(parts, call)
            mode = takers.mode(call.terms.exclude)
            return await self._place_or_move(call, takers, None, mode=mode)
        if found.pod in call.terms.exclude:
            takers = await self._takers(parts, call)
            return await self._place_or_move(call, takers, None, mode=takers.mode({found.pod}))
        assert flight.entry is not None
        seen = await self._seen_for_link(parts, call, found.pod)
        view = seen.view
        if view is None:
            # The link is known, only the pods are not: it is trusted, as if no state were known.
            return marked(found, seen)
        if seen.loses(found.pod):
            takers = self._takers_of(seen, call.terms.exclude) or await self._takers(parts, call)
            return await self._place_or_move(call, takers, found.pod)
        found = marked(found, seen)
        persist_seconds = call.terms.persist_seconds
        if (
            seen.current
            and view.lets_go(
                found.pod, persistent=found.persistent, persist_seconds=persist_seconds
            )
            and (elsewhere := self._takers_of(seen, call.terms.exclude)) is not None
        ):
            return await self._place_or_move(call, elsewhere, found.pod, mode="leave")
        if flight.stale or not wants_extension(flight.entry, self._engine.clock(), persist_seconds):
            return found
        now = self._engine.clock()
        takers = Takers(view, view.takers(call.terms.exclude, now), seen.current)
        mode = takers.mode(call.terms.exclude)
        return await self._place_or_move(call, takers, None, mode=mode)

    @staticmethod
    async def _seen_for_link(parts: Parts, call: _Call, pod: int) -> Seen:
        """What to judge a link by."""
        namespace, _, service = call.link
        try:
            fresh, give_up = call.terms.fresh, call.give_up
            seen = await parts.views.look(namespace, service, fresh=fresh, give_up=give_up)
            if seen.loses(pod) and not fresh:
                # A user is moved only by what is known now: the pod may have come back since.
                seen = await parts.views.look(namespace, service, fresh=True, give_up=give_up)
        except StoreError:
            return Seen(None, False)
        return seen

    async def _takers(self, parts: Parts, call: _Call) -> Takers:
        """Who may take the uid. It is asked once for each ``route()``, and the answer passed on.

        While the states cannot be read it goes by the last view. If nobody may, it asks for the states as they are now;
        and if all pods are silent, it waits a little for one to be heard: the store may have been away for all of them.
        """
        namespace, _, service = call.link
        exclude, clock = call.terms.exclude, self._engine.clock
        seen = await parts.views.look(
            namespace, service, fresh=call.terms.fresh, give_up=call.give_up
        )
        takers = self._takers_of(seen, exclude)
        if takers is not None:
            return takers
        heard_by = clock() + min(HEARD_SECONDS, self._left(call) / 2)
        while True:
            view = await parts.views.get(namespace, service, fresh=True, give_up=call.give_up)
            takers = Takers(view, view.takers(exclude, clock()), True)
            if takers.pods or not view.spared or clock() >= heard_by:
                return takers
            if await parts.views.closes_within(LISTEN_SECONDS):
                raise RouterClosed

    def _takers_of(self, seen: Seen, exclude: Collection[int]) -> Takers | None:
        """Who may take a uid by what is seen; None if nobody may."""
        view = seen.view
        if view is None:
            return None
        pods = view.takers(exclude, self._engine.clock())
        if not pods and not seen.current:
            # Nobody can be heard of: those that were there when somebody could.
            pods = view.takers(exclude, view.read_at)
        return Takers(view, pods, seen.current) if pods else None

    async def _place_or_move(
        self, call: _Call, takers: Takers, lost: int | None, *, mode: str = "place"
    ) -> Link:
        """The link as one compare-and-set makes it, for all that ask for the same meanwhile."""
        if call.terms.fresh:
            # Its answer must not be older than the call.
            return await self._compare_and_set(call, takers, lost, mode)
        placing = self._placing.setdefault(call.link, {})
        # Who knows newer pods must not be given what was chosen by older ones.
        question = (call.terms.question, takers.view.read_at)
        task, work, ends = placing.get(question, (None, SharedWork(), call.give_up))
        work.join()
        joins = task is not None
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._compare_and_set(call, takers, lost, mode), context=work.context()
            )
            placing[question] = task, work, ends
            task.add_done_callback(lambda done: self._placing_done(call.link, placing))
        try:
            # One caller giving up must not fail the others.
            joined = asyncio.shield(task)
            # Whoever began may have more time than this call has, or less.
            routed = await (joined if ends <= call.give_up else self._in_time(joined, call))
        except SfrouteError as error:
            out_of_time = isinstance(error, (StoreUnavailable, OutcomeUnknown))
            if joins and out_of_time and self._left(call):
                return await self._compare_and_set(call, takers, lost, mode)
            raise error_for_one(error, "route") from error.__cause__
        # One of them has placed it; to the others it was there.
        return routed._replace(source="store") if joins else routed

    async def _in_time(self, placing: asyncio.Future[Link], call: _Call) -> Link:
        try:
            async with asyncio.timeout(self._left(call)):
                return await placing
        except TimeoutError as error:
            seconds = seconds_of(call.give_up, self._engine.config.retry.deadline)
            raise OutcomeUnknown(
                f"route may or may not have been executed: the uid is being placed for another call, too, and was not "
                f"within {seconds:g} s. Read the current state before acting on it",
                operation="route",
            ) from error

    def _link_changed(self, namespace: str, uid: str, service: str | None) -> None:
        """A write of this router's has taken effect: who asks from now on is told what holds now."""
        if service is not None:
            self._placing.pop((namespace, uid, service), None)

    def _placing_done(self, link: _LinkName, placing: dict[_Question, _Placing]) -> None:
        if self._placing.get(link) is placing:
            del self._placing[link]
        for task, _, _ in placing.values():
            if task.done() and not task.cancelled():
                task.exception()  # its callers may have gone

    async def _compare_and_set(
        self, call: _Call, takers: Takers, lost: int | None, mode: str
    ) -> Link:
        """One script; again only if the link turns out to be at a pod that is gone and that was not listed.

        ``lost``: the gone pod of the link, as it was looked up. ``mode``: of the script; or ``"settle"``, which is
        ``"place"`` for a caller's ``exclude`` alone (``PlacementConfig.settle``).
        """
        exclude, view = call.terms.exclude, takers.view
        listed, asked_again = set(exclude), False
        if lost is not None:
            listed.update((lost, *islice(takers.lose(), MAX_GONE)))
        beside = await self._pod_beside(call)
        parts = await self._engine.opened()
        reported_too = False
        for _ in range(MAX_ROUNDS):
            ranked = self._rank(
                call.link, takers.pods, call.terms.policy, beside, reported_too=reported_too
            )
            outcome, owner, persistent = await self._compute(
                call.link,
                call.terms.persist_seconds,
                listed,
                ranked,
                mode=mode,
                give_up=call.give_up,
            )
            if outcome == b"none" or owner is None:
                if reported_too or not parts.views.failures(call.link[0], call.link[2]):
                    break
                # Rather a pod that has been reported than none.
                reported_too = True
                continue
            if outcome != b"kept" or view.keeps(owner):
                return marked(self._placed(call.link, outcome, owner, persistent), takers)
            if not asked_again:
                # Somebody has linked it meanwhile, perhaps to a pod that has come up since this view.
                newer, asked_again = await self._takers_now(call), True
                if newer is None or newer.view.keeps(owner):
                    placed = self._placed(call.link, outcome, owner, persistent)
                    return marked(placed, newer or takers)
                takers, view, mode = newer, newer.view, "place"
            listed.update((owner, *islice(takers.lose(), MAX_GONE)))
        raise nobody(call.link, takers, exclude)

    async def _takers_now(self, call: _Call) -> Takers | None:
        """Who may take the uid by the pods as they are now; None if nothing newer can be known of them."""
        parts, began = await self._engine.opened(), self._engine.clock()
        try:
            view, _ = await parts.views.look(
                call.link[0], call.link[2], fresh=True, give_up=call.give_up
            )
        except StoreError:
            return None
        if view is None or view.read_at < began:
            return None
        return Takers(view, view.takers(call.terms.exclude, self._engine.clock()), True)

    def _rank(
        self,
        link: _LinkName,
        pods: Sequence[Pod],
        policy: Policy | None,
        beside: int | None = None,
        *,
        reported_too: bool = False,
    ) -> list[int]:
        """The best first. ``reported_too``: whatever callers have reported of the pods."""
        namespace, uid, service = link
        parts = self._engine.parts
        if not pods or parts is None:
            return []
        placements = parts.views.placements(namespace, service)
        load_per_uid = self._engine.config.placement.load_per_uid
        if load_per_uid is None:
            load_per_uid = placements.load_per_uid
        offered = pods
        if not reported_too:
            offered = parts.views.failures(namespace, service).offered(pods, self._engine.clock())
        found = candidates(offered, placements.unseen(), load_per_uid, placements.claims_per_uid)
        if room_is_going(offered, found):
            parts.views.renew_early(namespace, service)
        # If all seem to be full by now, the pods themselves know better.
        with_room = [one for one in found if one.room != 0] or found
        ranked = (policy or self._policy).rank(uid, with_room)
        # A policy may be the application's own.
        takers = {pod.id for pod in pods}
        if beside is not None:
            ranked = [beside, *ranked]
        return [pod for pod in dict.fromkeys(ranked) if pod in takers][:MAX_CANDIDATES]

    async def _compute(
        self,
        link: _LinkName,
        persist_seconds: int | str,
        gone: Collection[int],
        ranked: Sequence[int],
        *,
        mode: str = "place",
        operation: str = "route",
        give_up: float | None = None,
    ) -> tuple[object, int | None, bool]:
        """Outcome, owner (None: nobody usable), and whether the link is persistent."""
        parts = await self._engine.opened_by(give_up, operation)
        placements = parts.views.placements(link[0], link[2])
        failures = parts.views.failures(link[0], link[2])
        script_mode = "place" if mode == "settle" else mode
        args: list[str | int] = [link[2], persist_seconds, script_mode]
        args += [self._writer.record_ms_of(give_up), len(gone)]
        args += [*sorted(gone), *ranked]
        settle_ms = int(self._engine.config.placement.settle * 1000)
        if mode == "settle" and settle_ms:
            args += ["settle", settle_ms]
        with (
            placements.under_way(ranked[0]) if ranked else nullcontext(),
            failures.attempt(ranked[0] if ranked else None, self._engine.clock()) as attempt,
        ):
            reply = await self._writer.run(
                operation,
                "statefulComputeLinkIfAbsent",
                link,
                args,
                more_keys=(left_key(*link), claim_key(*link)),
                give_up=give_up,
            )
            key = link_key(*link)
            if not isinstance(reply, list) or len(reply) != 4:
                raise replies.corrupt(key, "no reply of a placement")
            outcome, owner = reply[1], replies.script_pod(reply[0], key)
            if outcome != b"kept":
                attempt.landed_on = owner
        return outcome, owner, reply[3] == b"-1"

    def _placed(self, link: _LinkName, outcome: object, owner: int, persistent: bool) -> Link:
        namespace, uid, service = link
        source = _OUTCOMES[outcome]
        if source != "store":
            self._engine.placements[source] += 1
            parts = self._engine.parts
            if parts is not None:
                parts.views.placed(namespace, uid, service, owner)
        return Link(owner, persistent, source)

    async def rank_elsewhere(
        self, namespace: str, service: str, pod: int, uid: str, policy: Policy | None
    ) -> list[int]:
        """Where a uid of ``pod`` may go, the best first. Raises ``NoRoutablePod`` if there is nowhere."""
        parts = await self._engine.opened()
        link = (namespace, uid, service)
        view = await parts.views.get(namespace, service)
        pods = view.takers({pod}, self._engine.clock(), emptied=False)
        ranked = self._rank(link, pods, policy) or self._rank(link, pods, policy, reported_too=True)
        if not ranked:
            raise nobody(link, Takers(view, pods, True), {pod})
        return ranked

    async def move(
        self,
        link: _LinkName,
        expected: int,
        to: Sequence[int],
        operation: str,
        give_up: float | None = None,
    ) -> tuple[int | None, bool]:
        """Move the link from ``expected`` to the first of ``to``, kind and remaining time kept.

        Returns the owner afterwards, and whether this call made it so.
        """
        outcome, owner, persistent = await self._compute(
            link, "keep", {expected}, to, mode="move", operation=operation, give_up=give_up
        )
        if outcome != b"moved" or owner is None:
            return owner, False
        self._placed(link, outcome, owner, persistent)
        return owner, True
