"""A TCP proxy on loopback that disturbs what passes through it.

::

    async with Proxy(("127.0.0.1", 6379)) as proxy:
        router = AsyncRouter.from_url(proxy.url)
        proxy.replies.hold()                       # replies wait ...
        await proxy.replies.holds(b"invalidate")   # ... until this one is among them ...
        proxy.replies.release()                    # ... and leave in one write, in order

A proxy has two flows, ``requests`` (to the server) and ``replies`` (from it), with the same controls. Bytes are never
reordered, changed or dropped, but for ``cut``: like a network, a proxy only decides when they arrive, and whether.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self

import hiredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.maint_notifications import MaintNotificationsConfig

__all__ = ["WITHOUT_NOTIFICATIONS", "Flow", "ProxiedCluster", "Proxy"]

WITHOUT_NOTIFICATIONS: Final[dict[str, Any]] = (
    {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}
    if "maint_notifications_config" in inspect.signature(RedisCluster.__init__).parameters
    else {}
)
"""For a client of redis-py's on Valkey, which refuses the command behind them; redis-py 8.0 has none."""

_CHUNK: Final = 65536
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER for a connection that ends with RST."""


class Flow:
    """One direction of all connections of a proxy.

    Attributes:
        delay: seconds that the next chunk is late, asked for each one; chunks keep their order.
        bytes: how many have arrived.
    """

    def __init__(self) -> None:
        self.delay: Callable[[], float] | None = None
        self.bytes = 0
        self._pipes: list[_Pipe] = []
        self._open = asyncio.Event()
        self._open.set()
        self._news = asyncio.Event()
        self._until_cut: int | None = None

    def hold(self) -> None:
        """Keep what arrives until ``release``."""
        self._open.clear()

    def release(self, first: int | None = None) -> None:
        """Deliver what is held, in one write for each connection, and let pass what comes after.

        ``first``: deliver only that many bytes, and go on holding.
        """
        if first is None:
            self._open.set()
        for pipe in self._pipes:
            pipe.deliver(first)

    def cut(self, after: int = 0) -> None:
        """Let ``after`` more bytes pass, then end the connection that the next byte is for with a reset."""
        self._until_cut = after

    @property
    def held(self) -> bytes:
        """What is held or late, of all connections in the order of their opening."""
        return b"".join(pipe.kept for pipe in self._pipes)

    async def holds(self, *wanted: bytes) -> None:
        """Wait until each of ``wanted`` is among what is held."""
        while any(part not in self.held for part in wanted):
            self._news.clear()
            await self._news.wait()

    # For the pipes

    def attach(self, pipe: _Pipe) -> None:
        self._pipes.append(pipe)

    def detach(self, pipe: _Pipe) -> None:
        self._pipes.remove(pipe)

    def arrived(self, size: int) -> None:
        self.bytes += size
        self._news.set()

    def lateness(self) -> float:
        return self.delay() if self.delay is not None else 0.0

    @property
    def opened(self) -> asyncio.Event:
        return self._open

    def may_pass(self, size: int) -> tuple[int, bool]:
        """How many bytes may pass, and whether the connection is cut after them."""
        if self._until_cut is None:
            return size, False
        if size <= self._until_cut:
            self._until_cut -= size
            return size, False
        passing, self._until_cut = self._until_cut, None
        return passing, True


class _Pipe:
    """One direction of one connection."""

    def __init__(
        self,
        flow: Flow,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        reset: Callable[[], None],
        tap: Callable[[bytes], None] | None = None,
    ) -> None:
        self._flow = flow
        self._reader = reader
        self._writer = writer
        self._reset = reset
        self._tap = tap
        self._kept: deque[tuple[float, bytes]] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    @property
    def kept(self) -> bytes:
        return b"".join(data for _, data in self._kept)

    async def run(self) -> None:
        """Until the connection ends."""
        self._flow.attach(self)
        delivering = asyncio.create_task(self._deliver())
        try:
            await self._read()
            self._ended = True
            self._wake.set()
            await delivering
        finally:
            delivering.cancel()
            self._flow.detach(self)
            self._writer.close()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        with suppress(ConnectionError):
            while data := await self._reader.read(_CHUNK):
                due = max(due, loop.time() + self._flow.lateness())
                if self._tap is not None:
                    self._tap(data)
                self._kept.append((due, data))
                self._flow.arrived(len(data))
                self._wake.set()

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._flow.opened.wait()
            if not self._kept:
                if self._ended:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            wait = self._kept[0][0] - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            elif self._flow.opened.is_set():
                self._write(self._take_due(loop.time()))

    def _take_due(self, now: float) -> bytes:
        parts = []
        while self._kept and self._kept[0][0] <= now:
            parts.append(self._kept.popleft()[1])
        return b"".join(parts)

    def deliver(self, first: int | None) -> None:
        """Write what is kept, due or not, or the ``first`` bytes of it."""
        data = self.kept
        self._kept.clear()
        if first is not None and first < len(data):
            self._kept.append((0.0, data[first:]))
            data = data[:first]
        if data:
            self._write(data)

    def _write(self, data: bytes) -> None:
        passing, cut = self._flow.may_pass(len(data))
        if passing and not self._writer.is_closing():
            self._writer.write(data[:passing])
        if cut:
            self._reset()


class Proxy:
    """A TCP proxy in front of one server, a context manager for ``async with``.

    Attributes:
        target: where new connections lead; may be changed, as a name may.
        address: where it listens, for life.
        requests: what goes to the server.
        replies: what comes from it.
        commands: name in upper case -> how often it was sent to the server.
        accepted: how many connections there have been.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.address = ("127.0.0.1", 0)
        self.requests = Flow()
        self.replies = Flow()
        self.commands: Counter[str] = Counter()
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[Any], tuple[asyncio.StreamWriter, ...]] = {}

    @property
    def url(self) -> str:
        """Of a single server behind it."""
        return f"redis://{self.address[0]}:{self.address[1]}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.refuse()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))

    async def accept(self) -> None:
        """Listen (again)."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, *self.address)
            self.address = self._server.sockets[0].getsockname()[:2]

    def refuse(self) -> None:
        """Do not listen; connections that are open stay open."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def reset(self) -> None:
        """End all connections with a reset."""
        for writers in list(self._connections.values()):
            _reset(writers)

    def hang(self) -> None:
        """Go silent: connections stay open and are accepted, nothing passes. ``resume`` ends it."""
        self.requests.hold()
        self.replies.hold()

    def resume(self) -> None:
        """Let everything pass that waits, and all that follows."""
        self.requests.release()
        self.replies.release()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        self._connections[task] = (writer,)
        try:
            up_reader, up_writer = await asyncio.open_connection(*self.target)
            self._connections[task] = writers = (writer, up_writer)
            for each in writers:
                sock = each.get_extra_info("socket")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def reset() -> None:
                _reset(writers)

            await _both(
                _Pipe(self.requests, reader, up_writer, reset, self._tap()).run(),
                _Pipe(self.replies, up_reader, writer, reset).run(),
            )
        except (OSError, asyncio.CancelledError):
            pass  # the server cannot be reached, or the proxy ends: so does the connection
        finally:
            for each in self._connections.pop(task):
                each.transport.abort()

    def _tap(self) -> Callable[[bytes], None]:
        parser = hiredis.Reader()

        def count(data: bytes) -> None:
            parser.feed(data)
            while isinstance(command := parser.gets(), list):
                self.commands[command[0].decode().upper()] += 1

        return count


