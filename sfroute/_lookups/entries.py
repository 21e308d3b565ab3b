"""What the cache holds: answers, the stretches of lanes that vouch for them, and places of answers to come. Pure.

The rules are stated in ``cache.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Final

from .._contract.keys import CacheKey

if TYPE_CHECKING:
    from ..telemetry.records import CallRecord

__all__ = ["Entries", "Entry", "Epoch", "Expected", "LinkName", "Value"]

LinkName = tuple[str, str, str]
"""Namespace, uid and service: a ``CacheKey`` of a link."""

Value = int | dict[str, int] | None
"""A pod id, a uid's links, or None: absent."""


class Epoch:
    """One unbroken stretch of a lane.

    Attributes:
        max_age: seconds an answer of this epoch stays fresh at most.
        healthy_until: instant until which the lane's last answered heartbeat vouches for its entries; ``-inf`` when
            over.
        revoked: the server declared everything changed.
    """

    __slots__ = ("healthy_until", "max_age", "revoked")

    def __init__(self, max_age: float, healthy_until: float) -> None:
        self.max_age = max_age
        self.healthy_until = healthy_until
        self.revoked = False

    def end(self, *, revoked: bool = False) -> None:
        """No entry of this epoch counts as fresh any more."""
        self.healthy_until = -inf
        self.revoked = self.revoked or revoked


class Entry:
    """One answer; nothing of it changes once it is stored. Instants are those of the cache's clock, in seconds.

    (Slots, and no named tuple: every hit reads three of them, and each takes less time.)

    Attributes:
        value: what the store said.
        deadline: fresh before this instant.
        epoch: the stretch of the lane that vouches for it.
        expires: when the link itself ends; ``inf`` for a persistent or absent one.
        sent: when the question was sent.
    """

    __slots__ = ("deadline", "epoch", "expires", "sent", "value")

    def __init__(
        self, value: Value, deadline: float, epoch: Epoch, expires: float, sent: float
    ) -> None:
        self.value = value
        self.deadline = deadline
        self.epoch = epoch
        self.expires = expires
        self.sent = sent

    @property
    def pod(self) -> int | None:
        """The pod of a link's entry; None if it is absent."""
        return self.value if isinstance(self.value, int) else None

    @property
    def persistent(self) -> bool:
        """True for a link without expiry."""
        return self.value is not None and self.expires == inf


class Expected(Entry):
    """The place of an answer that a thread itself waits for. It is filled once, and is not fresh before.

    It stands in the cache before the question leaves. Whatever changes the key takes it away, and an answer that fills
    it afterwards is found by nobody: it needs no lock to be as good as one that the event loop stores. Any thread may
    touch it.

    Attributes:
        before: the entry whose place it took, which may still be served stale. None once it is filled.
        over: nobody waits for the answer any more.
        calls: the calls that wait for the answer, as telemetry knows them.
        thread: the one that asks.
    """

    __slots__ = ("_unstored", "_wakes", "before", "calls", "over", "thread")

    def __init__(self, epoch: Epoch, before: Entry | None, thread: int) -> None:
        super().__init__(None, -inf, epoch, -inf, -inf)
        self.before = before.standing if isinstance(before, Expected) else before
        self.over = False
        self.thread = thread
        self.calls: list[CallRecord] | None = []
        self._wakes: list[Callable[[], None]] | None = []
        self._unstored: Entry | None = None

    @property
    def filled(self) -> bool:
        """The answer is in it."""
        return self.deadline != -inf

    @property
    def standing(self) -> Entry | None:
        """Itself once it is filled, else the entry before it."""
        return self if self.filled else self.before

    @property
    def answer(self) -> Entry | None:
        """The answer, once it is over. None if none came."""
        return self if self.filled else self._unstored

    def fill(self, value: Value, deadline: float, expires: float, sent: float) -> None:
        """The answer has come, and may be stored."""
        self.value = value
        self.expires = expires
        self.sent = sent
        # Now it may be fresh, so this comes after all that is read then; and ``before`` is read while it is not.
        self.deadline = deadline
        self.before = None

    def join(self, call: CallRecord | None, wake: Callable[[], None]) -> bool:
        """Have ``wake`` called, once, when it is over. False if it is over already."""
        calls, wakes = self.calls, self._wakes
        if calls is not None and call is not None:
            calls.append(call)
        if wakes is not None:
            wakes.append(wake)
        # In this order: who ends it says so first, and wakes then.
        return not self.over

    def end(self, unstored: Entry | None = None) -> None:
        """Wake everybody. ``unstored``: the answer, if it may not be stored."""
        self._unstored = unstored
        self.over = True
        wakes, self._wakes, self.calls = self._wakes, None, None
        for wake in wakes or ():
            wake()


class Entries:
    """Bounded, first in first out. Reading neither locks nor mutates.

    A dict keeps the order of insertion, so it is all there is. Removing its first element again and again is slow, so
    the oldest leave in batches.

    Attributes:
        find: the entry under a key, None if there is none; any thread may call it.
        take: the same, and removes it; for the event loop.
        evictions: how many have left to make room.
    """

    SHARE: Final = 64
    AT_ONCE: Final = 512
    """A million entries must not keep the event loop from its other work while they make room."""

    def __init__(self, max_entries: int) -> None:
        self.evictions = 0
        self._data: dict[CacheKey, Entry] = {}
        self._room = max_entries
        # The dict's own: no frame of Python, and no exception for an absent entry.
        self.find: Callable[[CacheKey], Entry | None] = self._data.get
        self.take: Callable[[CacheKey, None], Entry | None] = self._data.pop

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[CacheKey]:
        return iter(self._data)

    def __contains__(self, key: CacheKey) -> bool:
        return key in self._data

    def __setitem__(self, key: CacheKey, entry: Entry) -> None:
        data = self._data
        if key in data:
            # Its place in the order of eviction is that of its age. (Threads take and put single elements, too.)
            data.pop(key, None)
        elif len(data) >= self._room:
            self._evict()
        data[key] = entry

    def _evict(self) -> None:
        """The oldest 1/64 of all entries leave, 512 at most."""
        data = self._data
        oldest = list(islice(data, min(max(1, len(data) // self.SHARE), self.AT_ONCE)))
        for key in oldest:
            data.pop(key, None)
        self.evictions += len(oldest)
