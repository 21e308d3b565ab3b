"""Cheap records of what happens. Spans are made of them later. Pure.

The event loop owns a record; before a call is handed to the loop, the calling thread does. Once a record is in the
queue, it belongs to the worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import Context as CallerContext
from contextvars import ContextVar, copy_context
from math import inf
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from .._contract.keys import CacheKey

__all__ = [
    "CURRENT",
    "CallRecord",
    "ClientRecord",
    "EventRecord",
    "HitRecord",
    "LagRecord",
    "Retry",
    "SharedWork",
    "of_no_call",
    "present_work",
    "time_ns",
    "wall_clock_ahead",
]

HitRecord = tuple[str, "CacheKey", float, float, "Context", object]
"""A cached answer: operation, key, start and end by the monotonic clock in seconds, the caller's OpenTelemetry context,
the cache's entry. The start is the instant at which the entry was found fresh, so that recording reads the clock once.

A plain tuple: nothing else is cheap enough on the hot path. The uid is used only for ``user.hash``.
"""


def wall_clock_ahead() -> int:
    """Nanoseconds by which Unix time is ahead of the monotonic clock.

    Both run at the same rate, and only Unix time is ever set. The time between the two readings is the error, so the
    closest of three pairs is used.
    """
    least, ahead = inf, 0
    for _ in range(3):
        before = monotonic_ns()
        wall = time_ns()
        after = monotonic_ns()
        if after - before < least:
            least, ahead = after - before, wall - (before + after) // 2
    return ahead


class Retry(NamedTuple):
    """A command was sent again, or is about to be.

    Attributes:
        at: Unix nanoseconds.
        reason: why, such as ``"MOVED"``.
        node: host and port of the node that caused the retry. None if there was no node to ask.
        pause: seconds until it is sent again.
    """

    at: int
    reason: str
    node: tuple[str, int] | None
    pause: float


class CallRecord:
    """One public call.

    Attributes:
        operation: its name.
        context: the caller's OpenTelemetry context.
        started, ended: Unix nanoseconds.
        outcome: what the cache did. None if the cache has no part in it.
        source: where a link came from.
        pod: the pod of the call. None if it names none.
        stale: the answer is older than the coherence contract allows.
        pod_view: the state of the pod view, if it was not fresh.
        reasons: why commands were sent again, in order.
        retries: the same with times, for retries that no store span shows.
        error: class name of the exception.
        told: a child span was queued, so this span must be exported as well.
        lost: the queue was full, so there will be no span.
        span: the span, once the worker has started it.
    """

    __slots__ = (
        "context",
        "ended",
        "error",
        "lost",
        "namespace",
        "operation",
        "outcome",
        "pod",
        "pod_view",
        "reasons",
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
        self.pod: int | None = None
        self.stale = False
        self.pod_view: str | None = None
        # A list only once it has an element: most calls need none.
        self.reasons: list[str] | None = None
        self.retries: list[Retry] | None = None
        self.error: str | None = None
        self.told = False
        self.lost = False
        self.span: Span | None = None

    def retried(self, retry: Retry) -> None:
        """Note that a lookup for this call is sent again."""
        self.note_reason(retry.reason)
        if self.retries is None:
            self.retries = []
        self.retries.append(retry)

    def note_reason(self, reason: str) -> None:
        """Note that a command for this call is sent again. The command's own span has the time."""
        if self.reasons is None:
            self.reasons = []
        self.reasons.append(reason)


class SharedWork:
    """Work that several public calls wait for: a reading of the pods, a placement.

    Its calls to the store belong to all of them. Only the event loop touches it.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[CallRecord | SharedWork] = []

    def join(self) -> None:
        """Let the work of the current task wait for this."""
        work = present_work()
        if work is not None and work not in self._waiting:
            self._waiting.append(work)

    def calls(self) -> Iterable[CallRecord]:
        """The public calls that wait for it so far. A call may appear twice."""
        for one in self._waiting:
            if isinstance(one, CallRecord):
                yield one
            else:
                yield from one.calls()

    def context(self) -> CallerContext:
        """The context for its task to run in."""
        context = copy_context()
        context.run(CURRENT.set, None)
        context.run(_SHARED.set, self)
        return context


class ClientRecord:
    """One logical call to the store: a script, a command, or a batch of lookups sent together.

    Attributes:
        work: what it was made for. None for a batch, or if the router made it by itself.
        flights: the public calls that each lookup of a batch serves. More may join while it is in flight.
        serves: the public calls that it was made for, once it has ended.
        name: the name of the span.
        operation: the command.
        script: the script that it ran.
        size: the number of lookups in a batch; 1 otherwise.
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
        "peer",
        "retries",
        "script",
        "server",
        "serves",
        "size",
        "started",
        "status_code",
        "work",
    )

    def __init__(
        self, work: CallRecord | SharedWork | None, operation: str, *, script: str = ""
    ) -> None:
        self.work = work
        self.flights: Sequence[list[CallRecord]] = ()
        self.serves: list[CallRecord] = []
        self.operation = operation
        self.script = script
        self.name = f"{operation} {script}" if script else operation
        self.size = 1
        self.server: tuple[str, int] | None = None
        self.peer: tuple[str, int] | None = None
        self.status_code: str | None = None
        self.retries: list[Retry] | None = None
        self.error: str | None = None
        self.started = time_ns()
        self.ended = 0

    def calls(self) -> list[CallRecord]:
        """The public calls that it is made for, except those that will have no span."""
        if isinstance(self.work, CallRecord):
            found: Iterable[CallRecord] = (self.work,)
        elif self.work is not None:
            found = self.work.calls()
        else:
            found = (call for flight in self.flights for call in flight)
        return [call for call in dict.fromkeys(found) if not call.lost]

    def retried(self, retry: Retry) -> None:
        """Note that it is sent again, also at its public calls. Those of a batch hear it from their lookups."""
        if self.retries is None:
            self.retries = []
        self.retries.append(retry)
        if self.work is not None:
            for call in self.calls():
                call.note_reason(retry.reason)


class EventRecord:
    """An event that no call caused: an invalidation, a lane lost or restored, a change of topology."""

    __slots__ = ("attributes", "ended", "name", "started")

    def __init__(self, name: str, started: int, attributes: dict[str, str | int | bool]) -> None:
        self.name = name
        self.started = started
        self.ended = time_ns()
        self.attributes = attributes


class LagRecord(NamedTuple):
    """An own write came back as a push.

    Attributes:
        seconds: how long that took.
        call: the public call that wrote.
    """

    seconds: float
    call: CallRecord | None


CURRENT: ContextVar[CallRecord | None] = ContextVar("sfroute_call", default=None)
"""The public call that the current task works for."""

_SHARED: ContextVar[SharedWork | None] = ContextVar("sfroute_shared_work", default=None)
"""The shared work that the current task does."""


def of_no_call() -> CallerContext:
    """The context for a task that outlives the call that starts it: no span of the caller is current there."""
    return CallerContext()


def present_work() -> CallRecord | SharedWork | None:
    """What the current task works for. None: it is the router's own work."""
    return CURRENT.get() or _SHARED.get()
