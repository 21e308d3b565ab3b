"""Several processes that serve one set of sockets.

The parent forks them before it has any thread or event loop, starts one anew when it dies, and ends them in order. A
worker ends when the parent's end of a pipe is closed, so none outlives the parent, however that ends.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

__all__ = ["run_workers"]

_log = logging.getLogger("sfroute.serve")

RESTART_SECONDS: Final = 1.0
"""Between two starts of a worker that dies at once."""
_TOLD: Final = (signal.SIGTERM, signal.SIGINT)


def run_workers(count: int, work: Callable[[int, int], int], patience: float) -> int:
    """Run ``work(number, pipe)`` in ``count`` processes until SIGTERM or SIGINT; return an exit code.

    ``pipe`` is readable (at its end) when the parent has gone. Workers that have not ended ``patience`` seconds after
    they were told are killed, and the exit code is 1.
    """
    heeded = {*_TOLD, signal.SIGCHLD}
    # Blocked, and waited for: nothing happens between two lines.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored, children would leave no exit code
    reader, writer = os.pipe()
    gc.collect()
    gc.freeze()  # what is there before the fork stays shared

    def start(number: int) -> int:
        child = os.fork()
        if child == 0:
            os.close(writer)
            code = 1
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                code = work(number, reader)
            except BaseException:  # noqa: BLE001 - nothing may unwind into what the parent will run
                _log.exception("worker %d failed", number)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return child

    running = {start(number): (number, time.monotonic()) for number in range(count)}
    while True:
        told = signal.sigwait(heeded)
        if told in _TOLD:
            break
        for child in _ended(running):
            number, since = running.pop(child)
            _log.error("worker %d (process %d) has died; it is started anew", number, child)
            pause = RESTART_SECONDS - (time.monotonic() - since)
            if pause > 0 and signal.sigtimedwait(_TOLD, pause) is not None:
                os.kill(os.getpid(), signal.SIGTERM)  # for the loop around this one
                break
            running[start(number)] = number, time.monotonic()
    code = _end(running, patience)
    os.close(writer)  # not before: it would hurry them
    return code


def _ended(running: dict[int, tuple[int, float]]) -> list[int]:
    return [child for child in running if os.waitpid(child, os.WNOHANG)[0] == child]


def _end(running: dict[int, tuple[int, float]], patience: float) -> int:
    for child in running:
        os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while running and time.monotonic() < deadline:
        for child in _ended(running):
            del running[child]
        if running:
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)
    for child in running:
        _log.error("worker %d did not end in time; it is killed", running[child][0])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return 1 if running else 0
