"""``watch()``: what happens to pods, as it is noticed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
import redis.cluster
from conftest import AwaitableRouter
from support.program import StateProgram

from sfroute import (
    CorruptReply,
    InvalidArgument,
    PlacementConfig,
    PodChange,
    Router,
    RouterClosed,
    RouterConfig,
)
from sfroute._contract.keys import state_key
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import ONE_SERVER

pytestmark = ONE_SERVER

Raw = redis.cluster.RedisCluster
QUICK = RouterConfig(placement=PlacementConfig(pod_view_max_age=0.05, pod_timeout=0.5))


async def watch(router: Any, *args: Any) -> AsyncIterator[PodChange]:
    """The changes that either front tells of."""
    changes = router.watch(*args)
    if not isinstance(router, AwaitableRouter):
        async with aclosing(changes):
            async for change in changes:
                yield change
        return
    while (change := await asyncio.to_thread(next, changes, None)) is not None:
        yield change


class Watching:
    """Somebody who watches and remembers."""

    def __init__(self, router: Any, namespace: str) -> None:
        self.seen: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.task = asyncio.create_task(self._watch(router, namespace))

    async def _watch(self, router: Any, namespace: str) -> None:
        async for change in watch(router, namespace, "chat"):
            self.seen.put_nowait((change.kind, change.pod.id))

    async def next(self) -> tuple[str, int]:
        async with asyncio.timeout(5):
            return await self.seen.get()


@pytest.fixture
async def watcher(make_router: Callable[..., Any], cluster: LocalCluster) -> AsyncIterator[Any]:
    router = make_router(cluster.url, config=QUICK)
    await router.open()
    yield router
    await router.aclose()


@pytest.fixture
def states(raw: Raw, namespace: str) -> StateProgram:
    return StateProgram(raw, namespace, "chat")


async def test_a_pods_life(watcher: Any, states: StateProgram, namespace: str) -> None:
    states.set(0, "Running")
    watching = Watching(watcher, namespace)
    assert await watching.next() == ("joined", 0)
    states.set(1, "Pending")
    states.set(2, "Running")
    assert await watching.next() == ("joined", 2)
    states.set(1, "Running")
    assert await watching.next() == ("joined", 1)
    states.set(1, "Draining")
    assert await watching.next() == ("draining", 1)
    states.set(1, "Stopped")
    assert await watching.next() == ("left", 1)
    states.client.hdel(states.key, "2")
    assert await watching.next() == ("left", 2)
    states.set(1, "Running")
    assert await watching.next() == ("joined", 1)
    states.set(3, "{}", 1)
    states.set(3, '{"status":"Running"}', 1)
    assert await watching.next() == ("joined", 3)
    assert await watching.next() == ("dead", 3)
    states.set(3, '{"status":"Draining"}', 1)
    assert await watching.next() == ("draining", 3)
    assert await watching.next() == ("dead", 3)
    await watcher.aclose()
    await asyncio.wait_for(watching.task, 5)


async def test_a_load_that_changes_is_nothing(
    watcher: Any, states: StateProgram, namespace: str
) -> None:
    watching = Watching(watcher, namespace)
    for load in range(20):
        states.set(0, json.dumps({"status": "Running", "load": load}), 1)
        await asyncio.sleep(0.02)
    states.set(0, "Draining")
    assert [await watching.next() for _ in range(2)] == [("joined", 0), ("draining", 0)]
    await watcher.aclose()
    await asyncio.wait_for(watching.task, 5)


async def test_the_end_of_the_router_is_its_end(
    watcher: Any, states: StateProgram, namespace: str
) -> None:
    states.set(0, "Running")
    watching = Watching(watcher, namespace)
    await watching.next()
    await watcher.aclose()
    await asyncio.wait_for(watching.task, 1)


def test_a_thread_that_watches_is_let_go(cluster: LocalCluster, namespace: str) -> None:
    """With the usual settings it would sleep for half a second, and with a closed loop for ever."""
    with Router.from_url(cluster.url) as router:
        started = threading.Event()

        def watch_on() -> None:
            changes = router.watch(namespace, "chat")
            started.set()
            assert list(changes) == []

        thread = threading.Thread(target=watch_on)
        thread.start()
        started.wait()
    thread.join(2)
    assert not thread.is_alive()


def test_one_that_was_left_alone_does_not_keep_the_router(
    cluster: LocalCluster, namespace: str
) -> None:
    router = Router.from_url(cluster.url)
    router.set_service_state(namespace, "chat", 0, "Running")
    changes = router.watch(namespace, "chat")
    assert next(changes).kind == "joined"
    router.close()
    changes.close()
    with pytest.raises(RouterClosed):
        router.watch(namespace, "chat")


async def test_a_store_that_is_away_is_no_change(
    make_router: Callable[..., Any], server_binary: str | None, namespace: str
) -> None:
    with LocalServer(server_binary=server_binary) as single:
        single.execute("HSET", state_key(namespace, "chat"), "0", "Running")
        router = make_router(single.url, config=QUICK)
        await router.open()
        watching = Watching(router, namespace)
        assert await watching.next() == ("joined", 0)
        single.pause()
        await asyncio.sleep(1.0)
        single.resume()
        single.execute("HSET", state_key(namespace, "chat"), "0", "Draining")
        assert await watching.next() == ("draining", 0)
        await router.aclose()
        await asyncio.wait_for(watching.task, 5)


async def test_what_no_waiting_will_mend_is_raised(watcher: Any, raw: Raw, namespace: str) -> None:
    raw.set(state_key(namespace, "chat"), "no hash")
    watching = Watching(watcher, namespace)
    with pytest.raises(CorruptReply):
        await asyncio.wait_for(watching.task, 5)


async def test_names_are_checked(watcher: Any) -> None:
    with pytest.raises(InvalidArgument):
        async for _ in watch(watcher, "a:b", "chat"):
            pass
