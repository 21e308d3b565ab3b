"""Errors of the store, each by its name: what is sent again, what is not, and what the caller is told.

From a real server where one can be made to give the error, else from a scripted peer.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import redis
from conftest import make_cluster
from support.peer import Peer, bulk, script_reply
from support.proxy import ProxiedCluster, Proxy
from support.scripted import ScriptedPeer
from support.stalls import Stalls

from sfroute import (
    AsyncRouter,
    CacheConfig,
    OutcomeUnknown,
    RetryConfig,
    RouterConfig,
    ScriptFailed,
    StoreError,
    StoreUnavailable,
    TrySetResult,
)
from sfroute._contract.keys import link_key, link_prefix, slot_of
from sfroute._contract.scripts import get_script
from sfroute._net.connection import Address
from sfroute.embedded import LocalCluster, LocalServer

LINK = ("ns", "u", "chat")
QUIET = CacheConfig(max_age=0, heartbeat=30, heartbeat_timeout=60)
"""No PING in between, and nothing from the cache."""
CONFIG = RouterConfig(cache=QUIET)
IMPATIENT = replace(CONFIG, retry=RetryConfig(deadline=0.5))


def script_of(uid: str = "u") -> tuple[str, list[str], list[str | int]]:
    """A call of execute_script, which may not be repeated."""
    return (
        "statefulSetLink",
        [link_key("ns", uid, "chat"), link_prefix("ns", uid)],
        ["chat", 3, -1],
    )


@pytest.fixture
def own_server(server: str, server_binary: str | None) -> Iterator[LocalServer]:
    with LocalServer(server_binary=server_binary) as single:
        yield single


# --- errors that prove that nothing was executed

PASSING = {
    "LOADING": "LOADING Valkey is loading the dataset in memory",
    "MASTERDOWN": "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY": "READONLY You can't write against a read only replica.",
    "CLUSTERDOWN": "CLUSTERDOWN The cluster is down",
    "TRYAGAIN": "TRYAGAIN Multiple keys request during rehashing of slot",
    "NOREPLICAS": "NOREPLICAS Not enough good replicas to write.",
    "BUSY": "BUSY Valkey is busy running a script.",
    "MAXCLIENTS": "ERR max number of clients reached",
}


@pytest.mark.parametrize("code", PASSING)
async def test_a_write_outlasts_what_passes(code: str) -> None:
    error = f"-{PASSING[code]}\r\n".encode()
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        peer.answer("evalsha", error, error, script_reply("4"))
        assert await router.set_linked_pod(*LINK, 5) == 4
        assert router.stats().retries == {code: 2}


@pytest.mark.parametrize("code", PASSING)
async def test_what_may_not_be_repeated_outlasts_it_too(code: str) -> None:
    error = f"-{PASSING[code]}\r\n".encode()
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        peer.answer("evalsha", error, script_reply("4"))
        assert await router.execute_script(*script_of()) == [b"4"]


@pytest.mark.parametrize("code", PASSING)
async def test_a_look_up_outlasts_what_passes(code: str) -> None:
    error = f"-{PASSING[code]}\r\n".encode()
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        peer.answer("get", error, error, bulk("4"))
        peer.answer("pttl", error, error, b":-1\r\n")
        assert await router.get_linked_pod(*LINK) == 4


@pytest.mark.parametrize("code", PASSING)
async def test_what_does_not_pass_ends_at_the_deadline_with_its_cause(code: str) -> None:
    error = f"-{PASSING[code]}\r\n".encode()
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=IMPATIENT) as router:
        peer.answer("evalsha", *[error] * 1000)
        with pytest.raises(StoreUnavailable, match="nothing was changed") as caught:
            await router.set_linked_pod(*LINK, 5)
        assert str(caught.value.__cause__) == code
        assert caught.value.retryable


async def test_a_node_that_is_loading_or_full_is_connected_to_later() -> None:
    async with Peer() as peer:
        peer.answer(
            "hello",
            b"-LOADING Valkey is loading the dataset in memory\r\n",
            b"-ERR max number of clients reached\r\n",
        )
        async with AsyncRouter.from_url(peer.url, config=CONFIG) as router:
            assert await router.set_linked_pod(*LINK, 5) is None


async def test_a_connection_that_ends_as_soon_as_it_is_there_is_made_more_and_more_rarely() -> None:
    async with Peer() as peer:
        hang_up_soon = False

        def track(_: list[bytes]) -> bytes:
            task = asyncio.current_task()
            if hang_up_soon and task is not None:
                # After the handshake, which succeeds.
                asyncio.get_running_loop().call_later(0.001, task.cancel)
            return b"+OK\r\n"

        peer.answer("client", *[track] * 1000)
        async with AsyncRouter.from_url(peer.url, config=CONFIG) as router:
            assert await router.get_linked_pod(*LINK) is None
            before, hang_up_soon = peer.accepted, True
            peer.hang_up()
            await asyncio.sleep(1.0)
            # Two connections are lost once, and one of them again and again: 10 to 20 ms apart, that would be 60.
            assert 3 < peer.accepted - before < 20
            hang_up_soon = False
            assert await router.get_linked_pod(*LINK) is None


@pytest.mark.slow
async def test_lanes_to_whatever_a_node_points_at_do_not_pile_up() -> None:
    config = replace(CONFIG, retry=RetryConfig(deadline=0.2, connect_timeout=0.1))
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        for first in range(1, 400, 20):
            for port in range(first, first + 20):
                peer.answer("get", b"-ASK 1 127.0.0.1:%d\r\n" % port)
                peer.answer("evalsha", b"-ASK 1 127.0.0.1:%d\r\n" % port)
            calls: list[Awaitable[object]] = [
                router.get_linked_pod("ns", f"u{n}", "chat") for n in range(20)
            ]
            calls += [router.set_linked_pod("ns", f"u{n}", "chat", 1) for n in range(20)]
            await asyncio.gather(*calls, return_exceptions=True)
        parts = router._inside.engine.parts_here()
        assert parts is not None
        assert len(router.stats().lanes) < 100
        assert len(parts.commands._channels) < 100
        assert await router.get_linked_pod(*LINK) is None


@pytest.mark.slow
async def test_a_look_up_begun_again_has_no_more_time(stalls: Stalls) -> None:
    config = replace(CONFIG, retry=RetryConfig(deadline=4.0))
    async with ScriptedPeer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        began = time.monotonic()
        asked = asyncio.ensure_future(router.get_linked_pod(*LINK))
        lane = await peer.lane()
        await lane.look_up()
        await asyncio.sleep(2.0)
        # A value, and a TTL that says there is none: the link changed in between, so both are asked for again.
        await lane.send(bulk("3"), b":-2\r\n")
        await lane.look_up()
        with pytest.raises(StoreUnavailable):
            await asked
        assert stalls.took(began) < 5.5  # begun anew, it would take 6


async def test_refused_connections_change_nothing() -> None:
    async with Peer() as peer:
        url = peer.url
    with pytest.raises(StoreUnavailable):
        async with AsyncRouter.from_url(url, config=IMPATIENT):
            pass
    async with Proxy(peer.address) as gone, Peer() as peer:
        gone.target = peer.address
        async with AsyncRouter.from_url(gone.url, config=IMPATIENT) as router:
            gone.refuse()
            gone.reset()
            with pytest.raises(StoreUnavailable):
                await router.get_workload_state("ns", "chat")  # until the loss has been noticed
            with pytest.raises(StoreUnavailable, match="nothing was changed"):
                await router.set_linked_pod(*LINK, 5)
            assert not peer.received("evalsha")
            await gone.accept()
            assert await router.set_linked_pod(*LINK, 5) is None


async def test_many_start_nodes_that_say_nothing_take_no_longer_than_one(stalls: Stalls) -> None:
    config = replace(CONFIG, retry=RetryConfig(deadline=0.3, connect_timeout=0.2))
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(Peer()) for _ in range(8)]
        for peer in peers:
            peer.answer("hello", *[None] * 100)
        hosts = ",".join(f"127.0.0.1:{peer.address[1]}" for peer in peers)
        router = AsyncRouter.from_url(f"redis+cluster://{hosts}", config=config)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no start node"):
            await router.open()
        assert stalls.took(began) < 1.0  # one after the other they would take 1.6 s
        await router.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 4])
async def test_where_the_nodes_lead_nowhere_the_start_nodes_are_asked_and_nothing_stays_open(
    times: int,
) -> None:
    """What stays open would be a ResourceWarning, and an error here."""
    nowhere = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n" + bulk("127.0.0.1") + b":1\r\n"
    async with Peer() as peer:
        peer.answer("cluster", *[nowhere] * times)
        async with AsyncRouter.from_url(peer.cluster_url, config=CONFIG) as router:
            assert await router.get_linked_pod(*LINK) is None
            assert len(peer.received("cluster")) > times


# --- the same from a real server


async def meanwhile(call: Awaitable[object], undo: Callable[[], object]) -> object:
    """The result of a call that needs something undone before it can end."""
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done, "it should still be waiting"
    await asyncio.to_thread(undo)
    return await task


async def test_a_server_out_of_memory(own_server: LocalServer) -> None:
    async with AsyncRouter.from_url(own_server.url, config=CONFIG) as router:
        own_server.execute("CONFIG", "SET", "maxmemory", 1)
        # At once: for as long as a caller waits, memory stays full.
        async with asyncio.timeout(CONFIG.retry.deadline - 1.0):
            with pytest.raises(StoreUnavailable, match=r"OOM.*memory is full.*nothing") as caught:
                await router.set_linked_pod(*LINK, 5)
        assert str(Address(*own_server.node.address)) in str(caught.value)
        assert caught.value.retryable
        own_server.execute("CONFIG", "SET", "maxmemory", 0)
        assert await router.set_linked_pod(*LINK, 5) is None


async def test_a_server_with_too_few_replicas(own_server: LocalServer, server: str) -> None:
    async with AsyncRouter.from_url(own_server.url, config=CONFIG) as router:
        own_server.execute("CONFIG", "SET", "min-replicas-to-write", 1)
        if server.startswith("redis62"):
            # It checks that for no command in a script: docs/how-to/servers.md.
            assert await router.set_linked_pod(*LINK, 5) is None
            return
        result = await meanwhile(
            router.set_linked_pod(*LINK, 5),
            lambda: own_server.execute("CONFIG", "SET", "min-replicas-to-write", 0),
        )
        assert result is None
        assert router.stats().retries["NOREPLICAS"] > 0


async def test_a_server_that_is_a_replica_for_a_while(own_server: LocalServer) -> None:
    async with AsyncRouter.from_url(own_server.url, config=CONFIG) as router:
        own_server.execute("REPLICAOF", "127.0.0.1", 1)
        result = await meanwhile(
            router.set_linked_pod(*LINK, 5),
            lambda: own_server.execute("REPLICAOF", "NO", "ONE"),
        )
        assert result is None
        assert router.stats().retries["READONLY"] > 0


async def test_a_server_busy_with_a_script(own_server: LocalServer) -> None:
    own_server.execute("CONFIG", "SET", "lua-time-limit", 50)
    endless = threading.Thread(target=_run_endless_script, args=(own_server,))
    async with AsyncRouter.from_url(own_server.url, config=CONFIG) as router:
        endless.start()
        while True:
            try:
                await asyncio.to_thread(own_server.execute, "PING")
            except redis.ResponseError:
                break
        result = await meanwhile(
            router.set_linked_pod(*LINK, 5), lambda: own_server.execute("SCRIPT", "KILL")
        )
        assert result is None
        assert router.stats().retries["BUSY"] > 0
    endless.join()


def _run_endless_script(server: LocalServer) -> None:
    with pytest.raises(redis.ResponseError):
        server.execute("EVAL", "while true do end", 0)


async def test_a_server_that_has_forgotten_its_scripts(own_server: LocalServer) -> None:
    async with AsyncRouter.from_url(own_server.url, config=CONFIG) as router:
        assert await router.set_linked_pod(*LINK, 5) is None
        own_server.execute("SCRIPT", "FLUSH")
        assert await router.set_linked_pod(*LINK, 6) == 5
        assert await router.set_linked_pod(*LINK, 7) == 6
        assert router.stats().retries == {"NOSCRIPT": 2}


async def test_a_server_with_no_room_for_another_client(own_server: LocalServer) -> None:
    taken = redis.Redis(host=own_server.node.host, port=own_server.node.port)
    try:
        taken.ping()
        taken.config_set("maxclients", 1)
        router = AsyncRouter.from_url(own_server.url, config=CONFIG)
        await meanwhile(router.open(), lambda: taken.config_set("maxclients", 100))
        assert await router.set_linked_pod(*LINK, 5) is None
        await router.aclose()
    finally:
        taken.close()


async def test_moved(own_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(own_cluster.url, config=CONFIG) as router:
        assert await router.set_linked_pod(*LINK, 5) is None
        slot = slot_of(link_key(*LINK))
        source = own_cluster.primary_of(slot)
        target = next(n for n in own_cluster.nodes if n.role == "primary" and n is not source)
        await asyncio.to_thread(own_cluster.move_slot, slot, target)
        assert await router.set_linked_pod(*LINK, 6) == 5
        assert await router.get_linked_pod(*LINK) == 6
        assert router.stats().retries["MOVED"] > 0


async def test_nodes_that_do_not_tell_their_host(server: str) -> None:
    """As behind a load balancer: a node's host is that of whoever was asked."""
    if server.startswith("redis62"):
        pytest.skip("Redis before 7.0 always tells its address")
    directives = {"cluster-preferred-endpoint-type": "unknown-endpoint"}
    with make_cluster(server, replicas_per_primary=0, extra_config=directives) as cluster:
        # One start node: the others are found by its host and their ports.
        host, port = cluster.startup_nodes[0]
        url = f"redis+cluster://{host}:{port}"
        async with AsyncRouter.from_url(url, config=CONFIG) as router:
            for number in range(9):
                assert await router.set_linked_pod("ns", f"u{number}", "chat", 5) is None
            assert router.stats().retries == {"NOSCRIPT": 3}  # of the script, once on each node


