"""What tests of time are measured with tells a process that did not run from one that took its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import Child
from support.stalls import Stalls

WAITS = """
import sys, time
from support.stalls import Stalls

with Stalls() as stalls:
    began = time.monotonic()
    print("ready", flush=True)
    sys.stdin.readline()
    ended = time.monotonic()
    print(ended - began, stalls.took(began, ended), flush=True)
"""


def test_a_process_that_was_stopped_is_found_out() -> None:
    with Child(
        [sys.executable, "-c", WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        stopped = time.monotonic()
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(child.pid, signal.SIGCONT)
        stood_still = time.monotonic() - stopped
        told, _ = child.communicate("\n", timeout=60)
    elapsed, took = map(float, told.split())
    # It may have run for a moment after the signal was sent, and have been stopped by others.
    assert elapsed >= 0.5
    assert 0 <= took <= elapsed - min(0.5, stood_still) + 0.05


def count() -> None:
    for _ in range(3_000_000):
        pass


@pytest.mark.parametrize("busy", [lambda: time.sleep(0.2), count], ids=["waits", "works"])
def test_a_thread_that_waits_or_works_has_not_stood_still(
    stalls: Stalls, busy: Callable[[], None]
) -> None:
    """Sooner or later; whatever else runs here takes its part."""
    took = elapsed = 0.0
    give_up = time.monotonic() + 60
    while took <= elapsed / 2:
        assert time.monotonic() < give_up, (took, elapsed)
        began = time.monotonic()
        busy()
        ended = time.monotonic()
        took, elapsed = stalls.took(began, ended), ended - began
