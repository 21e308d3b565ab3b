"""What the commands share: their options, how they run, what they write and how they end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Coroutine, Iterable, Sequence
from difflib import SequenceMatcher
from functools import partial
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .._fronts.router import AsyncRouter
from ..config import RouterConfig
from ..telemetry import names

__all__ = [
    "CALLED_WRONGLY",
    "CLIENT_NAME",
    "FAILED",
    "INTERRUPTED",
    "NO",
    "AsJson",
    "Idle",
    "Namespace",
    "PodId",
    "Service",
    "Url",
    "as_json_line",
    "at_service",
    "complain",
    "confirm",
    "console",
    "counted",
    "discard_output",
    "likely",
    "listed",
    "open_router",
    "plain_table",
    "plural",
    "pod_id",
    "printable",
    "reader_went_away",
    "require",
    "run",
    "shortened",
    "show",
    "tell_of_outages",
    "write",
]

_T = TypeVar("_T")

FAILED: Final = 1
CALLED_WRONGLY: Final = 2
NO: Final = 3
"""The answer is no. A script can tell that from a store that cannot be reached."""
INTERRUPTED: Final = 130
"""128 + SIGINT."""
_READER_WENT_AWAY: Final = 141
"""128 + SIGPIPE, as of any other filter in a pipeline."""
_TERMINATED: Final = 143
"""128 + SIGTERM."""

CLIENT_NAME: Final = "sfroute-cli"
"""Differs from the gateways' name, so that `top` and readers of CLIENT LIST can tell them apart."""

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="SFROUTE_URL",
        help="redis://, rediss://, redis+cluster:// or rediss+cluster://; start nodes separated by commas. "
        "Others can read a command's arguments: a URL with a password belongs in the variable.",
    ),
]
Namespace = Annotated[
    str,
    typer.Option("--namespace", envvar="SFROUTE_NAMESPACE", help="The namespace of the service."),
]
Service = Annotated[
    str,
    typer.Option("--service", envvar="SFROUTE_SERVICE", help="The service that owns the users."),
]
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds_of(text: str) -> float:
    """The seconds of a duration such as ``30d``, ``12h``, ``90m`` or ``600s``; a bare number is seconds."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd]?)", text, re.ASCII)
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not seconds:
        raise typer.BadParameter("it must be a duration above 0, such as 30d, 12h, 90m or 600s")
    return seconds


Idle = Annotated[
    float | None,
    typer.Option(
        "--idle",
        parser=seconds_of,
        metavar="DURATION",
        help="Count separately the persistent links that nobody has read or written for this long: "
        "30d, 12h, 90m or 600s.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object per line, with all that is known.")
]


def pod_id(text: str) -> int:
    """A pod's id as it is typed. If a pod's name was typed instead, the error says what an id is."""
    if text.isascii() and text.isdigit():
        return int(text)
    name, _, ending = text.rpartition("-")
    meant = f", such as {int(ending)} for {text[:80]!a}" if name and ending.isdecimal() else ""
    raise typer.BadParameter(f"a pod's id is a number from 0{meant}")


PodId = Annotated[
    int, typer.Argument(parser=pod_id, metavar="POD", help="The pod's id.", show_default=False)
]


def require(**options: str) -> None:
    """Complain of options that were neither given nor set in the environment."""
    for name, value in options.items():
        if not value:
            raise typer.BadParameter(
                f"it is needed; give it or set SFROUTE_{name.upper()}", param_hint=f"--{name}"
            )


def open_router(url: str, config: RouterConfig | None = None) -> AsyncRouter:
    """A router, for use in ``async with``."""
    return AsyncRouter.from_url(url, config=config or RouterConfig(client_name=CLIENT_NAME))


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's work. Ctrl-C, and a reader that has gone away, end it as they end other programs."""
    # What the library would log, it also raises or returns; the screen is the command's.
    logging.getLogger("sfroute").addHandler(logging.NullHandler())
    # Handlers are the main thread's business.
    terminable = threading.current_thread() is threading.main_thread()
    try:
        result = asyncio.run(_terminable(work) if terminable else work)
        sys.stdout.flush()
    except BrokenPipeError:
        raise typer.Exit(reader_went_away()) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    return result


