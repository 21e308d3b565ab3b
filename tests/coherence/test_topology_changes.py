"""Primaries are replaced, slots move away and back, nodes move to other addresses: nothing outlives ``max_age``."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import redis.asyncio.cluster
from conftest import SERVERS, make_cluster
from redis.asyncio.cluster import ClusterNode
from support.ledger import Ledger
from support.proxy import WITHOUT_NOTIFICATIONS, ProxiedCluster, Proxy

from sfroute import AsyncPodAgent, AsyncRouter
from sfroute._contract.keys import link_key, slot_of
from sfroute.embedded import LocalCluster

from .conftest import CALM, becomes, cached, settings, until

MAX_AGE = 1.0
Uid = tuple[str, str, str]


class Watch:
    """A router asks for uids all the time; how outdated was each answer when it was asked for?"""

    def __init__(self, router: AsyncRouter, ledger: Ledger, uids: list[Uid]) -> None:
        self.router = router
        self.ledger = ledger
        self.uids = uids
        self.asked: list[tuple[str, int | None, float]] = []
        self.marked = 0
        self.passes = 0

    async def run(self) -> None:
        while True:
            for uid in self.uids:
                stale = self.router.stats().cache.stale
                asked = time.monotonic()
                pod = await self.router.get_linked_pod(*uid)
                if self.router.stats().cache.stale > stale:
                    self.marked += 1
                else:
                    self.asked.append((uid[1], pod, asked))
            self.passes += 1
            await asyncio.sleep(0.005)

    async def a_pass(self) -> None:
        """Wait until every uid has been asked for once more, begun after this."""
        begun = self.passes

        async def over() -> bool:
            return self.passes >= begun + 2

        await until(over, within=10)

    @property
    def outdated(self) -> float:
        """The worst of all answers that were not marked stale."""
        return max(self.ledger.outdated(*answer) for answer in self.asked)


@asynccontextmanager
async def watching(router: AsyncRouter, ledger: Ledger, uids: list[Uid]) -> AsyncIterator[Watch]:
    watch = Watch(router, ledger, uids)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError), result


@asynccontextmanager
async def writing(cluster: LocalCluster) -> AsyncIterator[redis.asyncio.cluster.RedisCluster]:
    """Another program on the cluster."""
    client = redis.asyncio.cluster.RedisCluster(
        startup_nodes=[ClusterNode(*node) for node in cluster.startup_nodes], protocol=2
    )
    try:
        yield client
    finally:
        await client.aclose()
        await disconnect_forgotten_nodes()


async def disconnect_forgotten_nodes() -> None:
    """redis-py drops nodes that a new slot map replaces, and does not always close their connections."""
    for node in [each for each in gc.get_objects() if type(each) is ClusterNode]:
        await node.disconnect()


async def _heard(watch: Watch, answers: int) -> bool:
    return len(watch.asked) >= answers


async def write_all(client: Any, ledger: Ledger, uids: list[Uid], pod: int) -> None:
    for uid in uids:
        await client.set(link_key(*uid), pod)
        ledger.wrote(uid[1], pod)


@pytest.fixture(scope="module")
def moving() -> Any:
    """3 primaries with a replica each, which the tests of this module change and leave healthy."""
    with make_cluster(next(iter(SERVERS))) as cluster:
        yield cluster


async def test_failover_to_a_replica(moving: LocalCluster, namespace: str) -> None:
    """And back: the first primary's lane has been connected all the time."""
    uids = [(namespace, f"u{number}", "chat") for number in range(30)]
    ledger = Ledger()
    url = moving.url
    async with (
        AsyncRouter.from_url(url, config=settings(max_age=MAX_AGE)) as router,
        writing(moving) as client,
    ):
        await write_all(client, ledger, uids, 1)
        async with watching(router, ledger, uids) as watch:
            for pod in (2, 3):
                primary = moving.primary_of(link_key(*uids[0]))
                replica = moving.replica_of(primary)
                await asyncio.to_thread(moving.failover, replica)
                await write_all(client, ledger, uids, 10 * pod)
                await write_all(client, ledger, uids, 10 * pod + 1)
                await asyncio.to_thread(moving.wait_healthy)
            await write_all(client, ledger, uids, 99)
            for uid in uids:
                await becomes(router, uid, 99)
        assert watch.outdated <= MAX_AGE


