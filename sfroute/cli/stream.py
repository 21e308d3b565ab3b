"""Many uids at once, from the arguments or from standard input: answered concurrently, written in their order."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import typer

from ..errors import InvalidArgument, SfrouteError
from .common import complain, printable

__all__ = ["answer_all"]

_T = TypeVar("_T")

_CONCURRENCY = 256
"""Lookups under way at once. They share round trips; answers wait in memory for their turn."""
_FAILURES_IN_A_ROW = 100
"""When this many uids in a row cannot be answered, the next million cannot be either: stop and say so."""
_READ_BYTES = 65536
_LINE_BYTES = 4096
"""The longest line: eight times the longest uid."""
_HOPELESS_BYTES = 1 << 20
"""An input without a line break within this many bytes is not a list of uids."""


@dataclass(slots=True)
class _Line(Generic[_T]):
    """One line of the input, and its outcome."""

    number: int
    uid: str
    answer: _T | None = None
    error: SfrouteError | None = None


async def answer_all(
    uids: list[str] | None,
    ask: Callable[[str], Awaitable[_T]],
    compose: Callable[[str, _T], str],
) -> int:
    """Ask for every uid (None: those of standard input) and write the answers. Returns how many failed."""
    if uids == ["-"]:  # as other commands mean it; a uid of that name can come by standard input
        uids = None
    if uids is None and sys.stdin.isatty():
        complain("reading uids from the terminal, one per line; Ctrl-D ends")
    failed = in_a_row = 0
    lines: AsyncIterator[_Line[_T]] = (
        _given(uids) if uids is not None else _read(sys.stdin.fileno())
    )
    async with aclosing(_in_order(ask, lines)) as answers:
        async for line, more_under_way in answers:
            if line.error is None:
                in_a_row = 0
                sys.stdout.write(compose(line.uid, line.answer))  # type: ignore[arg-type]  # no error: an answer
            else:
                failed += 1
                in_a_row += not isinstance(line.error, InvalidArgument)
                typer.echo(f"line {line.number}: {printable(str(line.error))}", err=True)
            if in_a_row == _FAILURES_IN_A_ROW:
                complain(f"giving up after {in_a_row} failures in a row")
                break
            if not more_under_way:
                sys.stdout.flush()
    sys.stdout.flush()
    return failed


async def _in_order(
    ask: Callable[[str], Awaitable[_T]], lines: AsyncIterator[_Line[_T]]
) -> AsyncGenerator[tuple[_Line[_T], bool]]:
    """Ask for many lines at once. Yield them in the order of the input, with whether more are under way."""
    under_way: asyncio.Queue[asyncio.Task[_Line[_T]] | None] = asyncio.Queue()
    places = asyncio.Semaphore(_CONCURRENCY)

    async def ask_one(line: _Line[_T]) -> _Line[_T]:
        if line.error is None:
            try:
                line.answer = await ask(line.uid)
            except SfrouteError as error:
                line.error = error
        return line

    async def start_all() -> None:
        try:
            async for line in lines:
                await places.acquire()
                under_way.put_nowait(asyncio.create_task(ask_one(line)))
        finally:
            under_way.put_nowait(None)

    starter = asyncio.create_task(start_all())
    try:
        while (task := await under_way.get()) is not None:
            line = await task
            places.release()
            yield line, not under_way.empty()
        await starter
    finally:
        starter.cancel()
        while not under_way.empty():
            if (task := under_way.get_nowait()) is not None:
                task.cancel()


async def _given(uids: Iterable[str]) -> AsyncIterator[_Line[Any]]:
    for number, uid in enumerate(uids, 1):
        yield _Line(number, uid)


async def _read(descriptor: int) -> AsyncIterator[_Line[Any]]:
    """The lines of a file, pipe or terminal as soon as they are there, without blank ones."""
    number = 0
    rest = b""
    dropped = 0
    async for chunk in _chunks(descriptor):
        *complete, rest = (rest + chunk).split(b"\n")
        for raw in complete:
            number += 1
            if raw.strip() or dropped:
                yield _parse(number, raw, dropped)
            dropped = 0
        if dropped or len(rest) > _LINE_BYTES:
            # It is refused when it ends; until then nothing of it is kept.
            dropped += len(rest)
            rest = b""
        if dropped > _HOPELESS_BYTES:
            raise InvalidArgument(
                f"line {number + 1} of standard input does not end within {_HOPELESS_BYTES >> 20} MiB; "
                "give one uid per line"
            )
    if rest.strip() or dropped:
        yield _parse(number + 1, rest, dropped)


def _parse(number: int, raw: bytes, dropped: int = 0) -> _Line[Any]:
    if dropped or len(raw) > _LINE_BYTES:
        reason = f"the line has more than {_LINE_BYTES} bytes; give one uid per line"
        return _Line(number, "", error=InvalidArgument(reason))
    try:
        # Files from Windows end lines with CR LF and may begin with a byte order mark.
        return _Line(
            number, raw.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        )
    except UnicodeDecodeError as error:
        reason = f"the uid must be UTF-8; byte {error.start + 1} of the line is not"
        return _Line(number, "", error=InvalidArgument(reason))


async def _chunks(descriptor: int) -> AsyncIterator[bytes]:
    """The input, read by a thread of its own: a read may never return, even when we want to exit.

    It reads the descriptor, not ``sys.stdin``, whose lock it would hold then and Python wants when it exits.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    wanted = threading.Semaphore(1)

    def read() -> None:
        chunk: bytes | OSError = b"more"
        while chunk and isinstance(chunk, bytes):
            wanted.acquire()
            try:
                chunk = os.read(descriptor, _READ_BYTES)
            except OSError as error:
                chunk = error
            if loop.is_closed():
                return
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    threading.Thread(target=read, name="sfroute-stdin", daemon=True).start()
    while chunk := await chunks.get():
        if isinstance(chunk, OSError):
            raise chunk
        yield chunk
        wanted.release()
