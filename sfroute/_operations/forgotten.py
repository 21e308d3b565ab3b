"""A store has lost its data: the pod of a uid without a link may still have the uid, and will claim it again.

A primary has *forgotten* when it comes back with another history than before, or says that everything has changed
(``FLUSHALL``). Pods then claim their uids again. Until they had time to (``PlacementConfig.reassert_grace``), nobody is
placed on its slots: a ``route()`` without a link waits, and is answered as soon as the pod has claimed the uid.

=========================================================  ==========================================================
what is known of the slot's primary                        nobody is placed until
=========================================================  ==========================================================
it has another history than before                         the grace is over, or all living pods have confirmed theirs
it said that everything has changed                        the grace is over
nothing from before this router saw it, and no living pod  the grace is over, or one has
has confirmed its claims by this history, though they do
anything else                                              no time at all
=========================================================  ==========================================================

The grace of a primary with another history begins when it answers lookups again: until then pods cannot claim either.

If two rows hold, the later instant counts: a flush does not end the grace of a restart after it, nor the other way.

A primary that evicts any key when its memory is full may have evicted all that it had of a claim. Pods restore it as
soon as they are told, so a uid without a link waits for ``EVICTED_SECONDS`` if the primary has evicted keys since this
router asked last.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from math import inf

from .._commands.command import Command
from .._contract.keys import link_tag, slot_of_tag
from .._lookups.cache import Flight
from .._net.connection import Address, encode
from .._net.lineage import Past
from .._net.timeouts import GiveUp, seconds_of
from .._pods.views import ServiceView
from ..errors import StoreUnavailable
from ..types import RUNNING, Pod
from .engine import Engine, Parts
from .links import LinkReader

__all__ = ["Forgotten", "ends_at", "living"]

_ASK_STATS = encode("INFO", "stats")
_EVICTED = re.compile(rb"^evicted_keys:(\d+)", re.MULTILINE)
LOOK_SECONDS = 0.1
"""Between two looks at what the pods have confirmed; the push for a claimed uid is not waited for that long."""
EVICTED_SECONDS = 1.0
"""After an eviction, until its pod has restored what was evicted; on a busy machine that took up to 0.2 s."""
RESERVE_SECONDS = 1.0
"""Seconds of a call's deadline that are kept for placing the uid when what it has waited for has not come."""


def ends_at(past: Past, pods: Iterable[Pod], grace: float) -> float:
    """The instant until which nobody is placed: the table above. ``pods``: those that live."""
    published = [ids for pod in pods if (ids := _confirmed(pod)) is not None]
    known = {one[:8] for one in past.history}
    confirmed = [bool(known & ids) for ids in published]
    ends = [-inf]
    if past.flushed_at is not None:
        ends.append(past.flushed_at + grace)
    if past.forgotten_at is not None and not (confirmed and all(confirmed)):
        ends.append(past.forgotten_at + grace)
    if past.seen_first_at is not None and confirmed and not any(confirmed):
        ends.append(past.seen_first_at + grace)
    return max(ends)


def living(view: ServiceView | None) -> list[Pod]:
    """The pods that may have users. One whose state the store lost has confirmed nothing until it is heard again."""
    if view is None:
        return []
    heard = [pod for pod in view.pods.values() if pod.id not in view.gone]
    return heard + [Pod(pod, RUNNING, extra={"confirmed": ""}) for pod in view.missed]


def _confirmed(pod: Pod) -> set[str] | None:
    """The histories by which the pod has confirmed its claims; None if it does not say."""
    confirmed = pod.extra.get("confirmed")
    return set(confirmed.split()) if isinstance(confirmed, str) else None


