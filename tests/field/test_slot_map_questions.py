"""How often a gateway asks a cluster for its slot map while something is wrong, and over how many connections."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.peer import Peer, bulk, slots

from sfroute import AsyncRouter, CacheConfig, RetryConfig, RouterConfig
from sfroute._net.cluster_topology import SAME_INTERVAL

CONFIG = RouterConfig(
    cache=CacheConfig(max_age=0.0), retry=RetryConfig(deadline=20.0, connect_timeout=0.3)
)


def two_halves(*owners: Peer) -> bytes:
    """The answer to CLUSTER SLOTS: each owner has a half."""
    parts = []
    for (first, last), owner in zip(((0, 8191), (8192, 16383)), owners, strict=True):
        host, port = owner.address
        node = b"*3\r\n%b:%d\r\n%b" % (bulk(host), port, bulk(f"{port:040x}"))
        parts.append(b"*3\r\n:%d\r\n:%d\r\n%b" % (first, last, node))
    return b"*2\r\n" + b"".join(parts)


@pytest.mark.slow
async def test_a_silent_primary_costs_the_others_one_question_a_second() -> None:
    async with Peer() as alive, Peer() as silent:
        for peer in (alive, silent):
            peer.answer("cluster", *[two_halves(alive, silent)] * 1000)
        async with AsyncRouter.from_url(alive.cluster_url, config=CONFIG) as router:
            await router.get_linked_pod("ns", "ada", "chat")
            for command in ("hello", "get", "pttl", "hgetall", "evalsha", "ping", "cluster"):
                silent.answers.pop(command, None)
                silent.answer(command, *[None] * 10_000)
            silent.hang_up()
            asked, connected = len(alive.received("cluster")), alive.accepted
            calling = [
                asyncio.ensure_future(router.get_linked_pod("ns", f"u{number}", "chat"))
                for number in range(40)
            ]
            began = time.monotonic()
            await asyncio.sleep(5.0)
            seconds = time.monotonic() - began
            for call in calling:
                call.cancel()
            await asyncio.gather(*calling, return_exceptions=True)
            assert 2 <= len(alive.received("cluster")) - asked <= seconds / SAME_INTERVAL + 1
            # One for each new answer of another node, ever more rarely; and nobody makes one for each question.
            assert alive.accepted - connected <= 2


async def test_what_changes_is_asked_for_soon() -> None:
    """A failover that is noticed a second late would cost its users that second."""
    async with Peer() as one, Peer() as other:
        one.answer("cluster", *[slots(one)] * 3)
        async with AsyncRouter.from_url(one.cluster_url, config=CONFIG) as router:
            await router.get_linked_pod("ns", "ada", "chat")
            one.answers["cluster"].clear()
            for peer in (one, other):
                peer.answer("cluster", *[slots(other)] * 100)
            host, port = other.address
            one.answer("get", f"-MOVED 1 {host}:{port}\r\n".encode())
            await router.get_linked_pod("ns", "bob", "chat")
            parts = router._inside.engine.parts
            assert parts is not None
            async with asyncio.timeout(0.9):
                while parts.topology.primaries() != {other.address}:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
