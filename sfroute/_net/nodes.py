"""One channel per node: made on first use, dropped when its node no longer serves slots, closed together.

Lookups, writes and durable writes each have their own set. The rule of every set is here, once.

Who may touch it: only the event loop changes anything. Other threads may iterate; they see a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from ..errors import RouterClosed
from .channel import Channel
from .connection import Address
from .topology import Topology

__all__ = ["MAX_STRAYS", "Node", "Nodes"]

MAX_STRAYS: Final = 64
"""Channels kept to nodes that serve no slots (targets of ASK): such a node may be about to serve some. No cluster
imports slots into more nodes than this at once."""


class Node(Protocol):
    """What a set holds for a node: a channel, or something built around one."""

    @property
    def channel(self) -> Channel:
        """The channel to the node."""
        ...


_N = TypeVar("_N", bound=Node)


class Nodes(Generic[_N]):
    """See the module's docstring.

    Args:
        topology: says which nodes serve slots.
        make: makes what is held for a node.
    """

    def __init__(self, topology: Topology, make: Callable[[Address], _N]) -> None:
        self._topology = topology
        self._make = make
        self._nodes: dict[Address, _N] = {}
        self._retired: set[Channel] = set()
        self._closing: list[Channel] | None = None

    def __iter__(self) -> Iterator[_N]:
        # A list first: metrics are read from other threads.
        return iter(list(self._nodes.values()))

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, address: Address) -> _N | None:
        """What is held for the node, None if nothing is."""
        return self._nodes.get(address)

    def at(self, address: Address) -> _N:
        """What is held for the node; made on first use. Raises ``RouterClosed`` after ``close``."""
        node = self._nodes.get(address)
        if node is None:
            if self._closing is not None:
                raise RouterClosed
            if len(self._nodes) >= MAX_STRAYS:
                self._drop_idle_strays()
            node = self._nodes[address] = self._make(address)
        return node

    def drop(self, addresses: Iterable[Address]) -> None:
        """Close the channels to these nodes, where there are any."""
        for address in addresses:
            node = self._nodes.pop(address, None)
            if node is not None:
                node.channel.close()

    def renew(self, address: Address) -> None:
        """Use a new connection from now on. What is under way is answered on the old one."""
        node = self._nodes.pop(address, None)
        self._retired = {channel for channel in self._retired if not channel.closed}
        if node is not None:
            self._retired.add(node.channel)
            node.channel.retire()

    def close(self) -> None:
        """Close every channel, for good. What is under way is lost."""
        self._closing = [*(node.channel for node in self._nodes.values()), *self._retired]
        self._nodes.clear()
        self._retired.clear()
        for channel in self._closing:
            channel.close()

    async def wait_closed(self) -> None:
        """Wait until the closed channels have stopped."""
        for channel in self._closing or ():
            await channel.wait_closed()

    def give_up_after_fork(self) -> None:
        """In a forked child: give up every inherited socket."""
        for channel in (*(node.channel for node in self._nodes.values()), *self._retired):
            connection = channel.connection
            if connection is not None:
                connection.detach_after_fork()

    def _drop_idle_strays(self) -> None:
        strays = self._nodes.keys() - self._topology.primaries()
        if len(strays) >= MAX_STRAYS:
            self.drop([address for address in strays if self._nodes[address].channel.idle])
