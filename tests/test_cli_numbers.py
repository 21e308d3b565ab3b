"""``sfroute top`` and ``sfroute doctor`` say the same numbers of the pods as the metrics of a gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support.command import Operator

from sfroute import Pod, Router, RouterConfig, TelemetryConfig
from sfroute.cli.doctor.data import View, judge_pods
from sfroute.embedded import LocalCluster

LOADS = (3.0, 1.0, 2.0)


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    yield reader
    reader.shutdown()


@pytest.fixture
def operator(
    sfroute_cluster: LocalCluster, sfroute_namespace: str, reader: InMemoryMetricReader
) -> Iterator[Operator]:
    """Its router is a gateway, whose metrics are read."""
    meters = MeterProvider([reader], shutdown_on_exit=False)
    config = RouterConfig(telemetry=TelemetryConfig(meter_provider=meters))
    with Router.from_url(sfroute_cluster.url, config=config) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


def gauges(reader: InMemoryMetricReader) -> dict[str, Any]:
    """The gauges ``sfroute.pods.*`` of the one service; those by status as a mapping of the statuses that occur."""
    found: dict[str, Any] = {"sfroute.pods": {}}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points: Any = metric.data.data_points
                for point in (
                    points
                    if metric.name.startswith("sfroute.pods.") or metric.name == "sfroute.pods"
                    else ()
                ):
                    status = dict(point.attributes or {}).get("sfroute.pod.status")
                    if status is None:
                        found[metric.name] = point.value
                    elif point.value:
                        found[metric.name][status] = point.value
    return found


def report_pods(operator: Operator) -> None:
    """Three that run, of unequal loads; one that drains, one that is silent, one whose state nobody understands."""
    now = int(time.time() * 1000)
    for pod, load in enumerate(LOADS):
        state = {"status": "Running", "load": load, "at": now - 1000 * pod}
        if pod:
            state |= {"max_claims": 50, "room": 10 * pod}
        operator.report(pod, json.dumps(state))
    operator.report(3, json.dumps({"status": "Draining", "at": now}))
    operator.report(4, json.dumps({"status": "Running", "at": now - 100_000}))
    operator.report(5, "what is this")


def same(told: dict[str, Any], metrics: dict[str, Any]) -> None:
    assert told["statuses"] == metrics["sfroute.pods"]
    assert told["routable"] == metrics["sfroute.pods.routable"]
    assert told["emptying"] == metrics["sfroute.pods.emptying"]
    assert told["room"] == metrics["sfroute.pods.room"] == 30
    assert told["load"] == metrics["sfroute.pods.load"] == sum(LOADS)
    assert told["load_skew"] == metrics["sfroute.pods.load.skew"]
    # One was asked a little later than the other.
    assert told["oldest_heartbeat"] == pytest.approx(metrics["sfroute.pods.heartbeat.age"], abs=5)


def test_top_and_doctor_say_what_the_metrics_say(
    operator: Operator, reader: InMemoryMetricReader
) -> None:
    report_pods(operator)
    operator.router.get_pods(operator.namespace, operator.service, fresh=True)
    metrics = gauges(reader)
    assert metrics["sfroute.pods"] == {"Running": 3, "Draining": 1, "dead": 1, "Unknown": 1}
    assert metrics["sfroute.pods.routable"] == 3
    assert metrics["sfroute.pods.load.skew"] == 1.5

    (frame,) = operator("top", "--count", "1", "--json").json_lines
    same(frame["pods_in_numbers"], metrics)
    screen = operator("top", "--count", "1").out
    assert "pods 3 Running, 1 Draining, 1 Unknown, 1 dead   3 take users" in screen
    assert "room for 30   skew 1.50" in screen

    checks = {check["check"]: check for check in operator("doctor", "--json").json_lines}
    same(checks["pods"]["numbers"][operator.service], metrics)
    assert checks["pods"]["summary"].endswith(
        "(3 Running, 1 Draining, 1 Unknown, 1 dead); 3 take new users"
    )


# --- doctor warns of imbalance


@pytest.mark.parametrize(
    ("counts", "worst"),
    [
        ((30, 29, 6), "pod 2 has 6 instead of about 22"),
        ((5067, 0, 0), "pod 0 has 5,067 instead of about 1,689"),
        ((30, 29, 24), None),
        ((3, 0, 1), None),  # so few may be anywhere
        ((0, 0, 0), None),
    ],
)
def test_links_that_are_spread_unevenly_are_a_warning(
    counts: tuple[int, ...], worst: str | None
) -> None:
    pods = {number: Pod(number, "Running", None, 1.0) for number in range(len(counts))}
    view = View("n", {"chat": pods})
    *_, links = judge_pods(view, {("chat", pod): n for pod, n in enumerate(counts)}, 30.0)
    told = [finding.text for finding in links.findings]
    assert (worst is None) == (told == [])
    if worst is not None:
        assert f"unevenly: {worst}" in told[0]
        assert "sfroute rebalance" in links.findings[0].remedy


def test_a_pod_of_twice_the_capacity_may_have_twice_the_links() -> None:
    pods = {
        0: Pod(0, "Running", None, 1.0, {"capacity": 2}),
        1: Pod(1, "Running", None, 1.0),
        2: Pod(2, "Draining", None, 1.0),
    }
    view = View("n", {"chat": pods})
    *_, links = judge_pods(view, {("chat", 0): 400, ("chat", 1): 200, ("chat", 2): 900}, 30.0)
    assert links.findings == ()
    *_, links = judge_pods(view, {("chat", 0): 200, ("chat", 1): 400}, 30.0)
    assert len(links.findings) == 1
