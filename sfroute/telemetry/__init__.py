"""Telemetry: one span per public call, metrics, and no cost on the hot path.

Only OpenTelemetry's API is used: without an SDK nothing is recorded, queued or started. The providers are the global
ones unless ``TelemetryConfig`` names others. This package never sets a provider or shuts one down. ``setup`` is for
applications.
"""

from __future__ import annotations

from collections.abc import Callable

from .calls import traced
from .facade import Telemetry
from .records import CURRENT, CallRecord, ClientRecord, Retry, SharedWork
from .watched import AgentStats, PodsSeen

__all__ = [
    "CURRENT",
    "AgentStats",
    "CallRecord",
    "ClientRecord",
    "PodsSeen",
    "Retry",
    "SharedWork",
    "Telemetry",
    "setup",
    "traced",
]


def setup(service_name: str = "", *, metrics: bool = True) -> Callable[[], None]:
    """Set up OpenTelemetry for an application: export spans and metrics by OTLP, as the ``OTEL_*`` variables say.

    For applications and demos; a library never calls it. Needs ``pip install sfroute[otel]``.

    Returns a function that flushes everything and shuts it down.

    Raises:
        ConfigError: the SDK or the exporter is not installed, or an SDK is already set up.
    """
    from .sdk import setup_sdk

    return setup_sdk(service_name, metrics=metrics)
