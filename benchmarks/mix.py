"""What a gateway sees: requests that come when they come, most of a few uids, one in a hundred a write.

Arrivals are random (Poisson) at a fixed rate, and a request's time counts from the instant at which it was due: who is
slow does not get fewer requests. Uids follow Zipf's law. The caches by hand hold an answer as long as sfroute does, but
nobody tells them of a change.

And the same where the load is not given but the number of callers: each has its next request as soon as it has an
answer, so all are as fast as the contender lets them.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect
from collections.abc import Awaitable, Callable
from itertools import accumulate

import cachetools
from contenders import NAMESPACE, SERVICE, AsyncPeer, RedisPy, Sfroute
from harness import Comparison, Target
from setting import CONFIG, Setting

__all__ = ["comparisons"]

UIDS = 100_000
EXPONENT = 1.1
WRITES = 0.01
# Requests a second: what leaves a core idle most of the time with any contender, and what keeps it busy.
CALM, BUSY = 2000, 8000
CALLERS, REQUESTS = 100, 30_000
# redis-py raises where it would need more connections than it may have; a gateway has its callers wait instead.
AT_ONCE = 64
# The share of a round in which the caches fill up, and nothing is measured.
WARM_UP = 0.25
# A loop that waits for the next request by turning takes a whole core. A turn in which the machine gave it less than
# this measures what else ran there, in a percentile above all: it is taken again, so many times at most.
UNDISTURBED, TRIES = 0.95, 2

Request = Callable[[str, bool], Awaitable[None]]


class Traffic:
    """Requests, the same for everyone in distribution."""

    def __init__(self, name: Callable[[int], str], seed: int) -> None:
        self._name = name
        self._random = random.Random(seed)
        self._weights = list(accumulate((rank + 1) ** -EXPONENT for rank in range(UIDS)))

    def whose(self) -> tuple[str, bool]:
        """Whose request, and whether it writes."""
        rank = bisect(self._weights, self._random.random() * self._weights[-1])
        return self._name(rank), self._random.random() < WRITES

    def requests(self, rate: int, seconds: float) -> list[tuple[float, str, bool]]:
        """When, whose, and whether it writes."""
        found, at = [], 0.0
        while True:
            at += self._random.expovariate(rate)
            if at >= seconds:
                return found
            found.append((at, *self.whose()))


def comparisons(setting: Setting) -> list[Comparison]:
    """The 99th percentile of a request's time, in a gateway with time to spare and in a busy one."""
    traffic = Traffic(setting.population.name, 7)
    seconds = max(0.5, 4.0 * setting.scale)
    requests: dict[str, tuple[Request, bool]] = {
        "redis-py + TTLCache": (_by_hand(setting.opened(RedisPy())), False),
        "sfroute": (_routed(setting.opened(Sfroute(CONFIG))), False),
        "redis-py + TTLCache, uvloop": (_by_hand(setting.opened(RedisPy(), fast=True)), True),
        "sfroute, uvloop": (_routed(setting.opened(Sfroute(CONFIG), fast=True)), True),
    }
    does = {
        name: "batches what comes together; invalidated by the server"
        if name.startswith("sfroute")
        else f"GET on a miss, held {CONFIG.cache.max_age:g} s; writes by Script, then forgets the entry"
        for name in requests
    }

    def tail(rate: int, request: Request, fast: bool) -> Callable[[], float]:
        def work() -> float:
            found = []
            for _ in range(TRIES):
                due = traffic.requests(rate, seconds)
                share, times = setting.run(_drive(request, due, seconds * WARM_UP), fast=fast)
                found.append((share, times[int(len(times) * 0.99)]))
                if share >= UNDISTURBED:
                    break
            return max(found)[1]

        return work

    def crowd(request: Request, fast: bool) -> Callable[[], float]:
        def work() -> float:
            due = [traffic.whose() for _ in range(setting.size(REQUESTS))]
            times = setting.run(_serve(request, due), fast=fast)
            return times[int(len(times) * 0.99)]

        return work

    open_loop = [
        Comparison(
            f"gateway mix at {rate:,} requests/s, 99th percentile (Zipf {EXPONENT}, {UIDS:,} uids, 1 % writes)",
            "redis-py + TTLCache",
            {name: tail(rate, request, fast) for name, (request, fast) in requests.items()},
            does=does,
            target=Target("sfroute", 0.5, of_time=True),
            unit="us",
            group="gateway",
        )
        for rate in (CALM, BUSY)
    ]
    closed_loop = Comparison(
        f"gateway mix, {CALLERS} callers, 99th percentile (Zipf {EXPONENT}, {UIDS:,} uids, 1 % writes)",
        "redis-py + TTLCache",
        {name: crowd(request, fast) for name, (request, fast) in requests.items()},
        does=does,
        target=Target("sfroute", 0.5, of_time=True),
        unit="us",
        group="gateway",
    )
    return [*open_loop, closed_loop]


async def _drive(
    request: Request, due: list[tuple[float, str, bool]], warm_up: float
) -> tuple[float, list[float]]:
    """Every request at its time. The share of a core that was had, and how long each took that was due after
    ``warm_up``, sorted."""
    took: list[float] = []
    clock = time.perf_counter

    async def one(at: float, uid: str, write: bool) -> None:
        await request(uid, write)
        if at >= began + warm_up:
            took.append(clock() - at)

    # A loop that stood still while others had their turn has heartbeats to make up for.
    await asyncio.sleep(0.05)
    began, had = clock(), time.thread_time()
    async with asyncio.TaskGroup() as group:
        for at, uid, write in due:
            # No timer: those of event loops are a millisecond coarse, which is more than what is measured.
            while clock() - began < at:  # noqa: ASYNC110
                await asyncio.sleep(0)
            group.create_task(one(began + at, uid, write))
    return (time.thread_time() - had) / (clock() - began), sorted(took)


async def _serve(request: Request, due: list[tuple[str, bool]]) -> list[float]:
    """All requests by so many callers. How long each took after the first ``WARM_UP`` of them, sorted."""
    took: list[float] = []
    clock = time.perf_counter
    waiting = iter(enumerate(due))
    first = int(len(due) * WARM_UP)

    async def caller() -> None:
        for number, (uid, write) in waiting:
            began = clock()
            await request(uid, write)
            if number >= first:
                took.append(clock() - began)
            # A request comes by the event loop, also where the one before was answered without it.
            await asyncio.sleep(0)

    await asyncio.sleep(0.05)
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return sorted(took)


def _by_hand(peer: AsyncPeer) -> Request:
    cache: cachetools.TTLCache[str, object] = cachetools.TTLCache(100_000, CONFIG.cache.max_age)
    turn = asyncio.Semaphore(AT_ONCE)

    async def request(uid: str, write: bool) -> None:
        if write:
            async with turn:
                await peer.link(uid, 3)
            cache.pop(uid, None)
        elif cache.get(uid) is None:
            async with turn:
                cache[uid] = await peer.get(uid)

    return request


def _routed(peer: AsyncPeer) -> Request:
    assert isinstance(peer, Sfroute)
    router = peer.router

    async def request(uid: str, write: bool) -> None:
        if write:
            await router.set_linked_pod(NAMESPACE, uid, SERVICE, 3)
        else:
            await router.get_linked_pod(NAMESPACE, uid, SERVICE)

    return request
