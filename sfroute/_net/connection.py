"""One RESP3 connection, pipelined: commands out, replies back in the order of the commands, pushes in between.

It knows nothing of lookups, slots or retries. Replies and pushes are handed over inside the data callback, in wire
order: that order is what makes the local cache coherent (no stale value can be stored after its invalidation was read).

Who may touch it: only the event loop it was opened on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import hiredis

from .._contract.error_replies import known_code
from .causes import in_brackets
from .credentials import Credentials, CredentialsSource, NoCredentials
from .dialer import Address, Dialer
from .resp import MAX_REPLY_BYTES, BoundedReader, TooMuch

__all__ = [
    "Address",
    "Connection",
    "ConnectionLost",
    "Credentials",
    "HandshakeRefused",
    "PlainReplies",
    "Receiver",
    "ReplyError",
    "ReplyTooLarge",
    "Token",
    "WireSettings",
    "ask_for_credentials",
    "encode",
    "renaming",
]

ReplyError = hiredis.ReplyError
"""An error reply; arrives as a value, never raised."""

READ_BYTES: Final = 8 * 1024
"""The most bytes read, parsed and handed over in one turn of the event loop: a hundred pushes, or the answers to six
hundred lookups. More would block the loop for milliseconds. Less would slow down only replies far larger than ours."""

_NOTHING: Final = object()
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing the socket discards undelivered data and sends the peer a reset."""


class ConnectionLost(Exception):
    """The connection ended before a reply came."""


class ReplyTooLarge(ConnectionLost):
    """The connection was closed because a reply was larger than any honest one.

    Only the command that the reply belongs to gets this error. The others get ``ConnectionLost``.
    """


