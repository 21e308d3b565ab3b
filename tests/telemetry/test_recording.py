"""The queue and its worker: what is sampled, dropped, flushed, and what never happens."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import (
    DEFAULT_ON,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
)
from opentelemetry.util.types import Attributes

from sfroute import AsyncRouter, ConfigError, Router, RouterConfig, TelemetryConfig
from sfroute.embedded import LocalCluster
from sfroute.telemetry import CallRecord
from sfroute.telemetry.recorder import Recorder
from sfroute.telemetry.spans import SpanMaker

from .tap import Tap

SERVICE = "chat"
KEY = b"sixteen bytes at least"


class Witness(Sampler):
    """Notes what it is asked, then answers as another."""

    def __init__(self, other: Sampler) -> None:
        self.asked: list[str] = []
        self._other = other

    def should_sample(
        self,
        parent_context: otel_context.Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.asked.append(name)
        return self._other.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self) -> str:
        return "Witness"


def unsampled() -> AbstractContextManager[Any]:
    """The request around is not sampled."""
    context = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0))
    return trace.use_span(NonRecordingSpan(context))


class Held(SpanProcessor):
    """Keeps the worker in its first span until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        self.reached.set()
        self.go.wait(20)


class Failing(SpanProcessor):
    """An application's mistake."""

    def on_end(self, span: ReadableSpan) -> None:
        raise ZeroDivisionError


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sfroute-telemetry"]


# --- what is put to the sampler


@pytest.mark.parametrize(("hit_spans", "asked"), [("follow_parent", 0), ("all", 3), ("off", 0)])
async def test_hits_in_an_unsampled_request(
    hit_spans: str, asked: int, make_router: Callable[..., Any], node: LocalCluster, namespace: str
) -> None:
    witness = Witness(DEFAULT_ON)
    tap = Tap(witness)
    router = make_router(node.url, config=tap.config(hit_spans=hit_spans))
    await router.get_linked_pod(namespace, "u", SERVICE)
    with unsampled():
        for _ in range(3):
            await router.get_linked_pod(namespace, "u", SERVICE)
        await router.get_linked_pod(namespace, "v", SERVICE)
    await router.aclose()
    # What left the process is always put to the sampler, which here follows the request.
    assert witness.asked.count("sfroute get_linked_pod") == 2 + asked
    assert len(tap.spans("sfroute get_linked_pod")) == 1


@pytest.mark.parametrize(("hit_spans", "spans"), [("follow_parent", 4), ("all", 4), ("off", 1)])
async def test_hits_in_a_sampled_request_and_without_one(
    hit_spans: str, spans: int, make_router: Callable[..., Any], node: LocalCluster, namespace: str
) -> None:
    tap = Tap(DEFAULT_ON)
    router = make_router(node.url, config=tap.config(hit_spans=hit_spans))
    await router.get_linked_pod(namespace, "u", SERVICE)
    await router.get_linked_pod(namespace, "u", SERVICE)
    with tap.tracer.start_as_current_span("request"):
        await router.get_linked_pod(namespace, "u", SERVICE)
        await router.get_linked_pod(namespace, "u", SERVICE)
    await router.aclose()
    assert len(tap.spans("sfroute get_linked_pod")) == spans
    assert sum(tap.metrics()["sfroute.cache.requests"].values()) == 4


async def test_an_unsampled_request_has_no_spans_below(
    make_router: Callable[..., Any], node: LocalCluster, namespace: str
) -> None:
    tap = Tap(DEFAULT_ON)
    router = make_router(node.url, config=tap.config(hit_spans="all"))
    await router.open()
    with unsampled():
        await router.set_linked_pod(namespace, "u", SERVICE, 1)
        await router.get_linked_pod(namespace, "u", SERVICE)
        await router.get_linked_pod(namespace, "u", SERVICE)
    await router.aclose()
    assert tap.spans() == []
    assert sum(tap.metrics()["sfroute.operation.duration"].values()) == 2


# --- the queue


