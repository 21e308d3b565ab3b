"""Lineage: whether a primary continues the data that was known before, or has lost it.

Every primary names its history by a replication id. After a failover, a second id names the history that it continues
(``INFO replication``: ``master_replid``, ``master_replid2``). A node that restarted without its data has a new id and
no second one. So does its replica, once it has copied the empty data. Each new connection of a lane asks once.

======================================================  ==================
the slot's primary, by its new connection               the slot's data
======================================================  ==================
nothing was known of the slot before                    not known
the history known before is one of its two              is still there
another, and the slot's owner before serves others now  has moved here
another, but its own, unbroken, for a minute            has moved here
another                                                 *forgotten*
it says that everything has changed (``FLUSHALL``)      *forgotten*
======================================================  ==================

Each new connection also asks whether the primary evicts any key when its memory is full. Pods restore what it evicted.

Without permission for ``INFO``, only ``FLUSHALL`` is noticed.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Set
from math import inf
from typing import Final, NamedTuple, Protocol

from ..telemetry.logs import log_fields
from .connection import Address, encode

__all__ = ["ASK_HISTORY", "ASK_MEMORY", "Lineage", "Past", "history_of"]

_log = logging.getLogger("sfroute.store")

ASK_HISTORY: Final = encode("INFO", "replication")
ASK_MEMORY: Final = encode("INFO", "memory")
SETTLED_SECONDS: Final = 60.0
"""If a node's history has been unbroken for this long, a slot that is new to it was moved there, with its data."""
QUIET_SECONDS: Final = 10.0
"""The least time between two warnings that one primary was flushed."""
FORMER: Final = 8
"""How many addresses are remembered that no longer serve slots."""
_LINE: Final = re.compile(rb"^(role|master_replid2?):(\w+)", re.MULTILINE)
_NONE: Final = "0" * 40


class Owners(Protocol):
    """The part of a topology that the lineage needs."""

    def address_of(self, slot: int) -> Address | None:
        """The primary that serves the slot. None if it is not known."""

    def slots_of(self, address: Address) -> Iterable[int]:
        """The slots that this primary serves."""
        ...

    def primaries(self) -> Set[Address]:
        """The primaries that serve slots."""
        ...


class Past(NamedTuple):
    """What is known of a slot's past. Instants are the router's clock.

    Attributes:
        history: the ids of the history that its primary has now, the own one first; empty if it does not say.
        seen_first_at: when the router first saw the slot's primary, if it knew no history of the slot before.
        forgotten_at: when the primary was found to have another history.
        flushed_at: when the primary last said that everything has changed.
        evicts: when its memory is full, the primary evicts any key, or has done so when it was last connected to.
    """

    history: tuple[str, ...] = ()
    seen_first_at: float | None = None
    forgotten_at: float | None = None
    flushed_at: float | None = None
    evicts: bool = False


class _Node(NamedTuple):
    history: tuple[str, ...]
    since: float


class _Slot(NamedTuple):
    owner: Address
    past: Past


def history_of(reply: object) -> tuple[str, ...]:
    """The ids of a primary's history, from the reply to ``ASK_HISTORY``; empty if it is none, or a replica's."""
    if not isinstance(reply, bytes):
        return ()
    said = {name: value.decode() for name, value in _LINE.findall(reply)}
    if said.get(b"role") != "master":
        return ()
    ids = (said.get(b"master_replid", _NONE), said.get(b"master_replid2", _NONE))
    return tuple(one for one in ids if one != _NONE)


