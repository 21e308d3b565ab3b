"""What sfroute costs where nobody is compared with: memory, start, idleness, and what must not grow with the cache.

python benchmarks/costs.py [--quick] [--only import|memory|growth|servers]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from contenders import NAMESPACE, SERVICE, key_of
from harness import Cost
from redis.cluster import RedisCluster

import sfroute
from sfroute._lookups.cache import Epoch, Flight, LookupCache
from sfroute._lookups.lane import Lane
from sfroute._net.connection import READ_BYTES
from sfroute.embedded import LocalCluster

__all__ = ["measure"]

MILLION = 1_000_000
BULK = 10_000


def measure(*, quick: bool = False, only: str = "") -> list[Cost]:
    """All of them; a quick run uses a tenth of the entries."""
    entries = MILLION // 10 if quick else MILLION
    found: list[Cost] = []
    chapters: dict[str, Callable[[], Iterator[Cost]]] = {
        "import": lambda: import_time(3 if quick else 9),
        "memory": lambda: memory(entries),
        "growth": lambda: growth(entries, 3 if quick else 7),
        "servers": lambda: with_servers(quick=quick, entries=entries),
    }
    for name, chapter in chapters.items():
        if only in ("", name):
            for cost in chapter():
                found.append(cost)
                print("  ".join(cost.row()), file=sys.stderr, flush=True)
    return found


# Without a server


def import_time(rounds: int) -> Iterator[Cost]:
    """In fresh interpreters, after what sfroute builds on."""
    program = (
        "import sys, time, asyncio, redis.asyncio.cluster, redis.cluster, opentelemetry.trace, opentelemetry.metrics\n"
        "began = time.perf_counter()\n"
        "import sfroute\n"
        "print(1000 * (time.perf_counter() - began))"
    )
    samples = [
        float(
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
        )
        for _ in range(rounds)
    ]
    yield Cost.of("import sfroute, after redis and opentelemetry", samples, "ms", 60)


def uid_of(number: int) -> str:
    """A uid of 20 characters."""
    return f"user-{number:015d}"


def fill(cache: LookupCache, lane: Lane, first: int, count: int) -> None:
    """Entries as lookups leave them behind: every string of a key but namespace and service is its own."""
    now = time.monotonic()
    epoch = lane.epoch
    for number in range(first, first + count):
        flight = cache.open(Flight((NAMESPACE, uid_of(number), SERVICE), now + 5))
        cache.land(flight, number % 7, None, now, epoch, storable=True)


def memory(entries: int) -> Iterator[Cost]:
    """In an interpreter of its own, by tracemalloc."""
    program = f"import costs; costs.print_memory({entries})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        env={"PYTHONPATH": sys.path[0]},
    )
    yield Cost.of(
        f"memory of a cached link, 20-character uid, {entries:,} entries",
        [float(done.stdout)],
        "bytes",
        400,
    )


def print_memory(entries: int) -> None:
    """For ``memory``."""
    config = sfroute.CacheConfig(max_entries=entries)
    cache = LookupCache(config, time.monotonic)
    epoch = Epoch(3600.0, 1e12)
    now = time.monotonic()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(entries):
        flight = cache.open(Flight((NAMESPACE, uid_of(number), SERVICE), now + 5))
        # Each answer has its own time, as in life.
        cache.land(flight, number % 7, None, now + number * 1e-6, epoch, storable=True)
    gc.collect()
    print((tracemalloc.get_traced_memory()[0] - before) / entries)


def growth(entries: int, rounds: int) -> Iterator[Cost]:
    """A hit among few and among many; the same uids, and any of them."""
    sizes = [1000, entries]
    routers: dict[int, sfroute.AsyncRouter] = {}
    for size in sizes:
        config = sfroute.RouterConfig(cache=sfroute.CacheConfig(max_entries=size + 1))
        router = sfroute.AsyncRouter.from_url("redis+cluster://127.0.0.1:1", config=config)
        cache = router._inside.engine.cache
        epoch = Epoch(3600.0, 1e12)
        now = time.monotonic()
        for number in range(size):
            flight = cache.open(Flight((NAMESPACE, uid_of(number), SERVICE), now + 5))
            cache.land(flight, number % 7, None, now, epoch, storable=True)
        routers[size] = router
    gc.collect()
    gc.freeze()

    async def timed(router: sfroute.AsyncRouter, uids: list[str]) -> float:
        get = router.get_linked_pod
        began = time.perf_counter()
        for uid in uids:
            await get(NAMESPACE, uid, SERVICE)
        return (time.perf_counter() - began) / len(uids)

    plain = {
        size: {(NAMESPACE, uid_of(number), SERVICE): number for number in range(size)}
        for size in sizes
    }

    def in_dict(size: int, uids: list[str]) -> float:
        find = plain[size].get
        began = time.perf_counter()
        for uid in uids:
            find((NAMESPACE, uid, SERVICE))
        return (time.perf_counter() - began) / len(uids)

    loop = asyncio.new_event_loop()
    # Those entered last lie together in memory, as the uids of one gateway's last seconds do. Others have to be
    # fetched from all over it, which a plain dict feels more than we do.
    for label, last, spread in (
        ("the 1,000 uids entered last", 1000, 1000),
        ("any 1,000 uids, again and again", entries, 1000),
        ("any uid", entries, 50_000),
    ):
        ratios, nanoseconds, of_dict = [], [], []
        for _ in range(rounds + 1):
            took, took_dict = {}, {}
            for size in sizes:
                pool = random.sample(range(max(0, size - last), size), min(spread, size))
                uids = [uid_of(number) for number in pool]
                uids *= max(1, 50_000 // len(uids))
                loop.run_until_complete(timed(routers[size], uids[: len(pool)]))
                took[size] = loop.run_until_complete(timed(routers[size], uids))
                in_dict(size, uids[: len(pool)])
                took_dict[size] = in_dict(size, uids)
            ratios.append(took[entries] / took[1000])
            nanoseconds.append(took[entries] * 1e9)
            of_dict.append(took_dict[entries] / took_dict[1000])
        mark = 1.3 if last == 1000 else None
        yield Cost.of(f"hit of {label}, {entries:,} entries", nanoseconds[1:], "ns")
        yield Cost.of(f"hit of {label}, {entries:,} entries to 1,000", ratios[1:], "x", mark)
        yield Cost.of(f"the same in a plain dict, {label}", of_dict[1:], "x")
    loop.close()
    gc.unfreeze()


# With servers


def with_servers(*, quick: bool, entries: int) -> Iterator[Cost]:
    """What needs lanes."""
    rounds = 3 if quick else 9
    with LocalCluster(3, 0) as cluster:
        host, port = cluster.startup_nodes[0]
        yield from opening(cluster.url, rounds)
        yield from idleness(cluster.url, 1.0 if quick else 5.0)
        yield from asyncio.run(bulk_invalidation(cluster.url, entries, rounds))
        yield from blocking(cluster.url, [host, str(port)], entries, rounds)


def opening(url: str, rounds: int) -> Iterator[Cost]:
    """Both fronts."""
    samples: dict[str, list[float]] = {}

    async def task() -> None:
        began = time.perf_counter()
        router = sfroute.AsyncRouter.from_url(url)
        await router.open()
        opened = time.perf_counter()
        await router.aclose()
        closed = time.perf_counter()
        samples.setdefault("open an AsyncRouter", []).append(1000 * (opened - began))
        samples.setdefault("close an AsyncRouter", []).append(1000 * (closed - opened))

    for _ in range(rounds + 1):
        asyncio.run(task())
        began = time.perf_counter()
        router = sfroute.Router.from_url(url)
        router.open()
        opened = time.perf_counter()
        router.close()
        closed = time.perf_counter()
        samples.setdefault("open a Router", []).append(1000 * (opened - began))
        samples.setdefault("close a Router", []).append(1000 * (closed - opened))
    for what, times in samples.items():
        yield Cost.of(what, times[1:], "ms", 50)


def idleness(url: str, seconds: float) -> Iterator[Cost]:
    """Three lanes up and nothing to do."""
    with sfroute.Router.from_url(url) as router:
        for number in range(50):
            router.get_linked_pod(NAMESPACE, uid_of(number), SERVICE)
        began = time.process_time()
        time.sleep(seconds)
        share = 100 * (time.process_time() - began) / seconds
    yield Cost.of("CPU of an idle Router with three lanes", [share], "%", 1)


class Turns:
    """How long the longest turn of an event loop took, in CPU time: what others on the machine take is not ours."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.longest = 0.0
        self._last = 0.0
        self._handle: asyncio.Handle | None = None

    def __enter__(self) -> Turns:
        self.longest, self._last = 0.0, time.thread_time()
        self._handle = self._loop.call_soon(self._turn)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._handle is not None
        self._handle.cancel()

    def _turn(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self._handle = self._loop.call_soon(self._turn)


async def _router(url: str, entries: int) -> sfroute.AsyncRouter:
    # Filling the cache by hand takes seconds, in which no heartbeat is answered: the lanes must outlast that.
    config = sfroute.RouterConfig(
        cache=sfroute.CacheConfig(
            max_entries=entries, max_age=3600, heartbeat=60, heartbeat_timeout=3600
        )
    )
    router = sfroute.AsyncRouter.from_url(url, config=config)
    await router.open()
    await router.batch_get_linked_pod(NAMESPACE, [uid_of(number) for number in range(50)], SERVICE)
    return router


def _lanes(router: sfroute.AsyncRouter) -> list[Lane]:
    parts = router._inside.engine.parts
    assert parts is not None
    return list(parts.dispatch.lanes)


def bulk_uid(number: int) -> str:
    """One of those that are changed together."""
    return f"bulk-{number:015d}"


def change_all(host: str, port: str) -> None:
    """Write all of them, as fast as that goes, for every line on stdin."""
    client = RedisCluster(host=host, port=int(port))
    for _ in sys.stdin:
        pipe: Any = client.pipeline()  # type: ignore[no-untyped-call]
        for number in range(BULK):
            pipe.set(key_of(bulk_uid(number)), number)
        pipe.execute()
    client.close()


async def bulk_invalidation(url: str, entries: int, rounds: int) -> list[Cost]:
    """The pushes of 1,000 changed links, as the server words them, through the lane's own parser."""
    router = await _router(url, entries + 1)
    lane = _lanes(router)[0]
    cache = router._inside.engine.cache
    fill(cache, lane, 1000, entries - 1000)
    gc.collect()
    gc.freeze()
    samples = []
    for _ in range(rounds):
        numbers = random.sample(range(1000, entries), 1000)
        keys = [key_of(uid_of(number)).encode() for number in numbers]
        pushes = b"".join(
            b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%b\r\n" % (len(key), key) for key in keys
        )
        before = cache.counts.dropped
        connection = lane.channel.connection
        assert connection is not None
        began = time.thread_time()
        for start in range(0, len(pushes), READ_BYTES):
            connection.data_received(pushes[start : start + READ_BYTES])
        samples.append(1000 * (time.thread_time() - began))
        assert cache.counts.dropped - before == 1000
        for number in numbers:
            fill(cache, lane, number, 1)
    gc.unfreeze()
    await router.aclose()
    return [Cost.of(f"invalidating 1,000 of {entries:,} entries", samples, "ms", 5)]


class Big:
    """What may keep an event loop busy for long, one method each."""

    def __init__(self, router: sfroute.AsyncRouter, changing: subprocess.Popen[bytes]) -> None:
        self._router = router
        self._changing = changing
        self._cold = iter(range(10**9))

    async def ask_all(self) -> None:
        """Have all that will be changed in the cache."""
        uids = [bulk_uid(number) for number in range(BULK)]
        await self._router.batch_get_linked_pod(NAMESPACE, uids, SERVICE)

    async def pushes(self) -> None:
        """Another process changes all of them: a thread would hold the interpreter, and that would be measured."""
        counts = self._router._inside.engine.cache.counts
        before = counts.invalidations
        assert self._changing.stdin is not None
        self._changing.stdin.write(b"now\n")
        self._changing.stdin.flush()
        async with asyncio.timeout(30):
            await self._all_pushed(before)

    async def _all_pushed(self, before: int) -> None:
        counts = self._router._inside.engine.cache.counts
        while counts.invalidations - before < BULK:  # noqa: ASYNC110 - every turn is looked at
            await asyncio.sleep(0)

    async def topology(self) -> None:
        """Ask for the slot map."""
        parts = self._router._inside.engine.parts
        assert parts is not None
        await parts.topology.refresh()

    async def flushed(self) -> None:
        """The server says that everything has changed."""
        _lanes(self._router)[0].on_push([b"invalidate", None])

    def _cold_uid(self) -> str:
        return f"cold-{next(self._cold):015d}"

    async def batch(self) -> None:
        """One call."""
        uids = [self._cold_uid() for _ in range(1000)]
        await self._router.batch_get_linked_pod(NAMESPACE, uids, SERVICE)

    async def crowd(self) -> None:
        """A thousand calls."""
        get = self._router.get_linked_pod
        await asyncio.gather(*(get(NAMESPACE, self._cold_uid(), SERVICE) for _ in range(1000)))


async def _longest(work: Callable[[], Coroutine[Any, Any, None]]) -> float:
    with Turns() as turns:
        await asyncio.sleep(0)
        await work()
        await asyncio.sleep(0)
    return 1000 * turns.longest


def blocking(url: str, address: list[str], entries: int, rounds: int) -> Iterator[Cost]:
    """The longest turn of the event loop while something big happens."""
    changing = subprocess.Popen(
        [sys.executable, "-c", "import costs, sys; costs.change_all(*sys.argv[1:])", *address],
        env={"PYTHONPATH": sys.path[0]},
        stdin=subprocess.PIPE,
    )
    yield from asyncio.run(_blocking(url, changing, entries, rounds))
    assert changing.stdin is not None
    changing.stdin.close()
    changing.wait()


async def _blocking(
    url: str, changing: subprocess.Popen[bytes], entries: int, rounds: int
) -> list[Cost]:
    router = await _router(url, entries)
    cache, big = router._inside.engine.cache, Big(router, changing)
    await big.ask_all()
    fill(cache, _lanes(router)[0], 0, entries - len(cache.entries))
    gc.collect()
    gc.freeze()
    full = f"with {entries:,} entries, as many as may be"
    works = {
        f"the pushes of {BULK:,} changed links": big.pushes,
        "a change of everything (FLUSHALL)": big.flushed,
        "learning the slot map anew": big.topology,
        f"a batch of 1,000 cold uids, {full}": big.batch,
        f"1,000 cold calls in one turn, the callers' own work included, {full}": big.crowd,
    }
    samples: dict[str, list[float]] = {what: [] for what in works}
    for _ in range(rounds):
        await big.ask_all()
        for what, work in works.items():
            samples[what].append(await _longest(work))
    evicting = list(_evictions(cache, _lanes(router)[0], rounds))
    gc.unfreeze()
    await router.aclose()
    costs = [
        Cost.of(f"longest turn: {what}", times, "ms", None if "callers" in what else 5)
        for what, times in samples.items()
    ]
    return [*costs, Cost.of(f"one eviction, {full}", evicting, "ms", 5)]


def _evictions(cache: LookupCache, lane: Lane, rounds: int) -> Iterator[float]:
    """Milliseconds of those entries that had to have room made for them."""
    number = 10**10
    for _ in range(rounds):
        evictions, took = cache.entries.evictions, 0.0
        while cache.entries.evictions == evictions:
            number += 1
            began = time.thread_time()
            fill(cache, lane, number, 1)
            took = 1000 * (time.thread_time() - began)
        yield took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the entries, few rounds")
    parser.add_argument("--only", default="", help="import, memory, growth or servers")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = measure(quick=options.quick, only=options.only)
    if options.json:
        print(json.dumps([cost.as_json() for cost in found], indent=1))


if __name__ == "__main__":
    main()