class HandshakeRefused(Exception):
    """The handshake failed with an error that connecting again will not fix.

    Attributes:
        code: the server's own code, such as ``"WRONGPASS"``. Empty if the server did not refuse it.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code

    @property
    def may_pass(self) -> bool:
        """True if the password may be in rotation: servers and providers then disagree for a moment."""
        return self.code in {"WRONGPASS", "NOAUTH"}


@dataclass(frozen=True, slots=True)
class WireSettings:
    """What every connection to the store shares. ``repr`` shows no secret.

    Attributes:
        credentials: asked once per connection, so that a provider may rotate them.
        dialer: resolves names, connects, and speaks TLS or plain TCP.
        client_name: for ``CLIENT SETNAME``.
        connect_timeout: seconds for the name, TCP, TLS and handshake together.
        delivery_timeout: seconds for which the kernel tries to deliver what was sent, whatever becomes of this process
            (``TCP_USER_TIMEOUT``, where there is such a thing): then the connection is lost. What a router has given up
            is not to arrive after this.
    """

    credentials: CredentialsSource = field(default_factory=CredentialsSource, repr=False)
    dialer: Dialer = field(default_factory=Dialer, repr=False)
    client_name: str = "sfroute"
    connect_timeout: float = 1.0
    delivery_timeout: float = 5.0


_PLAIN: Final = WireSettings()


def encode(*args: str | bytes | int) -> bytes:
    """A command in RESP, ready to be sent."""
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]
    return packed


class Token(Protocol):
    """Gets the reply to one command. Called inside the data callback; must not raise."""

    def on_reply(self, reply: object, /) -> None:
        """The reply, which may be a ``ReplyError``."""


class Receiver(Protocol):
    """Gets the events of a connection. Called inside the data callback; must not raise."""

    def on_push(self, push: list[object], /) -> None:
        """An out-of-band message, such as ``[b"invalidate", [key]]``."""

    def on_read(self) -> None:
        """Everything that had arrived was handed over."""

    def on_lost(self, tokens: deque[Token], error: ConnectionLost, /) -> None:
        """The connection ended; ``tokens`` were sent and not answered. Called once, last."""


PlainReplies = Callable[[bytes, deque[Token]], int]
"""Hands over the plain replies that stand at the front of what arrived, as the parser and the tokens would, and takes
their tokens. Returns how many bytes they took. What it is depends on who asks: see ``_native``."""


class _Handshake:
    """Token and receiver of the handshake, for the coroutine that opens the connection."""

    def __init__(self, expected: int) -> None:
        self.replies: list[object] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected = expected

    def on_reply(self, reply: object) -> None:
        self.replies.append(reply)
        if len(self.replies) == self._expected and not self.done.done():
            self.done.set_result(None)

    def on_push(self, push: list[object]) -> None:
        """Nothing is tracked yet, so nothing can be missed."""

    def on_read(self) -> None:
        """The replies are counted one by one."""

    def on_lost(self, tokens: deque[Token], error: ConnectionLost) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            # If the opening coroutine was cancelled, nothing else retrieves the exception.
            self.done.exception()


class Connection(asyncio.BufferedProtocol):
    """One connection, from a finished handshake to its loss. Made by ``Connection.open``."""

    def __init__(
        self,
        receiver: Receiver,
        settings: WireSettings = _PLAIN,
        max_reply: int = MAX_REPLY_BYTES,
        plain: PlainReplies | None = None,
    ) -> None:
        self._receiver = receiver
        self._plain = plain
        self._settings = settings
        self._reader = BoundedReader(hiredis.Reader(notEnoughData=_NOTHING), max_reply)
        self._tokens: deque[Token] = deque()
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._lost: ConnectionLost | None = None
        self.server_version: tuple[int, ...] = ()
        self.client_id: int | None = None

    @classmethod
    async def open(
        cls,
        address: Address,
        settings: WireSettings,
        receiver: Receiver,
        *,
        credentials: Credentials = (),
        setup: Iterable[bytes] = (),
        max_reply: int = MAX_REPLY_BYTES,
        plain: PlainReplies | None = None,
    ) -> tuple[Connection, list[object]]:
        """Connect, authenticate and switch to RESP3; then run ``setup``. No reply may take more than ``max_reply``
        bytes. ``plain`` sees what arrives before the parser does.

        ``credentials`` come from ``ask_for_credentials``: that takes time which is not the server's.

        Returns the connection and the replies to ``setup``, which may be errors.

        Raises:
            ConnectionLost: no connection within ``settings.connect_timeout``.
            HandshakeRefused: wrong credentials, or a server that does not speak RESP3.
        """
        commands = list(setup)
        self: Connection | None = None
        try:
            async with asyncio.timeout(settings.connect_timeout):
                hello = _hello(settings, credentials)
                handshake = _Handshake(len(commands) + 1)
                _, self = await settings.dialer.connect(
                    lambda: cls(handshake, settings, max_reply, plain), address
                )
                self.send(b"".join([hello, *commands]), [handshake] * (len(commands) + 1))
                await handshake.done
        except (OSError, TimeoutError, ConnectionLost) as error:
            # OSError covers refusal, name lookup, and TLS (ssl.SSLError).
            if self is not None:
                self.abort()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise HandshakeRefused(
                    f"the certificate of {address} was not accepted: {error.verify_message}"
                ) from error
            if isinstance(error, TimeoutError):
                what = f"did not answer within {settings.connect_timeout:g} s"
            else:
                what = (
                    f"cannot be reached{in_brackets(error)}"
                    if isinstance(error, OSError)
                    else "closed the connection during the handshake"
                )
            raise ConnectionLost(f"{address} {what}") from error
        except BaseException:
            if self is not None:
                self.abort()
            raise
        try:
            self.server_version, self.client_id = _checked_hello(address, handshake.replies[0])
        except (ConnectionLost, HandshakeRefused):
            self.abort()
            raise
        if self._lost is not None:
            raise self._lost
        self._receiver = receiver
        return self, handshake.replies[1:]

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; small writes leave at once."""
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                milliseconds = int(self._settings.delivery_timeout * 1000)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer for the transport to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle what was read. If the buffer was full, the rest is read in another turn of the loop."""
        if nbytes == READ_BYTES and self._transport is not None:
            # asyncio reads once per turn; uvloop reads as long as there is data.
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._transport.resume_reading)
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Parse all complete replies, and hand them over in wire order."""
        reader, receiver, tokens = self._reader, self._receiver, self._tokens
        gets = reader.gets
        if self._plain is not None:
            data = self._past_plain(self._plain, data)
            if not data:
                return
        try:
            reader.feed(data)
            more = True
            while more:
                parsed = False
                while (reply := gets()) is not _NOTHING:
                    if self._lost is not None:
                        return  # a receiver just closed the connection: later data is dropped
                    parsed = True
                    if type(reply) is hiredis.PushNotification:
                        receiver.on_push(reply)
                    elif tokens:
                        tokens.popleft().on_reply(reply)
                    else:
                        raise hiredis.ProtocolError("a reply that nobody asked for")
                more = reader.more(parsed=parsed)
        except TooMuch as error:
            self._fail(str(error), ReplyTooLarge)
        except (hiredis.HiredisError, TypeError, MemoryError) as error:
            # TypeError: a map whose key is a list. The text may echo what the peer sent.
            self._fail(f"the server broke the protocol ({type(error).__name__})")
        else:
            if self._lost is None:
                receiver.on_read()

    def _past_plain(self, plain: PlainReplies, data: bytes) -> bytes:
        """What is left for the parser. In the middle of a reply, only the parser knows what the next byte is."""
        taken = plain(data, self._tokens) if not self._reader.has_data() else 0
        if taken == len(data) and self._lost is None:
            self._receiver.on_read()
        return data[taken:] if taken else data

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the receiver, once."""
        why = (exc.strerror if isinstance(exc, OSError) else None) or (
            type(exc).__name__ if exc is not None else "closed"
        )
        self._fail(f"the connection was lost ({why})")

    # For the owner

    @property
    def alive(self) -> bool:
        """False once the connection is lost or closed."""
        return self._lost is None

    @property
    def in_flight(self) -> int:
        """Commands sent and not answered."""
        return len(self._tokens)

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the peer, as the socket knows them."""
        name = self._transport.get_extra_info("peername") if self._transport else None
        return (str(name[0]), int(name[1])) if name else None

    def send(self, data: bytes, tokens: Iterable[Token]) -> None:
        """Send complete commands, with one token each. A token gets the reply to its command."""
        assert self._transport is not None
        self._tokens.extend(tokens)
        self._transport.write(data)

    def abort(self, why: str = "the connection was closed") -> None:
        """End the connection now. The receiver gets the unanswered tokens before this returns."""
        self._fail(why)

    def duplicate(self) -> int:
        """Another descriptor of its socket, for whoever uses the connection from now on. ``abort`` then ends only this
        object. Not for TLS. Raises ``ConnectionLost``.
        """
        if self._lost is not None:
            raise self._lost
        assert self._transport is not None
        return os.dup(self._transport.get_extra_info("socket").fileno())

    def detach_after_fork(self) -> None:
        """In a forked child: close the inherited descriptor without touching the peer or the shared epoll."""
        sock = self._transport.get_extra_info("socket") if self._transport else None
        if sock is not None and sock.fileno() >= 0:
            socket.close(sock.fileno())

    def _fail(self, why: str, kind: type[ConnectionLost] = ConnectionLost) -> None:
        if self._lost is not None:
            return
        self._lost = kind(why)
        transport = self._transport
        if transport is not None:
            if self._tokens:
                _reset_when_closed(transport)
            # The socket is closed in this turn of the loop, before any retry, which comes in a later turn.
            transport.abort()
        tokens, self._tokens = self._tokens, deque()
        self._receiver.on_lost(tokens, self._lost)


