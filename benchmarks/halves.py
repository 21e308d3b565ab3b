"""Lookups with the native part and with the pure code: processor time of the client, on one cluster.

    python benchmarks/halves.py [--rounds 9]

Each half runs in processes of its own, which take turns, since the choice is made at import. Processor time is less
disturbed by what else the machine does than the clock; ratios of runs side by side even less.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable

from harness import Cost, machine

import sfroute
from sfroute._native import heart
from sfroute.embedded import LocalCluster

NAMESPACE, SERVICE = "bench", "chat"
REPEATS = 8
TOGETHER = 1000
HALVES = {"pure": "1", "native": "0"}


# What is looked up is never there, and nothing ends meanwhile.
CONFIG = sfroute.RouterConfig(cache=sfroute.CacheConfig(max_entries=20_000, max_age=600))
NUMBERS = itertools.count()
RUN = time.time_ns()


def fresh_uid() -> str:
    """One that nobody has asked for."""
    return f"h-{RUN}-{next(NUMBERS):09d}"


async def measured(url: str) -> dict[str, float]:
    """Work -> microseconds of the processor for one lookup."""
    async with sfroute.AsyncRouter.from_url(url, config=CONFIG) as router:

        async def misses(at_once: int) -> None:
            async def one() -> None:
                for _ in range(TOGETHER // at_once):
                    await router.get_linked_pod(NAMESPACE, fresh_uid(), SERVICE)

            await asyncio.gather(*(one() for _ in range(at_once)))

        async def batch() -> None:
            uids = [fresh_uid() for _ in range(TOGETHER)]
            await router.batch_get_linked_pod(NAMESPACE, uids, SERVICE)

        async def hits() -> None:
            get = router.get_linked_pod
            for _ in range(TOGETHER):
                await get(NAMESPACE, run_hot, SERVICE)

        run_hot = fresh_uid()
        works: dict[str, Callable[[], Awaitable[None]]] = {
            "async hit": hits,
            "async miss, 100 at a time": lambda: misses(100),
            "async miss, 10 at a time": lambda: misses(10),
            "async miss, 1 at a time": lambda: misses(1),
            "async batch of 1,000": batch,
        }
        found = {}
        for name, work in works.items():
            await work()
            began = time.process_time()
            for _ in range(REPEATS):
                await work()
            found[name] = (time.process_time() - began) / REPEATS / TOGETHER * 1e6
        return found


def measured_in_threads(url: str) -> dict[str, float]:
    """The same for threads: of all threads of the process together."""
    with sfroute.Router.from_url(url, config=CONFIG) as router:

        def ask(lookups: int) -> None:
            for _ in range(lookups):
                router.get_linked_pod(NAMESPACE, fresh_uid(), SERVICE)

        def misses(threads: int) -> None:
            crew = [
                threading.Thread(target=ask, args=(TOGETHER // threads,)) for _ in range(threads)
            ]
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join()

        found = {}
        for threads in (1, 4, 16):
            for _ in range(REPEATS):
                misses(threads)
            began = time.process_time()
            for _ in range(REPEATS):
                misses(threads)
            lookups = REPEATS * (TOGETHER // threads) * threads
            name = f"sync miss, {threads} {'thread' if threads == 1 else 'threads'}"
            found[name] = (time.process_time() - began) / lookups * 1e6
        return found


def in_turns(url: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Work -> half -> what each round took."""
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for half, switch in HALVES.items():
            done = subprocess.run(
                [sys.executable, __file__, "--url", url],
                env={**os.environ, "SFROUTE_PURE": switch},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            for work, micros in json.loads(done.stdout).items():
                found.setdefault(work, {}).setdefault(half, []).append(micros)
    return found


def measure(*, quick: bool) -> list[Cost]:
    """What the native part saves. It is not there without a compiler; then there is nothing to compare."""
    if heart is None:
        return []
    with LocalCluster(3, 0) as cluster:
        found = in_turns(cluster.url, 1 if quick else 5)
    made = []
    for work, halves in found.items():
        made += [
            Cost.of(f"{work}, processor time of the {half} half", halves[half], "us")
            for half in HALVES
        ]
        shares = [
            native / pure for pure, native in zip(halves["pure"], halves["native"], strict=True)
        ]
        made.append(Cost.of(f"{work}, native to pure", shares, "x"))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9, help="processes of each half")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.url:
        print(json.dumps(asyncio.run(measured(options.url)) | measured_in_threads(options.url)))
        return
    with LocalCluster(3, 0) as cluster:
        found = in_turns(cluster.url, options.rounds)
    print(f"Machine: {machine('sfroute')}, at a load of {os.getloadavg()[0]:.0f}\n")
    print("| CPU of the client, each | pure | native | ratio |\n|---|---|---|---|")
    for work, halves in found.items():
        pure, native = (statistics.median(halves[half]) for half in HALVES)
        print(f"| {work} | {pure:.2f} us | {native:.2f} us | {native / pure:.2f} |")


if __name__ == "__main__":
    main()