@pytest.mark.slow
async def test_ask_and_tryagain(own_cluster: LocalCluster) -> None:
    """Halfway to another node, lookups follow ASK; scripts, which name a key that is not there yet, wait."""
    async with AsyncRouter.from_url(own_cluster.url, config=CONFIG) as router:
        assert await router.set_linked_pod(*LINK, 5) is None
        slot = slot_of(link_key(*LINK))
        source = own_cluster.primary_of(slot)
        target = next(n for n in own_cluster.nodes if n.role == "primary" and n is not source)
        with own_cluster.moving_slot(slot, target):
            own_cluster.move_keys(slot, source, target)
            looked_up = await asyncio.gather(
                *(router.get_linked_pod(*LINK, fresh=True) for _ in range(50))
            )
            assert looked_up == [5] * 50
            assert await router.get_linked_pod("ns", "u", "absent") is None
            assert await router.get_link_service("ns", "u") == {"chat": 5}
            writing = asyncio.ensure_future(router.set_linked_pod(*LINK, 6))
            done, _ = await asyncio.wait([writing], timeout=0.3)
            assert not done
        assert await writing == 5
        assert router.stats().retries["ASK"] > 0
        assert router.stats().retries["TRYAGAIN"] > 0


async def test_asking_leaves_together_with_its_command() -> None:
    async with (
        Peer() as owner,
        Peer() as target,
        AsyncRouter.from_url(owner.cluster_url, config=CONFIG) as router,
    ):
        ask = b"-ASK %d %b:%d\r\n" % (
            slot_of(link_key(*LINK)),
            target.address[0].encode(),
            target.address[1],
        )
        owner.answer("evalsha", ask, ask)
        target.answer("evalsha", b"-NOSCRIPT No matching script.\r\n", script_reply("4"))
        target.answer("eval", script_reply("3"))
        assert await router.set_linked_pod(*LINK, 5) == 3
        assert await router.set_linked_pod(*LINK, 5) == 4
        owner.answer("get", ask)
        owner.answer("pttl", ask)
        target.answer("get", bulk("6"))
        target.answer("pttl", b":-1\r\n")
        assert await router.get_linked_pod(*LINK) == 6
    asking = b"*1\r\n$6\r\nASKING\r\n"
    packed = [data for data in target.writes if asking in data]
    followed = [data.split(asking)[1:] for data in packed]
    assert [len(each) for each in followed] == [1, 1, 1, 2]
    assert all(command for each in followed for command in each)


