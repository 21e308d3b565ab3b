"""Ownership: claims, sessions, the lease and events, as a pod's agent on either front tells of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import redis.cluster
from conftest import make_cluster
from support.program import LinkProgram, StateProgram, primaries

from sfroute import (
    STOPPED,
    AsyncPodAgent,
    AsyncRouter,
    CacheConfig,
    Claim,
    ConfigError,
    CorruptReply,
    InvalidArgument,
    Isolated,
    Lost,
    PlacementConfig,
    Rejoined,
    RetryConfig,
    RouterConfig,
    StoreError,
    Superseded,
)
from sfroute._contract.keys import link_key, state_key
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import ONE_SERVER
from .test_agent import AwaitableAgent, agent_of, until

pytestmark = ONE_SERVER

Raw = redis.cluster.RedisCluster
QUICK = RouterConfig(placement=PlacementConfig(pod_view_max_age=0.05, pod_timeout=1.0))
IMPATIENT = RouterConfig(
    retry=RetryConfig(deadline=0.3), cache=CacheConfig(heartbeat=0.1, heartbeat_timeout=0.3)
)


@pytest.fixture
async def speaker(make_router: Callable[..., Any], cluster: LocalCluster) -> Any:
    router = make_router(cluster.url, config=QUICK)
    await router.open()
    yield router
    await router.aclose()


@pytest.fixture
def ada(raw: Raw, namespace: str) -> LinkProgram:
    return LinkProgram(raw, namespace, "ada", "chat")


async def next_event(agent: Any, within: float = 5.0) -> Any:
    """The next thing that the agent tells."""
    async with contextlib.aclosing(agent.events()) as events:
        return await asyncio.wait_for(anext(events), within)


async def until_watched(agent: Any, uid: str = "ada") -> None:
    """Until the server pushes changes of the uid's link to the pod."""
    inner = agent.agent._agent if isinstance(agent, AwaitableAgent) else agent
    held: Any = inner._ownership.table.get(uid)
    await until(lambda: held.stretch is not None)


