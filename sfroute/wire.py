"""One RESP3 connection, pipelined: commands out, replies back in the order of the commands, pushes in between.

It knows nothing of look-ups, slots or retries. Replies and pushes are handed over inside the data callback, in wire
order: that order is what makes the local cache coherent (no stale value can be stored after its invalidation was read).

Who may touch it: only the event loop it was opened on.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, cast

import hiredis

from .reader import BoundedReader, TooMuch

__all__ = [
    "Address",
    "Connection",
    "ConnectionLost",
    "Credentials",
    "HandshakeRefused",
    "Receiver",
    "ReplyError",
    "Token",
    "WireSettings",
    "encode",
]

ReplyError = hiredis.ReplyError
"""An error reply; arrives as a value, never raised."""

READ_BYTES: Final = 8 * 1024
"""The most that is read, parsed and handed over in one turn of the event loop: a hundred pushes, or the answers to six
hundred look-ups. More would keep it from its other work for milliseconds; less would only matter to replies far larger
than any here."""

_NOTHING: Final = object()


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ConnectionLost(Exception):
    """The connection ended before a reply came."""


class HandshakeRefused(Exception):
    """The server answered the handshake with an error that connecting again will not mend."""


Credentials = tuple[str, ...]
"""``()``, ``(password,)`` or ``(username, password)``."""


async def _no_credentials() -> Credentials:
    return ()


@dataclass(frozen=True, slots=True)
class WireSettings:
    """What every connection to the store shares. ``repr`` shows no secret.

    Attributes:
        credentials: asked once per connection, so that a provider may rotate them.
        tls: the context, or None for plain TCP.
        client_name: for ``CLIENT SETNAME``.
        connect_timeout: seconds for TCP, TLS and handshake together.
    """

    credentials: Callable[[], Awaitable[Credentials]] = field(default=_no_credentials, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    client_name: str = "sfroute"
    connect_timeout: float = 1.0


def encode(*args: str | bytes | int) -> bytes:
    """A command in RESP, ready to be sent."""
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]
    return packed


class Token(Protocol):
    """Who gets the reply to one command. Called inside the data callback; must not raise."""

    def on_reply(self, reply: object, /) -> None:
        """The reply, which may be a ``ReplyError``."""


class Receiver(Protocol):
    """Who follows a connection. Called inside the data callback; must not raise."""

    def on_push(self, push: list[object], /) -> None:
        """An out-of-band message, such as ``[b"invalidate", [key]]``."""

    def on_read(self) -> None:
        """All that had arrived was handed over."""

    def on_lost(self, tokens: deque[Token], error: ConnectionLost, /) -> None:
        """The connection ended; ``tokens`` were sent and not answered. Called once, last."""


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
            # Whoever opens the connection may have been cancelled, and then nobody asks for it.
            self.done.exception()


class Connection(asyncio.BufferedProtocol):
    """One connection, from a finished handshake to its loss. Made by ``Connection.open``."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._reader = BoundedReader(hiredis.Reader(notEnoughData=_NOTHING))
        self._tokens: deque[Token] = deque()
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._lost: ConnectionLost | None = None
        self.server_version: tuple[int, ...] = ()

    @classmethod
    async def open(
        cls,
        address: Address,
        settings: WireSettings,
        receiver: Receiver,
        *,
        setup: Iterable[bytes] = (),
    ) -> tuple[Connection, list[object]]:
        """Connect, authenticate and switch to RESP3; then run ``setup``.

        Returns the connection and the replies to ``setup``, which may be errors.

        Raises:
            ConnectionLost: no connection within ``settings.connect_timeout``.
            HandshakeRefused: wrong credentials, or a server that does not speak RESP3.
        """
        commands = list(setup)
        self: Connection | None = None
        try:
            async with asyncio.timeout(settings.connect_timeout):
                hello = _hello(settings, await _ask_for_credentials(address, settings))
                handshake = _Handshake(len(commands) + 1)
                loop = asyncio.get_running_loop()
                _, self = await loop.create_connection(
                    lambda: cls(handshake), address.host, address.port, ssl=settings.tls
                )
                self.send(b"".join([hello, *commands]), [handshake] * (len(commands) + 1))
                await handshake.done
        except (OSError, TimeoutError, ConnectionLost) as error:
            # OSError covers refusal, name look-up, and TLS (ssl.SSLError).
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
                    f"cannot be reached ({error.strerror or type(error).__name__})"
                    if isinstance(error, OSError)
                    else "closed the connection during the handshake"
                )
            raise ConnectionLost(f"{address} {what}") from error
        except BaseException:
            if self is not None:
                self.abort()
            raise
        try:
            self.server_version = _checked_hello(address, handshake.replies[0])
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
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport may put what arrives."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much has arrived; if it may not be all, the rest comes in another turn of the loop."""
        if nbytes == READ_BYTES and self._transport is not None:
            # asyncio reads once a turn, uvloop as often as there is something.
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._transport.resume_reading)
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Parse all that is whole, and hand it over in wire order."""
        reader, receiver, tokens = self._reader, self._receiver, self._tokens
        gets = reader.gets
        try:
            reader.feed(data)
            more = True
            while more:
                parsed = False
                while (reply := gets()) is not _NOTHING:
                    if self._lost is not None:
                        return  # closed by what a receiver just did: later data is nobody's
                    parsed = True
                    if type(reply) is hiredis.PushNotification:
                        receiver.on_push(reply)
                    elif tokens:
                        tokens.popleft().on_reply(reply)
                    else:
                        raise hiredis.ProtocolError("a reply that nobody asked for")
                more = reader.more(parsed=parsed)
        except TooMuch as error:
            self._fail(str(error))
        except (hiredis.HiredisError, TypeError, MemoryError) as error:
            # TypeError: a map whose key is a list. The text may echo what the peer sent.
            self._fail(f"the server broke the protocol ({type(error).__name__})")
        else:
            if self._lost is None:
                receiver.on_read()

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
        """Send whole commands, one token for each; a token comes back with its command's reply."""
        assert self._transport is not None
        self._tokens.extend(tokens)
        self._transport.write(data)

    def abort(self) -> None:
        """End the connection now. The receiver is told of unanswered commands before this returns."""
        self._fail("the connection was closed")

    def detach_after_fork(self) -> None:
        """In a forked child: give up the inherited descriptor without a word to the peer or to the shared epoll."""
        sock = self._transport.get_extra_info("socket") if self._transport else None
        if sock is not None and sock.fileno() >= 0:
            socket.close(sock.fileno())

    def _fail(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = ConnectionLost(why)
        if self._transport is not None:
            self._transport.abort()
        tokens, self._tokens = self._tokens, deque()
        self._receiver.on_lost(tokens, self._lost)


async def _ask_for_credentials(address: Address, settings: WireSettings) -> Credentials:
    try:
        return await settings.credentials()
    except Exception as error:
        # A provider of the application may raise anything; its text may hold a secret.
        raise HandshakeRefused(
            f"no credentials for {address}: the credential provider raised {type(error).__name__}"
        ) from error


def _hello(settings: WireSettings, credentials: Credentials) -> bytes:
    auth: tuple[str, ...] = ()
    if credentials:
        *user, password = credentials
        auth = ("AUTH", user[0] if user else "default", password)
    return encode("HELLO", "3", *auth, "SETNAME", settings.client_name)


def _checked_hello(address: Address, reply: object) -> tuple[int, ...]:
    """The server's version from the reply to HELLO. The texts of servers are not repeated: they may echo arguments."""
    if isinstance(reply, dict):
        version = reply.get(b"version")
        parts = version.split(b".") if isinstance(version, bytes) else []
        # A part of more digits is no version, and one of thousands no number to Python.
        return tuple(int(part) for part in parts if part.isdigit() and len(part) < 10)
    code = str(reply).partition(" ")[0] if isinstance(reply, ReplyError) else "no reply map"
    passing = isinstance(reply, ReplyError) and "max number of clients" in str(reply)
    if not passing and code in {"WRONGPASS", "NOAUTH", "NOPERM", "ERR", "NOPROTO"}:
        advice = {
            "WRONGPASS": "check the user name and password",
            "NOAUTH": "it asks for a password: put it into the URL or the client",
            "NOPERM": "allow the user HELLO and AUTH",
        }.get(code, "it does not speak RESP3: Redis 6.0 or newer, or Valkey, is needed")
        raise HandshakeRefused(f"{address} refused the connection ({code}); {advice}")
    # LOADING, max clients reached and the like pass by themselves.
    raise ConnectionLost(f"{address} is not ready ({code})")