async def _both(*ways: Awaitable[None]) -> None:
    """Until both ways have ended; the one that is left ends soon after the other."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # Closing its writer has told the peer; its answer to that ends the other way.
        await asyncio.wait(tasks, timeout=1.0)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _reset(writers: Iterable[asyncio.StreamWriter]) -> None:
    for writer in writers:
        sock = writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()


class ProxiedCluster:
    """A proxy in front of every node of a cluster, a context manager for ``async with``.

    ``client()`` gives a redis-py client that knows the nodes by the addresses of their proxies (``address_remap``); a
    router it is lent to connects to them. Redirects (``MOVED``, ``ASK``) still name the nodes themselves.

    Attributes:
        proxies: address of a node -> its proxy.
    """

    def __init__(self, nodes: Iterable[tuple[str, int]]) -> None:
        self.proxies = {node: Proxy(node) for node in nodes}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for proxy in self.proxies.values():
            await self._stack.enter_async_context(proxy)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @property
    def commands(self) -> Counter[str]:
        """Those of all proxies."""
        return sum((proxy.commands for proxy in self.proxies.values()), Counter())

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RedisCluster]:
        """A client of redis-py, to lend to a router."""
        client = RedisCluster(
            startup_nodes=[ClusterNode(*proxy.address) for proxy in self.proxies.values()],
            address_remap=lambda node: self.proxies[node].address,
            protocol=3,
            **WITHOUT_NOTIFICATIONS,
        )
        try:
            yield client
        finally:
            await client.aclose()
