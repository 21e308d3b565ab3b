"""Tells a real OpenTelemetry provider from a placeholder. Nothing is recorded for a placeholder."""

from __future__ import annotations

from opentelemetry import metrics as otel_metrics
from opentelemetry import trace

from .._version import __version__
from . import names

__all__ = ["has_meter", "real_tracer"]


def real_tracer(provider: trace.TracerProvider | None) -> trace.Tracer | None:
    """A tracer of this provider, or of the global one if None. Returns None if it would record nothing."""
    provider = provider or trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    tracer = trace.get_tracer(
        names.SCOPE, __version__, tracer_provider=provider, schema_url=names.SCHEMA_URL
    )
    # An SDK that is disabled (OTEL_SDK_DISABLED) returns a NoOpTracer.
    return None if isinstance(tracer, trace.NoOpTracer) else tracer


def has_meter(provider: otel_metrics.MeterProvider | None) -> bool:
    """True if measurements go anywhere."""
    provider = provider or otel_metrics.get_meter_provider()
    # The API's placeholder for a later provider is a private class. An SDK's class is not in the API's module.
    if type(provider).__module__.startswith("opentelemetry.metrics"):
        return False
    meter = provider.get_meter(names.SCOPE, __version__, schema_url=names.SCHEMA_URL)
    return not isinstance(meter, otel_metrics.NoOpMeter)