# --- losses that leave open whether it was executed


@pytest.mark.parametrize("answer", [None, Peer.HANG_UP], ids=["silence", "end"])
async def test_a_repeatable_write_is_repeated_under_the_same_name(answer: bytes | None) -> None:
    config = replace(CONFIG, cache=CacheConfig(max_age=0, heartbeat=0.1, heartbeat_timeout=0.3))
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        peer.answer("evalsha", answer, script_reply("4"))
        if answer is None:
            peer.answer("ping", *[None] * 3)
        assert await router.set_linked_pod(*LINK, 5) == 4
        first, second = peer.received("evalsha")
        assert first == second
        assert first[5].startswith(b"sf:op:{ns:lk:u}:")


async def test_a_script_of_the_callers_own_is_not_repeated() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        peer.answer("evalsha", Peer.HANG_UP)
        with pytest.raises(OutcomeUnknown, match="may or may not have been executed") as caught:
            await router.execute_script(*script_of())
        assert len(peer.received("evalsha")) == 1
        assert caught.value.operation == "execute_script"
        assert not caught.value.retryable


async def test_a_script_that_only_reads_is_repeated() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        peer.answer("evalsha", Peer.HANG_UP, script_reply("4"))
        key = link_key(*LINK)
        assert await router.execute_script("statefulGetLinkIfPersist", [key], []) == [b"4"]


