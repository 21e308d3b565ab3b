"""What type checkers tell users of every public name: checked by mypy and pyright (``make types``), never run.

The operations of the fronts are in ``typing_of_operations.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Literal, assert_type

import redis
import redis.asyncio
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster
from starlette.requests import HTTPConnection

from sfroute import (
    AUTO,
    DRAINING,
    FAILED,
    PENDING,
    PERSIST_FOREVER,
    RUNNING,
    STOPPED,
    UNKNOWN,
    AsyncPodAgent,
    AsyncRouter,
    AsyncSession,
    CacheConfig,
    CacheStats,
    Candidate,
    Claim,
    ConfigError,
    CorruptReply,
    EvacuationProgress,
    Handover,
    InvalidArgument,
    Isolated,
    LaneStats,
    LeastLoaded,
    Link,
    ListedLink,
    Lost,
    NewestVersion,
    NoRoom,
    NoRoutablePod,
    OutcomeUnknown,
    PlacementConfig,
    PlannedMoves,
    Pod,
    PodAgent,
    PodChange,
    PodEvent,
    Policy,
    PowerOfTwoChoices,
    Prefer,
    PruneProgress,
    RebalanceProgress,
    Rejoined,
    Rendezvous,
    Require,
    RetryConfig,
    RoundRobin,
    Router,
    RouterClosed,
    RouterConfig,
    RouterStats,
    ScriptFailed,
    Session,
    SfrouteError,
    SoftAffinity,
    StoreError,
    StoreUnavailable,
    Superseded,
    TelemetryConfig,
    TrySetResult,
    WeightedByCapacity,
)
from sfroute.asgi import (
    ASGIApp,
    Claimed,
    CookieUid,
    Exempt,
    ForwardedUid,
    HeaderUid,
    Message,
    PathUid,
    PodMiddleware,
    QueryUid,
    Receive,
    Routed,
    Scope,
    Send,
    SfrouteMiddleware,
    UidExtractor,
)
from sfroute.embedded import LocalCluster, LocalClusterError, LocalServer, Node, Reply, Role
from sfroute.fastapi import CurrentClaimed, CurrentRouted, claimed, routed
from sfroute.pytest_plugin import sfroute_cluster, sfroute_namespace
from sfroute.telemetry import setup
from sfroute.wsgi import Claimed as WSGIClaimed
from sfroute.wsgi import PodMiddleware as WSGIPodMiddleware
from sfroute.wsgi import Routed as WSGIRouted
from sfroute.wsgi import SfrouteMiddleware as WSGISfrouteMiddleware
from sfroute.wsgi import WSGIApp


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


def numbered(router: Router) -> None:
    assert_type(PodAgent(router, "n", "s", AUTO, name="a").pod, int)


def configuring() -> RouterConfig:
    return RouterConfig(
        placement=PlacementConfig(pod_timeout=9.0, all_silent="move"),
        retry=RetryConfig(deadline=1.0),
        telemetry=TelemetryConfig(hit_spans="all"),
    )


def keywords(router: Router) -> None:
    assert_type(router.set_linked_pod("n", "u", "s", 0, 30), int | None)
    assert_type(router.set_linked_pod_if_absent("n", "u", "s", 0, refresh=True), int)
    assert_type(router.get_linked_pod("n", "u", "s", fresh=True), int | None)
    assert_type(router.get_linked_pod("n", "u", "s", stale_ok=False), int | None)
    assert_type(router.batch_get_linked_pod("n", ("u",), "s"), dict[int, list[str]])
    assert_type(router.remove_linked_pod("n", "u", "s", PERSIST_FOREVER), bool)
    router.invalidate("n", "u")


def policies(router: Router) -> None:
    chosen: list[Policy] = [LeastLoaded(), Rendezvous(), RoundRobin()]
    near = Prefer("zone", "a", then=Require("tier", "gpu", then=LeastLoaded()))
    chosen += [near, NewestVersion(then=near), SoftAffinity(spill_at=0.5)]
    chosen += [PowerOfTwoChoices(Random()), WeightedByCapacity(Random())]
    for policy in chosen:
        assert_type(policy.rank("u", [Candidate(id=1, load=0.5)]), list[int])
        assert_type(router.route("n", "u", "s", policy=policy), Link)


def results(link: Link, tried: TrySetResult, pod: Pod, change: PodChange) -> None:
    assert_type(link.pod, int)
    assert_type(link.stale, bool)
    success, owner = tried
    assert_type(success, bool)
    assert_type(owner, int)
    assert_type(pod.load, float | None)
    statuses: list[str] = [PENDING, RUNNING, DRAINING, STOPPED, FAILED, UNKNOWN]
    assert_type(pod.status in statuses, bool)
    assert_type(change.kind, Literal["joined", "draining", "left", "dead", "restarted"])


def figures(stats: RouterStats, progress: EvacuationProgress) -> None:
    assert_type(stats.cache, CacheStats)
    assert_type(stats.lanes, tuple[LaneStats, ...])
    assert_type(progress.done, bool)


def listed(link: ListedLink, pruned: PruneProgress) -> None:
    assert_type(link.expires_in, float | None)
    assert_type(link.persistent, bool)
    assert_type(pruned.removed, int)


def rebalanced(progress: RebalanceProgress, agent: PodAgent, asked: Handover) -> None:
    assert_type(progress.plan, tuple[PlannedMoves, ...])
    assert_type(progress.skew, float | None)
    assert_type(progress.left, int)
    assert_type(agent.release(asked, grace=30), bool)


def pods(router: Router) -> None:
    with PodAgent(router, "n", "s", 0, load=lambda: 0.5, lease=None) as agent:
        assert_type(agent, PodAgent)
        session = agent.session("u", grace=30)
        assert_type(session, Session)
        with session as claim:
            assert_type(claim, Claim)
            assert_type(claim.how, Literal["placed", "kept", "inherited", "refused"])
            assert_type(agent.release(claim), bool)
        for event in agent.events():
            assert_type(event, PodEvent)


async def pods_async(router: AsyncRouter) -> None:
    async with AsyncPodAgent(router, "n", "s", 0, extra={"zone": "a"}) as agent:
        assert_type(agent, AsyncPodAgent)
        session = agent.session("u")
        assert_type(session, AsyncSession)
        async with session as claim:
            assert_type(claim, Claim)
            assert_type(claim.fence, int)
        async for event in agent.events():
            assert_type(event, PodEvent)


def told(event: PodEvent) -> str | None:
    match event:
        case Lost(uid=uid, claim=claim, reason=reason, owner=owner):
            assert_type(claim, Claim)
            assert_type(reason, Literal["moved", "removed", "superseded"])
            assert_type(owner, int | None)
            return uid
        case Isolated():
            return None
        case Rejoined(seconds=seconds):
            return str(seconds)
        case Superseded(by=by):
            return by
        case Handover(uid=uid, claim=claim, to=to):
            assert_type(claim, Claim)
            assert_type(to, int)
            return uid
    # A checker knows that these are all of them: without that, a return is missing here.


def errors(error: SfrouteError) -> None:
    if isinstance(error, (InvalidArgument, ConfigError)):
        value_error: ValueError = error
        del value_error
    assert_type(isinstance(error, LocalClusterError), bool)
    if isinstance(error, StoreError):
        assert_type(error.operation, str)
        assert_type(error.retryable, bool)
    if isinstance(error, (StoreUnavailable, OutcomeUnknown)):
        assert_type(error.operation, str)
    if isinstance(error, CorruptReply):
        assert_type(error.key, str)
    if isinstance(error, ScriptFailed):
        assert_type(error.script, str)
    if isinstance(error, NoRoom):
        assert_type(error.pod, int)
        assert_type(error.reason, Literal["full", "paused"])
    if isinstance(error, NoRoutablePod):
        assert_type(error.rejected, Mapping[int, str])
    if isinstance(error, RouterClosed):
        raise error


def mistakes(router: Router) -> None:
    """Each is one that a checker must find: an unneeded ignore is an error."""
    router.set_linked_pod("n", "u", "s", "0")  # type: ignore[arg-type]
    router.set_linked_pod("n", "u", "s", 0, 1.5)  # type: ignore[arg-type]
    router.set_linked_pod_if_absent("n", "u", "s", 0, -1, True)  # type: ignore[call-arg]
    router.remove_linked_pod_with_id("n", "u", "s", 0, 30)  # type: ignore[call-arg]


def gateways(app: ASGIApp, router: AsyncRouter, url: str) -> None:
    uid: UidExtractor = HeaderUid("x-user-id")
    assert_type(uid({}), str | None)
    exempt: Exempt = ["/healthz"]
    SfrouteMiddleware(app, router=router, namespace="n", service="s", uid=CookieUid("uid"))
    SfrouteMiddleware(
        app,
        router=lambda: AsyncRouter.from_url(url),
        namespace="n",
        service="s",
        uid=PathUid("/u/{uid}"),
        exempt=exempt,
    )


async def gateways_async(routed: Routed, also: CurrentRouted) -> None:
    assert_type(routed.pod, int)
    assert_type(routed.link, Link)
    assert_type(await routed.reroute(exclude=[routed.pod]), Routed)
    assert_type(also, Routed)


async def servers(app: ASGIApp, agent: AsyncPodAgent, scope: Scope, parts: Receive) -> None:
    async def send(message: Message) -> None:
        assert_type(message["type"], object)  # type: ignore[assert-type]  # Any

    sending: Send = send
    middleware = PodMiddleware(app, agent=agent, uid=ForwardedUid(), grace=30)
    await middleware(scope, parts, sending)


def owners(here: Claimed, also: CurrentClaimed, connection: HTTPConnection) -> None:
    assert_type(here.owned, bool)
    assert_type(here.claim, Claim)
    assert_type(also, Claimed)
    assert_type(claimed()(connection), Claimed)
    assert_type(routed("sfroute")(connection), Routed)


def with_wsgi(app: WSGIApp, router: Router, agent: PodAgent) -> None:
    gateway: WSGIApp = WSGISfrouteMiddleware(
        app, router=router, namespace="n", service="s", uid=QueryUid("u")
    )
    WSGIPodMiddleware(gateway, agent=agent)


def of_wsgi(routed: WSGIRouted, claimed: WSGIClaimed) -> None:
    assert_type(routed.reroute(fresh=True), WSGIRouted)
    assert_type(claimed.agent, PodAgent)


def local(cluster: LocalCluster, server: LocalServer) -> None:
    node = cluster.primary_of("key")
    assert_type(node, Node)
    role: Role = "replica"
    assert_type(cluster.add_node(role, of=node), Node)
    assert_type(cluster.execute(node, "PING"), Reply)
    assert_type(server.url, str)


def fixtures() -> None:
    # Tests name them as parameters.
    found: list[object] = [sfroute_cluster, sfroute_namespace]
    del found


def telemetry() -> None:
    stop = setup("gateway", metrics=False)
    assert_type(stop(), None)
