"""Where the time of a miss, a batch, a write and an invalidation goes, by module; and how many instructions they take.

    python benchmarks/profile_paths.py [--document] [--instructions]

The profile is cProfile's: it makes calls look dearer than they are, so its shares show where to look, and the
microseconds beside them are measured without it. Instructions are counted by valgrind (callgrind), where it is
installed: the same number every time, on a machine however busy. ``--document`` puts both into
docs/explanation/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import os
import pstats
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from contenders import NAMESPACE, SERVICE, key_of
from costs import fill, uid_of
from harness import machine
from report import markdown

import sfroute
from sfroute._lookups.cache import Epoch, Flight
from sfroute._net.connection import READ_BYTES
from sfroute.embedded import LocalCluster

DOCUMENT = Path(__file__).parent.parent / "docs" / "explanation" / "performance.md"
BEGIN = "<!-- Written by benchmarks/profile_paths.py --document -->"
END = "<!-- End of what it writes -->"
ROUNDS = 30
TOGETHER = 1000

Work = Callable[[], Coroutine[Any, Any, None]]


async def paths(router: sfroute.AsyncRouter) -> dict[str, Work]:
    """Name -> a thousand operations."""
    numbers = itertools.count()
    parts = router._inside.engine.parts
    assert parts is not None

    def fresh_uid() -> str:
        return f"p-{next(numbers):018d}"

    async def hit() -> None:
        for number in range(TOGETHER):
            await router.get_linked_pod(NAMESPACE, uid_of(number), SERVICE)

    async def in_tens(call: Callable[[str], Coroutine[Any, Any, object]]) -> None:
        async def one() -> None:
            for _ in range(TOGETHER // 100):
                await call(fresh_uid())

        await asyncio.gather(*(one() for _ in range(100)))

    async def miss() -> None:
        await in_tens(lambda uid: router.get_linked_pod(NAMESPACE, uid, SERVICE))

    async def batch() -> None:
        uids = [fresh_uid() for _ in range(TOGETHER)]
        await router.batch_get_linked_pod(NAMESPACE, uids, SERVICE)

    async def write() -> None:
        await in_tens(lambda uid: router.set_linked_pod(NAMESPACE, uid, SERVICE, 3))

    async def invalidation() -> None:
        lane = next(iter(parts.dispatch.lanes))
        fill(router._inside.engine.cache, lane, 10**6, TOGETHER)
        connection = lane.channel.connection
        assert connection is not None
        keys = [key_of(uid_of(10**6 + number)).encode() for number in range(TOGETHER)]
        pushes = b"".join(
            b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%b\r\n" % (len(key), key) for key in keys
        )
        for start in range(0, len(pushes), READ_BYTES):
            connection.data_received(pushes[start : start + READ_BYTES])

    await router.batch_get_linked_pod(NAMESPACE, [uid_of(n) for n in range(TOGETHER)], SERVICE)
    return {
        "hit": hit,
        "miss, 100 at a time": miss,
        "batch of 1,000": batch,
        "write, 100 at a time": write,
        "invalidation (and the filling before it)": invalidation,
    }


def module_of(path: str) -> str:
    """What a function of this file counts as."""
    if "/sfroute/" in path:
        return path.rpartition("/sfroute/")[2]
    for name in ("asyncio", "cachetools", "selectors"):
        if f"/{name}" in path:
            return name
    return "C functions" if path == "~" else "else"


def by_module(profile: cProfile.Profile, operations: int) -> tuple[dict[str, float], float]:
    """Module -> share of the time spent in it; calls of one operation."""
    shares: dict[str, float] = defaultdict(float)
    calls = 0
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (path, _, _), (_, count, own, _, _) in stats.items():
        shares[module_of(path)] += own
        calls += count
    total = sum(shares.values())
    return {module: own / total for module, own in shares.items()}, calls / operations


async def profiled(url: str) -> list[tuple[str, ...]]:
    """A row for each path."""
    # What is hit must not end meanwhile.
    config = sfroute.RouterConfig(cache=sfroute.CacheConfig(max_entries=20_000, max_age=600))
    rows: list[tuple[str, ...]] = []
    async with sfroute.AsyncRouter.from_url(url, config=config) as router:
        for name, work in (await paths(router)).items():
            await work()
            began = time.thread_time()
            for _ in range(ROUNDS):
                await work()
            micros = (time.thread_time() - began) / ROUNDS / TOGETHER * 1e6
            profile = cProfile.Profile()
            profile.enable()
            for _ in range(ROUNDS // 3):
                await work()
            profile.disable()
            shares, calls = by_module(profile, ROUNDS // 3 * TOGETHER)
            top = sorted(shares.items(), key=lambda pair: -pair[1])[:7]
            text = ", ".join(f"{module} {share:.0%}" for module, share in top)
            rows.append((name, f"{micros:.2f} us", f"{calls:.0f}", text))
    return rows


# Instructions


def offline(path: str, operations: int) -> None:
    """A path that needs no server, so many times; for callgrind."""
    config = sfroute.RouterConfig(cache=sfroute.CacheConfig(max_entries=100_000))
    router = sfroute.AsyncRouter.from_url("redis+cluster://127.0.0.1:1", config=config)
    cache, epoch = router._inside.engine.cache, Epoch(3600.0, 1e12)
    now = time.monotonic()
    keys = [(NAMESPACE, uid_of(number), SERVICE) for number in range(1000)]

    def store(key: tuple[str, str, str]) -> None:
        cache.land(cache.open(Flight(key, now + 5)), 1, None, now, epoch, storable=True)

    for key in keys:
        store(key)

    async def hits() -> None:
        get = router.get_linked_pod
        for number in range(operations):
            await get(*keys[number % 1000])

    if path == "hit":
        asyncio.run(hits())
    elif path == "store":
        for number in range(operations):
            store(keys[number % 1000])
    else:
        for number in range(operations):
            cache.invalidated(keys[number % 1000])


def instructions(paths: Sequence[str]) -> Iterator[int]:
    """Of one operation of each path: what many take beyond none, so that start and end do not count."""

    def count(path: str, operations: int) -> int:
        program = f"import profile_paths; profile_paths.offline({path!r}, {operations})"
        tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        done = subprocess.run(
            [*tool, sys.executable, "-c", program],
            env={"PYTHONPATH": sys.path[0], "PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found is not None, done.stderr
        return int(found[1])

    many = 20_000
    # What is compiled once is compiled before anything is counted.
    subprocess.run([sys.executable, "-c", "import profile_paths"], cwd=sys.path[0], check=True)
    none = count(paths[0], 0)
    for path in paths:
        yield round((count(path, many) - none) / many)


def tables(*, counted: bool) -> Iterator[str]:
    """Both."""
    yield f"Machine: {machine('sfroute')}"
    yield ""
    with LocalCluster(3, 0) as cluster:
        rows = asyncio.run(profiled(cluster.url))
    yield from markdown(("one", "CPU of the client", "calls", "where (by cProfile)"), rows)
    if counted and shutil.which("valgrind"):
        yield ""
        names = {
            "hit": "hit of an AsyncRouter, and the loop around it",
            "store": "an answer stored (flight opened and landed)",
            "invalidation": "an invalidation, of an entry that has gone already",
        }
        counts = instructions(list(names))
        rows = [(name, f"{count:,}") for name, count in zip(names.values(), counts, strict=True)]
        yield from markdown(("without any I/O", "instructions"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--document", action="store_true", help="write the document")
    parser.add_argument("--instructions", action="store_true", help="count them; a minute more")
    options = parser.parse_args()
    found = "\n".join(tables(counted=options.instructions or options.document))
    print(found)
    if options.document:
        head, _, rest = DOCUMENT.read_text().partition(BEGIN)
        _, _, tail = rest.partition(END)
        DOCUMENT.write_text(f"{head}{BEGIN}\n\n{found}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
