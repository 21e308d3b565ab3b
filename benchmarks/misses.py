"""Misses: lookups that go to the store. Every one is of a uid that nobody has asked for; its link exists."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import ioredis
import uvloop
from contenders import (
    DOES,
    Coredis,
    Glide,
    GlideSync,
    Raw,
    RedisPy,
    RedisPySync,
    Sfroute,
    SfrouteSync,
)
from harness import Comparison, Target
from setting import CONFIG, Setting

__all__ = ["comparisons"]

AT_LEAST = {1: 1.6, 10: 5.5, 100: 10.0}
AT_LEAST_SYNC = {1: 1.5, 16: 4.4}


def comparisons(setting: Setting, *, quick: bool = False) -> list[Comparison]:
    """Asyncio with 1, 10 and 100 callers, threads with 1, 8 and 16."""
    return [*_in_tasks(setting, quick=quick), *_in_threads(setting, quick=quick)]


def _in_tasks(setting: Setting, *, quick: bool) -> list[Comparison]:
    peers = [setting.opened(peer) for peer in (RedisPy(), Coredis(), Glide(), Sfroute(CONFIG))]
    fast = [setting.opened(peer, fast=True) for peer in (RedisPy(), Sfroute(CONFIG))]
    raw = setting.opened_raw()
    node = ioredis.Process.start(setting.cluster.startup_nodes)
    if node is not None:
        setting.keep(node.close)
    made = []
    for concurrency, full in ((1, 1500), (10, 4000), (100, 6000)):
        if quick and concurrency == 10:
            continue
        operations = setting.size(full)
        contenders: dict[str, Callable[[], float]] = {}
        does: dict[str, str] = {}
        for peer in peers:
            contenders[peer.name] = setting.together(peer.get, concurrency, operations)
            does[peer.name] = peer.does_get
        for peer in fast:
            name = f"{peer.name}, uvloop"
            contenders[name] = setting.together(peer.get, concurrency, operations, fast=True)
            does[name] = peer.does_get
        if node is not None:
            contenders["ioredis, autopipelining"] = _on_node(setting, node, concurrency, operations)
            does["ioredis, autopipelining"] = "one GET; node"
        if concurrency > 1:
            for peer in peers[:3]:
                name = f"{peer.name} {'batch' if peer.name == 'valkey-glide' else 'pipeline'}"
                contenders[name] = _gathered(setting, peer.get_many, concurrency, operations)
                does[name] = f"{concurrency} {DOES['pipeline']}"
        for pttl in (False, True):
            name = f"raw sockets, {'GET + PTTL' if pttl else 'GET'}"
            contenders[name] = _on_sockets(setting, raw, concurrency, operations, pttl=pttl)
            does[name] = f"packed before the clock starts, {concurrency} at once: the limit"
        at_least = AT_LEAST.get(concurrency)
        made.append(
            Comparison(
                f"async miss, {concurrency} at a time",
                "redis-py",
                contenders,
                does=does,
                target=Target("sfroute", at_least) if at_least else None,
                group="misses",
            )
        )
    return made


def _gathered(
    setting: Setting,
    call: Callable[[list[str]], Awaitable[object]],
    concurrency: int,
    operations: int,
) -> Callable[[], float]:
    async def measure() -> float:
        batches = max(1, operations // concurrency)
        uids = [setting.population.take(concurrency) for _ in range(batches)]
        began = time.perf_counter()
        for batch in uids:
            await call(batch)
        return (time.perf_counter() - began) / (batches * concurrency)

    return lambda: setting.run(measure())


def _on_sockets(
    setting: Setting, raw: Raw, concurrency: int, operations: int, *, pttl: bool
) -> Callable[[], float]:
    def work() -> float:
        batches = [
            raw.pack(setting.population.take(concurrency), pttl=pttl)
            for _ in range(max(1, operations // concurrency))
        ]
        began = time.perf_counter()
        for batch in batches:
            raw.ask(batch)
        return (time.perf_counter() - began) / (len(batches) * concurrency)

    return work


def _on_node(
    setting: Setting, node: ioredis.Process, concurrency: int, operations: int
) -> Callable[[], float]:
    return lambda: node.gets(setting.population.take(operations), concurrency)


def _in_threads(setting: Setting, *, quick: bool) -> list[Comparison]:
    with_uvloop = replace(CONFIG, loop_factory=uvloop.new_event_loop)
    peers = [
        setting.opened_sync(peer)
        for peer in (
            RedisPySync(),
            GlideSync(),
            SfrouteSync(CONFIG),
            SfrouteSync(with_uvloop, "sfroute, uvloop"),
        )
    ]
    made = []
    for threads, operations in ((1, 1500), (8, 3200), (16, 4800)):
        if quick and threads == 8:
            continue
        contenders = {
            peer.name: _shared(setting, peer.get, threads, setting.size(operations))
            for peer in peers
        }
        does = {peer.name: peer.does_get for peer in peers}
        does["sfroute"] += "; one background thread"
        does["sfroute, uvloop"] += "; uvloop in that thread"
        name = "raw sockets, GET"
        contenders[name] = _raw_threads(setting, threads, setting.size(operations))
        does[name] = "one connection per thread and node, blocking: the limit of threads"
        at_least = AT_LEAST_SYNC.get(threads)
        made.append(
            Comparison(
                f"sync miss, {threads} {'thread' if threads == 1 else 'threads'}",
                "redis-py",
                contenders,
                does=does,
                target=Target("sfroute", at_least) if at_least else None,
                group="misses",
            )
        )
    return made


def _shared(
    setting: Setting, call: Callable[[str], object], threads: int, operations: int
) -> Callable[[], float]:
    def worker(uids: list[str], start: threading.Barrier) -> None:
        start.wait()
        for uid in uids:
            call(uid)

    def work() -> float:
        share = max(1, operations // threads)
        start = threading.Barrier(threads + 1)
        crew = [
            threading.Thread(target=worker, args=(setting.population.take(share), start))
            for _ in range(threads)
        ]
        for thread in crew:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in crew:
            thread.join()
        return (time.perf_counter() - began) / (share * threads)

    return work


def _raw_threads(setting: Setting, threads: int, operations: int) -> Callable[[], float]:
    raws = [setting.opened_raw() for _ in range(threads)]

    def worker(raw: Raw, packed: list[list[tuple[tuple[str, int], bytes, int]]]) -> None:
        for one in packed:
            raw.ask(one)

    def work() -> float:
        share = max(1, operations // threads)
        work_of = [
            [raw.pack([uid], pttl=False) for uid in setting.population.take(share)] for raw in raws
        ]
        crew = [
            threading.Thread(target=worker, args=pair) for pair in zip(raws, work_of, strict=True)
        ]
        began = time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        return (time.perf_counter() - began) / (share * threads)

    return work
