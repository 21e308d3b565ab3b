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
from .keys import link_key_parts, link_prefix, tagged_link_key
from .telemetry import ClientRecord, Telemetry
from .telemetry.records import time_ns
from .types import LaneStats
from .wire import Address, Connection, ReplyError, WireSettings, encode

__all__ = ["Lane", "Read", "ReadOwner"]

_log = logging.getLogger(__name__)

_TRACKING_ON: Final = encode("CLIENT", "TRACKING", "ON")
_ASKING: Final = encode("ASKING")
_GET: Final = b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n"
_PTTL: Final = b"*2\r\n$4\r\nPTTL\r\n$%d\r\n%b\r\n"
_GET_AND_PTTL: Final = _GET + _PTTL
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

    def ask_again(self, read: Read, waiters: list[Waiter]) -> None:
        """To these the answer came too late."""

    def batch_ended(self, batch: ClientRecord, error: Exception | None) -> None:
        """All that left together has been answered, or lost."""


class Lane:
    """See the module's text.

    Attributes:
        channel: the connection.
        cache: where answers go.
        owner: who decides what becomes of reads that got none.
        epoch: the present unbroken stretch.
        tracked: the server pushes invalidations.
    """

    def __init__(
        self,
        address: Address,
        settings: WireSettings,
        config: RouterConfig,
        cache: LookupCache,
        owner: ReadOwner,
        clock: Callable[[], float],
        on_untracked: Callable[[Lane, str], None],
        telemetry: Telemetry,
    ) -> None:
        self._config = config.cache
        self.cache = cache
        self.owner = owner
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
            read.sent = True
        if self._telemetry.tracing:
            record = self._telemetry.batch(
                [read.calls() for read in reads],
                {"GET" if len(read.key) == 3 else "HGETALL" for read in reads},
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


class Read(Flight):
    """A look-up on its way, a ``channel.Request``: GET and PTTL of a link, or HGETALL of a uid's links.

    It travels on one lane at a time. After trouble it sets out again, perhaps on another.

    Attributes:
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
        "commands",
        "epoch",
        "hops",
        "lane",
        "payload",
        "sent_at",
    )

    lane: Lane

    def set_out(self, lane: Lane, tag: bytes, asking: bool = False, hops: int = 0) -> None:
        """Leave on this lane, with whatever else comes up in this turn of the loop; ``tag``: of its key."""
        key = self.key
        if len(key) == 3:
            # Packed by hand, which halves that: every miss comes by here.
            wire_key = tagged_link_key(tag, key[2])
            size = len(wire_key)
            if asking:
                # ASKING holds for the next command only.
                self.payload = (
                    _ASKING + _GET % (size, wire_key) + _ASKING + _PTTL % (size, wire_key)
                )
                self.commands = 4
            else:
                self.payload = _GET_AND_PTTL % (size, wire_key, size, wire_key)
                self.commands = 2
        else:
            get_all = encode("HGETALL", tagged_link_key(tag, ""))
            self.payload = get_all if not asking else _ASKING + get_all
            self.commands = 1 if not asking else 2
        self.lane = lane
        self.epoch = lane.epoch
        self.hops = hops
        self.sent_at = -inf
        self.batch: ClientRecord | None = None
        self.closes_batch = False
        self._asking = asking
        self._skip = False
        self._value: object = None
        self.value_read = self.torn = self.sent = False
        lane.channel.submit(self)

    def wire_key(self) -> str:
        """The key that is read, for errors."""
        return link_prefix(self.key[0], self.key[1]) + "".join(self.key[2:])

    def abandoned(self) -> bool:
        """True once the look-up is over."""
        return self.done

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        """A read can always be sent again."""
        self._end_batch(error)
        if not self.done:
            self.lane.owner.read_lost(self, error)

    def on_reply(self, reply: object) -> None:
        """Store the answer now: the order of the wire is what keeps it true."""
        if self._asking:
            self._skip = not self._skip
            if self._skip:
                return
        if not self.value_read:
            self._value = reply
            self.value_read = True
            if len(self.key) == 3:
                return
            reply = -1
        if self.batch is not None:
            trouble = self._value if isinstance(self._value, ReplyError) else reply
            if isinstance(trouble, ReplyError):
                self.lane.owner.note_error(self.batch, trouble)
            # Before anybody wakes: the batch ends within the calls it serves.
            self._end_batch(None)
        if not self.done:
            self._finish(reply)

    def _end_batch(self, error: Exception | None) -> None:
        if self.batch is not None and self.closes_batch:
            self.lane.owner.batch_ended(self.batch, error)
        self.batch = None

    def _finish(self, ttl: object) -> None:
        value, lane = self._value, self.lane
        trouble = value if isinstance(value, ReplyError) else ttl
        if isinstance(trouble, ReplyError):
            lane.owner.read_failed(self, trouble)
            return
        # What one stretch of the lane asked and another answers, nobody vouches for.
        storable = self.epoch is lane.epoch and not self._asking
        found: Value
        seconds = None
        try:
            if len(self.key) == 2:
                found = replies.links(value, self.wire_key) or None
            else:
                found = replies.pod(value, self.wire_key)
                remaining = ttl if isinstance(ttl, int) else -2
                # Value and TTL are two commands. Where a push came between them, or they contradict each other, the
                # link changed meanwhile: such a pair, a link that never was, is asked for again.
                if self.torn or (found is None) != (remaining == -2):
                    storable = False
                    if self.tears < MAX_TEARS:
                        lane.owner.read_torn(self)
                        return
                if found is not None and remaining >= 0:
                    seconds = remaining / 1000
        except CorruptReply as error:
            lane.cache.fail(self, error)
            return
        again = lane.cache.land(self, found, seconds, self.sent_at, self.epoch, storable)
        if again:
            lane.owner.ask_again(self, again)
