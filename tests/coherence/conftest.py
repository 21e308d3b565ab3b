"""Single servers, another program on them, and routers with few settings of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio
from conftest import SERVERS

from sfroute import AsyncRouter, CacheConfig, RouterConfig
from sfroute._contract.keys import slot_of
from sfroute.embedded import LocalCluster, LocalServer

Raw = redis.asyncio.Redis


@pytest.fixture(scope="session")
def single(server: str, server_binary: str | None) -> Iterator[LocalServer]:
    """One server, for tests that leave it as it was."""
    with LocalServer(server_binary=server_binary) as single:
        yield single


@pytest.fixture(scope="session")
def some_server() -> Iterator[LocalServer]:
    """One server of whatever kind, for tests that are about this side of the connection, or take long."""
    with LocalServer(server_binary=next(iter(SERVERS.values()))) as single:
        yield single


@pytest.fixture
def mortal_server() -> Iterator[LocalServer]:
    """The same for one test that stops or kills it."""
    with LocalServer(server_binary=next(iter(SERVERS.values()))) as single:
        yield single


@pytest.fixture
def own_server(server: str, server_binary: str | None) -> Iterator[LocalServer]:
    """One server for one test that changes its settings, stops or kills it."""
    with LocalServer(server_binary=server_binary) as single:
        yield single


@asynccontextmanager
async def another_client(server: LocalServer) -> AsyncIterator[Raw]:
    """What another program uses: it knows nothing of this router."""
    client = redis.asyncio.Redis(
        host=server.node.host, port=server.node.port, protocol=2, decode_responses=True
    )
    try:
        yield client
    finally:
        await client.aclose()


class OwnerClients:
    """Another program on a cluster whose slots do not move: a client for each primary."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._clients = [
            (Raw(host=node.host, port=node.port, protocol=2), node.slots)
            for node in cluster.nodes
            if node.slots
        ]

    def of(self, key: str) -> Raw:
        """That of the key's primary."""
        slot = slot_of(key)
        return next(client for client, slots in self._clients if any(slot in p for p in slots))

    async def aclose(self) -> None:
        for client, _ in self._clients:
            await client.aclose()


@pytest.fixture
async def other(single: LocalServer) -> AsyncIterator[Raw]:
    """Another program on ``single``."""
    async with another_client(single) as client:
        yield client


def settings(config: RouterConfig | None = None, **cache: Any) -> RouterConfig:
    """A configuration in which age hides nothing: what is not invalidated stays for a minute."""
    base = config or RouterConfig()
    return replace(base, cache=CacheConfig(**{"max_age": 60.0, **cache}))


CALM: dict[str, Any] = {"heartbeat": 10.0, "heartbeat_timeout": 20.0}
"""For tests that hold replies back, however long a busy machine takes: the lane is not given up for its silence."""


SOON = 20.0
"""Seconds in which something must have come about, in tests that are not about how fast it does.

Age brings nothing about meanwhile: see ``settings``.
"""


async def until(condition: Callable[[], Awaitable[bool]], within: float = SOON) -> None:
    """Ask again and again until it is so: a cache tells nobody that it has changed."""
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


async def becomes(router: AsyncRouter, uid: tuple[str, str, str], pod: int | None) -> None:
    """Wait until the answer is ``pod``."""

    async def is_pod() -> bool:
        return await router.get_linked_pod(*uid) == pod

    await until(is_pod)


async def cached(router: AsyncRouter, uid: tuple[str, str, str]) -> int | None:
    """Look up twice; the second answer must be the cache's."""
    answer = await router.get_linked_pod(*uid)
    hits = router.stats().cache.hits
    assert await router.get_linked_pod(*uid) == answer
    assert router.stats().cache.hits == hits + 1
    return answer
