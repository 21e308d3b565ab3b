"""``sfroute serve`` and ``sfroute agent``, as processes."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx

from .command import environment
from .processes import Child

__all__ = ["Program", "client_of", "free_port", "running", "until"]


class Program:
    """A process that has said where it listens."""

    def __init__(self, process: Child[str], urls: list[str], log: Path) -> None:
        self.process = process
        self.urls = urls
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(15)


@contextlib.contextmanager
def running(
    command: str,
    *arguments: str,
    folder: Path,
    code: int | None = 0,
    through: Sequence[str] = (),
    **variables: str,
) -> Iterator[Program]:
    """Run ``sfroute COMMAND --json ARGUMENTS`` until the block ends; it must then end in order, with this exit code.

    None: whatever the code is. ``through``: a command that runs it.
    """
    log = folder / f"{command}-{time.monotonic_ns()}.log"
    with log.open("w") as errors:
        process = Child(
            [*through, sys.executable, "-m", "sfroute", command, "--json", *arguments],
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        program = Program(process, json.loads(line)["listening"], log)
        yield program
        if process.poll() is None:
            ended = program.end()
            assert code in (None, ended), program.log
    finally:
        process.end()


def client_of(url: str) -> httpx.Client:
    """A client of a program, past any proxy that the environment names."""
    if url.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=url[5:])
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=20)
    return httpx.Client(base_url=url, trust_env=False, timeout=20)


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until it holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
