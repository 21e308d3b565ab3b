"""Pods and gateways as processes, and how a test talks to them: JSON lines to standard input and from standard output.

All processes of a machine share one monotonic clock (``CLOCK_MONOTONIC``), so instants can be compared.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

__all__ = ["Fleet", "Process", "say", "words"]

HERE = Path(__file__).parent
CLOCK_OFF = "SFROUTE_TEST_CLOCK_OFF"
"""By how many seconds the clock of a process is ahead."""


class Process:
    """One process, as the test sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asking = asyncio.Lock()

    @classmethod
    async def start(cls, script: str, clock_off: float, **options: object) -> Self:
        """Start a script of this folder, its clock ahead by ``clock_off``, and wait for its first word."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"placement.{script}",
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
            cwd=HERE.parent,
            env={**os.environ, CLOCK_OFF: str(clock_off)},
        )
        self = cls(process)
        try:
            await self._hear()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return self

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def ask(self, do: str, **options: object) -> Any:
        """Tell it to do something, and wait for what it says of it."""
        async with self._asking:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": do, **options}).encode() + b"\n")
            return await self._hear()

    async def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"the process ended with {await self._process.wait()}"
        return json.loads(line)

    async def end(self, number: signal.Signals) -> float:
        """Send a signal and wait for the end. Returns the instant of the signal."""
        sent = time.monotonic()
        self._process.send_signal(number)
        await self._process.wait()
        return sent

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def kill(self) -> None:
        if self.running:
            await self.end(signal.SIGKILL)


class Fleet(AsyncExitStack):
    """Ends what was started."""

    async def start(self, script: str, clock_off: float, **options: object) -> Process:
        process = await Process.start(script, clock_off, **options)
        self.push_async_callback(process.kill)
        return process


# --- the processes' side


def set_clock_off(seconds: float) -> None:
    """Let the clock of this process be wrong, as that of another machine may be."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)


# Here, and not when the options are read: by then sfroute is imported, and may have kept the functions.
if CLOCK_OFF in os.environ:
    set_clock_off(float(os.environ[CLOCK_OFF]))


def say(what: object) -> None:
    """Answer the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def words() -> asyncio.Queue[dict[str, Any]]:
    """What the test says, as it comes. A process whose test has gone ends."""
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        rest = b""
        while chunk := os.read(0, 1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                loop.call_soon_threadsafe(queue.put_nowait, json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return queue
