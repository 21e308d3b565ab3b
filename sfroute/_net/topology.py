"""Which node serves a slot, and what error replies tell of it; the topology of a single node.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Set
from math import inf
from typing import Final

from .._contract.error_replies import Failure, Kind, read_failure
from .._contract.keys import SLOTS
from ..errors import ConfigError
from ..telemetry.logs import log_fields
from .connection import Address, ReplyError
from .dialer import AddressRemap, remapped

__all__ = ["SingleNode", "Topology"]

_log = logging.getLogger("sfroute.topology")

RENEW_INTERVAL: Final = 0.25
"""Seconds between two times that connections are made anew because they led to the wrong server."""

ChangeListener = Callable[[set[Address]], None]


class Topology(ABC):
    """Where things are.

    Attributes:
        log: where it logs.
    """

    def __init__(self, remap: AddressRemap | None = None) -> None:
        self.log = _log
        self._remap = remap
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
    def range_of(self, slot: int) -> range:
        """The unbroken range around this slot that is served by the same primary; or by none."""

    @abstractmethod
    def slots_of(self, address: Address) -> Iterable[int]:
        """The slots that a primary serves."""

    @abstractmethod
    def primaries(self) -> Set[Address]:
        """All primaries that serve slots."""

    @abstractmethod
    def learn(self, slot: int, address: Address) -> bool:
        """A node said (MOVED) that another node has the slot. False if this topology cannot have that."""

    def heed(self, error: ReplyError, sender: Address) -> Failure:
        """Read an error reply, and learn from it who serves what.

        A redirect then names where its node is reached. A redirect that this topology cannot have is ``FATAL``, unless
        the peer may be the wrong server: then another one is looked for (``RELOCATE``).
        """
        failure = read_failure(str(error))
        kind = failure.kind
        if kind is Kind.RELOCATE:
            self.wrong_peer(sender)
        elif kind is Kind.UNKNOWN and self.wrong_peer(sender):
            return failure._replace(kind=Kind.RELOCATE)
        elif kind is Kind.MOVED or kind is Kind.ASK:
            try:
                target = remapped(self._remap, Address(failure.host or sender.host, failure.port))
            except ConfigError as wrong:
                # Of the application's function. In a data callback nothing may be raised.
                self.log.error(
                    "%s: %s", failure.code, wrong, extra=log_fields(node=sender, error=wrong)
                )
                return failure._replace(kind=Kind.FATAL)
            if kind is Kind.MOVED and not self.learn(failure.slot, target):
                again = self.wrong_peer(sender)
                return failure._replace(kind=Kind.RELOCATE if again else Kind.FATAL)
            return failure._replace(host=target.host, port=target.port)
        return failure

    def wrong_peer(self, address: Address) -> bool:
        """The server that answers there is not, or no longer, the right one.

        True if the right one may be found at the same address. Connections to it are then made anew.
        """
        return False

    @abstractmethod
    def refresh_soon(self, suspect: Address | None = None) -> None:
        """Ask the nodes again, ``suspect`` last. Returns at once; many calls cost one question."""

    async def refresh(self) -> None:
        """Ask the nodes again, and wait for it; if none answers, what is known stays."""
        self.refresh_soon()

    @abstractmethod
    def give_up_after_fork(self) -> None:
        """In a forked child: give up every inherited socket."""

    def on_wrong_peer(self, listener: Callable[[Address], None]) -> None:  # noqa: B027 - nothing by default
        """Call ``listener(address)`` when connections to the address are to be made anew."""

    def on_change(self, listener: ChangeListener) -> None:
        """Call ``listener(addresses)`` with the nodes that lost a slot, on every such change."""
        self._listeners.append(listener)

    def _changed(self, losers: set[Address]) -> None:
        for listener in self._listeners:
            listener(losers)


class SingleNode(Topology):
    """A server outside any cluster.

    Its address may be a name (of DNS, a load balancer, a Kubernetes service) that leads to another server after a
    failover, while connections to the old server stay open. The old server's answers reveal that, and the connections
    are made anew.
    """

    def __init__(self, address: Address) -> None:
        super().__init__()
        self._address = address
        self._renewed = -inf
        self._wrong_peer_listeners: list[Callable[[Address], None]] = []

    def wrong_peer(self, address: Address) -> bool:
        """Resolve the name again, but no more often than it can change."""
        now = asyncio.get_running_loop().time()
        if now - self._renewed < RENEW_INTERVAL:
            return False
        self._renewed = now
        for listener in self._wrong_peer_listeners:
            listener(address)
        return True

    def on_wrong_peer(self, listener: Callable[[Address], None]) -> None:
        """Call ``listener(address)`` when connections to the address are to be made anew."""
        self._wrong_peer_listeners.append(listener)

    async def open(self) -> None:
        """Nothing to learn."""

    async def close(self) -> None:
        """Nothing to stop."""

    def address_of(self, slot: int) -> Address | None:
        """The one node."""
        return self._address

    def range_of(self, slot: int) -> range:
        """All slots."""
        return range(SLOTS)

    def slots_of(self, address: Address) -> Iterable[int]:
        """All slots."""
        return range(SLOTS)

    def primaries(self) -> Set[Address]:
        """The one node."""
        return {self._address}

    def learn(self, slot: int, address: Address) -> bool:
        """A single node cannot redirect: this one is part of a cluster after all."""
        return False

    def give_up_after_fork(self) -> None:
        """There are no sockets to give up."""

    def refresh_soon(self, suspect: Address | None = None) -> None:
        """Nothing to ask."""