class Lineage:
    """See the module's docstring.

    Attributes:
        on_forgotten: called whenever a primary is found to have lost its data.
    """

    def __init__(
        self, topology: Owners, clock: Callable[[], float], log: logging.Logger = _log
    ) -> None:
        self._topology = topology
        self._clock = clock
        self._log = log
        self._nodes: dict[Address, _Node] = {}
        self._slots: dict[int, _Slot] = {}
        self._flushed: dict[Address, float] = {}
        self._evicting: set[Address] = set()
        self.on_forgotten: Callable[[], None] = lambda: None

    def past(self, slot: int) -> Past | None:
        """What is known of a slot's past. None if its primary has not been asked yet."""
        address = self._topology.address_of(slot)
        known = self._slots.get(slot)
        if address is not None and address in self._nodes:
            known = self._slots[slot] = self._judged(known, address)
        flushed_at = self._flushed.get(address) if address is not None else None
        evicts = address in self._evicting
        if flushed_at is None and not evicts:
            return known.past if known is not None else None
        past = known.past if known is not None else Past()
        return past._replace(flushed_at=flushed_at, evicts=evicts)

    def histories(self) -> str:
        """The histories of all primaries that were asked, as a pod publishes them: eight digits of each."""
        serving = self._topology.primaries()
        return " ".join(
            node.history[0][:8] for address, node in self._nodes.items() if address in serving
        )

    def connected(self, address: Address, reply: object, memory: object = None) -> None:
        """A new connection to a primary has asked for its history, and for its memory (``ASK_MEMORY``)."""
        if isinstance(memory, bytes) and b"\nmaxmemory_policy:allkeys" in memory:
            self._evicting.add(address)
        else:
            self._evicting.discard(address)
        history, now = history_of(reply), self._clock()
        if not history:
            return
        before = self._nodes.get(address)
        unbroken = before is not None and before.history[0] in history
        self._nodes[address] = _Node(history, before.since if before and unbroken else now)
        self._drop_former(address)
        if self._judge_slots_of(address):
            why = "its replication history is another one than before: was it restarted without persistence?"
            self._has_forgotten(address, why)

    def everything_changed(self, address: Address) -> None:
        """A primary has said that all its keys have changed."""
        now = self._clock()
        before, self._flushed[address] = self._flushed.get(address, -inf), now
        why = "it says that all keys have changed: was FLUSHALL or FLUSHDB sent?"
        self._has_forgotten(address, why, aloud=now - before > QUIET_SECONDS)

    def _drop_former(self, connected: Address) -> None:
        """Once there are many, forget addresses that no longer serve slots: nodes may move forever."""
        serving = self._topology.primaries() | {connected}
        if len(self._nodes.keys() | self._flushed.keys()) <= len(serving) + FORMER:
            return
        serving |= {known.owner for known in self._slots.values()}
        self._nodes = {at: node for at, node in self._nodes.items() if at in serving}
        self._flushed = {at: when for at, when in self._flushed.items() if at in serving}

    def _judge_slots_of(self, address: Address) -> bool:
        """Bring what is known of the primary's slots up to date; True if the data of one was just found to be lost."""
        slots, mine = self._slots, self._topology.slots_of(address)
        if not slots:
            slots.update(dict.fromkeys(mine, self._judged(None, address)))
            return False
        # Most slots of a primary share one past, which is judged once.
        known = judged = None
        lost = False
        for slot in mine:
            current = slots.get(slot)
            if judged is None or current is not known:
                known, judged = current, self._judged(current, address)
                lost = lost or self._forgotten_at(judged) > self._forgotten_at(known)
            slots[slot] = judged
        return lost

    def _judged(self, known: _Slot | None, address: Address) -> _Slot:
        """What is known of a slot, brought up to date by what the primary that serves it now has said."""
        node = self._nodes[address]
        if known is None:
            past = Past(node.history, seen_first_at=node.since)
        elif known.past.history[0] in node.history:
            if known.owner == address and known.past.history == node.history:
                return known
            past = known.past._replace(history=node.history)
        elif self._has_moved(known.owner, address, node):
            past = Past(node.history)
        else:
            past = Past(node.history, forgotten_at=self._clock())
        return _Slot(address, past)

    @staticmethod
    def _forgotten_at(known: _Slot | None) -> float:
        before = known.past.forgotten_at if known is not None else None
        return -inf if before is None else before

    def _has_moved(self, owner: Address, address: Address, node: _Node) -> bool:
        if owner != address and owner in self._topology.primaries():
            return True
        return self._clock() - node.since > SETTLED_SECONDS

    def _has_forgotten(self, address: Address, why: str, *, aloud: bool = True) -> None:
        self.on_forgotten()
        self._log.log(
            logging.WARNING if aloud else logging.DEBUG,
            "%s has lost its data: %s Pods claim their users again; for a grace period nobody is placed there",
            address,
            why,
            extra=log_fields(node=address, reason=why),
        )
