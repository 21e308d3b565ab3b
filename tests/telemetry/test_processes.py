"""What concerns a whole process: its global providers, its end, an SDK that comes late or not at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio.cluster import RedisCluster
from support.documents import block
from support.processes import Child

from sfroute import AsyncRouter, Router
from sfroute.embedded import LocalCluster

from .tap import Tap, call, client

SERVICE = "chat"
DOCS = Path(__file__).parents[2] / "docs"
PRINT_SPANS = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

class Print(SpanExporter):
    def export(self, spans):
        for span in spans:
            print(span.name, flush=True)
        return SpanExportResult.SUCCESS

def set_sdk():
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Print()))
    trace.set_tracer_provider(provider)
"""


def run(program: str, *arguments: str, **variables: str) -> str:
    """The output of a program that must end well and complain of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        env={**os.environ, **variables},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("closed", ["closed by nobody", "closed by with"])
def test_spans_are_flushed_when_the_process_ends(
    closed: str, node: LocalCluster, namespace: str
) -> None:
    program = """
        import sys, sfroute
        set_sdk()
        router = sfroute.Router.from_url(sys.argv[1])
        if sys.argv[3] == "closed by with":
            router.__enter__()
        for _ in range(3):
            router.get_linked_pod(sys.argv[2], "u", "chat")
        if sys.argv[3] == "closed by with":
            router.__exit__(None, None, None)
    """
    told = run(PRINT_SPANS + textwrap.dedent(program), node.url, namespace, closed)
    assert told.splitlines().count("sfroute get_linked_pod") == 3


def test_spans_of_an_async_router_that_nobody_closed_are_flushed(
    node: LocalCluster, namespace: str
) -> None:
    program = """
        import asyncio, os, sys, sfroute
        set_sdk()
        async def main():
            global router
            router = sfroute.AsyncRouter.from_url(sys.argv[1])
            await router.set_linked_pod(sys.argv[2], "u", "chat", 1)
            # An application that ends without closing anything: only the exit handlers run.
            sys.exit()
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(main())
        except SystemExit:
            import warnings
            warnings.simplefilter("ignore")
    """
    told = run(PRINT_SPANS + textwrap.dedent(program), node.url, namespace)
    assert "sfroute set_linked_pod" in told.splitlines()


def test_an_sdk_that_is_set_after_the_router_opened_is_found(
    node: LocalCluster, namespace: str
) -> None:
    program = """
        import sfroute, sfroute.telemetry
        sfroute.telemetry.facade.LOOK_AROUND_SECONDS = 0.0
        with sfroute.Router.from_url(sys.argv[1]) as router:
            router.get_linked_pod(sys.argv[2], "u", "chat")
            set_sdk()
            router.get_linked_pod(sys.argv[2], "u", "chat")
            router.get_linked_pod(sys.argv[2], "v", "chat")
            router.get_linked_pod(sys.argv[2], "v", "chat")
            router.set_linked_pod(sys.argv[2], "v", "chat", 1)
    """
    told = run(PRINT_SPANS + textwrap.dedent(program), node.url, namespace).splitlines()
    # The hit before the first miss could not know.
    assert told.count("sfroute get_linked_pod") == 2
    assert told.count("sfroute set_linked_pod") == 1


def test_metrics_that_are_set_after_traces_are_found(node: LocalCluster, namespace: str) -> None:
    program = """
        import sfroute, sfroute.telemetry
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        sfroute.telemetry.facade.LOOK_AROUND_SECONDS = 0.0
        set_sdk()
        with sfroute.Router.from_url(sys.argv[1]) as router:
            router.get_linked_pod(sys.argv[2], "u", "chat")
            reader = InMemoryMetricReader()
            metrics.set_meter_provider(MeterProvider([reader]))
            router.get_linked_pod(sys.argv[2], "v", "chat")
        scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
        print([m.name for s in scopes for m in s.metrics if "duration" in m.name])
    """
    told = run(PRINT_SPANS + textwrap.dedent(program), node.url, namespace)
    assert "['sfroute.operation.duration']" in told.splitlines()


def test_no_sdk_is_needed(node: LocalCluster, namespace: str) -> None:
    told = run(
        """
        import importlib.abc, sys, threading

        class Blocker(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Blocker())
        import sfroute, sfroute.telemetry
        with sfroute.Router.from_url(sys.argv[1]) as router:
            router.set_linked_pod(sys.argv[2], "u", "chat", 1)
            print(router.get_linked_pod(sys.argv[2], "u", "chat"))
            print([t.name for t in threading.enumerate() if "telemetry" in t.name])
        try:
            sfroute.telemetry.setup()
        except sfroute.ConfigError as error:
            print(error)
        """,
        node.url,
        namespace,
    )
    assert told.splitlines() == [
        "1",
        "[]",
        "telemetry.setup() needs the OpenTelemetry SDK and its OTLP exporter: pip install 'sfroute[otel]'",
    ]


def test_a_library_sets_no_globals(node: LocalCluster, namespace: str) -> None:
    told = run(
        """
        import logging, sys
        import sfroute
        from opentelemetry import metrics, trace
        with sfroute.Router.from_url(sys.argv[1]) as router:
            router.set_linked_pod(sys.argv[2], "u", "chat", 1)
        print(type(trace.get_tracer_provider()).__name__)
        print(type(metrics.get_meter_provider()).__name__)
        print([name for name, logger in logging.root.manager.loggerDict.items()
               if name.startswith("sfroute") and getattr(logger, "handlers", None)])
        """,
        node.url,
        namespace,
    )
    assert told.split() == ["ProxyTracerProvider", "_ProxyMeterProvider", "[]"]


def test_the_sdk_is_set_up_once() -> None:
    told = run(
        """
        import sfroute, sfroute.telemetry
        shut_down = sfroute.telemetry.setup("first", metrics=False)
        try:
            sfroute.telemetry.setup("second")
        except sfroute.ConfigError as error:
            print(error)
        shut_down()
        """
    )
    assert told == "this process already has an OpenTelemetry SDK; set it up only once\n"


def test_what_the_documents_show_is_true(node: LocalCluster) -> None:
    """The blocks of both pages run; the hash they tell how to make is the one that is made."""
    blocks = [
        block("docs/how-to/trace.md", "python", 0).text,
        block("docs/reference/telemetry.md", "python", 0).text,
    ]
    check = """
