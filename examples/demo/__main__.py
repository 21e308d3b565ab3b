"""Pods and gateways as processes of their own, on a real six-node cluster of this machine.

    python examples/demo [--json]

Three pods and two gateways serve 20,000 requests, and a primary is killed in the middle. Then a pod is added to three
others, and users are moved to it. Four pods leave: one is drained, one is killed, one is evacuated. In the end the
store forgets every link, and nobody moves. Progress goes to standard error, the outcome to standard output. The exit
code is 1 if a request got lost, an error reached a gateway, a user met two pods, a rebalance lost a user or left pods
uneven, a pod that left kept a user or got a new one, or a user moved because the store forgot.

Needs the extras ``cli`` and ``embedded``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar

from arrivals import Arrivals
from child import ChildFailed
from departures import Departures
from director import Result, direct
from failover import Failover
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from traffic import Traffic
from wipe import Wipe

from sfroute import SfrouteError

_T = TypeVar("_T")

TRAFFIC: Final = Traffic()
SCENES: Final = (Failover(TRAFFIC), Arrivals(), Departures(), Wipe())

_FAILED: Final = 1
_INTERRUPTED: Final = 130
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


def main(as_json: bool) -> int:
    """Play all scenes and show what they observed; return the exit code."""
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
            play = direct(SCENES, _Show(progress, TRAFFIC.requests))
            results = asyncio.run(_interruptible(play))
    except (ChildFailed, SfrouteError) as failure:
        complain(str(failure))
        return _FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        complain("interrupted; everything it started has ended")
        return _INTERRUPTED
    broken = [sentence for result in results.values() for sentence in result.broken_promises()]
    if as_json:
        fields = {name: result.fields() for name, result in results.items()}
        print(json.dumps({**fields, "broken_promises": broken}))
    else:
        show(results)
    for sentence in broken:
        complain(sentence)
    return _FAILED if broken else 0


def show(results: Mapping[str, Result]) -> None:
    """The tables of all scenes, without the blanks with which rich fills lines."""
    console = Console(highlight=False)
    with console.capture() as captured:
        for number, result in enumerate(results.values()):
            console.print(*([Text()] if number else []), result.tables(), sep="\n")
    for line in captured.get().splitlines():
        print(line.rstrip())


def complain(text: str) -> None:
    print(f"sfroute: {text}", file=sys.stderr)


async def _interruptible(play: Coroutine[Any, Any, _T]) -> _T:
    """Let SIGTERM end the play as Ctrl-C does: by cancelling it, so that everything is cleaned up."""
    task = asyncio.ensure_future(play)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object with all figures")
    sys.exit(main(parser.parse_args().json))
