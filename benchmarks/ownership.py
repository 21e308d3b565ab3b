"""What a pod's claims cost: `python benchmarks/ownership.py [--quick]`; a part of the suite.

On three primaries of this machine: the time of `accept` beside that of the one script that made a link persistent
before there were claims; the memory of a claim; the time in which all are confirmed after every lane was lost; the
processor time of a pod that idles with all of them; and `owns`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import time
import timeit
import tracemalloc

from harness import Cost

from sfroute import AsyncPodAgent, AsyncRouter
from sfroute._contract.keys import link_key, link_prefix, operation_key
from sfroute.embedded import LocalCluster

__all__ = ["measure"]

NAMESPACE, SERVICE, POD = "bench", "game", 3
TOGETHER = 100
CLAIMS = 100_000


def measure(*, quick: bool = False) -> list[Cost]:
    """All of them; a quick run has a tenth of the claims."""
    found: list[Cost] = []
    asyncio.run(_measure(found, CLAIMS // 10 if quick else CLAIMS, quick=quick))
    return found


def place(router: AsyncRouter, uid: str) -> object:
    """What `accept` sent before there were claims."""
    keys = [link_key(NAMESPACE, uid, SERVICE), link_prefix(NAMESPACE, uid)]
    keys.append(operation_key(NAMESPACE, uid, f"t{uid}"))
    args: list[str | bytes | int] = [SERVICE, -1, "claim", 11_000, 0, POD]
    return router.execute_script("statefulComputeLinkIfAbsent", keys, args)


async def timed(calls: list[object]) -> float:
    """Microseconds for each, `TOGETHER` at a time."""
    began = time.perf_counter()
    for start in range(0, len(calls), TOGETHER):
        await asyncio.gather(*calls[start : start + TOGETHER])  # type: ignore[call-overload]
    return (time.perf_counter() - began) / len(calls) * 1e6


async def accepts(router: AsyncRouter, agent: AsyncPodAgent, rounds: int) -> list[Cost]:
    """Alone and together, the two by turns."""
    found = []
    for together, count in ((1, 200), (TOGETHER, 2000)):
        ratios = []
        for number in range(rounds):
            times = {}
            for kind in ("script", "accept"):
                uids = [f"{kind}{together}.{number}.{one}" for one in range(count)]
                make = agent.accept if kind == "accept" else lambda uid: place(router, uid)
                if together == 1:
                    began = time.perf_counter()
                    for uid in uids:
                        await make(uid)  # type: ignore[misc]
                    times[kind] = time.perf_counter() - began
                else:
                    times[kind] = await timed([make(uid) for uid in uids])
                if kind == "accept":
                    await timed([agent.release(uid) for uid in uids])
            ratios.append(times["accept"] / times["script"])
        what = f"`accept`, {together} at once, as a multiple of the script before it"
        found.append(Cost.of(what, ratios, "x", 1.3))
    return found


async def hold(agent: AsyncPodAgent, uids: list[str]) -> None:
    """Accept them all, and wait until the servers push the changes of each."""
    for start in range(0, len(uids), TOGETHER):
        await asyncio.gather(*map(agent.accept, uids[start : start + TOGETHER]))
    while any(held.stretch is None for held in agent._ownership.table):  # noqa: ASYNC110 - the servers do not say
        await asyncio.sleep(0.05)


async def confirm_all(router: AsyncRouter, agent: AsyncPodAgent) -> float:
    """Seconds from the loss of every lane to the last confirmation."""
    confirmer = agent._ownership._confirmer
    assert confirmer is not None
    before, wanted = confirmer.confirmations, len(agent._ownership.table)
    parts = await router._inside.engine.opened()
    began = time.perf_counter()
    for lane in parts.dispatch.lanes:
        if lane.channel.connection is not None:
            lane.channel.connection.abort()
    while confirmer.confirmations - before < wanted:  # noqa: ASYNC110 - nobody else wants to know
        await asyncio.sleep(0.01)
    return time.perf_counter() - began


async def idleness(seconds: float) -> float:
    """The share of a processor that this process uses meanwhile, in percent."""
    used, began = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    return 100 * (time.process_time() - used) / (time.perf_counter() - began)


def time_of_owns(agent: AsyncPodAgent, uid: str) -> list[float]:
    """Microseconds; short measurements, of which the best met nobody else on the machine."""
    owns = agent.owns
    assert owns(uid)
    empty = min(timeit.repeat(lambda: None, number=5000, repeat=50)) / 5000
    return [
        (min(timeit.repeat(lambda: owns(uid), number=5000, repeat=20)) / 5000 - empty) * 1e6
        for _ in range(5)
    ]


async def _measure(found: list[Cost], claims: int, *, quick: bool) -> None:
    def note(cost: Cost) -> None:
        found.append(cost)
        print("  ".join(cost.row()), file=sys.stderr, flush=True)

    with LocalCluster(3, 0) as cluster:
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, NAMESPACE, SERVICE, POD) as agent,
        ):
            for cost in await accepts(router, agent, 3 if quick else 9):
                note(cost)
            uids = [f"user{number}" for number in range(claims)]
            gc.collect()
            tracemalloc.start()
            base = tracemalloc.get_traced_memory()[0]
            await hold(agent, uids)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] - base
            tracemalloc.stop()
            with_claims = f"a pod with {claims:,} claims"
            note(Cost.of(f"{with_claims}: memory of each", [held / claims], "bytes", 600))
            note(Cost.of("`owns`", time_of_owns(agent, uids[claims // 2]), "us", 0.3))
            seconds = [await confirm_all(router, agent) for _ in range(3)]
            note(Cost.of(f"{with_claims}: all confirmed after each lane was lost", seconds, "s", 5))
            idle = [await idleness(2 if quick else 10) for _ in range(1 if quick else 3)]
            note(Cost.of(f"{with_claims}: idle", idle, "% of a core", 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer claims, shorter rounds")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    measure(quick=parser.parse_args().quick)
    print(f"load after: {os.getloadavg()[0]:.1f}")
