"""A lasting, pipelined way to one node: one connection at a time, made when needed and again when lost.

What is submitted in one turn of the event loop leaves in one write. What is under way is bounded; the rest waits its
turn and never fails for being too much. A heartbeat (PING) tells a silent peer from an idle one.

A late clock is no silent peer. Where this process was stopped, or its loop held up, the answers may lie in the socket:
they are read, the peer is asked again, and only then called silent.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, Protocol, cast

from .._chance import chance
from .._native import heart
from ..config import RouterConfig
from ..errors import RouterClosed
from ..telemetry.logs import log_fields
from ..telemetry.records import of_no_call
from .connection import (
    Address,
    Connection,
    ConnectionLost,
    HandshakeRefused,
    PlainReplies,
    ReplyTooLarge,
    Token,
    WireSettings,
    ask_for_credentials,
    encode,
)
from .deadlines import LATE
from .resp import MAX_REPLY_BYTES

__all__ = ["Channel", "ChannelObserver", "Request"]

MAX_BATCH_COMMANDS: Final = 256
MAX_BATCH_BYTES: Final = 64 * 1024
_PING: Final = encode("PING")


class Request(Protocol):
    """Commands that travel together, and who wants their replies. Implementations say what to do with them.

    Attributes:
        payload: the commands in RESP.
        commands: how many replies they get.
        sent_at: instant of sending, set by the channel; ``-inf`` before.
    """

    payload: bytes
    commands: int
    sent_at: float

    def abandoned(self, now: float, /) -> bool:
        """True if nobody waits for it any more, or its time has passed. It is then not sent."""
        ...

    def on_reply(self, reply: object, /) -> None:
        """One of ``commands`` replies, in wire order, inside the data callback. Must not raise."""

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        """It will get no (further) reply. ``sent``: the node may have executed it. Must not raise."""


def take_batch_in_python(
    queue: deque[Request], now: float, room: int, max_commands: int, max_bytes: int
) -> tuple[bytes, list[Token], list[Request]]:
    """Take requests from the queue as long as there is room: for ``room`` commands, and until there are
    ``max_commands`` or ``max_bytes``. The last may go beyond. Those that nobody waits for are let go.

    Returns their payloads joined, a token for each command, and the requests, which know now when they were sent.
    """
    payloads: list[bytes] = []
    tokens: list[Token] = []
    requests: list[Request] = []
    size = 0
    while queue and room > 0 and len(tokens) < max_commands and size < max_bytes:
        request = queue.popleft()
        if request.abandoned(now):
            continue
        request.sent_at = now
        payload = request.payload
        payloads.append(payload)
        requests.append(request)
        size += len(payload)
        commands = request.commands
        room -= commands
        tokens.append(request)
        if commands == 2:
            tokens.append(request)
        elif commands > 2:
            tokens += [request] * (commands - 1)
    return b"".join(payloads), tokens, requests


take_batch: Final = take_batch_in_python if heart is None else heart.take_batch
"""The same, by the half that runs."""


class ChannelObserver(Protocol):
    """Follows a channel's connection. Called on the event loop; must not raise."""

    def on_up(self, connection: Connection, setup_replies: list[object], since: float) -> None:
        """Connected; ``since`` is the instant before anything was sent."""

    def on_alive(self, since: float) -> None:
        """A ping sent at ``since`` was answered."""

    def on_gap(self) -> None:
        """This process slept for longer than the heartbeat's bound. The connection is the same; what happened to its
        peer meanwhile is not known.
        """

    def on_push(self, push: list[object]) -> None:
        """An out-of-band message."""

    def on_sent(self, requests: list[Request], connection: Connection) -> None:
        """These have left together."""

    def on_down(self) -> None:
        """The connection is gone."""


class _Ping:
    """One beat of the heart."""

    __slots__ = ("_channel", "sent_at")

    payload: Final = _PING
    commands: Final = 1

    def __init__(self, channel: Channel, sent_at: float) -> None:
        self.sent_at = sent_at
        self._channel = channel

    def on_reply(self, reply: object) -> None:
        self._channel.on_pong(self)

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        """The channel itself is told of the loss."""


