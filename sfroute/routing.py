"""Routing: from what is known of a uid and of the pods to a ``Link``; placing and moving uids."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from math import inf

from . import replies
from .cache import Entry, Flight
from .engine import Engine, OpenEngine
from .errors import InvalidArgument, NoRoutablePod, SfrouteError, StoreError
from .keys import check_pod, link_key
from .links import LinkReader, LinkWriter
from .lookup import error_for_one
from .placement import Policy, PowerOfTwoChoices, candidates
from .states import rejections
from .telemetry import CURRENT
from .types import PERSIST_FOREVER, Link, LinkSource, Pod
from .views import ServiceView

__all__ = ["RouteTerms", "Routes", "check_policy", "checked_exclude"]

MAX_CANDIDATES = 8
"""Candidates sent with a placement: the script takes the first; the others are for those that have gone meanwhile."""
MAX_GONE = 256
"""Gone pods sent with a placement. A link found at another one is moved in a further round."""
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
class RouteTerms:
    """What a caller of ``route()`` asks for, checked.

    Attributes:
        persist_seconds: the kind of link to make.
        policy: how to choose; None: the router's own.
        exclude: pods that must not be used.
        fresh: neither the link nor the pods from a cache.
    """

    persist_seconds: int
    policy: Policy | None
    exclude: frozenset[int]
    fresh: bool

    @property
    def question(self) -> Hashable:
        """Equal for terms under which two placements of a uid are one."""
        return self.persist_seconds, id(self.policy), self.exclude


def checked_exclude(exclude: Collection[int]) -> frozenset[int]:
    """The pods that must not be used. Raises ``InvalidArgument``."""
    if not isinstance(exclude, Collection) or isinstance(exclude, (str, bytes)):
        raise InvalidArgument(
            f"exclude must be a collection of pod ids, not {type(exclude).__name__}"
        )
    for pod in exclude:
        check_pod(pod, "exclude")
    return frozenset(exclude)


def check_policy(policy: object) -> None:
    """Raise ``InvalidArgument`` unless it is a policy, or None."""
    if isinstance(policy, type):
        raise InvalidArgument("policy must be an instance, such as Rendezvous()")
    if policy is not None and not callable(getattr(policy, "rank", None)):
        raise InvalidArgument("policy must have a method rank(uid, candidates)")


_LinkName = tuple[str, str, str]
"""Namespace, uid, service: checked."""
_Question = tuple[Hashable, float]
"""Terms, and when the pods were read by which they are met."""


class Routes:
    """Decides whether a link stays, and places or moves the uid where it does not."""

    def __init__(self, engine: Engine, reader: LinkReader, writer: LinkWriter) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._policy: Policy = PowerOfTwoChoices()
        # Placements under way: who asks the same meanwhile waits for the same answer.
        self._placing: dict[_LinkName, dict[_Question, asyncio.Task[Link]]] = {}
        writer.on_change = self._link_changed

    def cached(self, link: _LinkName, persist_seconds: int, exclude: frozenset[int]) -> Link | None:
        """The link if the cache and the pod view agree that it may be used as it is. Any thread may call this."""
        parts = self._engine.parts
        if parts is None:
            return None
        cache = self._engine.cache
        try:
            entry = cache.fresh(link)
            if entry is None or entry.pod is None or entry.pod in exclude:
                return None
            now = self._engine.clock()
            if wants_extension(entry, now, persist_seconds):
                return None
        except TypeError:  # an argument of the wrong type: the checks have the words for it
            return None
        view = parts.views.usable(link[0], link[2])
        if view is None or not view.keeps(entry.pod):
            return None
        cache.counts.hits += 1
        hits = self._engine.telemetry.hits
        if hits is not None:
            hits("route", link, now)
        return link_of_entry(entry, now)

    async def past_cache(self, link: _LinkName, terms: RouteTerms) -> Link:
        """The link by what the store says; the uid is placed or moved if need be.

        Raises ``NoRoutablePod``, and what the store raises.
        """
        check_policy(terms.policy)
        flight = await self._reader.look_up("route", link, terms.fresh)
        record = CURRENT.get()
        if record is not None:
            record.source = "store" if flight.from_store else "cache"
        routed = await self._decide(link, flight, terms)
        if record is not None and routed.source in {"placed", "moved"}:
            record.source = routed.source
        return routed

    async def _decide(self, link: _LinkName, flight: Flight, terms: RouteTerms) -> Link:
        parts = await self._engine.opened()
        found = link_of_flight(flight, self._engine.clock())
        if found is None or found.pod in terms.exclude:
            view = await self._view_for_placing(parts, link, terms)
            return await self._place_or_move(link, view, terms, None)
        assert flight.entry is not None
        known = await self._view_for_link(parts, link, terms, found.pod)
        if known is None:
            # The link is known, only the pods are not: it is trusted, as if no state were known.
            return found
        if not known.keeps(found.pod):
            if not known.takers(terms.exclude, self._engine.clock()):
                known = await parts.views.get(link[0], link[2], fresh=True)
            return await self._place_or_move(link, known, terms, found.pod)
        if flight.stale or not wants_extension(
            flight.entry, self._engine.clock(), terms.persist_seconds
        ):
            return found
        return await self._place_or_move(link, known, terms, None)

    @staticmethod
    async def _view_for_link(
        parts: OpenEngine, link: _LinkName, terms: RouteTerms, pod: int
    ) -> ServiceView | None:
        """What to judge a link by; None if nothing can be known of the pods now."""
        namespace, _, service = link
        try:
            view = await parts.views.get_soon(namespace, service, fresh=terms.fresh)
            if view is not None and not view.keeps(pod) and not terms.fresh:
                # A user is moved only by what is known now: the pod may have come back since.
                view = await parts.views.get_soon(namespace, service, fresh=True)
        except StoreError:
            return None
        return view

    async def _view_for_placing(
        self, parts: OpenEngine, link: _LinkName, terms: RouteTerms
    ) -> ServiceView:
        """What to choose a pod by."""
        namespace, _, service = link
        view = await parts.views.get_soon(namespace, service, fresh=terms.fresh)
        if view is None or not view.takers(terms.exclude, self._engine.clock()):
            # Nobody to take the uid, as far as was known: a pod may have come up since.
            view = await parts.views.get(namespace, service, fresh=True)
        return view

    async def _place_or_move(
        self, link: _LinkName, view: ServiceView, terms: RouteTerms, lost: int | None
    ) -> Link:
        """The link as one compare-and-set makes it, for all that ask for the same meanwhile."""
        if terms.fresh:
            # Its answer must not be older than the call.
            return await self._compare_and_set(link, view, terms, lost)
        placing = self._placing.setdefault(link, {})
        # Who knows newer pods must not be given what was chosen by older ones.
        question = (terms.question, view.read_at)
        task = placing.get(question)
        joins = task is not None
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._compare_and_set(link, view, terms, lost)
            )
            placing[question] = task
            task.add_done_callback(lambda done: self._placing_done(link, placing))
        try:
            # One caller giving up must not fail the others.
            routed = await asyncio.shield(task)
        except SfrouteError as error:
            raise error_for_one(error, "route") from error.__cause__
        # One of them has placed it; to the others it was there.
        return replace(routed, source="store") if joins else routed

    def _link_changed(self, namespace: str, uid: str, service: str | None) -> None:
        """A write of this router's has taken effect: who asks from now on is told what holds now."""
        if service is not None:
            self._placing.pop((namespace, uid, service), None)

    def _placing_done(self, link: _LinkName, placing: dict[_Question, asyncio.Task[Link]]) -> None:
        if self._placing.get(link) is placing:
            del self._placing[link]
        for task in placing.values():
            if task.done() and not task.cancelled():
                task.exception()  # its callers may have gone

    async def _compare_and_set(
        self, link: _LinkName, view: ServiceView, terms: RouteTerms, lost: int | None
    ) -> Link:
        """One script; again only if the link turns out to be at a pod that is gone and that was not listed.

        ``lost``: the gone pod of the link, as it was looked up.
        """
        policy, exclude = terms.policy or self._policy, terms.exclude
        listed, asked_again = set(exclude), False
        if lost is not None:
            listed.update((lost, *islice(view.gone, MAX_GONE)))
        for _ in range(MAX_ROUNDS):
            ranked = self._rank(link, view, policy, exclude)
            outcome, owner, persistent = await self._compute(
                link, terms.persist_seconds, listed, ranked
            )
            if outcome == b"none" or owner is None:
                # The view may have grown old on its way, or while its caller waited for a turn.
                grew_old = not ranked and view.takers(exclude, view.read_at)
                newer = await self._view_now(link) if grew_old else None
                if newer is None:
                    break
                view = newer
                continue
            if outcome != b"kept" or view.keeps(owner):
                return self._placed(link, outcome, owner, persistent)
            if not asked_again:
                # Somebody has linked it meanwhile, perhaps to a pod that has come up since this view.
                newer, asked_again = await self._view_now(link), True
                if newer is None or newer.keeps(owner):
                    return self._placed(link, outcome, owner, persistent)
                view = newer
            listed.update((owner, *islice(view.gone, MAX_GONE)))
        raise self._nobody(link, view, exclude)

    async def _view_now(self, link: _LinkName) -> ServiceView | None:
        """The pods asked for now; None if nothing newer can be known of them."""
        parts, began = await self._engine.opened(), self._engine.clock()
        try:
            view = await parts.views.get_soon(link[0], link[2], fresh=True)
        except StoreError:
            return None
        return view if view is not None and view.read_at >= began else None

    def _nobody(
        self, link: _LinkName, view: ServiceView, exclude: Collection[int]
    ) -> NoRoutablePod:
        rejected = dict.fromkeys(view.pods, "not heard of for too long")
        for pod in view.takers(exclude, self._engine.clock()):
            rejected[pod.id] = "not proposed by the policy"
        rejected.update(rejections(view.pods, view.gone, exclude))
        return NoRoutablePod(link[0], link[2], rejected)

    def _rank(
        self, link: _LinkName, view: ServiceView, policy: Policy, exclude: Collection[int]
    ) -> list[int]:
        namespace, uid, service = link
        pods: Sequence[Pod] = view.takers(exclude, self._engine.clock())
        parts = self._engine.parts
        if not pods or parts is None:
            return []
        placements = parts.views.placements(namespace, service)
        load_per_uid = self._engine.config.placement.load_per_uid
        if load_per_uid is None:
            load_per_uid = placements.load_per_uid
        ranked = policy.rank(uid, candidates(pods, placements.unseen(), load_per_uid))
        # A policy may be the application's own.
        takers = {pod.id for pod in pods}
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
    ) -> tuple[object, int | None, bool]:
        """Outcome, owner (None: nobody usable), and whether the link is persistent."""
        parts = await self._engine.opened()
        placements = parts.views.placements(link[0], link[2])
        args = [link[2], persist_seconds, mode, self._writer.record_ms, len(gone)]
        with placements.under_way(ranked[0]) if ranked and mode != "claim" else nullcontext():
            reply = await self._writer.run(
                operation, "statefulComputeLinkIfAbsent", link, [*args, *sorted(gone), *ranked]
            )
        key = link_key(*link)
        if not isinstance(reply, list) or len(reply) != 4:
            raise replies.corrupt(key, "no reply of a placement")
        return reply[1], replies.script_pod(reply[0], key), reply[3] == b"-1"

    def _placed(self, link: _LinkName, outcome: object, owner: int, persistent: bool) -> Link:
        namespace, _, service = link
        source = _OUTCOMES[outcome]
        if source != "store":
            self._engine.placements[source] += 1
            parts = self._engine.parts
            if parts is not None:
                parts.views.placements(namespace, service).add(owner, self._engine.clock())
        return Link(owner, persistent, source)

    async def rank_elsewhere(
        self, namespace: str, service: str, pod: int, uid: str, policy: Policy | None
    ) -> list[int]:
        """Where a uid of ``pod`` may go, the best first. Raises ``NoRoutablePod`` if there is nowhere."""
        parts = await self._engine.opened()
        view = await parts.views.get(namespace, service)
        ranked = self._rank((namespace, uid, service), view, policy or self._policy, {pod})
        if not ranked:
            raise self._nobody((namespace, uid, service), view, {pod})
        return ranked

    async def move(
        self, link: _LinkName, expected: int, to: Sequence[int], operation: str
    ) -> tuple[int | None, bool]:
        """Move the link from ``expected`` to the first of ``to``, kind and remaining time kept.

        Returns the owner afterwards, and whether this call made it so.
        """
        outcome, owner, persistent = await self._compute(
            link, "keep", {expected}, to, mode="move", operation=operation
        )
        if outcome != b"moved" or owner is None:
            return owner, False
        self._placed(link, outcome, owner, persistent)
        return owner, True

    async def claim(self, link: _LinkName, pod: int) -> int:
        """Make the uid's link persistent for ``pod`` unless another pod has it. Returns the owner."""
        _, owner, _ = await self._compute(
            link, PERSIST_FOREVER, (), [pod], mode="claim", operation="accept"
        )
        if owner is None:
            raise replies.corrupt(link_key(*link), "no owner")
        return owner
