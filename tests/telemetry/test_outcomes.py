"""What a span says of how an answer came about: joined, coalesced, stale, retried, cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from sfroute import (
    AsyncRouter,
    CacheConfig,
    CorruptReply,
    RetryConfig,
    Router,
    RouterConfig,
    StoreUnavailable,
)
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalCluster

from .tap import Tap, call, client

SERVICE = "chat"


async def test_a_call_that_joins_is_linked_from_the_one_call_to_the_store(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await asyncio.gather(*(router.get_linked_pod(namespace, "u", SERVICE) for _ in range(3)))
    get = tap.one("GET")
    calls = tap.spans("sfroute get_linked_pod")
    outcomes = [(span.attributes or {})["sfroute.outcome"] for span in calls]
    assert sorted(map(str, outcomes)) == ["joined", "joined", "miss"]
    missed = calls[outcomes.index("miss")]
    assert get.parent is not None
    assert get.parent.span_id == missed.context.span_id
    linked = {link.context.span_id for link in get.links}
    assert linked == {span.context.span_id for span in calls} - {missed.context.span_id}


async def test_a_batch_of_several_calls_is_the_child_of_one_and_linked_with_the_others(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await router.get_linked_pod(namespace, "first", SERVICE)
        await asyncio.gather(
            *(router.get_linked_pod(namespace, uid, SERVICE) for uid in ("a", "b", "b", "c")),
            router.get_link_service(namespace, "a"),
        )
    batch = tap.one("PIPELINE")
    assert tap.tree(batch) == client("PIPELINE", size=4)
    calls = tap.spans("sfroute get_linked_pod")[1:] + tap.spans("sfroute get_link_service")
    assert len(calls) == 5
    (parent,) = (call for call in calls if tap.children(call))
    assert tap.children(parent) == [batch]
    others = [call for call in calls if call is not parent]
    linked = [link.context.span_id for link in batch.links]
    assert sorted(linked) == sorted(call.context.span_id for call in others)
    for other in others:
        assert [link.context.span_id for link in other.links] == [batch.context.span_id]


async def test_links_of_a_batch_are_bounded(node: LocalCluster, tap: Tap, namespace: str) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await router.get_linked_pod(namespace, "first", SERVICE)
        await asyncio.gather(
            *(router.get_linked_pod(namespace, f"u{n % 2}", SERVICE) for n in range(200))
        )
    batch = tap.one("PIPELINE GET")
    assert (batch.attributes or {})["db.operation.batch.size"] == 2
    assert len(batch.links) == 128


@pytest.mark.slow
async def test_a_stale_answer_says_so(make_router: Callable[..., Any], tap: Tap) -> None:
    config = RouterConfig(
        cache=CacheConfig(max_age=0.05), retry=RetryConfig(deadline=1.0, connect_timeout=0.5)
    )
    with LocalCluster(1, 0) as cluster:
        router = make_router(cluster.url, config=tap.config(base=config))
        await router.set_linked_pod("n", "u", SERVICE, 1)
        await router.get_linked_pod("n", "u", SERVICE)
        cluster.kill(cluster.nodes[0])
        async with asyncio.timeout(5):
            while not (await router.route("n", "u", SERVICE)).stale:
                pass
        await router.get_linked_pod("n", "u", SERVICE)
        with pytest.raises(StoreUnavailable):
            await router.set_linked_pod("n", "u", SERVICE, 2)
        await router.aclose()
    for operation in ("route", "get_linked_pod"):
        span = tap.spans(f"sfroute {operation}")[-1]
        assert (span.attributes or {})["sfroute.stale"] is True
        assert span.status.status_code is StatusCode.UNSET
    ((_, stale),) = tap.metrics()["sfroute.answers.stale"].items()
    assert stale >= 2
    # The write that was never answered: what it was tried on, and why again and again.
    _, _, attributes, status, below = tap.tree(tap.spans("sfroute set_linked_pod")[-1])
    assert (attributes["error.type"], status) == ("StoreUnavailable", "ERROR")
    assert set(attributes["sfroute.retry.reasons"]) == {"connection"}
    ((_, _, inner, status, _),) = below
    assert (inner["error.type"], status) == ("StoreUnavailable", "ERROR")
    assert "sfroute.retries" in tap.metrics()


async def test_a_forgotten_script_is_a_retry_and_no_error(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    await router.open()
    node.execute(node.nodes[0], "SCRIPT", "FLUSH")
    await router.set_linked_pod(namespace, "u", SERVICE, 1)
    await router.aclose()
    again: dict[str, Any] = {"retry_reasons": ("NOSCRIPT",)}
    assert tap.tree(tap.one("sfroute set_linked_pod")) == call(
        "set_linked_pod",
        client("EVALSHA", "statefulSetLink", **again),
        namespace=namespace,
        service=SERVICE,
        **again,
    )
    assert tap.metrics()["sfroute.retries"][(("sfroute.retry.reason", "NOSCRIPT"),)] == 1


async def test_a_moved_slot_is_a_retry_and_no_error_and_a_change_of_topology(
    make_router: Callable[..., Any], tap: Tap
) -> None:
    with LocalCluster(2, 0) as cluster:
        router = make_router(cluster.url, config=tap.config(background_spans="on"))
        await router.get_linked_pod("n", "u", SERVICE)
        key = link_key("n", "u", SERVICE)
        source = cluster.primary_of(key)
        (target,) = (node for node in cluster.nodes if node is not source)
        slot = int(cluster.execute(source, "CLUSTER", "KEYSLOT", key))  # type: ignore[arg-type]
        cluster.move_slot(slot, target)
        await router.get_linked_pod("n", "u", SERVICE, fresh=True)
        await router.aclose()
        _, second = tap.spans("sfroute get_linked_pod")
        again: dict[str, Any] = {"retry_reasons": ("MOVED",)}
        assert tap.tree(second) == call(
            "get_linked_pod",
            client("GET", **again),
            client("GET"),
            namespace="n",
            service=SERVICE,
            outcome="miss",
            **again,
        )
        servers = [(span.attributes or {})["server.port"] for span in tap.children(second)]
        assert servers == [source.port, target.port]
    change = tap.spans("sfroute topology change")[0]
    assert change.parent is None
    assert tap.tree(change)[2] == {"sfroute.count": 1, "sfroute.primaries": 2}


async def test_an_error_of_the_server_is_the_type_of_the_store_calls_error(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    node.execute(node.nodes[0], "LPUSH", link_key(namespace, "u", SERVICE), "x")
    router = make_router(node.url, config=tap.config())
    with pytest.raises(CorruptReply):
        await router.get_linked_pod(namespace, "u", SERVICE)
    with pytest.raises(CorruptReply):
        await router.set_linked_pod(namespace, "u", SERVICE, 1)
    await router.aclose()
    names = {"namespace": namespace, "service": SERVICE}
    assert tap.tree(tap.one("sfroute get_linked_pod")) == call(
        "get_linked_pod",
        client("GET", status="ERROR", code="WRONGTYPE", error_type="WRONGTYPE"),
        error="CorruptReply",
        outcome="miss",
        **names,
    )
    _, _, attributes, _, ((_, _, below, status, _),) = tap.tree(tap.one("sfroute set_linked_pod"))
    assert attributes["error.type"] == "CorruptReply"
    assert status == "ERROR"
    assert below["error.type"] == below["db.response.status_code"]
    # Which is a code, never a text.
    assert str(below["error.type"]).isalpha()


async def test_a_cancelled_call_ends_when_it_was_cancelled(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = AsyncRouter.from_url(node.url, config=tap.config())
    await router.open()
    await router.get_linked_pod(namespace, "warm", SERVICE)
    node.pause(node.nodes[0])
    try:
        calls = [
            asyncio.create_task(router.get_linked_pod(namespace, "u", SERVICE)),
            asyncio.create_task(router.set_linked_pod(namespace, "u", SERVICE, 1)),
        ]
        await asyncio.sleep(0)
        for task in calls:
            task.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
    finally:
        node.resume(node.nodes[0])
    # Whoever asks next is not disturbed, and the read that was under way is still told of.
    assert await router.get_linked_pod(namespace, "u", SERVICE, fresh=True) is None
    await router.aclose()
    for operation in ("get_linked_pod", "set_linked_pod"):
        span = next(
            span
            for span in tap.spans(f"sfroute {operation}")
            if (span.attributes or {}).get("error.type") == "CancelledError"
        )
        assert span.status.status_code is StatusCode.ERROR
    orphans = [
        span
        for span in tap.spans()
        if span.parent is not None
        and span.parent.span_id not in {other.context.span_id for other in tap.spans()}
    ]
    assert orphans == []


def test_each_thread_is_traced_under_its_own_request(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    start = threading.Barrier(4)

    def gateway(number: int) -> None:
        with tap.tracer.start_as_current_span(f"request {number}"):
            start.wait()
            for _ in range(20):
                router.get_linked_pod(namespace, f"u{number}", SERVICE)
            router.set_linked_pod(namespace, f"u{number}", SERVICE, 1)

    with Router.from_url(node.url, config=tap.config()) as router:
        crew = [threading.Thread(target=gateway, args=(n,)) for n in range(4)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
    for number in range(4):
        below = tap.children(tap.one(f"request {number}"))
        assert [span.name for span in below].count("sfroute get_linked_pod") == 20
        assert [span.name for span in below].count("sfroute set_linked_pod") == 1


def test_a_thread_that_asks_by_itself_is_traced_as_if_the_loop_had_asked(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    asked = 0
    stopped, go_on = threading.Event(), threading.Event()

    def hold_the_loop_up() -> None:
        stopped.set()
        go_on.wait(5)

    with Router.from_url(node.url, config=tap.config()) as router:
        router.open()
        background = router._background
        assert background is not None
        parts = background.inside.engine.parts
        assert parts is not None
        while not any(lane.threads and lane.threads.free for lane in parts.dispatch.lanes):
            with tap.tracer.start_as_current_span(f"request {asked}"):
                router.get_linked_pod(namespace, f"u{asked}", SERVICE)
            asked += 1
            assert asked < 1000
            time.sleep(0.001)
        background.loop.call_soon_threadsafe(hold_the_loop_up)
        assert stopped.wait(5)
        with tap.tracer.start_as_current_span("request"):
            router.get_linked_pod(namespace, "u", SERVICE)
        go_on.set()
    trees = [tap.tree(*tap.children(tap.one(f"request {uid}"))) for uid in range(asked)]
    (span,) = tap.children(tap.one("request"))
    assert tap.tree(span) == trees[0] == trees[-1]
    assert (span.attributes or {})["sfroute.outcome"] == "miss"
    (get,) = tap.children(span)
    (first,) = tap.children(*tap.children(tap.one("request 0")))
    assert get.attributes == first.attributes


async def test_each_task_is_traced_under_its_own_request(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async def gateway(number: int) -> None:
        with tap.tracer.start_as_current_span(f"request {number}"):
            for _ in range(5):
                await router.get_linked_pod(namespace, "shared", SERVICE)

    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await asyncio.gather(*(gateway(number) for number in range(4)))
    for number in range(4):
        assert len(tap.children(tap.one(f"request {number}"))) == 5


async def test_what_happens_by_itself_has_root_spans_where_they_are_wanted(
    make_router: Callable[..., Any], node: LocalCluster, plain: Router, tap: Tap, namespace: str
) -> None:
    config = RouterConfig(cache=CacheConfig(heartbeat=0.05, heartbeat_timeout=2.0))
    router = make_router(node.url, config=tap.config(base=config, background_spans="on"))
    with tap.tracer.start_as_current_span("request"):
        await router.get_linked_pod(namespace, "u", SERVICE)
    plain.set_linked_pod(namespace, "u", SERVICE, 1)
    async with asyncio.timeout(5):
        await asyncio.to_thread(tap.wait_for, "sfroute invalidation")
        node.execute(node.nodes[0], "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        while len(tap.spans("sfroute lane restored")) < 2:
            await router.get_linked_pod(namespace, "u", SERVICE, fresh=True)
    await router.aclose()
    first, second = tap.spans("sfroute lane restored")
    lost, closed = tap.spans("sfroute lane lost")
    (invalidation,) = tap.spans("sfroute invalidation")
    for span in (first, second, lost, closed, invalidation):
        assert span.parent is None
        assert span.kind.name == "INTERNAL"
        assert (
            (span.attributes or {})["server.address"],
            (span.attributes or {})["server.port"],
        ) == (node.startup_nodes[0])
    assert tap.tree(first)[2] == {"sfroute.lane.tracked": True}
    assert tap.tree(lost)[2] == {}
    assert tap.tree(invalidation)[2] == {"sfroute.count": 1}
