"""Processes that tests start. None outlives the block that it belongs to, however the block ends."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from types import TracebackType
from typing import AnyStr

__all__ = ["Child", "read_until"]


class Child(subprocess.Popen[AnyStr]):
    """A process that is killed at the end of its ``with`` block, if it still runs then.

    ``Popen`` would wait for it: a test that fails would hang until its time is up, and its process would be left.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill it, wait until it has ended, and close its pipes. Nothing is done to one that has ended."""
        self.kill()
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):  # what it never read
                    stream.close()


def read_until(terminal: int, wanted: bytes | None) -> bytes:
    """What a terminal shows until that is among it; None: until its program has ended."""
    seen = b""
    while wanted is None or wanted not in seen:
        try:
            some = os.read(terminal, 65536)
        except OSError:  # Linux: the other side is closed
            some = b""
        if not some:
            assert wanted is None, seen
            break
        seen += some
    return seen
