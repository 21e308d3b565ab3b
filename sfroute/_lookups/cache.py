"""The local store of lookups: entries, lane epochs and flights. Pure; the clock is injected.

The rules, stated once:

- An *entry* is one lookup's answer: a link's pod (None: absent; an absent link is an answer like any other) or a uid's
  links. It is **fresh** while ``now < deadline`` and ``now < epoch.healthy_until``.
- ``deadline = sent + min(max_age of the epoch, PTTL)``: an answer ages from when its question was *sent*.
- An *epoch* is one unbroken stretch of a lane. Ending it (connection lost, silent, re-pointed) ends the freshness of
  all its entries at once, without touching them. *Revoking* it (the server said: everything changed) also forbids
  serving them stale.
- A *flight* is one lookup under way. Further callers join it; those who join after its question was sent are asked for
  again if its answer is then older than an entry might be. An own write, or an invalidation read after the value, makes
  it **dirty**: its answer still goes to those who joined before, but it is not stored, and nobody may join any more.

Who may touch it: only the event loop changes anything. Other threads may read single entries (``entries.find``): an
entry does not change once it is stored, and reading does not reorder, so no lock is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from .._contract.keys import CacheKey
from ..config import CacheConfig

if TYPE_CHECKING:
    from ..telemetry.records import CallRecord

__all__ = [
    "CacheCounts",
    "Entries",
    "Entry",
    "Epoch",
    "Flight",
    "LookupCache",
    "Value",
    "Waiter",
]

MAX_OWN_WRITES: Final = 1024
"""Own writes whose pushes are awaited at once. Without a bound they would pile up where nothing is pushed."""

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


class Waiter(Protocol):
    """Someone who waits for a flight; an ``asyncio.Future`` is one."""

    def done(self) -> bool:
        """True if it no longer waits."""
        ...

    def set_result(self, result: Flight, /) -> None:
        """Hand over the finished flight."""


class Flight:
    """One lookup under way.

    Attributes:
        key: what is looked up.
        deadline: instant at which it is given up.
        may_serve_stale: False for a lookup that must not be answered from the cache.
        waiters: who gets the result.
        late: who has joined after the question was sent.
        sent: the question is on its way.
        dirty: the answer must not be stored.
        torn: the link changed between the reading of its value and of its TTL.
        tears: how often that has happened to those who wait.
        value_read: the value has arrived (its TTL may not have): from now on an invalidation concerns it.
        done: it has landed or failed.
        records: the calls it serves, as telemetry knows them.
        last_error: the latest trouble on its way, for the error that gives it up.
    """

    __slots__ = (
        "deadline",
        "dirty",
        "done",
        "entry",
        "error",
        "from_store",
        "key",
        "last_error",
        "late",
        "may_serve_stale",
        "records",
        "sent",
        "stale",
        "tears",
        "torn",
        "value_read",
        "waiters",
    )

    def __init__(self, key: CacheKey, deadline: float, may_serve_stale: bool = True) -> None:
        self.key = key
        self.deadline = deadline
        self.may_serve_stale = may_serve_stale
        self.waiters: list[Waiter] = []
        # Lists only when there is something in them: the garbage collector counts every one of a thousand flights.
        self.late: list[Waiter] | None = None
        self.sent = False
        self.dirty = False
        self.torn = False
        self.tears = 0
        self.value_read = False
        self.done = False
        self.entry: Entry | None = None
        self.stale = False
        self.from_store = True
        self.error: Exception | None = None
        self.last_error: Exception | None = None
        self.records: list[CallRecord] | None = None

    def add(self, waiter: Waiter) -> None:
        """Add a waiter."""
        if not self.sent:
            self.waiters.append(waiter)
        elif self.late is None:
            self.late = [waiter]
        else:
            self.late.append(waiter)

    def calls(self) -> list[CallRecord]:
        """The calls it serves, those to come included."""
        if self.records is None:
            self.records = []
        return self.records

    def leave(self) -> list[Waiter]:
        """Detach and return everyone who waits."""
        waiters, self.waiters = self.waiters, []
        if self.late:
            waiters += self.late
            self.late = None
        return waiters

    def finish(self, *, entry: Entry | None = None, error: Exception | None = None) -> None:
        """End the flight and hand it to everyone who waits."""
        self.entry = entry
        self.error = error
        self.done = True
        waiters = self.waiters if self.late is None else self.leave()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(self)
        # Those who wait hold the flight: together they would be garbage that only the collector finds.
        waiters.clear()


_F = TypeVar("_F", bound=Flight)


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
            # Its place in the order of eviction is that of its age.
            del data[key]
        elif len(data) >= self._room:
            self._evict()
        data[key] = entry

    def _evict(self) -> None:
        """The oldest 1/64 of all entries leave, 512 at most."""
        data = self._data
        oldest = list(islice(data, min(max(1, len(data) // self.SHARE), self.AT_ONCE)))
        for key in oldest:
            del data[key]
        self.evictions += len(oldest)


class CacheCounts:
    """What ``router.stats()`` reports. Plain ints: one writer each, except ``hits``, which fronts add to in callers'
    threads.

    ``inner_hits`` are those of ``hits`` that are no call of their own: of batches, and of calls past the cache.
    """

    __slots__ = ("dropped", "hits", "inner_hits", "invalidations", "joined", "misses", "stale")

    def __init__(self) -> None:
        self.hits = 0
        self.inner_hits = 0
        self.misses = 0
        self.joined = 0
        self.stale = 0
        self.invalidations = 0
        self.dropped = 0


class LookupCache:
    """Entries and flights under the rules above."""

    # What the native part reads, where it finds it.
    __slots__ = ("__dict__", "__weakref__", "_flights", "counts")

    def __init__(
        self,
        config: CacheConfig,
        clock: Callable[[], float],
        on_own_push: Callable[[float, object], None] = lambda seconds, writer: None,
    ) -> None:
        self._config = config
        self._on_own_push = on_own_push
        self._clock = clock
        self.entries = Entries(config.max_entries)
        self.counts = CacheCounts()
        self._flights: dict[CacheKey, Flight] = {}
        # Which services a namespace's entries name, so that a whole uid can be dropped without a scan of all entries.
        # Service names come from code, not from strangers: this stays small.
        self._services: dict[str, set[str]] = {}
        # Own writes on keys that a server tracks for us: when they were sent. Their pushes measure the lag.
        self._own_writes: dict[CacheKey, tuple[float, object]] = {}
        # Who waits for a key to change.
        self._watchers: dict[CacheKey, list[Callable[[], None]]] = {}

    # Entries

    def fresh(self, key: CacheKey) -> Entry | None:
        """The entry that may be served now, if there is one."""
        entry = self.entries.find(key)
        if entry is None:
            return None
        now = self._clock()
        return entry if now < entry.deadline and now < entry.epoch.healthy_until else None

    def stale(self, key: CacheKey) -> Entry | None:
        """The entry that may be served, marked stale, while the store cannot be reached.

        At most ``stale_if_error`` past its deadline and never past the link's own end.
        """
        entry = self.entries.find(key)
        if entry is None or self._config.stale_if_error == 0:
            return None
        until = min(entry.deadline + self._config.stale_if_error, entry.expires)
        return entry if self._clock() < until and not entry.epoch.revoked else None

    # Flights

    def join(self, key: CacheKey) -> Flight | None:
        """The flight under way that a new caller may join."""
        return self._flights.get(key)

    def open(self, flight: _F) -> _F:
        """A lookup begins; later callers join the newest flight of a key. Returns the flight."""
        # Out of the table the one before would miss what makes a flight dirty.
        previous = self._flights.get(flight.key)
        if previous is not None:
            previous.dirty = True
        self._flights[flight.key] = flight
        return flight

    def land(
        self,
        flight: Flight,
        value: Value,
        ttl: float | None,
        sent: float,
        epoch: Epoch,
        storable: bool,
    ) -> list[Waiter] | None:
        """The answer has come: store it if it may be stored, wake everyone.

        Returns those who joined late and must ask again, if there are any: to them the answer is too old.

        ``ttl``: seconds of the link's own remaining time, None for no end. ``storable``: False if nobody vouches for
        the answer from now on (an ASK redirect, or an epoch that ended meanwhile).
        """
        max_age = epoch.max_age
        deadline, expires = sent + max_age, inf
        if ttl is not None:
            expires = sent + ttl
            deadline = min(deadline, expires)
        entry = Entry(value, deadline, epoch, expires, sent)
        if (
            storable
            and not flight.dirty
            and max_age > 0
            and (value is not None or self._config.negative)
        ):
            self._store(flight.key, entry)
        self._forget(flight)
        again = None
        if flight.late and self._clock() - sent >= max_age:
            again, flight.late = flight.late, None
        flight.finish(entry=entry)
        return again

    def land_stale(self, flight: Flight, entry: Entry) -> None:
        """The store cannot be reached: everyone gets an old answer, marked so."""
        self._forget(flight)
        flight.stale = True
        flight.finish(entry=entry)

    def leave(self, flight: Flight) -> list[Waiter]:
        """Give a lookup up without an answer. Returns everyone who waits."""
        self._forget(flight)
        flight.done = True
        return flight.leave()

    def fail(self, flight: Flight, error: Exception) -> None:
        """The lookup is given up. An error is never stored."""
        self._forget(flight)
        flight.finish(error=error)

    # Changes

    def drop(self, key: CacheKey) -> None:
        """An own write, or the caller asks for it: the entry goes, and a lookup under way must not bring it back."""
        self._remove(key)
        self._detach(key)

    def write_begins(self, key: CacheKey, writer: object = None) -> None:
        """An own write on the key is about to be sent: as ``drop``, and its push is looked out for; ``writer`` is who
        will be named to ``on_own_push``.
        """
        if key in self.entries:
            if len(self._own_writes) >= MAX_OWN_WRITES:
                self._own_writes.clear()
            self._own_writes[key] = self._clock(), writer
        self.drop(key)

    def invalidated(self, key: CacheKey) -> None:
        """The server says the key changed.

        A lookup whose value has not been read yet is left alone: in the order of the wire its value is newer.
        """
        self.counts.invalidations += 1
        self._remove(key)
        if self._watchers:
            for wake in self._watchers.get(key, ()):
                wake()
        if self._own_writes:
            sent, writer = self._own_writes.pop(key, (-inf, None))
            lag = self._clock() - sent
            # A lane that held our push back for longer would have been given up: this one is of somebody else's write,
            # and ours (refused, say) changed nothing.
            if lag < self._config.heartbeat_timeout:
                self._on_own_push(lag, writer)
        if self._flights:
            flight = self._flights.get(key)
            if flight is not None and flight.value_read:
                self._detach(key)

    @contextmanager
    def watched(self, key: CacheKey, wake: Callable[[], None]) -> Iterator[None]:
        """Within it ``wake`` is called whenever the server says that the key changed, if it tracks the key."""
        self._watchers.setdefault(key, []).append(wake)
        try:
            yield
        finally:
            left = self._watchers[key]
            left.remove(wake)
            if not left:
                del self._watchers[key]

    def wake_watchers(self) -> None:
        """Everything may have changed."""
        for wakes in self._watchers.values():
            for wake in wakes:
                wake()

    def drop_uid(self, namespace: str, uid: str) -> None:
        """Drop everything known of a uid."""
        self.drop((namespace, uid))
        for service in self._services.get(namespace, ()):
            self.drop((namespace, uid, service))
        # A service of which nothing was stored yet may be looked up for the first time right now.
        for key in [key for key in self._flights if key[:2] == (namespace, uid)]:
            self.drop(key)

    def detach_flights(self) -> None:
        """Everything may have changed: flights under way serve those who wait, are not stored, and nobody joins."""
        for flight in self._flights.values():
            flight.dirty = True
        self._flights.clear()

    def _detach(self, key: CacheKey) -> None:
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.dirty = True
            flight.torn = flight.torn or flight.value_read

    def _store(self, key: CacheKey, entry: Entry) -> None:
        if self._own_writes:
            # Pushes come in order with answers: that of a write before this one is here, or never.
            self._own_writes.pop(key, None)
        self.entries[key] = entry
        if len(key) == 3:
            services = self._services.get(key[0])
            if services is None:
                self._services[key[0]] = {key[2]}
            elif key[2] not in services:
                services.add(key[2])

    def _remove(self, key: CacheKey) -> None:
        if self.entries.take(key, None) is not None:
            self.counts.dropped += 1

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
