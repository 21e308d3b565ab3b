"""The ``demo`` command: shows the progress on standard error, the outcome on standard output."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..common import AsJson, as_json_line, show
from .child import ChildFailed
from .director import direct
from .traffic import Traffic

__all__ = ["demo"]

_T = TypeVar("_T")
_INTERRUPTED = 130
"""128 + SIGINT."""


class _Show:
    """Tells people; with a terminal a progress bar moves, without one there are only the lines."""

    def __init__(self, progress: Progress, requests: int) -> None:
        self._progress = progress
        self._task = progress.add_task("requests", total=requests)

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, soft_wrap=True)

    def routed(self, requests: int) -> None:
        self._progress.update(self._task, completed=requests)


def demo(as_json: AsJson = False) -> None:
    """Route 20,000 requests on a real six-node cluster of this machine, and kill a primary in the middle.

    Three pods and two gateways are processes of their own. Then, of four pods, one is drained, one is killed and one is
    evacuated. The exit code is 1 if a request got lost, an error reached a gateway, a user met two pods, or a pod that
    left kept a user or got a new one.
    """
    traffic = Traffic()
    terminal = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )
    try:
        with progress:
            outcome = asyncio.run(
                _interruptible(direct(traffic, _Show(progress, traffic.requests)))
            )
    except ChildFailed as failure:
        typer.echo(f"sfroute: {failure}", err=True)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("sfroute: interrupted; everything it started has ended", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    broken = outcome.broken_promises()
    if as_json:
        sys.stdout.write(as_json_line({**outcome.fields(), "broken_promises": broken}))
    else:
        show(outcome.tables())
    for sentence in broken:
        typer.echo(f"sfroute: {sentence}", err=True)
    if broken:
        raise typer.Exit(1)


async def _interruptible(play: Coroutine[Any, Any, _T]) -> _T:
    """Let SIGTERM end the play as Ctrl-C does: by cancelling it, so that everything is cleaned up."""
    task = asyncio.ensure_future(play)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task
