"""The guard process: it starts the servers, and ends them when its owner ends. Run as a program; imports no sfroute.

A cluster must end with the process that started it (the owner), however that process ends. The usual tools fall short:

- ``atexit`` and context managers do not run on SIGKILL.
- ``PR_SET_PDEATHSIG`` fires when the forking *thread* ends, so a cluster started in a worker thread would die with that
  thread. It also needs code between fork and exec, which is unsafe in a process with threads.
- End of file on a pipe does not come while a forked child of the owner holds an inherited copy of the write end.

So the servers are children of this small process. It has one thread. It ends them when the pipe from its owner closes
(noticed at once), or when its parent is no longer the owner (noticed within ``CHECK_SECONDS``, whoever holds the pipe).
It runs in a session of its own, so a Ctrl-C in the owner's terminal reaches neither it nor the servers. If this process
itself is killed, ``PR_SET_PDEATHSIG`` ends the servers on Linux; with one thread, its two drawbacks do not apply.

As their parent, the guard also knows when a process id is no longer a server's, so a signal never hits a stranger.

The owner writes requests and reads replies. Each is a line of JSON; a reply has the ``id`` of its request.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

CHECK_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> Callable[[], None] | None:
    """What a server runs between fork and exec; None except on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    guard = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard ended before prctl
            os._exit(1)

    return arm


class Guard:
    """The servers of one owner, and the folder that holds their data."""

    def __init__(self, owner: int) -> None:
        self._owner = owner
        self._servers: dict[int, subprocess.Popen[bytes]] = {}
        self._before_exec = _die_with_parent()
        self._directory = Path(tempfile.mkdtemp(prefix="sfroute-"))

    def serve(self) -> None:
        """Answer requests until the owner says ``quit``, closes the pipe or ends."""
        self._reply({"directory": str(self._directory)})
        received = b""
        while os.getppid() == self._owner:
            for server in self._servers.values():
                server.poll()  # reaps a dead one, so it does not stay a zombie
            readable, _, _ = select.select([0], [], [], CHECK_SECONDS)
            if not readable:
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                return
            *lines, received = (received + chunk).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["do"] == "quit":
                    return
                self._reply({"id": request["id"], **self._answer(request)})

    def end(self) -> None:
        """Kill every server, wait for each of them, then remove the folder."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for server in self._servers.values():
            server.kill()
        for server in self._servers.values():
            server.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "start":
            return self._start(request["argv"], request["log"])
        server = self._servers[request["pid"]]
        if request["do"] == "signal":
            server.send_signal(request["signal"])  # polls first: a reused pid is never hit
            if request["signal"] == signal.SIGKILL:
                server.wait()
        return {"status": server.poll()}

    def _start(self, argv: list[str], log: str) -> dict[str, Any]:
        try:
            with Path(log).open("ab") as output:
                server = subprocess.Popen(  # noqa: S603 - the server that the owner chose
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._directory,
                    preexec_fn=self._before_exec,  # noqa: PLW1509 - one thread
                )
        except OSError as error:
            return {"error": str(error)}
        self._servers[server.pid] = server
        return {"pid": server.pid}

    def _reply(self, reply: dict[str, Any]) -> None:
        os.write(1, json.dumps(reply).encode() + b"\n")


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit


def main(owner: int) -> None:
    """Guard the servers of process ``owner``."""
    signal.signal(signal.SIGTERM, _stop)
    guard = Guard(owner)
    try:
        with contextlib.suppress(BrokenPipeError):  # the owner has ended
            guard.serve()
    finally:
        guard.end()


if __name__ == "__main__":
    main(int(sys.argv[1]))
