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

Who may touch it: the event loop, but for what says that any thread may. Threads may read single entries
(``entries.find``): an entry does not change once it is fresh, and reading does not reorder, so no lock is needed. A
thread that asks the store itself puts an ``Expected`` into the entries before its question leaves, and fills that when
the answer comes. Both are single steps, and so is whatever takes an entry away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from .._contract.keys import CacheKey
from ..config import CacheConfig
from .entries import Entries, Entry, Epoch, Expected, LinkName, Value

if TYPE_CHECKING:
    from ..telemetry.records import CallRecord

__all__ = [
    "CacheCounts",
    "Entries",
    "Entry",
    "Epoch",
    "Expected",
    "Flight",
    "LinkName",
    "LookupCache",
    "Value",
    "Waiter",
]

MAX_OWN_WRITES: Final = 1024
"""Own writes whose pushes are awaited at once. Without a bound they would pile up where nothing is pushed."""


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


def _ends(sent: float, max_age: float, ttl: float | None) -> tuple[float, float]:
    """Until when an answer may be fresh, and when its link ends; ``ttl`` as for ``LookupCache.land``."""
    if ttl is None:
        return sent + max_age, inf
    return min(sent + max_age, sent + ttl), sent + ttl


class CacheCounts:
    """What ``router.stats()`` reports. Plain ints; callers' threads add to ``hits``, and those that ask the store
    themselves to ``misses`` and ``joined``. One that then leaves its lookup to the loop counts twice.

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
        if isinstance(entry, Expected):
            entry = entry.standing
        if entry is None or self._config.stale_if_error == 0:
            return None
        until = min(entry.deadline + self._config.stale_if_error, entry.expires)
        return entry if self._clock() < until and not entry.epoch.revoked else None

    # Answers that threads wait for themselves

    def expected(self, key: LinkName) -> Expected | None:
        """Any thread: the place of an answer that another thread waits for."""
        entry = self.entries.find(key)
        return entry if isinstance(entry, Expected) and not entry.over else None

    def expect(self, key: LinkName, epoch: Epoch, thread: int) -> Expected:
        """Any thread: the place for the answer to a question about a link, which has not left yet."""
        self.counts.misses += 1
        self._know_service(key)
        place = Expected(epoch, self.entries.find(key), thread)
        self.entries[key] = place
        return place

    def answer(
        self, key: LinkName, place: Expected, value: int | None, ttl: float | None, sent: float
    ) -> Entry | None:
        """Any thread: the answer has come. None if the key changed, or was asked for again, meanwhile."""
        if self.entries.find(key) is not place:
            return None
        deadline, expires = _ends(sent, place.epoch.max_age, ttl)
        if place.epoch.max_age > 0 and (value is not None or self._config.negative):
            place.fill(value, deadline, expires, sent)
            return place
        if place.before is None:
            self.entries.take(key, None)
        return Entry(value, deadline, place.epoch, expires, sent)

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
        deadline, expires = _ends(sent, max_age, ttl)
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
        for service in tuple(self._services.get(namespace, ())):
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
            self._know_service(key)

    def _know_service(self, key: LinkName) -> None:
        """Any thread."""
        services = self._services.get(key[0])
        if services is None:
            services = self._services.setdefault(key[0], set())
        if key[2] not in services:
            services.add(key[2])

    def _remove(self, key: CacheKey) -> None:
        if self.entries.take(key, None) is not None:
            self.counts.dropped += 1

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
