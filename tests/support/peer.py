"""A peer that answers each command as a test says: for errors that no real server gives at will."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import hiredis

__all__ = ["Command", "Peer", "bulk", "hello", "script_reply", "slots"]

Command = list[bytes]


def bulk(text: str | bytes) -> bytes:
    """A string in RESP."""
    raw = text.encode() if isinstance(text, str) else text
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def script_reply(*items: str) -> bytes:
    """What a script returns."""
    return b"*%d\r\n%b" % (len(items), b"".join(map(bulk, items)))


def hello(version: str = "9.1.2") -> bytes:
    """The answer to HELLO."""
    return b"%%2\r\n%b%b%b:3\r\n" % (bulk("version"), bulk(version), bulk("proto"))


def slots(owner: Peer) -> bytes:
    """The answer to CLUSTER SLOTS: all are ``owner``'s."""
    host, port = owner.address
    node = b"*3\r\n%b:%d\r\n%b" % (bulk(host), port, bulk(f"{port:040x}"))
    return b"*1\r\n*3\r\n:0\r\n:16383\r\n" + node


class Peer:
    """A server on loopback, a context manager for ``async with``.

    Commands named in ``answers`` are answered by what is next there, as long as there is something; others as a
    healthy, empty server would. An answer is bytes, ``None`` for none ever, or a function of the command.

    Attributes:
        answers: name of a command in lower case -> answers to come.
        commands: every command received, in order.
        writes: what arrived at once, in the order of arrival.
        accepted: how many connections there have been.
        conversations: the commands of each connection.
    """

    HANG_UP = b"hang up"
    """An answer that is the end of the connection."""

    def __init__(self) -> None:
        self.answers: dict[str, deque[bytes | Callable[[Command], bytes | None] | None]] = {}
        self.commands: list[Command] = []
        self.writes: list[bytes] = []
        self.accepted = 0
        self.conversations: list[list[Command]] = []
        self.address = ("127.0.0.1", 0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, *self.address)
        self.address = self._server.sockets[0].getsockname()[:2]
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
        """As a single node."""
        return f"redis://{self.address[0]}:{self.address[1]}"

    @property
    def cluster_url(self) -> str:
        """As a node of a cluster."""
        return f"redis+cluster://{self.address[0]}:{self.address[1]}"

    def answer(
        self, command: str, *answers: bytes | Callable[[Command], bytes | None] | None
    ) -> None:
        """Answer the next of these commands so."""
        self.answers.setdefault(command, deque()).extend(answers)

    def hang_up(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()

    @property
    def open_connections(self) -> int:
        """How many there are now."""
        return len(self._tasks)

    def received(self, name: str) -> list[Command]:
        """The commands of this name."""
        return [command for command in self.commands if command[0].lower() == name.encode()]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        conversation: list[Command] = []
        self.conversations.append(conversation)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                self.writes.append(data)
                parser.feed(data)
                while isinstance(command := parser.gets(), list):
                    self.commands.append(command)
                    conversation.append(command)
                    answer = self._answer(command)
                    if answer == self.HANG_UP:
                        return
                    if answer is not None:
                        writer.write(answer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the router closed the connection, or the test ends
        finally:
            writer.close()

    def _answer(self, command: Command) -> bytes | None:
        name = command[0].decode().lower()
        planned = self.answers.get(name)
        if planned:
            answer = planned.popleft()
            return answer(command) if callable(answer) else answer
        match name:
            case "hello":
                return hello()
            case "ping":
                return b"+PONG\r\n"
            case "get":
                return b"_\r\n"
            case "pttl":
                return b":-2\r\n"
            case "evalsha" | "eval":
                return script_reply("-1")
            case "script":
                return bulk("0" * 40)
            case "wait":
                return b":1\r\n"
            case "cluster":
                return slots(self)
        return b"+OK\r\n"
