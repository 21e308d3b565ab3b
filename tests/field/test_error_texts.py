"""What an error says: the server's own code, and where; never a uid, never a secret, nothing else of the server."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable

import pytest
from support.peer import Peer

from sfroute import AsyncRouter, RetryConfig, RouterConfig, StoreError, StoreUnavailable

LINK = ("ns", "ada", "chat")
SECRET = "s3cret-0f-the-gateway"
IMPATIENT = RouterConfig(retry=RetryConfig(deadline=0.5, connect_timeout=0.3))


def everything_told(error: BaseException) -> str:
    """The text of an error, of all that led to it, and of their tracebacks."""
    told, seen = [], set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            told += [repr(cause), str(cause)]
            waiting += [cause.__cause__, cause.__context__]
    return "\n".join([*told, *traceback.format_exception(error)])


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize(
    "answer", ["-WRONGPASS {}", "-ERR AUTH failed for default {}", "-{}", "-NOPERM {}", "+{}"]
)
async def test_a_password_that_a_hostile_server_echoes_stays_out_of_errors(
    cluster: bool, answer: str
) -> None:
    async with Peer() as peer:
        peer.answer("hello", *[(answer.format(SECRET) + "\r\n").encode()] * 50)
        url = peer.cluster_url if cluster else peer.url
        router = AsyncRouter.from_url(url.replace("://", f"://:{SECRET}@"), config=IMPATIENT)
        with pytest.raises(StoreError) as caught:
            await router.open()
        assert SECRET not in everything_told(caught.value)
        host, port = peer.address
        assert f"{host}:{port}" in str(caught.value)
        await router.aclose()


CALLS: dict[str, Callable[[AsyncRouter], Awaitable[object]]] = {
    "write": lambda router: router.set_linked_pod(*LINK, 1),
    "read": lambda router: router.get_linked_pod(*LINK),
    "batch": lambda router: router.get_workload_state_batch("ns", ["chat", "game"]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", ["LOADING", "NOREPLICAS", "READONLY", "CLUSTERDOWN", "BUSY"])
async def test_the_servers_own_code_and_its_address(code: str, call: str) -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=IMPATIENT) as router:
        for command in ("evalsha", "get", "pttl"):
            peer.answer(command, *[f"-{code} something of ada\r\n".encode()] * 1000)
        with pytest.raises(StoreUnavailable, match=code) as caught:
            await CALLS[call](router)
        host, port = peer.address
        assert f"{host}:{port}" in str(caught.value)
        assert "ada" not in everything_told(caught.value).replace(__file__, "")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", ["OOM", "MISCONF"])
async def test_at_once_where_waiting_cannot_help(code: str, call: str) -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url) as router:
        for command in ("evalsha", "get", "pttl"):
            peer.answer(command, *[f"-{code} something\r\n".encode()] * 10)
        async with asyncio.timeout(1):
            with pytest.raises(StoreUnavailable, match=f"{code}: .*nothing was changed") as caught:
                await CALLS[call](router)
        host, port = peer.address
        assert f"{host}:{port}" in str(caught.value)
        assert caught.value.retryable


@pytest.mark.parametrize("call", CALLS)
async def test_the_address_that_cannot_be_reached(call: str) -> None:
    async with Peer() as peer:
        host, port = peer.address
        router = AsyncRouter.from_url(peer.url, config=IMPATIENT)
        await router.open()
    # The peer has gone, and nobody listens there any more.
    with pytest.raises(StoreError, match="refused") as caught:
        await CALLS[call](router)
    assert f"{host}:{port}" in str(caught.value)
    await router.aclose()


async def test_a_cluster_without_resp3_is_told_of_at_once() -> None:
    async with Peer() as peer:
        peer.answer("hello", *[b"-ERR unknown command 'HELLO'\r\n"] * 50)
        router = AsyncRouter.from_url(peer.cluster_url)
        async with asyncio.timeout(1):
            with pytest.raises(StoreError, match="RESP3") as caught:
                await router.open()
        host, port = peer.address
        assert f"{host}:{port}" in str(caught.value)
        await router.aclose()
