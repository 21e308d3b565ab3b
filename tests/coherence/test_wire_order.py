"""An answer and the invalidation of its key, in every order and in any pieces: what the cache keeps is never outdated.

A scripted peer sends exact bytes; a proxy makes real servers' bytes arrive together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.proxy import Proxy
from support.scripted import NULL, Conversation, ScriptedPeer, bulk, integer, push

from sfroute import AsyncRouter
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalServer

from .conftest import CALM, Raw, settings

UID = ("sf", "ada", "chat")
KEY = link_key(*UID)
OLD = bulk("1") + integer(-1)
NEW = bulk("2") + integer(-1)


async def first_look_up(router: AsyncRouter, peer: ScriptedPeer, *answer: bytes) -> Conversation:
    """Look the link up once; the peer sends ``answer``."""
    looking = asyncio.create_task(router.get_linked_pod(*UID))
    lane = await peer.lane()
    await lane.look_up()
    await lane.send(*answer)
    await looking
    return lane


async def is_cached(router: AsyncRouter, lane: Conversation) -> bool:
    """True if the next lookup is answered without the peer, which answers 3 otherwise."""
    hits = router.stats().cache.hits
    looking = asyncio.create_task(router.get_linked_pod(*UID))
    asked = asyncio.create_task(lane.look_up())
    await asyncio.wait([looking, asked], return_when=asyncio.FIRST_COMPLETED)
    if asked.done():
        await lane.send(bulk("3"), integer(-1))
        assert await looking == 3
        return False
    asked.cancel()
    await asyncio.wait([asked])
    assert router.stats().cache.hits == hits + 1
    return True


class TestOneSegment:
    """All bytes of an answer and a push in one segment."""

    @pytest.mark.parametrize(
        ("segment", "answer", "cached"),
        [
            pytest.param(OLD + push(KEY), 1, False, id="answer then push"),
            pytest.param(push(KEY) + NEW, 2, True, id="push then answer"),
            pytest.param(push() + NEW, 2, None, id="flush then answer"),
            pytest.param(OLD + push(), 1, False, id="answer then flush"),
            pytest.param(bulk("1") + push() + integer(-1), 1, False, id="flush within the answer"),
            pytest.param(push(KEY) + NEW + push(KEY), 2, False, id="push, answer, push"),
            pytest.param(NULL + integer(-2) + push(KEY), None, False, id="absent then push"),
            pytest.param(push(KEY) + NULL + integer(-2), None, True, id="push then absent"),
            pytest.param(OLD + push(f"{KEY}s", "sf:{x", "k"), 1, True, id="push of other keys"),
        ],
    )
    async def test_the_cache_follows_the_order_of_the_bytes(
        self, segment: bytes, answer: int | None, cached: bool | None
    ) -> None:
        """``cached=None``: an answer that may be kept, and need not be."""
        async with (
            ScriptedPeer() as peer,
            AsyncRouter.from_url(peer.url, config=settings(**CALM)) as r,
        ):
            looking = asyncio.create_task(r.get_linked_pod(*UID))
            lane = await peer.lane()
            await lane.look_up()
            await lane.send(segment)
            assert await looking == answer
            kept = await is_cached(r, lane)
            assert cached is None or kept is cached

    async def test_a_value_that_changed_before_its_time_to_live_was_read_is_asked_again(
        self,
    ) -> None:
        """1 was a temporary link; a persistent 2 took its place between the two replies: 1 never was persistent."""
        async with (
            ScriptedPeer() as peer,
            AsyncRouter.from_url(peer.url, config=settings(**CALM)) as r,
        ):
            looking = asyncio.create_task(r.get_linked_pod_if_persist(*UID))
            lane = await peer.lane()
            await lane.look_up()
            await lane.send(bulk("1") + push(KEY) + integer(-1))
            asked_again = asyncio.create_task(lane.look_up())
            await asyncio.wait([looking, asked_again], return_when=asyncio.FIRST_COMPLETED)
            if asked_again.done():
                await lane.send(NEW)
            asked_again.cancel()
            assert await looking == 2

    async def test_a_link_that_expired_before_its_time_to_live_was_read_is_not_persistent(
        self,
    ) -> None:
        async with (
            ScriptedPeer() as peer,
            AsyncRouter.from_url(peer.url, config=settings(**CALM)) as r,
        ):
            looking = asyncio.create_task(r.get_linked_pod_if_persist(*UID))
            lane = await peer.lane()
            await lane.look_up()
            await lane.send(bulk("1") + integer(-2))
            asked_again = asyncio.create_task(lane.look_up())
            await asyncio.wait([looking, asked_again], return_when=asyncio.FIRST_COMPLETED)
            if asked_again.done():
                await lane.send(NULL + integer(-2))
            asked_again.cancel()
            assert await looking is None


class TestPieces:
    """The same bytes, cut at every place."""

    @pytest.mark.parametrize(
        ("stream", "answer", "cached"),
        [(OLD + push(KEY), 1, False), (push(KEY) + NEW, 2, True)],
        ids=["answer then push", "push then answer"],
    )
    async def test_the_order_counts_wherever_the_bytes_are_cut(
        self, stream: bytes, answer: int, cached: bool
    ) -> None:
        async with (
            ScriptedPeer() as peer,
            AsyncRouter.from_url(peer.url, config=settings(**CALM)) as r,
        ):
            lane = await first_look_up(r, peer, OLD)
            for cut in range(1, len(stream)):
                looking = asyncio.create_task(r.get_linked_pod(*UID, fresh=True))
                await lane.look_up()
                await lane.send(stream[:cut])
                await asyncio.sleep(0)
                await lane.send(stream[cut:])
                assert await looking == answer, cut
                if not cached:
                    # The push may be on its way still: an answer that follows it tells that it has been handled.
                    fence = asyncio.create_task(r.get_linked_pod(*UID[:2], "fence"))
                    await lane.look_up()
                    await lane.send(NEW)
                    await fence
                    r.invalidate(*UID[:2], "fence")
                assert await is_cached(r, lane) is cached, cut


class TestRealServers:
    """A proxy holds a server's bytes until all of them are there, and sends them in one write."""

    @pytest.fixture
    async def held(self, single: LocalServer) -> AsyncIterator[tuple[Proxy, AsyncRouter]]:
        async with (
            Proxy(single.node.address) as proxy,
            AsyncRouter.from_url(proxy.url, config=settings(**CALM)) as router,
        ):
            yield proxy, router

    async def test_an_answer_and_its_invalidation_arrive_together(
        self, held: tuple[Proxy, AsyncRouter], other: Raw, namespace: str
    ) -> None:
        proxy, router = held
        for round_ in range(100):
            uid = (namespace, f"u{round_}", "chat")
            await other.set(link_key(*uid), 1)
            await router.get_linked_pod(*uid[:2], "fence", fresh=True)
            proxy.replies.hold()
            looking = asyncio.create_task(router.get_linked_pod(*uid))
            await proxy.replies.holds(bulk("1") + integer(-1))
            await other.set(link_key(*uid), 2)
            await proxy.replies.holds(bulk("1") + integer(-1) + push(link_key(*uid)))
            proxy.replies.release()
            assert await looking == 1  # the truth when it was asked
            assert await router.get_linked_pod(*uid) == 2

    async def test_an_invalidation_and_the_next_answer_arrive_together(
        self, held: tuple[Proxy, AsyncRouter], other: Raw, namespace: str
    ) -> None:
        proxy, router = held
        for round_ in range(100):
            uid = (namespace, f"u{round_}", "chat")
            await other.set(link_key(*uid), 1)
            assert await router.get_linked_pod(*uid) == 1
            proxy.replies.hold()
            await other.set(link_key(*uid), 2)
            await proxy.replies.holds(push(link_key(*uid)))
            looking = asyncio.create_task(router.get_linked_pod(*uid, fresh=True))
            await proxy.replies.holds(push(link_key(*uid)) + bulk("2") + integer(-1))
            proxy.replies.release()
            assert await looking == 2
            hits = router.stats().cache.hits
            assert await router.get_linked_pod(*uid) == 2
            assert router.stats().cache.hits == hits + 1

    async def test_a_look_up_whose_two_commands_are_torn_apart_by_a_write(
        self, held: tuple[Proxy, AsyncRouter], other: Raw, namespace: str
    ) -> None:
        """GET reaches the server before the write, PTTL after it: no link that never was is told of."""
        proxy, router = held
        uid = (namespace, "ada", "chat")
        key = link_key(*uid)
        await router.get_linked_pod(*uid[:2], "fence")
        await other.set(key, 1, ex=100)
        get = b"*2\r\n" + bulk("GET") + bulk(key)
        proxy.requests.hold()
        looking = asyncio.create_task(router.get_linked_pod_if_persist(*uid))
        await proxy.requests.holds(get)
        proxy.replies.hold()
        proxy.requests.release(first=len(get))
        await proxy.replies.holds(bulk("1"))
        await other.set(key, 2)
        await proxy.replies.holds(push(key))
        proxy.resume()
        assert await looking in {None, 2}
        assert await router.get_linked_pod_if_persist(*uid) == 2


class TestCutReplies:
    async def test_an_answer_cut_in_the_middle_is_asked_for_again(
        self, single: LocalServer, other: Raw, namespace: str
    ) -> None:
        uid = (namespace, "ada", "chat")
        await other.set(link_key(*uid), 12345)
        answer = bulk("12345") + integer(-1)
        calm = settings(**CALM)  # no PONG is cut instead
        async with (
            Proxy(single.node.address) as proxy,
            AsyncRouter.from_url(proxy.url, config=calm) as router,
        ):
            for cut in range(0, len(answer), 4):
                await router.get_linked_pod(*uid[:2], "fence", fresh=True)
                before = router.stats().lanes[0].reconnects
                proxy.replies.cut(after=cut)
                assert await router.get_linked_pod(*uid, fresh=True) == 12345
                assert router.stats().lanes[0].reconnects == before + 1