@pytest.mark.parametrize("repeatable", [True, False])
async def test_no_answer_until_the_deadline(repeatable: bool) -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=IMPATIENT) as router:
        peer.answer("evalsha", *[None] * 10)
        writing: Awaitable[object] = (
            router.set_linked_pod(*LINK, 5) if repeatable else router.execute_script(*script_of())
        )
        with pytest.raises(OutcomeUnknown, match=r"no answer came within 0\.5 s"):
            await writing
        peer.answer("get", None)
        peer.answer("pttl", None)
        with pytest.raises(StoreUnavailable):
            await router.get_linked_pod(*LINK)


async def test_a_refused_repetition_leaves_open_what_the_first_one_did() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        peer.answer("evalsha", Peer.HANG_UP, b"-ERR the server has changed its mind\r\n")
        with pytest.raises(OutcomeUnknown, match="repetition was refused"):
            await router.set_linked_pod(*LINK, 5)
        peer.answer("evalsha", b"-ERR a script failed\r\n")
        with pytest.raises(ScriptFailed):
            await router.set_linked_pod(*LINK, 5)


# --- exactly once: the reply is swallowed, the connection cut


async def test_a_redirected_repetition_of_a_single_node_leaves_it_open_too() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        # Once another server is looked for behind the same address; then it is what it says.
        peer.answer("evalsha", Peer.HANG_UP, *[b"-MOVED 1 127.0.0.1:1\r\n"] * 9)
        with pytest.raises(OutcomeUnknown, match="MOVED"):
            await router.set_linked_pod(*LINK, 5)


