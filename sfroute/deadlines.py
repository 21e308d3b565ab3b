"""Many deadlines, one timer: what is under way is given up in the order in which it must be.

``asyncio.timeout`` makes a timer for each, which is a tenth of a write's time. Here all share one, since nearly all
deadlines are as far away when they are set and so come in the order of their making.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

__all__ = ["Deadlines", "Limited"]


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
    """See the module's text.

    Args:
        clock: the time, in seconds.
        expire: called with what is not done at its deadline, once.
    """

    def __init__(self, clock: Callable[[], float], expire: Callable[[_T], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_T] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, item: _T) -> None:
        """Give it up at its deadline, unless it is done by then."""
        queue = self._queue
        while queue and queue[0].done:
            queue.popleft()
        if queue and item.deadline < queue[-1].deadline:
            # It has spent some of its time already.
            insort(queue, item, key=lambda each: each.deadline)
            if queue[0] is item and self._timer is not None:
                self._timer.cancel()
                self._timer = None
        else:
            queue.append(item)
        if self._timer is None:
            self._arm(item.deadline)

    def close(self) -> list[_T]:
        """Watch no longer. Returns what was not done."""
        if self._timer is not None:
            self._timer.cancel()
        left = [item for item in self._queue if not item.done]
        self._queue.clear()
        return left

    def _arm(self, deadline: float) -> None:
        self._timer = self._loop.call_later(max(0.0, deadline - self._clock()), self._check)

    def _check(self) -> None:
        self._timer = None
        now = self._clock()
        queue = self._queue
        while queue and (queue[0].done or queue[0].deadline <= now):
            item = queue.popleft()
            if not item.done:
                self._expire(item)
        if queue:
            self._arm(queue[0].deadline)
