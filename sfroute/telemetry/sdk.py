"""Sets up the OpenTelemetry SDK in an application. The only module that imports the SDK."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigError

__all__ = ["setup_sdk"]

try:
    from opentelemetry import metrics as otel_metrics
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:
    raise ConfigError(
        "telemetry.setup() needs the OpenTelemetry SDK and its OTLP exporter: pip install 'sfroute[otel]'"
    ) from error


def setup_sdk(service_name: str, *, metrics: bool) -> Callable[[], None]:
    """See ``sfroute.telemetry.setup``."""
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # The API would keep the first provider and only log a warning; the threads of this one would stay.
        raise ConfigError("this process already has an OpenTelemetry SDK; set it up only once")
    # The SDK reads OTEL_RESOURCE_ATTRIBUTES, and OTEL_SERVICE_NAME if no name is given here.
    resource = Resource.create({"service.name": service_name} if service_name else None)
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracers)
    meters: MeterProvider | None = None
    if metrics:
        meters = MeterProvider(
            resource=resource, metric_readers=[PeriodicExportingMetricReader(OTLPMetricExporter())]
        )
        otel_metrics.set_meter_provider(meters)

    def shut_down() -> None:
        tracers.shutdown()
        if meters is not None:
            meters.shutdown()

    return shut_down
