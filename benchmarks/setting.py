"""What every part of the suite runs on: a cluster, linked uids, event loops, and the contenders on them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, Self, TypeVar

import uvloop
from contenders import AsyncPeer, Raw, SyncPeer, key_of
from redis.cluster import RedisCluster

import sfroute
from sfroute.embedded import LocalCluster

__all__ = ["CONFIG", "Population", "Setting"]

_T = TypeVar("_T")

# Entries of one turn must be gone when its uids come again: one round trip through the population outlasts them.
CONFIG = sfroute.RouterConfig(cache=sfroute.CacheConfig(max_entries=20_000))


class Population:
    """Linked uids of 20 characters; each is handed out once, and again only when all were used."""

    def __init__(self, client: RedisCluster, count: int) -> None:
        self._numbers = itertools.count()
        self._count = count
        for start in range(0, count, 5000):
            pipe: Any = client.pipeline()  # type: ignore[no-untyped-call]
            for number in range(start, min(start + 5000, count)):
                pipe.set(key_of(self.name(number)), number % 7)
            pipe.execute()

    @staticmethod
    def name(number: int) -> str:
        """The uid of this number."""
        return f"user-{number:015d}"

    def take(self, count: int) -> list[str]:
        """The next ``count`` uids."""
        return [self.name(next(self._numbers) % self._count) for _ in range(count)]


class Setting:
    """A cluster and everything opened on it; a context manager.

    Attributes:
        scale: work per round, 1.0 = full.
        rounds: how often each contender has its turn.
        loop: asyncio's event loop.
        fast_loop: uvloop's.
    """

    def __init__(self, binary: str | None, scale: float, rounds: int) -> None:
        self.scale = scale
        self.rounds = rounds
        self._binary = binary
        self._stack = ExitStack()
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self.fast_loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.cluster = stack.enter_context(LocalCluster(3, 0, server_binary=self._binary))
            self.server = f"{self.cluster.server_name} {self.cluster.server_version}"
            stack.callback(self.loop.close)
            stack.callback(self.fast_loop.close)
            asyncio.set_event_loop(self.loop)
            host, port = self.cluster.startup_nodes[0]
            self.client = RedisCluster(host=host, port=port)
            stack.callback(self.client.close)
            self.population = Population(self.client, self.size(200_000) + 50_000)
            self._owners = {
                slot: (node.host, node.port)
                for slot, (node, *_) in self.client.nodes_manager.slots_cache.items()
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def size(self, full: int) -> int:
        """So many operations on this scale."""
        return max(1, int(full * self.scale))

    def opened(self, peer: AsyncPeer, *, fast: bool = False) -> AsyncPeer:
        """The peer, open on asyncio's loop, or on uvloop's."""
        loop = self.fast_loop if fast else self.loop
        loop.run_until_complete(peer.open(self.cluster.startup_nodes))
        self._stack.callback(lambda: loop.run_until_complete(peer.close()))
        return peer

    def opened_sync(self, peer: SyncPeer) -> SyncPeer:
        """The peer, open."""
        peer.open(self.cluster.startup_nodes)
        self._stack.callback(peer.close)
        return peer

    def opened_raw(self) -> Raw:
        """Plain sockets."""
        raw = Raw(lambda slot: self._owners[slot])
        self._stack.callback(raw.close)
        return raw

    def keep(self, close: Callable[[], object]) -> None:
        """Call this at the end."""
        self._stack.callback(close)

    def run(self, coroutine: Coroutine[Any, Any, _T], *, fast: bool = False) -> _T:
        """Run on one of the loops."""
        return (self.fast_loop if fast else self.loop).run_until_complete(coroutine)

    def together(
        self,
        call: Callable[[str], Awaitable[object]],
        concurrency: int,
        operations: int,
        *,
        fast: bool = False,
        uids: Callable[[int], list[str]] | None = None,
    ) -> Callable[[], float]:
        """Does ``operations`` calls, ``concurrency`` at a time; returns the seconds of one."""
        take = uids or self.population.take

        async def worker(uids: Iterator[str]) -> None:
            for uid in uids:
                await call(uid)

        async def measure() -> float:
            # A loop that stood still while others had their turn has heartbeats to make up for.
            await asyncio.sleep(0.01)
            for uid in take(5):
                await call(uid)
            uids = iter(take(operations))
            began = time.perf_counter()
            await asyncio.gather(*(worker(uids) for _ in range(concurrency)))
            return (time.perf_counter() - began) / operations

        return lambda: self.run(measure(), fast=fast)