async def test_a_password_that_is_refused_for_a_moment_while_it_is_rotated() -> None:
    config = replace(CONFIG, cache=replace(QUIET, max_age=60))
    refusal = b"-WRONGPASS invalid username-password pair\r\n"
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        assert await router.get_linked_pod(*LINK) is None
        peer.answer("hello", *[refusal] * 6)
        peer.hang_up()
        assert await router.set_linked_pod(*LINK, 5) is None
        assert await router.get_linked_pod(*LINK, fresh=True) is None
        assert not peer.answers["hello"]
    # Whoever has never been let in is told at once.
    async with Peer() as peer:
        peer.answer("hello", *[refusal] * 6)
        router = AsyncRouter.from_url(peer.url, config=config)
        with pytest.raises(StoreError, match="WRONGPASS") as caught:
            await router.open()
        assert not caught.value.retryable
        assert len(peer.received("hello")) == 1
        await router.aclose()


async def test_a_refused_password_is_told_at_the_deadline_to_who_wants_no_old_answer() -> None:
    config = replace(IMPATIENT, cache=replace(QUIET, max_age=60))
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        peer.answer("get", bulk("3"))
        peer.answer("pttl", b":-1\r\n")
        assert await router.get_linked_pod(*LINK) == 3
        peer.answer("hello", *[b"-WRONGPASS invalid username-password pair\r\n"] * 100)
        peer.hang_up()
        async with asyncio.timeout(20):
            with pytest.raises(StoreUnavailable, match="WRONGPASS") as caught:
                await router.get_linked_pod(*LINK, fresh=True)
            assert caught.value.retryable
            with pytest.raises(StoreUnavailable, match="WRONGPASS"):
                await router.set_linked_pod("ns", "bob", "chat", 1)
        assert (await router.get_linked_pod(*LINK)) == 3


