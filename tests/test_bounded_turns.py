"""No turn of the event loop does more than a bounded amount of our own work, however much there is to do.

Counted, not timed: how many lookups begin, how many pushes are handled and how many entries are evicted in one turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

import redis.cluster

from sfroute import AsyncRouter, CacheConfig, RouterConfig
from sfroute._contract.keys import link_key
from sfroute._lookups.cache import Epoch, Flight, LookupCache
from sfroute._lookups.lookups import TOGETHER
from sfroute._net.connection import READ_BYTES
from sfroute.embedded import LocalCluster

MANY = 2000


async def most_in_one_turn(
    count: Callable[[], int], work: Callable[[], Coroutine[Any, Any, object]]
) -> int:
    """By how much ``count`` grows at most from one turn of the loop to the next while ``work`` runs."""
    working = asyncio.create_task(work())
    most, before = 0, count()
    while not working.done():
        await asyncio.sleep(0)
        now = count()
        most, before = max(most, now - before), now
    await working
    return most


async def test_a_large_batch_begins_in_pieces(cluster: LocalCluster, namespace: str) -> None:
    uids = [f"user-{number:015d}" for number in range(MANY)]
    async with AsyncRouter.from_url(cluster.url) as router:
        most = await most_in_one_turn(
            lambda: router.stats().cache.misses,
            lambda: router.batch_get_linked_pod(namespace, uids, "chat"),
        )
        assert router.stats().cache.misses == MANY
    assert most <= TOGETHER


async def test_pushes_are_handled_in_pieces(
    cluster: LocalCluster, raw: redis.cluster.RedisCluster, namespace: str
) -> None:
    """All of them have arrived before the loop looks again, as if it had been busy meanwhile."""
    uids = [f"user-{number:015d}" for number in range(MANY)]
    keys = [link_key(namespace, uid, "chat") for uid in uids]
    config = RouterConfig(cache=CacheConfig(heartbeat=10, heartbeat_timeout=30, max_age=30))
    async with AsyncRouter.from_url(cluster.url, config=config) as router:
        await router.batch_get_linked_pod(namespace, uids, "chat")

        def invalidations() -> int:
            return router.stats().cache.invalidations

        async def change_all() -> None:
            pipe: Any = raw.pipeline()  # type: ignore[no-untyped-call]
            for key in keys:
                pipe.set(key, 1)
            pipe.execute()  # blocks this loop on purpose
            async with asyncio.timeout(20):
                while invalidations() < MANY:  # noqa: ASYNC110 - every turn is looked at
                    await asyncio.sleep(0)

        most = await most_in_one_turn(invalidations, change_all)
        lanes = len(router.stats().lanes)
    # A push is longer than the key it names.
    assert most <= lanes * (READ_BYTES // len(keys[0]))
    assert most < MANY / 2


def test_a_large_cache_makes_room_in_pieces() -> None:
    entries = 50_000
    cache = LookupCache(CacheConfig(max_entries=entries), lambda: 0.0)
    epoch = Epoch(60.0, inf)
    most = 0
    for number in range(2 * entries):
        before = cache.entries.evictions
        flight = cache.open(Flight(("sf", f"user-{number}", "chat"), inf))
        cache.land(flight, 1, None, 0.0, epoch, storable=True)
        most = max(most, cache.entries.evictions - before)
    assert most == cache.entries.AT_ONCE
    assert len(cache.entries) <= entries
