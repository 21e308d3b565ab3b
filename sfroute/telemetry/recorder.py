"""The queue between what happens and the spans that tell of it, and the worker that makes them.

The caller's path only appends to a bounded queue. A thread of the router takes records out, makes real spans of them
(sampler, processors, parent, true start and end times) and ends them. What does not fit is dropped and counted. A
quarter of the queue is kept free of cached answers: a flood of those must not hide the errors among the rest.

Who may touch it: any thread appends; only the worker takes out, and once it has ended, whoever comes late, under a
lock.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from itertools import count
from time import monotonic
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer

from ..cache import CacheKey
from . import names
from .records import CallRecord, ClientRecord, EventRecord, HitRecord, wall_clock_ahead

__all__ = ["FLUSH_SECONDS", "MAX_LINKS", "HitHook", "Recorder", "user_hash"]

_log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
"""How often the worker looks. Waking it for each record would cost the caller more than the record."""

FLUSH_SECONDS: Final = 5.0
"""How long closing waits for the worker. It works for the application's processors, and those may wait for anything."""

MAX_LINKS: Final = 128
"""Links of one span; the SDK's own default limit."""

MAX_NAME: Final = 128
"""Characters of a namespace or service on a span."""

Record = HitRecord | CallRecord | ClientRecord | EventRecord

HitHook = Callable[[str, CacheKey, float], None]
"""Records a cached answer: operation, key, start by the monotonic clock in seconds."""


