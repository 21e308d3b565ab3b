"""Many deadlines, one timer, which expires them in order.

``asyncio.timeout`` makes a timer for each, which is a tenth of a write's time. Here all share one, since nearly all
deadlines are as far away when they are set and so come in the order of their making.

What is done is let go of soon, even behind something that is stuck: at most as much of it is held as is under way, and
``SPARE`` more.

A timer that was kept from running (the process was stopped, something held up the loop) finds deadlines passed whose
answers may have arrived long ago. So what has arrived is read first. Once: a loop that is always late ends what is due,
too.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["LATE", "Deadlines", "Limited"]

LATE: Final = 0.1
"""Seconds. A timer that runs so much later than planned was kept from it, and so was the reading of sockets."""

GRACE: Final = 0.05
"""Seconds in which the loop then reads what has arrived."""

SPARE: Final = 64
"""Things done that may wait in the queue at any time: to look for them costs more than to hold them."""


class Limited(Protocol):
    """What has a deadline.

    Attributes:
        deadline: instant at which it is given up.
        done: it is over, one way or another.
    """

    deadline: float
    done: bool


_T = TypeVar("_T", bound=Limited)


class Deadlines(Generic[_T]):
    """See the module's docstring.

    Args:
        clock: the time, in seconds.
        expire: called with what is not done at its deadline, once.
    """

    # What the native part reads, where it finds it.
    __slots__ = ("__dict__", "__weakref__", "_armed_for", "_queue", "_sweep_at")

    def __init__(self, clock: Callable[[], float], expire: Callable[[_T], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_T] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = inf
        # When the timer is due, by the loop's clock. Not every loop's timers say that themselves.
        self._due = inf
        self._graced = False
        self._sweep_at = SPARE

    def watch(self, item: _T) -> None:
        """Give it up at its deadline, unless it is done by then."""
        queue = self._queue
        while queue and queue[0].done:
            queue.popleft()
        if len(queue) >= self._sweep_at:
            self._sweep()
        if queue and item.deadline < queue[-1].deadline:
            # It has spent some of its time already, or has less.
            insort(queue, item, key=lambda each: each.deadline)
        else:
            queue.append(item)
        if item.deadline < self._armed_for:
            self._arm(item.deadline)

    def close(self) -> list[_T]:
        """Watch no longer. Returns what was not done."""
        self._disarm()
        left = [item for item in self._queue if not item.done]
        self._queue.clear()
        return left

    def _sweep(self) -> None:
        """Let go of what is done, wherever it stands. Each item is looked at twice on average, at most."""
        left = [item for item in self._queue if not item.done]
        self._queue.clear()
        self._queue.extend(left)
        self._sweep_at = 2 * len(left) + SPARE

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._armed_for = None, inf

    def _arm(self, deadline: float) -> None:
        # It may be armed for something that has long been done.
        self._disarm()
        self._armed_for = deadline
        delay = max(0.0, deadline - self._clock())
        self._due = self._loop.time() + delay
        self._timer = self._loop.call_later(delay, self._check)

    def _check(self) -> None:
        self._timer = None
        if not self._graced and self._loop.time() - self._due > LATE:
            self._graced = True
            self._timer = self._loop.call_later(GRACE, self._check)
            return
        self._graced = False
        self._armed_for = inf
        now = self._clock()
        queue = self._queue
        while queue and (queue[0].done or queue[0].deadline <= now):
            item = queue.popleft()
            if not item.done:
                self._expire(item)
        if queue:
            self._arm(queue[0].deadline)