from sfroute.telemetry.spans import user_hash as made
from opentelemetry import trace
print(type(trace.get_tracer_provider()).__name__)
print(user_hash("ada", b"k" * 16) == made("ada", b"k" * 16))
"""
    told = run(
        "\n".join(blocks) + check,
        OTEL_SDK_DISABLED="true",
    )
    assert told.split() == ["TracerProvider", "True"]


# --- other instrumentations


@pytest.fixture
def instrumented(tap: Tap) -> Iterator[None]:
    """redis-py as ``opentelemetry-instrumentation-redis`` changes it."""
    redis = pytest.importorskip("opentelemetry.instrumentation.redis")
    instrumentor = redis.RedisInstrumentor()
    instrumentor.instrument(tracer_provider=tap.tracers)
    yield
    instrumentor.uninstrument()


@pytest.mark.usefixtures("instrumented")
async def test_the_instrumentation_of_redis_py_adds_nothing(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    host, port = node.startup_nodes[0]
    async with RedisCluster(host=host, port=port, protocol=3) as borrowed:
        for router in (
            AsyncRouter.from_url(node.url, config=tap.config()),
            AsyncRouter(borrowed, config=tap.config()),
        ):
            with tap.tracer.start_as_current_span("request"):
                async with router:
                    await router.set_linked_pod(namespace, "u", SERVICE, 1)
                    await router.get_linked_pod(namespace, "u", SERVICE, fresh=True)
        with tap.tracer.start_as_current_span("their own"):
            await borrowed.get("x")
    by_scope = {
        (span.instrumentation_scope.name, span.name)
        for span in tap.spans()
        if span.kind.name == "CLIENT" and span.instrumentation_scope is not None
    }
    assert by_scope == {
        ("sfroute", "EVALSHA statefulSetLink"),
        ("sfroute", "GET"),
        ("opentelemetry.instrumentation.redis", "GET"),
    }
    (request, _) = tap.spans("request")
    names = {"namespace": namespace, "service": SERVICE}
    assert [tap.tree(span) for span in tap.children(request)] == [
        call("set_linked_pod", client("EVALSHA", "statefulSetLink"), **names),
        call("get_linked_pod", client("GET"), outcome="miss", **names),
    ]


@pytest.mark.usefixtures("instrumented")
def test_the_instrumentation_of_redis_py_adds_nothing_to_the_router_for_threads(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    with (
        tap.tracer.start_as_current_span("request"),
        Router.from_url(node.url, config=tap.config()) as router,
    ):
        router.set_linked_pod(namespace, "u", SERVICE, 1)
        router.get_linked_pod(namespace, "u", SERVICE)
    scopes = {span.instrumentation_scope.name for span in tap.spans() if span.instrumentation_scope}
    assert scopes == {"gateway", "sfroute"}


# --- OTLP

ALL_OPERATIONS = """
import sys
import sfroute, sfroute.telemetry
from opentelemetry import trace
shut_down = sfroute.telemetry.setup("gateway", metrics=sys.argv[3] == "metrics")
namespace, link = sys.argv[2], (sys.argv[2], "u", "chat")
with sfroute.Router.from_url(sys.argv[1]) as router:
    router.set_service_state(namespace, "chat", 1, "Running")
    router.get_service_state(namespace, "chat")
    router.set_workload_state(namespace, "chat", "busy")
    router.get_workload_state(namespace, "chat")
    router.get_workload_state_batch(namespace, ["chat"])
    router.get_pods(namespace, "chat")
    router.route(*link)
    router.set_linked_pod(*link, 1)
    router.try_set_linked_pod(*link, 1)
    router.set_linked_pod_if_absent(*link, 1)
    router.get_linked_pod(*link)
    router.get_linked_pod_if_persist(*link)
    router.get_link_service(*link[:2])
    router.batch_get_linked_pod(namespace, ["u"], "chat")
    router.move_linked_pod(*link, 1, 2)
    router.remove_linked_pod_with_id(*link, pod=1)
    router.remove_linked_pod(*link)
    router.execute_script("statefulGetLinkService", [f"sf:{{{namespace}:lk:u}}"], [])
