"""Sends lookups on the lane of their primary, and again after trouble, until their deadline.

While a primary cannot be reached, a lookup takes an old answer if there is one and its caller allows it. Otherwise it
waits and is sent again.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from .._chance import chance
from .._contract.error_replies import Failure, Kind, Step, next_step, read_failure
from .._contract.keys import SLOTS, link_tag, tag_and_slot
from .._contract.replies import corrupt, refused
from .._net.connection import (
    Address,
    HandshakeRefused,
    ReplyError,
    ReplyTooLarge,
    WireSettings,
)
from .._net.deadlines import Deadlines
from .._net.lineage import Lineage
from .._net.nodes import Nodes
from .._net.outage import Outage
from .._net.topology import Topology
from .._net.trouble import trouble
from ..config import RouterConfig
from ..errors import RouterClosed, StoreError, StoreUnavailable
from ..telemetry import ClientRecord, Retry, Telemetry, names
from ..telemetry.records import time_ns
from .cache import Flight, LookupCache, Waiter
from .lane import Lane, LinkWatcher, Read

__all__ = ["Dispatch"]

NO_OWNER = "no owner"
"""Why a lookup of a slot that nobody serves is made again."""

LOOKUPS = "lookups"
"""Who says that a place cannot be reached."""


class Dispatch:
    """Sends lookups, and decides about those that got no answer: a ``lane.ReadOwner``; see the module's docstring.

    Attributes:
        lanes: one for each primary.
        lineage: what the primaries say of their history.
        watchers: who is told what the servers say of links.
        deadlines: of the lookups that have begun.
        closed: nothing is sent any more.
    """

    # What the native part reads, where it finds it.
    __slots__ = ("__dict__", "__weakref__", "_lane_of_slot", "closed", "deadlines")

    def __init__(
        self,
        topology: Topology,
        lineage: Lineage,
        settings: WireSettings,
        config: RouterConfig,
        cache: LookupCache,
        clock: Callable[[], float],
        retries: Counter[str],
        telemetry: Telemetry,
        outage: Outage,
    ) -> None:
        self._topology = topology
        self.lineage = lineage
        self._settings = settings
        self._config = config
        self._cache = cache
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._retries = retries
        self._telemetry = telemetry
        self._log = config.logger_for("lookups")
        self._outage = outage
        self._deadline = config.retry.deadline
        self.lanes = Nodes(topology, self._make_lane)
        # What topology and lanes say of the slots whose range was asked for lately: every miss comes by here.
        self._lane_of_slot: list[Lane | None] = [None] * SLOTS
        self._parked: list[Read] = []
        self._parked_rounds = 0
        self._unpark_timer: asyncio.TimerHandle | None = None
        self._unpark_at = 0.0
        self.deadlines = Deadlines(clock, self._expire)
        self._warned_untracked = False
        self.closed = False
        self.watchers: list[LinkWatcher] = []
        topology.on_change(self._on_topology_change)
        topology.on_wrong_peer(self._on_wrong_peer)

    async def close(self) -> None:
        """End all lanes; lookups under way fail with ``RouterClosed``."""
        self.closed = True
        if self._unpark_timer is not None:
            self._unpark_timer.cancel()
        for read in self.deadlines.close():
            self._cache.fail(read, RouterClosed())
        self.lanes.close()
        await self.lanes.wait_closed()

    def give_up_after_fork(self) -> None:
        """In a forked child: give up every inherited socket."""
        self.lanes.give_up_after_fork()
        for lane in self.lanes:
            if lane.threads is not None:
                lane.threads.give_up_after_fork()

    # Sending

    def send(self, read: Read, hops: int = 0) -> None:
        """Send it on the lane of its primary. Where that is unknown or out of reach, take an old answer or wait."""
        tag, slot = tag_and_slot(read.key[0], read.key[1])
        lane = self._lane_of_slot[slot] or self.lane_of(slot)
        if lane is None:
            self._topology.refresh_soon()
            self._outage.began((slot, LOOKUPS), NO_OWNER)
            self._wait_or_serve_stale(read, NO_OWNER)
            return
        if (lane.not_now or not lane.channel.reachable) and self._serve_stale(read):
            if not lane.troubled:
                # It was lost while nothing was asked on it; threads ask elsewhere.
                self._trouble(lane, "connection")
            # Nobody waits any more. One attempt to connect, or one PING, tells for all when the node is back.
            self._topology.refresh_soon(lane.address)
            lane.channel.probe()
            return
        read.set_out(lane, tag, False, hops)

    def connect_to_all(self) -> None:
        """Connect a lane to every primary, so that its loss is noticed."""
        for address in self._topology.primaries():
            self.lanes.at(address).channel.probe()

    def known_lane(self, slot: int) -> Lane | None:
        """The lane that the last lookup of the slot took. Any thread may call this."""
        return self._lane_of_slot[slot]

    def lane_of(self, slot: int) -> Lane | None:
        """The lane of the slot's primary, None while none is known. Raises ``RouterClosed`` after ``close``."""
        lane = self._lane_of_slot[slot]
        if lane is None:
            address = self._topology.address_of(slot)
            if address is None:
                return None
            if self._outage.places:
                self._served_again()
            lane = self.lanes.at(address)
            around = self._topology.range_of(slot)
            self._lane_of_slot[around.start : around.stop] = [lane] * len(around)
        return lane

    def _make_lane(self, address: Address) -> Lane:
        return Lane(
            address,
            self._settings,
            self._config,
            self._cache,
            self,
            self._clock,
            self._on_untracked,
            self._telemetry,
        )

    def _serve_stale(self, flight: Flight) -> bool:
        """End the flight with an old entry, if there is one that may be served."""
        entry = self._cache.stale(flight.key) if flight.may_serve_stale else None
        if entry is None:
            return False
        self._cache.counts.stale += len(flight.waiters)
        self._cache.land_stale(flight, entry)
        return True

    def _wait_or_serve_stale(self, read: Read, reason: str, cause: Exception | None = None) -> None:
        if not self._serve_stale(read):
            self._park(read, reason, cause)

    # Trouble

    def read_lost(self, read: Read, error: Exception) -> None:
        """The lane's connection is gone, or cannot be made."""
        if isinstance(error, ReplyTooLarge):
            self._cache.fail(read, corrupt(read.wire_key(), "more bytes than a link has"))
            return
        servable = read.may_serve_stale and self._cache.stale(read.key)
        if isinstance(error, HandshakeRefused) and not servable and not error.may_pass:
            no_entry = StoreError(str(error), operation="lookup", retryable=False)
            no_entry.__cause__ = error
            self._cache.fail(read, no_entry)
            return
        self._topology.refresh_soon(read.lane.address)
        if read.lane.channel.reachable:
            self._park(read, "connection", error)
        else:
            self._trouble(read.lane, "connection")
            self._wait_or_serve_stale(read, "connection", error)

    def _trouble(self, lane: Lane, reason: str) -> None:
        # Nobody misses a node that serves no slots.
        if lane.address in self._topology.primaries():
            lane.troubled = True
            self._outage.began((lane.address, LOOKUPS), reason)

    def answers_again(self, lane: Lane) -> None:
        """A lane that was in trouble has given an answer."""
        lane.troubled = False
        self._outage.over((lane.address, LOOKUPS))

    def _served_again(self) -> None:
        """End the trouble of slots that have a primary again."""
        for where, who in list(self._outage.places):
            if isinstance(where, int) and self._topology.address_of(where) is not None:
                self._outage.over((where, who))

    def read_torn(self, read: Read) -> None:
        """The link changed while it was read: everyone who waits asks again."""
        self._note_retry(read, "changed")
        # In what is left of its time. A caller with more time than this lookup had asks again (find).
        self.ask_again(read, self._cache.leave(read), give_up=read.deadline)

    def ask_again(self, read: Read, waiters: list[Waiter], *, give_up: float | None = None) -> None:
        """Let these wait for a newer lookup: the one under way, or another, until ``give_up``."""
        newer = self._cache.join(read.key)
        opened = None
        if newer is None:
            if give_up is None:
                give_up = self._clock() + self._deadline
            newer = opened = self._cache.open(Read(read.key, give_up, read.may_serve_stale))
        newer.tears = max(newer.tears, read.tears + 1)
        if read.records:
            newer.calls().extend(read.records)
        for waiter in waiters:
            newer.add(waiter)
        if opened is not None:
            self.deadlines.watch(opened)
            self.send(opened)

    def batch_ended(self, batch: ClientRecord, error: Exception | None) -> None:
        """All that left together has been answered, or lost."""
        self._telemetry.client_ended(batch, error)

    def note_error(self, batch: ClientRecord, error: ReplyError) -> None:
        """One of those that left together was answered with an error."""
        failure = read_failure(str(error))
        if failure.kind in {Kind.CORRUPT, Kind.FATAL}:
            batch.status_code = failure.code
        else:
            batch.retried(Retry(time_ns(), failure.code, batch.server, 0.0))

    def read_failed(self, read: Read, error: ReplyError) -> None:
        """The store answered with an error."""
        failure = self._topology.heed(error, read.lane.address)
        step = next_step(failure, read.hops)
        if step is Step.FOLLOW:
            self._follow(read, failure)
        elif step is Step.PAUSE:
            self._topology.refresh_soon()
            # Servers' texts may echo arguments, and so a uid: only the code becomes a cause.
            cause = ReplyError(failure.code)
            if failure.not_now:
                read.lane.refused()
            if failure.no_primary or read.lane.not_now:
                self._trouble(read.lane, failure.code)
                self._wait_or_serve_stale(read, failure.code, cause)
            else:
                self._park(read, failure.code, cause)
        elif failure.kind is Kind.CORRUPT:
            self._cache.fail(read, corrupt(read.wire_key(), "a value of another type"))
        else:
            self._cache.fail(read, refused(failure, "lookup", str(read.lane.address)))

    def _follow(self, read: Read, failure: Failure) -> None:
        self._note_retry(read, failure.code)
        hops = read.hops + 1
        if failure.kind is Kind.ASK:
            lane = self.lanes.at(Address(failure.host, failure.port))
            read.set_out(lane, link_tag(read.key[0], read.key[1]), True, hops)
        else:
            # The slot map has learnt where the slot is.
            self.send(read, hops)

    def _park(self, read: Read, reason: str, cause: Exception | None = None) -> None:
        """Send again after a pause."""
        read.last_error = cause or read.last_error
        if self.closed:
            self._note_retry(read, reason)
            self._cache.fail(read, RouterClosed())
            return
        self._parked.append(read)
        if self._unpark_timer is None:
            self._parked_rounds += 1
            pause = self._config.retry.pause(self._parked_rounds, chance.random())
            # Not every loop's timers say themselves when they are due.
            self._unpark_at = self._loop.time() + pause
            self._unpark_timer = self._loop.call_later(pause, self._unpark)
        self._note_retry(read, reason, max(0.0, self._unpark_at - self._loop.time()))

    def _note_retry(self, read: Read, reason: str, pause: float = 0.0) -> None:
        self._retries[reason] += 1
        if read.records:
            node = None if reason == NO_OWNER else read.lane.address
            retry = Retry(time_ns(), reason, node, pause)
            for record in read.records:
                record.retried(retry)

    def _unpark(self) -> None:
        self._unpark_timer = None
        parked, self._parked = self._parked, []
        for read in parked:
            if not read.done:
                self.send(read)
        # Further failures of this round come after this turn. A quiet round starts over.
        self._loop.call_later(self._config.retry.cap * 2, self._calm_down)

    def _calm_down(self) -> None:
        if self._unpark_timer is None:
            self._parked_rounds = 0

    # Deadlines

    def _expire(self, read: Read) -> None:
        # No answer in time counts as a store that is out of reach.
        if not self._serve_stale(read):
            self._cache.fail(read, self.too_late(read, self._deadline))

    @staticmethod
    def too_late(flight: Flight | None, seconds: float) -> StoreUnavailable:
        """The error of a caller who had this many seconds, and has waited for ``flight`` last."""
        why, cause = "the store may be slow", None
        if flight is not None:
            lane: Lane | None = getattr(flight, "lane", None)  # it may never have set out
            cause = flight.last_error
            why = trouble(lane.address if lane is not None else None, cause)
        error = StoreUnavailable(
            f"no answer within {seconds:g} s that could be used; {why}", operation="lookup"
        )
        error.__cause__ = cause
        return error

    # Notices

    def _on_topology_change(self, losers: set[Address]) -> None:
        self._lane_of_slot = [None] * SLOTS
        serving = self._topology.primaries()
        self._telemetry.topology_changed(len(losers), len(serving))
        self._outage.keep_only(serving)
        for address in losers:
            lane = self.lanes.get(address)
            if lane is not None:
                lane.repoint()
        self.lanes.drop(losers - serving)
        for watcher in self.watchers:
            watcher.lanes_changed()

    def _on_wrong_peer(self, address: Address) -> None:
        self._lane_of_slot = [None] * SLOTS
        lane = self.lanes.get(address)
        if lane is not None:
            lane.repoint()
        self.lanes.renew(address)

    def _on_untracked(self, lane: Lane, why: str) -> None:
        if not self._warned_untracked:
            self._warned_untracked = True
            self._log.warning(
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
