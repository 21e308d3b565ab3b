"""Lanes that threads use themselves: a few blocking connections beside a primary's lane.

A thread that has to ask takes one that is free, sends its question and waits for the answer, without the event loop.
Their invalidations go to the lane (``CLIENT TRACKING ON REDIRECT``), where the loop handles them like all others. What
keeps the cache true:

- The place of an answer stands in the cache before its question leaves (``cache.Expected``). Whatever changes the key
  meanwhile takes the place away, and the answer is not stored.
- A server forgets what a connection has read when that ends, and then pushes nothing. So these belong to the lane's
  epoch: it ends before one of them is closed, and as soon as one is lost (``EPOLLRDHUP``).
- The heartbeat vouches for the lane *and* for each of these. One that is free and has answered nothing since the last
  beat is asked by the loop. One whose last answer is older than ``heartbeat_timeout`` is lost, whoever has it: a thread
  that is held up, or was interrupted before it could give it back.
- A thread that gives one back in doubt (an exception in the middle, an answer that is not plain) leaves its stream out
  of step. The loop sends a PING with a random token, and drops what arrives before that token.

Who may touch it: the event loop, but for what is said to be for any thread. ``free`` decides who has one: taking an
element out of a list, and putting one in, are single steps.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from .._net.connection import (
    Address,
    Connection,
    ConnectionLost,
    HandshakeRefused,
    Token,
    WireSettings,
    ask_for_credentials,
    encode,
)
from .._net.lineage import ASK_HISTORY, history_of
from ..telemetry.records import of_no_call
from .cache import Epoch

__all__ = ["MAX_QUESTION", "ThreadLanes"]

MAX_LANES: Final = 4
"""For each primary. With more threads than this the loop asks: what they ask then leaves together."""

MAX_QUESTION: Final = 512
"""Bytes of a question that is one segment in any network: a server reads it in one piece, and does nothing else between
its two commands."""

PAUSE: Final = 1.0
"""Seconds until another attempt to connect, after one that failed."""

_MAX_ANSWER: Final = 256
_PLAIN: Final = re.compile(rb"(?:_|\$(?:[1-9]|1[0-8])\r\n([0-9]{1,18}))\r\n:(-?[0-9]{1,15})\r\n")
"""A pod id or nothing, and milliseconds. Anything else the loop asks again, and decides on."""

_POSSIBLE: Final = hasattr(select, "epoll")


class ThreadLane:
    """One blocking connection. Its socket is closed with the last reference: the loop cannot know whether a thread that
    holds it is about to use the descriptor.

    Attributes:
        sock: the socket. Calls on it return after the ``patience`` at the latest.
        peer: address and port of its other end.
        alive_since: when the last question that it has answered was sent. Written by whoever has it.
        over: it is lost; set by the loop, read by any thread.
    """

    __slots__ = ("_expected", "_heard", "_sent", "alive_since", "over", "peer", "sock")

    def __init__(self, sock: socket.socket, seconds: float, since: float) -> None:
        self.sock = sock
        limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        peer = sock.getpeername()
        self.peer = Address(str(peer[0]), int(peer[1]))
        self.alive_since = since
        self.over = False
        self._expected = self._heard = b""
        self._sent = since

    def __del__(self) -> None:
        self.sock.close()

    def ask(self, question: bytes) -> tuple[int | None, int] | None:
        """As ``ThreadLanes.ask``, which calls it. Raises ``OSError``: lost, or silent for too long."""
        if self.sock.send(question) != len(question):
            return None
        plain = _PLAIN.fullmatch(self.sock.recv(_MAX_ANSWER))
        if plain is None:
            return None
        pod, ttl = plain.groups()
        return int(pod) if pod is not None else None, int(ttl)

    def send_token(self, now: float) -> None:
        """Ask for a token that nobody can foresee. Raises ``OSError``."""
        token = secrets.token_hex(8).encode()
        self._expected, self._heard, self._sent = b"\r\n%b\r\n" % token, b"", now
        ping = encode("PING", token)
        if self.sock.send(ping, socket.MSG_DONTWAIT) != len(ping):
            raise BlockingIOError

    def hear_token(self) -> bool:
        """True once the token has come: what was before it is dropped. Raises ``OSError``."""
        try:
            data = self.sock.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionResetError
        self._heard = (self._heard + data)[-len(self._expected) :]
        if self._heard != self._expected:
            return False
        self.alive_since = self._sent
        return True


class ThreadLanes:
    """See the module's docstring. Those beside one lane, in one stretch of its connection.

    Attributes:
        free: those that nobody has. For any thread.
        epoch: the lane's. Written by the loop; any thread reads it before it asks.
        room: another would be connected. Written by the loop, read by any thread.
    """

    def __init__(
        self,
        address: Address,
        settings: WireSettings,
        heartbeat_timeout: float,
        patience: float,
        redirect: int,
        history: tuple[str, ...],
        epoch: Epoch,
        clock: Callable[[], float],
        on_alive: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.free: list[ThreadLane] = []
        self.epoch = epoch
        # A TLS session cannot be handed over.
        self.room = _POSSIBLE and settings.dialer.tls is None
        self._address = address
        self._settings = settings
        self._timeout = heartbeat_timeout
        self._patience = patience
        self._history = history
        self._redirect = encode("CLIENT", "TRACKING", "ON", "REDIRECT", redirect)
        self._clock = clock
        self._on_alive = on_alive
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._all: dict[int, ThreadLane] = {}
        self._hang_ups: select.epoll | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._last_beat = clock()
        self._over = False

    # For any thread

    def take(self) -> ThreadLane | None:
        """One for this thread alone, until ``ask`` gives it back. None if none is free: the next may find one."""
        try:
            lane = self.free.pop()
        except IndexError:
            if self.room:
                self.room = False
                self._on_loop(self._connect_soon)
            return None
        return lane if not lane.over else None

    def ask(self, lane: ThreadLane, question: bytes, now: float) -> tuple[int | None, int] | None:
        """Ask on the one that this thread has taken, and give it back.

        Returns the pod, and the milliseconds that PTTL says. None if no plain answer came.
        """
        in_step = False
        try:
            answer = lane.ask(question)
            if answer is not None:
                lane.alive_since = now
                in_step = True
            return answer
        except OSError:
            return None
        finally:
            if in_step:
                self.free.append(lane)
            else:
                self._on_loop(partial(self._check, lane))

    def _on_loop(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(call)

    # For the loop

    def alive_since(self, since: float) -> float:
        """The instant until which all of them, and the lane with ``since``, are known to have been there."""
        return min([since, *(lane.alive_since for lane in self._all.values())])

    @property
    def in_flight(self) -> int:
        """Commands that threads wait for, about."""
        return 2 * max(0, len(self._all) - len(self.free))

    def beat(self) -> None:
        """See that each is still there."""
        before, self._last_beat = self._last_beat, self._clock()
        for lane in list(self._all.values()):
            if self._last_beat - lane.alive_since > self._timeout:
                self._lose(lane)
            elif lane.alive_since <= before:
                with suppress(ValueError):  # somebody has it
                    self.free.remove(lane)
                    self._check(lane)

    def end(self) -> None:
        """The lane's connection is gone, and its epoch over. Threads that wait for an answer wake up without one."""
        self.room = False
        self._over = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._again is not None:
            self._again.cancel()
        for lane in list(self._all.values()):
            self._shut(lane)
        if self._hang_ups is not None:
            self._loop.remove_reader(self._hang_ups.fileno())
            self._hang_ups.close()
            self._hang_ups = None

    def give_up_after_fork(self) -> None:
        """In a forked child: close the inherited descriptors without a word to the peer."""
        for lane in self._all.values():
            lane.over = True
            lane.sock.close()
        if self._hang_ups is not None:
            self._hang_ups.close()

    # Connecting

    def _connect_soon(self) -> None:
        self._again = None
        if not self._over and self._connecting is None:
            self._connecting = self._loop.create_task(self._connect(), context=of_no_call())

    async def _connect(self) -> None:
        try:
            tracked = await self._connected()
        except (ConnectionLost, HandshakeRefused, OSError):
            self._again = self._loop.call_later(PAUSE, self._make_room)
        else:
            # What refuses tracking here refuses it for as long as the lane lives.
            self.room = tracked and len(self._all) < MAX_LANES
        finally:
            self._connecting = None

    def _make_room(self) -> None:
        self._again = None
        self.room = True

    async def _connected(self) -> bool:
        """Connect one, as the lane is connected. False if the server will not track what it reads."""
        credentials = await ask_for_credentials(self._address, self._settings)
        since = self._clock()
        connection, replies = await Connection.open(
            self._address,
            self._settings,
            _Nobody(),
            credentials=credentials,
            setup=(ASK_HISTORY, self._redirect),
        )
        try:
            history, redirected = replies
            if history_of(history) != self._history:
                # Another server has taken the address. The number of the lane's connection is somebody else's there.
                raise ConnectionLost(f"{self._address} is another server than before")
            if redirected != b"OK":
                return False
            descriptor = connection.duplicate()
        finally:
            connection.abort()
        lane = ThreadLane(socket.socket(fileno=descriptor), self._patience, since)
        if self._hang_ups is None:
            self._hang_ups = select.epoll()
            self._loop.add_reader(self._hang_ups.fileno(), self._on_hang_up)
        self._hang_ups.register(descriptor, select.EPOLLRDHUP)
        self._all[descriptor] = lane
        self.free.append(lane)
        return True

    # Losing

    def _on_hang_up(self) -> None:
        if self._hang_ups is not None:
            for descriptor, _ in self._hang_ups.poll(0):
                lane = self._all.get(descriptor)
                if lane is not None:
                    self._lose(lane)

    def _lose(self, lane: ThreadLane) -> None:
        """Nobody is told any more of what changes among the keys that it has read."""
        if lane.over:
            return
        # First of all: nothing that it has read is served any more.
        self._on_lost()
        self._shut(lane)
        if self._again is None and self._connecting is None and not self._over:
            self._again = self._loop.call_later(PAUSE, self._make_room)

    def _shut(self, lane: ThreadLane) -> None:
        lane.over = True
        descriptor = lane.sock.fileno()
        self._all.pop(descriptor, None)
        with suppress(ValueError):
            self.free.remove(lane)
        self._loop.remove_reader(descriptor)
        if self._hang_ups is not None:
            self._hang_ups.unregister(descriptor)
        with suppress(OSError):
            lane.sock.shutdown(socket.SHUT_RDWR)

    # Asking whether one is still there

    def _check(self, lane: ThreadLane) -> None:
        """Of one that nobody has: bring its stream into step, then it is free."""
        if lane.over:
            return
        try:
            lane.send_token(self._clock())
        except OSError:
            self._lose(lane)
        else:
            self._loop.add_reader(lane.sock.fileno(), self._on_heard, lane)

    def _on_heard(self, lane: ThreadLane) -> None:
        try:
            heard = lane.hear_token()
        except OSError:
            self._lose(lane)
            return
        if heard:
            self._loop.remove_reader(lane.sock.fileno())
            self.free.append(lane)
            self._on_alive()


class _Nobody:
    """Receiver of a connection that is only made."""

    def on_push(self, push: list[object]) -> None:
        """There is nothing that could be pushed yet."""

    def on_read(self) -> None:
        """Nothing is read."""

    def on_lost(self, tokens: deque[Token], error: ConnectionLost) -> None:
        """Whoever has the descriptor finds out."""