class _Outages(logging.Handler):
    """Says what the router logs of an outage in the words of a waiting command."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.__dict__
        if names.DURATION in fields:
            self._tell(f"the store is back after {fields[names.DURATION]:.1f} s")
        elif names.SERVER_ADDRESS in fields:
            server = f"{fields[names.SERVER_ADDRESS]}:{fields[names.SERVER_PORT]}"
            why = fields[names.REASON]
            self._tell(f"the store cannot be reached ({server}: {why}); waiting for it")
        else:
            self._tell(record.getMessage())


def tell_of_outages(tell: Callable[[str], None]) -> logging.Logger:
    """A logger for the router of a command, which says what it waits for while the store is away."""
    logger = logging.getLogger("sfroute.cli")
    logger.propagate = False
    logger.handlers = [_Outages(tell)]
    return logger


async def _terminable(work: Coroutine[Any, Any, _T]) -> _T:
    """SIGTERM ends the work as Ctrl-C does: in order, so that the terminal is restored."""
    task = asyncio.ensure_future(work)
    told = False

    def end() -> None:
        nonlocal told
        told = True
        task.cancel()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            raise typer.Exit(_TERMINATED) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def reader_went_away() -> int:
    """The exit code for a reader that went away. Nobody misses what is written from now on."""
    discard_output()
    return _READER_WENT_AWAY


def discard_output() -> None:
    """Discard standard output: Python flushes it once more when it exits, and that must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- what is written

_UNPRINTABLE: Final = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
"""Unicode's categories of what is not to be printed: controls, formats (such as those that turn the direction of
writing), unassigned and private characters, surrogates, separators of lines and paragraphs."""


def _without_unprintable(text: str, escape: Callable[[int], str]) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        escape(ord(each)) if unicodedata.category(each) in _UNPRINTABLE else each for each in text
    )


def _escape(point: int) -> str:
    if point <= 0xFF:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"


def _json_escape(point: int) -> str:
    return json.dumps(chr(point))[1:-1] if point != 0x7F else "\\u007f"


def printable(text: str) -> str:
    """What somebody else wrote, fit for a terminal: whatever may command it, or hide or turn around what is shown, as
    escapes.
    """
    return _without_unprintable(text, _escape)


def shortened(text: str, most: int = 40) -> str:
    """The beginning of a text that somebody else wrote."""
    return text if len(text) <= most else text[: most - 3] + "..."


def counted(count: int, noun: str) -> str:
    """Such as ``"1 pod"`` and ``"1,200 pods"``."""
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Such as ``"pods"``, ``"primaries"`` and ``"keys"``."""
    changes = noun.endswith("y") and noun[-2:-1] not in "aeiou"
    return f"{noun[:-1]}ies" if changes else f"{noun}s"


def at_service(command: str, service: str) -> str:
    """A command to type. It works on this service whatever the environment says."""
    return f"sfroute {command} --service {shlex.quote(service)}"


def write(*columns: object) -> None:
    """One line to standard output, its columns separated by tabs."""
    sys.stdout.write("\t".join(printable(str(column)) for column in columns) + "\n")


def as_json_line(fields: object) -> str:
    """One line of JSON. Whatever is not fit for a terminal is escaped, so readers get it back unchanged."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    return _without_unprintable(text, _json_escape) + "\n"


def listed(names: Sequence[object], most: int = 4) -> str:
    """A few of the names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def likely(names: Iterable[str], mistyped: str) -> str:
    """Names that exist, those first that are most like the one that does not."""
    return listed(sorted(names, key=partial(_likeness, mistyped), reverse=True), 10)


def _likeness(mistyped: str, name: str) -> float:
    return SequenceMatcher(None, mistyped, name).ratio()


def complain(text: str) -> None:
    """One line to standard error."""
    typer.echo(f"sfroute: {printable(text)}", err=True)


def confirm(question: str, yes: str = "--yes") -> None:
    """Ask on the terminal; end the command unless the answer is yes. ``yes``: the option that answers beforehand."""
    if not sys.stdin.isatty():
        complain(f"{question} Nobody can be asked here: pass {yes} to do it")
        raise typer.Exit(CALLED_WRONGLY)
    # Not typer.confirm(): it writes a blank to standard output, which may be a pipe.
    typer.echo(f"{printable(question)} [y/N] ", err=True, nl=False)
    try:
        answer = sys.stdin.readline(80).strip().lower()
    except KeyboardInterrupt:
        typer.echo(err=True)
        raise typer.Exit(INTERRUPTED) from None
    if answer not in ("y", "yes"):
        complain("nothing was changed")
        raise typer.Exit(FAILED)


def console(*, stderr: bool = False) -> Console:
    """Where rich writes: in colour on a terminal, plain into a pipe and as wide as needed unless COLUMNS says so."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=1000)
    return made


def show(*parts: RenderableType) -> None:
    """Write to standard output what rich has laid out, without trailing blanks."""
    screen = console()
    with screen.capture() as captured:
        screen.print(*parts, sep="\n")
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table without lines, which other programs can read too. Columns whose name begins with ``>`` hold numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if heading.startswith(">") else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(
            *(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row)
        )
    return table
