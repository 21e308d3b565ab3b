"""What happened, written down cheaply while it happens; spans are made of it later. Pure.

A record is touched by the event loop (and, before it is handed there, by the calling thread); once pushed to the queue
it belongs to the worker.
"""

from __future__ import annotations

from contextvars import Context as CallerContext
from contextvars import ContextVar
from math import inf
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from ..cache import CacheKey

__all__ = [
    "CURRENT",
    "CallRecord",
    "ClientRecord",
    "EventRecord",
    "HitRecord",
    "time_ns",
    "wall_clock_ahead",
]

HitRecord = tuple[str, "CacheKey", float, float, CallerContext]
"""A cached answer: operation, key, start and end by the monotonic clock in seconds, context variables of the caller.
The start is the instant at which the entry was found fresh: a hit reads one clock, not two.

A plain tuple: on the hot path nothing else is cheap enough. The uid is used for ``user.hash`` only.
"""


def wall_clock_ahead() -> int:
    """Nanoseconds by which Unix time is ahead of the monotonic clock.

    Both run alike, and only the former is ever set. What comes between reading the two counts as an error: the reading
    with the least of it is taken.
    """
    least, ahead = inf, 0
    for _ in range(3):
        before = monotonic_ns()
        wall = time_ns()
        after = monotonic_ns()
        if after - before < least:
            least, ahead = after - before, wall - (before + after) // 2
    return ahead


class CallRecord:
    """One public call.

    Attributes:
        operation: its name.
        context: the caller's OpenTelemetry context.
        started, ended: Unix nanoseconds.
        outcome: what the cache did, None where it has no say.
        source: where a link came from.
        stale: the answer is older than the coherence contract allows.
        retries: why something was sent again, in order.
        error: class name of what was raised.
        told: a call to the store made for it is told of, so it must be, too.
        span: the span, once the worker has begun it.
    """

    __slots__ = (
        "context",
        "ended",
        "error",
        "namespace",
        "operation",
        "outcome",
        "retries",
        "service",
        "source",
        "span",
        "stale",
        "started",
        "told",
        "uid",
    )

    def __init__(
        self,
        operation: str,
        namespace: str | None,
        service: str | None,
        uid: str | None,
        context: Context,
    ) -> None:
        self.operation = operation
        self.namespace = namespace
        self.service = service
        self.uid = uid
        self.context = context
        self.started = time_ns()
        self.ended = 0
        self.outcome: str | None = None
        self.source: str | None = None
        self.stale = False
        self.retries: list[str] = []
        self.error: str | None = None
        self.told = False
        self.span: Span | None = None


class ClientRecord:
    """One logical call to the store: a script, a command, or a batch of look-ups that left together.

    Attributes:
        parent: the public call it was made for; None for a batch that served several.
        flights: the public calls that each look-up of a batch serves; some join on the way.
        serves: the public calls that a batch served, its parent apart; None if it is no batch.
        name: the name of the span.
        operation: the command.
        script: the script it ran.
        size: look-ups in a batch, 1 otherwise.
        server: host and port of the node, as the topology names it.
        peer: address and port of the socket's other end.
        status_code: code of the error reply that ended it.
    """

    __slots__ = (
        "ended",
        "error",
        "flights",
        "name",
        "operation",
        "parent",
        "peer",
        "retries",
        "script",
        "server",
        "serves",
        "size",
        "started",
        "status_code",
    )

    def __init__(self, parent: CallRecord | None, operation: str, *, script: str = "") -> None:
        self.parent = parent
        self.flights: list[list[CallRecord]] = []
        self.serves: list[CallRecord] | None = None
        self.operation = operation
        self.script = script
        self.name = f"{operation} {script}" if script else operation
        self.size = 1
        self.server: tuple[str, int] | None = None
        self.peer: tuple[str, int] | None = None
        self.status_code: str | None = None
        self.retries: list[str] = []
        self.error: str | None = None
        self.started = time_ns()
        self.ended = 0

    def retried(self, reason: str) -> None:
        """It is sent again, which its public call should tell of, too."""
        self.retries.append(reason)
        if self.parent is not None:
            self.parent.retries.append(reason)


class EventRecord:
    """Something that happened by itself: an invalidation, a lane lost or restored, a change of topology."""

    __slots__ = ("attributes", "ended", "name", "started")

    def __init__(self, name: str, started: int, attributes: dict[str, str | int | bool]) -> None:
        self.name = name
        self.started = started
        self.ended = time_ns()
        self.attributes = attributes


CURRENT: ContextVar[CallRecord | None] = ContextVar("sfroute_call", default=None)
"""The public call that the present task works for."""
