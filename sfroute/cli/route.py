"""``sfroute route``: the pod of every uid that is given."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import typer

from ..errors import InvalidArgument, SfrouteError
from ..keys import check_service_names
from ..router import AsyncRouter
from ..types import Link

__all__ = ["route"]

_CONCURRENCY = 256
"""Look-ups under way at once: they share round trips, and their answers wait for their turn in memory."""
_FAILURES_IN_A_ROW = 100
"""When so many uids in a row find no pod, so will the next million: better to say so now."""
_READ_BYTES = 65536
_READER_WENT_AWAY = 141
"""128 + SIGPIPE, as of any other filter in a pipeline."""


@dataclass(slots=True)
class _Line:
    """One line of the input and what came of it."""

    number: int
    uid: str
    link: Link | None = None
    error: SfrouteError | None = None


def route(
    uids: Annotated[
        list[str] | None,
        typer.Argument(help="The uids; without any they are read from standard input."),
    ] = None,
    url: Annotated[
        str,
        typer.Option(
            envvar="SFROUTE_URL",
            help="redis://, rediss://, redis+cluster:// or rediss+cluster://; start nodes separated by commas. "
            "Others can read a command's arguments: a URL with a password belongs in the variable.",
        ),
    ] = "",
    namespace: Annotated[
        str, typer.Option(envvar="SFROUTE_NAMESPACE", help="The namespace of the service.")
    ] = "",
    service: Annotated[
        str, typer.Option(envvar="SFROUTE_SERVICE", help="The service that owns the users.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line, with all that is known.")
    ] = False,
) -> None:
    """Write one line `uid<TAB>pod` per uid, in the order given.

    A uid without a link is placed, as a gateway would. Blank lines are skipped.

    What cannot be routed is reported by its line number, the others go on, and the exit code is 1.
    """
    for name, value in (("url", url), ("namespace", namespace), ("service", service)):
        if not value:
            raise typer.BadParameter(
                f"it is needed; give it or set SFROUTE_{name.upper()}", param_hint=f"--{name}"
            )
    check_service_names(namespace, service)
    if uids is None and sys.stdin.isatty():
        typer.echo("sfroute: reading uids from the terminal, one per line; Ctrl-D ends", err=True)
    try:
        failed = asyncio.run(_route_all(uids, url, namespace, service, as_json))
    except BrokenPipeError:
        # Python flushes standard output once more when it exits; there must be something that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_READER_WENT_AWAY) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if failed:
        typer.echo(f"sfroute: uids that could not be routed: {failed}", err=True)
        raise typer.Exit(1)


async def _route_all(
    uids: list[str] | None, url: str, namespace: str, service: str, as_json: bool
) -> int:
    """Route every uid and write the answers; return how many failed."""
    format_line = _as_json if as_json else _as_text
    failed = in_a_row = 0
    async with AsyncRouter.from_url(url) as router:
        lines = _given(uids) if uids is not None else _read(sys.stdin.fileno())
        async with aclosing(_in_order(router, namespace, service, lines)) as answers:
            async for line, more_under_way in answers:
                if line.link is not None:
                    in_a_row = 0
                    sys.stdout.write(format_line(line.uid, line.link))
                else:
                    failed += 1
                    in_a_row += not isinstance(line.error, InvalidArgument)
                    typer.echo(f"line {line.number}: {line.error}", err=True)
                if in_a_row == _FAILURES_IN_A_ROW:
                    typer.echo(f"sfroute: giving up after {in_a_row} failures in a row", err=True)
                    break
                if not more_under_way:
                    sys.stdout.flush()
    sys.stdout.flush()
    return failed


async def _in_order(
    router: AsyncRouter, namespace: str, service: str, lines: AsyncIterator[_Line]
) -> AsyncGenerator[tuple[_Line, bool]]:
    """Route many lines at once; yield them in the order of the input, with whether more are under way."""
    under_way: asyncio.Queue[asyncio.Task[_Line] | None] = asyncio.Queue()
    places = asyncio.Semaphore(_CONCURRENCY)

    async def route_one(line: _Line) -> _Line:
        if line.error is None:
            try:
                line.link = await router.route(namespace, line.uid, service)
            except SfrouteError as error:
                line.error = error
        return line

    async def start_all() -> None:
        try:
            async for line in lines:
                await places.acquire()
                under_way.put_nowait(asyncio.create_task(route_one(line)))
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


async def _given(uids: Iterable[str]) -> AsyncIterator[_Line]:
    for number, uid in enumerate(uids, 1):
        yield _Line(number, uid)


async def _read(descriptor: int) -> AsyncIterator[_Line]:
    """The lines of a file, pipe or terminal as soon as they are there, without blank ones."""
    number = 0
    rest = b""
    async for chunk in _chunks(descriptor):
        *complete, rest = (rest + chunk).split(b"\n")
        for raw in complete:
            number += 1
            if raw.strip():
                yield _parse(number, raw)
    if rest.strip():
        yield _parse(number + 1, rest)


def _parse(number: int, raw: bytes) -> _Line:
    try:
        # Files from Windows end lines with CR LF and may begin with a byte order mark.
        return _Line(
            number, raw.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        )
    except UnicodeDecodeError as error:
        reason = f"the uid must be UTF-8; byte {error.start + 1} of the line is not"
        return _Line(number, "", error=InvalidArgument(reason))


async def _chunks(descriptor: int) -> AsyncIterator[bytes]:
    """What can be read, read by a thread of its own: it may hang in a read that never returns when we want to exit.

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


def _as_text(uid: str, link: Link) -> str:
    # No uid can hold a tab: control characters are refused.
    return f"{uid}\t{link.pod}\n"


def _as_json(uid: str, link: Link) -> str:
    fields = {
        "uid": uid,
        "pod": link.pod,
        "persistent": link.persistent,
        "source": link.source,
        "stale": link.stale,
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"
