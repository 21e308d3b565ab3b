"""Gateways against a real cluster, in processes of their own: what the model predicts of them, and what they did."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from bisect import bisect
from collections.abc import Coroutine
from dataclasses import asdict, replace
from itertools import accumulate
from typing import Any

from contenders import NAMESPACE, SERVICE
from fleet_model import Fleet, predict

import sfroute
from sfroute.embedded import LocalCluster

__all__ = ["check"]

CREWS = 2


def check(fleet: Fleet, seconds: float, settle: float) -> list[tuple[str, ...]]:
    """Gateways, each a router with lanes of its own, against a real cluster; measured and predicted."""
    with LocalCluster(fleet.primaries, 0) as cluster:
        order = json.dumps([asdict(fleet), CREWS, seconds, settle, cluster.url])
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(number), order],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(CREWS)
        ]
        results: list[dict[str, float]] = []
        for process in processes:
            assert process.stdout is not None
            results.append(json.loads(process.stdout.readline()))
        # Before they leave, and take their part of the table with them.
        stats = [node.info("stats") for node in cluster.nodes]
        for process in processes:
            process.communicate(timeout=60)
    measured = {what: sum(result[what] for result in results) for what in results[0]}
    pairs = sum(int(each["tracking_total_items"]) for each in stats)
    keys = sum(int(each["tracking_total_keys"]) for each in stats)
    # What was asked of the machine and what it did may differ: the model is told what it did.
    done = replace(fleet, rate=measured["requests"], changes=measured["changes"])
    load = predict(done, since=settle, until=seconds)
    primaries = fleet.primaries
    title = f"{'sticky' if fleet.sticky else 'any gateway'}, {measured['requests']:,.0f} requests/s"
    return [
        _row(f"{title}: lookups/s", load.look_ups * primaries, measured["look_ups"]),
        _row(f"{title}: pushes/s", load.pushes * primaries, measured["pushes"]),
        _row(f"{title}: keys in the tracking tables", load.tracked_keys * primaries, keys),
        _row(f"{title}: pairs of key and gateway", load.tracked_pairs * primaries, pairs),
    ]


def _row(what: str, predicted: float, measured: float) -> tuple[str, ...]:
    off = measured / predicted - 1 if predicted else 0.0
    return what, f"{predicted:,.0f}", f"{measured:,.0f}", f"{off:+.0%}"


class Crew:
    """Some of the gateways, in one process."""

    def __init__(self, number: int, crews: int, fleet: Fleet, url: str) -> None:
        self._fleet = fleet
        self._chance = random.Random(number)
        self._mine = range(number, fleet.gateways, crews)
        self._weights = list(
            accumulate((rank + 1) ** -fleet.exponent for rank in range(fleet.uids))
        )
        config = sfroute.RouterConfig(cache=sfroute.CacheConfig(max_age=fleet.max_age))
        self._routers = {
            each: sfroute.AsyncRouter.from_url(url, config=config) for each in self._mine
        }
        # Links are changed by somebody else, a pod say: its own writes would be known without a push.
        self._pod = sfroute.AsyncRouter.from_url(url, config=config)
        self._under_way: set[asyncio.Task[object]] = set()
        self._requests = self._changes = 0

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def _request(self) -> None:
        uid = bisect(self._weights, self._chance.random() * self._weights[-1])
        gateway = (
            uid % self._fleet.gateways if self._fleet.sticky else self._chance.choice(self._mine)
        )
        if gateway in self._routers:  # the other crews draw the same, and see to theirs
            self._requests += 1
            self._begin(self._routers[gateway].get_linked_pod(NAMESPACE, f"uid-{uid}", SERVICE))

    def _change(self) -> None:
        self._changes += 1
        uid, pod = self._chance.randrange(self._fleet.uids), self._chance.randrange(100)
        self._begin(self._pod.set_linked_pod(NAMESPACE, f"uid-{uid}", SERVICE, pod))

    def _counted(self) -> dict[str, float]:
        caches = [router.stats().cache for router in self._routers.values()]
        return {
            "requests": self._requests,
            "changes": self._changes,
            "look_ups": sum(cache.misses for cache in caches),
            "pushes": sum(cache.invalidations for cache in caches),
        }

    async def run(self, seconds: float, settle: float) -> dict[str, float]:
        """Send requests for ``seconds``; what was counted after ``settle``, a second."""
        await asyncio.gather(*(router.open() for router in (*self._routers.values(), self._pod)))
        share = len(self._routers) / self._fleet.gateways
        request_rate = self._fleet.rate * (1 if self._fleet.sticky else share)
        due_request = due_change = started = time.monotonic()
        before: dict[str, float] = {}
        counted_at = 0.0
        while (now := time.monotonic()) < started + seconds:
            if not before and now >= started + settle:
                before, counted_at = self._counted(), now
            while due_request <= now:
                due_request += self._chance.expovariate(request_rate)
                self._request()
            while due_change <= now:
                due_change += self._chance.expovariate(self._fleet.changes * share)
                self._change()
            await asyncio.sleep(0.002)
        after, took = self._counted(), time.monotonic() - counted_at
        return {what: (after[what] - before[what]) / took for what in after}

    async def close(self) -> None:
        """End all routers."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        for router in (*self._routers.values(), self._pod):
            await router.aclose()


async def run_crew(number: int, order: str) -> None:
    """A crew's process: it prints what it counted, and keeps its connections until its stdin ends."""
    described, crews, seconds, settle, url = json.loads(order)
    crew = Crew(number, crews, Fleet(**described), url)
    print(json.dumps(await crew.run(seconds, settle)), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await crew.close()


if __name__ == "__main__":
    crew = argparse.ArgumentParser(description="One crew of gateways, begun by `check`.")
    crew.add_argument("number", type=int)
    crew.add_argument("order")
    options = crew.parse_args()
    asyncio.run(run_crew(options.number, options.order))
