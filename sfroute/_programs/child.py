"""The command that ``sfroute agent`` runs: a process group of its own, which does not outlive the agent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

__all__ = ["PASSED_ON", "Child"]

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_CHILD_SUBREAPER: Final = 37
LOOK_SECONDS: Final = 0.05
REAP_SECONDS: Final = 0.5
PASSED_ON: Final = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
"""Signals that mean something to the command alone, such as "read your configuration again"."""


def _preparation() -> Callable[[], None]:
    """What the child does before it becomes the command. Made before the fork: nothing may be imported there."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        # Ctrl-C at a terminal is for the agent, which drains first.
        os.setpgid(0, 0)
        if prctl is not None:
            # An agent that is killed leaves nobody who would say what this pod owns.
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return prepare


def _adopts_orphans() -> bool:
    """True if processes whose parent has died become children of this one, as those of a container do."""
    if os.getpid() == 1:
        return True
    if sys.platform != "linux":
        return False
    found = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0)
    return bool(found.value)


class Child:
    """A running command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._adopts = _adopts_orphans()

    @classmethod
    async def start(cls, command: Sequence[str], variables: Mapping[str, str]) -> Child:
        """Run it with these variables as well. Raises ``OSError``."""
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **variables}, preexec_fn=_preparation()
        )
        return cls(process)

    async def ended(self) -> int:
        """Wait for its end; the exit code as a shell has it."""
        code = await self._process.wait()
        return 128 - code if code < 0 else code

    async def end(self, seconds: float) -> int:
        """SIGTERM to it and to all it has started, and SIGKILL to what is left after so many seconds; the exit code."""
        deadline = asyncio.get_running_loop().time() + seconds
        alive = self._signal(signal.SIGTERM)
        while alive and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            # Those that have ended are of the group until they are collected.
            self._collect()
            alive = self._signal(0)
        if alive:
            self._signal(signal.SIGKILL)
        return await self.ended()

    def pass_on(self, number: int) -> None:
        """Send a signal to the command, and not to what it has started: that may not know the signal."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def reap(self) -> None:
        """Until cancelled: collect orphans of the command that have ended, as the first process of a container must."""
        while self._adopts:
            self._collect()
            await asyncio.sleep(REAP_SECONDS)

    def _collect(self) -> None:
        while self._adopts:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # The command's own end is the event loop's.
            if ended is None or ended.si_pid == self._process.pid:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)

    def _signal(self, number: int) -> bool:
        """True if anybody of the group was there."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True
