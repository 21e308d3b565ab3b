"""Batches: 1,000 uids that nobody has asked for, in one call."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from contenders import (
    DOES,
    AsyncPeer,
    Coredis,
    Glide,
    GlideSync,
    RedisPy,
    RedisPySync,
    Sfroute,
    SfrouteSync,
)
from harness import Comparison, Target
from setting import CONFIG, Setting

__all__ = ["comparisons"]

SIZE = 1000
TITLES = {
    "redis-py": "ClusterPipeline of GETs",
    "coredis": "pipeline of GETs",
    "valkey-glide": "ClusterBatch of GETs",
    "valkey-glide-sync": "ClusterBatch of GETs",
}


def comparisons(setting: Setting) -> list[Comparison]:
    """In a coroutine, and in a thread."""
    peers = [setting.opened(peer) for peer in (RedisPy(), Coredis(), Glide(), Sfroute(CONFIG))]
    fast = setting.opened(Sfroute(CONFIG), fast=True)
    contenders = {peer.name: _in_task(setting, peer) for peer in peers}
    contenders["sfroute, uvloop"] = _in_task(setting, fast, fast=True)
    raw = setting.opened_raw()

    def on_sockets() -> float:
        batches = [
            raw.pack(setting.population.take(SIZE), pttl=True) for _ in range(setting.size(8))
        ]
        began = time.perf_counter()
        for batch in batches:
            raw.ask(batch)
        return (time.perf_counter() - began) / (len(batches) * SIZE)

    contenders["raw sockets, GET + PTTL"] = on_sockets
    threads = [
        setting.opened_sync(peer) for peer in (RedisPySync(), GlideSync(), SfrouteSync(CONFIG))
    ]
    does = {
        **TITLES,
        "sfroute": f"batch_get_linked_pod: {DOES['sfroute']}",
        "raw sockets, GET + PTTL": "packed before the clock starts: the limit",
    }
    return [
        Comparison(
            "async batch of 1,000 cold uids, per uid",
            "valkey-glide",
            contenders,
            does=does,
            target=Target("sfroute", 1.6),
            group="batches",
        ),
        Comparison(
            "sync batch of 1,000 cold uids, per uid",
            "valkey-glide-sync",
            {peer.name: _timed(setting, peer.get_many) for peer in threads},
            does=does,
            target=Target("sfroute", 1.6),
            group="batches",
        ),
    ]


def _in_task(setting: Setting, peer: AsyncPeer, *, fast: bool = False) -> Callable[[], float]:
    async def measure(call: Callable[[list[str]], Awaitable[object]]) -> float:
        await call(setting.population.take(5))
        uids = [setting.population.take(SIZE) for _ in range(setting.size(8))]
        began = time.perf_counter()
        for batch in uids:
            await call(batch)
        return (time.perf_counter() - began) / (len(uids) * SIZE)

    return lambda: setting.run(measure(peer.get_many), fast=fast)


def _timed(setting: Setting, call: Callable[[list[str]], object]) -> Callable[[], float]:
    def work() -> float:
        call(setting.population.take(5))
        uids = [setting.population.take(SIZE) for _ in range(setting.size(8))]
        began = time.perf_counter()
        for batch in uids:
            call(batch)
        return (time.perf_counter() - began) / (len(uids) * SIZE)

    return work