@pytest.mark.slow
async def test_a_write_happens_once_and_tells_the_truth(own_server: LocalServer) -> None:
    address = (own_server.node.host, own_server.node.port)
    async with Proxy(address) as proxy, AsyncRouter.from_url(proxy.url, config=CONFIG) as router:

        async def cut(call: Awaitable[object], after: int = 0) -> object:
            retries = router.stats().retries.get("connection", 0)
            proxy.replies.cut(after)
            result = await call
            assert router.stats().retries["connection"] > retries
            return result

        for after in range(8):  # the first bytes of the reply may pass
            uid = ("ns", f"u{after}", "chat")
            assert await cut(router.set_linked_pod(*uid, 1), after) is None
            assert await cut(router.set_linked_pod(*uid, 2), after) == 1
            assert await cut(router.try_set_linked_pod(*uid, 3), after) == TrySetResult(False, 2)
            assert await cut(router.set_linked_pod_if_absent(*uid, 4), after) == 2
            assert await cut(router.move_linked_pod(*uid, 2, 5), after) == 5
            assert await cut(router.remove_linked_pod_with_id(*uid, pod=2), after) is False
            assert await cut(router.remove_linked_pod_with_id(*uid, pod=5), after) is True
            assert await cut(router.set_linked_pod_if_absent(*uid, 6), after) == 6
            assert await cut(router.remove_linked_pod(*uid), after) is True
            assert await cut(router.remove_linked_pod(*uid), after) is False
            assert await router.get_linked_pod(*uid) is None


async def test_without_records_a_lost_reply_is_an_open_question_and_nothing_is_left(
    own_server: LocalServer, namespace: str
) -> None:
    address = (own_server.node.host, own_server.node.port)
    config = replace(CONFIG, at_most_once=False)
    async with Proxy(address) as proxy, AsyncRouter.from_url(proxy.url, config=config) as router:
        uid = (namespace, "ada", "chat")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: router.set_linked_pod(*uid, 1),
            lambda: router.try_set_linked_pod(*uid, 1),
            lambda: router.set_linked_pod_if_absent(*uid, 1),
            lambda: router.remove_linked_pod_with_id(*uid, pod=1),
            lambda: router.remove_linked_pod(*uid),
        ]
        for call in calls:
            await call()
        assert own_server.execute("KEYS", f"sf:op:{{{namespace}*") == []
        await router.remove_linked_pod(*uid)
        for call in calls:
            # Both connections are there again: a set-up that is cut is no lost reply.
            await router.get_linked_pod(*uid, fresh=True)
            await router.get_workload_state(namespace, "chat")
            proxy.replies.cut(0)
            with pytest.raises(OutcomeUnknown, match="the connection was lost"):
                await call()
        # What was refused for certain is sent again all the same.
        await router.remove_linked_pod(*uid)
        own_server.execute("SCRIPT", "FLUSH")
        again = router.stats().retries["NOSCRIPT"]
        assert await router.set_linked_pod(*uid, 5) is None
        assert router.stats().retries["NOSCRIPT"] == again + 1


async def test_nor_is_a_placement_sent_again_without_a_record() -> None:
    config = replace(CONFIG, at_most_once=False)

    def answer(command: list[bytes]) -> bytes:
        if command[1].decode() == get_script("statefulGetService").sha:
            return script_reply("1000", "1", "Running", "-1")
        return Peer.HANG_UP

    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        peer.answer("evalsha", *[answer] * 10)
        with pytest.raises(OutcomeUnknown, match="the connection was lost"):
            await router.route(*LINK)
        placing = peer.received("evalsha")[-1]
        assert placing[1].decode() == get_script("statefulComputeLinkIfAbsent").sha
        assert len(peer.received("evalsha")) == 2


