"""A name leads elsewhere after a failover, and connections to the old server stay open: its answers tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from conftest import make_cluster
from support.peer import Peer
from support.proxy import Proxy
from support.stalls import Stalls

from sfroute import AsyncRouter, CacheConfig, RouterConfig, StoreError
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalServer

LINK = ("ns", "ada", "chat")
CONFIG = RouterConfig(cache=CacheConfig(max_age=60.0))


@pytest.fixture
def pair(server_binary: str | None) -> Iterator[tuple[LocalServer, LocalServer]]:
    """Two single servers."""
    with (
        LocalServer(server_binary=server_binary) as one,
        LocalServer(server_binary=server_binary) as two,
    ):
        yield one, two


@pytest.mark.parametrize("acks", [0, 1])
async def test_writes_follow_a_name_within_a_second(
    pair: tuple[LocalServer, LocalServer], acks: int
) -> None:
    old, new = pair
    config = RouterConfig(cache=CONFIG.cache, min_replica_acks=acks)
    new.execute("REPLICAOF", *old.node.address)
    async with (
        Proxy(old.node.address) as name,
        AsyncRouter.from_url(name.url, config=config) as router,
    ):
        assert await router.set_linked_pod(*LINK, 1) is None
        assert await router.get_linked_pod(*LINK) == 1
        opened = name.accepted
        async with asyncio.timeout(10):
            while new.execute("GET", link_key(*LINK)) not in (b"1", "1"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        # The failover of a managed service: the replica is promoted, the old primary follows it, the name leads there.
        new.execute("REPLICAOF", "NO", "ONE")
        old.execute("REPLICAOF", *new.node.address)
        name.target = new.node.address
        with Stalls() as stalls:
            began = time.monotonic()
            assert await router.set_linked_pod(*LINK, 2) == 1
            took = stalls.took(began)
        assert new.execute("GET", link_key(*LINK)) in (b"2", "2")
        if not acks:  # the replica has to come first
            assert took < 1.0
        # Lookups have followed, too: they are told what changes there.
        assert await router.get_linked_pod(*LINK) == 2
        new.execute("SET", link_key(*LINK), 3)
        async with asyncio.timeout(2):
            while await router.get_linked_pod(*LINK) != 3:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
        await router.set_linked_pod("ns", "bob", "chat", 1)
        assert name.accepted - opened < 6


async def test_what_is_under_way_is_answered_on_the_old_connection() -> None:
    """A write that may not be repeated must not lose its answer because another one met a replica."""
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        await router.set_linked_pod(*LINK, 1)
        readonly = b"-READONLY You can't write against a read only replica.\r\n"
        peer.answer("evalsha", readonly, *[b"*1\r\n$1\r\n7\r\n"] * 9)
        answers = await asyncio.gather(
            *(router.set_linked_pod("ns", f"u{number}", "chat", 1) for number in range(8))
        )
        assert answers == [7] * 8
        assert len(peer.received("evalsha")) == 1 + 8 + 1


async def test_another_program_at_the_address_is_looked_past_once() -> None:
    unknown = b"-ERR unknown command 'EVALSHA', with args beginning with: \r\n"
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        peer.answer("evalsha", unknown)
        assert await router.set_linked_pod(*LINK, 1) is None
        peer.answer("evalsha", *[unknown] * 20)
        await asyncio.sleep(0.3)  # longer than the interval between two such looks
        with Stalls() as stalls:
            began = time.monotonic()
            with pytest.raises(StoreError):
                await router.set_linked_pod(*LINK, 2)
            assert stalls.took(began) < 1.0


async def test_a_server_that_is_a_replica_for_good_is_not_stormed() -> None:
    readonly = b"-READONLY You can't write against a read only replica.\r\n"
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        await router.set_linked_pod(*LINK, 1)
        opened = peer.accepted
        peer.answer("evalsha", *[readonly] * 10_000)
        writing = [
            asyncio.ensure_future(router.set_linked_pod("ns", f"u{n}", "chat", 1))
            for n in range(50)
        ]
        await asyncio.sleep(1.5)
        # One for writes and one for lookups, four times a second.
        assert peer.accepted - opened <= 2 * 7
        for each in writing:
            each.cancel()
        await asyncio.wait(writing)


@pytest.mark.slow
async def test_a_cluster_that_is_down_but_lets_read_fails_no_write(server: str) -> None:
    """``cluster-allow-reads-when-down yes``: then a script begins, and its first write is refused."""
    config = {"cluster-allow-reads-when-down": "yes"}
    with make_cluster(server, extra_config=config) as cluster:
        async with AsyncRouter.from_url(cluster.url, config=CONFIG) as router:
            uids = [f"u{number}" for number in range(40)]
            failed: list[str] = []
            over = False

            async def write(uid: str) -> None:
                pod = 0
                while not over:
                    try:
                        await router.set_linked_pod("ns", uid, "chat", pod)
                    except StoreError as error:
                        failed.append(f"{type(error).__name__}: {error}")
                    pod += 1
                    await asyncio.sleep(0.01)

            writing = [asyncio.ensure_future(write(uid)) for uid in uids]
            await asyncio.sleep(0.2)
            primaries = {cluster.primary_of(link_key("ns", uid, "chat")): None for uid in uids}
            for primary in primaries:
                await asyncio.to_thread(cluster.kill, primary)
                await asyncio.to_thread(cluster.wait_healthy)
                # A replica may take over before the others have noticed that the cluster is down.
                if router.stats().retries.get("CLUSTERDOWN", 0) > 0:
                    break
            over = True
            await asyncio.gather(*writing)
            assert failed == []
            assert router.stats().retries.get("CLUSTERDOWN", 0) > 0
