"""Replies are late, each by another while, and somebody writes meanwhile: the cache ends up with what the store holds.

There is nothing to wait for by the clock: an answer that a lane gives after a write was acknowledged follows the
invalidation on the same connection, so that once it is there, the cache must be right.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from support.proxy import ProxiedCluster, Proxy

from sfroute import AsyncRouter
from sfroute._contract.keys import link_key, link_prefix
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import CALM, OwnerClients, Raw, another_client, settings

UIDS = 50
ROUNDS_PER_UID = 20
LONGEST_DELAY = 0.006
Owner = Callable[[str], Raw]
"""Another program's client of the server that holds a key."""

WRITE = """
local pod = tonumber(ARGV[1])
if pod % 7 == 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
elseif pod % 2 == 1 then
  redis.call('SET', KEYS[1], pod, 'PX', 3600000)
  redis.call('HDEL', KEYS[2], 'chat')
else
  redis.call('SET', KEYS[1], pod)
  redis.call('HSET', KEYS[2], 'chat', pod)
end
"""


def late() -> float:
    return random.uniform(0, LONGEST_DELAY) if random.random() < 0.7 else 0.0


class Uid:
    """One uid: its lookups under way, and the other program's writes on it."""

    def __init__(self, router: AsyncRouter, owner: Owner, namespace: str, uid: str) -> None:
        self.router = router
        self.owner = owner
        self.link = (namespace, uid, "chat")
        self.seen: Counter[str] = Counter()

    async def round(self, pod: int) -> None:
        looking = [asyncio.create_task(self.look()) for _ in range(3)]
        await self.write(pod)
        # What is asked on this uid's lane from now on is answered after the write's invalidation.
        await self.router.get_linked_pod(*self.link[:2], "fence", fresh=True)
        await self.compare(pod)
        for task in looking:
            self.seen["old" if await task != pod else "new"] += 1
        # Late answers of lookups that began before the write have brought nothing back.
        await self.compare(pod)

    async def look(self) -> int | None:
        await asyncio.sleep(random.uniform(0, LONGEST_DELAY))
        if random.random() < 0.3:
            await self.router.get_link_service(*self.link[:2])
        return await self.router.get_linked_pod(*self.link)

    async def write(self, pod: int) -> None:
        """A link of an even number is in the uid's hash, as persistent ones are; every seventh is removed."""
        await asyncio.sleep(random.uniform(0, LONGEST_DELAY))
        keys = link_key(*self.link), link_prefix(*self.link[:2])
        await self.owner(keys[0]).eval(WRITE, 2, *keys, pod)

    async def compare(self, pod: int) -> None:
        router = self.router
        link = None if pod % 7 == 0 else pod
        persistent = link if pod % 2 == 0 else None
        answers = (
            await router.get_linked_pod(*self.link),
            await router.get_linked_pod_if_persist(*self.link),
            await router.get_link_service(*self.link[:2]),
        )
        right = (link, persistent, {} if persistent is None else {"chat": persistent})
        self.seen["right" if answers == right else "STALE"] += 1


@asynccontextmanager
async def on_single(single: LocalServer) -> AsyncIterator[tuple[AsyncRouter, Owner]]:
    async with Proxy(single.node.address) as proxy, another_client(single) as client:
        proxy.replies.delay = late
        async with AsyncRouter.from_url(proxy.url, config=settings(**CALM)) as router:
            yield router, lambda _: client


@asynccontextmanager
async def on_cluster(cluster: LocalCluster) -> AsyncIterator[tuple[AsyncRouter, Owner]]:
    owners = OwnerClients(cluster)
    async with (
        aclosing(owners),
        ProxiedCluster(cluster.startup_nodes) as proxied,
        proxied.client() as lent,
        AsyncRouter(lent, config=settings(**CALM)) as router,
    ):
        for proxy in proxied.proxies.values():
            proxy.replies.delay = late
        yield router, owners.of
        assert len(router.stats().lanes) == 3
        assert proxied.commands["GET"] > 1000  # nothing went round the proxies


async def thousand_rounds(router: AsyncRouter, owner: Owner, namespace: str) -> Counter[str]:
    seen: Counter[str] = Counter()

    async def rounds(number: int) -> None:
        uid = Uid(router, owner, namespace, f"u{number}")
        for round_ in range(ROUNDS_PER_UID):
            await uid.round(100 * number + round_ + 1)
        seen.update(uid.seen)

    await asyncio.gather(*map(rounds, range(UIDS)))
    return seen


async def test_no_stale_entry_after_a_thousand_writes_by_another_client(
    single: LocalServer, namespace: str
) -> None:
    async with on_single(single) as (router, owner):
        seen = await thousand_rounds(router, owner, namespace)
        stats = router.stats().cache
    assert seen["STALE"] == 0
    assert seen["right"] == 2 * UIDS * ROUNDS_PER_UID
    # It was a race: some lookups were overtaken by the write, others were not.
    assert seen["old"] > 20
    assert seen["new"] > 20
    assert stats.hits > 1000
    assert stats.invalidations > 1000


async def test_no_stale_entry_after_a_thousand_writes_on_a_cluster(
    cluster: LocalCluster, namespace: str
) -> None:
    async with on_cluster(cluster) as (router, owner):
        seen = await thousand_rounds(router, owner, namespace)
    assert seen["STALE"] == 0
    assert seen["right"] == 2 * UIDS * ROUNDS_PER_UID
    assert seen["old"] > 20
    assert seen["new"] > 20


@pytest.mark.parametrize("bypass", [False, True])
async def test_who_joins_a_late_answer_gets_nothing_older_than_max_age(
    single: LocalServer, namespace: str, bypass: bool
) -> None:
    """An answer ages from when its question was sent, also for those who join while it is under way."""
    uid = (namespace, "ada", "chat")
    max_age, late_by = 0.2, 0.6
    async with Proxy(single.node.address) as proxy, another_client(single) as client:
        config = settings(max_age=max_age, **CALM)
        async with AsyncRouter.from_url(proxy.url, config=config) as router:
            await client.set(link_key(*uid), 1)
            await router.get_linked_pod(*uid[:2], "fence")
            proxy.replies.hold()
            first = asyncio.create_task(router.get_linked_pod(*uid, fresh=bypass))
            await proxy.replies.holds(b"$1\r\n1\r\n:-1\r\n")
            await client.set(link_key(*uid), 2)
            await asyncio.sleep(late_by)
            second = asyncio.create_task(router.get_linked_pod(*uid))
            await asyncio.sleep(0)
            # The second one's own question, if it sends one, is answered too before anything is released.
            asyncio.get_running_loop().call_later(0.05, proxy.replies.release)
            assert await first == 1
            assert await second == 2  # 1 was over for 0.6 s when it was asked for
