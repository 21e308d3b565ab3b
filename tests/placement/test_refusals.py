"""A gateway is refused at an address that it has from an old view: who is moved for it, while the pods cannot be read.

Pod 7 is at its first address for the gateway, whose view is from before. The primary that holds the states hangs; those
of the links are well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

import sfroute.asgi
import sfroute.wsgi
from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    RetryConfig,
    Router,
    RouterConfig,
    RouterStats,
    StoreError,
    StoreUnavailable,
)
from sfroute._contract.keys import link_key, state_key
from sfroute.embedded import LocalCluster, Node

FIRST, SECOND = "10.0.0.7:8080", "10.0.1.7:8080"
LONG, SHORT = 60.0, 2.0


class World:
    """Pods 1 and 2, which stay, pod 7, and a gateway on either front."""

    def __init__(
        self, cluster: LocalCluster, namespace: str, pods: AsyncRouter, exits: AsyncExitStack
    ) -> None:
        self.namespace = namespace
        self._cluster = cluster
        self._states = cluster.primary_of(state_key(namespace, "chat"))
        self._pods = pods
        self._exits = exits
        self.uid = next(
            uid
            for uid in (f"u{number}" for number in range(100))
            if cluster.primary_of(link_key(namespace, uid, "chat")) != self._states
        )
        self._links = cluster.primary_of(link_key(namespace, self.uid, "chat"))
        self.stats: Callable[[], RouterStats]

    async def starts(self, pod: int, address: str) -> AsyncPodAgent:
        agent = AsyncPodAgent(self._pods, self.namespace, "chat", pod, lease=LONG, address=address)
        return await self._exits.enter_async_context(agent)

    async def links_to_7(self) -> None:
        await self._pods.set_linked_pod(self.namespace, self.uid, "chat", 7)

    async def gateway(self, front: str, deadline: float) -> Callable[[], Awaitable[Any]]:
        """One that has routed the user to pod 7: what it does when that refuses."""
        config = RouterConfig(retry=RetryConfig(deadline=deadline))
        name = self.namespace, self.uid, "chat"
        if front == "asyncio":
            router = AsyncRouter.from_url(self._cluster.url, config=config)
            await self._exits.enter_async_context(router)
            self.stats = router.stats
            link = await router.route(*name)
            routed = sfroute.asgi.Routed(self.uid, link, router, self.namespace, "chat")
            again: Callable[[], Awaitable[Any]] = partial(routed.reroute, exclude=[7])
        else:
            threads = Router.from_url(self._cluster.url, config=config)
            self._exits.callback(threads.close)
            self.stats = threads.stats
            link = await asyncio.to_thread(threads.route, *name)
            there = sfroute.wsgi.Routed(self.uid, link, threads, self.namespace, "chat")
            again = partial(asyncio.to_thread, there.reroute, exclude=[7])
        assert (link.pod, link.address) == (7, FIRST)
        return again

    def pause(self) -> None:
        """The primary that holds the states."""
        self._pause(self._states)

    def pause_links(self) -> None:
        """The primary that holds the user's link."""
        self._pause(self._links)

    def _pause(self, node: Node) -> None:
        self._cluster.pause(node)
        self._exits.callback(self._cluster.resume, node)

    def resume(self) -> None:
        self._cluster.resume(self._states)


@pytest.fixture
async def world(some_cluster: LocalCluster, namespace: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as exits:
        pods = await exits.enter_async_context(AsyncRouter.from_url(some_cluster.url))
        world = World(some_cluster, namespace, pods, exits)
        for pod in (1, 2):
            await world.starts(pod, f"10.0.0.{pod}:8080")
        yield world


pytestmark = pytest.mark.parametrize("front", ["asyncio", "threads"])


async def test_who_is_at_the_next_life_of_the_pod_stays_there(world: World, front: str) -> None:
    before = await world.starts(7, FIRST)
    assert (await before.accept(world.uid)).success
    refused = await world.gateway(front, LONG)
    await before.stop()
    now = await world.starts(7, SECOND)
    assert (await now.accept(world.uid)).success
    world.pause()
    asking = asyncio.ensure_future(refused())
    await asyncio.wait([asking], timeout=1)
    # It must not go by what it cannot know.
    assert not asking.done()
    world.resume()
    routed = await asking
    assert (routed.pod, routed.link.address) == (7, SECOND)
    assert now.owns(world.uid)
    stats = world.stats()
    assert (stats.placements.get("moved", 0), stats.failures_reported) == (0, 0)


async def test_or_is_told_to_come_back(world: World, front: str) -> None:
    before = await world.starts(7, FIRST)
    assert (await before.accept(world.uid)).success
    refused = await world.gateway(front, SHORT)
    await before.stop()
    now = await world.starts(7, SECOND)
    assert (await now.accept(world.uid)).success
    world.pause()
    with pytest.raises(StoreUnavailable):
        await refused()
    assert now.owns(world.uid)
    assert world.stats().failures_reported == 0


async def test_who_is_at_the_life_that_refused_moves_at_once(world: World, front: str) -> None:
    pod = await world.starts(7, FIRST)
    assert (await pod.accept(world.uid)).success
    refused = await world.gateway(front, LONG)
    world.pause()
    async with asyncio.timeout(LONG / 2):
        routed = await refused()
    assert (routed.pod in (1, 2), routed.link.source) == (True, "moved")
    assert world.stats().failures_reported == 1


async def test_who_is_claimed_by_nobody_moves_when_the_pods_cannot_be_read_in_time(
    world: World, front: str
) -> None:
    await world.starts(7, FIRST)
    await world.links_to_7()
    refused = await world.gateway(front, SHORT)
    world.pause()
    routed = await refused()
    assert (routed.pod in (1, 2), routed.link.source) == (True, "moved")
    assert world.stats().failures_reported == 1


async def test_one_deadline_holds_though_neither_pods_nor_links_can_be_read(
    world: World, front: str
) -> None:
    await world.starts(7, FIRST)
    await world.links_to_7()
    refused = await world.gateway(front, 2 * SHORT)
    world.pause()
    began = time.monotonic()
    asking = asyncio.ensure_future(refused())
    # By then it knows that nobody has claimed the user, and asks for the pods.
    await asyncio.wait([asking], timeout=SHORT)
    world.pause_links()
    with pytest.raises(StoreError, match=f"^route.* {2 * SHORT:g} s"):
        await asking
    # Half of another deadline is for a busy machine.
    assert time.monotonic() - began < 3 * SHORT
