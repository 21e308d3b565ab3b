"""Log records in the SDK's own handler: those of a call have the ids of its trace; those of no call have none."""

from __future__ import annotations

import ast
import asyncio
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler, LogRecordProcessor
from opentelemetry.trace import Span

import sfroute
from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    RetryConfig,
    RouterConfig,
    StoreError,
)
from sfroute.embedded import LocalCluster

from .tap import Tap

SERVICE = "chat"
UID = "marie.curie@example.org"
QUICK = RouterConfig(retry=RetryConfig(deadline=1.0, connect_timeout=0.3))


class Exported(LogRecordProcessor):
    """What the SDK would export of the loggers of sfroute."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(self)

    def on_emit(self, log_record: Any) -> None:
        self._kept.append(log_record)

    emit = on_emit
    """Its name in the lowest SDK that is admitted."""

    def shutdown(self) -> None:
        """Nothing is open."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def records(self, logger: str = "") -> list[Any]:
        """Those of a logger, or all."""
        found = list(self._kept)
        return [
            one.log_record
            for one in found
            if not logger or one.instrumentation_scope.name == logger
        ]

    async def wait_for(self, logger: str, count: int) -> None:
        """Return when a logger has made so many records, in whatever thread."""
        async with asyncio.timeout(20):
            while len(self.records(logger)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def text(self) -> str:
        return "\n".join(f"{record.body} {dict(record.attributes)}" for record in self.records())


@contextmanager
def exporting(level: int) -> Iterator[Exported]:
    exported, logger = Exported(), logging.getLogger("sfroute")
    with warnings.catch_warnings():
        # The one of opentelemetry-instrumentation-logging that takes its place is the same code.
        warnings.simplefilter("ignore", DeprecationWarning)
        handler = LoggingHandler(logger_provider=exported.provider)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield exported
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        exported.provider.shutdown()


def ids(span: Span) -> tuple[int, int]:
    context = span.get_span_context()
    return context.trace_id, context.span_id


def ids_of(record: Any) -> tuple[int, int]:
    return record.trace_id or 0, record.span_id or 0


async def test_each_call_of_many_at_once_has_the_ids_of_its_own_request(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    """Lookups leave together, and in threads they are handed over in one turn of the loop."""
    requests = []
    with exporting(logging.DEBUG) as exported:
        router = make_router(node.url, config=tap.config())
        await router.open()

        async def request(number: int) -> None:
            with tap.tracer.start_as_current_span("request") as span:
                requests.append(span)
                for uid in (UID, f"{UID}-{number % 4}"):
                    await router.get_linked_pod(namespace, uid, SERVICE)
                await router.set_linked_pod(namespace, UID, SERVICE, 1)

        await asyncio.gather(*(request(number) for number in range(16)))
        await router.aclose()
        calls = exported.records("sfroute.router")
    assert sorted(map(ids_of, calls)) == sorted(ids(span) for span in requests for _ in range(3))
    for record in calls:
        assert record.attributes["sfroute.namespace"] == namespace
        assert record.attributes["sfroute.service"] == SERVICE
        assert record.attributes["sfroute.operation"] in {"get_linked_pod", "set_linked_pod"}
    assert "curie" not in exported.text()


async def test_what_no_call_does_is_in_no_request(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    """A lane is connected for the first call that needs it, and lives on when its request is long over."""
    with exporting(logging.DEBUG) as exported:
        with tap.tracer.start_as_current_span("request"):
            router = make_router(node.url, config=tap.config())
            await router.open()
            await router.get_linked_pod(namespace, UID, SERVICE)
            await router.get_pods(namespace, SERVICE)
        node.execute(node.nodes[0], "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await exported.wait_for("sfroute.lookups", 3)  # connected, lost, connected
        await router.aclose()
    for logger in ("sfroute.lookups", "sfroute.topology", "sfroute.store"):
        for record in exported.records(logger):
            assert ids_of(record) == (0, 0), record.body


@pytest.mark.slow
async def test_heartbeats_are_in_no_request_whoever_started_the_agent(
    tap: Tap, namespace: str
) -> None:
    """They go on for ever: hours later they would still be in the trace of the start."""
    with LocalCluster(1, 0) as cluster, exporting(logging.WARNING) as exported:
        async with AsyncRouter.from_url(cluster.url, config=QUICK) as router:
            agent = AsyncPodAgent(router, namespace, SERVICE, 3, heartbeat=0.05, sigterm=False)
            with tap.tracer.start_as_current_span("start"):
                await agent.start()
            cluster.pause(cluster.nodes[0])
            try:
                await exported.wait_for("sfroute.agent", 1)
            finally:
                cluster.resume(cluster.nodes[0])
            await agent.stop()
    failed = exported.records("sfroute.agent")[0]
    assert ids_of(failed) == (0, 0)
    assert failed.attributes["sfroute.namespace"] == namespace
    assert failed.attributes["sfroute.service"] == SERVICE
    assert failed.attributes["sfroute.pod"] == 3
    assert failed.attributes["error.type"] in {"StoreUnavailable", "OutcomeUnknown"}


@pytest.mark.slow
async def test_a_failed_call_has_its_request_and_its_reason(
    make_router: Callable[..., Any], tap: Tap
) -> None:
    config = tap.config(base=QUICK)
    with LocalCluster(1, 0) as cluster, exporting(logging.DEBUG) as exported:
        router = make_router(cluster.url, config=config)
        await router.set_linked_pod("n", UID, SERVICE, 1)
        cluster.pause(cluster.nodes[0])
        try:
            with (
                tap.tracer.start_as_current_span("request") as request,
                pytest.raises(StoreError),
            ):
                await router.set_linked_pod("n", UID, SERVICE, 2)
        finally:
            cluster.resume(cluster.nodes[0])
        await router.aclose()
    failed = exported.records("sfroute.router")[-1]
    assert ids_of(failed) == ids(request)
    assert failed.attributes["error.type"] == "OutcomeUnknown"
    assert failed.attributes["sfroute.pod"] == 2
    assert "curie" not in exported.text()


@pytest.mark.slow
def test_every_warning_and_error_says_in_fields_what_it_is_about() -> None:
    """So that a search for a pod or a node finds it, whatever its text says."""
    package = Path(sfroute.__file__).parent
    found = []
    for file in sorted(package.rglob("*.py")):
        folder = file.relative_to(package).parts[0]
        if folder not in {"cli", "embedded", "_programs"}:  # they are no libraries
            found += [(file, node) for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    calls = [
        (f"{file.name}:{node.lineno}", {keyword.arg for keyword in node.keywords})
        for file, node in found
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"warning", "error", "exception", "critical", "log"}
        and "log" in ast.unparse(node.func.value)
    ]
    assert len(calls) > 20
    assert [place for place, arguments in calls if "extra" not in arguments] == []
