"""Metrics with exemplars for Prometheus, which ``opentelemetry-exporter-prometheus`` leaves out.

An OpenTelemetry Collector, or Prometheus' receiver of OTLP, passes exemplars on. Neither is needed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

__all__ = ["Shown"]

_Key = tuple[str, frozenset[tuple[str, str]], float]
"""A bucket: name of its histogram, labels, upper bound."""


class Shown(Collector):
    """A collector for ``start_http_server``. ``readers`` are those to give to the meter provider."""

    def __init__(self) -> None:
        self._plain = CollectorRegistry()
        self._memory = InMemoryMetricReader()
        self.readers = [PrometheusMetricReader(registry=self._plain), self._memory]
        # The latest of each bucket: a reader is told of an exemplar once.
        self._latest: dict[_Key, Exemplar] = {}

    def collect(self) -> Iterable[Metric]:
        self._look()
        for family in self._plain.collect():
            family.samples = [self._with_exemplar(sample) for sample in family.samples]
            yield family

    def _look(self) -> None:
        data = self._memory.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if isinstance(metric.data, Histogram):
                        self._look_at(metric.name, metric.data.data_points)

    def _look_at(self, name: str, points: Iterable[Any]) -> None:
        for point in points:
            labels = frozenset((_plain(key), str(value)) for key, value in point.attributes.items())
            for one in point.exemplars:
                if one.trace_id is None:
                    continue
                bounds = [*point.explicit_bounds, float("inf")]
                bound = next(bound for bound in bounds if one.value <= bound)
                self._latest[_plain(name), labels, bound] = Exemplar(
                    {"trace_id": f"{one.trace_id:032x}", "span_id": f"{one.span_id:016x}"},
                    one.value,
                    one.time_unix_nano / 1e9,
                )

    def _with_exemplar(self, sample: Sample) -> Sample:
        if not sample.name.endswith("_bucket"):
            return sample
        labels = frozenset(
            (name, value)
            for name, value in sample.labels.items()
            if name != "le" and not name.startswith("otel_scope_") and value
        )
        name = sample.name.removesuffix("_bucket").removesuffix("_seconds")
        found = self._latest.get((name, labels, float(sample.labels["le"])))
        return sample if found is None else sample._replace(exemplar=found)


def _plain(name: str) -> str:
    return name.replace(".", "_")
