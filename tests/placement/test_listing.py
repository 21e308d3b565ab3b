"""Listing links, removing idle ones and erasing a uid: on real clusters, through both fronts."""

from __future__ import annotations

import asyncio
import tracemalloc
from contextlib import closing
from typing import Any

import pytest
import redis.cluster
from support.program import LinkProgram, StateProgram, make_idle, pour_links

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CorruptReply,
    ListedLink,
    Lost,
    PruneProgress,
    Router,
)
from sfroute._contract.keys import link_key, link_prefix
from sfroute._operations.listing import SCAN_COUNT
from sfroute.embedded import LocalCluster

from .conftest import ONE_SERVER
from .test_agent import until

pytestmark = ONE_SERVER

Raw = redis.cluster.RedisCluster


async def every(steps: Any, found: list[Any] | None = None) -> list[Any]:
    """All that an iterator of either front yields; ``found`` has it even if the iterator raises."""
    found = [] if found is None else found
    if hasattr(steps, "__aiter__"):
        async for each in steps:
            found.append(each)
    else:
        await asyncio.to_thread(found.extend, steps)
    return found


class TestLinks:
    @pytest.mark.slow
    async def test_each_link_of_the_service_and_no_other(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        expected = {}
        for number in range(300):
            uid = f"u{number}"
            LinkProgram(raw, namespace, uid, "chat").set_link(number % 3, 50 if number % 2 else -1)
            expected[uid] = number % 3
        for other in [(namespace, "u1", "game"), (f"{namespace}x", "u1", "chat")]:
            LinkProgram(raw, *other).set_link(9)
        found = await every(router.links(namespace, "chat"))
        assert {link.uid: link.pod for link in found} == expected
        assert len(found) == 300
        for link in found:
            odd = int(link.uid[1:]) % 2
            assert link.persistent == (not odd)
            assert (link.expires_in is not None and 40 < link.expires_in <= 50) == bool(odd)
        assert "u1" not in repr(found)
        one = await every(router.links(namespace, "chat", 2))
        assert {link.uid for link in one} == {uid for uid, pod in expected.items() if pod == 2}

    async def test_uids_of_any_letters(self, router: Any, raw: Raw, namespace: str) -> None:
        uids = {"*", "a?[b]\\", "é ü", ":lk:", "x" * 512}
        for uid in uids:
            LinkProgram(raw, namespace, uid, "a*b").set_link(1)
        LinkProgram(raw, namespace, "ada", "aXb").set_link(1)
        assert {link.uid for link in await every(router.links(namespace, "a*b"))} == uids

    async def test_keys_that_are_no_links_are_named_after_all_others(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        uids = {f"u{number}" for number in range(30)}
        for uid in uids:
            LinkProgram(raw, namespace, uid, "chat").set_link(1)
        for uid, value in [("grace", "nowhere"), ("heidi", "-5")]:
            raw.set(link_key(namespace, uid, "chat"), value)
        found: list[ListedLink] = []
        with pytest.raises(CorruptReply, match=r"^links: 2 links cannot be read") as trouble:
            await every(router.links(namespace, "chat"), found)
        assert {link.uid for link in found} == uids
        assert any(uid in trouble.value.key for uid in ("grace", "heidi"))
        assert not any(uid in str(trouble.value) for uid in ("grace", "heidi"))

    async def test_it_may_be_left_at_any_time(
        self, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        for number in range(20):
            LinkProgram(raw, namespace, f"u{number}", "chat").set_link(1)
        async with AsyncRouter.from_url(cluster.url) as router:
            async for link in router.links(namespace, "chat"):
                assert link.pod == 1
                break
        with Router.from_url(cluster.url) as sync, closing(sync.links(namespace, "chat")) as links:
            assert next(links).pod == 1

    @pytest.mark.slow
    async def test_memory_is_bounded(self, cluster: LocalCluster, raw: Raw, namespace: str) -> None:
        total = 30 * SCAN_COUNT
        pour_links(raw, namespace, "chat", (f"user-{number:032d}" for number in range(total)), 1)
        async with AsyncRouter.from_url(cluster.url) as router:
            count, peak_early = 0, 0
            tracemalloc.start()
            async for _ in router.links(namespace, "chat"):
                count += 1
                if count == total // 6:
                    peak_early = tracemalloc.get_traced_memory()[1]
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert count == total
        assert peak < 1.5 * peak_early + 500_000


class TestForget:
    async def test_nothing_is_left_of_the_uid_and_others_stay(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        for service, seconds in (("chat", -1), ("game", 60), ("a*b", -1)):
            LinkProgram(raw, namespace, "ada*", service).set_link(3, seconds)
        LinkProgram(raw, namespace, "adaX", "chat").set_link(3)
        assert await router.get_linked_pod(namespace, "ada*", "game") == 3
        assert await router.forget(namespace, "ada*") == 3
        for service in ("chat", "game", "a*b"):
            assert await router.get_linked_pod(namespace, "ada*", service) is None
        assert await router.get_link_service(namespace, "ada*") == {}
        assert await router.get_linked_pod(namespace, "adaX", "chat") == 3
        left = [
            key for key in raw.scan_iter(f"sf:*{{{namespace}:lk:ada[*]}}*") if raw.ttl(key) == -1
        ]
        assert left == []
        assert await router.forget(namespace, "ada*") == 0

    async def test_an_entry_of_the_hash_without_a_link_goes_too(
        self, router: Any, raw: Raw, uid: LinkProgram, namespace: str
    ) -> None:
        uid.set_link(3)
        raw.delete(link_key(namespace, "ada", "chat"))
        assert await router.forget(namespace, "ada") == 0
        assert await router.get_link_service(namespace, "ada", fresh=True) == {}

    async def test_the_pod_is_told_and_other_gateways_know(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as other,
            AsyncPodAgent(other, namespace, "chat", 3) as agent,
        ):
            claim = await agent.accept("ada")
            assert await other.get_linked_pod(namespace, "ada", "chat") == 3
            assert await router.forget(namespace, "ada") == 1
            async with asyncio.timeout(5):
                assert await anext(agent.events()) == Lost("ada", claim, "removed", None)
                while await other.get_linked_pod(namespace, "ada", "chat") is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            # The pod does not claim again what was erased.
            assert await router.get_linked_pod(namespace, "ada", "chat", fresh=True) is None

    async def test_damaged_keys_stop_nothing_else(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        """What can be removed is; the error says how much cannot."""
        for service, seconds in (("chat", -1), ("game", 60)):
            LinkProgram(raw, namespace, "ada", service).set_link(3, seconds)
        links = link_prefix(namespace, "ada")
        raw.hset(links, mapping={"lost": "x", "a{b": "3"})
        damaged = link_key(namespace, "ada", "damaged")
        raw.set(damaged, "nowhere")
        with pytest.raises(CorruptReply, match=r"^forget: 2 of 5 ") as trouble:
            await router.forget(namespace, "ada")
        assert trouble.value.key in (damaged, link_key(namespace, "ada", "a{b"))
        assert "ada" not in str(trouble.value)
        assert sorted(raw.scan_iter(f"sf:{{{namespace}:lk:ada}}*")) == sorted([links, damaged])
        assert raw.hgetall(links) == {"a{b": "3"}
        raw.delete(damaged)
        raw.delete(links)
        assert await router.forget(namespace, "ada") == 0

    async def test_a_hash_that_is_none_keeps_nothing_else(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        """The scripts refuse to touch such a uid, and the error says so of each of its links."""
        LinkProgram(raw, namespace, "ada", "chat").set_link(3)
        links = link_prefix(namespace, "ada")
        raw.delete(links)
        raw.set(links, "x")
        with pytest.raises(CorruptReply, match=r"^forget: 2 of 2 ") as trouble:
            await router.forget(namespace, "ada")
        assert trouble.value.key == links
        raw.delete(links)
        assert await router.forget(namespace, "ada") == 1


class TestPrune:
    def idle_links(self, raw: Raw, namespace: str) -> None:
        # Redis 7 keeps one object for all keys that hold the same number below 10,000, and so one idle time.
        for number in range(40):
            uid = f"old-{number}"
            LinkProgram(raw, namespace, uid, "chat").set_link(20_000 + number % 2)
            make_idle(raw, link_key(namespace, uid, "chat"))
        LinkProgram(raw, namespace, "brief", "chat").set_link(20_001, 60)
        LinkProgram(raw, namespace, "new", "chat").set_link(20_001)

    async def test_idle_links_go_and_no_other(
        self, router: Any, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as at_pod,
            AsyncPodAgent(at_pod, namespace, "chat", 20_001, confirm_every=1000.0) as agent,
        ):
            await agent.accept("claimed")
            self.idle_links(raw, namespace)
            counted = (await every(router.prune(namespace, "chat", idle=1800.0, dry_run=True)))[-1]
            assert (counted.scanned, counted.idle, counted.removed) == (43, 40, 0)
            steps = await every(router.prune(namespace, "chat", idle=1800.0))
            assert steps[-1] == PruneProgress(43, 40, counted.claimed, removed=40, done=True)
            assert [step.done for step in steps].count(True) == 1
            left = {link.uid for link in await every(router.links(namespace, "chat"))}
            assert left == {"brief", "new", "claimed"}
            assert agent.owns("claimed")

    async def test_the_claims_of_the_dead_hold_nobody(
        self, router: Any, cluster: LocalCluster, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        async with AsyncRouter.from_url(cluster.url) as at_pod:
            agent = AsyncPodAgent(at_pod, namespace, "chat", 20_001)
            await agent.start()
            await agent.accept("claimed")
            await agent.stop()
        make_idle(raw, link_key(namespace, "claimed", "chat"))
        self.idle_links(raw, namespace)
        last = (await every(router.prune(namespace, "chat", idle=1800.0)))[-1]
        assert (last.removed, last.claimed) == (41, 0)

    async def test_it_keeps_to_its_rate(self, router: Any, raw: Raw, namespace: str) -> None:
        self.idle_links(raw, namespace)
        loop = asyncio.get_running_loop()
        began = loop.time()
        last = (await every(router.prune(namespace, "chat", idle=1800.0, rate=40.0)))[-1]
        assert last.removed == 40
        assert loop.time() - began >= 0.9

    async def test_who_has_come_back_before_their_turn_stays(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        for _ in range(5):
            back, left, last = await self.come_back(router, raw, namespace)
            assert left == back
            # Whoever came back before their page was looked at is not even counted.
            assert 6 - len(back) <= last.idle <= 6
            assert (last.removed, last.failed) == (6 - len(back), 0)
            if back:
                return
        raise AssertionError("everybody came too late")

    async def come_back(
        self, router: Any, raw: Raw, namespace: str
    ) -> tuple[set[str], set[str], PruneProgress]:
        """Prune six links, slowly. Those who came back when one had gone, who is left, and the outcome."""
        uids = [f"slow-{number}" for number in range(6)]
        for uid in uids:
            LinkProgram(raw, namespace, uid, "chat").set_link(20_000)
            make_idle(raw, link_key(namespace, uid, "chat"))
        steps = asyncio.create_task(every(router.prune(namespace, "chat", idle=1800.0, rate=2.0)))
        # EXISTS leaves a link as idle as it is.
        await until(
            lambda: not all(raw.exists(link_key(namespace, uid, "chat")) for uid in uids), 20.0
        )
        found = await router.batch_get_linked_pod(namespace, uids, "chat", fresh=True)
        last = (await steps)[-1]
        left = {link.uid for link in await every(router.links(namespace, "chat"))}
        return set(found.get(20_000, [])), left, last

    async def test_damaged_keys_are_counted_and_stop_nothing_else(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        uids = [f"u{number}" for number in range(30)]
        for uid in uids:
            LinkProgram(raw, namespace, uid, "chat").set_link(20_000)
            make_idle(raw, link_key(namespace, uid, "chat"))
        raw.delete(link_prefix(namespace, "u0"))
        raw.set(link_prefix(namespace, "u0"), "x")
        raw.hset(link_prefix(namespace, "u1"), "chat", "x")
        raw.set(link_key(namespace, "u2", "chat"), "nowhere")
        make_idle(raw, link_key(namespace, "u2", "chat"))
        counted = (await every(router.prune(namespace, "chat", idle=1800.0, dry_run=True)))[-1]
        assert counted == PruneProgress(30, 28, failed=2, done=True)
        last = (await every(router.prune(namespace, "chat", idle=1800.0)))[-1]
        # An idle link is not read, only its hash.
        assert last == PruneProgress(30, 28, removed=28, failed=2, done=True)
