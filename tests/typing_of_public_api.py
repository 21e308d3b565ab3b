"""What type checkers tell users: checked by mypy and pyright (``make types``), never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

import redis
import redis.asyncio
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster

from sfroute import (
    PERSIST_FOREVER,
    AsyncRouter,
    CacheConfig,
    CorruptReply,
    InvalidArgument,
    Link,
    NoRoutablePod,
    Pod,
    Router,
    RouterConfig,
    RouterStats,
    SfrouteError,
    StoreError,
    TrySetResult,
)
from sfroute.asgi import (
    ASGIApp,
    CookieUid,
    HeaderUid,
    PathUid,
    Routed,
    SfrouteMiddleware,
    UidExtractor,
)


def making(client: RedisCluster, node: redis.Redis, url: str) -> None:
    config = RouterConfig(cache=CacheConfig(max_age=1.0))
    assert_type(Router(client), Router)
    assert_type(Router(node, config=config), Router)
    assert_type(Router.from_url(url, config=config), Router)
    with Router.from_url(url) as router:
        assert_type(router, Router)


async def making_async(client: AsyncRedisCluster, node: redis.asyncio.Redis, url: str) -> None:
    assert_type(AsyncRouter(client), AsyncRouter)
    assert_type(AsyncRouter(node), AsyncRouter)
    async with AsyncRouter.from_url(url) as router:
        assert_type(router, AsyncRouter)


def threads(router: Router) -> None:
    assert_type(router.set_service_state("n", "s", 0, "Running"), None)
    assert_type(router.get_service_state("n", "s"), dict[int, str])
    assert_type(router.get_pods("n", "s"), dict[int, Pod])
    assert_type(router.set_workload_state("n", "s", "x"), None)
    assert_type(router.get_workload_state("n", "s"), str | None)
    assert_type(router.get_workload_state_batch("n", ["s"]), dict[str, str])
    assert_type(router.set_linked_pod("n", "u", "s", 0), int | None)
    assert_type(router.set_linked_pod("n", "u", "s", 0, 30), int | None)
    assert_type(router.try_set_linked_pod("n", "u", "s", 0), TrySetResult)
    assert_type(router.set_linked_pod_if_absent("n", "u", "s", 0, refresh=True), int)
    assert_type(router.get_linked_pod("n", "u", "s"), int | None)
    assert_type(router.get_linked_pod("n", "u", "s", fresh=True), int | None)
    assert_type(router.get_linked_pod_if_persist("n", "u", "s"), int | None)
    assert_type(router.batch_get_linked_pod("n", ("u",), "s"), dict[int, list[str]])
    assert_type(router.remove_linked_pod("n", "u", "s", PERSIST_FOREVER), bool)
    assert_type(router.remove_linked_pod_with_id("n", "u", "s", 0, 30), bool)
    assert_type(router.get_link_service("n", "u"), dict[str, int])
    assert_type(router.execute_script("statefulGetService", ["k"], []), object)
    assert_type(router.route("n", "u", "s"), Link)
    assert_type(router.stats(), RouterStats)
    router.invalidate("n", "u")
    router.close()


async def tasks(router: AsyncRouter) -> None:
    assert_type(await router.set_service_state("n", "s", 0, "Running"), None)
    assert_type(await router.get_service_state("n", "s"), dict[int, str])
    assert_type(await router.get_pods("n", "s"), dict[int, Pod])
    assert_type(await router.set_workload_state("n", "s", "x"), None)
    assert_type(await router.get_workload_state("n", "s"), str | None)
    assert_type(await router.get_workload_state_batch("n", ["s"]), dict[str, str])
    assert_type(await router.set_linked_pod("n", "u", "s", 0), int | None)
    assert_type(await router.set_linked_pod("n", "u", "s", 0, 30), int | None)
    assert_type(await router.try_set_linked_pod("n", "u", "s", 0), TrySetResult)
    assert_type(await router.set_linked_pod_if_absent("n", "u", "s", 0, refresh=True), int)
    assert_type(await router.get_linked_pod("n", "u", "s"), int | None)
    assert_type(await router.get_linked_pod("n", "u", "s", fresh=True), int | None)
    assert_type(await router.get_linked_pod_if_persist("n", "u", "s"), int | None)
    assert_type(await router.batch_get_linked_pod("n", ("u",), "s"), dict[int, list[str]])
    assert_type(await router.remove_linked_pod("n", "u", "s", PERSIST_FOREVER), bool)
    assert_type(await router.remove_linked_pod_with_id("n", "u", "s", 0, 30), bool)
    assert_type(await router.get_link_service("n", "u"), dict[str, int])
    assert_type(await router.execute_script("statefulGetService", ["k"], []), object)
    assert_type(await router.route("n", "u", "s"), Link)
    assert_type(router.stats(), RouterStats)
    router.invalidate("n", "u", "s")
    await router.aclose()


def results(link: Link, tried: TrySetResult, pod: Pod) -> None:
    assert_type(link.pod, int)
    assert_type(link.stale, bool)
    success, owner = tried
    assert_type(success, bool)
    assert_type(owner, int)
    assert_type(pod.load, float | None)


def errors(error: SfrouteError) -> None:
    if isinstance(error, InvalidArgument):
        value_error: ValueError = error
        del value_error
    if isinstance(error, StoreError):
        assert_type(error.operation, str)
        assert_type(error.retryable, bool)
    if isinstance(error, CorruptReply):
        assert_type(error.key, str)
    if isinstance(error, NoRoutablePod):
        assert_type(error.rejected, Mapping[int, str])


def mistakes(router: Router) -> None:
    """Each is one that a checker must find: an unneeded ignore is an error."""
    router.set_linked_pod("n", "u", "s", "0")  # type: ignore[arg-type]
    router.set_linked_pod("n", "u", "s", 0, 1.5)  # type: ignore[arg-type]
    router.set_linked_pod_if_absent("n", "u", "s", 0, -1, True)  # type: ignore[call-arg]


def gateways(app: ASGIApp, router: AsyncRouter, url: str) -> None:
    uid: UidExtractor = HeaderUid("x-user-id")
    assert_type(uid({}), str | None)
    SfrouteMiddleware(app, router=router, namespace="n", service="s", uid=CookieUid("uid"))
    SfrouteMiddleware(
        app,
        router=lambda: AsyncRouter.from_url(url),
        namespace="n",
        service="s",
        uid=PathUid("/u/{uid}"),
    )


async def gateways_async(routed: Routed) -> None:
    assert_type(routed.pod, int)
    assert_type(routed.link, Link)
    assert_type(await routed.reroute(exclude=[routed.pod]), Routed)
