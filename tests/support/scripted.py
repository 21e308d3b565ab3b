"""A peer that says in RESP3 what a test tells it: for orders of bytes that no real server can be made to send."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import hiredis

__all__ = ["Conversation", "ScriptedPeer", "bulk", "push"]

NULL = b"_\r\n"
OK = b"+OK\r\n"


def bulk(text: str | bytes) -> bytes:
    """A string."""
    raw = text.encode() if isinstance(text, str) else text
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def integer(number: int) -> bytes:
    """An integer."""
    return b":%d\r\n" % number


def push(*keys: str) -> bytes:
    """An invalidation of keys; without keys, of all (what FLUSHALL sends)."""
    listed = b"*%d\r\n%b" % (len(keys), b"".join(map(bulk, keys))) if keys else NULL
    return b">2\r\n" + bulk("invalidate") + listed


class Conversation:
    """One connection after its handshake. PING is answered unless ``silent``; the rest is the test's."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.silent = False
        self.ended = asyncio.Event()
        self._writer = writer
        self._commands: asyncio.Queue[list[bytes]] = asyncio.Queue()

    async def command(self, *expected: bytes) -> list[bytes]:
        """The next command but PING, which must begin with ``expected``."""
        command = await self._commands.get()
        assert tuple(command[: len(expected)]) == expected, command
        return command

    async def look_up(self) -> str:
        """Read the two commands of a lookup of a link; returns its key."""
        get = await self.command(b"GET")
        await self.command(b"PTTL", get[1])
        return get[1].decode()

    async def send(self, *parts: bytes) -> None:
        """Send bytes, in one write."""
        self._writer.write(b"".join(parts))
        await self._writer.drain()

    def hang_up(self) -> None:
        """End the connection."""
        self._writer.close()

    def heard(self, command: list[bytes]) -> None:
        """A command has arrived."""
        if command[0] != b"PING":
            self._commands.put_nowait(command)
        elif not self.silent:
            self._writer.write(b"+PONG\r\n")


class ScriptedPeer:
    """A single server, a context manager for ``async with``.

    Answers HELLO and SCRIPT LOAD as a server does, and says nothing of its history. A connection that then sends
    ``CLIENT TRACKING ON`` is a lane, and becomes a ``Conversation``, as one does that sends anything else.
    """

    def __init__(self, *, tracking: bytes = OK, version: str = "9.1.2") -> None:
        self._tracking = tracking
        self._version = version
        self._lanes: asyncio.Queue[Conversation] = asyncio.Queue()
        self._others: asyncio.Queue[Conversation] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted_lanes = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"redis://{host}:{port}"

    async def lane(self) -> Conversation:
        """The next lane that connects."""
        return await self._lanes.get()

    async def other(self) -> Conversation:
        """The next connection that is no lane and sends a command."""
        return await self._others.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        conversation = Conversation(writer)
        try:
            await self._talk(reader, writer, conversation)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the router closed the connection, or the test ends
        finally:
            conversation.ended.set()
            writer.close()

    async def _talk(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        conversation: Conversation,
    ) -> None:
        parser = hiredis.Reader()
        is_new = True
        while data := await reader.read(65536):
            parser.feed(data)
            while isinstance(command := parser.gets(), list):
                if command[0] == b"HELLO":
                    writer.write(
                        b"%%2\r\n%b%b%b%b"
                        % (bulk("version"), bulk(self._version), bulk("proto"), integer(3))
                    )
                elif command[0] == b"SCRIPT":
                    writer.write(bulk("0" * 40))
                elif command[0] == b"INFO":
                    writer.write(bulk(""))
                elif command[:2] == [b"CLIENT", b"TRACKING"]:
                    writer.write(self._tracking)
                    self.accepted_lanes += 1
                    self._lanes.put_nowait(conversation)
                    is_new = False
                else:
                    if is_new and command[0] != b"PING":
                        self._others.put_nowait(conversation)
                        is_new = False
                    conversation.heard(command)
