"""How long a fetch is awaited, in time that this process was there to see an answer.

A process that is stopped, starved of a core or busy with its own work reads no socket. The answer may have arrived long
ago, and lateness of this process's own must not count as silence of the store. So the time is counted in short steps by
the loop, and a step that ends late counts for two steps at most. Once patience is over nobody waits for it, and what
counts is only how long pods may seem late: the steps are longer then, so that a store that hangs costs no processor.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["PATIENCE", "Patience"]

PATIENCE: Final = 0.25
"""Seconds a fetch may take before it counts as trouble and known links are served without it."""
STEP: Final = 0.01
"""Seconds between two looks at the clock."""
LONGEST: Final = 2 * STEP
"""Seconds that one step counts for at most. So the loop goes round a dozen times before patience is over, which is more
often than it takes to send a question and to pass its answer on."""
STEP_AFTER: Final = 0.25
"""Seconds between two looks once patience is over."""


class Patience:
    """Begins when it is made, and is over after ``PATIENCE``.

    Attributes:
        over: done when it is over. Never, if it is stopped before.
        waited: seconds that count so far. They go on until it is stopped.
    """

    __slots__ = ("_looked_at", "_loop", "_step_is", "_timer", "over", "waited")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.over: asyncio.Future[None] = loop.create_future()
        self.waited = 0.0
        self._loop = loop
        self._looked_at = loop.time()
        self._step_is = STEP
        self._timer: asyncio.TimerHandle | None = loop.call_later(STEP, self._step)

    def stop(self) -> None:
        """Count no further."""
        if self._timer is not None:
            self._count()
            self._timer.cancel()
            self._timer = None

    def _step(self) -> None:
        self._count()
        if self.waited >= PATIENCE and not self.over.done():
            self.over.set_result(None)
            self._step_is = STEP_AFTER
        self._timer = self._loop.call_later(self._step_is, self._step)

    def _count(self) -> None:
        now = self._loop.time()
        self.waited += min(now - self._looked_at, 2 * self._step_is)
        self._looked_at = now
