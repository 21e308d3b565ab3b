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
from collections.abc import Coroutine, Iterable, Sequence
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ..config import RouterConfig
from ..router import AsyncRouter

__all__ = [
    "CALLED_WRONGLY",
    "CLIENT_NAME",
    "FAILED",
    "INTERRUPTED",
    "NO",
    "AsJson",
    "Namespace",
    "Service",
    "Url",
    "as_json_line",
    "at_service",
    "complain",
    "console",
    "counted",
    "discard_output",
    "open_router",
    "plain_table",
    "printable",
    "reader_went_away",
    "require",
    "run",
    "show",
    "write",
]

_T = TypeVar("_T")

FAILED: Final = 1
CALLED_WRONGLY: Final = 2
NO: Final = 3
"""What was asked has been answered, and the answer is no: a script can tell that from a store that is not there."""
INTERRUPTED: Final = 130
"""128 + SIGINT."""
_READER_WENT_AWAY: Final = 141
"""128 + SIGPIPE, as of any other filter in a pipeline."""
_TERMINATED: Final = 143
"""128 + SIGTERM."""

CLIENT_NAME: Final = "sfroute-cli"
"""Not that of the gateways, so that `top` and people who read CLIENT LIST can tell them apart."""

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
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object per line, with all that is known.")
]


def require(**options: str) -> None:
    """Complain of options that were neither given nor set in the environment."""
    for name, value in options.items():
        if not value:
            raise typer.BadParameter(
                f"it is needed; give it or set SFROUTE_{name.upper()}", param_hint=f"--{name}"
            )


def open_router(url: str, config: RouterConfig | None = None) -> AsyncRouter:
    """A router that is to be used in ``async with``."""
    return AsyncRouter.from_url(url, config=config or RouterConfig(client_name=CLIENT_NAME))


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's work; an interruption and a reader that went away end it as they end other programs."""
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


async def _terminable(work: Coroutine[Any, Any, _T]) -> _T:
    """SIGTERM ends the work as Ctrl-C does: in order, so that a terminal gets back its cursor and what it showed."""
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
    """The exit code for it. Nothing that is written from now on is missed by anybody."""
    discard_output()
    return _READER_WENT_AWAY


def discard_output() -> None:
    """Python flushes standard output once more when it exits; there must be something that takes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- what is written

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """What somebody else wrote, fit for a terminal: control characters, which may command it, as escapes."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def counted(count: int, noun: str) -> str:
    """Such as ``"1 pod"`` and ``"1,200 pods"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def at_service(command: str, service: str) -> str:
    """A command to be typed, which works on this service whatever the environment of whoever types it says."""
    return f"sfroute {command} --service {shlex.quote(service)}"


def write(*columns: object) -> None:
    """One line to standard output, its columns separated by tabs."""
    sys.stdout.write("\t".join(printable(str(column)) for column in columns) + "\n")


def as_json_line(fields: object) -> str:
    """One line of JSON. JSON itself escapes the control characters up to 0x1f."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def complain(text: str) -> None:
    """One line to standard error."""
    typer.echo(f"sfroute: {text}", err=True)


def console(*, stderr: bool = False) -> Console:
    """Where rich writes: coloured on a terminal; into a pipe plain, and as wide as it takes unless COLUMNS says so."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=1000)
    return made


def show(*parts: RenderableType) -> None:
    """Write to standard output what rich has laid out, without the blanks that it fills lines with."""
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
