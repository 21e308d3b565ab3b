"""A pod's side: heartbeats, accepting, releasing, draining, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import signal
import sys
import textwrap
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import redis.cluster
from support.program import LinkProgram, StateProgram

from sfroute import (
    DRAINING,
    RUNNING,
    STOPPED,
    AsyncPodAgent,
    AsyncRouter,
    Claim,
    ConfigError,
    InvalidArgument,
    NoRoutablePod,
    OutcomeUnknown,
    PlacementConfig,
    PodAgent,
    PodEvent,
    RetryConfig,
    Router,
    RouterConfig,
)
from sfroute._commands.command import Command
from sfroute._contract.keys import state_key
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import ONE_SERVER

pytestmark = ONE_SERVER

Raw = redis.cluster.RedisCluster
QUICK = RouterConfig(placement=PlacementConfig(pod_view_max_age=0.05, pod_timeout=1.0))


@pytest.fixture
def states(raw: Raw, namespace: str) -> StateProgram:
    return StateProgram(raw, namespace, "chat")


def state(states: StateProgram, pod: int = 3) -> dict[str, Any]:
    """What the pod has reported, as another program reads it."""
    found: dict[str, Any] = json.loads(states.fields()[str(pod)])
    return found


class AwaitableAgent:
    """The agent for threads with the face of the other one."""

    def __init__(self, agent: PodAgent) -> None:
        self.agent = agent

    def __getattr__(self, name: str) -> Any:
        if name in {"status", "conflicts", "pod", "owns", "claim_of"}:
            return getattr(self.agent, name)
        return lambda *args, **more: asyncio.to_thread(getattr(self.agent, name), *args, **more)

    @contextlib.asynccontextmanager
    async def session(self, uid: str, *, grace: int | None = None) -> AsyncIterator[Claim]:
        plain = self.agent.session(uid, grace=grace)
        claim = await asyncio.to_thread(plain.__enter__)
        try:
            yield claim
        finally:
            await asyncio.to_thread(plain.__exit__, None, None, None)

    async def events(self) -> AsyncGenerator[PodEvent, None]:
        events = self.agent.events()
        yield await asyncio.to_thread(next, events)

    async def __aenter__(self) -> AwaitableAgent:
        await asyncio.to_thread(self.agent.__enter__)
        return self

    async def __aexit__(self, *args: Any) -> None:
        await asyncio.to_thread(self.agent.__exit__, *args)


@pytest.fixture
async def speaker(make_router: Callable[..., Any], cluster: LocalCluster) -> Any:
    router = make_router(cluster.url, config=QUICK)
    await router.open()
    yield router
    await router.aclose()


def agent_of(router: Any, *args: Any, **options: Any) -> Any:
    if isinstance(router, AsyncRouter):
        return AsyncPodAgent(router, *args, **options)
    return AwaitableAgent(PodAgent(router.router, *args, **options))


async def until(condition: Callable[[], bool], within: float = 5.0) -> None:
    """Ask again and again until it is so: another process does not tell."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def until_linked(router: AsyncRouter, namespace: str, uid: str, pod: int) -> None:
    async with asyncio.timeout(5.0):
        while await router.get_linked_pod(namespace, uid, "chat", fresh=True) != pod:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class TestHeartbeats:
    @pytest.mark.slow
    async def test_the_first_is_stored_before_the_block_and_the_last_when_it_ends(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        async with agent_of(
            speaker, namespace, "chat", 3, load=lambda: 0.5, capacity=2, extra={"zone": "b"}
        ) as agent:
            server_ms = states.server_ms()
            reported = state(states)
            assert server_ms - reported.pop("at") in range(2000)
            assert reported.pop("by")
            assert reported.pop("up")
            assert reported.pop("lease") == 10_000
            assert reported.pop("confirmed") == ""
            assert reported == {"status": RUNNING, "load": 0.5, "capacity": 2, "zone": "b"}
            assert agent.status == RUNNING
        assert state(states)["status"] == STOPPED
        assert agent.status == STOPPED

    async def test_they_go_on_with_the_load_of_the_moment(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        loads = iter(range(1000))
        async with agent_of(
            speaker, namespace, "chat", 3, load=lambda: next(loads), heartbeat=0.02
        ):
            await until(lambda: state(states)["load"] >= 5)

    @pytest.mark.parametrize(
        ("load", "trouble"),
        [
            (lambda: 1 / 0, "raised ZeroDivisionError"),
            (lambda: math.nan, "returned nan"),
            (lambda: -math.inf, "returned -inf"),
            (lambda: "0.5", "returned a str, not a number"),
            (lambda: None, "returned a NoneType, not a number"),
            (lambda: True, "returned a bool, not a number"),
            (lambda: 10**400, "raised OverflowError"),
        ],
        ids=["raises", "nan", "inf", "str", "None", "bool", "huge"],
    )
    async def test_a_load_that_is_no_number_is_not_known_and_told_once(
        self,
        speaker: Any,
        states: StateProgram,
        namespace: str,
        caplog: pytest.LogCaptureFixture,
        load: Callable[[], Any],
        trouble: str,
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3, load=load, heartbeat=0.02):
            first = state(states)["at"]
            await until(lambda: state(states)["at"] >= first + 60)
            assert "load" not in state(states)
            assert (await speaker.route(namespace, "ada", "chat")).pod == 3
        told = [record.getMessage() for record in caplog.records]
        assert told == [f"the load callable of pod 3 {trouble}; the pod reports no load"]

    async def test_no_clock_but_the_servers_is_sent(
        self, cluster: LocalCluster, states: StateProgram, namespace: str
    ) -> None:
        sent: list[str] = []
        async with AsyncRouter.from_url(cluster.url) as router:
            store = (await router._inside.engine.opened()).commands
            run = store.run

            def listen(
                command: Command, give_up: float | None = None
            ) -> Coroutine[None, None, object]:
                if command.operation == "heartbeat":
                    sent.append(str(command.arguments[3]))
                return run(command, give_up)

            store.run = listen  # type: ignore[method-assign]
            async with AsyncPodAgent(router, namespace, "chat", 3, load=lambda: 1.0):
                pass
        fields = {"status", "load", "by", "lease", "confirmed"}
        # The server's clock said when it started, and says so again.
        assert [set(json.loads(text)) for text in sent] == [fields, {*fields, "up"}]
        assert "at" in state(states)

    async def test_states_of_pods_long_gone_are_removed(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        old = states.server_ms() - 5000
        for pod, text in [(0, json.dumps({"at": old})), (1, "Running")]:
            await speaker.set_service_state(namespace, "chat", pod, text)
        async with agent_of(speaker, namespace, "chat", 3, heartbeat=0.01, forget_after=1.0):
            await until(lambda: "0" not in states.fields())
            # Without a stamp nobody knows how old it is.
            assert set(states.fields()) == {"1", "3", "~gap"}

    async def test_of_two_agents_of_one_pod_the_newer_has_it_and_the_older_stops(
        self,
        speaker: Any,
        make_router: Callable[..., Any],
        cluster: LocalCluster,
        states: StateProgram,
        namespace: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        other_router = make_router(cluster.url)
        async with agent_of(speaker, namespace, "chat", 3, heartbeat=0.02) as older:
            async with agent_of(other_router, namespace, "chat", 3, heartbeat=0.02) as newer:
                await until(lambda: older.conflicts == 1)
                assert (older.status, newer.status) == (STOPPED, RUNNING)
                with pytest.raises(ConfigError, match="another process has started as pod 3"):
                    await older.accept("ada")
                has_it = state(states)["by"]
                # The older one ends, and writes nothing over the state of the other.
                await older.stop()
                assert (state(states)["by"], state(states)["status"]) == (has_it, RUNNING)
                assert (older.conflicts, newer.conflicts) == (1, 0)
            assert [r.stats().pod_conflicts for r in (speaker, other_router)] == [1, 0]
        await other_router.aclose()
        told = [record.getMessage() for record in caplog.records]
        (only,) = told
        assert only.startswith("pod 3 of service 'chat' was started anew by another process")

    async def test_they_go_on_whatever_another_program_writes_there(
        self, speaker: Any, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        def has_beaten_again() -> bool:
            return '"status"' in states.fields()["3"]

        async with agent_of(speaker, namespace, "chat", 3, heartbeat=0.02) as agent:
            for text in ("Running", "{", "[" * 5000, '{"by":7}', '{"by":' * 5000, "\0"):
                raw.hset(states.key, "3", text)
                await until(has_beaten_again)
            assert agent.conflicts == 0

    async def test_what_the_application_does_to_its_own_later_is_not_reported(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        rooms: list[object] = ["red"]
        async with agent_of(speaker, namespace, "chat", 3, heartbeat=0.02, extra={"rooms": rooms}):
            rooms.append({"no", "JSON"})
            first = state(states)["at"]
            await until(lambda: state(states)["at"] > first)
            assert state(states)["rooms"] == ["red"]

    async def test_a_restart_is_no_conflict(
        self, speaker: Any, namespace: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            async with agent_of(speaker, namespace, "chat", 3, heartbeat=0.02) as agent:
                await asyncio.sleep(0.1)
                assert agent.conflicts == 0
        assert caplog.records == []


class TestUids:
    @pytest.mark.slow
    @pytest.mark.parametrize("seconds", [-1, 60])
    async def test_accepting_makes_the_link_persistent(
        self, speaker: Any, raw: Raw, namespace: str, seconds: int
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            ada = LinkProgram(raw, namespace, "ada", "chat")
            await speaker.route(namespace, "ada", "chat", persist_seconds=seconds)
            assert (await agent.accept("ada")).success
            assert (ada.pod(), ada.listed(), ada.ttl()) == ("3", "3", -1)
            assert await speaker.get_link_service(namespace, "ada") == {"chat": 3}

    async def test_and_places_a_uid_without_one(
        self, speaker: Any, raw: Raw, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            assert (await agent.accept("ada")).success
            assert LinkProgram(raw, namespace, "ada", "chat").pod() == "3"

    @pytest.mark.parametrize("seconds", [-1, 60])
    async def test_a_uid_of_another_pod_stays_there(
        self, speaker: Any, raw: Raw, namespace: str, seconds: int
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        ada.set_link(0, seconds)
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            refused = await agent.accept("ada")
            assert (refused.success, refused.pod, refused.how) == (False, 0, "refused")
            assert await agent.release("ada") is False
            assert (ada.pod(), ada.ttl() > 0) == ("0", seconds > 0)

    async def test_releasing_leaves_a_grace_period_or_none(
        self, speaker: Any, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            assert await agent.release("ada", grace=30) is True
            assert (ada.pod(), ada.listed(), ada.ttl() in range(25, 31)) == ("3", None, True)
            # A reconnect within it.
            assert (await speaker.route(namespace, "ada", "chat")).pod == 3
            assert (await agent.accept("ada")).success
            assert await agent.release("ada") is True
            assert ada.pod() is None
            assert await agent.release("ada") is False

    async def test_nobody_is_accepted_or_released_before_the_block_or_after_it(
        self, speaker: Any, raw: Raw, namespace: str
    ) -> None:
        ada, bob = (LinkProgram(raw, namespace, uid, "chat") for uid in ("ada", "bob"))
        ada.set_link(3, -1)
        agent = agent_of(speaker, namespace, "chat", 3)

        async def is_refused() -> None:
            with pytest.raises(ConfigError, match="the agent is not running"):
                await agent.accept("bob")
            with pytest.raises(ConfigError, match="the agent is not running"):
                await agent.release("ada")

        await is_refused()
        async with agent:
            pass
        await is_refused()
        assert (ada.pod(), bob.pod()) == ("3", None)

    async def test_a_draining_pod_still_accepts_a_user_nobody_has(
        self, speaker: Any, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.drain(0)
            assert agent.status == DRAINING
            assert (await agent.accept("ada")).success

    @pytest.mark.parametrize("uid", ["", "{", None, 3])
    async def test_a_uid_that_is_none_is_refused(
        self, speaker: Any, namespace: str, uid: Any
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            with pytest.raises(InvalidArgument):
                await agent.accept(uid)
            with pytest.raises(InvalidArgument):
                await agent.release(uid)


class TestDraining:
    @pytest.mark.slow
    async def test_it_keeps_its_uids_and_gets_no_new_ones(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            draining = asyncio.create_task(agent.drain(10.0))
            await until(lambda: agent.status == DRAINING and state(states)["status"] == DRAINING)
            await speaker.get_pods(namespace, "chat", fresh=True)
            assert (await speaker.route(namespace, "ada", "chat")).pod == 3
            with pytest.raises(NoRoutablePod, match="pod 3: status 'Draining'"):
                await speaker.route(namespace, "bob", "chat")
            assert not draining.done()
            await agent.release("ada")
            assert await draining == 0

    async def test_uids_that_others_take_away_are_gone_too(
        self, speaker: Any, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            for uid in ("ada", "bob"):
                await agent.accept(uid)
            draining = asyncio.create_task(agent.drain(10.0))
            await speaker.set_linked_pod(namespace, "ada", "chat", 0)
            await speaker.remove_linked_pod(namespace, "bob", "chat")
            assert await draining == 0

    async def test_so_does_the_end_of_the_agent(self, speaker: Any, namespace: str) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            draining = asyncio.create_task(agent.drain(30.0))
            await until(lambda: agent.status == DRAINING)
        assert await asyncio.wait_for(draining, 20.0) == 1

    async def test_the_deadline_ends_it(self, speaker: Any, namespace: str) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            began = time.monotonic()
            # Nothing else would end it.
            async with asyncio.timeout(20):
                assert await agent.drain(0.5) == 1
            assert time.monotonic() - began > 0.45

    async def test_what_was_accepted_while_nobody_waited_any_more_is_let_go(
        self, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url, config=QUICK) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):
            parts = router._inside.engine.parts_here()
            assert parts is not None
            accepting = asyncio.ensure_future(agent.accept("ada"))
            while not any(one.in_flight for one in parts.commands._channels):  # noqa: ASYNC110
                await asyncio.sleep(0)
            accepting.cancel()
            ada = LinkProgram(raw, namespace, "ada", "chat")
            # It was made, and is over.
            await until(lambda: (ada.record() or "").endswith(" - -"))
            assert (ada.pod(), agent.owns("ada")) == (None, False)
            assert await agent.drain(5.0) == 0

    @pytest.mark.slow
    async def test_without_accepted_uids_it_looks_through_the_store(
        self, speaker: Any, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            for number in range(20):
                await speaker.route(namespace, f"u{number}", "chat")
            assert await agent.drain(1.5) == 20
            for number in range(20):
                await speaker.remove_linked_pod(namespace, f"u{number}", "chat")
            assert await agent.drain(10.0) == 0

    async def test_it_does_not_end_before_every_gateway_knows(
        self, make_router: Callable[..., Any], cluster: LocalCluster, namespace: str
    ) -> None:
        router = make_router(cluster.url)
        async with agent_of(router, namespace, "chat", 3) as agent:
            began = time.monotonic()
            assert await agent.drain(10.0) == 0
            # Twice the default pod_view_max_age.
            assert 1.0 <= time.monotonic() - began < 3.0
        await router.aclose()

    @pytest.mark.parametrize("deadline", [-1, math.nan, math.inf, "25", None, False, True])
    async def test_a_deadline_that_is_none_is_refused(
        self, speaker: Any, namespace: str, deadline: Any
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            with pytest.raises(InvalidArgument, match=r"^deadline"):
                await agent.drain(deadline)
            assert agent.status == RUNNING


class TestSettings:
    @pytest.mark.parametrize(
        "options",
        [
            {"heartbeat": 0},
            {"heartbeat": math.nan},
            {"heartbeat": "2"},
            {"heartbeat": True},
            {"capacity": 0},
            {"capacity": math.inf},
            {"capacity": "2"},
            {"forget_after": math.nan},
            {"forget_after": 19.0},
            {"forget_after": 10**30},
            {"load": 0.5},
            {"extra": {"a": {1, 2}}},
            {"extra": {"a": math.nan}},
            {"extra": {"status": "Running"}},
            {"extra": {"at": 1}},
            {"extra": [1]},
        ],
        ids=str,
    )
    async def test_what_cannot_work_is_refused(
        self, speaker: Any, namespace: str, options: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidArgument, match=rf"^{next(iter(options))} must be"):
            agent_of(speaker, namespace, "chat", 3, **options)

    @pytest.mark.parametrize("pod", [-1, "3", True, 2**63])
    async def test_so_is_what_is_no_pod(self, speaker: Any, namespace: str, pod: Any) -> None:
        with pytest.raises(InvalidArgument):
            agent_of(speaker, namespace, "chat", pod)

    async def test_so_is_the_router_of_the_other_agent(self, speaker: Any, namespace: str) -> None:
        if isinstance(speaker, AsyncRouter):
            words = "PodAgent needs a Router; for an AsyncRouter there is AsyncPodAgent"
            with pytest.raises(InvalidArgument, match=f"^{words}$"):
                PodAgent(speaker, namespace, "chat", 3)  # type: ignore[arg-type]
        else:
            words = "AsyncPodAgent needs an AsyncRouter; for a Router there is PodAgent"
            with pytest.raises(InvalidArgument, match=f"^{words}$"):
                AsyncPodAgent(speaker.router, namespace, "chat", 3)

    async def test_an_agent_runs_once_and_may_run_again(self, speaker: Any, namespace: str) -> None:
        agent = agent_of(speaker, namespace, "chat", 3)
        with pytest.raises(ConfigError, match="not running"):
            await agent.drain()
        await agent.start()
        with pytest.raises(ConfigError, match="running already"):
            await agent.start()
        await agent.stop()
        await agent.stop()
        await agent.start()
        assert agent.status == RUNNING
        await agent.stop()


class TestWithoutAStore:
    """Each with a server of its own, which it stops."""

    IMPATIENT = RouterConfig(
        retry=RetryConfig(deadline=0.5), placement=PlacementConfig(pod_timeout=1.5)
    )

    async def test_an_agent_that_cannot_report_does_not_start(
        self, make_router: Callable[..., Any], server_binary: str | None, namespace: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=self.IMPATIENT)
            await router.open()
            agent = agent_of(router, namespace, "chat", 3)
            single.pause()
            try:
                # It may have been stored, and nobody will repeat it.
                with pytest.raises(OutcomeUnknown, match="heartbeat may or may not"):
                    await agent.start()
                single.resume()
                await agent.start()
                await agent.stop()
            finally:
                await router.aclose()

    async def test_heartbeats_are_back_as_soon_as_the_store_is(
        self,
        make_router: Callable[..., Any],
        server_binary: str | None,
        namespace: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=self.IMPATIENT)
            async with agent_of(
                router, namespace, "chat", 3, heartbeat=30.0, lease=60.0, forget_after=300.0
            ) as agent:
                await agent.accept("ada")
                single.pause()
                # It asks for a state that it cannot store; the pod goes on.
                async with asyncio.timeout(20):
                    assert await agent.drain(1.2) == 1
                single.resume()
                resumed = time.monotonic()
                pods = await router.get_pods(namespace, "chat", fresh=True)
                while pods[3].status != DRAINING:
                    await asyncio.sleep(0.01)
                    pods = await router.get_pods(namespace, "chat", fresh=True)
                # Not a heartbeat later.
                assert time.monotonic() - resumed < 15.0
            await router.aclose()
        assert "a heartbeat of pod 3 could not be stored" in caplog.text

    async def test_draining_is_said_again_until_the_store_has_it(
        self,
        make_router: Callable[..., Any],
        server_binary: str | None,
        namespace: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=self.IMPATIENT)
            # No heartbeat comes to its help.
            async with agent_of(
                router, namespace, "chat", 3, heartbeat=60.0, lease=120.0, forget_after=600.0
            ) as agent:
                await agent.accept("ada")
                single.kill()
                draining = asyncio.create_task(agent.drain(20.0))
                await until(lambda: "could not be stored" in caplog.text)
                await asyncio.to_thread(single.restart)
                key = state_key(namespace, "chat")
                await until(lambda: DRAINING in str(single.execute("HGET", key, "3")))
                assert not draining.done()
            await draining
            await router.aclose()

    async def test_it_stops_within_the_deadline_of_a_store_that_is_gone(
        self,
        make_router: Callable[..., Any],
        server_binary: str | None,
        namespace: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            router = make_router(single.url, config=self.IMPATIENT)
            agent = agent_of(router, namespace, "chat", 3, heartbeat=0.1)
            await agent.start()
            single.kill()
            # Nothing else would end it: the store stays gone.
            async with asyncio.timeout(20):
                await agent.stop()
            assert agent.status == STOPPED
            await router.aclose()
        assert "could not be stored" in caplog.text

    async def test_one_that_was_cancelled_while_it_stopped_can_be_stopped_again(
        self, server_binary: str | None, namespace: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            async with AsyncRouter.from_url(single.url) as router:
                agent = AsyncPodAgent(router, namespace, "chat", 3, heartbeat=0.1)
                await agent.start()
                single.kill()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(agent.stop(), 0.3)
                await asyncio.to_thread(single.restart)
                with pytest.raises(ConfigError, match="not running"):
                    await agent.drain()
                await agent.stop()
                stored = single.execute("HGET", state_key(namespace, "chat"), "3")
                assert json.loads(str(stored))["status"] == STOPPED

    async def test_it_ends_with_its_router(
        self,
        make_router: Callable[..., Any],
        cluster: LocalCluster,
        namespace: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        router = make_router(cluster.url)
        agent = agent_of(router, namespace, "chat", 3, heartbeat=0.01)
        await agent.start()
        async with asyncio.timeout(5):
            await router.aclose()
            await agent.stop()
        assert "closed before its agent was stopped" in caplog.text
        assert len(caplog.records) < 4


ASYNCIO_APPLICATION = """
import asyncio, signal, sys
from sfroute import AsyncPodAgent, AsyncRouter
async def main(url, namespace, own_handler):
    # In development mode a busy machine would be told of.
    asyncio.get_running_loop().slow_callback_duration = 60.0
    async with AsyncRouter.from_url(url) as router:
        stop = asyncio.Event()
        if own_handler == "True":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with AsyncPodAgent(router, namespace, "chat", 3):
            print("up", flush=True)
            await stop.wait()
        print("end", flush=True)
asyncio.run(main(*sys.argv[1:]))
"""

THREADS_APPLICATION = """
import signal, sys, threading
from sfroute import PodAgent, Router
url, namespace, own_handler = sys.argv[1:]
stop = threading.Event()
if own_handler == "True":
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
with Router.from_url(url) as router:
    with PodAgent(router, namespace, "chat", 3):
        print("up", flush=True)
        while not stop.wait(0.05):
            pass
    print("end", flush=True)
"""


FORKING_APPLICATION = """
import asyncio, os, signal, sys, time
from sfroute import AsyncPodAgent, AsyncRouter

async def main(url, namespace):
    async with AsyncRouter.from_url(url) as router:
        async with AsyncPodAgent(router, namespace, "chat", 3) as agent:
            child = os.fork()
            if child == 0:
                time.sleep(10)
                os._exit(7)
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            await asyncio.sleep(0.1)
            print(os.waitstatus_to_exitcode(status), agent.status, flush=True)
            await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
class TestSigterm:
    @pytest.mark.parametrize("own_handler", [False, True])
    @pytest.mark.parametrize("application", [ASYNCIO_APPLICATION, THREADS_APPLICATION])
    @pytest.mark.parametrize("times", [1, 5])
    async def test_the_process_says_stopped_and_ends(
        self,
        cluster: LocalCluster,
        states: StateProgram,
        namespace: str,
        application: str,
        own_handler: bool,
        times: int,
    ) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-X", "dev", "-W", "error", "-c", textwrap.dedent(application)),
            *(cluster.url, namespace, str(own_handler)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"up\n"
        assert state(states)["status"] == RUNNING
        for _ in range(times):
            process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
        assert state(states)["status"] == STOPPED
        # How long a step of the loop took is the machine's matter.
        said = [line for line in err.decode().splitlines() if not line.startswith("Executing <")]
        assert said == []
        if own_handler:
            assert (process.returncode, out) == (0, b"end\n")
        else:
            assert (process.returncode, out) == (128 + signal.SIGTERM, b"")

    @pytest.mark.parametrize("application", [ASYNCIO_APPLICATION, THREADS_APPLICATION])
    async def test_being_told_again_does_not_cut_it_short(
        self, server_binary: str | None, namespace: str, application: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", textwrap.dedent(application), single.url, namespace, "False"),
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            assert await process.stdout.readline() == b"up\n"
            # The last word waits for an answer.
            single.pause()
            for _ in range(4):
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
            single.resume()
            assert await process.wait() == 128 + signal.SIGTERM
            stored = single.execute("HGET", state_key(namespace, "chat"), "3")
            assert json.loads(str(stored))["status"] == STOPPED

    async def test_a_forked_childs_is_its_own(
        self, cluster: LocalCluster, states: StateProgram, namespace: str
    ) -> None:
        """It ends the child, as without an agent, and the pod goes on, until it is told itself."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", textwrap.dedent(FORKING_APPLICATION), cluster.url, namespace),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        told = (await process.stdout.readline()).decode()
        process.send_signal(signal.SIGTERM)
        assert told == f"{-signal.SIGTERM} {RUNNING}\n"
        assert await process.wait() == 128 + signal.SIGTERM
        assert state(states)["status"] == STOPPED

    def test_the_applications_handler_stays_and_comes_back(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        before = signal.getsignal(signal.SIGTERM)
        try:
            for mine in (signal.SIG_DFL, signal.SIG_IGN):
                signal.signal(signal.SIGTERM, mine)
                with (
                    Router.from_url(cluster.url) as router,
                    PodAgent(router, namespace, "chat", 3),
                ):
                    assert (signal.getsignal(signal.SIGTERM) is mine) is (mine is signal.SIG_IGN)
                assert signal.getsignal(signal.SIGTERM) is mine
        finally:
            signal.signal(signal.SIGTERM, before)


async def test_a_crowd_of_agents_logs_nothing(
    cluster: LocalCluster, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sfroute.agent")
    async with AsyncRouter.from_url(cluster.url) as router:
        agents = [
            AsyncPodAgent(router, namespace, "chat", pod, heartbeat=0.05, sigterm=False)
            for pod in range(50)
        ]
        await asyncio.gather(*(agent.start() for agent in agents))
        assert len(await router.get_pods(namespace, "chat", fresh=True)) == 50
        await asyncio.gather(*(agent.stop() for agent in agents))
        pods = await router.get_pods(namespace, "chat", fresh=True)
        assert {pod.status for pod in pods.values()} == {STOPPED}
    assert [
        record.getMessage() for record in caplog.records if record.name == "sfroute.agent"
    ] == []
