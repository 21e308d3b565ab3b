"""Pods and gateways as processes, as the harness sees them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from .gateway import GatewayPlan
from .pod import PodPlan

__all__ = ["GatewayProcess", "PodProcess"]

READY_SECONDS: Final = 120.0
ANSWER_SECONDS: Final = 120.0
_LONGEST: Final = 2**24


class _Process:
    """A process that says so when it is ready, and ends in order when its standard input does."""

    def __init__(self, module: str, plan: object, enter: Sequence[str]) -> None:
        program = f"tests.faults.owners.{module}"
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-m", program, json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.stopped = False

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def hear(self, seconds: float) -> str:
        """The next line it says."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"a process said nothing for {seconds:g} s, or ended")
        return line.decode()

    def say(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def stop(self) -> None:
        """SIGSTOP."""
        os.kill(self._process.pid, signal.SIGSTOP)
        self.stopped = True

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self._process.pid, signal.SIGCONT)
        self.stopped = False

    def kill(self) -> None:
        """SIGKILL; returns when it has ended."""
        self._process.kill()
        self._process.wait()
        self._close()

    def end(self) -> None:
        """Let it end in order, and wait for that."""
        if self.stopped:
            self.resume()
        if self.alive:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise
        self._close()

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


class PodProcess(_Process):
    """A pod."""

    def __init__(self, plan: PodPlan, enter: Sequence[str] = ()) -> None:
        super().__init__("pod", asdict(plan), enter)
        self._socket = Path(plan.socket)

    def claims(self) -> dict[str, int]:
        """uid -> fence of its sessions."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(READY_SECONDS)
            connection.connect(str(self._socket))
            connection.sendall(b'["claims"]\n')
            with connection.makefile("rb", buffering=_LONGEST) as file:
                answer: dict[str, Any] = json.loads(file.readline())
        return answer["claims"]  # type: ignore[no-any-return]

    def leave(self, uids: Sequence[str], grace: int) -> None:
        """End the sessions of these users, one after the other."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(READY_SECONDS)
            connection.connect(str(self._socket))
            with connection.makefile("rb") as file:
                for uid in uids:
                    connection.sendall(json.dumps(["leave", uid, grace]).encode() + b"\n")
                    file.readline()

    def take_over_socket(self, path: Path) -> None:
        """From now on this is where gateways come."""
        self._socket = self._socket.rename(path)


class GatewayProcess(_Process):
    """A gateway."""

    def __init__(self, plan: GatewayPlan, enter: Sequence[str] = ()) -> None:
        super().__init__("gateway", asdict(plan), enter)
        self.plan = plan

    def answer(self) -> Any:
        """What it says to the command before."""
        return json.loads(self.hear(ANSWER_SECONDS))
