"""Hits: what an answer from the local cache costs, beside the caches a user would write."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable

import cachebox
import cachetools
from contenders import NAMESPACE, SERVICE, Sfroute, SfrouteSync
from harness import Comparison, Target
from setting import CONFIG, Setting

__all__ = ["comparisons"]

Call = Callable[[str, str, str], object]
REPEATS = 20
BY_HAND = "@cached(TTLCache, lock)"


def comparisons(setting: Setting) -> list[Comparison]:
    """Hits of 1,000 uids, by one thread, by 16, and in a coroutine."""
    uids = setting.population.take(1000)
    router = setting.opened_sync(SfrouteSync(CONFIG))
    assert isinstance(router, SfrouteSync)
    calls: dict[str, Call] = {**_by_hand(), "sfroute Router": router.router.get_linked_pod}
    does = {
        BY_HAND: "cachetools; the lock is needed, reading reorders",
        "@cachebox.cached(TTLCache)": "cachebox, Rust",
        "dict of (value, deadline)": "unbounded, nothing else: the limit of Python",
        "sfroute Router": "bounded, invalidated by the server, names checked",
    }
    return [
        Comparison(
            "sync hit, no SDK",
            BY_HAND,
            {name: _timed(call, uids) for name, call in calls.items()},
            does=does,
            target=Target("sfroute Router", 0.22, of_time=True),
            group="hits",
        ),
        Comparison(
            "sync hit, 16 threads, no SDK",
            BY_HAND,
            {name: _in_threads(call, uids, 16) for name, call in calls.items()},
            does=does,
            group="hits",
        ),
        _in_coroutine(setting, uids),
    ]


def _by_hand() -> dict[str, Call]:
    cache: cachetools.TTLCache[object, int] = cachetools.TTLCache(100_000, 3600)
    held: dict[tuple[str, str, str], tuple[int, float]] = {}

    @cachetools.cached(cache, lock=threading.Lock())
    def with_cachetools(namespace: str, uid: str, service: str) -> int:
        return 5

    def five(namespace: str, uid: str, service: str) -> int:
        return 5

    # Not as a decorator: where cachebox is not installed, it would take the types away from mypy.
    with_cachebox: Call = cachebox.cached(cachebox.TTLCache(100_000, global_ttl=3600))(five)

    def with_dict(namespace: str, uid: str, service: str) -> int:
        entry = held.get((namespace, uid, service))
        if entry is not None and entry[1] > time.monotonic():
            return entry[0]
        held[namespace, uid, service] = (5, time.monotonic() + 3600)
        return 5

    return {
        BY_HAND: with_cachetools,
        "@cachebox.cached(TTLCache)": with_cachebox,
        "dict of (value, deadline)": with_dict,
    }


def _timed(call: Call, uids: list[str]) -> Callable[[], float]:
    def work() -> float:
        for uid in uids:  # warm: an entry lives for seconds
            call(NAMESPACE, uid, SERVICE)
        began = time.perf_counter()
        for _ in range(REPEATS):
            for uid in uids:
                call(NAMESPACE, uid, SERVICE)
        return (time.perf_counter() - began) / (REPEATS * len(uids))

    return work


def _in_threads(call: Call, uids: list[str], threads: int) -> Callable[[], float]:
    def worker(start: threading.Barrier) -> None:
        start.wait()
        for _ in range(2):
            for uid in uids:
                call(NAMESPACE, uid, SERVICE)

    def work() -> float:
        for uid in uids:
            call(NAMESPACE, uid, SERVICE)
        start = threading.Barrier(threads + 1)
        crew = [threading.Thread(target=worker, args=(start,)) for _ in range(threads)]
        for thread in crew:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in crew:
            thread.join()
        return (time.perf_counter() - began) / (2 * len(uids) * threads)

    return work


def _in_coroutine(setting: Setting, uids: list[str]) -> Comparison:
    held: dict[tuple[str, str, str], tuple[int, float]] = {
        (NAMESPACE, uid, SERVICE): (5, time.monotonic() + 3600) for uid in uids
    }

    async def by_hand(namespace: str, uid: str, service: str) -> int | None:
        entry = held.get((namespace, uid, service))
        if entry is not None and entry[1] > time.monotonic():
            return entry[0]
        return None

    def timed(
        call: Callable[[str, str, str], Awaitable[object]], *, fast: bool = False
    ) -> Callable[[], float]:
        async def measure() -> float:
            for uid in uids:
                await call(NAMESPACE, uid, SERVICE)
            began = time.perf_counter()
            for _ in range(REPEATS):
                for uid in uids:
                    await call(NAMESPACE, uid, SERVICE)
            return (time.perf_counter() - began) / (REPEATS * len(uids))

        return lambda: setting.run(measure(), fast=fast)

    plain, fast = (setting.opened(Sfroute(CONFIG), fast=fast) for fast in (False, True))
    assert isinstance(plain, Sfroute)
    assert isinstance(fast, Sfroute)
    return Comparison(
        "async hit, no SDK",
        "dict in a coroutine",
        {
            "dict in a coroutine": timed(by_hand),
            "sfroute AsyncRouter": timed(plain.router.get_linked_pod),
            "sfroute AsyncRouter, uvloop": timed(fast.router.get_linked_pod, fast=True),
        },
        does={
            "dict in a coroutine": "(value, deadline), unbounded",
            "sfroute AsyncRouter": "bounded, invalidated by the server",
        },
        target=Target("sfroute AsyncRouter", 0.6, of_time=True),
        group="hits",
    )
