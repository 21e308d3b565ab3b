"""Turns records into spans. Runs in the recorder's worker, so it costs callers nothing.

A call to the store may serve many public calls: lookups are sent together, and several calls may wait for one reading
of the pods or one placement. Its span is a child of the first *sampled* call that it serves, and is linked with the
other sampled ones, in both directions. So each sampled call shows what it waited for. If it serves no sampled call, it
has no span: a root span would be sampled on its own, apart from the requests.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer

from . import names
from .conventions import database_attributes
from .records import (
    CallRecord,
    ClientRecord,
    EventRecord,
    HitRecord,
    LagRecord,
    Retry,
    wall_clock_ahead,
)

__all__ = ["MAX_LINKS", "Record", "SpanMaker", "user_hash"]

MAX_LINKS: Final = 128
"""The most links of one span: the SDK's default limit."""

MAX_NAME: Final = 128
"""The most characters of a namespace or service on a span."""

Record = HitRecord | CallRecord | ClientRecord | EventRecord | LagRecord


class Measures(Protocol):
    """Takes measurements. Each context holds a span, to which an SDK's exemplars refer."""

    def measure_call(self, record: CallRecord, context: Context) -> None:
        """A public call has ended."""

    def measure_lag(self, seconds: float, context: Context) -> None:
        """An own write came back as a push; the context is that of the call that wrote."""


class SpanMaker:
    """Makes spans; see the module's docstring.

    Attributes:
        tracer: the tracer. None: no spans are made.
    """

    def __init__(
        self,
        measures: Measures,
        *,
        follow_parent: bool,
        user_hash_key: bytes | None,
        old_names_too: bool = False,
    ) -> None:
        self.tracer: Tracer | None = None
        self._measures = measures
        self._follow_parent = follow_parent
        self._user_hash_key = user_hash_key
        self._old_names_too = old_names_too
        self._wall_clock_ahead = 0

    def look_at_the_clock(self) -> None:
        """Read the clocks again. Call it now and then, because Unix time may be set."""
        self._wall_clock_ahead = wall_clock_ahead()

    def make(self, record: Record) -> None:
        """Make a record's span or measurement. Raises what the application's sampler and processors raise."""
        tracer = self.tracer
        if isinstance(record, CallRecord):
            try:
                if tracer is not None:
                    self._end_call(tracer, record)
            finally:
                self._measures.measure_call(record, _context_of(record))
        elif isinstance(record, LagRecord):
            self._measure_lag(tracer, record)
        elif tracer is None:
            return
        elif isinstance(record, ClientRecord):
            self._make_client(tracer, record)
        elif isinstance(record, EventRecord):
            _make_event(tracer, record)
        else:
            self._make_hit(tracer, record)

    def _make_hit(self, tracer: Tracer, record: HitRecord) -> None:
        operation, key, started, ended, context, _ = record
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
            # Calls with refused arguments have spans, too: the arguments may be anything.
            if isinstance(value, str):
                attributes[name] = value[:MAX_NAME].encode("utf-8", "replace").decode()
        if isinstance(uid, str) and self._user_hash_key is not None:
            attributes[names.USER_HASH] = user_hash(uid, self._user_hash_key)
        return attributes

    def _span_of(self, tracer: Tracer, record: CallRecord) -> Span:
        """The span of a public call. It begins when it is first referred to: a batch may end before its calls do."""
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
            if record.pod_view is not None:
                span.set_attribute(names.POD_VIEW, record.pod_view)
            if record.reasons:
                span.set_attribute(names.RETRY_REASONS, record.reasons)
            _add_retries(span, record.retries)
            _set_error(span, record.error)
        span.end(max(record.started, record.ended))

    def _make_client(self, tracer: Tracer, record: ClientRecord) -> None:
        context = Context()
        others: list[Span] = []
        if record.serves:
            spans = (self._span_of(tracer, call) for call in record.serves)
            wanted = [span for span in spans if _is_wanted(span)]
            if not wanted:
                return
            context = trace.set_span_in_context(wanted[0], context)
            others = wanted[1 : MAX_LINKS + 1]
        span = tracer.start_span(
            record.name,
            context=context,
            kind=SpanKind.CLIENT,
            attributes=database_attributes(record, old_names_too=self._old_names_too),
            links=[Link(other.get_span_context()) for other in others],
            start_time=record.started,
        )
        if span.get_span_context().trace_flags.sampled:
            for other in others:
                if other.is_recording() and _takes_links(other):
                    other.add_link(span.get_span_context())
        if span.is_recording():
            if record.retries:
                span.set_attribute(names.RETRY_REASONS, [retry.reason for retry in record.retries])
            _add_retries(span, record.retries)
            # The server's code says more than the class of the exception.
            _set_error(span, record.status_code or record.error)
        span.end(max(record.started, record.ended))

    def _measure_lag(self, tracer: Tracer | None, record: LagRecord) -> None:
        call = record.call
        if call is None or call.lost:
            self._measures.measure_lag(record.seconds, Context())
            return
        if tracer is not None:
            self._span_of(tracer, call)
        self._measures.measure_lag(record.seconds, _context_of(call))


def _is_wanted(span: Span) -> bool:
    """True if children of this span are wanted: it is sampled, or recorded for processors only."""
    context = span.get_span_context()
    return (context.is_valid and context.trace_flags.sampled) or span.is_recording()


def _takes_links(span: Span) -> bool:
    """True if links can be added to a started span. Datadog's spans take none, and warn about each."""
    return type(span).add_link is not Span.add_link


def _context_of(record: CallRecord) -> Context:
    """The context to measure a call in: it lets an SDK's exemplar refer to the call's span."""
    if record.span is None:
        return record.context
    return trace.set_span_in_context(record.span, record.context)


def _make_event(tracer: Tracer, record: EventRecord) -> None:
    span = tracer.start_span(
        record.name,
        context=Context(),
        attributes=record.attributes,
        start_time=record.started,
    )
    span.end(max(record.started, record.ended))


def _add_retries(span: Span, retries: list[Retry] | None) -> None:
    for retry in retries or ():
        attributes: dict[str, Any] = {
            names.RETRY_REASON: retry.reason,
            names.RETRY_PAUSE: retry.pause,
        }
        if retry.node is not None:
            attributes[names.SERVER_ADDRESS], attributes[names.SERVER_PORT] = retry.node
        span.add_event(names.RETRY_EVENT, attributes, retry.at)


def _set_error(span: Span, error: str | None) -> None:
    if error is not None:
        span.set_attribute(names.ERROR_TYPE, error)
        span.set_status(Status(StatusCode.ERROR, error))


def user_hash(uid: str, key: bytes) -> str:
    """The substitute for a uid in telemetry: its keyed BLAKE2b, 16 bytes, in hexadecimal."""
    return hashlib.blake2b(
        uid.encode("utf-8", "surrogatepass"), key=key, digest_size=16
    ).hexdigest()
