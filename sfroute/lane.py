"""A lane: the pipelined, tracked connection that carries look-ups to one primary.

The server pushes on it which of the keys read through it have changed (``CLIENT TRACKING ON``, default mode). Replies
and pushes share one stream, and answers are stored inside the data callback in the order of that stream: a push that
arrives after a value is handled after it, so no outdated value can stay.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import Final, Protocol, cast

from . import replies
from .cache import Epoch, Flight, LookupCache, Value, Waiter
from .channel import Channel, Request
from .config import RouterConfig
from .errors import CorruptReply
from .keys import link_key_parts, tagged_link_key
from .telemetry import ClientRecord, Telemetry
from .telemetry.records import time_ns
from .types import LaneStats
from .wire import Address, Connection, ReplyError, WireSettings, encode

__all__ = ["Lane", "Read", "ReadOwner"]

_log = logging.getLogger(__name__)

_TRACKING_ON: Final = encode("CLIENT", "TRACKING", "ON")
_ASKING: Final = encode("ASKING")
TRACKING_SINCE: Final = (7,)
"""Redis 6 may put pushes inside the replies of other commands."""


MAX_TEARS: Final = 3
"""How often a link that changes while it is read is asked for again; then the value alone is the answer."""


class ReadOwner(Protocol):
    """Who decides what becomes of a read that got no answer."""

    def read_failed(self, read: Read, error: ReplyError) -> None:
        """The store answered with an error."""

    def read_lost(self, read: Read, error: Exception) -> None:
        """The connection was lost, or could not be made."""

    def note_error(self, batch: ClientRecord, error: ReplyError) -> None:
        """One of those that left together was answered with an error."""

    def read_torn(self, read: Read) -> None:
        """The link changed while it was read."""

    def ask_again(self, flight: Flight, waiters: list[Waiter]) -> None:
        """To these the answer came too late."""

    def batch_ended(self, batch: ClientRecord, error: Exception | None) -> None:
        """All that left together has been answered, or lost."""


class Lane:
    """See the module's text.

    Attributes:
        channel: the connection.
        cache: where answers go.
        epoch: the present unbroken stretch.
        tracked: the server pushes invalidations.
    """

    def __init__(
        self,
        address: Address,
        settings: WireSettings,
        config: RouterConfig,
        cache: LookupCache,
        clock: Callable[[], float],
        on_untracked: Callable[[Lane, str], None],
        telemetry: Telemetry,
    ) -> None:
        self._config = config.cache
        self.cache = cache
        self._clock = clock
        self._on_untracked = on_untracked
        self._telemetry = telemetry
        # Invalidations since the last report, and when the first of them came.
        self._unreported = 0
        self._unreported_since = 0
        self.epoch = Epoch(0.0, -inf)
        self.tracked = False
        self.channel = Channel(
            address,
            settings,
            config,
            clock,
            observer=self,
            setup=(_TRACKING_ON,) if config.cache.tracking else (),
        )

    @property
    def address(self) -> Address:
        """The primary."""
        return self.channel.address

    def stats(self) -> LaneStats:
        """A snapshot."""
        connected = self.channel.connection is not None
        return LaneStats(
            address=str(self.address),
            connected=connected,
            tracked=self.tracked,
            healthy=connected and self._clock() < self.epoch.healthy_until,
            in_flight=self.channel.in_flight,
            waiting=self.channel.waiting,
            reconnects=self.channel.reconnects,
        )

    def repoint(self) -> None:
        """Slots have moved away: from now on nobody vouches for what was read here."""
        self._renew_epoch(revoked=False)

    def _renew_epoch(self, *, revoked: bool) -> None:
        previous = self.epoch
        self.epoch = Epoch(previous.max_age, previous.healthy_until)
        previous.end(revoked=revoked)

    # ChannelObserver

    def on_up(self, connection: Connection, setup_replies: list[object], since: float) -> None:
        """A new stretch begins, tracked if the server can and will."""
        self.tracked = False
        if not self._config.tracking:
            why = "switched off"
        elif setup_replies != [b"OK"]:
            why = f"refused ({str(setup_replies[0]).partition(' ')[0]})"
        elif connection.server_version < TRACKING_SINCE:
            why = "not reliable before Redis 7.0"
        else:
            why = ""
            self.tracked = True
        max_age = self._config.max_age
        if not self.tracked:
            max_age = min(max_age, self._config.max_age_untracked)
            if self._config.tracking:
                self._on_untracked(self, why)
        self.epoch.end()
        self.epoch = Epoch(max_age, since + self._config.heartbeat_timeout)
        self._telemetry.lane_up(self.address, tracked=self.tracked)

    def on_alive(self, since: float) -> None:
        """The heartbeat vouches for the entries a little longer."""
        self.epoch.healthy_until = since + self._config.heartbeat_timeout
        self._report_invalidations()

    def _report_invalidations(self) -> None:
        if self._unreported:
            self._telemetry.invalidated(self.address, self._unreported, self._unreported_since)
            self._unreported = 0

    def on_sent(self, requests: list[Request], connection: Connection) -> None:
        """A batch of look-ups has left: one span tells of it when the last of them is answered."""
        reads = cast("list[Read]", requests)  # nothing else is submitted to a lane
        epoch = self.epoch
        for read in reads:
            read.epoch = epoch
            read.flight.sent = True
        if self._telemetry.tracing:
            record = self._telemetry.batch(
                [read.flight.calls() for read in reads],
                {"GET" if len(read.flight.key) == 3 else "HGETALL" for read in reads},
            )
            if record is not None:
                record.server, record.peer = self.address, connection.peer
                for read in reads:
                    read.batch = record
                reads[-1].closes_batch = True

    def on_push(self, push: list[object]) -> None:
        """Keys have changed; ``None`` instead of keys: all of them (FLUSHALL)."""
        if len(push) != 2 or push[0] != b"invalidate":
            return
        keys = push[1]
        if not self._unreported:
            self._unreported_since = time_ns()
        self._unreported += len(keys) if isinstance(keys, list) else 1
        if keys is None:
            self.cache.counts.invalidations += 1
            self._renew_epoch(revoked=True)
            self.cache.detach_flights()
        elif isinstance(keys, list):
            for key in keys:
                cached = link_key_parts(key) if isinstance(key, bytes) else None
                if cached is not None:
                    self.cache.invalidated(cached)

    def on_down(self) -> None:
        """The stretch is over."""
        self.tracked = False
        self.epoch.end()
        self._report_invalidations()
        self._telemetry.lane_down(self.address)


class Read(Request):
    """The commands of one look-up on one lane: GET and PTTL of a link, or HGETALL of a uid's links.

    Attributes:
        flight: the look-up.
        tag: the hash tag of its key.
        lane: where it travels.
        epoch: the stretch of the lane in which it was sent.
        hops: redirects followed without a pause.
        batch: what telemetry knows of all that left together.
        closes_batch: it is the last of them.
    """

    __slots__ = (
        "_asking",
        "_skip",
        "_value",
        "batch",
        "closes_batch",
        "epoch",
        "flight",
        "hops",
        "lane",
        "owner",
        "tag",
    )

    def __init__(
        self,
        flight: Flight,
        tag: bytes,
        lane: Lane,
        owner: ReadOwner,
        *,
        asking: bool = False,
        hops: int = 0,
    ) -> None:
        key = flight.key
        # Not by way of the base class, and GET and PTTL packed by hand, which halves that: every miss comes by here.
        self.sent_at = -inf
        if len(key) == 3:
            wire_key = tagged_link_key(tag, key[2])
            size = len(wire_key)
            get = b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (size, wire_key)
            pttl = b"*2\r\n$4\r\nPTTL\r\n$%d\r\n%b\r\n" % (size, wire_key)
            # ASKING holds for the next command only.
            self.payload = get + pttl if not asking else _ASKING + get + _ASKING + pttl
            self.commands = 2 if not asking else 4
        else:
            get_all = encode("HGETALL", tagged_link_key(tag, ""))
            self.payload = get_all if not asking else _ASKING + get_all
            self.commands = 1 if not asking else 2
        self.flight = flight
        self.tag = tag
        self.lane = lane
        self.owner = owner
        self.hops = hops
        self.batch: ClientRecord | None = None
        self.closes_batch = False
        self._asking = asking
        self._skip = False
        self.epoch = lane.epoch
        self._value: object = None
        flight.value_read = flight.torn = flight.sent = False

    def wire_key(self) -> str:
        """The key that is read, for errors."""
        service = self.flight.key[2] if len(self.flight.key) == 3 else ""
        return tagged_link_key(self.tag, service).decode()

    def abandoned(self) -> bool:
        """True once the flight is over."""
        return self.flight.done

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        """A read can always be sent again."""
        self._end_batch(error)
        if not self.flight.done:
            self.owner.read_lost(self, error)

    def on_reply(self, reply: object) -> None:
        """Store the answer now: the order of the wire is what keeps it true."""
        if self._asking:
            self._skip = not self._skip
            if self._skip:
                return
        if not self.flight.value_read:
            self._value = reply
            self.flight.value_read = True
            if len(self.flight.key) == 3:
                return
            reply = -1
        if self.batch is not None:
            trouble = self._value if isinstance(self._value, ReplyError) else reply
            if isinstance(trouble, ReplyError):
                self.owner.note_error(self.batch, trouble)
            # Before anybody wakes: the batch ends within the calls it serves.
            self._end_batch(None)
        if not self.flight.done:
            self._finish(reply)

    def _end_batch(self, error: Exception | None) -> None:
        if self.batch is not None and self.closes_batch:
            self.owner.batch_ended(self.batch, error)
        self.batch = None

    def _finish(self, ttl: object) -> None:
        value, flight = self._value, self.flight
        trouble = value if isinstance(value, ReplyError) else ttl
        if isinstance(trouble, ReplyError):
            self.owner.read_failed(self, trouble)
            return
        # What one stretch of the lane asked and another answers, nobody vouches for.
        storable = self.epoch is self.lane.epoch and not self._asking
        cache = self.lane.cache
        try:
            if len(flight.key) == 2:
                links = replies.links(value, self.wire_key)
                self._land(links or None, None, storable=storable)
                return
            pod = replies.pod(value, self.wire_key)
        except CorruptReply as error:
            cache.fail(flight, error)
            return
        remaining = ttl if isinstance(ttl, int) else -2
        # Value and TTL are two commands. Where a push came between them, or they contradict each other, the link
        # changed meanwhile: such a pair, a link that never was, is asked for again.
        whole = not flight.torn and (pod is None) == (remaining == -2)
        if not whole and flight.tears < MAX_TEARS:
            self.owner.read_torn(self)
            return
        seconds = remaining / 1000 if pod is not None and remaining >= 0 else None
        self._land(pod, seconds, storable=storable and whole)

    def _land(self, value: Value, seconds: float | None, *, storable: bool) -> None:
        again = self.lane.cache.land(
            self.flight, value, seconds, self.sent_at, self.epoch, storable=storable
        )
        if again:
            self.owner.ask_again(self.flight, again)
