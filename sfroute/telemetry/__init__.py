"""Telemetry: one span for each public call, metrics, and nothing that costs the hot path its speed.

Only the API of OpenTelemetry is used: without an SDK nothing is recorded, queued or started. Providers are those of the
process unless ``TelemetryConfig`` names others; none is ever set or shut down here. ``setup`` is for applications.

While a call runs, its records are plain objects (``records.py``); a worker turns them into spans (``recorder.py``).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf
from time import monotonic
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import metrics as otel_metrics
from opentelemetry import trace

from .._version import __version__
from ..cache import CacheKey
from ..config import TelemetryConfig
from . import names
from .metrics import Source, instruments
from .recorder import FLUSH_SECONDS, MAX_LINKS, HitHook, Recorder
from .records import CURRENT, CallRecord, ClientRecord, EventRecord, time_ns

__all__ = [
    "CURRENT",
    "CallRecord",
    "ClientRecord",
    "Telemetry",
    "setup",
    "traced",
    "uninstrumented",
]

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="HasTelemetry")

LOOK_FOR_SDK_SECONDS: Final = 1.0
"""How often a router without an SDK looks whether the application has set one meanwhile."""


class Telemetry:
    """What one router records.

    Attributes:
        hits: records cached answers; None while nobody wants spans of them.
        asleep_until: before this instant ``begin`` returns None for sure: who is in a hurry need not call it.
    """

    def __init__(self, config: TelemetryConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self.asleep_until = -inf
        self._look_again_at = -inf
        self._tracing = False
        self._metering = False
        self._closed = False
        self._instruments = instruments(config.meter_provider) if config.enabled else None
        self._recorder = Recorder(
            config.queue_size,
            follow_parent=config.hit_spans == "follow_parent",
            user_hash_key=config.user_hash_key,
            on_call=self._measure,
        )
        self.hits: HitHook | None = None
        self._look_for_sdk()

    # What the application has set

    def _look_for_sdk(self) -> None:
        """Find out whether spans and metrics go anywhere. Costs microseconds: never on the hot path."""
        if self._closed or not self._config.enabled:
            self.asleep_until = inf
            return
        self._look_again_at = self._clock() + LOOK_FOR_SDK_SECONDS
        if not self._tracing:
            tracer = _real_tracer(self._config.tracer_provider)
            if tracer is not None:
                self._recorder.tracer = tracer
                self._tracing = True
                self._expect_hits()
        self._metering = self._metering or _has_meter(self._config.meter_provider)
        recording = self._tracing or self._metering
        self.asleep_until = -inf if recording else self._look_again_at

    def _expect_hits(self) -> None:
        """The first hit starts the worker, so that those after it need not look for one."""
        if self._config.hit_spans == "off" or not self._tracing:
            return
        hook = self._recorder.hit_hook()

        def first_hit(operation: str, key: CacheKey, started: float) -> None:
            self._recorder.attend()
            if not self._closed:
                self.hits = hook
            hook(operation, key, started)

        self.hits = first_hit

    # Calls

    def begin(
        self, operation: str, namespace: str | None, service: str | None, uid: str | None
    ) -> CallRecord | None:
        """Note that a public call begins, in the context of its caller; None if nobody wants to know."""
        if not (self._tracing and self._metering) and self._clock() >= self._look_again_at:
            self._look_for_sdk()
        if self._closed or not (self._tracing or self._metering):
            return None
        return CallRecord(operation, namespace, service, uid, otel_context.get_current())

    def end(self, record: CallRecord, error: BaseException | None = None) -> None:
        """The call has ended; ``error`` is what it raised."""
        record.ended = time_ns()
        if error is not None:
            record.error = type(error).__name__
        # Its children are told of: without it they would be orphans. There are no more of these than calls under way.
        self._recorder.push(record, always=record.told)

    async def follow(self, record: CallRecord, work: Coroutine[Any, Any, _R]) -> _R:
        """Do the work of a public call, and tell how it ended."""
        token = CURRENT.set(record)
        try:
            result = await work
        except BaseException as error:
            self.end(record, error)
            raise
        finally:
            with suppress(ValueError):  # the coroutine was closed elsewhere, unfinished
                CURRENT.reset(token)
        self.end(record)
        return result

    @contextmanager
    def in_pieces(self, operation: str, namespace: str, service: str) -> Iterator[None]:
        """A public call that gives results while it goes on: its span is no parent of what its caller does meanwhile,
        nor of what the router does for it.
        """
        record, error = self.begin(operation, namespace, service, None), None
        try:
            yield
        except GeneratorExit:  # its caller has seen enough
            raise
        except BaseException as raised:
            error = raised
            raise
        finally:
            if record is not None:
                self.end(record, error)

    def answered_from_cache(self) -> None:
        """The present public call needed nothing else."""
        record = CURRENT.get()
        if record is not None:
            record.outcome = names.HIT

    def _measure(self, record: CallRecord) -> None:
        if not self._metering or self._instruments is None:
            return
        if record.outcome == names.HIT and record.source in {None, "cache"}:
            return
        labels = {names.OPERATION: record.operation}
        if record.error is not None:
            labels[names.ERROR_TYPE] = record.error
        seconds = max(0, record.ended - record.started) / 1e9
        self._instruments.duration.record(seconds, labels)

    @property
    def tracing(self) -> bool:
        """True while spans go somewhere."""
        return self._tracing

    # Calls to the store

    def client(self, operation: str, *, script: str = "", size: int = 1) -> ClientRecord | None:
        """Note that a logical call to the store begins, made for the present public call, or of the router's own
        accord.
        """
        if not self._tracing:
            return None
        record = ClientRecord(CURRENT.get(), operation, script=script)
        record.size = size
        return record

    def client_ended(self, record: ClientRecord, error: BaseException | None = None) -> None:
        """It has ended."""
        record.ended = time_ns()
        if error is not None:
            record.error = type(error).__name__
        if record.parent is not None:
            # Before the record can be seen: the call may end in another thread.
            record.parent.told = True
        self._recorder.push(record)

    def event(
        self, name: str, attributes: Mapping[str, str | int | bool], started: int = 0
    ) -> None:
        """Something happened by itself: a root span of its own."""
        if self._tracing:
            self._recorder.push(EventRecord(name, started or time_ns(), dict(attributes)))

    def batch(self, flights: list[list[CallRecord]], operations: set[str]) -> ClientRecord | None:
        """Note that look-ups leave together; ``flights``: the calls that each of them serves, so far."""
        if not any(flights):
            return None
        operation = operations.pop() if len(operations) == 1 else ""
        if len(flights) > 1:
            operation = f"PIPELINE {operation}".rstrip()
        record = ClientRecord(None, operation)
        record.size = len(flights)
        record.flights = flights
        return record

    def batch_ended(self, record: ClientRecord, error: BaseException | None) -> None:
        """The last of them was answered, or lost."""
        calls = list(dict.fromkeys(call for flight in record.flights for call in flight))
        # A batch that serves one look-up or one call is that call's; one that serves several is nobody's child, and
        # links to all.
        if len(record.flights) == 1 or len(calls) == 1:
            record.parent = calls.pop(0)
        record.flights = []
        record.serves = calls = calls[:MAX_LINKS]
        for call in calls:
            call.told = True
        self.client_ended(record, error)

    # What happens by itself

    def lane_up(self, address: tuple[str, int], *, tracked: bool) -> None:
        """A lane was connected."""
        self.event("sfroute lane restored", {**_server(address), names.TRACKED: tracked})

    def lane_down(self, address: tuple[str, int]) -> None:
        """A lane was lost, or closed."""
        self.event("sfroute lane lost", _server(address))

    def invalidated(self, address: tuple[str, int], count: int, since: int) -> None:
        """A lane pushed ``count`` keys since this instant (Unix nanoseconds)."""
        self.event("sfroute invalidation", {**_server(address), names.COUNT: count}, since)

    def topology_changed(self, losers: int, primaries: int) -> None:
        """Slots have moved away from ``losers`` nodes."""
        self.event("sfroute topology change", {names.COUNT: losers, names.PRIMARIES: primaries})

    def lag(self, seconds: float) -> None:
        """An own write came back as a push."""
        if self._metering and self._instruments is not None:
            self._instruments.lag.record(seconds)

    # Life

    @property
    def dropped(self) -> int:
        """Records that found the queue full."""
        return self._recorder.dropped

    @property
    def queued(self) -> int:
        """Records that wait for the worker."""
        return len(self._recorder.queue)

    def opened(self, source: Source) -> None:
        """A router's counters may be read from now on."""
        self._look_for_sdk()
        if self._instruments is not None:
            self._instruments.add(source)

    async def close(self, source: Source) -> None:
        """Make spans of everything queued; keep what the router has counted.

        Takes ``FLUSH_SECONDS`` at most; what is queued then is dropped.
        """
        self._closed = True
        self.asleep_until = inf
        self.hits = None
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        self._recorder.stop(tell)
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()
        except TimeoutError:
            _log.warning(
                "%d records became no spans: the application's processors took longer than %g s",
                (lost := self._recorder.give_up()),
                FLUSH_SECONDS,
                extra={names.COUNT: lost},
            )
        finally:
            self._retire(source)

    def abandon(self, source: Source) -> None:
        """The router is collected without having been closed."""
        self._closed = True
        self.asleep_until = inf
        self.hits = None
        self._recorder.stop(lambda: None)
        self._retire(source)

    def _retire(self, source: Source) -> None:
        if self._instruments is not None:
            self._instruments.retire(source)

    def after_fork_in_child(self) -> None:
        """The queue and the worker are the parent's."""
        self._recorder.after_fork_in_child()
        if not self._closed:
            self._expect_hits()


