"""Pods that take an id which is free: at once, after a crash, after a restart, after an outage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis.cluster
from support.program import StateProgram, run_script

from sfroute import AUTO, ConfigError, InvalidArgument, PodAgent, Router
from sfroute.embedded import LocalCluster

from .conftest import ONE_SERVER
from .test_agent import agent_of, speaker, state

__all__ = ["speaker"]

Raw = redis.cluster.RedisCluster


# --- the script, on every server


def take(states: StateProgram, life: str, name: str = "", silent: int = 6000) -> int:
    (pod,) = run_script(states.client, "statefulTakePod", [states.key], life, name, silent, 1000)
    return int(pod)


def report(states: StateProgram, pod: int, *, age: float = 0.0, **fields: Any) -> None:
    at = states.server_ms() - int(age * 1000)
    states.client.hset(states.key, str(pod), json.dumps({"status": "Running", "at": at, **fields}))


class TestTheLowestFreeId:
    def test_one_after_the_other(self, states: StateProgram) -> None:
        assert [take(states, f"l{number}") for number in range(4)] == [0, 1, 2, 3]

    def test_a_life_that_asks_again_gets_the_same_one(self, states: StateProgram) -> None:
        assert [take(states, life) for life in ("a", "b", "a", "b")] == [0, 1, 0, 1]

    @pytest.mark.parametrize(
        ("free", "fields"),
        [
            (True, {"status": "Stopped"}),
            (True, {"status": "Failed"}),
            (False, {"status": "Draining"}),
            (False, {"age": 5.9}),
            (True, {"age": 6.1}),
            (False, {"age": 10.5, "lease": 10_000}),
            (True, {"age": 11.5, "lease": 10_000}),
            (False, {"at": "now"}),
            (False, {"at": None}),
        ],
    )
    def test_which_ids_are_free(
        self, states: StateProgram, free: bool, fields: dict[str, Any]
    ) -> None:
        report(states, 0, **fields)
        assert take(states, "a") == (0 if free else 1)

    @pytest.mark.parametrize(
        ("free", "text"),
        [
            (False, "Running"),
            (False, "nonsense"),
            (False, "{"),
            (True, "Stopped"),
            (True, "0.5-1700000000000-0"),
            (False, "0.5-1700000000000-1"),
        ],
    )
    def test_states_of_other_programs(self, states: StateProgram, free: bool, text: str) -> None:
        states.client.hset(states.key, "0", text)
        assert take(states, "a") == (0 if free else 1)

    def test_what_is_no_pod_is_nobodys(self, states: StateProgram) -> None:
        for field in ("~gap", "~empty:0", "00", "-1", "a"):
            states.client.hset(states.key, field, "Running")
        assert take(states, "a") == 0

    def test_nobody_is_dead_because_the_store_was_away(self, states: StateProgram) -> None:
        report(states, 0, age=20, lease=10_000)
        now = states.server_ms()
        states.client.hset(states.key, "~gap", f"{now} {now - 19_000} {now - 1000}")
        assert take(states, "a") == 1

    def test_the_state_that_takes_it_takes_nobody_new(self, states: StateProgram) -> None:
        take(states, "a", 'na"me')
        found = json.loads(states.fields()["0"])
        assert (found["status"], found["by"], found["name"]) == ("Pending", "a", 'na"me')
        assert found["at"] <= found["up"]


class TestByName:
    def test_a_name_gets_its_id_back_whatever_its_state_says(self, states: StateProgram) -> None:
        report(states, 0, status="Stopped", name="b")
        report(states, 4, name="a", by="old", up=1)
        report(states, 7, status="Stopped", name="a")
        assert take(states, "new", "a") == 4

    def test_its_life_is_later_than_the_one_before(self, states: StateProgram) -> None:
        ahead = states.server_ms() + 10**6
        report(states, 0, name="a", by="old", up=ahead)
        take(states, "new", "a")
        assert json.loads(states.fields()["0"])["up"] == ahead + 1

    def test_a_name_whose_id_another_took_takes_a_free_one(self, states: StateProgram) -> None:
        report(states, 0, name="b")
        assert take(states, "new", "a") == 1


# --- agents


@ONE_SERVER
class TestAgents:
    async def test_many_that_start_at_once_get_different_ids(
        self, speaker: Any, namespace: str
    ) -> None:
        agents = [agent_of(speaker, namespace, "chat", AUTO) for _ in range(12)]
        await asyncio.gather(*(agent.start() for agent in agents))
        assert sorted(agent.pod for agent in agents) == list(range(12))
        pods = await speaker.get_pods(namespace, "chat", fresh=True)
        assert {pod.status for pod in pods.values()} == {"Running"}
        await asyncio.gather(*(agent.stop() for agent in agents))

    async def test_before_it_starts_it_has_none(self, speaker: Any, namespace: str) -> None:
        agent = agent_of(speaker, namespace, "chat", AUTO)
        with pytest.raises(ConfigError, match="no pod id yet"):
            _ = agent.pod
        with pytest.raises(ConfigError):
            await agent.accept("ada")

    async def test_a_restart_under_its_name_keeps_the_id_and_the_users(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", AUTO, name="chat-x"):
            async with agent_of(speaker, namespace, "chat", AUTO, name="chat-y") as agent:
                assert agent.pod == 1
                await agent.accept("ada")
                assert state(states, 1)["name"] == "chat-y"
            async with agent_of(speaker, namespace, "chat", AUTO, name="chat-z") as other:
                assert other.pod == 1  # chat-y has stopped
                async with agent_of(speaker, namespace, "chat", AUTO, name="chat-y") as again:
                    assert again.pod == 2
            async with agent_of(speaker, namespace, "chat", AUTO, name="chat-z") as again:
                assert again.pod == 1
                assert (await again.accept("ada")).how == "inherited"

    async def test_of_two_with_one_name_the_newer_has_the_id(
        self, speaker: Any, namespace: str
    ) -> None:
        first = agent_of(speaker, namespace, "chat", AUTO, name="a", heartbeat=0.05, lease=None)
        await first.start()
        async with agent_of(speaker, namespace, "chat", AUTO, name="a") as second:
            assert second.pod == first.pod == 0
            async with asyncio.timeout(5):
                while first.status != "Stopped":  # noqa: ASYNC110 - it is told by its next heartbeat
                    await asyncio.sleep(0.01)
        await first.stop()

    async def test_it_takes_another_one_when_it_is_started_again(
        self, speaker: Any, namespace: str
    ) -> None:
        agent = agent_of(speaker, namespace, "chat", AUTO)
        await agent.start()
        await agent.stop()
        async with agent_of(speaker, namespace, "chat", 0):
            await agent.start()
            assert agent.pod == 1
            await agent.stop()

    @pytest.mark.parametrize("name", ["", 7, "a\n", "x" * 256])
    async def test_a_bad_name_is_refused(self, speaker: Any, namespace: str, name: Any) -> None:
        with pytest.raises(InvalidArgument, match="name"):
            agent_of(speaker, namespace, "chat", AUTO, name=name)


@ONE_SERVER
def test_it_works_on_threads_as_a_context_manager(cluster: LocalCluster, namespace: str) -> None:
    with (
        Router.from_url(cluster.url) as router,
        PodAgent(router, namespace, "chat", AUTO) as one,
        PodAgent(router, namespace, "chat", AUTO) as other,
    ):
        assert (one.pod, other.pod) == (0, 1)