class Recorder:
    """See the module's text.

    Attributes:
        queue: what waits for the worker.
        dropped: records that became no span: the queue was full, or a processor failed.
        tracer: makes the spans; None: nobody wants any.
    """

    def __init__(
        self,
        capacity: int,
        *,
        follow_parent: bool,
        user_hash_key: bytes | None,
        on_call: Callable[[CallRecord], None],
    ) -> None:
        self.queue: deque[Record] = deque()
        self.dropped = 0
        self.tracer: Tracer | None = None
        self._capacity = capacity
        self._follow_parent = follow_parent
        self._user_hash_key = user_hash_key
        self._on_call = on_call
        self._fresh_worker()

    def _fresh_worker(self) -> None:
        self._lock = threading.Lock()
        self._draining = threading.Lock()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        self._when_stopped: Callable[[], None] | None = None
        self._failed = False
        self._wall_clock_ahead = 0
        # True while a worker takes records out.
        self._attended = False
        self._ended = False

    def push(self, record: Record, *, always: bool = False) -> bool:
        """Hand a record to the worker; False if the queue was full. ``always``: full or not."""
        if len(self.queue) >= self._capacity and not always:
            self.dropped += 1
            return False
        self.queue.append(record)
        if not self._attended:
            self.attend()
        return True

    def hit_hook(self) -> HitHook:
        """What records a cached answer, once ``attend`` was called. Everything it needs is bound: each nanosecond
        counts here.
        """
        queue, append = self.queue, self.queue.append
        capacity = self._capacity - self._capacity // 4

        def hit(operation: str, key: CacheKey, started: float) -> None:
            if len(queue) < capacity:
                # Copying the whole context takes constant time, less than asking OpenTelemetry for its part of it.
                append((operation, key, started, monotonic(), copy_context()))
            else:
                self.dropped += 1

        return hit

    def attend(self) -> None:
        """See to it that what is queued is taken out."""
        with self._lock:
            if not self._stop.is_set() and self._worker is None:
                worker = threading.Thread(target=self._work, name="sfroute-telemetry", daemon=True)
                try:
                    worker.start()
                except RuntimeError:  # the interpreter is ending: closing takes out what there is
                    return
                self._worker = worker
                self._attended = True
                # Exit handlers run in reverse order. Whoever wants spans has set its SDK up by now, so this comes
                # before that shuts down.
                atexit.register(self._at_exit)
        if self._ended:
            # A call that was under way while the router closed.
            self._drain()

    def stop(self, done: Callable[[], None]) -> None:
        """Make spans of all that is queued, then end; ``done`` is called from the worker, or at once if there is
        none.
        """
        with self._lock:
            self._stop.set()
            worker = self._worker
            self._when_stopped = done
        atexit.unregister(self._at_exit)
        if worker is None or self._ended:
            self._drain()
            self._ended = True
            done()

    def give_up(self) -> int:
        """Forget what is queued, as dropped; how much that is."""
        left = len(self.queue)
        self.queue.clear()
        self.dropped += left
        return left

    def after_fork_in_child(self) -> None:
        """The parent's records are the parent's; its worker is not here."""
        # Emptied, not replaced: the hook has it bound.
        self.queue.clear()
        self.dropped = 0
        self._fresh_worker()

    def _at_exit(self) -> None:
        self._stop.set()
        worker = self._worker
        if worker is not None:
            worker.join(FLUSH_SECONDS)
        # The SDK shuts down next: what closing the router still has to tell would find nobody.
        self.tracer = None

    # The worker

    def _work(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._drain()
        self._drain()
        self._ended = True
        self._attended = False
        # Whoever found it attended has put in what this takes out.
        self._drain()
        if self._when_stopped is not None:
            self._when_stopped()

    def _drain(self) -> None:
        with self._draining:
            # Nothing of the caller's or of ours may be traced from here: an exporter's own requests, say.
            token = otel_context.attach(otel_context.Context())
            try:
                for number in count():
                    if number % 1000 == 0:
                        # It may be set meanwhile.
                        self._wall_clock_ahead = wall_clock_ahead()
                    try:
                        record = self.queue.popleft()
                    except IndexError:
                        return
                    self._take(record)
            finally:
                otel_context.detach(token)

    def _take(self, record: Record) -> None:
        try:
            self._make(record)
        except Exception:  # noqa: BLE001 - see below
            # A sampler or a processor of the application failed; the call that it was to hear of did not. It may fail
            # for every span: one traceback is enough.
            self.dropped += 1
            level = logging.DEBUG if self._failed else logging.ERROR
            self._failed = True
            _log.log(
                level,
                "a span could not be made: the application's sampler or processor failed",
                exc_info=True,
            )

    def _make(self, record: Record) -> None:
        tracer = self.tracer
        if isinstance(record, CallRecord):
            try:
                if tracer is not None:
                    self._end_call(tracer, record)
            finally:
                self._on_call(record)
        elif tracer is None:
            return
        elif isinstance(record, tuple):
            self._make_hit(tracer, record)
        elif isinstance(record, ClientRecord):
            self._make_client(tracer, record)
        else:
            span = tracer.start_span(
                record.name,
                context=otel_context.Context(),
                attributes=record.attributes,
                start_time=record.started,
            )
            span.end(max(record.started, record.ended))

    def _make_hit(self, tracer: Tracer, record: HitRecord) -> None:
        operation, key, started, ended, caller = record
        context = caller.run(otel_context.get_current)
        if self._follow_parent:
            parent = trace.get_current_span(context).get_span_context()
            if parent.is_valid and not parent.trace_flags.sampled:
                return
        attributes = self._subject(key[0], key[2] if len(key) == 3 else None, key[1])
        attributes[names.OUTCOME] = names.HIT
        ahead = self._wall_clock_ahead
        span = tracer.start_span(
            f"sfroute {operation}",
            context=context,
            attributes=attributes,
            start_time=int(started * 1e9) + ahead,
        )
        span.end(int(ended * 1e9) + ahead)

    def _subject(
        self, namespace: str | None, service: str | None, uid: str | None
    ) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        for name, value in ((names.NAMESPACE, namespace), (names.SERVICE, service)):
            # A call whose arguments were refused is told of, too: they may be anything.
            if isinstance(value, str):
                attributes[name] = value[:MAX_NAME].encode("utf-8", "replace").decode()
        if isinstance(uid, str) and self._user_hash_key is not None:
            attributes[names.USER_HASH] = user_hash(uid, self._user_hash_key)
        return attributes

    def _span_of(self, tracer: Tracer, record: CallRecord) -> Span:
        """The span of a public call; begun when it is first spoken of, since a batch may end before its calls do."""
        if record.span is None:
            record.span = tracer.start_span(
                f"sfroute {record.operation}",
                context=record.context,
                attributes=self._subject(record.namespace, record.service, record.uid),
                start_time=record.started,
            )
        return record.span

    def _end_call(self, tracer: Tracer, record: CallRecord) -> None:
        span = self._span_of(tracer, record)
        if span.is_recording():
            if record.outcome is not None:
                span.set_attribute(names.OUTCOME, record.outcome)
            if record.source is not None:
                span.set_attribute(names.LINK_SOURCE, record.source)
            if record.stale:
                span.set_attribute(names.STALE, True)
            _set_end(span, record.retries, record.error)
        span.end(max(record.started, record.ended))

    def _make_client(self, tracer: Tracer, record: ClientRecord) -> None:
        context = otel_context.Context()
        served = (self._span_of(tracer, call).get_span_context() for call in record.serves or ())
        links = [Link(one) for one in served if one.is_valid and one.trace_flags.sampled]
        if record.parent is not None:
            context = trace.set_span_in_context(self._span_of(tracer, record.parent), context)
        elif record.serves is not None and not links:
            return
        span = tracer.start_span(
            record.name,
            context=context,
            kind=SpanKind.CLIENT,
            attributes=_client_attributes(record),
            links=links,
            start_time=record.started,
        )
        if span.is_recording():
            # The code of the server says more than the class that stands for it here.
            _set_end(span, record.retries, record.status_code or record.error)
        span.end(max(record.started, record.ended))


def user_hash(uid: str, key: bytes) -> str:
    """What stands for a uid in telemetry: its keyed BLAKE2b, 16 bytes, in hexadecimal."""
    return hashlib.blake2b(
        uid.encode("utf-8", "surrogatepass"), key=key, digest_size=16
    ).hexdigest()


def _client_attributes(record: ClientRecord) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        names.DB_SYSTEM_NAME: "redis",
        names.DB_OPERATION_NAME: record.operation,
    }
    if record.script:
        attributes[names.DB_STORED_PROCEDURE_NAME] = record.script
    if record.size >= 2:
        attributes[names.DB_OPERATION_BATCH_SIZE] = record.size
    if record.server is not None:
        attributes[names.SERVER_ADDRESS], attributes[names.SERVER_PORT] = record.server
    if record.peer is not None:
        attributes[names.NETWORK_PEER_ADDRESS], attributes[names.NETWORK_PEER_PORT] = record.peer
    if record.status_code is not None:
        attributes[names.DB_RESPONSE_STATUS_CODE] = record.status_code
    return attributes


def _set_end(span: Span, retries: list[str], error: str | None) -> None:
    if retries:
        span.set_attribute(names.RETRY_REASONS, retries)
    if error is not None:
        span.set_attribute(names.ERROR_TYPE, error)
        span.set_status(Status(StatusCode.ERROR, error))
