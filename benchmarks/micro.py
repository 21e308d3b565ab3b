"""The small parts that every call goes through, by pyperf: several processes, calibrated, with the spread.

    python benchmarks/micro.py [--fast] [-o FILE]

Two files of ``-o`` are compared by ``python -m pyperf compare_to OLD NEW``. Nothing here needs a server.
"""

from __future__ import annotations

import time
from math import inf

import hiredis
import pyperf

from sfroute import AsyncRouter, CacheConfig, PowerOfTwoChoices
from sfroute._contract.keys import check_link_names, link_key_parts, tag_and_slot
from sfroute._lookups.cache import Epoch, Flight, LookupCache
from sfroute._net.connection import encode
from sfroute._pods.policies import Candidate

NAMESPACE, SERVICE = "bench", "game"
UIDS = [f"user-{number:015d}" for number in range(1000)]
LINK_KEY = b"sf:{bench:lk:user-000000000000001}game"
EVALSHA = ("EVALSHA", "0" * 40, "3", LINK_KEY, LINK_KEY[:34], LINK_KEY, SERVICE, "-1", "3")
ANSWERS = b"$1\r\n3\r\n:-1\r\n" * 100


def check_names(loops: int) -> float:
    """One uid after the other."""
    began = time.perf_counter()
    for _ in range(loops):
        for uid in UIDS:
            check_link_names(NAMESPACE, uid, SERVICE)
    return time.perf_counter() - began


def store_answers(loops: int) -> float:
    """Lookups that begin and end, in a cache that is full."""
    cache = LookupCache(CacheConfig(max_entries=len(UIDS) // 2), time.monotonic)
    epoch = Epoch(60.0, inf)
    keys = [(NAMESPACE, uid, SERVICE) for uid in UIDS]
    began = time.perf_counter()
    for _ in range(loops):
        for key in keys:
            cache.land(cache.open(Flight(key, inf)), 3, None, 0.0, epoch, True)
    return time.perf_counter() - began


async def hit(router: AsyncRouter) -> None:
    """One thousand answers from the cache."""
    for uid in UIDS:
        await router.get_linked_pod(NAMESPACE, uid, SERVICE)


def warm_router() -> AsyncRouter:
    """A router that was never opened, and knows all answers."""
    router = AsyncRouter.from_url("redis://127.0.0.1:1")
    cache, epoch = router._inside.engine.cache, Epoch(inf, inf)
    for uid in UIDS:
        flight = cache.open(Flight((NAMESPACE, uid, SERVICE), inf))
        cache.land(flight, 3, None, time.monotonic(), epoch, True)
    return router


def parse_answers(loops: int) -> float:
    """GET and PTTL of a hundred lookups, as they arrive together."""
    reader = hiredis.Reader(notEnoughData=None)
    began = time.perf_counter()
    for _ in range(loops):
        reader.feed(ANSWERS)
        while reader.gets() is not None:
            pass
    return time.perf_counter() - began


def main() -> None:
    runner = pyperf.Runner()
    runner.metadata["description"] = "sfroute, what every call goes through"
    router = warm_router()
    runner.bench_time_func("check the names of a link", check_names, inner_loops=len(UIDS))
    runner.bench_func("hash tag and slot of a uid", tag_and_slot, NAMESPACE, UIDS[0])
    runner.bench_async_func("hit of an AsyncRouter", hit, router, inner_loops=len(UIDS))
    runner.bench_time_func("an answer stored, another evicted", store_answers, inner_loops=1000)
    runner.bench_func("key of an invalidation read", link_key_parts, LINK_KEY)
    runner.bench_time_func("replies of a lookup parsed", parse_answers, inner_loops=100)
    runner.bench_func("a call of a script packed", encode, *EVALSHA)
    candidates = [Candidate(pod, 0.1 * pod) for pod in range(10)]
    runner.bench_func(
        "ten pods ranked by the default policy", PowerOfTwoChoices().rank, UIDS[0], candidates
    )


if __name__ == "__main__":
    main()
