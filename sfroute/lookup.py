"""Look-ups: the local cache in front of one lane per primary.

A look-up that the cache cannot answer joins the flight of its key, or opens one. A flight outlives redirects, lost
connections and failovers until its deadline; a caller who gives up disturbs neither it nor the others. While a primary
cannot be reached, known answers are served marked stale.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence

from .cache import CacheKey, Entry, Flight, LookupCache, Waiter
from .channel import MAX_STRAYS, idle_strays
from .config import RouterConfig
from .deadlines import Deadlines
from .errors import RouterClosed, StoreError, StoreUnavailable
from .failures import Failure, Kind, read_failure
from .keys import link_tag, tag_and_slot
from .lane import Lane, Read
from .reasons import in_brackets
from .replies import corrupt, refused
from .telemetry import CURRENT, CallRecord, ClientRecord, Telemetry, names
from .topology import Topology
from .types import LaneStats
from .wire import Address, HandshakeRefused, ReplyError, WireSettings

__all__ = ["Lookups", "entry_of", "error_for_one", "raise_unless_again"]

_log = logging.getLogger(__name__)

MAX_HOPS = 3
"""Redirects followed at once; further ones after a pause, since the cluster is being rearranged."""

TOGETHER = 256
"""Look-ups of a batch that are begun in one turn of the event loop."""


class _Gathering:
    """Waits for many flights with one future.

    Attributes:
        done: as a waiter's; the future's own, without a frame of Python.
        flights: those that are over.
    """

    def __init__(self, expected: int, all_done: asyncio.Future[None]) -> None:
        self.done = all_done.done
        self.flights: list[Flight] = []
        self._all_done = all_done
        self._expected = expected

    def set_result(self, result: Flight) -> None:
        flights = self.flights
        flights.append(result)
        if len(flights) == self._expected:
            self._all_done.set_result(None)


class Lookups:
    """See the module's text."""

    def __init__(
        self,
        topology: Topology,
        settings: WireSettings,
        config: RouterConfig,
        cache: LookupCache,
        clock: Callable[[], float],
        retries: Counter[str],
        telemetry: Telemetry,
    ) -> None:
        self._topology = topology
        self._settings = settings
        self._config = config
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.cache = cache
        self._retries = retries
        self._telemetry = telemetry
        self._deadline = config.retry.deadline
        self._lanes: dict[Address, Lane] = {}
        # What topology and lanes say of the slots asked for lately: every miss comes by here.
        self._lane_of_slot: dict[int, Lane] = {}
        self._parked: list[Read] = []
        self._parked_rounds = 0
        self._unpark_timer: asyncio.TimerHandle | None = None
        self._deadlines = Deadlines(clock, self._expire)
        self._warned_untracked = False
        self._closed = False
        topology.on_change(self._on_topology_change)

    # For the router

    def open(self, key: CacheKey, now: float) -> asyncio.Future[Flight] | None:
        """The future of a new look-up, which may fail and then has an ``error``; None if there is one to join.

        For a call of which telemetry need not know: ``find`` without a coroutine. Who opens a look-up has no more time
        than it, so an error is final.
        """
        if self.cache.join(key) is not None:
            return None
        future: asyncio.Future[Flight] = self._loop.create_future()
        self._begin(key, future, False, None, now + self._deadline)
        return future

    async def find(self, key: CacheKey, operation: str, bypass: bool = False) -> Flight:
        """The finished flight of a look-up made for a public ``operation``.

        Raises ``StoreUnavailable``, ``CorruptReply``, another ``StoreError``, or ``RouterClosed``.
        """
        give_up = self._clock() + self._deadline
        record = CURRENT.get()
        while True:
            future: asyncio.Future[Flight] = self._loop.create_future()
            self.request(key, future, bypass, record, give_up)
            flight = await future
            if flight.error is None:
                if record is not None:
                    record.stale = flight.stale
                return flight
            raise_unless_again(flight.error, operation, self._clock() < give_up)

    async def find_many(
        self, keys: Sequence[CacheKey], operation: str, bypass: bool = False
    ) -> list[Flight]:
        """The finished flights of many look-ups, in any order. Raises what ``find`` raises, for the first that
        failed.
        """
        all_done: asyncio.Future[None] = self._loop.create_future()
        gathering = _Gathering(len(keys), all_done)
        give_up = self._clock() + self._deadline
        record = CURRENT.get()
        for number, key in enumerate(keys, 1):
            if bypass or self.cache.join(key) is None:
                self._begin(key, gathering, bypass, record, give_up)
            else:
                self.request(key, gathering, bypass, record, give_up)
            if number % TOGETHER == 0:
                # These leave, and others have their turn, while the next ones are made.
                await asyncio.sleep(0)
        await all_done
        flights = gathering.flights
        if record is not None:
            record.stale = any(flight.stale for flight in flights)
        for flight in flights:
            if flight.error is not None:
                raise error_for_one(flight.error, operation)
        return flights

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
        cache = self.cache
        if not bypass:
            flight = cache.join(key)
            if flight is not None:
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
        cache = self.cache
        cache.counts.misses += 1
        read = Read(key, give_up, not bypass)
        read.waiters.append(waiter)
        if self._closed:
            read.finish(error=RouterClosed())
            return
        if record is not None:
            record.outcome = names.MISS
            read.calls().append(record)
        cache.open(read)
        self._deadlines.watch(read)
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
        entry = self.cache.fresh(key) if not bypass else None
        if entry is None or self.cache.join(key) is not None:
            self.request(key, waiter, bypass, record, give_up)
            return
        self.cache.counts.hits += 1
        if record is not None:
            record.outcome = record.outcome or names.HIT
        answer = Flight(key, 0.0)
        answer.from_store = False
        answer.waiters.append(waiter)
        answer.finish(entry=entry)

    def lanes(self) -> tuple[LaneStats, ...]:
        """A snapshot of every lane."""
        # A list first: metrics are read from other threads.
        return tuple(lane.stats() for lane in list(self._lanes.values()))

    async def close(self) -> None:
        """End all lanes; look-ups under way fail with ``RouterClosed``."""
        self._closed = True
        if self._unpark_timer is not None:
            self._unpark_timer.cancel()
        for read in self._deadlines.close():
            self.cache.fail(read, RouterClosed())
        lanes = list(self._lanes.values())
        self._lanes.clear()
        for lane in lanes:
            lane.channel.close()
        for lane in lanes:
            await lane.channel.wait_closed()

    def connections_after_fork(self) -> None:
        """In a forked child: give up every inherited socket."""
        for lane in self._lanes.values():
            if lane.channel.connection is not None:
                lane.channel.connection.detach_after_fork()

    # Sending

    def _send(self, read: Read, hops: int = 0) -> None:
        tag, slot = tag_and_slot(read.key[0], read.key[1])
        lane = self._lane_of_slot.get(slot)
        if lane is None:
            address = self._topology.address_of(slot)
            if address is None:
                self._topology.refresh_soon()
                self._wait_or_serve_stale(read, "no owner")
                return
            lane = self._lane_of_slot[slot] = self._lane(address)
        if not lane.channel.reachable and self._serve_stale(read):
            # Nobody waits any more; one attempt to connect tells for all of them when the node is back.
            self._topology.refresh_soon(lane.address)
            lane.channel.probe()
            return
        read.set_out(lane, tag, False, hops)

    def _lane(self, address: Address) -> Lane:
        lane = self._lanes.get(address)
        if lane is None:
            if len(self._lanes) >= MAX_STRAYS:
                channels = {other: lane.channel for other, lane in self._lanes.items()}
                for stray in idle_strays(channels, self._topology.primaries()):
                    self._lanes.pop(stray).channel.close()
            lane = self._lanes[address] = Lane(
                address,
                self._settings,
                self._config,
                self.cache,
                self,
                self._clock,
                self._on_untracked,
                self._telemetry,
            )
        return lane

    def _serve_stale(self, flight: Flight) -> bool:
        """End the flight with an old entry, if there is one that may be served."""
        entry = self.cache.stale(flight.key) if flight.may_serve_stale else None
        if entry is None:
            return False
        self.cache.counts.stale += len(flight.waiters)
        self.cache.land_stale(flight, entry)
        return True

    def _wait_or_serve_stale(self, read: Read, reason: str, cause: Exception | None = None) -> None:
        if not self._serve_stale(read):
            self._park(read, reason, cause)

    # Trouble

    def read_lost(self, read: Read, error: Exception) -> None:
        """The lane's connection is gone, or cannot be made."""
        servable = read.may_serve_stale and self.cache.stale(read.key)
        if isinstance(error, HandshakeRefused) and not servable:
            no_entry = StoreError(str(error), operation="lookup", retryable=False)
            no_entry.__cause__ = error
            self.cache.fail(read, no_entry)
            return
        self._topology.refresh_soon(read.lane.address)
        if read.lane.channel.reachable:
            self._park(read, "connection", error)
        else:
            self._wait_or_serve_stale(read, "connection", error)

    def read_torn(self, read: Read) -> None:
        """The link changed while it was read: everyone who waits asks again."""
        self._note_retry(read, "changed")
        # In what is left of its time: whoever has more than this look-up had asks again (find).
        self.ask_again(read, self.cache.leave(read), give_up=read.deadline)

    def ask_again(self, read: Read, waiters: list[Waiter], *, give_up: float | None = None) -> None:
        """Let these wait for a newer look-up: the one under way, or another, until ``give_up``."""
        newer = self.cache.join(read.key)
        opened = None
        if newer is None:
            if give_up is None:
                give_up = self._clock() + self._deadline
            newer = opened = self.cache.open(Read(read.key, give_up, read.may_serve_stale))
        newer.tears = max(newer.tears, read.tears + 1)
        if read.records:
            newer.calls().extend(read.records)
        for waiter in waiters:
            newer.add(waiter)
        if opened is not None:
            self._deadlines.watch(opened)
            self._send(opened)

    def batch_ended(self, batch: ClientRecord, error: Exception | None) -> None:
        """All that left together has been answered, or lost."""
        self._telemetry.batch_ended(batch, error)

    def note_error(self, batch: ClientRecord, error: ReplyError) -> None:
        """One of those that left together was answered with an error."""
        failure = read_failure(str(error))
        if failure.kind in {Kind.CORRUPT, Kind.FATAL}:
            batch.status_code = failure.code
        else:
            batch.retried(failure.code)

    def read_failed(self, read: Read, error: ReplyError) -> None:
        """The store answered with an error."""
        failure = read_failure(str(error))
        # Servers' texts may echo arguments, and so a uid: only the code becomes a cause.
        cause = ReplyError(failure.code)
        if failure.kind is Kind.MOVED and self._topology.learn(
            failure.slot, _target(failure, read)
        ):
            self._retry_at_once(read, failure)
        elif failure.kind is Kind.ASK:
            self._follow_ask(read, failure)
        elif failure.kind in {Kind.WAIT, Kind.RELOCATE}:
            self._topology.refresh_soon()
            if failure.code in {"CLUSTERDOWN", "MASTERDOWN"}:
                self._wait_or_serve_stale(read, failure.code, cause)
            else:
                self._park(read, failure.code, cause)
        elif failure.kind is Kind.CORRUPT:
            self.cache.fail(read, corrupt(read.wire_key(), "another type of value"))
        else:
            self.cache.fail(read, refused(failure, "lookup"))

    def _retry_at_once(self, read: Read, failure: Failure) -> None:
        if read.hops >= MAX_HOPS:
            self._park(read, failure.code)
            return
        self._note_retry(read, failure.code)
        self._send(read, read.hops + 1)

    def _follow_ask(self, read: Read, failure: Failure) -> None:
        if read.hops >= MAX_HOPS:
            self._park(read, failure.code)
            return
        self._note_retry(read, failure.code)
        tag = link_tag(read.key[0], read.key[1])
        read.set_out(self._lane(_target(failure, read)), tag, True, read.hops + 1)

    def _park(self, read: Read, reason: str, cause: Exception | None = None) -> None:
        """Send again after a pause."""
        self._note_retry(read, reason)
        read.last_error = cause or read.last_error
        if self._closed:
            self.cache.fail(read, RouterClosed())
            return
        self._parked.append(read)
        if self._unpark_timer is None:
            self._parked_rounds += 1
            pause = self._config.retry.pause(self._parked_rounds, random.random())
            self._unpark_timer = self._loop.call_later(pause, self._unpark)

    def _note_retry(self, flight: Flight, reason: str) -> None:
        self._retries[reason] += 1
        for record in flight.records or ():
            record.retries.append(reason)

    def _unpark(self) -> None:
        self._unpark_timer = None
        parked, self._parked = self._parked, []
        for read in parked:
            if not read.done:
                self._send(read)
        # Further failures of this round come later than this turn; a quiet round starts over.
        self._loop.call_later(self._config.retry.cap * 2, self._calm_down)

    def _calm_down(self) -> None:
        if self._unpark_timer is None:
            self._parked_rounds = 0

    # Deadlines

    def _expire(self, read: Read) -> None:
        # No answer in time is the store out of reach, too.
        if not self._serve_stale(read):
            self.cache.fail(read, self._too_late(read))

    def _too_late(self, flight: Flight) -> StoreUnavailable:
        error = StoreUnavailable(
            f"no answer within {self._deadline:g} s; the store may be down or failing over"
            f"{in_brackets(flight.last_error)}",
            operation="lookup",
        )
        error.__cause__ = flight.last_error
        return error

    # Notices

    def _on_topology_change(self, losers: set[Address]) -> None:
        self._lane_of_slot.clear()
        serving = self._topology.primaries()
        self._telemetry.topology_changed(len(losers), len(serving))
        for address in losers:
            lane = self._lanes.get(address)
            if lane is None:
                continue
            lane.repoint()
            if address not in serving:
                del self._lanes[address]
                lane.channel.close()

    def _on_untracked(self, lane: Lane, why: str) -> None:
        if not self._warned_untracked:
            self._warned_untracked = True
            _log.warning(
                "%s does not push invalidations (CLIENT TRACKING is %s): cached links may be up to %g s old",
                lane.address,
                why,
                min(self._config.cache.max_age, self._config.cache.max_age_untracked),
                extra={
                    names.SERVER_ADDRESS: lane.address.host,
                    names.SERVER_PORT: lane.address.port,
                    names.REASON: why,
                },
            )


def _target(failure: Failure, read: Read) -> Address:
    return Address(failure.host or read.lane.address.host, failure.port)


def entry_of(flight: Flight, operation: str) -> Entry:
    """The answer of a finished flight. Raises its error if it has failed."""
    if flight.entry is None:
        assert flight.error is not None
        raise error_for_one(flight.error, operation)
    return flight.entry


def raise_unless_again(error: Exception, operation: str, time_left: bool) -> None:
    """Raise a flight's error, unless its caller, having joined late, has more time than the flight had."""
    if not (time_left and isinstance(error, StoreUnavailable)):
        raise error_for_one(error, operation)


def error_for_one(error: Exception, operation: str) -> Exception:
    """A copy to raise: one exception raised by many callers would collect all their tracebacks."""
    own = copy.copy(error)
    if isinstance(own, StoreError):
        own.operation = operation
    own.__cause__ = error.__cause__
    return own
