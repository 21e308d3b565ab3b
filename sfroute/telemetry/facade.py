"""What one router records. The rest of the package uses telemetry through this class.

While a call runs, its records are plain objects (``records.py``). A worker (``recorder.py``) turns them into spans and
measurements (``spans.py``).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf
from typing import Any, Final, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from ..config import TelemetryConfig
from . import names
from .conventions import OPT_IN, wants_old_names
from .logs import log_call, log_fields, log_hit
from .metrics import Source, instruments
from .providers import has_meter, real_tracer
from .recorder import FLUSH_SECONDS, HitHook, Recorder
from .records import (
    CURRENT,
    CallRecord,
    ClientRecord,
    EventRecord,
    HitRecord,
    LagRecord,
    present_work,
    time_ns,
)
from .spans import SpanMaker
from .watched import Agents

__all__ = ["Telemetry"]

_root = logging.getLogger("sfroute")

_R = TypeVar("_R")

LOOK_AROUND_SECONDS: Final = 1.0
"""How often a router checks whether the application has set an SDK or wants log records of calls."""


class Telemetry:
    """What one router records.

    Attributes:
        hits: records cached answers. None while nothing needs them.
        agents: the agents that use this router.
        happened: metric -> how often it happened. Only the event loop changes it.
        asleep_until: until this instant ``begin`` returns None, so a hot path need not call it.
    """

    # What the native part reads, where it finds it.
    __slots__ = ("__dict__", "__weakref__", "asleep_until", "hits")

    def __init__(
        self,
        config: TelemetryConfig,
        clock: Callable[[], float],
        logger: logging.Logger = _root,
    ) -> None:
        self._config = config
        self._clock = clock
        self.asleep_until = -inf
        self._look_again_at = -inf
        self._tracing = False
        self._metering = False
        self._closed = False
        self._instruments = instruments(config.meter_provider) if config.enabled else None
        self._maker = SpanMaker(
            self,
            follow_parent=config.hit_spans == "follow_parent",
            user_hash_key=config.user_hash_key,
            old_names_too=wants_old_names(os.environ.get(OPT_IN, "")),
        )
        self._log = logger.getChild("telemetry")
        self._calls_log = logger.getChild("router")
        self._lanes_log = logger.getChild("lookups")
        self._map_log = logger.getChild("topology")
        self._logging = False
        self._recorder = Recorder(config.queue_size, self._maker, self._log)
        self._background = config.background_spans == "on"
        self.happened = Counter(
            {names.LANES_LOST: 0, names.TOPOLOGY_CHANGES: 0, names.STORE_FORGOTTEN: 0}
        )
        self.agents = Agents()
        self._service_label = config.service_label == "on"
        self.hits: HitHook | None = None
        self._look_around()

    # What the application has set

    def _look_around(self) -> None:
        """Check whether spans, metrics and log records of calls go anywhere. Takes microseconds: never per call."""
        if self._closed:
            self.asleep_until = inf
            return
        self._look_again_at = self._clock() + LOOK_AROUND_SECONDS
        before = self._tracing, self._logging
        if self._config.enabled:
            self._look_for_sdk()
        self._logging = self._calls_log.isEnabledFor(logging.DEBUG)
        if before != (self._tracing, self._logging):
            self._expect_hits()
        recording = self._tracing or self._metering or self._logging
        self.asleep_until = -inf if recording else self._look_again_at

    def _look_for_sdk(self) -> None:
        if not self._tracing:
            tracer = real_tracer(self._config.tracer_provider)
            if tracer is not None:
                self._maker.tracer = tracer
                self._tracing = True
        self._metering = self._metering or has_meter(self._config.meter_provider)

    def _expect_hits(self) -> None:
        """Let the first hit start the worker, so that later hits need not check for one."""
        self.hits = None
        if self._tracing and self._config.hit_spans != "off":
            hook = self._recorder.hit_hook()
            append, context = hook

            def first_hit(record: HitRecord) -> None:
                self._recorder.attend()
                if not self._closed and self.hits is first:
                    self.hits = hook
                append(record)

            first = self.hits = first_hit, context
        if self._logging:
            self.hits = self._logged_hits(self.hits)

    def _logged_hits(self, recorded: HitHook | None) -> HitHook:
        def hit(record: HitRecord) -> None:
            log_hit(self._calls_log, record)
            if recorded is not None:
                recorded[0](record)

        return hit, recorded[1] if recorded is not None else Context

    # Calls

    def begin(
        self, operation: str, namespace: str | None, service: str | None, uid: str | None
    ) -> CallRecord | None:
        """Record that a public call begins, in its caller's context. None if nothing is to be recorded."""
        if self._clock() >= self._look_again_at:
            self._look_around()
        if self._closed or not (self._tracing or self._metering or self._logging):
            return None
        return CallRecord(operation, namespace, service, uid, otel_context.get_current())

    def end(
        self, record: CallRecord, error: BaseException | None = None, result: object = None
    ) -> None:
        """Record that a call has ended, in its caller's context. ``error``: what it raised. ``result``: its result."""
        record.ended = time_ns()
        if error is not None:
            record.error = type(error).__name__
        if self._logging:
            log_call(self._calls_log, record, result)
            if not (self._tracing or self._metering):
                return
        # If child spans were queued, this one must be exported as well. There are no more of these than calls in
        # progress.
        self._recorder.push(record, always=record.told)

    async def follow(self, record: CallRecord, work: Coroutine[Any, Any, _R]) -> _R:
        """Run the work of a public call, and record how it ended."""
        token = CURRENT.set(record)
        try:
            result = await work
        except BaseException as error:
            self.end(record, error)
            raise
        finally:
            with suppress(ValueError):  # the coroutine was closed elsewhere, unfinished
                CURRENT.reset(token)
        self.end(record, result=result)
        return result

    @contextmanager
    def in_pieces(self, operation: str, namespace: str, service: str) -> Iterator[None]:
        """Record a public call that yields results while it runs.

        Its span is no parent: neither of what its caller does between results, nor of what the router does for it.
        """
        record, error = self.begin(operation, namespace, service, None), None
        try:
            yield
        except GeneratorExit:  # the caller stopped early
            raise
        except BaseException as raised:
            error = raised
            raise
        finally:
            if record is not None:
                self.end(record, error)

    def answered_from_cache(self) -> None:
        """Record that the cache alone answered the current public call."""
        record = CURRENT.get()
        if record is not None:
            record.outcome = names.HIT

    # Measures, for the worker

    def measure_call(self, record: CallRecord, context: otel_context.Context) -> None:
        """Measure a call's duration, unless the cache alone answered it."""
        if not self._metering or self._instruments is None:
            return
        if record.outcome == names.HIT and record.source in {None, "cache"}:
            return
        labels = {names.OPERATION: record.operation}
        if record.error is not None:
            labels[names.ERROR_TYPE] = record.error
        if self._service_label and isinstance(record.service, str):
            labels[names.SERVICE] = self._instruments.services.label(record.service)
        seconds = max(0, record.ended - record.started) / 1e9
        self._instruments.duration.record(seconds, labels, context=context)

    def measure_lag(self, seconds: float, context: otel_context.Context) -> None:
        """Measure how long an own write took to come back as a push."""
        if self._metering and self._instruments is not None:
            self._instruments.lag.record(seconds, context=context)

    @property
    def tracing(self) -> bool:
        """True if spans are recorded."""
        return self._tracing

    # Calls to the store

    def client(self, operation: str, *, script: str = "", size: int = 1) -> ClientRecord | None:
        """Record that a logical call to the store begins. None if it will have no span."""
        if not self._tracing:
            return None
        work = present_work()
        if work is None and not self._background:
            return None
        record = ClientRecord(work, operation, script=script)
        record.size = size
        return record

    def client_ended(self, record: ClientRecord, error: BaseException | None = None) -> None:
        """Record that a call to the store has ended."""
        record.ended = time_ns()
        if error is not None:
            record.error = type(error).__name__
        record.serves = calls = record.calls()
        if not calls and not self._background:
            return
        for call in calls:
            # Before the record is queued: the call may end in another thread.
            call.told = True
        self._recorder.push(record)

    def batch(self, flights: list[list[CallRecord]], operations: set[str]) -> ClientRecord | None:
        """Record that lookups are sent together. ``flights``: the calls that each lookup serves so far."""
        if not any(flights):
            return None
        operation = operations.pop() if len(operations) == 1 else ""
        if len(flights) > 1:
            operation = f"PIPELINE {operation}".rstrip()
        record = ClientRecord(None, operation)
        record.size = len(flights)
        record.flights = flights
        return record

    def _event(
        self, name: str, attributes: Mapping[str, str | int | bool], started: int = 0
    ) -> None:
        """Record an event that no call caused: a root span, if ``background_spans`` is on."""
        if self._tracing and self._background:
            self._recorder.push(EventRecord(name, started or time_ns(), dict(attributes)))

    # Events that no call causes

    def lane_up(self, address: tuple[str, int], *, tracked: bool) -> None:
        """Record that a lane was connected."""
        self._lanes_log.info(
            "connected to %s:%d for lookups, %s",
            *address,
            "which pushes changes" if tracked else "which does not push changes",
            extra={**log_fields(node=address), names.TRACKED: tracked},
        )
        self._event("sfroute lane restored", {**log_fields(node=address), names.TRACKED: tracked})

    def lane_down(self, address: tuple[str, int]) -> None:
        """Record that a lane was lost or closed."""
        self.happened[names.LANES_LOST] += 1
        self._lanes_log.info(
            "the connection to %s:%d for lookups has ended",
            *address,
            extra=log_fields(node=address),
        )
        self._event("sfroute lane lost", log_fields(node=address))

    def invalidated(self, address: tuple[str, int], count: int, since: int) -> None:
        """Record that a lane has pushed ``count`` keys since an instant (Unix nanoseconds)."""
        self._event("sfroute invalidation", {**log_fields(node=address), names.COUNT: count}, since)

    def topology_changed(self, losers: int, primaries: int) -> None:
        """Record that slots have moved away from ``losers`` nodes."""
        self.happened[names.TOPOLOGY_CHANGES] += 1
        self._map_log.info(
            "slots have moved away from %d nodes; there are %d primaries",
            losers,
            primaries,
            extra={names.COUNT: losers, names.PRIMARIES: primaries},
        )
        self._event("sfroute topology change", {names.COUNT: losers, names.PRIMARIES: primaries})

    def store_forgot(self) -> None:
        """Record that a primary was found to have lost its data; the lineage logs it."""
        self.happened[names.STORE_FORGOTTEN] += 1

    def lag(self, seconds: float, call: object) -> None:
        """Record that an own write, made for this call, came back as a push."""
        if not self._metering:
            return
        writer = call if isinstance(call, CallRecord) and self._tracing else None
        if writer is not None:
            # An exemplar will refer to the call's span.
            writer.told = True
        self._recorder.push(LagRecord(seconds, writer))

    # Open and close

    @property
    def dropped(self) -> int:
        """Records dropped because the queue was full."""
        return self._recorder.dropped

    @property
    def queued(self) -> int:
        """Records waiting for the worker."""
        return len(self._recorder)

    def count_hits_by(self, count: Callable[[], int]) -> None:
        """``count`` says how many cached answers there have been for which ``hits`` was asked."""
        self._recorder.count_hits = count

    def opened(self, source: Source) -> None:
        """Let metrics read a router's counters from now on."""
        self._look_around()
        if self._instruments is not None:
            self._instruments.add(source)

    async def close(self, source: Source) -> None:
        """Turn everything queued into spans, and keep the router's counts.

        Takes at most ``FLUSH_SECONDS``. What is still queued then is dropped.
        """
        self._closed = True
        self.asleep_until = inf
        self.hits = None
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed: nothing is waiting any more
                loop.call_soon_threadsafe(done.set)

        self._recorder.stop(tell)
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()
        except TimeoutError:
            self._log.warning(
                "%d records became no spans: the application's processors took longer than %g s",
                (lost := self._recorder.give_up()),
                FLUSH_SECONDS,
                extra={names.COUNT: lost},
            )
        finally:
            self._retire(source)

    def abandon(self, source: Source) -> None:
        """Stop recording for a router that is garbage-collected without having been closed."""
        self._closed = True
        self.asleep_until = inf
        self.hits = None
        self._recorder.stop(lambda: None)
        self._retire(source)

    def _retire(self, source: Source) -> None:
        if self._instruments is not None:
            self._instruments.retire(source)

    def after_fork_in_child(self) -> None:
        """Start over in a forked child: the queue, the worker and the counts are the parent's."""
        self.happened = Counter(dict.fromkeys(self.happened, 0))
        self.agents = Agents()
        self._recorder.after_fork_in_child()
        if not self._closed:
            self._expect_hits()
