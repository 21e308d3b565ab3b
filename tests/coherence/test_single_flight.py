"""However many ask at once, the store is asked once for each uid, over one connection for each primary."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from support.observe import commands
from support.proxy import Proxy
from support.scripted import bulk, integer

from sfroute import AsyncRouter, CorruptReply, StoreError, StoreUnavailable
from sfroute._contract.introduction import read_introduction
from sfroute._contract.keys import link_key, link_prefix
from sfroute.config import RetryConfig, RouterConfig
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import CALM, Raw, cached, settings

CROWD = 10_000


def connections_of(cluster: LocalCluster, client_name: str) -> dict[tuple[str, int], list[bool]]:
    """Address -> the connections there of the routers with this name, each: whether the node tracks what it reads.

    Only lanes ask for that. They rename themselves while they live, so it is the introduction that counts.
    """
    found: dict[tuple[str, int], list[bool]] = {}
    for node in cluster.nodes:
        found[node.address] = []
        for line in str(cluster.execute(node, "CLIENT", "LIST")).splitlines():
            fields = dict(field.partition("=")[::2] for field in line.split(" "))
            said = read_introduction(fields["name"])
            if said is not None and said.name == client_name:
                found[node.address].append("t" in fields["flags"])
    return found


class TestCrowds:
    # On a busy machine ten thousand callers may keep the loop from a heartbeat.

    async def test_ten_thousand_on_one_uid_are_one_get_and_one_pttl(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        uid = (namespace, "ada", "chat")
        async with AsyncRouter.from_url(cluster.url, config=settings(**CALM)) as router:
            await router.set_linked_pod(*uid, 7)
            before = commands(cluster)
            answers = await asyncio.gather(*(router.get_linked_pod(*uid) for _ in range(CROWD)))
            assert answers == [7] * CROWD
            assert commands(cluster) - before == {"get": 1, "pttl": 1}
            stats = router.stats().cache
        assert (stats.misses, stats.joined) == (1, CROWD - 1)

    async def test_whatever_they_ask_of_it(self, cluster: LocalCluster, namespace: str) -> None:
        uid = (namespace, "ada", "chat")
        async with AsyncRouter.from_url(cluster.url, config=settings(**CALM)) as router:
            await router.set_linked_pod(*uid, 7)
            before = commands(cluster)
            answers = await asyncio.gather(
                *(router.get_linked_pod(*uid) for _ in range(1000)),
                *(router.get_linked_pod_if_persist(*uid) for _ in range(1000)),
            )
            services = await asyncio.gather(
                *(router.get_link_service(*uid[:2]) for _ in range(1000))
            )
            batches = await asyncio.gather(
                *(router.batch_get_linked_pod(namespace, ["ada"], "chat") for _ in range(100))
            )
            assert answers == [7] * 2000
            assert services == [{"chat": 7}] * 1000
            assert batches == [{7: ["ada"]}] * 100
            assert commands(cluster) - before == {"get": 1, "pttl": 1, "hgetall": 1}

    @pytest.mark.slow
    async def test_ten_thousand_uids_use_one_lane_for_each_primary(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        # A name that no other router has, however many others are connected.
        own = f"lanes-{secrets.token_hex(4)}"
        config = settings(RouterConfig(client_name=own), **CALM)
        async with AsyncRouter.from_url(cluster.url, config=config) as router:
            await router.set_linked_pod(namespace, "u0", "chat", 7)
            # A primary that does not know the script yet is sent its source.
            by_the_write = router.stats().retries
            before = commands(cluster)
            answers = await asyncio.gather(
                *(router.get_linked_pod(namespace, f"u{n}", "chat") for n in range(CROWD))
            )
            assert answers == [7] + [None] * (CROWD - 1)
            assert commands(cluster) - before == {"get": CROWD, "pttl": CROWD}
            primaries = {node.address for node in cluster.nodes if node.slots}
            connections = connections_of(cluster, own)
            assert {address: sum(found) for address, found in connections.items()} == {
                node.address: int(node.address in primaries) for node in cluster.nodes
            }
            # The write went over another connection, which is known by the same name.
            assert any(False in found for found in connections.values())
            stats = router.stats()
            assert [lane.reconnects for lane in stats.lanes] == [0] * 3
            assert stats.retries == by_the_write
            # All of them are tracked now: the next round asks nobody.
            before = commands(cluster)
            again = await asyncio.gather(
                *(router.get_linked_pod(namespace, f"u{n}", "chat") for n in range(CROWD))
            )
            assert again == answers
            assert commands(cluster) == before

    async def test_what_is_under_way_is_bounded_and_the_rest_waits(
        self, single: LocalServer, namespace: str
    ) -> None:
        few = settings(RouterConfig(max_in_flight=64), **CALM)
        async with (
            Proxy(single.node.address) as proxy,
            AsyncRouter.from_url(proxy.url, config=few) as router,
        ):
            await router.get_linked_pod(namespace, "fence", "chat")
            proxy.replies.hold()
            before = proxy.commands["GET"]
            looking = [
                asyncio.create_task(router.get_linked_pod(namespace, f"u{n}", "chat"))
                for n in range(1000)
            ]
            await proxy.replies.holds(b"_\r\n:-2\r\n" * 32)
            assert proxy.commands["GET"] - before == 32
            lane = router.stats().lanes[0]
            assert (lane.in_flight, lane.waiting) == (64, 1000 - 32)
            proxy.replies.release()
            assert await asyncio.gather(*looking) == [None] * 1000


class TestLeaders:
    @pytest.fixture
    def uid(self, namespace: str) -> tuple[str, str, str]:
        return (namespace, "ada", "chat")

    async def test_the_first_caller_is_cancelled_and_the_others_are_served(
        self, single: LocalServer, other: Raw, uid: tuple[str, str, str]
    ) -> None:
        await other.set(link_key(*uid), 7)
        async with (
            Proxy(single.node.address) as proxy,
            AsyncRouter.from_url(proxy.url, config=settings(**CALM)) as router,
        ):
            await router.get_linked_pod(*uid[:2], "fence")
            proxy.replies.hold()
            sent = proxy.commands["GET"]
            leader = asyncio.create_task(router.get_linked_pod(*uid))
            await asyncio.sleep(0)
            followers = [asyncio.create_task(router.get_linked_pod(*uid)) for _ in range(1000)]
            await proxy.replies.holds(bulk("7") + integer(-1))
            leader.cancel()
            for follower in followers[::2]:
                follower.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader
            proxy.replies.release()
            assert await asyncio.gather(*followers[1::2]) == [7] * 500
            assert proxy.commands["GET"] == sent + 1
            assert await cached(router, uid) == 7
            assert router.stats().lanes[0].reconnects == 0

    async def test_all_callers_are_cancelled_and_the_answer_is_kept_for_the_next(
        self, single: LocalServer, other: Raw, uid: tuple[str, str, str]
    ) -> None:
        await other.set(link_key(*uid), 7)
        async with (
            Proxy(single.node.address) as proxy,
            AsyncRouter.from_url(proxy.url, config=settings(**CALM)) as router,
        ):
            await router.get_linked_pod(*uid[:2], "fence")
            proxy.replies.hold()
            for timeout in (0.0, 0.01, 0.02):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await router.get_linked_pod(*uid)
            await proxy.replies.holds(bulk("7") + integer(-1))
            sent = proxy.commands["GET"]
            proxy.replies.release()
            assert await router.get_linked_pod(*uid) == 7
            assert await cached(router, uid) == 7
            assert proxy.commands["GET"] == sent


class TestErrors:
    async def test_a_corrupt_key_is_no_entry(
        self, single: LocalServer, other: Raw, namespace: str
    ) -> None:
        uid = (namespace, "ada", "chat")
        async with AsyncRouter.from_url(single.url, config=settings()) as router:
            for corrupt in ("one", "-1", "1.0", "", "9" * 30):
                await other.set(link_key(*uid), corrupt)
                router.invalidate(
                    *uid
                )  # the push may come later than the reply to the other client
                crowd = [router.get_linked_pod(*uid) for _ in range(100)]
                errors = await asyncio.gather(*crowd, return_exceptions=True)
                assert all(isinstance(error, CorruptReply) for error in errors)
                assert len({id(error) for error in errors}) == 100  # each caller its own
                await other.set(link_key(*uid), 7)
                assert await router.get_linked_pod(*uid) == 7
            await other.delete(link_key(*uid))
            await other.rpush(link_key(*uid), "7")
            router.invalidate(*uid)
            with pytest.raises(CorruptReply):
                await router.get_linked_pod(*uid)
            await other.set(link_prefix(*uid[:2]), "no hash")
            with pytest.raises(CorruptReply):
                await router.get_link_service(*uid[:2])
            await other.delete(link_key(*uid), link_prefix(*uid[:2]))
            assert await router.get_linked_pod(*uid) is None
            assert await router.get_link_service(*uid[:2]) == {}

    async def test_a_refused_command_is_no_entry(
        self, own_server: LocalServer, namespace: str
    ) -> None:
        uid = (namespace, "ada", "chat")
        own_server.execute("SET", link_key(*uid), 7)
        own_server.execute("ACL", "SETUSER", "gateway", "on", ">pw", "~sf:*", "+@all", "-get")
        url = own_server.url.replace("redis://", "redis://gateway:pw@")
        async with AsyncRouter.from_url(url, config=settings()) as router:
            with pytest.raises(StoreError, match="NOPERM") as refused:
                await router.get_linked_pod(*uid)
            assert not refused.value.retryable
            own_server.execute("ACL", "SETUSER", "gateway", "+get")
            assert await router.get_linked_pod(*uid) == 7

    async def test_no_answer_in_time_is_no_entry(
        self, single: LocalServer, other: Raw, namespace: str
    ) -> None:
        uid = (namespace, "ada", "chat")
        await other.set(link_key(*uid), 7)
        # Not shorter: opening, and the lookup afterwards, must have time enough on a busy machine, too.
        hasty = settings(RouterConfig(retry=RetryConfig(deadline=1.0)))
        async with (
            Proxy(single.node.address) as proxy,
            AsyncRouter.from_url(proxy.url, config=hasty) as router,
        ):
            await router.get_linked_pod(*uid[:2], "fence")
            proxy.hang()
            crowd = [router.get_linked_pod(*uid) for _ in range(100)]
            errors = await asyncio.gather(*crowd, return_exceptions=True)
            assert all(isinstance(error, StoreUnavailable) for error in errors)
            proxy.resume()
            assert await router.get_linked_pod(*uid) == 7

    async def test_an_opening_that_failed_unseen_is_tried_anew(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        """The only caller gave up first; the next one, later, must not be told of that attempt."""
        hasty = RouterConfig(retry=RetryConfig(deadline=0.2, connect_timeout=0.1))
        async with Proxy(cluster.startup_nodes[0]) as name:
            name.refuse()
            url = "redis+cluster://{}:{}".format(*name.address)
            router = AsyncRouter.from_url(url, config=hasty)
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await router.get_linked_pod(namespace, "ada", "chat")
                await asyncio.sleep(0.4)
                await name.accept()
                assert await router.get_linked_pod(namespace, "ada", "chat") is None
            finally:
                await router.aclose()
