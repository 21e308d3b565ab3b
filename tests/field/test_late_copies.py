"""A connection that is given up must deliver nothing any more: its write was repeated on another, and others wrote."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from conftest import SERVERS
from support.dead_flow import DeadFlowLink, require_namespaces
from support.peer import Peer

from sfroute import AsyncRouter, CacheConfig, OutcomeUnknown, RetryConfig, RouterConfig
from sfroute.embedded._binary import find_server

LINK = ("ns", "ada", "chat")
CONFIG = RouterConfig(
    cache=CacheConfig(max_age=0, heartbeat=0.1, heartbeat_timeout=0.3),
    retry=RetryConfig(deadline=1.0, connect_timeout=0.5),
)


@pytest.fixture(scope="module")
def link() -> Iterator[DeadFlowLink]:
    require_namespaces()
    with DeadFlowLink(os.fspath(find_server(next(iter(SERVERS.values()))))) as link:
        yield link


def port_of_writes(router: AsyncRouter) -> int:
    """The gateway's end of the connection that carries its writes."""
    parts = router._inside.engine.parts
    assert parts is not None
    (channel,) = parts.commands._channels
    assert channel.connection is not None
    assert channel.connection._transport is not None
    return int(channel.connection._transport.get_extra_info("sockname")[1])


@pytest.mark.slow
async def test_a_flow_that_goes_dead_and_wakes_later_brings_no_write_back(
    link: DeadFlowLink,
) -> None:
    host, port = link.address
    with link.gateway_side():
        async with (
            AsyncRouter.from_url(f"redis://{host}:{port}", config=CONFIG) as router,
            AsyncRouter.from_url(f"redis://{host}:{port}") as other,
        ):
            await router.set_linked_pod(*LINK, 0)
            flow = port_of_writes(router)
            link.kill_flow(flow)
            # The first copy is lost on the dead flow, the second is answered on another.
            assert await router.set_linked_pod(*LINK, 1) == 0
            assert port_of_writes(router) != flow
            assert await other.set_linked_pod(*LINK, 2) == 1
            # What the kernel still has it would deliver long after this; the record of the write lasts for seconds.
            kept = f"sf:op:{{ns:lk:ada}}:{router._inside.engine._identity}1"
            reader, writer = await asyncio.open_connection(host, port)
            deadline = time.monotonic() + 60
            while link.may_still_send(flow) and time.monotonic() < deadline:
                writer.write(b"EXISTS %b\r\n" % kept.encode())
                if await reader.readline() == b":0\r\n":
                    break
                await asyncio.sleep(0.1)
            link.wake_flows()
            while link.may_still_send(flow) and time.monotonic() < deadline:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.1)
            writer.close()
            assert await other.get_linked_pod(*LINK, fresh=True) == 2


async def test_the_kernel_gives_up_with_the_caller() -> None:
    """Where the process itself cannot: it is stopped, or killed."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no TCP_USER_TIMEOUT")
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        await router.set_linked_pod(*LINK, 1)
        parts = router._inside.engine.parts
        assert parts is not None
        (channel,) = parts.commands._channels
        assert channel.connection is not None
        assert channel.connection._transport is not None
        sock = channel.connection._transport.get_extra_info("socket")
        milliseconds = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert milliseconds == CONFIG.retry.deadline * 1000
        # The record of a write outlasts every repetition, what the kernel delivers, and what the network holds.
        recorded = peer.received("evalsha")[0][-1]
        assert int(recorded) >= 2 * milliseconds + 20_000


async def test_a_gateway_that_slept_past_the_deadline_repeats_nothing() -> None:
    """By then the record of the first attempt may have gone."""
    config = replace(CONFIG, retry=RetryConfig(deadline=0.5, base=0.2, cap=0.2, jitter=0))
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        await router.set_linked_pod("ns", "bob", "chat", 1)
        before = len(peer.received("evalsha"))
        peer.answer("evalsha", Peer.HANG_UP)
        writing = asyncio.ensure_future(router.set_linked_pod(*LINK, 1))
        while not router.stats().retries:  # noqa: ASYNC110 - it pauses now
            await asyncio.sleep(0.001)
        time.sleep(0.8)  # noqa: ASYNC251 - the gateway is stopped, and woken
        with pytest.raises(OutcomeUnknown):
            await writing
        assert len(peer.received("evalsha")) == before + 1
