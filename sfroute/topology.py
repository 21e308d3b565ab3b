"""Which node serves a slot: redis-py's slot map of a cluster, or the one node there is.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from redis.asyncio.cluster import ClusterNode, NodesManager, RedisCluster
from redis.cluster import get_node_name
from redis.event import (
    AsyncAfterSlotsCacheRefreshEvent,
    AsyncEventListenerInterface,
    EventListenerInterface,
)
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    ResponseError,
)

from .config import RouterConfig
from .errors import StoreError, StoreUnavailable
from .keys import SLOTS
from .reasons import in_brackets
from .targets import StoreTarget
from .telemetry import uninstrumented
from .wire import Address

__all__ = ["ClusterTopology", "SingleNode", "Topology", "make_topology"]

_log = logging.getLogger(__name__)

MIN_REFRESH_INTERVAL: Final = 0.1
"""Seconds between two questions for the slot map: a failover is noticed in time, a storm of MOVED costs ten a
second.
"""

ChangeListener = Callable[[set[Address]], None]


class Topology(ABC):
    """Where things are."""

    def __init__(self) -> None:
        self._listeners: list[ChangeListener] = []

    @abstractmethod
    async def open(self) -> None:
        """Learn the topology. Raises ``StoreUnavailable``."""

    @abstractmethod
    async def close(self) -> None:
        """Stop; a borrowed client stays open."""

    @abstractmethod
    def address_of(self, slot: int) -> Address | None:
        """The primary that serves a slot, None while none is known."""

    @abstractmethod
    def primaries(self) -> set[Address]:
        """All primaries that serve slots."""

    @abstractmethod
    def learn(self, slot: int, address: Address) -> bool:
        """A node said (MOVED) that the slot is another's. False if that cannot be in this topology."""

    @abstractmethod
    def refresh_soon(self, suspect: Address | None = None) -> None:
        """Ask the nodes again, ``suspect`` last. Returns at once; many calls cost one question."""

    async def refresh(self) -> None:
        """Ask the nodes again, and wait for it; if none answers, what is known stays."""
        self.refresh_soon()

    def on_change(self, listener: ChangeListener) -> None:
        """Call ``listener(addresses)`` with those that lost a slot, whenever some did."""
        self._listeners.append(listener)

    def _changed(self, losers: set[Address]) -> None:
        for listener in self._listeners:
            listener(losers)


class SingleNode(Topology):
    """A server that is no cluster."""

    def __init__(self, address: Address) -> None:
        super().__init__()
        self._address = address

    async def open(self) -> None:
        """Nothing to learn."""

    async def close(self) -> None:
        """Nothing to stop."""

    def address_of(self, slot: int) -> Address | None:
        """The one node."""
        return self._address

    def primaries(self) -> set[Address]:
        """The one node."""
        return {self._address}

    def learn(self, slot: int, address: Address) -> bool:
        """A single node has nobody to refer to: it is part of a cluster after all."""
        return False

    def refresh_soon(self, suspect: Address | None = None) -> None:
        """Nothing to ask."""


class _RefreshListener(AsyncEventListenerInterface):
    def __init__(self, topology: ClusterTopology) -> None:
        self._topology = topology

    async def listen(self, event: object) -> None:
        self._topology.adopt()


