"""One attempt at a command: the request that travels, and the future of whoever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from .._net.connection import encode

__all__ = ["Call", "Lost"]

_ASKING = encode("ASKING")


class Lost(Exception):  # a result, never raised
    """In place of a reply: the connection was lost."""

    def __init__(self, error: Exception, *, sent: bool) -> None:
        super().__init__()
        self.error = error
        self.sent = sent


class Call:
    """One attempt at a command, a ``channel.Request``."""

    __slots__ = (
        "_deadline",
        "_settled",
        "_skip",
        "commands",
        "ended",
        "future",
        "payload",
        "sent_at",
    )

    def __init__(
        self,
        payload: bytes,
        *,
        asking: bool,
        settled: Callable[[], None],
        deadline: float = inf,
    ) -> None:
        self.payload = _ASKING + payload if asking else payload
        self.commands = 2 if asking else 1
        self.sent_at = -inf
        self.future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.ended = False
        self._settled = settled
        self._deadline = deadline
        self._skip = asking

    def abandoned(self, now: float) -> bool:
        """True if its caller has gone, or its time has passed: a write is not to be repeated after that, however long
        the process was stopped.
        """
        return now >= self._deadline or self.future.done()

    def on_reply(self, reply: object) -> None:
        """A reply; that to ASKING is nobody's."""
        if self._skip:
            self._skip = False
            return
        self.answered(reply)

    def answered(self, reply: object) -> None:
        """The reply to the command itself."""
        self.end(reply)

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        """No reply will come."""
        self.end(Lost(error, sent=sent))

    def end(self, result: object) -> None:
        """Hand over the result."""
        self.ended = True
        self._settled()
        if not self.future.done():
            self.future.set_result(result)