with trace.get_tracer("gateway").start_as_current_span("the end"):
    pass
shut_down()
"""


def send_to_receiver(
    await_for: tuple[str, str], node: LocalCluster, namespace: str, port: int, folder: Path
) -> str:
    """What an OTLP receiver got of all operations, once it had what it waited for."""
    pytest.importorskip("oteltap")
    with (folder / "received").open("w+") as received:
        with Child(
            [sys.executable, "-m", "oteltap", "--port", str(port), *await_for],
            stdout=received,
            stderr=subprocess.STDOUT,
        ) as receiver:
            run(
                ALL_OPERATIONS,
                node.url,
                namespace,
                "metrics" if "metric" in await_for[0] else "no metrics",
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            )
            assert receiver.wait(20) == 0
        received.seek(0)
        return received.read()


def test_an_otlp_receiver_gets_the_spans_of_all_operations(
    node: LocalCluster, namespace: str, unused_tcp_port: int, tmp_path: Path
) -> None:
    text = send_to_receiver(
        ("--await-span", "^the end$"), node, namespace, unused_tcp_port, tmp_path
    )
    operations = set(re.findall(r"router\.(\w+)", ALL_OPERATIONS))
    assert len(operations) == 18
    assert [name for name in operations if f'"sfroute {name}"' not in text] == []


def test_an_otlp_receiver_gets_the_metrics(
    node: LocalCluster, namespace: str, unused_tcp_port: int, tmp_path: Path
) -> None:
    text = send_to_receiver(
        ("--await-metric", "^sfroute.spans.dropped$"), node, namespace, unused_tcp_port, tmp_path
    )
    assert '"sfroute.operation.duration"' in text
