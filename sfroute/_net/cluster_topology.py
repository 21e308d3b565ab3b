"""The slot map of a cluster, kept up to date.

A cluster is asked over one connection of its own, which is kept. While the answer stays the same it is asked once a
second at most, however much trouble there is: a thousand gateways must not add to a cluster's trouble.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Set
from itertools import compress
from math import inf
from operator import is_not
from typing import Final

from redis.asyncio.cluster import RedisCluster
from redis.event import (
    AsyncAfterSlotsCacheRefreshEvent,
    AsyncEventListenerInterface,
    EventListenerInterface,
)

from .._chance import chance
from .._contract.keys import SLOTS
from ..config import RouterConfig
from ..errors import StoreError, StoreUnavailable
from ..telemetry.logs import log_fields
from ..telemetry.records import of_no_call
from .connection import Address, ConnectionLost, HandshakeRefused, WireSettings
from .credentials import NoCredentials
from .dialer import AddressRemap, remapped
from .slot_map import MAX_NODES, NoSlotMap, SlotMap
from .slot_map_inquiry import SlotMapInquiry
from .targets import StoreTarget
from .topology import SingleNode, Topology

__all__ = ["ClusterTopology", "make_topology"]

MIN_REFRESH_INTERVAL: Final = 0.1
"""Seconds between two questions for the slot map while it changes: a failover is noticed in time, a storm of MOVED
costs ten a second.
"""

SAME_INTERVAL: Final = 1.0
"""Seconds between two questions while the answer stays the same, and a random quarter more: a fleet must not ask in
step. Where a slot has gone is mostly learnt from a MOVED, without a question."""


class _RefreshListener(AsyncEventListenerInterface):
    def __init__(self, topology: ClusterTopology) -> None:
        self._topology = topology

    async def listen(self, event: object) -> None:
        self._topology.adopt_lent()


class ClusterTopology(Topology):
    """The slot map of a cluster.

    Args:
        settings: how to connect.
        start: the nodes that the caller named. When every node has moved, they are the only ones left that lead
            anywhere.
        deadline: seconds for which ``open`` asks.
        lent: the caller's own client, which also follows the slot map: what it learns is adopted.
        remap: see ``RouterConfig.address_remap``; a lent client's own.
    """

    def __init__(
        self,
        settings: WireSettings,
        start: tuple[Address, ...],
        deadline: float,
        lent: RedisCluster | None = None,
        remap: AddressRemap | None = None,
    ) -> None:
        super().__init__(remap)
        self._start = start
        self._deadline = deadline
        self._lent = lent
        self._inquiry = SlotMapInquiry(settings)
        self._by_slot: list[Address | None] = [None] * SLOTS
        self._nodes: tuple[Address, ...] = ()
        # Slots that were learnt since the question for the slot map was asked.
        self._learnt: dict[int, Address] = {}
        # Counted anew after each change.
        self._primaries: frozenset[Address] | None = frozenset()
        # One object for each address: maps are compared by identity, which is fast.
        self._places: dict[Address, Address] = {}
        # Whoever did not answer last time is asked last.
        self._silent: set[Address] = set()
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
        self._wake = asyncio.Event()
        self._not_before = -inf
        self._same = 0
        self._closed = False
        self._events: dict[
            type[object], list[EventListenerInterface | AsyncEventListenerInterface]
        ] = {AsyncAfterSlotsCacheRefreshEvent: [_RefreshListener(self)]}

    async def open(self) -> None:
        """Ask the start nodes for the slot map until the deadline, or until asking again would be useless."""
        if self._lent is not None:
            self._lent.nodes_manager._event_dispatcher.register_listeners(self._events)
            self.adopt_lent()
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._deadline
        error: Exception | None = None
        while not self.primaries():
            try:
                async with asyncio.timeout_at(give_up):
                    error = await self._ask()
            except TimeoutError as late:
                # The errors of a whole round say more.
                error = error or late
            if self.primaries():
                break
            if isinstance(error, HandshakeRefused):
                raise StoreError(str(error), operation="open") from error
            if loop.time() >= give_up:
                why = f" ({error})" if isinstance(error, (ConnectionLost, NoSlotMap)) else ""
                raise StoreUnavailable(
                    f"no start node of the cluster answered with its slot map{why}; check the addresses, "
                    "the credentials and that the cluster runs",
                    operation="open",
                ) from error
            await asyncio.sleep(MIN_REFRESH_INTERVAL)

    async def close(self) -> None:
        """Stop asking; a lent client stays open."""
        self._closed = True
        if self._lent is not None:
            self._lent.nodes_manager._event_dispatcher.unregister_listeners(self._events)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._inquiry.drop()

    def give_up_after_fork(self) -> None:
        """In a forked child: give up every inherited socket."""
        self._inquiry.give_up_after_fork()

    def address_of(self, slot: int) -> Address | None:
        """The primary that serves a slot."""
        return self._by_slot[slot]

    def range_of(self, slot: int) -> range:
        """The unbroken range around this slot that is served by the same primary."""
        by_slot = self._by_slot
        owner, first, end = by_slot[slot], slot, slot + 1
        # By identity, which is fast. At worst a range is taken for two.
        while first > 0 and by_slot[first - 1] is owner:
            first -= 1
        while end < SLOTS and by_slot[end] is owner:
            end += 1
        return range(first, end)

    def slots_of(self, address: Address) -> Iterable[int]:
        """The slots that a primary serves."""
        slots: list[int] = []
        before, is_its = None, False
        for slot, owner in enumerate(self._by_slot):
            # Addresses are compared where a range begins: that takes longer than identity.
            if owner is not before:
                before, is_its = owner, owner == address
            if is_its:
                slots.append(slot)
        return slots

    def primaries(self) -> Set[Address]:
        """All primaries that serve slots."""
        if self._primaries is None:
            self._primaries = frozenset(filter(None, dict.fromkeys(self._by_slot)))
        return self._primaries

    def learn(self, slot: int, address: Address) -> bool:
        """Follow a MOVED for its slot at once, and ask for the whole map."""
        previous = self._by_slot[slot]
        self._learnt[slot] = place = self._place(address)
        if previous != address:
            self._by_slot[slot] = place
            self._primaries = None
            self._news()
            if previous is not None:
                self._changed({previous})
        self.refresh_soon()
        return True

    def refresh_soon(self, suspect: Address | None = None) -> None:
        """Ask the nodes for the slot map, ``suspect`` last."""
        self._wanted = True
        if suspect is not None:
            self._silent.add(suspect)
        if self._task is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._refresh(), context=of_no_call())
            self._task.add_done_callback(self._refreshed)

    async def refresh(self) -> None:
        """Ask the nodes for the slot map now, and wait for it; if none answers, what is known stays."""
        self._not_before = -inf
        self._wake.set()
        self.refresh_soon()
        if self._task is not None:
            await asyncio.wait([self._task])

    def adopt_lent(self) -> None:
        """Take over the slot map of the lent client, once it has one."""
        assert self._lent is not None
        slots = self._lent.nodes_manager.slots_cache
        if not slots:
            return
        # Slots of a range share one list.
        known: dict[int, Address] = {}
        by_slot: list[Address | None] = [None] * SLOTS
        for slot, nodes in slots.items():
            address = known.get(id(nodes))
            if address is None:
                address = self._place(Address(str(nodes[0].host), int(nodes[0].port)))
                known[id(nodes)] = address
            by_slot[slot] = address
        primaries = frozenset(known.values())
        everybody = self._lent.nodes_manager.nodes_cache.values()
        places = [self._place(Address(str(node.host), int(node.port))) for node in everybody]
        self._adopt(SlotMap(by_slot, tuple(places), primaries))

    # Asking

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        while self._wanted:
            while (pause := self._not_before - loop.time()) > 0:
                # Wait until then, or until there is a reason to ask at once.
                self._wake.clear()
                timer = loop.call_later(pause, self._wake.set)
                try:
                    await self._wake.wait()
                finally:
                    timer.cancel()
            self._wanted = False
            error = await self._ask()
            if error is not None:
                self.log.debug("the slot map could not be read: %s", type(error).__name__)
            # Lasting trouble asks again, and finds this task still running.
            self._not_before = loop.time() + self._interval()

    def _interval(self) -> float:
        if self._same == 0:
            return MIN_REFRESH_INTERVAL
        return SAME_INTERVAL * (1.0 + chance.random() / 4)

    def _news(self) -> None:
        """The next answer is likely to differ."""
        self._same = 0
        soon = asyncio.get_running_loop().time() + MIN_REFRESH_INTERVAL
        if self._not_before > soon:
            self._not_before = soon
            self._wake.set()

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error(
                "reading the slot map failed", exc_info=error, extra=log_fields(error=error)
            )

    async def _ask(self) -> Exception | None:
        """Ask one node after another for the slot map. Returns the reason if none gives one: a refusal rather than
        silence.
        """
        worst: Exception | None = None
        for address in self._candidates():
            self._learnt.clear()
            try:
                found = await self._inquiry.slot_map(address, self._reached)
            except (ConnectionLost, HandshakeRefused, NoSlotMap) as error:
                if isinstance(error.__cause__, NoCredentials):
                    # Not this node's fault: the next one would get none either.
                    return error
                self._silent.add(address)
                if not isinstance(worst, HandshakeRefused):
                    worst = error
                continue
            self._silent.discard(address)
            self._adopt(self._with_learnt(found))
            return None
        # Nobody can be reached: ask as rarely as if the answer had stayed the same.
        self._same += 1
        return worst

    def _candidates(self) -> list[Address]:
        """All known nodes, beginning with the one asked last. If its answer never changes, it may be cut off from the
        others: then another node goes first, ever more rarely.
        """
        asked = self._inquiry.address
        others = [node for node in self._nodes if node != asked]
        chance.shuffle(others)
        stay = asked is not None and (self._same < 2 or self._same & (self._same - 1) != 0)
        first = [asked] if stay and asked is not None else []
        last = [asked] if not stay and asked is not None else []
        everyone = dict.fromkeys([*first, *others, *last, *self._start])
        # A start node may be a name for several nodes, and one of them is silent.
        return sorted(everyone, key=self._silent.__contains__)

    def _reached(self, address: Address) -> Address:
        """Where to reach the node that the cluster knows by this address."""
        return self._place(remapped(self._remap, address))

    def _place(self, address: Address) -> Address:
        if len(self._places) > 2 * MAX_NODES:
            self._places.clear()
        return self._places.setdefault(address, address)

    def _with_learnt(self, found: SlotMap) -> SlotMap:
        """The answer, and what a MOVED has told since the question: it is newer. Reading a large map takes turns."""
        by_slot = found.by_slot
        newer = {slot: at for slot, at in self._learnt.items() if by_slot[slot] != at}
        if not newer:
            return found
        for slot, place in newer.items():
            by_slot[slot] = place
        return found._replace(primaries=frozenset(filter(None, dict.fromkeys(by_slot))))

    def _adopt(self, found: SlotMap) -> None:
        """Adopt a slot map, and tell the listeners which nodes lost slots."""
        before, self._by_slot, self._nodes = self._by_slot, found.by_slot, found.nodes
        self._primaries = found.primaries
        self._silent &= {*found.nodes, *self._start}
        if before == found.by_slot:
            self._same += 1
            return
        self._same = 0
        losers: set[Address] = set()
        last = None
        changed = map(is_not, before, found.by_slot)
        for old, new in compress(zip(before, found.by_slot, strict=True), changed):
            if old is not last and old is not None and old != new:
                losers.add(old)
                last = old
        if losers:
            self._changed(losers)


def make_topology(target: StoreTarget, settings: WireSettings, config: RouterConfig) -> Topology:
    """The topology of a target."""
    topology: Topology
    if target.cluster:
        topology = ClusterTopology(
            settings, target.nodes, config.retry.deadline, target.borrowed, config.address_remap
        )
    else:
        topology = SingleNode(target.nodes[0])
    topology.log = config.logger_for("topology")
    return topology
