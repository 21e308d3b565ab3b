"""What tests start ends with them: ``support.processes``."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from support.processes import Child

FOREVER = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(3600)"]


def test_a_process_ends_with_the_block_of_a_test_that_fails() -> None:
    child = Child(FOREVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None

    def fail() -> None:
        with child:
            assert child.stdout is not None
            assert child.stdin is not None
            assert child.stdout.readline() == "ready\n"
            child.stdin.write("never read")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert child.returncode == -signal.SIGKILL
    assert child.stdin.closed
    assert child.stdout.closed


def test_one_that_is_stopped_ends_too() -> None:
    with Child(FOREVER, stdout=subprocess.DEVNULL) as child:
        child.send_signal(signal.SIGSTOP)
    assert child.returncode == -signal.SIGKILL


def test_what_has_ended_keeps_its_exit_code() -> None:
    with Child([sys.executable, "-c", "raise SystemExit(3)"]) as child:
        child.wait()
    assert child.returncode == 3
