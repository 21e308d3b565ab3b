"""How far long work has come, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .common import console

__all__ = ["counting"]

_LINE_SECONDS: Final = 10.0
"""Seconds between two lines where nobody watches: in a log, or the output of a job."""


class _Count(ProgressColumn):
    """How many, of how many, and how fast."""

    def render(self, task: Task) -> Text:
        total = f" of {task.total:,.0f}" if task.total is not None else ""
        speed = f", {task.speed:,.0f}/s" if task.speed else ""
        return Text(f"{task.completed:,.0f}{total}{speed}")


@contextmanager
def counting(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with how many more are done. ``total`` None: nobody knows how many there are."""
    screen = console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        _Count(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    )
    task = bar.add_task(description, total=total)
    done, told = 0, time.monotonic()

    def more(count: int) -> None:
        nonlocal done, told
        done += count
        bar.update(task, advance=count)
        if not screen.is_terminal and time.monotonic() - told >= _LINE_SECONDS:
            told = time.monotonic()
            of = "" if total is None else f" of {total:,}"
            screen.print(f"{description}: {done:,}{of}")

    # Older versions of rich write an empty line for a bar that is not shown.
    with bar if screen.is_terminal else nullcontext():
        yield more
