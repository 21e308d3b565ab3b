"""An OpenTelemetry SDK of a test's own, and what has arrived in it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from sfroute import RouterConfig, TelemetryConfig

__all__ = ["Tap", "Tree", "call", "client", "name_of"]

Tree = tuple[str, str, dict[str, Any], str, list[Any]]
"""Name, kind, attributes, status and children of a span."""

WHERE = frozenset({"server.address", "server.port", "network.peer.address", "network.peer.port"})
"""Attributes that are another port on each run. They are checked apart."""


class Bell(SpanProcessor):
    """Wakes those who wait for a span."""

    def __init__(self, arrived: threading.Condition) -> None:
        self._arrived = arrived

    def on_end(self, span: ReadableSpan) -> None:
        with self._arrived:
            self._arrived.notify_all()


class Tap:
    """Providers for ``TelemetryConfig``, and what they were told. Complete once the router is closed."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.arrived = threading.Condition()
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracers.add_span_processor(Bell(self.arrived))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.tracers.get_tracer("gateway")

    def config(self, *, base: RouterConfig | None = None, **options: Any) -> RouterConfig:
        """A router's configuration with these providers."""
        options = {"tracer_provider": self.tracers, "meter_provider": self.meters, **options}
        telemetry = TelemetryConfig(**options)
        base = base or RouterConfig()
        return RouterConfig(
            cache=base.cache, retry=base.retry, placement=base.placement, telemetry=telemetry
        )

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """All that has ended, or those of a name."""
        found = list(self.exporter.get_finished_spans())
        return found if name is None else [span for span in found if span.name == name]

    def wait_for(self, name: str, timeout: float = 5.0, count: int = 1) -> None:
        """Return when so many spans of this name have ended."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.spans(name)) >= count, timeout), name

    def one(self, name: str) -> ReadableSpan:
        """The only span of a name."""
        (span,) = self.spans(name)
        return span

    def children(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """Spans below another, by their beginning."""
        below = [
            span
            for span in self.spans()
            if span.parent is not None and span.parent.span_id == parent.context.span_id
        ]
        return sorted(below, key=lambda span: span.start_time or 0)

    def tree(self, span: ReadableSpan) -> Tree:
        """A span and all below it, without what differs from run to run."""
        attributes = {k: v for k, v in (span.attributes or {}).items() if k not in WHERE}
        status = span.status.status_code.name
        below = [self.tree(child) for child in self.children(span)]
        return (span.name, span.kind.name, attributes, status, below)

    def exemplars(self, metric: str) -> set[int]:
        """Span ids to which the points of a histogram refer, since metrics were last read."""
        data = self.reader.get_metrics_data()
        return {
            exemplar.span_id
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric
            for point in found.data.data_points
            for exemplar in point.exemplars
            if exemplar.span_id is not None
        }

    def metrics(self) -> dict[str, dict[tuple[tuple[str, Any], ...], Any]]:
        """Name -> labels -> value; of a histogram, the count."""
        found: dict[str, dict[tuple[tuple[str, Any], ...], Any]] = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    found[metric.name] = {
                        labels_of(point.attributes): getattr(point, "value", None)
                        if hasattr(point, "value")
                        else point.count
                        for point in metric.data.data_points
                    }
        return found

    def exported_text(self) -> str:
        """Everything that has left through this SDK, as text."""
        data = self.reader.get_metrics_data()
        return "\n".join(
            [span.to_json() for span in self.spans()] + ([data.to_json()] if data else [])
        )


def labels_of(attributes: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((attributes or {}).items()))


def call(operation: str, *below: Tree, error: str | None = None, **attributes: Any) -> Tree:
    """The tree of a public call; attributes without their ``sfroute.``, dots as ``_``."""
    named = {name_of(name): value for name, value in attributes.items()}
    if error is not None:
        named["error.type"] = error
    return (f"sfroute {operation}", "INTERNAL", named, "ERROR" if error else "UNSET", list(below))


def client(
    operation: str, script: str = "", *, status: str = "UNSET", size: int = 1, **attributes: Any
) -> Tree:
    """The tree of a call to the store."""
    named: dict[str, Any] = {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": operation,
    }
    if script:
        named["db.stored_procedure.name"] = script
    if size > 1:
        named["db.operation.batch.size"] = size
    named |= {name_of(name): value for name, value in attributes.items()}
    return (f"{operation} {script}".strip(), "CLIENT", named, status, [])


def name_of(argument: str) -> str:
    known = {"code": "db.response.status_code", "error_type": "error.type", "user": "user.hash"}
    return known.get(argument, "sfroute." + argument.replace("_", "."))
