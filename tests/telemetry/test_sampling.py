"""What a sampler leaves of a trace is whole: each sampled call shows the calls to the store that it waited for."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, ParentBasedTraceIdRatio
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from sfroute import AsyncPodAgent, AsyncRouter, CacheConfig, Router, RouterConfig, TelemetryConfig
from sfroute.embedded import LocalCluster

from .tap import Tap

SERVICE = "chat"
CALLS = 1024


def of_request(*, sampled: bool) -> Any:
    """The request around is a part of somebody else's trace, which is sampled or is not."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else 0)
    return trace.use_span(NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=flags)))


def shows_the_store(tap: Tap, call: ReadableSpan) -> bool:
    """Whether a call has a call to the store below it, or a link to one that links back."""
    if any(span.kind.name == "CLIENT" for span in tap.children(call)):
        return True
    stores = {span.context.span_id: span for span in tap.spans() if span.kind.name == "CLIENT"}
    linked = [stores[link.context.span_id] for link in call.links]
    return any(
        call.context.span_id in {link.context.span_id for link in store.links} for store in linked
    )


@pytest.mark.parametrize("together", [1, 4, 16, 64])
async def test_every_sampled_miss_shows_its_call_to_the_store(
    together: int, node: LocalCluster, namespace: str
) -> None:
    tap = Tap(ParentBasedTraceIdRatio(0.1))
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:

        async def request(uid: str) -> None:
            with tap.tracer.start_as_current_span("request"):
                await router.get_linked_pod(namespace, uid, SERVICE)

        for start in range(0, CALLS, together):
            await asyncio.gather(*(request(f"u{start + n}") for n in range(together)))
    sampled = tap.spans("sfroute get_linked_pod")
    assert 0.05 * CALLS < len(sampled) < 0.2 * CALLS
    assert [call for call in sampled if not shows_the_store(tap, call)] == []
    # Nor is there one that no sampled call has waited for: a root would be sampled by itself.
    assert [span for span in tap.spans() if span.kind.name == "CLIENT" and not span.parent] == []


async def test_where_no_call_is_sampled_the_batch_has_no_span(
    node: LocalCluster, namespace: str
) -> None:
    tap = Tap(ParentBased(ALWAYS_OFF))
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        with of_request(sampled=False):
            await asyncio.gather(
                *(router.get_linked_pod(namespace, f"u{n}", SERVICE) for n in range(8)),
                router.set_linked_pod(namespace, "v", SERVICE, 1),
            )
    assert tap.spans() == []


async def test_a_sampled_call_that_joins_an_unsampled_one_shows_the_store(
    node: LocalCluster, namespace: str
) -> None:
    tap = Tap(ParentBased(ALWAYS_OFF))
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:

        async def look_up(*, sampled: bool) -> None:
            with of_request(sampled=sampled):
                await router.get_linked_pod(namespace, "u", SERVICE)

        await asyncio.gather(look_up(sampled=False), look_up(sampled=True))
    (joined,) = tap.spans("sfroute get_linked_pod")
    assert [span.name for span in tap.children(joined)] == ["GET"]


async def test_a_sampled_placement_shows_what_an_unsampled_one_began(
    node: LocalCluster, plain: Router, namespace: str
) -> None:
    """The reading of the pods and the placement of one user, waited for by two requests."""
    plain.set_service_state(namespace, SERVICE, 1, "Running")
    tap = Tap(ParentBased(ALWAYS_OFF))
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:

        async def route(*, sampled: bool) -> None:
            with of_request(sampled=sampled):
                await router.route(namespace, "u", SERVICE)

        await asyncio.gather(route(sampled=False), route(sampled=True))
    (routed,) = tap.spans("sfroute route")
    assert [span.name for span in tap.children(routed)] == [
        "GET",
        "EVALSHA statefulGetService",
        "EVALSHA statefulComputeLinkIfAbsent",
    ]


async def test_two_sampled_placements_share_one_call_to_the_store(
    node: LocalCluster, plain: Router, tap: Tap, namespace: str
) -> None:
    plain.set_service_state(namespace, SERVICE, 1, "Running")
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await asyncio.gather(*(router.route(namespace, "u", SERVICE) for _ in range(2)))
    for name in ("EVALSHA statefulGetService", "EVALSHA statefulComputeLinkIfAbsent"):
        shared = tap.one(name)
        parent, other = sorted(
            tap.spans("sfroute route"), key=lambda call: shared not in tap.children(call)
        )
        assert shared.parent is not None
        assert shared.parent.span_id == parent.context.span_id
        assert [link.context.span_id for link in shared.links] == [other.context.span_id]
        assert shared.context.span_id in {link.context.span_id for link in other.links}