async def test_what_the_queue_cannot_hold_is_dropped_and_counted(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    held = Held()
    tap.tracers.add_span_processor(held)
    async with AsyncRouter.from_url(node.url, config=tap.config(queue_size=8)) as router:
        await router.get_linked_pod(namespace, "u", SERVICE)
        await asyncio.to_thread(held.reached.wait, 5)
        waiting = router._inside.telemetry.queued
        hits = 100
        for _ in range(hits):
            await router.get_linked_pod(namespace, "u", SERVICE)
        # Three quarters of the queue are for hits, whatever else waits.
        assert router._inside.telemetry.queued == 6 + waiting
        dropped = router.stats().spans_dropped
        assert dropped == hits - 6
        assert tap.metrics()["sfroute.spans.dropped"] == {(): dropped}
        held.go.set()
    assert len(tap.spans("sfroute get_linked_pod")) == 1 + hits - dropped
    assert tap.metrics()["sfroute.spans.dropped"] == {(): dropped}


async def test_no_span_is_left_without_its_parent_when_the_queue_is_full(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    held = Held()
    tap.tracers.add_span_processor(held)
    async with AsyncRouter.from_url(node.url, config=tap.config(queue_size=8)) as router:
        await router.get_linked_pod(namespace, "u", SERVICE)
        await asyncio.to_thread(held.reached.wait, 5)
        await asyncio.gather(
            *(router.set_linked_pod(namespace, f"u{n}", SERVICE, 1) for n in range(10)),
            *(router.get_linked_pod(namespace, f"v{n}", SERVICE) for n in range(10)),
        )
        assert router.stats().spans_dropped > 0
        held.go.set()
    ids = {span.context.span_id for span in tap.spans()}
    for span in tap.spans():
        assert span.parent is None or span.parent.span_id in ids
        assert {link.context.span_id for link in span.links} <= ids


async def test_a_processor_that_fails_costs_spans_and_nothing_else(
    make_router: Callable[..., Any],
    node: LocalCluster,
    tap: Tap,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tap.tracers.add_span_processor(Failing())
    router = make_router(node.url, config=tap.config())
    with caplog.at_level(logging.INFO):
        await router.set_linked_pod(namespace, "u", SERVICE, 1)
        for _ in range(5):
            assert await router.get_linked_pod(namespace, "u", SERVICE) == 1
        await router.aclose()
    told = [record for record in caplog.records if record.name.startswith("sfroute.telemetry")]
    assert len(told) == 1
    assert "sampler or processor failed" in told[0].getMessage()
    assert sum(tap.metrics()["sfroute.operation.duration"].values()) == 2
    assert tap.metrics()["sfroute.spans.dropped"][()] >= 7


async def test_closing_does_not_wait_for_ever(
    node: LocalCluster,
    tap: Tap,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("sfroute.telemetry.facade.FLUSH_SECONDS", 0.05)
    held = Held()
    tap.tracers.add_span_processor(held)
    router = AsyncRouter.from_url(node.url, config=tap.config())
    for _ in range(3):
        await router.get_linked_pod(namespace, "u", SERVICE)
    async with asyncio.timeout(5):
        await router.aclose()
    assert "became no spans" in caplog.text
    assert tap.metrics()["sfroute.spans.dropped"][()] >= 3
    held.go.set()


async def test_closing_twice_and_closing_while_the_worker_is_busy(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    for _ in range(2000):
        await router.get_linked_pod(namespace, "u", SERVICE)
    await asyncio.gather(router.aclose(), router.aclose())
    await router.aclose()
    assert len(tap.spans("sfroute get_linked_pod")) == 2000
    for worker in workers():  # it may be about to end
        await asyncio.to_thread(worker.join, 5)
    assert workers() == []


async def test_calls_under_way_when_the_router_closes_are_told_of(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    await router.get_linked_pod(namespace, "warm", SERVICE)
    node.pause(node.nodes[0])
    try:
        calls = [
            asyncio.ensure_future(router.get_linked_pod(namespace, "u", SERVICE)),
            asyncio.ensure_future(router.get_workload_state(namespace, SERVICE)),
        ]
        await asyncio.sleep(0.1)
        await router.aclose()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        node.resume(node.nodes[0])
    assert {type(outcome).__name__ for outcome in outcomes} == {"RouterClosed"}
    for operation in ("get_linked_pod", "get_workload_state"):
        last = tap.spans(f"sfroute {operation}")[-1]
        assert (last.attributes or {})["error.type"] == "RouterClosed"


async def test_a_router_that_was_not_closed_leaves_no_worker(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = AsyncRouter.from_url(node.url, config=tap.config())
    await router.get_linked_pod(namespace, "u", SERVICE)
    (worker,) = workers()
    before = tap.metrics()["sfroute.cache.requests"]
    parts = router._inside.engine.parts
    assert parts is not None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del router
        gc.collect()
    assert [warning.category for warning in told] == [ResourceWarning]
    await asyncio.to_thread(worker.join, 5)
    assert not worker.is_alive()
    assert tap.metrics()["sfroute.cache.requests"] == before
    await parts.close()


# --- nobody listens


async def test_without_an_sdk_nothing_is_queued_and_no_thread_runs(
    make_router: Callable[..., Any], node: LocalCluster, namespace: str
) -> None:
    router = make_router(node.url)
    await router.set_linked_pod(namespace, "u", SERVICE, 1)
    for _ in range(3):
        await router.get_linked_pod(namespace, "u", SERVICE)
    engine = getattr(router, "router", router)
    telemetry = engine._telemetry
    assert telemetry.hits is None
    assert telemetry.queued == 0
    assert workers() == []
    await router.aclose()


@pytest.mark.parametrize("reason", ["switched off", "no-op provider", "disabled SDK"])
async def test_nobody_who_wants_spans_gets_none(
    reason: str, node: LocalCluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true" if reason == "disabled SDK" else "false")
    provider = (
        trace.NoOpTracerProvider()
        if reason == "no-op provider"
        else TracerProvider(shutdown_on_exit=False)
    )
    telemetry = TelemetryConfig(enabled=reason != "switched off", tracer_provider=provider)
    async with AsyncRouter.from_url(node.url, config=RouterConfig(telemetry=telemetry)) as router:
        await router.get_linked_pod(namespace, "u", SERVICE)
        await router.get_linked_pod(namespace, "u", SERVICE)
        assert router._inside.telemetry.queued == 0
        assert workers() == []


async def test_metrics_alone_make_durations_and_no_spans(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    telemetry = TelemetryConfig(meter_provider=tap.meters)
    async with AsyncRouter.from_url(node.url, config=RouterConfig(telemetry=telemetry)) as router:
        await router.get_linked_pod(namespace, "u", SERVICE)
        await router.get_linked_pod(namespace, "u", SERVICE)
        assert router._inside.telemetry.hits is None
    assert tap.metrics()["sfroute.operation.duration"] == {
        (("sfroute.operation", "get_linked_pod"),): 1
    }
    assert tap.spans() == []


def test_the_applications_provider_stays_open(node: LocalCluster, tap: Tap, namespace: str) -> None:
    with Router.from_url(node.url, config=tap.config()) as router:
        router.get_linked_pod(namespace, "u", SERVICE)
    with tap.tracer.start_as_current_span("later"):
        pass
    assert len(tap.spans("later")) == 1


# --- processes


def test_a_forked_child_begins_afresh(node: LocalCluster, tap: Tap, namespace: str) -> None:
    held = Held()
    tap.tracers.add_span_processor(held)
    with Router.from_url(node.url, config=tap.config()) as router:
        for _ in range(20):
            router.get_linked_pod(namespace, "parent", SERVICE)
        held.reached.wait(5)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(20)
                held.go.set()
                for _ in range(3):
                    router.get_linked_pod(namespace, "child", SERVICE)
                router.close()
                spans = len(tap.spans("sfroute get_linked_pod"))
                requests = sum(tap.metrics()["sfroute.cache.requests"].values())
                os.write(write_end, f"{spans} {requests}".encode())
            finally:
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        held.go.set()
    assert told == "3 3"
    assert len(tap.spans("sfroute get_linked_pod")) == 20


# --- the hash of a uid


async def test_the_uid_is_told_as_a_keyed_hash_if_that_is_wanted(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config(user_hash_key=KEY))
    await router.get_linked_pod(namespace, "ada", SERVICE)
    await router.get_linked_pod(namespace, "ada", SERVICE)
    await router.set_linked_pod(namespace, "ada", SERVICE, 1)
    await router.aclose()
    expected = hashlib.blake2b(b"ada", key=KEY, digest_size=16).hexdigest()
    spans = [s for s in tap.spans() if s.name.endswith("_linked_pod")]
    assert len(spans) == 3
    assert {(span.attributes or {})["user.hash"] for span in spans} == {expected}


def test_a_setting_that_is_none_of_its_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="background_spans must be 'off' or 'on'"):
        TelemetryConfig(background_spans="yes")  # type: ignore[arg-type]


def test_a_weak_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="16 to 64 bytes"):
        TelemetryConfig(user_hash_key=b"short")
    assert "sixteen" not in repr(TelemetryConfig(user_hash_key=KEY))


def test_the_worker_is_not_needed_to_drain_what_comes_late() -> None:
    made: list[str] = []

    class Notes:
        def measure_call(self, record: CallRecord, context: otel_context.Context) -> None:
            made.append(record.operation)

        def measure_lag(self, seconds: float, context: otel_context.Context) -> None:
            raise AssertionError

    one = Recorder(8, SpanMaker(Notes(), follow_parent=True, user_hash_key=None))
    stopped = threading.Event()
    one.stop(stopped.set)
    assert stopped.is_set()
    one.push(CallRecord("late", None, None, None, otel_context.Context()))
    assert made == ["late"]
    assert not one.queue
