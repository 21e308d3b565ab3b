"""How a scene and its processes talk: words to a process's standard input, JSON lines from its standard output.

When the standard input of a process ends, its director is gone, however it ended. The process then exits at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

__all__ = ["Child", "ChildFailed", "Director", "children"]

_LONGEST_LINE = 64 * 1024 * 1024
"""Bytes; a gateway's report holds a few numbers for every request."""
_GRACE = 3.0
"""Seconds a process has to end by itself."""


class ChildFailed(Exception):
    """A process of the demo ended before its time; its own error output says why."""


class Child:
    """A process, as its director sees it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def start(cls, name: str, program: str, options: Mapping[str, object]) -> Self:
        """Start a program of this folder, with ``options`` as its one argument."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name(program)),
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            # Ctrl-C reaches every process of the terminal's group; the director alone decides what it means.
            start_new_session=True,
        )
        return cls(name, process)

    def tell(self, word: str) -> None:
        """Send one word."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

    async def hear(self) -> dict[str, Any]:
        """The next thing the process reports.

        Raises:
            ChildFailed: it ended instead.
        """
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            raise ChildFailed(f"{self.name} ended with exit code {code} before it was done")
        heard: dict[str, Any] = json.loads(line)
        return heard

    async def kill(self) -> None:
        """SIGKILL; returns when the process has ended."""
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """End the process: by the end of its standard input, or by force."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _GRACE)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def children(
    program: str, options: Mapping[str, Mapping[str, object]]
) -> AsyncIterator[list[Child]]:
    """One process of ``program`` for each name in ``options``; all are ready when this is entered, and ended after it.

    Raises:
        ChildFailed: one ended before it was ready.
    """
    async with AsyncExitStack() as stack:
        started = []
        for name, its_own in options.items():
            child = await Child.start(name, program, its_own)
            stack.push_async_callback(child.stop)
            started.append(child)
        for child in started:
            await child.hear()
        yield started


class Director:
    """The director, as one of its processes sees it. Make it in the process's event loop."""

    def __init__(self) -> None:
        self._words: asyncio.Queue[str] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, name="director", daemon=True).start()

    def _listen(self) -> None:
        # Not sys.stdin: this thread would hold its lock when Python exits and wants it.
        while words := os.read(0, 4096):
            for word in words.decode().split():
                self._loop.call_soon_threadsafe(self._words.put_nowait, word)
        # Nobody is left to report to, and nothing here is worth saving.
        os._exit(0)

    async def wait_for(self, word: str) -> None:
        """Wait until the director says ``word``."""
        while await self.next_word() != word:
            pass

    async def next_word(self) -> str:
        """Wait for whatever the director says next."""
        return await self._words.get()

    def report(self, event: str, **fields: object) -> None:
        """Tell the director something."""
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()
