"""The exact metrics, and that their labels stay few."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import Histogram, Sum

import sfroute
from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CacheConfig,
    InvalidArgument,
    Router,
    RouterConfig,
)
from sfroute.embedded import LocalCluster
from sfroute.telemetry import names

from .tap import Tap

SERVICE = "chat"
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "telemetry.md"

SERVICE_LABEL = "sfroute.service"
OPERATION, ERROR, OUTCOME = "sfroute.operation", "error.type", "sfroute.outcome"
METRICS: dict[str, tuple[str, str, set[str]]] = {
    "sfroute.operation.duration": ("histogram", "s", {OPERATION, ERROR}),
    "sfroute.cache.requests": ("counter", "{request}", {OUTCOME}),
    "sfroute.cache.entries": ("gauge", "{entry}", set()),
    "sfroute.cache.evictions": ("counter", "{entry}", set()),
    "sfroute.cache.invalidations": ("counter", "{key}", set()),
    "sfroute.cache.invalidation.lag": ("histogram", "s", set()),
    "sfroute.lanes": ("gauge", "{lane}", set()),
    "sfroute.lanes.healthy": ("gauge", "{lane}", set()),
    "sfroute.lanes.tracked": ("gauge", "{lane}", set()),
    "sfroute.lanes.lost": ("counter", "{lane}", set()),
    "sfroute.topology.changes": ("counter", "{change}", set()),
    "sfroute.links.placed": ("counter", "{link}", {"sfroute.reason"}),
    "sfroute.pods.conflicts": ("counter", "{process}", set()),
    "sfroute.pods": ("gauge", "{pod}", {SERVICE_LABEL, "sfroute.pod.status"}),
    "sfroute.pods.routable": ("gauge", "{pod}", {SERVICE_LABEL}),
    "sfroute.pods.heartbeat.age": ("gauge", "s", {SERVICE_LABEL}),
    "sfroute.pods.room": ("gauge", "{user}", {SERVICE_LABEL}),
    "sfroute.pods.emptying": ("gauge", "{pod}", {SERVICE_LABEL}),
    "sfroute.pods.ejected": ("gauge", "{pod}", {SERVICE_LABEL}),
    "sfroute.pods.failures": ("counter", "{report}", set()),
    "sfroute.pods.load": ("gauge", "{load}", {SERVICE_LABEL}),
    "sfroute.pods.load.skew": ("gauge", "{multiple}", {SERVICE_LABEL}),
    "sfroute.agent.claims": ("gauge", "{claim}", set()),
    "sfroute.agent.sessions": ("gauge", "{session}", set()),
    "sfroute.agent.drain.left": ("gauge", "{user}", set()),
    "sfroute.agent.lease.margin": ("gauge", "s", set()),
    "sfroute.agent.heartbeats": ("counter", "{heartbeat}", {OUTCOME}),
    "sfroute.agent.claims.lost": ("counter", "{claim}", {"sfroute.reason"}),
    "sfroute.agent.claims.confirmed": ("counter", "{claim}", set()),
    "sfroute.agent.claims.reasserted": ("counter", "{claim}", set()),
    "sfroute.store.forgotten": ("counter", "{time}", set()),
    "sfroute.retries": ("counter", "{retry}", {"sfroute.retry.reason"}),
    "sfroute.answers.stale": ("counter", "{answer}", set()),
    "sfroute.spans.dropped": ("counter", "{span}", set()),
}


async def drive(router: Any, namespace: str) -> None:
    """One of everything that is counted, on a service with one pod."""
    await router.set_service_state(namespace, SERVICE, 1, "Running")
    await router.route(namespace, "ada", SERVICE)  # a miss, placed
    await router.route(namespace, "ada", SERVICE)  # a miss
    await router.route(namespace, "ada", SERVICE)  # a hit
    await router.set_linked_pod(namespace, "grace", SERVICE, 9)
    await router.route(namespace, "grace", SERVICE)  # a miss, moved
    with pytest.raises(InvalidArgument):
        await router.get_linked_pod(namespace, "", SERVICE)


async def test_every_metric_with_its_type_unit_and_labels(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    await drive(router, namespace)
    await router.get_linked_pod(namespace, "ada", SERVICE)
    await router.set_linked_pod(namespace, "ada", SERVICE, 1)
    await router.get_linked_pod(namespace, "ada", SERVICE, fresh=True)
    await router.aclose()
    data = tap.reader.get_metrics_data()
    assert data is not None
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version, scope.schema_url) == (
        "sfroute",
        sfroute.__version__,
        names.SCHEMA_URL,
    )
    found = {}
    for metric in scope.metrics:
        if isinstance(metric.data, Histogram):
            kind = "histogram"
            for point in metric.data.data_points:
                assert point.explicit_bounds == names.SECONDS_BUCKETS
        else:
            assert isinstance(metric.data, Sum)
            kind = "counter" if metric.data.is_monotonic else "gauge"
        labels = {key for point in metric.data.data_points for key in point.attributes or {}}
        found[metric.name] = (kind, metric.unit, labels)
    # A closed router has no entries, no lanes, and knows no pods; this one had no agent.
    gone = {
        name
        for name, (kind, _, _) in METRICS.items()
        if kind == "gauge" or name.startswith("sfroute.agent.")
    }
    assert found == {name: METRICS[name] for name in METRICS if name not in gone}


async def test_the_values_are_what_was_driven(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    await drive(router, namespace)
    metrics = tap.metrics()
    assert metrics["sfroute.cache.requests"] == {
        ((OUTCOME, "hit"),): 1,
        ((OUTCOME, "miss"),): 3,
        ((OUTCOME, "joined"),): 0,
    }
    assert metrics["sfroute.links.placed"] == {
        (("sfroute.reason", "placed"),): 1,
        (("sfroute.reason", "moved"),): 1,
    }
    assert metrics["sfroute.lanes"] == metrics["sfroute.lanes.healthy"] == {(): 1}
    assert metrics["sfroute.cache.entries"][()] >= 1
    await router.aclose()
    # Hits are counted, not timed.
    assert tap.metrics()["sfroute.operation.duration"] == {
        ((OPERATION, "set_service_state"),): 1,
        ((OPERATION, "route"),): 3,
        ((OPERATION, "set_linked_pod"),): 1,
        ((ERROR, "InvalidArgument"), (OPERATION, "get_linked_pod")): 1,
    }


async def test_a_placement_after_a_cached_absence_is_timed(
    make_router: Callable[..., Any], node: LocalCluster, plain: Router, tap: Tap, namespace: str
) -> None:
    plain.set_service_state(namespace, SERVICE, 1, "Running")
    router = make_router(node.url, config=tap.config())
    assert await router.get_linked_pod(namespace, "ada", SERVICE) is None
    assert (await router.route(namespace, "ada", SERVICE)).source == "placed"
    await router.aclose()
    assert tap.metrics()["sfroute.operation.duration"][((OPERATION, "route"),)] == 1
    (span,) = tap.spans("sfroute route")
    assert (span.attributes or {})["sfroute.link.source"] == "placed"


async def test_agents_that_claim_one_pod_are_counted(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with (
        AsyncRouter.from_url(node.url, config=tap.config()) as router,
        AsyncRouter.from_url(node.url) as other,
        AsyncPodAgent(router, namespace, SERVICE, 3, heartbeat=0.02, sigterm=False),
        asyncio.timeout(5),
    ):
        assert tap.metrics()["sfroute.pods.conflicts"] == {(): 0}
        async with AsyncPodAgent(other, namespace, SERVICE, 3, heartbeat=0.02, sigterm=False):
            while tap.metrics()["sfroute.pods.conflicts"] != {(): 1}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_routers_share_instruments_and_counters_never_fall(
    node: LocalCluster, tap: Tap, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    def misses() -> int:
        return int(tap.metrics()["sfroute.cache.requests"][((OUTCOME, "miss"),)])

    first = AsyncRouter.from_url(node.url, config=tap.config())
    second = AsyncRouter.from_url(node.url, config=tap.config())
    for router in (first, second):
        await router.get_linked_pod(namespace, "u", SERVICE)
    assert misses() == 2
    assert tap.metrics()["sfroute.lanes"] == {(): 2}
    await first.aclose()
    assert misses() == 2
    assert tap.metrics()["sfroute.lanes"] == {(): 1}
    await second.get_linked_pod(namespace, "v", SERVICE)
    await second.aclose()
    assert misses() == 3
    async with AsyncRouter.from_url(node.url, config=tap.config()) as third:
        await third.get_linked_pod(namespace, "w", SERVICE)
        assert misses() == 4
    assert misses() == 4
    assert not caplog.records


async def test_the_lag_of_an_own_write_is_measured(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    config = RouterConfig(cache=CacheConfig(heartbeat=0.05, heartbeat_timeout=2.0))
    router = make_router(node.url, config=tap.config(base=config, background_spans="on"))
    await router.get_linked_pod(namespace, "u", SERVICE)
    await router.set_linked_pod(namespace, "u", SERVICE, 1)
    await asyncio.to_thread(tap.wait_for, "sfroute invalidation")
    await router.aclose()
    write = tap.one("sfroute set_linked_pod").context.span_id
    assert tap.exemplars("sfroute.cache.invalidation.lag") == {write}
    assert tap.metrics()["sfroute.cache.invalidation.lag"] == {(): 1}


async def test_labels_stay_few_however_many_users_there_are(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        for n in range(50):
            await router.get_linked_pod(f"{namespace}{n}", f"u{n}", f"s{n}")
        series = {name: len(points) for name, points in tap.metrics().items()}
    assert series.pop("sfroute.retries") <= 20
    assert max(series.values()) <= 3


async def test_the_names_of_redis_py_and_of_the_database_are_not_ours(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await drive(router, namespace)
    assert all(name.startswith("sfroute.") for name in tap.metrics())


def test_the_reference_tells_of_every_name() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    values = {
        value
        for name, value in vars(names).items()
        if name.isupper() and isinstance(value, str) and name != "SCOPE"
    }
    assert sorted(value for value in values if f"`{value}`" not in text) == []
    metrics = text.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    for name, (_, unit, labels) in METRICS.items():
        (row,) = re.findall(rf"^\| `{re.escape(name)}` .*$", metrics, flags=re.MULTILINE)
        assert f"`{unit}`" in row
        assert all(f"`{label}`" in row for label in labels)
