"""The owner's side of the guard process: starts and signals servers through it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, Final

from sfroute.errors import SfrouteError

__all__ = ["LocalClusterError", "PortTaken", "Supervisor"]

_GUARD_PROGRAM: Final = Path(__file__).with_name("_guard.py")
_QUIT_SECONDS: Final = 10.0


class LocalClusterError(SfrouteError):
    """A local server or cluster failed, or was not ready in time. The text says what is missing."""


class PortTaken(LocalClusterError):
    """Another process has a port that was asked for."""


def _stop(guard: subprocess.Popen[bytes], owner: int, directory: Path | None) -> None:
    """End the guard, and its servers with it. A forked child of the owner only closes its copies of the pipes."""
    assert guard.stdin is not None
    assert guard.stdout is not None
    if os.getpid() != owner:
        guard.stdin.close()
        guard.stdout.close()
        guard.returncode = (
            0  # not this process's child: keeps Popen from warning that it still runs
        )
        return
    # A request, since a forked child may hold the pipe open. A broken pipe means that the guard has ended.
    with contextlib.suppress(BrokenPipeError):
        guard.stdin.write(b'{"do": "quit"}\n')
    guard.stdin.close()
    guard.stdout.close()
    try:
        guard.wait(_QUIT_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
    if directory is not None:
        # The guard has done this, unless it was killed.
        shutil.rmtree(directory, ignore_errors=True)


class Supervisor:
    """Runs servers as children of one guard process, which ends them when this process ends, however it ends.

    Only the process that made it can use it. A forked child can neither end the servers nor keep them alive.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        # -I -S: starts fast, and the environment cannot change it.
        self._guard = subprocess.Popen(  # noqa: S603 - this Python, our own file
            [sys.executable, "-I", "-S", str(_GUARD_PROGRAM), str(self._owner)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        try:
            self.directory = Path(self._read()["directory"])
        except BaseException:
            _stop(self._guard, self._owner, None)
            raise
        # Also runs when this object is garbage-collected, and at exit.
        self.stop = weakref.finalize(self, _stop, self._guard, self._owner, self.directory)
        """End all servers and remove their folder. Returns when that is done."""

    def start(self, argv: list[str], log: Path) -> int:
        """Start a server and return its process id. Its output is appended to ``log``."""
        reply = self._ask({"do": "start", "argv": argv, "log": str(log)})
        if "error" in reply:
            raise LocalClusterError(
                f"the server could not be started: {reply['error']}; check server_binary="
            )
        return int(reply["pid"])

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a server, if it has not ended. With SIGKILL, returns when it has ended."""
        self._ask({"do": "signal", "pid": pid, "signal": int(number)})

    def status(self, pid: int) -> int | None:
        """A server's exit status (negative: the signal that ended it). None while it runs."""
        status = self._ask({"do": "status", "pid": pid})["status"]
        return None if status is None else int(status)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if os.getpid() != self._owner:
            raise LocalClusterError(
                f"these servers belong to process {self._owner}; only that process can control them"
            )
        if not self.stop.alive:
            raise LocalClusterError("the servers were shut down; start a new cluster")
        with self._lock:
            request["id"] = next(self._ids)
            assert self._guard.stdin is not None
            try:
                self._guard.stdin.write(json.dumps(request).encode() + b"\n")
            except BrokenPipeError:
                raise self._gone() from None
            # An interrupted call (Ctrl-C) may have left its reply unread.
            while (reply := self._read()).get("id") != request["id"]:
                pass
            return reply

    def _read(self) -> dict[str, Any]:
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._gone()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _gone(self) -> LocalClusterError:
        return LocalClusterError(
            "the guard process has ended, and the local servers with it; start a new cluster"
        )
