"""A gateway with traces: it exports them by OTLP, and shows two of them as trees in the terminal.

    python examples/trace_demo.py

It starts a cluster and a gateway on asyncio, reports two pods, sends some users' requests through the gateway, and
shows the traces that were received. With OTEL_EXPORTER_OTLP_ENDPOINT set, traces go to that back end instead of a
receiver of its own.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sfroute import AsyncRouter, telemetry
from sfroute.embedded import LocalCluster

NAMESPACE, SERVICE = "example", "chat"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SHOWN = (
    "sfroute.outcome",
    "sfroute.link.source",
    "sfroute.retry.reasons",
    "error.type",
    "app.pod",
    "server.port",
)


class Receiver:
    """What every OTLP back end is at its front: ``POST /v1/traces``."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        for scope in resource.scope_spans:
                            receiver.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *args: object) -> None:
                """Nobody wants to read of each request."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @contextmanager
    def running(self) -> Iterator[Receiver]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class Gateway:
    """Answers each request with the pod of its user. Its own span is what a web framework's instrumentation makes."""

    def __init__(self, router: AsyncRouter) -> None:
        self._router = router
        self._tracer = trace.get_tracer("gateway")

    async def serve(self, uid: str, path: str) -> int:
        with self._tracer.start_as_current_span(path, kind=trace.SpanKind.SERVER) as span:
            link = await self._router.route(NAMESPACE, uid, SERVICE)
            span.set_attribute("app.pod", link.pod)
            with self._tracer.start_as_current_span(f"forward to {SERVICE}-{link.pod}"):
                await asyncio.sleep(0.001)  # the pod's work
            return link.pod


async def drive(url: str) -> None:
    async with AsyncRouter.from_url(url) as router:
        for pod in range(2):
            await router.set_service_state(NAMESPACE, SERVICE, pod, "Running")
        gateway = Gateway(router)
        for uid in ("ada", "grace", "alan"):
            for path in ("POST /login", "POST /messages", "POST /messages", "POST /messages"):
                await gateway.serve(uid, path)
        await asyncio.gather(*(gateway.serve(f"user-{n}", "POST /login") for n in range(6)))


def show(spans: list[Span], root: Span) -> None:
    """A request and everything below it."""
    print(f"\ntrace {root.trace_id.hex()}")

    def line(span: Span, indent: str, joint: str) -> None:
        values = {a.key: a.value for a in span.attributes}
        told = [
            f"{key.removeprefix('sfroute.')}={text(values[key])}" for key in SHOWN if key in values
        ]
        if span.status.code == Status.STATUS_CODE_ERROR:
            told.append("ERROR")
        milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        name = indent + joint + span.name
        print(f"  {name:<48} {milliseconds:9.3f} ms  {'  '.join(told)}".rstrip())

    def below(parent: Span, indent: str) -> None:
        children = [s for s in spans if s.parent_span_id == parent.span_id]
        children.sort(key=lambda s: s.start_time_unix_nano)
        for child in children:
            last = child is children[-1]
            line(child, indent, "└─ " if last else "├─ ")
            below(child, indent + ("   " if last else "│  "))

    line(root, "", "")
    below(root, "")


def text(value: object) -> str:
    """The one field of an attribute's value that is set."""
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    if kind == "array_value":
        return ",".join(text(one) for one in value.array_value.values)  # type: ignore[attr-defined]
    return str(getattr(value, kind))


def run() -> None:
    """Set the SDK up, serve, and flush. The router is closed first: it hands its last spans over then."""
    shut_down = telemetry.setup("gateway", metrics=False)
    with LocalCluster(3, 0) as cluster:
        asyncio.run(drive(cluster.url))
    shut_down()


def main() -> None:
    if os.environ.get(ENDPOINT):
        run()
        print(f"traces of service 'gateway' were sent to {os.environ[ENDPOINT]}")
        return
    with Receiver().running() as receiver:
        os.environ[ENDPOINT] = receiver.endpoint
        run()
    spans = receiver.spans
    print(f"received {len(spans)} spans in {len({s.trace_id for s in spans})} traces by OTLP")
    login = next(s for s in spans if s.name == "POST /login")
    show(spans, login)
    messages = [s for s in spans if s.name == "POST /messages"]
    hits = [s for s in messages if not any(c.name == "GET" for c in tree_of(spans, s))]
    show(spans, hits[0])
    served = max(spans, key=lambda s: len(s.links))
    print(
        f"\n{len(served.links)} lookups that came together left in one {served.name!r}, "
        "which links to the calls it served"
    )


def tree_of(spans: list[Span], root: Span) -> list[Span]:
    """A span and all of its trace."""
    return [s for s in spans if s.trace_id == root.trace_id]


if __name__ == "__main__":
    main()