async def test_a_slot_moves_away_and_back_again(moving: LocalCluster, namespace: str) -> None:
    """A-B-A, with present and absent links, with a lookup at B in between and without."""
    for ask_at_b in (True, False):
        uid = (namespace, f"ada{ask_at_b}", "chat")
        present, absent = uid, (*uid[:2], "absent")
        slot = slot_of(link_key(*uid))
        source = moving.primary_of(slot)
        target = next(n for n in moving.nodes if n.role == "primary" and n is not source)
        async with (
            AsyncRouter.from_url(moving.url, config=settings()) as router,
            writing(moving) as client,
        ):
            await client.set(link_key(*present), 1)
            assert await cached(router, present) == 1
            assert await cached(router, absent) is None
            await asyncio.to_thread(moving.move_slot, slot, target)
            if ask_at_b:
                router.invalidate(*present)
                assert await cached(router, present) == 1
                # Noticed: what its lane said of the slot before counts no more, absent links included.
                await client.set(link_key(*absent), 5)
                assert await router.get_linked_pod(*absent) == 5
            await client.set(link_key(*present), 2)
            await client.set(link_key(*absent), 6)
            await asyncio.to_thread(moving.move_slot, slot, source)
            await becomes(router, present, 2)
            await becomes(router, absent, 6)
            # The lane at A is what pushes again.
            await cached(router, present)
            await client.set(link_key(*present), 3)
            await client.delete(link_key(*absent))
            await becomes(router, present, 3)
            await becomes(router, absent, None)


async def test_slots_that_move_to_and_fro_all_the_time(
    moving: LocalCluster, namespace: str
) -> None:
    uids = [(namespace, f"u{number}", "chat") for number in range(12)]
    ledger = Ledger()
    async with (
        AsyncRouter.from_url(moving.url, config=settings(max_age=MAX_AGE)) as router,
        writing(moving) as client,
    ):
        await write_all(client, ledger, uids, 1)
        async with watching(router, ledger, uids) as watch:
            for round_ in range(1, 5):
                for uid in uids[:4]:
                    slot = slot_of(link_key(*uid))
                    source = moving.primary_of(slot)
                    target = next(
                        n for n in moving.nodes if n.role == "primary" and n is not source
                    )

                    def halfway(slot: int = slot, target: Any = target) -> None:
                        with moving.moving_slot(slot, target) as source:
                            moving.move_keys(slot, source, target)  # ASK for every key of the slot

                    await asyncio.to_thread(halfway)
                    await watch.a_pass()
                    await write_all(client, ledger, [uid], 10 * round_)
                    await watch.a_pass()
                await write_all(client, ledger, uids, 10 * round_ + 1)
            for uid in uids:
                await becomes(router, uid, 41)
        assert watch.outdated <= MAX_AGE


@pytest.mark.slow
async def test_a_claim_whose_slot_moves_is_watched_again(
    moving: LocalCluster, namespace: str
) -> None:
    """Nobody pushes changes of a link that is on its way, and a pod that sends nothing there hears of no end."""
    async with (
        AsyncRouter.from_url(moving.url) as router,
        AsyncPodAgent(router, namespace, "chat", 3) as agent,
        writing(moving) as client,
    ):
        for uid, is_over in (("ada", False), ("bob", True)):
            slot = slot_of(link_key(namespace, uid, "chat"))
            source = moving.primary_of(slot)
            target = next(n for n in moving.nodes if n.role == "primary" and n is not source)
            await agent.accept(uid)
            held: Any = agent._ownership.table.get(uid)

            async def is_watched(held: Any = held) -> bool:
                return held.stretch is not None

            async def is_on_its_way(held: Any = held, uid: str = uid) -> bool:
                return held.stretch is None and agent.owns(uid)

            async def is_lost(uid: str = uid) -> bool:
                return not agent.owns(uid)

            await until(is_watched, within=10)
            with moving.moving_slot(slot, target):
                moving.move_keys(slot, source, target)
                await until(is_on_its_way, within=10)
                if not is_over:
                    await client.set(link_key(namespace, uid, "chat"), 4)
                    await until(is_lost, within=20)
            if is_over:
                await until(is_watched, within=20)
                await client.set(link_key(namespace, uid, "chat"), 4)
                await until(is_lost, within=20)