async def test_a_call_that_was_cancelled_is_linked_from_its_batch_without_a_complaint(
    node: LocalCluster, tap: Tap, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    router = AsyncRouter.from_url(node.url, config=tap.config())
    await router.get_linked_pod(namespace, "warm", SERVICE)
    node.pause(node.nodes[0])
    try:
        calls = [
            asyncio.create_task(router.get_linked_pod(namespace, f"u{n}", SERVICE))
            for n in range(2)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        # Both spans have ended before the batch does.
        await asyncio.to_thread(tap.wait_for, "sfroute get_linked_pod", 5.0, 3)
    finally:
        node.resume(node.nodes[0])
    assert await router.get_linked_pod(namespace, "u0", SERVICE) is None
    await router.aclose()
    batch = tap.one("PIPELINE GET")
    assert batch.parent is not None
    assert len(batch.links) >= 1
    assert [record for record in caplog.records if "span" in record.getMessage()] == []


# --- what no request waits for


async def test_what_the_router_does_of_its_own_accord_makes_no_traces(
    node: LocalCluster, plain: Router, tap: Tap, namespace: str
) -> None:
    """Heartbeats, invalidations, lanes and views: metrics tell of them."""
    config = RouterConfig(cache=CacheConfig(heartbeat=0.05, heartbeat_timeout=2.0))
    async with (
        AsyncRouter.from_url(node.url, config=tap.config(base=config)) as router,
        AsyncPodAgent(router, namespace, SERVICE, 3, heartbeat=0.02, sigterm=False),
        asyncio.timeout(5),
    ):
        await router.get_linked_pod(namespace, "u", SERVICE)
        plain.set_linked_pod(namespace, "u", SERVICE, 1)
        node.execute(node.nodes[0], "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        while tap.metrics()["sfroute.lanes.lost"][()] < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert tap.metrics()["sfroute.cache.invalidations"][()] >= 1
        assert "sfroute.topology.changes" in tap.metrics()
    roots = [span.name for span in tap.spans() if span.parent is None]
    assert roots == ["sfroute get_linked_pod"]


async def test_heartbeats_have_root_spans_where_they_are_wanted(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    config = tap.config(background_spans="on")
    async with (
        AsyncRouter.from_url(node.url, config=config) as router,
        AsyncPodAgent(router, namespace, SERVICE, 3, sigterm=False),
    ):
        pass
    beats = tap.spans("EVALSHA statefulSetState")
    assert len(beats) == 2
    assert [span.parent for span in beats] == [None, None]


# --- exemplars


async def test_durations_refer_to_the_spans_of_their_calls(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    await router.set_linked_pod(namespace, "u", SERVICE, 1)
    await router.get_linked_pod(namespace, "u", SERVICE)
    await router.aclose()
    calls = {span.context.span_id for span in tap.spans() if span.name.startswith("sfroute ")}
    assert len(calls) == 2
    assert tap.exemplars("sfroute.operation.duration") == calls


async def test_an_unsampled_call_is_no_exemplar(node: LocalCluster, namespace: str) -> None:
    tap = Tap(ParentBased(ALWAYS_OFF))
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await router.set_linked_pod(namespace, "u", SERVICE, 1)
    assert tap.metrics()["sfroute.operation.duration"] != {}
    assert tap.exemplars("sfroute.operation.duration") == set()


async def test_without_spans_of_ours_the_callers_is_the_exemplar(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    config = tap.config(tracer_provider=trace.NoOpTracerProvider())
    async with AsyncRouter.from_url(node.url, config=config) as router:
        with tap.tracer.start_as_current_span("request") as request:
            await router.set_linked_pod(namespace, "u", SERVICE, 1)
    assert tap.exemplars("sfroute.operation.duration") == {request.get_span_context().span_id}


# --- what a back end does costs no caller anything


async def test_an_exporter_that_hangs_and_span_limits_keep_no_caller_waiting(
    make_router: Callable[..., Any], node: LocalCluster, namespace: str
) -> None:
    class Hanging(SpanExporter):
        def __init__(self) -> None:
            self.reached, self.go = threading.Event(), threading.Event()

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.reached.set()
            self.go.wait(30)
            return SpanExportResult.SUCCESS

    tap, hanging = Tap(), Hanging()
    limits = SpanLimits(max_links=1, max_events=1, max_span_attributes=2)
    tap.tracers = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    # In the thread that ends the span, which is the worst that an application can do.
    tap.tracers.add_span_processor(SimpleSpanProcessor(hanging))
    router = make_router(node.url, config=tap.config(queue_size=16))
    try:
        async with asyncio.timeout(20):
            await router.get_linked_pod(namespace, "first", SERVICE)
            await asyncio.to_thread(hanging.reached.wait, 10)
            for number in range(50):
                await router.set_linked_pod(namespace, f"u{number}", SERVICE, 1)
                assert await router.get_linked_pod(namespace, f"u{number}", SERVICE) == 1
                assert await router.get_linked_pod(namespace, f"u{number}", SERVICE) == 1
        assert not hanging.go.is_set()
        assert getattr(router, "router", router).stats().spans_dropped > 0
    finally:
        hanging.go.set()
        await router.aclose()


class TailSampling(SpanProcessor):
    """Keeps the spans of each trace until its root has ended, and exports those that were slow or failed."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._waiting: dict[int, list[ReadableSpan]] = {}

    def on_end(self, span: ReadableSpan) -> None:
        trace_id = span.context.trace_id
        self._waiting.setdefault(trace_id, []).append(span)
        if span.parent is None:
            spans = self._waiting.pop(trace_id)
            if any((one.end_time or 0) - (one.start_time or 0) > 1e8 for one in spans):
                self._exporter.export(spans)


class Slow(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        time.sleep(0.02)
        return SpanExportResult.SUCCESS


BACK_ENDS: dict[str, Callable[[], TracerProvider]] = {
    "nothing": lambda: TracerProvider(shutdown_on_exit=False),
    "slow exporter": lambda: processed_by(SimpleSpanProcessor(Slow())),
    "batches": lambda: processed_by(BatchSpanProcessor(Slow(), max_export_batch_size=1)),
    "tail sampling": lambda: processed_by(TailSampling(Slow())),
    "span limits": lambda: TracerProvider(
        span_limits=SpanLimits(max_links=1, max_events=1, max_span_attributes=2),
        shutdown_on_exit=False,
    ),
    "one in a hundred": lambda: TracerProvider(
        sampler=ParentBasedTraceIdRatio(0.01), shutdown_on_exit=False
    ),
}


def processed_by(processor: SpanProcessor) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider


def steps(call: Callable[[], object]) -> int:
    """How many functions this thread calls, those written in C included, until the call returns."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def shortest(call: Callable[[], object]) -> int:
    """A call that is waited for differs by a step or two with who is quicker."""
    return min(steps(call) for _ in range(20))


@pytest.mark.slow
def test_no_back_end_changes_what_a_call_costs_its_caller(
    node: LocalCluster, namespace: str
) -> None:
    """In functions called, which do not depend on how busy the machine is."""
    costs: dict[str, tuple[int, int, int]] = {}
    for name, make in BACK_ENDS.items():
        provider = make()
        telemetry = TelemetryConfig(tracer_provider=provider, queue_size=8192)
        with Router.from_url(node.url, config=RouterConfig(telemetry=telemetry)) as router:

            def hit(router: Router = router) -> object:
                return router.get_linked_pod(namespace, "u", SERVICE)

            def miss(router: Router = router) -> object:
                return router.get_linked_pod(namespace, "u", SERVICE, fresh=True)

            def write(router: Router = router) -> object:
                return router.set_linked_pod(namespace, "u", SERVICE, 1)

            write()
            hit()
            hit()
            costs[name] = (shortest(hit), shortest(miss), shortest(write))
        provider.shutdown()
    hits, misses, writes = zip(*costs.values(), strict=True)
    assert len(set(hits)) == 1, costs
    # On a busy machine the answer never comes before the caller waits for it, which takes eight steps more. What a
    # processor is given takes dozens.
    for waited in (misses, writes):
        assert max(waited) - min(waited) <= 8, costs