def _real_tracer(provider: trace.TracerProvider | None) -> trace.Tracer | None:
    """A tracer of this provider, or of the process's own; None if it would make nothing."""
    provider = provider or trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    tracer = trace.get_tracer(
        names.SCOPE, __version__, tracer_provider=provider, schema_url=names.SCHEMA_URL
    )
    # What an SDK gives that was disabled (OTEL_SDK_DISABLED).
    return None if isinstance(tracer, trace.NoOpTracer) else tracer


def _has_meter(provider: otel_metrics.MeterProvider | None) -> bool:
    """True if what is measured goes somewhere."""
    provider = provider or otel_metrics.get_meter_provider()
    # The API's placeholder for a provider set later is private; an SDK is not of the API's module.
    if type(provider).__module__.startswith("opentelemetry.metrics"):
        return False
    meter = provider.get_meter(names.SCOPE, __version__, schema_url=names.SCHEMA_URL)
    return not isinstance(meter, otel_metrics.NoOpMeter)


def _server(address: tuple[str, int]) -> dict[str, str | int | bool]:
    return {names.SERVER_ADDRESS: address[0], names.SERVER_PORT: address[1]}


class HasTelemetry(Protocol):
    """A router."""

    @property
    def telemetry(self) -> Telemetry:
        """What it records."""
        ...