class ClusterTopology(Topology):
    """The slot map of a redis-py ``RedisCluster``, followed by its refresh event."""

    def __init__(
        self, client: RedisCluster, *, owned: bool, start: tuple[Address, ...], deadline: float
    ) -> None:
        super().__init__()
        self._client = client
        self._owned = owned
        # redis-py replaces its start nodes by those it discovers. When every node has moved, the names that the
        # application gave are the only ones left that lead anywhere.
        self._start = [(node.host, node.port) for node in start]
        self._deadline = deadline
        self._by_slot: list[Address | None] = [None] * SLOTS
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
        self._suspect: Address | None = None
        self._closed = False
        self._listener = _RefreshListener(self)
        self._events: dict[
            type[object], list[EventListenerInterface | AsyncEventListenerInterface]
        ] = {AsyncAfterSlotsCacheRefreshEvent: [self._listener]}

    async def open(self) -> None:
        """Ask the start nodes for the slot map until the deadline, or until they say what asking again will not
        mend.
        """
        self._client.nodes_manager._event_dispatcher.register_listeners(self._events)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._deadline
        if self._client.nodes_manager.slots_cache:
            self.adopt()
        error: Exception | None = None
        while not self.primaries():
            try:
                # redis-py asks one node after the other, and waits for each.
                async with asyncio.timeout_at(give_up):
                    error = await self._ask()
            except TimeoutError as late:
                # What a whole round has met says more.
                error = error or late
            if self.primaries():
                break
            wrong = _what_is_wrong(error)
            if wrong is not None:
                raise StoreError(wrong, operation="open") from error
            if loop.time() >= give_up:
                raise StoreUnavailable(
                    "no start node of the cluster answered with its slot map; check the addresses, "
                    f"the credentials and that the cluster runs{in_brackets(error)}",
                    operation="open",
                ) from error
            await asyncio.sleep(MIN_REFRESH_INTERVAL)

    async def close(self) -> None:
        """Stop asking; close the client if it is the router's own."""
        self._closed = True
        self._client.nodes_manager._event_dispatcher.unregister_listeners(self._events)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._owned:
            # The start nodes have connections of their own, which RedisCluster.aclose() leaves open unless it was
            # initialised by itself.
            await self._client.nodes_manager.aclose()
            await self._client.nodes_manager.aclose("startup_nodes")

    def address_of(self, slot: int) -> Address | None:
        """The primary that serves a slot."""
        return self._by_slot[slot]

    def primaries(self) -> set[Address]:
        """All primaries that serve slots."""
        return {address for address in set(self._by_slot) if address is not None}

    def learn(self, slot: int, address: Address) -> bool:
        """Follow a MOVED for its slot at once, and ask for the whole map."""
        previous = self._by_slot[slot]
        if previous != address:
            self._by_slot[slot] = address
            if previous is not None:
                self._changed({previous})
        self.refresh_soon()
        return True

    def refresh_soon(self, suspect: Address | None = None) -> None:
        """Ask the nodes for the slot map, ``suspect`` last."""
        self._wanted = True
        self._suspect = suspect or self._suspect
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._refresh())
            self._task.add_done_callback(self._refreshed)

    async def refresh(self) -> None:
        """Ask the nodes for the slot map, and wait for it; if none answers, what is known stays."""
        self.refresh_soon()
        if self._task is not None:
            await asyncio.wait([self._task])

    def adopt(self) -> None:
        """Take over redis-py's slot map, and tell who lost slots."""
        known: dict[int, Address] = {}
        losers: set[Address] = set()
        slots = self._client.nodes_manager.slots_cache
        by_slot: list[Address | None] = [None] * SLOTS
        for slot, nodes in slots.items():
            # Slots of one range share one list.
            address = known.get(id(nodes))
            if address is None:
                address = known[id(nodes)] = Address(str(nodes[0].host), int(nodes[0].port))
            by_slot[slot] = address
        for before, after in zip(self._by_slot, by_slot, strict=True):
            if before is not None and before != after:
                losers.add(before)
        self._by_slot = by_slot
        if losers:
            self._changed(losers)

    async def _refresh(self) -> None:
        while self._wanted:
            self._wanted = False
            error = await self._ask()
            if error is not None:
                _log.debug("the slot map could not be read: %s", type(error).__name__)
            await asyncio.sleep(MIN_REFRESH_INTERVAL)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            _log.error("reading the slot map failed", exc_info=task.exception())

    async def _ask(self) -> Exception | None:
        suspect, self._suspect = self._suspect, None
        try:
            with uninstrumented():
                await self._learn_map(suspect)
        except Exception as error:  # noqa: BLE001 - whatever it is, the map was not learnt
            # Not errors of Redis and of the network alone: redis-py takes a reply apart that is no slot map, and raises
            # IndexError, TypeError and the like.
            return error
        return None

    async def _learn_map(self, suspect: Address | None) -> None:
        if not self._owned and not self._client.nodes_manager.slots_cache:
            # A client that was lent before its first use sets itself up, once.
            await self._client.initialize()
            return
        manager = self._client.nodes_manager
        known = manager.startup_nodes
        # A node that serves no slots yet has emptied it.
        if known:
            try:
                await manager.initialize(last_failed_node_name=str(suspect) if suspect else None)
            except Exception:
                if all(get_node_name(*node) in known for node in self._start):
                    raise
            else:
                return
        await self._learn_map_from_start_nodes(manager)

    async def _learn_map_from_start_nodes(self, manager: NodesManager) -> None:
        """Ask those that the application named, since all others that are known lead nowhere.

        redis-py could be given them beside the others, but it never closes their connections then.
        """
        known = manager.startup_nodes
        named = [
            ClusterNode(host, port, **manager.connection_kwargs)
            for host, port in self._start
            if get_node_name(host, port) not in known
        ]
        manager.startup_nodes = {node.name: node for node in named}
        try:
            await manager.initialize()
        except BaseException:
            manager.startup_nodes = known
            for node in named:
                await node.disconnect()
            raise


def _what_is_wrong(error: BaseException | None) -> str | None:
    """What to tell of an error that asking again will not mend; None for any other."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of the start nodes was not accepted ({error.verify_message}); "
                "name the authority that signed it as ssl_ca_certs"
            )
        if isinstance(error, AuthenticationError):
            return "the start nodes refused the connection; check the user name and password"
        if isinstance(error, NoPermissionError):
            return (
                "the start nodes refused a command (NOPERM); give the router's user the rights listed in "
                "docs/how-to/secure.md"
            )
        if isinstance(error, ResponseError) and "cluster support disabled" in str(error):
            return "the start node is no node of a cluster; for a single node use a redis:// URL or a Redis client"
        error = error.__cause__ or error.__context__
    return None


def make_topology(target: StoreTarget, config: RouterConfig) -> Topology:
    """The topology of a target; makes a redis-py client for a cluster unless one was lent."""
    if not target.cluster:
        return SingleNode(target.nodes[0])
    client = target.borrowed or target.make_cluster_client(config)
    return ClusterTopology(
        client,
        owned=target.borrowed is None,
        start=target.nodes,
        deadline=config.retry.deadline,
    )