class Channel:
    """See the module's docstring.

    Attributes:
        address: the node.
        reachable: False while the last attempt to reach the node failed or the node fell silent.
        reconnects: how often the connection was made again.
    """

    # What the native part reads, where it finds it.
    __slots__ = (
        *("__dict__", "__weakref__"),
        *("_closed", "_flush_scheduled", "_queue", "reachable"),
    )

    def __init__(
        self,
        address: Address,
        settings: WireSettings,
        config: RouterConfig,
        clock: Callable[[], float],
        *,
        observer: ChannelObserver | None = None,
        setup: tuple[bytes, ...] = (),
        any_reply_is_life: bool = False,
        one_batch_at_a_time: bool = False,
        max_reply: int = MAX_REPLY_BYTES,
        plain: PlainReplies | None = None,
    ) -> None:
        self.address = address
        self.reachable = True
        self.reconnects = 0
        self._settings = settings
        self._config = config
        self._log = config.logger_for("store")
        self._clock = clock
        self._observer = observer
        self._setup = setup
        # A lane's heartbeat vouches for its entries, so only a PONG counts there. Elsewhere commands may rightly hold
        # up a PING (WAIT does), and any reply shows that the node lives.
        self._any_reply_is_life = any_reply_is_life
        # A server that waits for replicas reads nothing more from the connection. What would be sent meanwhile does
        # better to wait here: it leaves together, behind one WAIT, and not at all if its caller goes.
        self._one_batch_at_a_time = one_batch_at_a_time
        self._max_reply = max_reply
        self._plain = plain
        self._pings_in_flight = 0
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Request] = deque()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._flush_scheduled = False
        self._alive_until = -inf
        self._asked_again = False
        self._beat_timer: asyncio.TimerHandle | None = None
        self._beat_at = inf
        self._failed_attempts = 0
        self._up_since = -inf
        self._next_attempt = -inf
        self._retiring = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once it was closed, or has closed itself."""
        return self._closed

    @property
    def connection(self) -> Connection | None:
        """The connection in use, None while there is none."""
        return self._connection

    @property
    def in_flight(self) -> int:
        """Commands sent and not answered."""
        return self._connection.in_flight if self._connection is not None else 0

    @property
    def waiting(self) -> int:
        """Requests not sent yet."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """True while nobody waits for anything from it."""
        return not self.in_flight and not self._queue

    @property
    def channel(self) -> Channel:
        """Itself: a set of nodes may hold bare channels (``nodes.Node``)."""
        return self

    def submit(self, request: Request) -> None:
        """Send ``request`` with whatever else comes up in this turn of the loop."""
        if self._closed:
            request.on_lost(RouterClosed(), sent=False)
            return
        self._queue.append(request)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def probe(self) -> None:
        """Start an attempt to connect, unless there is a connection or an attempt already."""
        if self._connection is None:
            self._connect_soon()

    def retire(self) -> None:
        """Close as soon as everything under way is answered."""
        self._retiring = True
        if self.idle:
            self.close()

    def close(self) -> None:
        """End the connection; everything under way or waiting is lost."""
        if self._closed:
            return
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()
        self._lose_queue(RouterClosed())

    async def wait_closed(self) -> None:
        """Wait until nothing of a closed channel runs any more."""
        if self._connecting is not None:
            await asyncio.wait([self._connecting])

    # Sending

    def _flush(self) -> None:
        self._flush_scheduled = False
        connection = self._connection
        if connection is None:
            if self._queue:
                self._connect_soon()
            return
        queue = self._queue
        if self._one_batch_at_a_time and connection.in_flight > self._pings_in_flight:
            return
        room = self._config.max_in_flight - connection.in_flight
        while queue and room > 0:
            data, tokens, requests = take_batch(
                queue, self._clock(), room, MAX_BATCH_COMMANDS, MAX_BATCH_BYTES
            )
            room -= len(tokens)
            if requests:
                connection.send(data, tokens)
                if self._observer is not None:
                    self._observer.on_sent(requests, connection)
                if self._one_batch_at_a_time:
                    return

    # Connecting

    def _connect_soon(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = self._loop.create_task(self._connect(), context=of_no_call())

    async def _connect(self) -> None:
        since = inf
        try:
            pause = self._next_attempt - self._clock()
            if pause > 0:
                await asyncio.sleep(pause)
            credentials = await ask_for_credentials(self.address, self._settings)
            # From here on the time is the node's; that of a credential provider was not.
            since = self._clock()
            connection, replies = await Connection.open(
                self.address,
                self._settings,
                self,
                credentials=credentials,
                setup=self._setup,
                max_reply=self._max_reply,
                plain=self._plain,
            )
        except (ConnectionLost, HandshakeRefused) as error:
            self._connecting = None
            if self._clock() - since > self._settings.connect_timeout + LATE:
                self._connect_soon()  # most of that time nobody waited: see the module's text
            else:
                self._unreachable(error)
        except asyncio.CancelledError:
            self._connecting = None
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits must be told
            # No known error gets here. Whoever waits must still be told.
            self._log.exception(
                "connecting to %s failed",
                self.address,
                extra=log_fields(node=self.address, error=error),
            )
            self._connecting = None
            lost = ConnectionLost(f"{self.address} cannot be connected ({type(error).__name__})")
            lost.__cause__ = error
            self._unreachable(lost)
        else:
            self._connecting = None
            self._up(connection, replies, since)

    def _up(self, connection: Connection, replies: list[object], since: float) -> None:
        if self._closed:
            connection.abort()
            return
        self._connection = connection
        self.reachable = True
        self._up_since = self._clock()
        self._pings_in_flight = 0
        self._asked_again = False
        self._alive_until = since + self._config.cache.heartbeat_timeout
        self._beat_later()
        if self._observer is not None:
            self._observer.on_up(connection, replies, since)
        self._flush()

    def _unreachable(self, error: Exception) -> None:
        self.reachable = False
        self._failed_attempts += 1
        self._set_next_attempt()
        self._lose_queue(error)

    def _set_next_attempt(self) -> None:
        pause = self._config.retry.pause(max(1, self._failed_attempts), chance.random())
        self._next_attempt = self._clock() + pause

    def _lose_queue(self, error: Exception) -> None:
        queue, self._queue = self._queue, deque()
        for request in queue:
            request.on_lost(error, sent=False)

    # Heartbeat

    def _beat_later(self) -> None:
        # Not every loop's timers say themselves when they are due.
        self._beat_at = self._loop.time() + self._config.cache.heartbeat
        self._beat_timer = self._loop.call_later(self._config.cache.heartbeat, self._beat)

    def _beat(self) -> None:
        connection = self._connection
        if connection is None:
            return
        now = self._clock()
        if now >= self._alive_until and not self._overslept(now):
            self.reachable = False
            connection.abort(f"it was silent for {self._config.cache.heartbeat_timeout:g} s")
            return
        ping = _Ping(self, now)
        self._pings_in_flight += 1
        connection.send(ping.payload, (ping,))
        self._beat_later()

    def _overslept(self, now: float) -> bool:
        """True if it is this side that was silent; then the peer has the usual time to answer, from now on, once."""
        if self._asked_again or self._loop.time() - self._beat_at <= LATE:
            return False
        self._asked_again = True
        self._alive_until = now + self._config.cache.heartbeat_timeout
        if self._observer is not None:
            self._observer.on_gap()
        return True

    def on_pong(self, ping: _Ping) -> None:
        """A ping was answered."""
        self._pings_in_flight -= 1
        now = self._clock()
        if now >= self._alive_until and not self._any_reply_is_life and not self._overslept(now):
            # Silent for longer than the bound, and only now heard: what happened meanwhile is not known.
            assert self._connection is not None
            self._connection.abort()
            return
        self._asked_again = False
        answered_until = ping.sent_at + self._config.cache.heartbeat_timeout
        self._alive_until = max(self._alive_until, answered_until)
        if self._observer is not None:
            self._observer.on_alive(ping.sent_at)

    # wire.Receiver

    def on_push(self, push: list[object]) -> None:
        """Hand a push to the observer."""
        if self._observer is not None:
            self._observer.on_push(push)

    def on_read(self) -> None:
        """Replies have made room: send what waits."""
        if self._retiring and self.idle:
            self.close()
            return
        if self._any_reply_is_life:
            self._asked_again = False
            self._alive_until = self._clock() + self._config.cache.heartbeat_timeout
        if self._queue and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def on_lost(self, tokens: deque[Token], error: ConnectionLost) -> None:
        """The connection is gone: whoever waits for a reply is told, and a new one is begun."""
        self._connection = None
        if self._beat_timer is not None:
            self._beat_timer.cancel()
            self._beat_timer, self._beat_at = None, inf
        if self._observer is not None:
            self._observer.on_down()
        told: Request | None = None
        for token in tokens:
            request = cast("Request", token)  # nothing else is sent here
            # The commands of one request stand side by side.
            if request is not told:
                told = request
                request.on_lost(error, sent=True)
            if isinstance(error, ReplyTooLarge):
                error = ConnectionLost(str(error))
        if not self._closed:
            self.reconnects += 1
            # One that ends as soon as it is there has failed as well: it is tried more and more rarely.
            short = self._clock() - self._up_since < self._config.retry.cap
            self._failed_attempts = self._failed_attempts + 1 if short else 0
            # A short random pause, so that a fleet does not come back in step.
            self._set_next_attempt()
            self._connect_soon()