class Forgotten:
    """Lets calls wait whose links the store may have forgotten."""

    def __init__(self, engine: Engine, reader: LinkReader) -> None:
        self._engine = engine
        self._reader = reader
        # History -> when the primary that has it was first seen to answer.
        self._answering: dict[tuple[str, ...], float] = {}
        # Primary -> how many keys it had evicted, and until when they may be restored.
        self._evictions: dict[Address, tuple[int, float]] = {}

    async def until_claimed(
        self, parts: Parts, link: tuple[str, str, str], give_up: float
    ) -> Flight | None:
        """Wait while the link may be claimed; the lookup that found it, None if the time is over.

        Raises what a lookup raises.
        """
        slot = slot_of_tag(link_tag(link[0], link[1]))
        past = self._past(parts, slot)
        grace = self._engine.config.placement.reassert_grace
        if past is None or grace == 0:
            return None
        view = parts.views.last(link[0], link[2])
        if view is None:
            view = (await parts.views.look(link[0], link[2], give_up=give_up)).view
        evicted = await self._restored_by(parts, slot, give_up) if past.evicts else -inf
        if max(evicted, self._ends(parts, link, past, grace, view)) == -inf:
            return None
        clock, cache = self._engine.clock, self._engine.cache
        give_up_waiting = self._give_up_waiting(give_up)
        changed = asyncio.Event()
        with cache.watched(link, changed.set):
            while True:
                past = self._past(parts, slot)
                seen = await parts.views.look(link[0], link[2], give_up=give_up)
                if past is None:
                    return None
                ends = max(evicted, self._ends(parts, link, past, grace, seen.view))
                left = min(ends, give_up_waiting) - clock()
                if left <= 0:
                    return None
                left = min(left, give_up - clock())
                if left <= 0:
                    raise self._too_soon(give_up)
                try:
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()
                entry = cache.fresh(link)
                if entry is not None and entry.pod is None:
                    continue
                flight = await self._reader.look_up("route", link, False, give_up=give_up)
                if flight.entry is not None and flight.entry.pod is not None:
                    return flight

    def _give_up_waiting(self, give_up: float) -> float:
        """The instant at which a uid is placed although its pod might still claim it."""
        if type(give_up) is not GiveUp:
            return give_up - RESERVE_SECONDS
        # A call with less time of its own gives up, rather than place the uid sooner than others would.
        configured = self._engine.config.retry.deadline
        return give_up + max(0.0, configured - give_up.seconds) - RESERVE_SECONDS

    def _too_soon(self, give_up: float) -> StoreUnavailable:
        seconds = seconds_of(give_up, self._engine.config.retry.deadline)
        return StoreUnavailable(
            "route: the store has lost data, and the uid's pod, which may claim it again, had not within "
            f"{seconds:g} s; nothing was changed. Call again",
            operation="route",
        )

    def _past(self, parts: Parts, slot: int) -> Past | None:
        """What is known of the slot's past, as if it had begun when its primary first answered; it just has."""
        past = parts.lineage.past(slot)
        if past is None:
            return None
        since = self._answering.setdefault(past.history, self._engine.clock())
        forgotten_at, seen_first_at = past.forgotten_at, past.seen_first_at
        return past._replace(
            forgotten_at=None if forgotten_at is None else max(forgotten_at, since),
            seen_first_at=None if seen_first_at is None else max(seen_first_at, since),
        )

    async def _restored_by(self, parts: Parts, slot: int, give_up: float) -> float:
        """The instant by which pods have restored what the slot's primary has evicted; -inf if it has evicted nothing.

        Raises what the store raises.
        """
        address = parts.topology.address_of(slot)
        if address is None:
            return -inf
        asked_at = self._engine.clock()
        ask = Command("route", "", "INFO", _ASK_STATS)
        reply = await parts.commands.run_on(address, ask, give_up)
        found = _EVICTED.search(reply) if isinstance(reply, bytes) else None
        evicted = int(found[1]) if found else 0
        before, restored_by = self._evictions.get(address, (0, -inf))
        if evicted != before:
            restored_by = asked_at + EVICTED_SECONDS
        self._evictions[address] = evicted, restored_by
        return restored_by

    def _ends(
        self,
        parts: Parts,
        link: tuple[str, str, str],
        past: Past,
        grace: float | None,
        view: ServiceView | None,
    ) -> float:
        namespace, _, service = link
        if grace is None:
            grace = parts.views.longest_lease(namespace, service)
        return ends_at(past, living(view), grace)
