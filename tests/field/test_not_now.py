"""A server that says "not now" for seconds (BUSY, LOADING), or refuses tracking for a moment."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import redis
from support.peer import Peer, bulk
from support.stalls import Stalls

from sfroute import AsyncRouter, CacheConfig, RouterConfig, StoreUnavailable
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalServer

LINK = ("ns", "ada", "chat")
OLD = RouterConfig(cache=CacheConfig(max_age=0.2, stale_if_error=60.0))


@contextmanager
def busy(server: LocalServer) -> Iterator[None]:
    """A script that runs until it is killed; the server answers BUSY to everything else."""
    server.execute("CONFIG", "SET", "lua-time-limit", 1)
    client = redis.Redis(*server.node.address)

    def run() -> None:
        with suppress(redis.RedisError):  # it is killed
            client.eval("while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    killer = redis.Redis(*server.node.address)
    try:
        while True:
            try:
                killer.ping()
            except redis.exceptions.ResponseError:
                break
        yield
    finally:
        killer.script_kill()
        thread.join()
        client.close()
        killer.close()


@pytest.mark.slow
async def test_known_links_do_not_wait_for_a_busy_server(own_server: LocalServer) -> None:
    names = [f"u{number}" for number in range(20)]
    async with AsyncRouter.from_url(own_server.url, config=OLD) as router:
        for pod, uid in enumerate(names):
            await router.set_linked_pod("ns", uid, "chat", pod)
            assert await router.get_linked_pod("ns", uid, "chat") == pod
        with busy(own_server), Stalls() as stalls:
            await asyncio.sleep(0.3)  # what is cached is past its age now
            slowest = []
            for _ in range(3):
                took = []
                for pod, uid in enumerate(names):
                    began = time.monotonic()
                    assert await router.get_linked_pod("ns", uid, "chat") == pod
                    took.append(stalls.took(began))
                slowest.append(max(took))
            # The first waits to see whether it passes; then all are told at once.
            assert slowest[0] < 1.0
            assert max(slowest[1:]) < 0.1
            assert router.stats().cache.stale >= 3 * len(names) - 1
            # And what is not known is asked for as long as its caller waits.
            unknown = asyncio.ensure_future(router.get_linked_pod("ns", "eve", "chat"))
            done, _ = await asyncio.wait([unknown], timeout=0.3)
            assert not done
        assert await unknown is None
        before = router.stats().cache.stale
        async with asyncio.timeout(2):
            while True:  # one PING tells that it is over
                await router.get_linked_pod("ns", names[0], "chat")
                if router.stats().cache.stale == before:
                    break
                before = router.stats().cache.stale
                await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["LOADING Valkey is loading the dataset in memory", "BUSY Valkey"])
async def test_one_question_tells_for_everybody_when_it_is_over(code: str) -> None:
    error = f"-{code}\r\n".encode()
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=OLD) as router:
        peer.answer("get", bulk("3"))
        peer.answer("pttl", b":-1\r\n")
        assert await router.get_linked_pod(*LINK) == 3
        await asyncio.sleep(0.25)
        for command in ("get", "pttl", "ping"):
            peer.answer(command, *[error] * 10_000)
        assert await router.get_linked_pod(*LINK) == 3
        asked = len(peer.received("get"))
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            assert await router.get_linked_pod(*LINK) == 3
            await asyncio.sleep(0.005)
        assert len(peer.received("get")) == asked
        assert len(peer.received("ping")) < 20
        with pytest.raises(StoreUnavailable, match=code.partition(" ")[0]) as caught:
            async with asyncio.timeout(8):
                await router.get_linked_pod("ns", "eve", "chat")
        host, port = peer.address
        assert f"{host}:{port}" in str(caught.value)


async def test_tracking_that_was_refused_for_a_moment_is_asked_for_again(
    own_server: LocalServer, server: str
) -> None:
    if server.startswith("redis62"):
        pytest.skip("there is no tracking before Redis 7.0")
    own_server.execute("ACL", "SETUSER", "gateway", "on", ">x", "~*", "+@all", "-client|tracking")
    host, port = own_server.node.address
    async with AsyncRouter.from_url(f"redis://gateway:x@{host}:{port}", config=OLD) as router:
        own_server.execute("SET", link_key(*LINK), 1)
        assert await router.get_linked_pod(*LINK) == 1
        assert not router.stats().lanes[0].tracked
        own_server.execute("ACL", "SETUSER", "gateway", "+client|tracking")
        async with asyncio.timeout(5):
            while not router.stats().lanes[0].tracked:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        assert router.stats().lanes[0].reconnects == 0
        # What was read before would not be told of: it is read again, and then it is.
        asked = router.stats().cache.misses
        assert await router.get_linked_pod(*LINK) == 1
        assert router.stats().cache.misses == asked + 1
        told = router.stats().cache.invalidations
        own_server.execute("SET", link_key(*LINK), 2)
        async with asyncio.timeout(2):
            while router.stats().cache.invalidations == told:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
        assert await router.get_linked_pod(*LINK) == 2


@pytest.mark.slow
async def test_a_server_that_never_tracks_is_asked_ever_more_rarely() -> None:
    async with Peer() as peer:
        peer.answer("client", *[b"-BUSY Valkey is busy running a script.\r\n"] * 100)
        async with AsyncRouter.from_url(peer.url, config=OLD) as router:
            await router.get_linked_pod(*LINK)
            await asyncio.sleep(2.0)
            # On connecting, after half a second, after one more.
            assert 2 <= len(peer.received("client")) <= 4
            peer.answers["client"].clear()
            async with asyncio.timeout(4):
                while not router.stats().lanes[0].tracked:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.05)
