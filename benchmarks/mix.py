"""What a gateway sees: requests that come when they come, most of a few uids, one in a hundred a write.

Arrivals are random (Poisson) at a fixed rate, and a request's time counts from the instant at which it was due: who is
slow does not get fewer requests. Uids follow Zipf's law. The caches by hand hold an answer as long as sfroute does, but
nobody tells them of a change.

And the same where the load is not given but the number of callers: each has its next request as soon as it has an
answer, so all are as fast as the contender lets them.

Three figures are taken: how long the slowest hundredth takes, how much of a processor a request takes (of the process,
its threads included; the servers are not in it), and how many requests a second come through in time.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect
from collections.abc import Callable, Coroutine
from itertools import accumulate
from typing import Any

import cachetools
from contenders import NAMESPACE, SERVICE, AsyncPeer, RedisPy, Sfroute
from harness import Comparison, Target
from setting import CONFIG, Setting

__all__ = ["comparisons"]

UIDS = 100_000
EXPONENT = 1.1
WRITES = 0.01
MIX = f"Zipf {EXPONENT}, {UIDS:,} uids, {WRITES:.0%} writes"
# Requests a second that keep a core busy. At a rate that leaves it idle, a request takes a round trip with anybody.
BUSY = 8000
CALLERS, REQUESTS = 100, 30_000
# redis-py raises where it would need more connections than it may have; a gateway has its callers wait instead.
AT_ONCE = 64
# The share of a round in which the caches fill up, and nothing is measured.
WARM_UP = 0.25
# A loop that waits for the next request by turning takes a whole core. A turn in which the machine gave it less than
# this measures what else ran there, in a percentile above all: it is taken again, so many times at most.
UNDISTURBED, TRIES = 0.95, 2
# A request is in time within this. Rates are tried in steps of a tenth, and none below what anybody can do.
IN_TIME = 0.005
STEP, LEAST_RATE = 1.1, 1000.0

Request = Callable[[str, bool], Coroutine[Any, Any, None]]


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

    def requests(self, rate: float, seconds: float) -> list[tuple[float, str, bool]]:
        """When, whose, and whether it writes."""
        found: list[tuple[float, str, bool]] = []
        at = 0.0
        while True:
            at += self._random.expovariate(rate)
            if at >= seconds:
                return found
            found.append((at, *self.whose()))


def comparisons(setting: Setting, *, quick: bool = False) -> list[Comparison]:
    """Times, processor time and (not ``quick``: it takes many tries) the highest rate that comes through in time."""
    traffic = Traffic(setting.population.name, 7)
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

    def compare(
        work: str, measure: Callable[[_Gateway], float], target: Target | None = None
    ) -> Comparison:
        gateways = {
            name: _Gateway(setting, traffic, request, fast)
            for name, (request, fast) in requests.items()
        }
        contenders = {
            name: lambda gateway=gateway: measure(gateway) for name, gateway in gateways.items()
        }
        return Comparison(
            f"gateway mix {work} ({MIX})",
            "redis-py + TTLCache",
            contenders,
            does=does,
            target=target,
            unit="us",
            group="gateway",
        )

    made = [
        compare(
            f"at {BUSY:,} requests/s, 99th percentile",
            lambda gateway: gateway.tail(BUSY),
        ),
        compare(
            f"with {CALLERS} callers, 99th percentile",
            lambda gateway: gateway.crowd()[0],
            Target("sfroute", 0.5, of_time=True),
        ),
        compare(
            f"at {BUSY:,} requests/s, CPU of a request",
            _Gateway.processor_time_at_rate,
            Target("sfroute", 0.55, of_time=True),
        ),
        compare(
            f"with {CALLERS} callers, CPU of a request",
            lambda gateway: gateway.crowd()[1],
            Target("sfroute", 0.2, of_time=True),
        ),
    ]
    if not quick:
        work = (
            f"at the highest rate of which 99 % take less than {IN_TIME * 1000:g} ms, time for each"
        )
        made.append(compare(work, _Gateway.least_time_between))
    return made


class _Gateway:
    """One contender under the traffic."""

    def __init__(self, setting: Setting, traffic: Traffic, request: Request, fast: bool) -> None:
        self._setting = setting
        self._traffic = traffic
        self._request = request
        self._fast = fast
        self._seconds = max(0.5, 4.0 * setting.scale)
        self._rate = float(BUSY)

    def tail(self, rate: float) -> float:
        """The 99th percentile of a request's time, at so many a second."""
        found: list[tuple[float, float]] = []
        for _ in range(TRIES):
            due = self._traffic.requests(rate, self._seconds)
            driven = _drive(self._request, due, self._seconds * WARM_UP)
            share, times = self._setting.run(driven, fast=self._fast)
            found.append((share, times[int(len(times) * 0.99)]))
            if share >= UNDISTURBED:
                break
        return max(found)[1]

    def crowd(self) -> tuple[float, float]:
        """With all callers: the 99th percentile of a request's time, and the processor time of one."""
        due = [self._traffic.whose() for _ in range(self._setting.size(REQUESTS))]
        times, processor = self._setting.run(_serve(self._request, due), fast=self._fast)
        return times[int(len(times) * 0.99)], processor

    def processor_time_at_rate(self) -> float:
        """The processor time of a request, where the process sleeps whenever nothing is due."""
        due = self._traffic.requests(BUSY, self._seconds)
        driven = _drive_asleep(self._request, due, self._seconds * WARM_UP)
        return self._setting.run(driven, fast=self._fast)

    def least_time_between(self) -> float:
        """Seconds between requests at the highest rate that comes through in time, found from the last one found."""
        if self.tail(self._rate) < IN_TIME:
            while self.tail(self._rate * STEP) < IN_TIME:
                self._rate *= STEP
        else:
            self._rate /= STEP
            while self._rate > LEAST_RATE and self.tail(self._rate) >= IN_TIME:
                self._rate /= STEP
        return 1 / self._rate


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


async def _drive_asleep(
    request: Request, due: list[tuple[float, str, bool]], warm_up: float
) -> float:
    """Every request at its time, within the millisecond of a timer. The processor time of one due after ``warm_up``."""
    began, used, counted = time.perf_counter(), 0.0, 0
    async with asyncio.TaskGroup() as group:
        for number, (at, uid, write) in enumerate(due):
            early = at - (time.perf_counter() - began)
            if early > 0:
                await asyncio.sleep(early)
            if not counted and at >= warm_up:
                used, counted = time.process_time(), len(due) - number
            group.create_task(request(uid, write))
    return (time.process_time() - used) / counted


async def _serve(request: Request, due: list[tuple[str, bool]]) -> tuple[list[float], float]:
    """All requests by so many callers. Of those after the first ``WARM_UP``: how long each took, sorted, and the
    processor time of one."""
    took: list[float] = []
    clock = time.perf_counter
    waiting = iter(enumerate(due))
    first = int(len(due) * WARM_UP)
    used = 0.0

    async def caller() -> None:
        nonlocal used
        for number, (uid, write) in waiting:
            began = clock()
            if number == first:
                used = time.process_time()
            await request(uid, write)
            if number >= first:
                took.append(clock() - began)
            # A request comes by the event loop, also where the one before was answered without it.
            await asyncio.sleep(0)

    await asyncio.sleep(0.05)
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return sorted(took), (time.process_time() - used) / (len(due) - first)


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