async def test_a_late_copy_of_a_write_changes_nothing(own_server: LocalServer) -> None:
    """A request that a stalled network delivers after its repetition was answered, and after others wrote."""
    address = (own_server.node.host, own_server.node.port)
    config = replace(CONFIG, cache=CacheConfig(max_age=0, heartbeat=0.1, heartbeat_timeout=0.3))
    async with Proxy(address) as stalled, AsyncRouter.from_url(own_server.url) as other:  # noqa: SIM117
        async with AsyncRouter.from_url(stalled.url, config=config) as router:
            assert await router.set_linked_pod(*LINK, 1) is None
            stalled.requests.hold()
            writing = asyncio.ensure_future(router.set_linked_pod(*LINK, 2))
            await stalled.requests.holds(b"EVALSHA")
            while router.stats().retries.get("connection", 0) < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
            stalled.requests.release()
            assert await writing == 1
            assert await other.set_linked_pod(*LINK, 3) == 2
            assert await router.get_linked_pod(*LINK, fresh=True) == 3


# --- callers who give up


async def test_callers_who_give_up_tear_no_connection(own_server: LocalServer) -> None:
    async with AsyncRouter.from_url(own_server.url, config=CONFIG) as router:
        await router.set_linked_pod(*LINK, 0)
        await router.get_linked_pod(*LINK)
        before = own_server.execute("INFO", "stats")

        async def give_up(number: int) -> None:
            write = router.set_linked_pod("ns", f"u{number}", "chat", number)
            read = router.get_linked_pod("ns", f"u{number}", "chat", fresh=True)
            for call in (write, read):
                try:
                    async with asyncio.timeout(number % 10 / 5000):
                        await call
                except TimeoutError:
                    pass

        own_server.execute("CLIENT", "PAUSE", 200, "ALL")
        await asyncio.gather(*(give_up(number) for number in range(400)))
        cancelled = [asyncio.ensure_future(router.set_linked_pod(*LINK, n)) for n in range(100)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        await asyncio.wait(cancelled)
        assert await router.set_linked_pod("ns", "last", "chat", 1) is None
        after = own_server.execute("INFO", "stats")
        assert router.stats().retries.keys() <= {"NOSCRIPT"}
        assert all(lane.reconnects == 0 for lane in router.stats().lanes)
    assert connections(after) - connections(before) <= 3  # those of the two INFO and CLIENT PAUSE


def connections(info: object) -> int:
    assert isinstance(info, str)
    (line,) = (line for line in info.splitlines() if line.startswith("total_connections_received"))
    return int(line.partition(":")[2])


async def test_a_write_nobody_waits_for_any_more_is_not_sent() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        task = asyncio.ensure_future(router.set_linked_pod(*LINK, 5))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await router.set_linked_pod("ns", "other", "chat", 6) is None
        assert [command[3] for command in peer.received("evalsha")] == [b"sf:{ns:lk:other}chat"]


async def test_the_callers_own_timeout_counts() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        peer.answer("evalsha", None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await router.set_linked_pod(*LINK, 5)


@pytest.mark.parametrize("late", [0.05, 0.4])
async def test_whoever_joins_a_look_up_late_has_a_deadline_of_its_own(
    late: float, stalls: Stalls
) -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=IMPATIENT) as router:
        peer.answer("get", *[None] * 10)
        peer.answer("pttl", *[None] * 10)
        first = asyncio.ensure_future(router.get_linked_pod(*LINK))
        await asyncio.sleep(late)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await router.get_linked_pod(*LINK)
        assert time.monotonic() - began > 0.45
        assert stalls.took(began) < 0.75
        with pytest.raises(StoreUnavailable):
            await first


# --- acknowledgements of replicas

DURABLE = replace(CONFIG, min_replica_acks=1, ack_timeout=0.2)


@pytest.mark.slow
async def test_a_write_is_repeated_until_its_replica_is_there(own_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(own_cluster.url, config=DURABLE) as router:
        assert await router.set_linked_pod(*LINK, 4) is None
        replica = own_cluster.replica_of(own_cluster.primary_of(link_key(*LINK)))
        own_cluster.pause(replica)
        try:
            result = await meanwhile(
                router.set_linked_pod(*LINK, 5), lambda: own_cluster.resume(replica)
            )
        finally:
            own_cluster.resume(replica)
        assert result == 4
        assert router.stats().retries["acknowledgements"] > 0


async def test_too_few_acknowledgements_until_the_deadline() -> None:
    config = replace(DURABLE, retry=RetryConfig(deadline=0.5))
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        peer.answer("wait", *[b":0\r\n"] * 1000)
        with pytest.raises(
            StoreError, match="was executed on the primary, but only 0 of 1"
        ) as caught:
            await router.set_linked_pod(*LINK, 5)
        assert type(caught.value) is StoreError
        assert caught.value.retryable
        peer.answer("evalsha", script_reply("4"))
        sent = len(peer.received("evalsha"))
        with pytest.raises(StoreError, match=r"within 0\.2 s"):
            await router.execute_script(*script_of())
        assert len(peer.received("evalsha")) == sent + 1


async def test_what_the_primary_has_done_is_no_open_question_at_the_deadline() -> None:
    config = replace(DURABLE, retry=RetryConfig(deadline=0.3))
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=config) as router:
        peer.answer("wait", None)  # still waiting when the time is up
        with pytest.raises(StoreError, match="was executed on the primary") as caught:
            await router.set_linked_pod(*LINK, 5)
        assert type(caught.value) is StoreError


async def test_no_wait_is_sat_out_for_a_script_that_a_node_does_not_know() -> None:
    known: set[bytes] = set()

    def load(command: list[bytes]) -> bytes:
        known.add(hashlib.sha1(command[1]).hexdigest().encode())
        return script_reply("3")

    def run(command: list[bytes]) -> bytes:
        return script_reply("4") if command[1] in known else b"-NOSCRIPT No matching script.\r\n"

    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=DURABLE) as router:
        peer.answer("eval", *[load] * 1000)
        peer.answer("evalsha", *[run] * 1000)
        assert await router.set_linked_pod(*LINK, 5) == 3
        assert len(peer.received("wait")) == 1
        assert await router.set_linked_pod(*LINK, 5) == 4
        # As after a failover: a node behind a new connection.
        known.clear()
        peer.hang_up()
        assert await router.set_linked_pod(*LINK, 5) == 3
        assert "NOSCRIPT" not in router.stats().retries
        assert len(peer.received("eval")) == 2