async def test_an_absent_link_on_its_way_while_its_slot_moves(
    moving: LocalCluster, namespace: str
) -> None:
    """Nothing is pushed for a key that never was on the node that lost the slot: its answer must not be kept."""
    uid = (namespace, "ada", "chat")
    slot = slot_of(link_key(*uid))
    source = moving.primary_of(slot)
    target = next(n for n in moving.nodes if n.role == "primary" and n is not source)
    try:
        async with (
            ProxiedCluster(moving.startup_nodes) as proxied,
            writing(moving) as client,
            proxied.client() as lent,
            AsyncRouter(lent, config=settings(**CALM)) as router,
        ):
            # Another slot of the same node, so that the node stays a primary.
            await router.get_linked_pod(*uid)
            router.invalidate(*uid)
            proxy = proxied.proxies[source.address]
            proxy.replies.hold()
            looking = asyncio.create_task(router.get_linked_pod(*uid))
            await proxy.replies.holds(b"_\r\n:-2\r\n")
            await asyncio.to_thread(moving.move_slot, slot, target)
            await client.set(link_key(*uid), 7)
            # The router hears of it from another node, as after any MOVED; redis-py would ask one at random, and for
            # seconds wait for the one whose replies are held.
            moved = proxied.proxies[target.address].address
            silent = lent.nodes_manager.startup_nodes.pop("{}:{}".format(*proxy.address))
            await silent.disconnect()
            await lent.nodes_manager.initialize()
            assert router._inside.engine.parts is not None
            assert router._inside.engine.parts.topology.address_of(slot) == moved
            proxy.replies.release()
            assert await looking is None  # the truth when it was asked
            assert await router.get_linked_pod(*uid) == 7
    finally:
        await asyncio.to_thread(moving.move_slot, slot, source)


@pytest.mark.slow
async def test_all_addresses_change(namespace: str) -> None:
    """Every node comes back elsewhere, empty; one name, as of a headless service, still leads to one of them."""
    uids = [(namespace, f"u{number}", "chat") for number in range(30)]
    ledger = Ledger()
    with make_cluster(next(iter(SERVERS)), replicas_per_primary=0) as cluster:
        async with Proxy(cluster.startup_nodes[0]) as name:
            lent = redis.asyncio.cluster.RedisCluster(
                startup_nodes=[ClusterNode(*name.address)],
                protocol=3,
                **WITHOUT_NOTIFICATIONS,
            )
            async with (
                aclosing(lent),
                AsyncRouter(lent, config=settings(max_age=MAX_AGE)) as router,
            ):
                async with writing(cluster) as client:
                    await write_all(client, ledger, uids, 1)
                before = set(cluster.startup_nodes)
                async with watching(router, ledger, uids) as watch:
                    for node in cluster.nodes:
                        await asyncio.to_thread(cluster.restart, node, new_port=True)
                        name.target = cluster.startup_nodes[0]
                        await asyncio.to_thread(cluster.wait_healthy)
                    assert not before & set(cluster.startup_nodes)
                    for uid in uids:
                        ledger.lost(uid[1])
                    async with writing(cluster) as client:
                        await write_all(client, ledger, uids, 2)
                        await write_all(client, ledger, uids, 3)
                    for uid in uids:
                        await becomes(router, uid, 3)
                    heard = len(watch.asked) + len(uids)
                    await until(lambda: _heard(watch, heard))
                assert watch.outdated <= MAX_AGE
                lanes = router.stats().lanes
                assert {lane.address for lane in lanes if lane.healthy} == {
                    f"{host}:{port}" for host, port in cluster.startup_nodes
                }
