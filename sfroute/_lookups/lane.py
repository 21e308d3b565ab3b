"""A lane: the pipelined, tracked connection that carries lookups to one primary.

The server pushes on it which of the keys read through it have changed (``CLIENT TRACKING ON``, default mode). Replies
and pushes share one stream, and answers are stored inside the data callback in the order of that stream: a push that
arrives after a value is handled after it, so no outdated value can stay.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final, Protocol, cast

from .._chance import chance
from .._contract import replies
from .._contract.error_replies import read_failure
from .._contract.keys import claim_key_parts, link_key_parts, link_prefix
from .._native import heart
from .._net.channel import Channel, Request
from .._net.connection import Address, Connection, ReplyError, WireSettings, encode
from .._net.lineage import ASK_HISTORY, ASK_MEMORY, Lineage, history_of
from ..config import RouterConfig
from ..errors import CorruptReply
from ..telemetry import ClientRecord, Telemetry
from ..telemetry.records import time_ns
from ..types import LaneStats
from .cache import Entry, Epoch, Flight, LookupCache, Value, Waiter
from .packing import after_asking, all_links, value_and_ttl
from .self_report import SelfReport
from .thread_lanes import ThreadLanes

__all__ = ["Lane", "LinkWatcher", "Read", "ReadOwner", "sketch_of_read"]

_TRACKING_ON: Final = encode("CLIENT", "TRACKING", "ON")
_PING: Final = encode("PING")
TRACKING_SINCE: Final = (7,)
"""Redis 6 may put pushes inside the replies of other commands."""


MAX_LOOKUP_BYTES: Final = 4 * 2**20
"""The most bytes of an answer. A link has 19; a uid's links, of ten thousand services, fit in."""

PATIENCE: Final = 0.25
"""Seconds for which a node may say "not now" (LOADING, BUSY) before it counts as out of reach; then it is asked as
often whether that is over."""

TRACK_AGAIN: Final = (0.5, 60.0)
"""Seconds after which tracking that was refused is asked for again: at first, and at most. Each time twice as long."""

MAX_TEARS: Final = 3
"""How often a link that changes while it is read is asked for again; then the value alone is the answer."""


class LinkWatcher(Protocol):
    """Who must know at once what the servers say of links. Called on the event loop, in wire order; must not raise."""

    def link_changed(self, namespace: str, uid: str, service: str) -> None:
        """The server pushed that a link has changed."""

    def hash_changed(self, namespace: str, uid: str) -> None:
        """The server pushed that the hash of a uid's links has changed."""

    def claim_changed(self, namespace: str, uid: str, service: str) -> None:
        """The server pushed that the claim record of a link has changed, or was written again."""

    def lanes_changed(self) -> None:
        """A lane came up, was lost or re-pointed, or said that everything has changed."""


class ReadOwner(Protocol):
    """Decides what becomes of a read that got no answer.

    Attributes:
        watchers: who is told what the servers say.
        lineage: is told what a primary says of its history.
    """

    watchers: list[LinkWatcher]

    @property
    def lineage(self) -> Lineage: ...

    def read_failed(self, read: Read, error: ReplyError) -> None:
        """The store answered with an error."""

    def read_lost(self, read: Read, error: Exception) -> None:
        """The connection was lost, or could not be made."""

    def note_error(self, batch: ClientRecord, error: ReplyError) -> None:
        """One of those that left together was answered with an error."""

    def answers_again(self, lane: Lane) -> None:
        """A lane that was in trouble has given an answer."""

    def read_torn(self, read: Read) -> None:
        """The link changed while it was read."""

    def ask_again(self, read: Read, waiters: list[Waiter]) -> None:
        """To these the answer came too late."""

    def batch_ended(self, batch: ClientRecord, error: Exception | None) -> None:
        """All that left together has been answered, or lost."""