def _reset_when_closed(transport: asyncio.BaseTransport) -> None:
    """Make the kernel discard what it has not delivered.

    Otherwise it would keep trying for minutes. It could deliver a write long after that write was repeated elsewhere,
    after other writes were answered, and after the operation record that identifies a repetition had expired.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


async def ask_for_credentials(address: Address, settings: WireSettings) -> Credentials:
    """The credentials for a new connection.

    Raises:
        ConnectionLost: the provider took too long.
        HandshakeRefused: the provider failed.
    """
    try:
        return await settings.credentials.get()
    except NoCredentials as error:
        kind = ConnectionLost if error.passing else HandshakeRefused
        raise kind(f"no credentials for {address}: {error}") from error


def _hello(settings: WireSettings, credentials: Credentials) -> bytes:
    auth: tuple[str, ...] = ()
    if credentials:
        *user, password = credentials
        auth = ("AUTH", user[0] if user else "default", password)
    return encode("HELLO", "3", *auth, "SETNAME", settings.client_name)


def renaming(name: str) -> bytes:
    """The command that gives a connection another name. Unlike CLIENT SETNAME it takes no right."""
    return encode("HELLO", "3", "SETNAME", name)


def _checked_hello(address: Address, reply: object) -> tuple[tuple[int, ...], int | None]:
    """The server's version and its number for the connection, from the reply to HELLO.

    The texts of servers are not repeated: they may echo arguments.
    """
    if isinstance(reply, dict):
        version = reply.get(b"version")
        parts = version.split(b".") if isinstance(version, bytes) else []
        # A part of more digits is no version, and one of thousands no number to Python.
        numbers = tuple(int(part) for part in parts if part.isdigit() and len(part) < 10)
        client_id = reply.get(b"id")
        return numbers, client_id if type(client_id) is int else None
    code = known_code(str(reply)) if isinstance(reply, ReplyError) else "no reply map"
    passing = isinstance(reply, ReplyError) and "max number of clients" in str(reply)
    if not passing and code in {"WRONGPASS", "NOAUTH", "NOPERM", "ERR", "NOPROTO"}:
        advice = {
            "WRONGPASS": "check the user name and password",
            "NOAUTH": "it asks for a password: put it into the URL or the client",
            "NOPERM": "allow the user HELLO and AUTH",
        }.get(code, "it does not speak RESP3: Redis 6.0 or newer, or Valkey, is needed")
        raise HandshakeRefused(f"{address} refused the connection ({code}); {advice}", code)
    # LOADING, max clients reached and the like pass by themselves.
    raise ConnectionLost(f"{address} is not ready ({code})")