async def test_a_late_acknowledgement_is_asked_for_once_more() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=DURABLE) as router:

        def late(_: list[bytes]) -> bytes:
            time.sleep(0.12)
            return b":1\r\n"

        await router.set_linked_pod(*LINK, 4)  # brings the script
        peer.answer("evalsha", script_reply("4"), script_reply("4"))
        peer.answer("wait", late, late)
        assert await router.set_linked_pod(*LINK, 5) == 4
        assert len(peer.received("evalsha")) == 2
        assert router.stats().retries == {"acknowledgements": 1}


async def test_a_primary_that_becomes_a_replica_while_it_waits() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=DURABLE) as router:
        await router.set_linked_pod(*LINK, 4)  # brings the script
        peer.answer("evalsha", script_reply("4"), script_reply("4"))
        peer.answer("wait", b"-UNBLOCKED force unblock from blocking operation\r\n")
        assert await router.set_linked_pod(*LINK, 5) == 4
        assert len(peer.received("evalsha")) == 2


async def test_writes_that_wait_leave_together_behind_one_wait() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=DURABLE) as router:
        await router.set_linked_pod(*LINK, 4)  # brings the script
        held = asyncio.ensure_future(router.set_linked_pod("ns", "first", "chat", 1))
        peer.answer("wait", None)
        while len(peer.received("wait")) == 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        later = [
            asyncio.ensure_future(router.set_linked_pod("ns", f"u{n}", "chat", 1)) for n in range(5)
        ]
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(peer.received("evalsha")) == 1
        for task in (held, *later):
            task.cancel()
        await asyncio.wait([held, *later])
        peer.answers.clear()


async def test_an_acknowledgement_is_lost(cluster: LocalCluster, namespace: str) -> None:
    async with ProxiedCluster(node.address for node in cluster.nodes) as proxied:  # noqa: SIM117
        async with proxied.client() as client, AsyncRouter(client, config=DURABLE) as router:
            link = (namespace, "u", "chat")
            assert await router.set_linked_pod(*link, 1) is None
            proxy = proxied.proxies[cluster.primary_of(link_key(*link)).address]
            proxy.replies.cut(len(script_reply("1")))  # the reply passes, that to WAIT does not
            assert await router.set_linked_pod(*link, 2) == 1
            assert router.stats().retries["connection"] == 1