class TestClaims:
    async def test_a_claim_is_owned_until_it_is_released(
        self, speaker: Any, ada: LinkProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            assert not agent.owns("ada")
            assert agent.claim_of("ada") is None
            claim = await agent.accept("ada")
            assert (claim.success, claim.pod, claim.how, bool(claim)) == (True, 3, "placed", True)
            assert agent.claim_of("ada") == claim
            assert ada.record() is not None
            assert agent.owns("ada")
            assert not agent.owns("bob")
            again = await agent.accept("ada")
            assert (again.how, again.fence) == ("kept", claim.fence)
            assert await agent.release("ada") is True
            assert not agent.owns("ada")
            assert agent.claim_of("ada") is None
            assert ada.record() == f"{claim.fence} - -"
        assert "ada" not in repr(claim)

    async def test_an_older_claim_releases_nothing(
        self, speaker: Any, ada: LinkProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            older = await agent.accept("ada")
            newer = await agent.accept("ada")
            assert await agent.release(older) is False
            assert (agent.owns("ada"), ada.pod(), ada.ttl()) == (True, "3", -1)
            assert await agent.release(newer, grace=30) is True
            assert not agent.owns("ada")
            newest = await agent.accept("ada")
            assert (newest.how, newest.fence) == ("kept", older.fence)
            assert await agent.release(newer) is False
            assert agent.owns("ada")

    async def test_a_refused_claim_names_the_owner_and_is_false(
        self, speaker: Any, ada: LinkProgram, namespace: str
    ) -> None:
        ada.set_link(0)
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            claim = await agent.accept("ada")
            assert (bool(claim), claim.pod, claim.fence, claim.how) == (False, 0, 0, "refused")
            assert not agent.owns("ada")
            assert await agent.release(claim) is False
            assert ada.pod() == "0"

    async def test_the_next_life_inherits_with_a_greater_fence(
        self, speaker: Any, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            first = await agent.accept("ada")
        assert not agent.owns("ada")
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            assert not agent.owns("ada")
            second = await agent.accept("ada")
            assert second.how == "inherited"
            assert second.fence > first.fence

    async def test_accepting_during_a_drain_prolongs_it(self, speaker: Any, namespace: str) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            draining = asyncio.create_task(agent.drain(20.0))
            await until(lambda: bool(agent.status == "Draining"))
            claim = await agent.accept("bob")
            await agent.release("ada")
            assert agent.owns("bob")
            assert not draining.done()
            await agent.release(claim)
            assert await draining == 0

    async def test_users_in_their_grace_period_do_not_hold_a_drain(
        self, speaker: Any, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            await agent.release("ada", grace=60)
            assert await agent.drain(10.0) == 0

    async def test_one_that_nobody_heard_of_is_let_go(
        self, cluster: LocalCluster, ada: LinkProgram, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):
            given_up = 0
            for spins in range(40):
                accepting = asyncio.create_task(agent.accept("ada"))
                for _ in range(spins % 8):
                    await asyncio.sleep(0)
                accepting.cancel()
                (claim,) = await asyncio.gather(accepting, return_exceptions=True)
                if isinstance(claim, Claim):
                    await agent.release(claim)
                else:
                    given_up += 1
            assert given_up > 10
            await until(lambda: ada.pod() is None and not agent._ownership._letting_go)
            assert not agent.owns("ada")
            claim = await agent.accept("ada")
            assert claim.success
            await asyncio.sleep(0.05)
            assert agent.owns("ada")
            assert ada.ttl() == -1

    async def test_who_has_waited_longest_for_a_uid_is_next(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        done: list[str] = []
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):

            async def accept(who: str, times: int) -> None:
                for _ in range(times):
                    await agent.accept("ada")
                    done.append(who)

            often = asyncio.create_task(accept("often", 20))
            await asyncio.sleep(0)
            await accept("once", 1)
            await often
        assert done.index("once") == 1


class TestSessions:
    async def test_the_last_one_out_releases(
        self, speaker: Any, ada: LinkProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            async with agent.session("ada", grace=30) as first:
                async with agent.session("ada", grace=30) as second:
                    assert second.fence == first.fence
                assert agent.owns("ada")
                assert ada.ttl() == -1
            assert not agent.owns("ada")
            assert ada.ttl() in range(25, 31)
            async with agent.session("ada") as third:
                assert (third.how, third.fence) == ("kept", first.fence)
                assert agent.owns("ada")
            assert ada.pod() is None

    async def test_one_that_is_refused_holds_nothing(
        self, speaker: Any, ada: LinkProgram, namespace: str
    ) -> None:
        ada.set_link(0)
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            async with agent.session("ada") as claim:
                assert (bool(claim), claim.pod) == (False, 0)
            assert ada.pod() == "0"

    async def test_accept_and_sessions_hold_a_uid_together(
        self, speaker: Any, ada: LinkProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            async with agent.session("ada"):
                assert await agent.release("ada") is True
                assert agent.owns("ada")
                await agent.accept("ada")
            assert agent.owns("ada")
            await agent.release("ada")
            assert ada.pod() is None

    async def test_a_session_object_is_one_connection(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):
            connection = agent.session("ada")
            async with connection:
                with pytest.raises(ConfigError, match="entered already"):
                    await connection.__aenter__()
                assert agent.owns("ada")
            async with connection as claim:
                assert claim.success

    async def test_cancelled_ones_leave_the_others_alone(
        self, cluster: LocalCluster, ada: LinkProgram, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):

            async def connection(ends: asyncio.Event) -> None:
                async with agent.session("ada", grace=30) as claim:
                    assert claim.success
                    await ends.wait()

            for spins in range(8):
                end = asyncio.Event()
                doomed = asyncio.create_task(connection(asyncio.Event()))
                for _ in range(spins):
                    await asyncio.sleep(0.0003)
                staying = asyncio.create_task(connection(end))
                doomed.cancel()
                await asyncio.gather(doomed, return_exceptions=True)
                await until(lambda: agent.owns("ada"))
                assert (ada.pod(), ada.ttl()) == ("3", -1)
                end.set()
                await staying
                assert ada.ttl() in range(25, 31)
            assert agent._ownership.sessions == 0

    async def test_the_end_of_a_session_is_not_undone_by_cancelling_it(
        self, cluster: LocalCluster, ada: LinkProgram, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):
            connection = agent.session("ada")
            await connection.__aenter__()
            leaving = asyncio.create_task(connection.__aexit__(None, None, None))
            await asyncio.sleep(0)
            leaving.cancel()
            await until(lambda: ada.pod() is None)
            assert not agent.owns("ada")


class TestLosses:
    @pytest.mark.parametrize("to", [0, None])
    async def test_a_user_moved_or_removed_is_told_at_once(
        self, speaker: Any, ada: LinkProgram, namespace: str, to: int | None
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            claim = await agent.accept("ada")
            await until_watched(agent)
            if to is None:
                ada.remove_link()
            else:
                ada.set_link(to)
            async with contextlib.aclosing(agent.events()) as events:
                lost = await asyncio.wait_for(anext(events), 5.0)
            assert isinstance(lost, Lost)
            assert (lost.uid, lost.claim, lost.owner) == ("ada", claim, to)
            assert lost.reason == ("removed" if to is None else "moved")
            assert "ada" not in repr(lost)
            assert not agent.owns("ada")
            assert await agent.release(claim) is False
            assert ada.pod() == (None if to is None else str(to))

    async def test_changes_are_pushed_also_from_a_node_that_did_not_know_the_script(
        self, speaker: Any, raw: Raw, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            for node in primaries(raw):
                node.script_flush()
            claim = await agent.accept("ada")
            await until_watched(agent)
            await speaker.remove_linked_pod(namespace, "ada", "chat")
            assert await next_event(agent) == Lost("ada", claim, "removed", None)

    async def test_a_change_that_changes_nothing_is_no_loss(
        self, speaker: Any, ada: LinkProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            for _ in range(5):
                await until_watched(agent)
                ada.set_link(3)
            await until(lambda: agent.owns("ada"))
            assert ada.record() is not None

    async def test_events_read_by_nobody_are_bounded_by_what_is_held(
        self, speaker: Any, raw: Raw, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            inner = agent.agent._agent if isinstance(agent, AwaitableAgent) else agent
            table = inner._ownership.table
            for _ in range(5):
                for uid in ("ada", "bob"):
                    await agent.accept(uid)
                    await until_watched(agent, uid)
                    LinkProgram(raw, namespace, uid, "chat").remove_link()
                await until(lambda: not len(table))
            assert len(table._events) == 2
            await agent.release("ada")
            lost = await next_event(agent)
            assert lost.uid == "bob"
            assert table.next_event() is None

    async def test_a_wiped_store_is_told_again_and_nobody_is_lost(
        self, make_router: Callable[..., Any], server_binary: str | None, namespace: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=QUICK)
            uids = [f"u{number}" for number in range(300)]
            async with agent_of(router, namespace, "chat", 3) as agent:
                fences = {uid: (await agent.accept(uid)).fence for uid in uids}
                await until_watched(agent, uids[-1])
                single.execute("FLUSHALL")
                links = LinkProgram(single_client(single), namespace, uids[-1], "chat")
                await until(lambda: links.record() is not None)
                inner = agent.agent._agent if isinstance(agent, AwaitableAgent) else agent
                confirmer: Any = inner._ownership._confirmer
                await until(lambda: bool(confirmer.mended["claimed"] == 300))
                for uid in uids:
                    again = LinkProgram(links.client, namespace, uid, "chat")
                    assert again.record() == f"{fences[uid]} 3 {again.record().split()[2]}"  # type: ignore[union-attr]
                    assert (again.pod(), again.ttl(), again.listed()) == ("3", -1, "3")
                await until(lambda: all(agent.owns(uid) for uid in uids))
                assert sum(inner._ownership.table.lost.values()) == 0
            await router.aclose()

    @pytest.mark.parametrize("key", ["link", "hash", "claim"])
    async def test_whichever_key_of_a_claim_is_evicted_it_is_restored_at_once(
        self, speaker: Any, ada: LinkProgram, namespace: str, key: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            fence = (await agent.accept("ada")).fence
            for _ in range(3):
                await until_watched(agent)
                ada.client.delete(ada.keys[key])
                await until(lambda: bool(ada.client.exists(ada.keys[key])))
                assert (ada.pod(), ada.ttl(), ada.listed()) == ("3", -1, "3")
                assert str(ada.record()).startswith(f"{fence} 3 ")
            await until(lambda: agent.owns("ada"))

    async def test_another_service_of_the_user_leaves_a_claim_sure(
        self, speaker: Any, ada: LinkProgram, raw: Raw, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            await until_watched(agent)
            for number in range(50):
                LinkProgram(raw, namespace, "ada", f"game{number}").set_link(1)
                assert agent.owns("ada")
                await asyncio.sleep(0.002)
                assert agent.owns("ada")

    async def test_a_pod_publishes_the_histories_by_which_it_has_confirmed(
        self, make_router: Callable[..., Any], server_binary: str | None, namespace: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=QUICK)
            async with agent_of(router, namespace, "chat", 3, heartbeat=0.05) as agent:
                await agent.accept("ada")
                history = str(single.execute("INFO", "replication"))
                own = history.partition("master_replid:")[2][:8]
                states = StateProgram(single_client(single), namespace, "chat")
                await until(lambda: f'"confirmed":"{own}"' in states.fields()["3"])
            await router.aclose()

    async def test_where_nothing_is_pushed_the_round_tells(
        self,
        make_router: Callable[..., Any],
        cluster: LocalCluster,
        ada: LinkProgram,
        namespace: str,
    ) -> None:
        router = make_router(cluster.url, config=RouterConfig(cache=CacheConfig(tracking=False)))
        async with agent_of(router, namespace, "chat", 3, confirm_every=0.2) as agent:
            await agent.accept("ada")
            ada.set_link(0)
            lost = await next_event(agent)
            assert (lost.reason, lost.owner) == ("moved", 0)
        await router.aclose()

    async def test_of_two_lives_with_one_id_the_older_is_told(
        self,
        speaker: Any,
        make_router: Callable[..., Any],
        cluster: LocalCluster,
        states: StateProgram,
        namespace: str,
    ) -> None:
        other_router = make_router(cluster.url, config=QUICK)
        async with agent_of(speaker, namespace, "chat", 3) as older:
            await older.accept("ada")
            await older.accept("bob")
            await until_watched(older)
            async with agent_of(other_router, namespace, "chat", 3) as newer:
                claim = await newer.accept("ada")
                assert claim.how == "inherited"
                # The push of the inherited link tells at once, long before the next heartbeat.
                told = [await next_event(older) for _ in range(3)]
                assert isinstance(told[0], Lost)
                assert (told[0].uid, told[0].reason) == ("ada", "superseded")
                assert isinstance(told[1], Superseded)
                assert isinstance(told[2], Lost)
                assert (told[2].uid, told[2].reason) == ("bob", "superseded")
                assert not older.owns("ada")
                assert not older.owns("bob")
                assert newer.owns("ada")
                assert older.status == STOPPED
                with pytest.raises(ConfigError, match="another process has started as pod 3"):
                    await older.accept("ada")
                # Told to end, as by SIGTERM, it has nobody to wait for.
                assert await older.drain(deadline=5) == 0
        await other_router.aclose()


def single_client(single: LocalServer) -> redis.Redis:
    return redis.Redis.from_url(single.url, decode_responses=True)


class TestLease:
    async def test_without_the_store_the_pod_owns_nobody_after_the_lease(
        self, make_router: Callable[..., Any], server_binary: str | None, namespace: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=IMPATIENT)
            async with agent_of(
                router, namespace, "chat", 3, heartbeat=0.1, forget_after=60.0, lease=0.8
            ) as agent:
                await agent.accept("ada")
                await agent.accept("bob")
                assert agent.owns("ada")
                single.pause()
                isolated = await next_event(agent)
                assert isinstance(isolated, Isolated)
                assert not agent.owns("ada")
                single.resume()
                assert isinstance(await next_event(agent), Rejoined)
                # Confirmed before it is owned again.
                await until(lambda: agent.owns("ada") and agent.owns("bob"))
                single.pause()
                assert isinstance(await next_event(agent), Isolated)
                single.resume()
            await router.aclose()

    @pytest.mark.slow
    async def test_users_whose_primary_is_silent_are_not_owned_beyond_a_lease(
        self, make_router: Callable[..., Any], server: str, namespace: str
    ) -> None:
        """Heartbeats go to another primary, and go on."""
        with make_cluster(server, replicas_per_primary=0, node_timeout_ms=15_000) as cluster:
            states = cluster.primary_of(state_key(namespace, "chat"))
            homes = {
                uid: cluster.primary_of(link_key(namespace, uid, "chat"))
                for uid in (f"u{number}" for number in range(60))
            }
            silent = next(node for node in homes.values() if node is not states)
            router = make_router(cluster.url, config=IMPATIENT)
            async with agent_of(
                router, namespace, "chat", 3, heartbeat=0.1, forget_after=60.0, lease=0.8
            ) as agent:
                for uid in homes:
                    await agent.accept(uid)
                await until(lambda: all(agent.owns(uid) for uid in homes))
                theirs = {uid for uid, home in homes.items() if home is silent}
                cluster.pause(silent)
                await until(lambda: not any(agent.owns(uid) for uid in theirs))
                assert all(agent.owns(uid) for uid in homes.keys() - theirs)
                cluster.resume(silent)
                await until(lambda: all(agent.owns(uid) for uid in theirs))
                inner = agent.agent._agent if isinstance(agent, AwaitableAgent) else agent
                assert sum(inner._ownership.table.lost.values()) == 0
            await router.aclose()

    async def test_a_pod_without_a_lease_is_never_isolated(
        self, make_router: Callable[..., Any], server_binary: str | None, namespace: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=IMPATIENT)
            async with agent_of(
                router, namespace, "chat", 3, heartbeat=0.1, forget_after=60.0, lease=None
            ) as agent:
                await agent.accept("ada")
                single.pause()
                await asyncio.sleep(1.0)
                assert agent.owns("ada")
                single.resume()
            await router.aclose()

    async def test_a_pod_stopped_and_woken_owns_nobody_until_it_has_asked(
        self, cluster: LocalCluster, ada: LinkProgram, namespace: str
    ) -> None:
        application = """
            import asyncio, sys
            from sfroute import AsyncPodAgent, AsyncRouter

            async def main(url, namespace):
                async with (
                    AsyncRouter.from_url(url) as router,
                    AsyncPodAgent(router, namespace, "chat", 3, heartbeat=0.2, lease=1.0) as agent,
                ):
                    await agent.accept("ada")
                    print(agent.owns("ada"), flush=True)
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(None, sys.stdin.readline)
                    print(agent.owns("ada"), flush=True)
                    async for event in agent.events():
                        print(type(event).__name__, agent.owns("ada"), flush=True)
                        if type(event).__name__ == "Lost":
                            return

            asyncio.run(main(*sys.argv[1:]))
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", textwrap.dedent(application), cluster.url, namespace),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert await process.stdout.readline() == b"True\n"
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(1.3)
            ada.set_link(0)
            process.stdin.write(b"\n")
            await process.stdin.drain()
            process.send_signal(signal.SIGCONT)
            told = (await asyncio.wait_for(process.stdout.read(), 20)).decode().split("\n")
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        assert "True" not in " ".join(told)
        assert told[-2] == "Lost False"
        assert "Isolated False" in told

    async def test_a_forked_child_owns_nobody(self, cluster: LocalCluster, namespace: str) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):
            await agent.accept("ada")
            child = os.fork()
            if child == 0:
                os._exit(1 if agent.owns("ada") else 0)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
            assert os.waitstatus_to_exitcode(status) == 0
            assert agent.owns("ada")

    async def test_stopped_during_a_confirmation_it_ends_quietly(
        self, make_router: Callable[..., Any], server_binary: str | None, namespace: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=QUICK)
            agent = agent_of(router, namespace, "chat", 3)
            async with agent:
                for number in range(300):
                    await agent.accept(f"u{number}")
                single.execute("FLUSHALL")
            assert agent.status == STOPPED
            assert not agent.owns("u0")
            await router.aclose()


class TestBadInput:
    async def test_a_release_that_the_store_did_not_hear_is_made_later(
        self, make_router: Callable[..., Any], server_binary: str | None, namespace: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=IMPATIENT)
            async with agent_of(router, namespace, "chat", 3) as agent:
                await agent.accept("ada")
                single.pause()
                with pytest.raises(StoreError):
                    await agent.release("ada")
                assert not agent.owns("ada")
                single.resume()
                links = LinkProgram(single_client(single), namespace, "ada", "chat")
                await until(lambda: links.pod() is None)
            await router.aclose()

    @pytest.mark.parametrize(
        "options",
        [
            {"lease": 0},
            {"lease": -1.0},
            {"lease": "10"},
            {"lease": True},
            {"lease": 1.0},  # less than two heartbeats
            {"confirm_every": 0},
            {"confirm_every": None},
        ],
    )
    async def test_options_that_are_none_are_refused(
        self, speaker: Any, namespace: str, options: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            agent_of(speaker, namespace, "chat", 3, **options)

    @pytest.mark.parametrize("damage", ["a string", "a hash"])
    async def test_a_damaged_claim_record_is_named(
        self, speaker: Any, ada: LinkProgram, namespace: str, damage: str
    ) -> None:
        if damage == "a hash":
            ada.client.hset(ada.claim_record, "a", "b")
        else:
            ada.client.set(ada.claim_record, "nonsense")
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            with pytest.raises(CorruptReply) as caught:
                await agent.accept("ada")
        assert caught.value.key == ada.claim_record
        assert str(caught.value).startswith(ada.claim_record.replace("ada", "***"))

    async def test_sessions_need_a_uid_a_grace_and_an_agent_that_runs(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        async with AsyncRouter.from_url(cluster.url) as router:
            agent = AsyncPodAgent(router, namespace, "chat", 3)
            for bad in ("", "a}", None, 7):
                with pytest.raises(InvalidArgument):
                    agent.session(bad)  # type: ignore[arg-type]
            for grace in (0, -1, 1.5, True, 10**30, "30"):
                with pytest.raises(InvalidArgument, match=r"^grace must be whole seconds"):
                    agent.session("ada", grace=grace)  # type: ignore[arg-type]
                with pytest.raises(InvalidArgument, match=r"^grace must be whole seconds"):
                    await agent.release("ada", grace=grace)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="not running"):
                await agent.session("ada").__aenter__()
            with pytest.raises(InvalidArgument, match="uid must be a str"):
                agent.owns(["ada"])  # type: ignore[arg-type]
