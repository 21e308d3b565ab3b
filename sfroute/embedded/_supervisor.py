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
    """A local server or cluster did not do in time what it should; the text says what is missing."""


class PortTaken(LocalClusterError):
    """A port that was asked for is somebody else's."""


def _stop(guard: subprocess.Popen[bytes], owner: int, directory: Path | None) -> None:
    """End the guard and with it its servers; a forked child of the owner only drops its copies."""
    assert guard.stdin is not None
    assert guard.stdout is not None
    if os.getpid() != owner:
        guard.stdin.close()
        guard.stdout.close()
        guard.returncode = 0  # not a child of this process: Popen must not warn that it still runs
        return
    # A request, since a forked child may keep the pipe open; a broken pipe says that the guard has ended.
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
        # Done by the guard, unless it was killed itself.
        shutil.rmtree(directory, ignore_errors=True)


class Supervisor:
    """Servers as children of one guard process, which ends them when this process ends, however it does.

    Only the process that made it can use it: a forked child can neither end nor prolong the servers.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        # -I -S: quick to start, and nothing in the environment can change it.
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
        # Also runs when this object is collected, and at exit.
        self.stop = weakref.finalize(self, _stop, self._guard, self._owner, self.directory)
        """End all servers and remove their folder; returns when that is done."""

    def start(self, argv: list[str], log: Path) -> int:
        """Start a server, its output appended to ``log``; returns its process id."""
        reply = self._ask({"do": "start", "argv": argv, "log": str(log)})
        if "error" in reply:
            raise LocalClusterError(f"the server could not be started: {reply['error']}")
        return int(reply["pid"])

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a server, nothing if it has ended; after SIGKILL it has."""
        self._ask({"do": "signal", "pid": pid, "signal": int(number)})

    def status(self, pid: int) -> int | None:
        """The exit status of a server (negative: the signal that ended it), None while it runs."""
        status = self._ask({"do": "status", "pid": pid})["status"]
        return None if status is None else int(status)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if os.getpid() != self._owner:
            raise LocalClusterError(
                f"these servers belong to process {self._owner}; only that one can control them"
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
            "the guard process of the local servers has ended, and the servers with it; start a new cluster"
        )
