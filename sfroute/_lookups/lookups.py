"""Lookups: answered by the cache, by a flight under way, or by a new one.

A flight outlives redirects, lost connections and failovers until its deadline (``dispatch.py``). A caller who gives up
disturbs neither the flight nor its other callers.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from .._contract.keys import CacheKey
from .._native import heart
from .._net.timeouts import GiveUp
from ..errors import RouterClosed, StoreUnavailable
from ..telemetry import CURRENT, CallRecord, names
from .answers import Gathering, error_for_one, raise_unless_again
from .cache import Flight, LookupCache, Waiter
from .dispatch import Dispatch
from .lane import Read, sketch_of_read

__all__ = ["Lookups"]

TOGETHER = 256
"""Lookups of a batch that are begun in one turn of the event loop."""


class Lookups:
    """See the module's docstring.

    Args:
        dispatch: sends those that the cache cannot answer.
        cache: what is known.
        clock: monotonic seconds.
        deadline: seconds that a lookup may take.
    """

    # What the native part reads, where it finds it.
    __slots__ = (
        *("__dict__", "__weakref__"),
        *("_cache", "_deadline", "_dispatch", "_sketch", "_wakes"),
    )

    def __init__(
        self, dispatch: Dispatch, cache: LookupCache, clock: Callable[[], float], deadline: float
    ) -> None:
        self._dispatch = dispatch
        self._watch = dispatch.deadlines.watch
        self._send = dispatch.send
        self._cache = cache
        self._clock = clock
        self._deadline = float(deadline)
        self._loop = asyncio.get_running_loop()
        if heart is not None:
            self._sketch = sketch_of_read()
            self._wakes = heart.Wakes(self._loop)

    def open(self, key: CacheKey, now: float) -> asyncio.Future[Flight] | None:
        """The future of a new lookup, which may fail and then has an ``error``; None if there is one to join.

        For a call of which telemetry need not know: ``find`` without a coroutine. Its caller has no more time than the
        lookup, so an error is final.
        """
        if self._cache.join(key) is not None:
            return None
        future: asyncio.Future[Flight] = self._loop.create_future()
        self._begin(key, future, False, None, now + self._deadline)
        return future

    async def find(
        self,
        key: CacheKey,
        operation: str,
        bypass: bool = False,
        stale_ok: bool = True,
        give_up: float | None = None,
    ) -> Flight:
        """The finished flight of a lookup made for a public ``operation``.

        ``stale_ok``: False for a caller who rather waits, until its deadline, than take an old answer. ``give_up``: the
        instant of the deadline of the call that it is part of; None: it is one of its own.

        Raises ``StoreUnavailable``, ``CorruptReply``, another ``StoreError``, or ``RouterClosed``.
        """
        if give_up is None:
            give_up = self._clock() + self._deadline
        record = CURRENT.get()
        while True:
            future: asyncio.Future[Flight] = self._loop.create_future()
            if type(give_up) is GiveUp:
                self.request(key, future, bypass, record, self._clock() + self._deadline)
                flight = await self._within(give_up, key, future, stale_ok and not bypass)
            else:
                self.request(key, future, bypass, record, give_up)
                flight = await future
            if flight.error is None:
                if record is not None:
                    record.stale = flight.stale
                if stale_ok or not flight.stale:
                    return flight
                bypass = True
                continue
            raise_unless_again(flight.error, operation, self._clock() < give_up)

    async def _within(
        self, give_up: GiveUp, key: CacheKey, future: asyncio.Future[Flight], stale_ok: bool
    ) -> Flight:
        """The flight for a caller with a time of its own. The lookup may go on for the others."""
        try:
            async with asyncio.timeout(max(0.0, give_up - self._clock())):
                return await future
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()
            return self.given_up(key, give_up, stale_ok)

    def given_up(self, key: CacheKey, give_up: GiveUp, stale_ok: bool) -> Flight:
        """For a caller whose own time is over: a finished flight with an old answer, else with an error."""
        answer = Flight(key, give_up)
        entry = self._cache.stale(key) if stale_ok else None
        if entry is None:
            error = self._dispatch.too_late(self._cache.join(key), give_up.seconds)
            answer.finish(error=error)
        else:
            self._cache.counts.stale += 1
            answer.stale = True
            answer.finish(entry=entry)
        return answer

    async def find_many(
        self,
        keys: Sequence[CacheKey],
        operation: str,
        bypass: bool = False,
        stale_ok: bool = True,
        give_up: float | None = None,
    ) -> list[Flight]:
        """The finished flights of many lookups, in any order; ``stale_ok`` and ``give_up`` as in ``find``.

        Raises what ``find`` raises, for the first that failed.
        """
        if give_up is None:
            give_up = self._clock() + self._deadline
        flights = await self._gather(keys, bypass, give_up)
        if not stale_ok and (old := [flight.key for flight in flights if flight.stale]):
            flights = [flight for flight in flights if not flight.stale]
            flights += await self._gather(old, True, give_up)
        record = CURRENT.get()
        if record is not None:
            record.stale = any(flight.stale for flight in flights)
        for flight in flights:
            if flight.error is not None:
                raise error_for_one(flight.error, operation)
        return flights

    async def _gather(self, keys: Sequence[CacheKey], bypass: bool, give_up: float) -> list[Flight]:
        if type(give_up) is not GiveUp:
            return await self._gather_all(keys, bypass, give_up)
        flights: dict[CacheKey, Flight] = {}
        left = keys
        while left:
            found = await self._gather_within(left, bypass, give_up)
            flights.update((flight.key, flight) for flight in found)
            # As find: with more time than a lookup had, another is made.
            again = self._clock() < give_up
            left = [f.key for f in found if again and isinstance(f.error, StoreUnavailable)]
        return list(flights.values())

    async def _gather_within(
        self, keys: Sequence[CacheKey], bypass: bool, give_up: GiveUp
    ) -> list[Flight]:
        """One try of a caller with a time of its own. The lookups may go on for others."""
        flights: list[Flight] = []
        try:
            async with asyncio.timeout(max(0.0, give_up - self._clock())):
                ends = self._clock() + self._deadline
                return await self._gather_all(keys, bypass, ends, flights)
        except TimeoutError:
            done = {flight.key for flight in flights}
            late = [self.given_up(key, give_up, not bypass) for key in keys if key not in done]
            return flights + late

    async def _gather_all(
        self,
        keys: Sequence[CacheKey],
        bypass: bool,
        give_up: float,
        flights: list[Flight] | None = None,
    ) -> list[Flight]:
        """The finished flights, which are put into ``flights`` as they finish."""
        all_done: asyncio.Future[None] = self._loop.create_future()
        gathering = Gathering(len(keys), all_done, flights)
        record = CURRENT.get()
        plain = heart.begin if heart is not None and record is None and not bypass else None
        for number, key in enumerate(keys, 1):
            if plain is not None and plain(self, key, gathering, give_up):
                pass
            elif bypass or self._cache.join(key) is None:
                self._begin(key, gathering, bypass, record, give_up)
            else:
                self.request(key, gathering, bypass, record, give_up)
            if number % TOGETHER == 0:
                # These leave, and others have their turn, while the next ones are made.
                await asyncio.sleep(0)
        await all_done
        return gathering.flights

    def request(
        self,
        key: CacheKey,
        waiter: Waiter,
        bypass: bool,
        record: CallRecord | None,
        give_up: float,
    ) -> None:
        """Answer ``waiter`` from the flight under way, or from a new one.

        ``bypass``: not from a flight that began before this call. ``record``: the call it is for, as telemetry knows
        it. ``give_up``: the instant until which a new flight may go on.
        """
        cache = self._cache
        if not bypass:
            flight = cache.join(key)
            # One who may be told an old answer does not wait with one who may not.
            if flight is not None and (flight.may_serve_stale or cache.stale(key) is None):
                cache.counts.joined += 1
                flight.add(waiter)
                if record is not None:
                    record.outcome = record.outcome or names.JOINED
                    flight.calls().append(record)
                return
        self._begin(key, waiter, bypass, record, give_up)

    def _begin(
        self,
        key: CacheKey,
        waiter: Waiter,
        bypass: bool,
        record: CallRecord | None,
        give_up: float,
    ) -> None:
        cache = self._cache
        cache.counts.misses += 1
        read = Read(key, give_up, not bypass)
        read.waiters.append(waiter)
        if self._dispatch.closed:
            read.finish(error=RouterClosed())
            return
        if record is not None:
            record.outcome = names.MISS
            read.calls().append(record)
        cache.open(read)
        self._watch(read)
        self._send(read)

    def request_again(
        self,
        key: CacheKey,
        waiter: Waiter,
        bypass: bool,
        record: CallRecord | None,
        give_up: float,
    ) -> None:
        """As ``request``, for a caller that has looked into the cache some time ago: an answer may be there by now."""
        entry = self._cache.fresh(key) if not bypass else None
        if entry is None or self._cache.join(key) is not None:
            self.request(key, waiter, bypass, record, give_up)
            return
        self._cache.counts.hits += 1
        self._cache.counts.inner_hits += 1
        if record is not None:
            record.outcome = record.outcome or names.HIT
        answer = Flight(key, 0.0)
        answer.from_store = False
        answer.waiters.append(waiter)
        answer.finish(entry=entry)
