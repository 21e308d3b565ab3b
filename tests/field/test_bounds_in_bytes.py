"""Bounds on bytes: what damaged keys and hostile answers may take of a gateway's memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from support.peer import Peer, bulk

from sfroute import (
    AsyncRouter,
    CacheConfig,
    CorruptReply,
    PlacementConfig,
    RetryConfig,
    RouterConfig,
)
from sfroute._contract.keys import link_key, link_prefix, state_key
from sfroute._lookups.lane import MAX_LOOKUP_BYTES
from sfroute._net.resp import MAX_REPLY_BYTES
from sfroute.embedded import LocalServer

HELD = """
import asyncio, resource, sys
from sfroute import AsyncRouter, CorruptReply
async def main():
    async with AsyncRouter.from_url(sys.argv[1]) as router:
        await router.get_linked_pod("ns", "absent", "chat")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(12):
            try:
                await router.get_linked_pod("ns", f"u{number}", "chat")
            except CorruptReply as error:
                assert error.key.endswith("chat"), error.key
            else:
                raise AssertionError
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
asyncio.run(main())
"""


@pytest.mark.slow
def test_links_of_50_mb_take_no_memory(own_server: LocalServer) -> None:
    for number in range(12):
        key = link_key("ns", f"u{number}", "chat")
        own_server.execute("EVAL", "redis.call('SETRANGE', KEYS[1], 50000000, 'x')", "1", key)
    done = subprocess.run(
        [sys.executable, "-c", HELD, own_server.url],
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert int(done.stdout) < 60


STATES = """
import asyncio, resource, sys
from sfroute import AsyncRouter, CacheConfig, RetryConfig, RouterConfig
async def main():
    # A reading takes Redis 7.0 half a second of its processor, which others may want too. It answers no heartbeat
    # meanwhile, and a connection that is given up for that takes its reading along.
    config = RouterConfig(cache=CacheConfig(heartbeat_timeout=20.0), retry=RetryConfig(deadline=60.0))
    async with AsyncRouter.from_url(sys.argv[1], config=config) as router:
        await router.get_linked_pod("ns", "absent", "chat")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pods = set()
        for number in range(20):
            link = await router.route("ns", f"u{number}", "chat")
            assert link.source == "placed", link
            pods.add(link.pod)
        view = await router.get_pods("ns", "chat", fresh=True)
        assert len(view) == 9000 and {pod.status for pod in view.values()} == {"Running"}
        assert {pod.age is not None for pod in view.values()} == {True}
        assert len(pods) > 10
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
asyncio.run(main())
"""


def write_states(server: LocalServer, pods: int, size: int) -> None:
    """States of so many bytes. A stamp in the future is one of just now, however long all this takes."""
    script = """
    local now = redis.call('TIME')[1] * 1000 + 3600000
    for pod = ARGV[1], ARGV[2] - 1 do
      local state = string.format('{"status":"Running","load":0.1,"at":%.0f,"blob":"', now)
      redis.call('HSET', KEYS[1], pod, state .. string.rep('x', ARGV[3] - #state - 2) .. '"}')
    end
    """
    for first in range(0, pods, 1000):
        server.execute("EVAL", script, 1, state_key("ns", "chat"), first, first + 1000, size)


@pytest.mark.slow
def test_placement_goes_on_with_nine_thousand_states_of_7_kb(own_server: LocalServer) -> None:
    write_states(own_server, 9000, 7000)
    done = subprocess.run(
        [sys.executable, "-c", STATES, own_server.url],
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
    )
    assert int(done.stdout) < 60


@pytest.mark.slow
async def test_states_of_more_than_64_mb_are_refused_by_name_and_not_asked_for_all_the_time(
    own_server: LocalServer,
) -> None:
    """The server has to read them all to tell."""
    write_states(own_server, 9000, 20_000)
    own_server.execute("SET", link_key("ns", "bob", "chat"), 3)
    # A reading takes Redis 7.0 a second of its processor, which others may want too. It answers no heartbeat meanwhile,
    # and a connection that is given up for that takes its reading along.
    config = RouterConfig(
        cache=CacheConfig(heartbeat_timeout=20.0),
        placement=PlacementConfig(pod_view_max_age=60.0),
        retry=RetryConfig(deadline=60.0),
    )
    async with AsyncRouter.from_url(own_server.url, config=config) as router:
        with pytest.raises(CorruptReply, match="more than 64 MiB together") as caught:
            await router.get_pods("ns", "chat")
        assert caught.value.key == state_key("ns", "chat")
        assert caught.value.operation == "get_pods"
        own_server.execute("CONFIG", "RESETSTAT")
        for number in range(20):
            with pytest.raises(CorruptReply):
                await router.route("ns", f"u{number}", "chat")
            # What is known is served.
            assert (await router.route("ns", "bob", "chat")).pod == 3
        told = own_server.execute("INFO", "commandstats")
        assert isinstance(told, str)
        assert "cmdstat_hgetall" not in told
        # Who asks for what is there now is told of it.
        own_server.execute("DEL", state_key("ns", "chat"))
        own_server.execute("HSET", state_key("ns", "chat"), 1, "Running")
        assert (await router.get_pods("ns", "chat", fresh=True)).keys() == {1}
        assert (await router.route("ns", "eve", "chat")).pod == 1


async def test_a_damaged_link_is_told_of_at_once_and_disturbs_nobody(
    own_server: LocalServer,
) -> None:
    key = link_key("ns", "ada", "chat")
    own_server.execute("EVAL", "redis.call('SETRANGE', KEYS[1], 50000000, 'x')", "1", key)
    own_server.execute("SET", link_key("ns", "bob", "chat"), 7)
    async with AsyncRouter.from_url(own_server.url) as router:
        for _ in range(3):
            began = time.monotonic()
            damaged, *others = await asyncio.gather(
                router.get_linked_pod("ns", "ada", "chat"),
                *(router.get_linked_pod("ns", "bob", "chat", fresh=True) for _ in range(20)),
                return_exceptions=True,
            )
            assert isinstance(damaged, CorruptReply)
            assert damaged.key == key
            assert "ada" not in str(damaged)
            assert others == [7] * 20
            assert time.monotonic() - began < 3


async def test_so_is_a_hash_that_is_too_large() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url) as router:
        peer.answer("hgetall", b"%1\r\n" + bulk("chat") + bulk("9" * (MAX_LOOKUP_BYTES + 100_000)))
        with pytest.raises(CorruptReply) as caught:
            await router.get_link_service("ns", "ada")
        assert caught.value.key == link_prefix("ns", "ada")


async def test_states_that_are_too_large_are_named_and_not_asked_for_again() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url) as router:
        large = b"*1\r\n" + bulk("x" * (MAX_REPLY_BYTES + 100_000))
        peer.answer("hgetall", *[large] * 20)
        with pytest.raises(CorruptReply) as caught:
            await router.get_service_state("ns", "chat")
        assert caught.value.key == "sf:{ns:state:chat}"
        assert caught.value.operation == "get_service_state"
        assert len(peer.received("hgetall")) == 1
