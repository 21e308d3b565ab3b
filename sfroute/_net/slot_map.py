"""Reads a slot map (``CLUSTER SLOTS``) and rejects what no cluster can have. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from .._contract.error_replies import is_host
from .._contract.keys import SLOTS
from .connection import Address

__all__ = [
    "MAX_NODES",
    "MAX_SLOT_MAP_BYTES",
    "NODES_IN_A_TURN",
    "NoSlotMap",
    "SlotMap",
    "SlotMapReader",
    "read_slot_map",
]

MAX_NODES: Final = 4096
"""The most nodes of one cluster. Redis and Valkey are designed for up to a thousand."""

MAX_SLOT_MAP_BYTES: Final = 32 * 2**20
"""The most bytes of a reply, as ``resp.py`` counts them. A map in which each slot is a range of its own, with a primary
and two replicas, counts 30 million; a thousand nodes with one range each count two million."""

MAX_SERVING: Final = 64
"""The most nodes of one range: a primary and its replicas."""

NODES_IN_A_TURN: Final = 256
"""Nodes that are read in one turn of the event loop, each as often as it is named. That takes half a millisecond."""


class NoSlotMap(Exception):
    """The reply is not a slot map. The text repeats none of it."""


class SlotMap(NamedTuple):
    """Which node serves which slot.

    Attributes:
        by_slot: the primary of each slot. None for a slot without one.
        nodes: all nodes in the map, primaries and replicas, each once.
        primaries: those that serve slots.
    """

    by_slot: list[Address | None]
    nodes: tuple[Address, ...]
    primaries: frozenset[Address]


def _itself(address: Address) -> Address:
    return address


class SlotMapReader:
    """Reads the slot map in a reply, in turns: a large one would hold the event loop up.

    The reply is ``[[first slot, last slot, [host, port, ...], ...], ...]``, with the primary first and no slot twice.
    An empty host, a null or ``?`` means the host of the node that replied.

    Args:
        reply: the reply. What has been read of it is let go, so that freeing it takes turns as well.
        asked: the node that sent it.
        remap: maps an address that the cluster reports to the address that this process connects to.
    """

    def __init__(
        self, reply: object, asked: Address, remap: Callable[[Address], Address] = _itself
    ) -> None:
        if not isinstance(reply, list):
            raise NoSlotMap("the reply to CLUSTER SLOTS is no slot map")
        self._entries: list[object] = reply
        self._next = 0
        self._asked = asked
        self._remap = remap
        self._by_slot: list[Address | None] = [None] * SLOTS
        # One object per address: slot maps are compared by identity, which is fast.
        self._known: dict[tuple[object, object], Address] = {}
        self._places: dict[Address, Address] = {}
        self._primaries: set[Address] = set()
        self._left = SLOTS

    def turn(self) -> SlotMap | None:
        """Read a part of it, which names some ``NODES_IN_A_TURN`` nodes. The slot map once all is read.

        Raises:
            NoSlotMap: the reply is not a slot map.
        """
        nodes = 0
        entries = self._entries
        while self._next < len(entries):
            if nodes >= NODES_IN_A_TURN:
                return None
            entry, entries[self._next] = entries[self._next], None
            self._next += 1
            nodes += self._read(entry)
        found = dict.fromkeys(self._places.values())
        return SlotMap(self._by_slot, tuple(found), frozenset(self._primaries))

    def _read(self, entry: object) -> int:
        """Read one range. Returns how many nodes serve it."""
        if not (isinstance(entry, list) and 3 <= len(entry) <= 2 + MAX_SERVING):
            raise NoSlotMap("the reply to CLUSTER SLOTS is no slot map")
        first, last, *served_by = entry
        if not (_is_number(first, SLOTS - 1) and _is_number(last, SLOTS - 1) and first <= last):
            raise NoSlotMap("the reply to CLUSTER SLOTS has an invalid slot range")
        self._left -= last - first + 1
        nodes = [self._node(node) for node in served_by]
        if self._left < 0 or len(self._known) > MAX_NODES:
            raise NoSlotMap("the reply to CLUSTER SLOTS names more than a cluster has")
        primary = nodes[0]
        self._primaries.add(primary)
        self._by_slot[first : last + 1] = [primary] * (last - first + 1)
        return len(nodes)

    def _node(self, node: object) -> Address:
        if isinstance(node, list) and len(node) >= 2 and _is_number(node[1], 65_535):
            name, port = node[0], node[1]
            if name is None or isinstance(name, bytes):
                place = self._known.get((name, port))
                if place is not None:
                    return place
                host = name.decode("latin-1") if name else ""
                if is_host(host):
                    address = Address(self._asked.host if host in {"", "?"} else host, port)
                    place = self._places.get(address)
                    if place is None:
                        place = self._places[address] = self._remap(address)
                    return self._known.setdefault((name, port), place)
        raise NoSlotMap("the reply to CLUSTER SLOTS names an invalid node")


def read_slot_map(
    reply: object, asked: Address, remap: Callable[[Address], Address] = _itself
) -> SlotMap:
    """Read the slot map in a reply at once; see ``SlotMapReader``. Raises ``NoSlotMap``."""
    reader = SlotMapReader(reply, asked, remap)
    while (found := reader.turn()) is None:
        pass
    return found


def _is_number(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
