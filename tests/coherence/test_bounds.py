"""The cache is bounded by count, and only a monotonic clock counts."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from math import inf
from pathlib import Path

import pytest

import sfroute
from sfroute import CacheConfig
from sfroute._lookups.cache import Epoch, Flight, LookupCache
from sfroute.embedded import LocalServer

PACKAGE = Path(sfroute.__file__).parent


def memory() -> int:
    """Bytes this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("max_entries", [1, 63, 10_000])
def test_a_million_uids_leave_max_entries(max_entries: int) -> None:
    uids = 1_000_000 if max_entries == 10_000 else 20_000
    cache = LookupCache(CacheConfig(max_entries=max_entries), lambda: 0.0)
    epoch = Epoch(1.0, inf)
    half = 0
    for number in range(uids):
        if number == uids // 2:
            half = memory()
        flight = cache.open(Flight(("sf", f"uid-{number:020}", "chat"), inf))
        cache.land(flight, number, None, 0.0, epoch, storable=True)
        if number % 1000 == 0:
            assert len(cache.entries) <= max_entries
    entries = len(cache.entries)
    assert max_entries * 0.9 <= entries <= max_entries or max_entries == 1 == entries
    assert cache.entries.evictions == uids - entries
    # Those that stay are the newest ones.
    assert set(cache.entries) == {
        ("sf", f"uid-{number:020}", "chat") for number in range(uids - entries, uids)
    }
    assert memory() - half < 8 * 2**20


def test_absent_links_and_services_count_too() -> None:
    cache = LookupCache(CacheConfig(max_entries=100), lambda: 0.0)
    epoch = Epoch(1.0, inf)
    for number in range(10_000):
        for key in (("sf", str(number), "chat"), ("sf", str(number))):
            cache.land(cache.open(Flight(key, inf)), None, None, 0.0, epoch, storable=True)
    assert len(cache.entries) <= 100


def test_own_writes_that_nobody_pushes_do_not_pile_up() -> None:
    cache = LookupCache(CacheConfig(), lambda: 0.0)
    epoch = Epoch(1.0, inf)
    before = memory()
    for number in range(100_000):
        key = ("sf", f"uid-{number:020}", "chat")
        cache.land(cache.open(Flight(key, inf)), 1, None, 0.0, epoch, storable=True)
        cache.write_begins(key)
    assert len(cache.entries) == 0
    assert memory() - before < 4 * 2**20


class TestClock:
    WALL_CLOCKS = frozenset(
        {"time.time", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    )

    def test_nothing_reads_the_wall_clock_but_telemetry(self) -> None:
        """``time_ns`` stamps spans, whose times are wall-clock times by specification; it decides nothing."""
        readers: set[str] = set()
        for path in PACKAGE.rglob("*.py"):
            name = path.relative_to(PACKAGE).as_posix()
            if name.startswith("cli/"):
                continue  # it shows people the time
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    dotted = ast.unparse(node)
                    assert not any(dotted.endswith(f"{c}") for c in self.WALL_CLOCKS), name
                if isinstance(node, ast.ImportFrom) and node.module == "time":
                    imported = {alias.name for alias in node.names}
                    assert "time" not in imported, name
                    if "time_ns" in imported:
                        readers.add(name)
                if isinstance(node, ast.Compare):
                    assert "time_ns" not in ast.unparse(node), name
        for name in readers - {"telemetry/records.py"}:
            # What they read is handed to telemetry, under the names of its arguments.
            for line in (PACKAGE / name).read_text().splitlines():
                if "time_ns()" in line:
                    assert "started" in line or "_unreported_since" in line, (name, line)

    @pytest.mark.slow
    def test_a_jump_of_the_wall_clock_changes_nothing(self, some_server: LocalServer) -> None:
        """In a process whose wall clock leaps by a day at each reading, to and fro."""
        program = textwrap.dedent(
            """
            import asyncio, datetime, itertools, sys, time

            real, leaps = time.time, itertools.cycle([86400.0, -86400.0, 3.0e9, -1.0e9])
            time.time = lambda: real() + next(leaps)
            time.time_ns = lambda: int(time.time() * 1e9)

            from sfroute import AsyncRouter, CacheConfig, RouterConfig, Router

            config = RouterConfig(cache=CacheConfig(max_age=3.0, heartbeat=0.2, heartbeat_timeout=2.0))
            uid = ("clock", "ada", "chat")

            async def main():
                async with AsyncRouter.from_url(sys.argv[1], config=config) as router:
                    await router.set_linked_pod(*uid, 7)
                    await router.get_linked_pod(*uid)
                    began, asked = time.monotonic(), 0
                    while time.monotonic() < began + 0.4:
                        assert await router.get_linked_pod(*uid) == 7
                        asked += 1
                        await asyncio.sleep(0.005)
                    cache, (lane,) = router.stats().cache, router.stats().lanes
                    assert cache.hits == asked and cache.misses == 1, cache
                    assert lane.healthy and lane.tracked and lane.reconnects == 0
                    await asyncio.sleep(began + 3.05 - time.monotonic())
                    assert await router.get_linked_pod(*uid) == 7
                    assert router.stats().cache.misses == 2
                    await router.set_linked_pod(*uid, 8, 3)
                    assert await router.get_linked_pod(*uid) == 8
                    await asyncio.sleep(3.01)
                    assert await router.get_linked_pod(*uid) is None

            asyncio.run(main())
            with Router.from_url(sys.argv[1], config=config) as router:
                router.set_linked_pod(*uid, 9)
                assert [router.get_linked_pod(*uid) for _ in range(100)] == [9] * 100
                assert router.stats().cache.hits == 99
            """
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, some_server.url],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
