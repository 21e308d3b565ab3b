"""A lane's connection ends: tracking is back before anything is cached again, and the old connection counts no more."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from support.proxy import Proxy
from support.scripted import ScriptedPeer, bulk, integer, push

from sfroute import AsyncRouter, Router
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalServer

from .conftest import CALM, Raw, becomes, cached, settings, until


async def lanes(other: Raw) -> list[dict[str, str]]:
    """The tracked connections, as the server lists them: no other client here tracks."""
    return [client for client in await other.client_list() if "t" in client["flags"]]


async def test_a_killed_lane_comes_back_tracked_before_anything_is_cached(
    single: LocalServer, other: Raw, namespace: str
) -> None:
    uids = [(namespace, f"u{number}", "chat") for number in range(20)]
    for uid in uids:
        await other.set(link_key(*uid), 1)
    async with (
        Proxy(single.node.address) as proxy,
        AsyncRouter.from_url(proxy.url, config=settings(stale_if_error=0, **CALM)) as router,
    ):
        for round_ in range(10):
            for uid in uids:
                assert await cached(router, uid) == 1 + round_
            (lane,) = await lanes(other)
            before = router.stats().lanes[0].reconnects
            assert before == round_
            proxy.refuse()
            assert await other.client_kill_filter(_id=lane["id"]) == 1
            # Nobody is told of these.
            for uid in uids:
                await other.set(link_key(*uid), 2 + round_)
            assert not await lanes(other)
            await proxy.accept()

            async def noticed(before: int = before) -> bool:
                return router.stats().lanes[0].reconnects > before

            await until(noticed)
            answers = [await router.get_linked_pod(*uid) for uid in uids]
            assert answers == [2 + round_] * len(uids)
            stats = router.stats().lanes[0]
            assert stats.tracked
            assert stats.healthy
            assert len(await lanes(other)) == 1
        # What is cached now is told of again.
        await cached(router, uids[0])
        await other.set(link_key(*uids[0]), 99)
        await becomes(router, uids[0], 99)


async def test_look_ups_under_way_survive_the_kill(
    single: LocalServer, other: Raw, namespace: str
) -> None:
    uid = (namespace, "ada", "chat")
    await other.set(link_key(*uid), 1)
    async with (
        Proxy(single.node.address) as proxy,
        AsyncRouter.from_url(proxy.url, config=settings(**CALM)) as router,
    ):
        await router.get_linked_pod(*uid[:2], "fence")
        proxy.replies.hold()
        looking = [asyncio.create_task(router.get_linked_pod(*uid)) for _ in range(100)]
        await proxy.replies.holds(bulk("1") + integer(-1))
        # The answer was under way; with the connection it is lost, and the link changes.
        proxy.reset()
        await other.set(link_key(*uid), 2)
        proxy.replies.release()
        assert await asyncio.gather(*looking) == [2] * 100
        assert await cached(router, uid) == 2
    assert router.stats().retries == {"connection": 1}


async def test_late_pushes_of_a_dead_connection_are_ignored(namespace: str) -> None:
    uid = (namespace, "ada", "chat")
    silent = settings(heartbeat=0.05, heartbeat_timeout=0.2, stale_if_error=0)
    async with ScriptedPeer() as peer, AsyncRouter.from_url(peer.url, config=silent) as router:
        looking = asyncio.create_task(router.get_linked_pod(*uid))
        dead = await peer.lane()
        dead.silent = True  # PING is not answered
        await dead.look_up()
        await dead.send(bulk("1"), integer(-1))
        assert await looking == 1
        lane = await peer.lane()  # the router has given the silent one up
        looking = asyncio.create_task(router.get_linked_pod(*uid))
        await lane.look_up()
        await lane.send(bulk("2"), integer(-1))
        assert await looking == 2
        before = router.stats().cache
        with suppress(ConnectionError):  # the router may have closed it altogether
            for _ in range(100):
                await dead.send(push(link_key(*uid)), push(), bulk("3"), integer(-1))
        assert await cached(router, uid) == 2
        after = router.stats().cache
        assert after.invalidations == before.invalidations
        assert after.entries == before.entries


@pytest.mark.parametrize("setup", [b"+OK\r\n", b"-NOPERM no permissions\r\n"])
async def test_what_follows_the_end_in_the_same_segment_is_ignored(
    namespace: str, setup: bytes
) -> None:
    """A reply nobody asked for breaks the protocol and ends the connection; the bytes behind it are nobody's."""
    uid = (namespace, "ada", "chat")
    config = settings(max_age_untracked=60.0)
    async with (
        ScriptedPeer(tracking=setup) as peer,
        AsyncRouter.from_url(peer.url, config=config) as router,
    ):
        looking = asyncio.create_task(router.get_linked_pod(*uid))
        first = await peer.lane()
        await first.look_up()
        await first.send(
            bulk("1"), integer(-1), bulk("nobody's"), push(link_key(*uid)), push("sf:x")
        )
        assert await looking == 1
        await first.ended.wait()
        assert router.stats().cache.invalidations == 0
        second = await peer.lane()
        looking = asyncio.create_task(router.get_linked_pod(*uid))
        await second.look_up()  # what the first one told counts no more
        await second.send(bulk("2"), integer(-1))
        assert await looking == 2


@pytest.mark.slow
def test_threads_see_what_changed_while_their_lane_was_dead(
    single: LocalServer, namespace: str
) -> None:
    uid = (namespace, "ada", "chat")
    with Router.from_url(single.url, config=settings()) as router:
        for pod in range(50):
            single.execute("SET", link_key(*uid), pod)
            assert router.get_linked_pod(*uid, fresh=True) == pod
            assert router.get_linked_pod(*uid) == pod
            reconnects = router.stats().lanes[0].reconnects
            single.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            single.execute("SET", link_key(*uid), pod + 1000)
            while router.stats().lanes[0].reconnects == reconnects:
                pass
            assert router.get_linked_pod(*uid) == pod + 1000