def traced(
    method: Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]]:
    """Make a public operation tell of itself: one span and one duration for each call.

    The operation's name is the method's; namespace, service and uid are found among its arguments by name.
    """
    operation = method.__name__
    parameters = list(inspect.signature(method).parameters)
    places = [
        (name, parameters.index(name) - 1 if name in parameters else None)
        for name in ("namespace", "service", "uid")
    ]

    @functools.wraps(method)
    async def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        telemetry = self.telemetry
        if monotonic() < telemetry.asleep_until:
            return await method(self, *args, **kwargs)
        subject: list[Any] = []
        for name, place in places:
            given = place is not None and place < len(args)
            subject.append(args[place] if given and place is not None else kwargs.get(name))
        record = telemetry.begin(operation, *subject)
        if record is None:
            return await method(self, *args, **kwargs)
        return await telemetry.follow(record, method(self, *args, **kwargs))

    return call


@contextmanager
def uninstrumented() -> Iterator[None]:
    """Keep instrumentations of redis-py from making spans of what is ours: we make them ourselves."""
    token = otel_context.attach(otel_context.set_value("suppress_instrumentation", True))
    try:
        yield
    finally:
        otel_context.detach(token)


def setup(service_name: str = "", *, metrics: bool = True) -> Callable[[], None]:
    """Set up OpenTelemetry for an application: spans and metrics by OTLP, as the ``OTEL_*`` variables say.

    For applications and demos; a library never calls it. Needs ``pip install sfroute[otel]``.

    Returns a function that flushes and shuts down what was set up.

    Raises:
        ConfigError: the SDK or the exporter is not installed, or one is set up already.
    """
    from .sdk import setup_sdk

    return setup_sdk(service_name, metrics=metrics)
