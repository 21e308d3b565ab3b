"""How long this process did not run: a busy machine stops any of them, for seconds at times.

A bound that is promised holds for a gateway that runs. So what a test times is measured without these stalls, and its
bound stays what is promised.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final

__all__ = ["Stalls"]

TICK: Final = 0.005


class Stalls:
    """A thread that does nothing but wake up. What it oversleeps, the whole process has overslept.

    It needs the interpreter for a moment only: a loop or a thread that runs Python, or waits, is no stall.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._stalls: list[tuple[float, float]] = []
        self._awake = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="stalls", daemon=True)

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(TICK):
            self._note()

    def _note(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._awake > 2 * TICK:
                self._stalls.append((self._awake + TICK, now))
            self._awake = now

    def between(self, began: float, ended: float) -> float:
        """Seconds that this process did not run, between two instants of ``time.monotonic()``."""
        # It may have woken up this moment, the thread that asks before the one that watches.
        self._note()
        return sum(max(0.0, min(ended, end) - max(began, start)) for start, end in self._stalls)

    def took(self, began: float, ended: float | None = None) -> float:
        """Seconds that this process ran, from one instant to another, or to now."""
        ended = time.monotonic() if ended is None else ended
        return ended - began - self.between(began, ended)