class _Reply:
    """Hands the reply to one command over."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[object], None]) -> None:
        self._then = then

    def on_reply(self, reply: object) -> None:
        self._then(reply)

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        """The lane itself is told of the loss."""


class Lane:
    """See the module's docstring.

    Attributes:
        channel: the connection.
        cache: where answers go.
        owner: who decides what becomes of reads that got none.
        epoch: the present unbroken stretch.
        tracked: the server pushes invalidations.
        not_now: the node has said so for a while; as good as out of reach.
        troubled: it could not be reached, or refused to answer, and has not answered since.
        threads: the lanes that threads use themselves. None while nothing is pushed.
    """

    # What the native part reads, where it finds it.
    __slots__ = ("__dict__", "__weakref__", "channel", "epoch", "not_now")

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
        self.tracked = self.troubled = False
        self.not_now = False
        self._loop = asyncio.get_running_loop()
        self._not_now_timer: asyncio.TimerHandle | None = None
        self._tracking_timer: asyncio.TimerHandle | None = None
        self._track_after = TRACK_AGAIN[0]
        self._alive_since = -inf
        self.threads: ThreadLanes | None = None
        self._of_threads = partial(
            ThreadLanes,
            address,
            settings,
            config.cache.heartbeat_timeout,
            min(config.cache.heartbeat_timeout, config.retry.deadline),
            clock=clock,
            on_alive=self._vouch,
            on_lost=self.repoint,
        )
        self._history: tuple[str, ...] = ()
        self._report = SelfReport(settings.client_name, clock, cache.entries.__len__)
        self.channel = Channel(
            address,
            settings,
            config,
            clock,
            observer=self,
            setup=(
                ASK_HISTORY,
                ASK_MEMORY,
                *((_TRACKING_ON,) if config.cache.tracking else ()),
            ),
            max_reply=MAX_LOOKUP_BYTES,
            plain=partial(heart.land, self) if heart is not None else None,
        )

    @property
    def address(self) -> Address:
        """The primary."""
        return self.channel.address

    def stats(self) -> LaneStats:
        """A snapshot."""
        connected = self.channel.connection is not None
        threads = self.threads
        return LaneStats(
            address=str(self.address),
            connected=connected,
            tracked=self.tracked,
            healthy=connected and self._clock() < self.epoch.healthy_until,
            in_flight=self.channel.in_flight + (threads.in_flight if threads is not None else 0),
            waiting=self.channel.waiting,
            reconnects=self.channel.reconnects,
        )

    def repoint(self) -> None:
        """Slots have moved away: from now on nobody vouches for what was read here."""
        self._renew_epoch(revoked=False)

    def _renew_epoch(self, *, revoked: bool, max_age: float | None = None) -> None:
        previous = self.epoch
        self.epoch = Epoch(previous.max_age if max_age is None else max_age, previous.healthy_until)
        if self.threads is not None:
            self.threads.epoch = self.epoch
        previous.end(revoked=revoked)
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for watcher in self.owner.watchers:
            watcher.lanes_changed()

    # "Not now"

    def refused(self) -> None:
        """The node has said that it answers nothing for now: see whether that lasts."""
        if self._not_now_timer is None:
            self._not_now_timer = self._loop.call_later(PATIENCE, self._ask_whether_now)

    def _ask_whether_now(self) -> None:
        if self.channel.connection is not None:
            self.channel.connection.send(_PING, (_Reply(self._on_whether_now),))

    def _on_whether_now(self, reply: object) -> None:
        """One PING tells for everybody."""
        self.not_now = isinstance(reply, ReplyError)
        self._not_now_timer = None
        if self.not_now:
            self.refused()

    # Tracking that was refused: a right may come, and a busy server has its end

    def _track_later(self) -> None:
        pause = self._track_after * (1.0 - chance.random() / 4)
        self._tracking_timer = self._loop.call_later(pause, self._track)
        self._track_after = min(2 * self._track_after, TRACK_AGAIN[1])

    def _track(self) -> None:
        if self.channel.connection is not None:
            self.channel.connection.send(_TRACKING_ON, (_Reply(self._on_tracked),))

    def _on_tracked(self, reply: object) -> None:
        """Of what was read before this nobody will be told."""
        if reply != b"OK":
            self._track_later()
            return
        self.tracked = True
        self._renew_epoch(revoked=False, max_age=self._config.max_age)
        self._serve_threads(self.channel.connection)
        self._telemetry.lane_up(self.address, tracked=True)

    def _serve_threads(self, connection: Connection | None) -> None:
        if connection is not None and connection.client_id is not None:
            self.threads = self._of_threads(
                redirect=connection.client_id, history=self._history, epoch=self.epoch
            )

    # ChannelObserver

    def on_up(self, connection: Connection, setup_replies: list[object], since: float) -> None:
        """A new stretch begins, tracked if the server can and will."""
        history, memory, *tracking = setup_replies
        # Before anything is asked: whether a link that is not there was forgotten is asked of that.
        self.owner.lineage.connected(self.address, history, memory)
        self._history = history_of(history)
        self.tracked = False
        self._report.begin()
        if not self._config.tracking:
            why = "switched off"
        elif tracking != [b"OK"]:
            why = f"refused ({read_failure(str(tracking[0])).code})"
            if connection.server_version >= TRACKING_SINCE:
                self._track_after = TRACK_AGAIN[0]
                self._track_later()
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
        self._alive_since = since
        if self.tracked:
            self._serve_threads(connection)
        self._telemetry.lane_up(self.address, tracked=self.tracked)
        self._tell_watchers()

    def on_alive(self, since: float) -> None:
        """The heartbeat vouches for the entries a little longer."""
        self._alive_since = since
        if self.threads is not None:
            self.threads.beat()
        self._vouch()
        self._report_invalidations()
        self._report.heartbeat(self.channel.connection, since)

    def _vouch(self) -> None:
        since = self._alive_since
        if self.threads is not None:
            since = self.threads.alive_since(since)
        self.epoch.healthy_until = since + self._config.heartbeat_timeout

    def on_gap(self) -> None:
        """Nobody vouches for what was read before it."""
        self._renew_epoch(revoked=False)

    def _report_invalidations(self) -> None:
        if self._unreported:
            self._telemetry.invalidated(self.address, self._unreported, self._unreported_since)
            self._unreported = 0

    def on_sent(self, requests: list[Request], connection: Connection) -> None:
        """A batch of lookups has left: one span tells of it when the last of them is answered."""
        if heart is not None and not self._telemetry.tracing:
            heart.mark_sent(requests, self.epoch)
            return
        # Claims are confirmed here too, and see to themselves.
        reads = [request for request in requests if type(request) is Read]
        if not reads:
            return
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
            self.cache.wake_watchers()
            self.owner.lineage.everything_changed(self.address)
        elif isinstance(keys, list):
            for key in keys:
                if isinstance(key, bytes):
                    self._on_changed(key)

    def _on_changed(self, key: bytes) -> None:
        watchers = self.owner.watchers
        cached = link_key_parts(key)
        if cached is not None:
            self.cache.invalidated(cached)
            for watcher in watchers:
                if len(cached) == 3:
                    watcher.link_changed(*cached)
                else:
                    watcher.hash_changed(*cached)
        elif watchers and (claim := claim_key_parts(key)) is not None and len(claim) == 3:
            for watcher in watchers:
                watcher.claim_changed(*claim)

    def on_down(self) -> None:
        """The stretch is over."""
        self.tracked = self.not_now = False
        if self.threads is not None:
            self.threads.end()
            self.threads = None
        for timer in (self._not_now_timer, self._tracking_timer):
            if timer is not None:
                timer.cancel()
        self._not_now_timer = self._tracking_timer = None
        self.epoch.end()
        self._report_invalidations()
        self._telemetry.lane_down(self.address)
        self._tell_watchers()


class Read(Flight):
    """A lookup on its way, a ``channel.Request``: GET and PTTL of a link, or HGETALL of a uid's links.

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
            if not asking:
                self.payload = value_and_ttl(tag, key[2])
                self.commands = 2
            else:
                self.payload = after_asking(tag, key[2])
                self.commands = 4
        else:
            self.payload = all_links(tag, asking=asking)
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

    def abandoned(self, now: float) -> bool:
        """True once the lookup is over."""
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
        # It may be large, and the lookup is held for a while.
        self._value = None
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
        if lane.troubled:
            lane.owner.answers_again(lane)
        again = lane.cache.land(self, found, seconds, self.sent_at, self.epoch, storable)
        if again:
            lane.owner.ask_again(self, again)


class _Nowhere:
    """A lane for a read that is never sent."""

    def __init__(self) -> None:
        self.epoch: Epoch | None = None
        self.channel = self

    def submit(self, request: Request) -> None:
        """Let it lie."""


def sketch_of_read() -> Read:
    """What the native part copies: a read of a link that has set out, but for key, deadline, waiters, lane, epoch and
    payload.
    """
    read = Read(("", "", ""), inf)
    read.set_out(cast("Lane", _Nowhere()), b"")
    return read


if heart is not None:
    heart.learn(Read, Entry, Epoch)
