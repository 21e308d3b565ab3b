"""What a look-up costs, beside what a user would write instead.

    python benchmarks/lookup.py [--rounds N] [--scale X] [--only WORDS]

Hits are compared with a hand-written ``@cachetools.cached(TTLCache, lock=Lock())``, misses with bare redis-py on the
same cluster, in the same run, interleaved. Every miss asks for a uid that this router has never seen; its link exists.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import cachetools
import uvloop
from harness import Comparison, machine, table
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster
from redis.maint_notifications import MaintNotificationsConfig

import sfroute
from sfroute.embedded import LocalCluster

NAMESPACE, SERVICE = "bench", "game"
OPTIONS = {"protocol": 3, "legacy_responses": False}


def key_of(uid: str) -> str:
    return f"sf:{{{NAMESPACE}:lk:{uid}}}{SERVICE}"


class Population:
    """Linked uids; each is handed out once."""

    def __init__(self, client: RedisCluster, count: int) -> None:
        self._numbers = itertools.count()
        self._count = count
        for start in range(0, count, 5000):
            pipe = client.pipeline()
            for number in range(start, min(start + 5000, count)):
                pipe.set(key_of(self._name(number)), number % 7)
            pipe.execute()

    @staticmethod
    def _name(number: int) -> str:
        return f"user-{number:015d}"

    def take(self, count: int) -> list[str]:
        """The next ``count`` uids; from the beginning again when all were used, which caches must not notice."""
        return [self._name(next(self._numbers) % self._count) for _ in range(count)]


def hits(router: sfroute.Router, uids: list[str]) -> Comparison:
    cache: cachetools.TTLCache[object, int] = cachetools.TTLCache(100_000, 3600)

    @cachetools.cached(cache, lock=threading.Lock())
    def by_hand(namespace: str, uid: str, service: str) -> int:
        return 5

    def timed(call: Callable[[str, str, str], object]) -> Callable[[], float]:
        def work() -> float:
            for uid in uids:  # warm: the lease of an entry is short
                call(NAMESPACE, uid, SERVICE)
            began = time.perf_counter()
            for _ in range(20):
                for uid in uids:
                    call(NAMESPACE, uid, SERVICE)
            return (time.perf_counter() - began) / (20 * len(uids))

        return work

    return Comparison(
        "sync hit, no SDK",
        "hand-written cachetools",
        {"hand-written cachetools": timed(by_hand), "sfroute Router": timed(router.get_linked_pod)},
    )


def async_hits(
    loop: asyncio.AbstractEventLoop, router: sfroute.AsyncRouter, uids: list[str]
) -> Comparison:
    held: dict[tuple[str, str, str], tuple[int, float]] = {
        (NAMESPACE, uid, SERVICE): (5, time.monotonic() + 3600) for uid in uids
    }

    async def by_hand(namespace: str, uid: str, service: str) -> int | None:
        entry = held.get((namespace, uid, service))
        if entry is not None and entry[1] > time.monotonic():
            return entry[0]
        return None

    def timed(call: Callable[[str, str, str], Awaitable[object]]) -> Callable[[], float]:
        async def measure() -> float:
            for uid in uids:
                await call(NAMESPACE, uid, SERVICE)
            began = time.perf_counter()
            for _ in range(20):
                for uid in uids:
                    await call(NAMESPACE, uid, SERVICE)
            return (time.perf_counter() - began) / (20 * len(uids))

        return lambda: loop.run_until_complete(measure())

    return Comparison(
        "async hit, no SDK",
        "hand-written dict in a coroutine",
        {
            "hand-written dict in a coroutine": timed(by_hand),
            "sfroute AsyncRouter": timed(router.get_linked_pod),
        },
    )


def async_misses(
    loop: asyncio.AbstractEventLoop,
    router: sfroute.AsyncRouter,
    bare: AsyncRedisCluster,
    population: Population,
    concurrency: int,
    operations: int,
) -> Comparison:
    def timed(call: Callable[[str], Awaitable[object]]) -> Callable[[], float]:
        async def worker(uids: Iterator[str]) -> None:
            for uid in uids:
                await call(uid)

        async def measure() -> float:
            uids = iter(population.take(operations))
            began = time.perf_counter()
            await asyncio.gather(*(worker(uids) for _ in range(concurrency)))
            return (time.perf_counter() - began) / operations

        return lambda: loop.run_until_complete(measure())

    async def bare_get(uid: str) -> object:
        return await bare.get(key_of(uid))

    async def routed(uid: str) -> object:
        return await router.get_linked_pod(NAMESPACE, uid, SERVICE)

    return Comparison(
        f"async miss, {concurrency} at a time",
        "redis-py asyncio GET",
        {"redis-py asyncio GET": timed(bare_get), "sfroute AsyncRouter": timed(routed)},
    )


def sync_misses(
    router: sfroute.Router,
    fast: sfroute.Router,
    bare: RedisCluster,
    population: Population,
    threads: int,
    operations: int,
) -> Comparison:
    def timed(call: Callable[[str], object]) -> Callable[[], float]:
        def worker(uids: list[str], start: threading.Barrier) -> None:
            start.wait()
            for uid in uids:
                call(uid)

        def work() -> float:
            share = operations // threads
            start = threading.Barrier(threads + 1)
            crew = [
                threading.Thread(target=worker, args=(population.take(share), start))
                for _ in range(threads)
            ]
            for thread in crew:
                thread.start()
            start.wait()
            began = time.perf_counter()
            for thread in crew:
                thread.join()
            return (time.perf_counter() - began) / (share * threads)

        return work

    return Comparison(
        f"sync miss, {threads} threads",
        "redis-py GET",
        {
            "redis-py GET": timed(lambda uid: bare.get(key_of(uid))),
            "sfroute Router": timed(lambda uid: router.get_linked_pod(NAMESPACE, uid, SERVICE)),
            "sfroute Router, uvloop": timed(
                lambda uid: fast.get_linked_pod(NAMESPACE, uid, SERVICE)
            ),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0, help="work per round, 1.0 = full")
    parser.add_argument("--only", default="", help="only what has these words in its name")
    parser.add_argument("--uvloop", action="store_true", help="run asyncio on uvloop")
    options = parser.parse_args()
    scale = options.scale
    # Entries of one turn must be gone when its uids come again: one round trip through the population outlasts them.
    config = sfroute.RouterConfig(cache=sfroute.CacheConfig(max_entries=20_000))
    if options.uvloop:
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    maint = MaintNotificationsConfig(enabled=False)
    with LocalCluster(primaries=3, replicas_per_primary=0) as cluster:
        host, port = cluster.nodes[0].host, cluster.nodes[0].port
        bare = RedisCluster(host=host, port=port, maint_notifications_config=maint, **OPTIONS)
        async_bare = AsyncRedisCluster(
            host=host, port=port, maint_notifications_config=maint, **OPTIONS
        )
        loop.run_until_complete(async_bare.initialize())
        population = Population(bare, int(200_000 * scale) + 50_000)
        router = sfroute.Router.from_url(cluster.url, config=config)
        async_router = sfroute.AsyncRouter.from_url(cluster.url, config=config)
        fast = sfroute.Router.from_url(
            cluster.url, config=replace(config, loop_factory=uvloop.new_event_loop)
        )
        router.open()
        fast.open()
        loop.run_until_complete(async_router.open())
        hot = population.take(1000)
        comparisons = [
            hits(router, hot),
            async_hits(loop, async_router, hot),
            async_misses(loop, async_router, async_bare, population, 1, int(2000 * scale)),
            async_misses(loop, async_router, async_bare, population, 10, int(4000 * scale)),
            async_misses(loop, async_router, async_bare, population, 100, int(8000 * scale)),
            sync_misses(router, fast, bare, population, 1, int(2000 * scale)),
            sync_misses(router, fast, bare, population, 16, int(6400 * scale)),
        ]
        comparisons = [each for each in comparisons if options.only in each.work]
        for comparison in comparisons:
            comparison.run(options.rounds)
        print(machine("sfroute", "redis", "cachetools", "hiredis"))
        print(
            f"server: {cluster.server_version}, 3 primaries, {options.rounds} rounds, interleaved"
        )
        print(table(comparisons))
        router.close()
        fast.close()
        loop.run_until_complete(async_router.aclose())
        loop.run_until_complete(async_bare.aclose())
        bare.close()
    loop.close()


if __name__ == "__main__":
    main()
