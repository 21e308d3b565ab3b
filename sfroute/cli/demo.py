"""``demo``: starts the demo where its source tree is; an installed package does not have it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import typer

from .common import CALLED_WRONGLY, AsJson, complain

__all__ = ["demo"]

PROGRAM: Final = Path(__file__).parents[2] / "examples" / "demo"


def demo(as_json: AsJson = False) -> None:
    """Play the demo of a clone: a real six-node cluster on this machine, and a primary killed in the middle.

    Two gateways route 20,000 requests to three pods, each a process of its own. Then a pod is added to three others,
    and a rebalance moves users to it. Of four pods, one is drained, one is killed and one is evacuated. In the end the
    store is wiped, and nobody moves. The exit code is 1 if a request got lost, an error reached a gateway, a user met
    two pods, a rebalance lost a user or left pods uneven, a pod that left kept a user or got a new one, or a user moved
    because the store forgot. An installed package has no demo; the command then says where it is and exits with 2.
    """
    if not (PROGRAM / "__main__.py").is_file():
        complain("the demo is not installed; it is in examples/demo of a clone or of the sdist")
        complain("to play it there: make demo")
        raise typer.Exit(CALLED_WRONGLY)
    sys.stdout.flush()
    # The same process: signals, the exit code and what it writes are the demo's own.
    os.execv(sys.executable, [sys.executable, str(PROGRAM), *(["--json"] if as_json else [])])  # noqa: S606 - our own program
