"""Log records: one for each call at DEBUG, one for each event, with fields, trace ids and never a uid."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from opentelemetry import trace

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CacheConfig,
    ConfigError,
    InvalidArgument,
    RetryConfig,
    Router,
    RouterConfig,
)
from sfroute._net.connection import Address
from sfroute._net.outage import Outage
from sfroute.embedded import LocalCluster

from .tap import Tap

SERVICE = "chat"
UID = "marie.curie@example.org"


class Kept(logging.Handler):
    """Keeps records, and which span was current when each was made: what the SDK's handler adds to them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.spans: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.spans.append(trace.get_current_span().get_span_context().span_id)

    def of(self, name: str, level: int | None = None) -> list[logging.LogRecord]:
        return [
            record
            for record in self.records
            if record.name == name and (level is None or record.levelno == level)
        ]


@contextmanager
def listening(name: str, level: int) -> Iterator[Kept]:
    logger, kept = logging.getLogger(name), Kept()
    before = logger.level
    logger.addHandler(kept)
    logger.setLevel(level)
    try:
        yield kept
    finally:
        logger.setLevel(before)
        logger.removeHandler(kept)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What is in ``extra``, but for the duration, which is checked here."""
    found = {
        key: value
        for key, value in vars(record).items()
        if key.startswith("sfroute.") or key == "error.type"
    }
    assert found.pop("sfroute.duration") >= 0
    return found


LINK = ("NS", UID, SERVICE)
NAMED = dict(zip(("namespace", "uid", "service"), LINK, strict=True))
LINKED, POD = {"sfroute.service": SERVICE}, {"sfroute.pod": 1}
MISS, HIT = {"sfroute.outcome": "miss"}, {"sfroute.outcome": "hit"}
CALLS: list[tuple[str, tuple[Any, ...] | dict[str, Any], dict[str, Any]]] = [
    ("set_service_state", ("NS", SERVICE, 1, "Running"), LINKED | POD),
    ("get_service_state", ("NS", SERVICE), LINKED),
    ("set_workload_state", ("NS", SERVICE, "busy"), LINKED),
    ("get_workload_state", ("NS", SERVICE), LINKED),
    ("get_workload_state_batch", ("NS", [SERVICE]), {}),
    ("get_pods", ("NS", SERVICE), LINKED),
    ("route", LINK, LINKED | POD | MISS | {"sfroute.link.source": "placed"}),
    ("route", LINK, LINKED | POD | MISS | {"sfroute.link.source": "store"}),
    ("route", LINK, LINKED | POD | HIT),
    ("get_linked_pod", LINK, LINKED | POD | HIT),
    ("get_linked_pod_if_persist", LINK, LINKED | POD | HIT),
    ("get_link_service", LINK[:2], MISS),
    ("get_link_service", LINK[:2], HIT),
    ("batch_get_linked_pod", ("NS", [UID], SERVICE), LINKED | HIT),
    ("set_linked_pod", (*LINK, 1), LINKED | POD),
    ("try_set_linked_pod", (*LINK, 2), LINKED | POD),
    ("set_linked_pod_if_absent", (*LINK, 1), LINKED | POD),
    ("move_linked_pod", (*LINK, 1, 2), LINKED | {"sfroute.pod": 2}),
    ("remove_linked_pod_with_id", {**NAMED, "pod": 1}, LINKED | POD),
    ("remove_linked_pod", LINK, LINKED),
    ("execute_script", ("statefulGetLinkService", ["sf:{NS:lk:u}"], []), {}),
    ("get_linked_pod", ("NS", "", SERVICE), LINKED | {"error.type": "InvalidArgument"}),
]


def put_in(value: Any, namespace: str) -> Any:
    if isinstance(value, str):
        return value.replace("NS", namespace)
    if isinstance(value, dict):
        return {name: put_in(one, namespace) for name, one in value.items()}
    return (
        type(value)(put_in(one, namespace) for one in value)
        if isinstance(value, (list, tuple))
        else value
    )


@pytest.mark.parametrize("telemetry", ["with an SDK", "without one"])
async def test_every_call_is_one_record_at_debug_with_its_fields_and_no_uid(
    telemetry: str, make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    config = tap.config() if telemetry == "with an SDK" else RouterConfig()
    with listening("sfroute", logging.DEBUG) as kept:
        router = make_router(node.url, config=config)
        await router.open()
        for operation, given, expected in CALLS:
            before = len(kept.of("sfroute.router"))
            outer = tap.tracer.start_span("request")
            with trace.use_span(outer):
                fails = "error.type" in expected
                with pytest.raises(InvalidArgument) if fails else nullcontext():
                    call = getattr(router, operation)
                    if isinstance(given, dict):
                        await call(**put_in(given, namespace))
                    else:
                        await call(*put_in(given, namespace))
            (record,) = kept.of("sfroute.router")[before:]
            assert record.levelno == logging.DEBUG
            names = {"sfroute.operation": operation}
            if operation != "execute_script":
                names["sfroute.namespace"] = namespace
            assert fields(record) == names | expected, operation
            # Within the request: there the SDK's handler finds the ids of the trace.
            assert kept.spans[kept.records.index(record)] == outer.get_span_context().span_id
        await router.aclose()
    told = "\n".join(f"{record.getMessage()} {vars(record)}" for record in kept.records)
    assert "curie" not in told


async def test_nothing_is_made_for_a_hit_while_nobody_listens(
    make_router: Callable[..., Any], node: LocalCluster, namespace: str
) -> None:
    with listening("sfroute", logging.INFO) as kept:
        router = make_router(node.url)
        await router.get_linked_pod(namespace, UID, SERVICE)
        await router.get_linked_pod(namespace, UID, SERVICE)
        assert getattr(router, "router", router)._telemetry.hits is None
        await router.aclose()
    assert kept.of("sfroute.router") == []


async def test_what_happens_is_told_at_info(node: LocalCluster, namespace: str) -> None:
    with listening("sfroute", logging.INFO) as kept:
        async with AsyncRouter.from_url(node.url) as router:
            await router.get_linked_pod(namespace, UID, SERVICE)
    up, down = kept.of("sfroute.lookups", logging.INFO)
    ((host, port),) = node.startup_nodes
    for record in (up, down):
        assert (vars(record)["server.address"], vars(record)["server.port"]) == (host, port)
    assert vars(up)["sfroute.lane.tracked"] is True


async def test_a_logger_that_was_given_has_all_records(
    make_router: Callable[..., Any], node: LocalCluster, namespace: str
) -> None:
    given = logging.getLogger("gateway.links")
    with listening("sfroute", logging.DEBUG) as ours, listening(given.name, logging.DEBUG) as kept:
        router = make_router(node.url, config=RouterConfig(logger=given))
        await router.get_linked_pod(namespace, UID, SERVICE)
        await router.get_linked_pod(namespace, UID, SERVICE)
        await router.aclose()
        async with AsyncRouter.from_url(node.url, config=RouterConfig(logger=given)) as other:
            node.execute(node.nodes[0], "SCRIPT", "FLUSH")
            agent = AsyncPodAgent(other, namespace, SERVICE, 1, load=lambda: 1 / 0, sigterm=False)
            async with agent:
                pass
    assert ours.records == []
    parts = {record.name.removeprefix("gateway.links.") for record in kept.records}
    assert parts >= {"router", "lookups", "store", "agent"}


def test_a_logger_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"logging\.Logger"):
        RouterConfig(logger="gateway")  # type: ignore[arg-type]


@pytest.mark.slow
async def test_the_store_going_and_coming_back_is_one_warning_each(
    make_router: Callable[..., Any],
) -> None:
    config = RouterConfig(
        cache=CacheConfig(max_age=0.05), retry=RetryConfig(deadline=5.0, connect_timeout=0.5)
    )
    with LocalCluster(1, 0) as cluster, listening("sfroute", logging.WARNING) as kept:
        (node,) = cluster.nodes
        router = make_router(cluster.url, config=config)
        for uid in ("u", "v"):
            await router.set_linked_pod("n", uid, SERVICE, 1)
            await router.get_linked_pod("n", uid, SERVICE)
        stats = getattr(router, "router", router).stats
        cluster.pause(node)
        async with asyncio.timeout(20):
            while stats().cache.stale < 10:
                await router.get_linked_pod("n", "u", SERVICE)
                await router.get_linked_pod("n", "v", SERVICE)
            (gone,) = kept.records
            cluster.resume(node)
            while len(kept.records) < 2:
                await router.get_linked_pod("n", "u", SERVICE, fresh=True)
        stale = stats().cache.stale
        await router.set_linked_pod("n", "u", SERVICE, 2)
        await router.aclose()
    (_, back) = kept.records
    assert gone.name == back.name == "sfroute.store"
    assert gone.levelno == back.levelno == logging.WARNING
    assert "cannot be reached" in gone.getMessage()
    assert vars(gone)["server.port"] == node.port
    assert vars(gone)["sfroute.reason"]
    assert "is back after" in back.getMessage()
    assert vars(back)["sfroute.duration"] > 0
    assert 1 <= vars(back)["sfroute.count"] <= stale


@pytest.mark.slow
def test_a_failover_is_one_warning_each() -> None:
    """The node that is gone does not come back: its slots do."""
    config = RouterConfig(cache=CacheConfig(max_age=0.05))
    with (
        LocalCluster(3, 1) as cluster,
        listening("sfroute", logging.WARNING) as kept,
        Router.from_url(cluster.url, config=config) as router,
    ):
        uids = [f"u{n}" for n in range(12)]
        for uid in uids:
            router.set_linked_pod("n", uid, SERVICE, 1)
        router.batch_get_linked_pod("n", uids, SERVICE)
        cluster.kill(cluster.primary_of(f"sf:{{n:lk:{uids[0]}}}"))
        for _ in range(2):
            router.batch_get_linked_pod("n", uids, SERVICE, fresh=True)
    gone, back = kept.of("sfroute.store")
    assert "cannot be reached" in gone.getMessage()
    assert "is back after" in back.getMessage()


@pytest.mark.parametrize("last", ["node", "slot"])
def test_an_outage_ends_with_the_last_place_that_was_missed(last: str) -> None:
    now, stale = 100.0, 5
    node, other = Address("10.0.0.1", 7000), Address("10.0.0.2", 7000)
    with listening("outage", logging.WARNING) as kept:
        outage = Outage(logging.getLogger("outage"), lambda: now, lambda: stale, 60.0)
        outage.over((node, "lookups"))
        outage.began((node, "lookups"), "connection")
        outage.began((node, "lookups"), "connection")
        outage.began((node, "commands"), "connection")
        outage.began((7, "lookups"), "no owner")
        outage.keep_only({node, other})
        outage.over((node, "commands"))
        assert len(kept.records) == 1
        now, stale = 102.5, 9
        if last == "node":
            outage.over((7, "lookups"))
            outage.keep_only({other})
        else:
            outage.keep_only({other})
            outage.over((7, "lookups"))
    gone, back = kept.records
    assert "10.0.0.1:7000: connection" in gone.getMessage()
    assert "up to 60 s" in gone.getMessage()
    assert back.getMessage() == "the store is back after 2.5 s; 4 stale answers were given"
