"""Pods that take only so many users, or nobody for a while: what the pod refuses, and where gateways go instead."""

from __future__ import annotations

import asyncio
import copy
import pickle
import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.program import StateProgram

from sfroute import (
    PENDING,
    RUNNING,
    AsyncPodAgent,
    AsyncRouter,
    InvalidArgument,
    NoRoom,
    NoRoutablePod,
    PlacementConfig,
    RetryConfig,
    RouterConfig,
    SfrouteError,
)
from sfroute._operations.room import Room
from sfroute._pods import trips
from sfroute.embedded import LocalCluster

from .conftest import ONE_SERVER
from .test_agent import agent_of, speaker, state, until

__all__ = ["speaker"]


# --- the rules, without a store


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestPlaces:
    def test_who_is_being_asked_for_has_a_place(self) -> None:
        room = Room(Clock(), 2)
        room.ask("ada")
        assert (room.left(0), room.why_not("bob", 0), room.why_not("bob", 1)) == (1, None, "full")
        room.answered("ada", taken=False)
        assert room.left(0) == 2

    def test_so_has_who_is_away_until_the_grace_is_over(self) -> None:
        clock = Clock()
        room = Room(clock, 1)
        room.let_go("ada", 30)
        assert (room.why_not("bob", 0), room.why_not("ada", 0)) == ("full", None)
        clock.now += 30
        assert room.why_not("bob", 0) is None

    def test_who_comes_back_and_is_refused_by_the_store_keeps_the_rest_of_the_grace(self) -> None:
        clock = Clock()
        room = Room(clock, 1)
        room.let_go("ada", 30)
        room.ask("ada")
        assert room.left(0) == 0
        room.answered("ada", taken=False)
        assert room.left(0) == 0
        clock.now += 31
        assert room.left(0) == 1

    def test_a_paused_pod_takes_those_who_have_a_place(self) -> None:
        room = Room(Clock(), None)
        room.let_go("ada", 30)
        room.paused = True
        assert (room.why_not("ada", 5), room.why_not("bob", 5)) == (None, "paused")

    @given(
        st.integers(1, 5),
        st.lists(
            st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["in", "out", "fail", "t"]))
        ),
    )
    def test_there_are_never_more_than_it_takes(
        self, most: int, steps: list[tuple[str, str]]
    ) -> None:
        clock = Clock()
        room, held = Room(clock, most), set[str]()
        away: dict[str, float] = {}
        for uid, step in steps:
            away = {name: end for name, end in away.items() if end > clock.now}
            if step == "t":
                clock.now += 7
            elif step == "out" and uid in held:
                held.remove(uid)
                room.let_go(uid, 10)
                away[uid] = clock.now + 10
            elif step != "out" and uid not in held:
                why_not = room.why_not(uid, len(held))
                assert (why_not is None) == (uid in away or len(held) + len(away) < most)
                if why_not is None:
                    room.ask(uid)
                    if step == "in":
                        held.add(uid)
                        away.pop(uid, None)
                    room.answered(uid, taken=step == "in")
            assert len(held) <= most


def test_the_error_says_which_pod_and_why_and_can_be_sent_to_another_process() -> None:
    for error in (NoRoom(3, "full", 100), NoRoom(3, "paused", None)):
        assert isinstance(error, SfrouteError)
        assert error.retryable
        for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert (str(twin), twin.pod, twin.reason) == (str(error), 3, error.reason)
    assert "it has all 100 that it takes" in str(NoRoom(3, "full", 100))


# --- a pod


@ONE_SERVER
class TestAPod:
    async def test_it_takes_so_many_and_says_how_many_more(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3, max_claims=2, heartbeat=5.0) as agent:
            assert (state(states)["max_claims"], state(states)["room"]) == (2, 2)
            assert await agent.accept("ada")
            assert await agent.accept("bob")
            with pytest.raises(NoRoom) as refused:
                await agent.accept("eve")
            assert (refused.value.pod, refused.value.reason) == (3, "full")
            assert await speaker.get_linked_pod(namespace, "eve", "chat", fresh=True) is None
            # Not only at the next heartbeat.
            await until(lambda: state(states)["room"] == 0, within=2.0)
            assert await agent.accept("ada")
            await agent.release("ada")
            assert await agent.accept("eve")

    async def test_a_session_is_refused_too_and_users_in_grace_keep_their_places(
        self, speaker: Any, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3, max_claims=1) as agent:
            async with agent.session("ada", grace=60) as claim:
                fence = claim.fence
            with pytest.raises(NoRoom):
                async with agent.session("bob"):
                    pass
            async with agent.session("ada", grace=60) as claim:
                assert (claim.how, claim.fence) == ("kept", fence)

    async def test_a_claim_that_is_lost_leaves_room(self, speaker: Any, namespace: str) -> None:
        async with agent_of(speaker, namespace, "chat", 3, max_claims=1) as agent:
            await agent.accept("ada")
            await speaker.set_linked_pod(namespace, "ada", "chat", 4)
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert await agent.accept("bob")
                        break
                    except NoRoom:
                        await asyncio.sleep(0.01)

    async def test_who_has_another_pod_takes_no_place(self, speaker: Any, namespace: str) -> None:
        await speaker.set_linked_pod(namespace, "ada", "chat", 4)
        async with agent_of(speaker, namespace, "chat", 3, max_claims=1) as agent:
            assert not await agent.accept("ada")
            assert await agent.accept("bob")

    async def test_many_at_once_get_no_more_places_than_there_are(
        self, speaker: Any, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3, max_claims=7) as agent:
            found = await asyncio.gather(
                *(agent.accept(f"u{number}") for number in range(50)), return_exceptions=True
            )
        assert sum(isinstance(one, NoRoom) for one in found) == 43
        assert sum(bool(one) for one in found if not isinstance(one, BaseException)) == 7

    async def test_while_paused_it_takes_nobody_new_and_keeps_all(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            await agent.accept("bob")
            await agent.release("bob", grace=60)
            await agent.pause()
            assert agent.status == state(states)["status"] == PENDING
            with pytest.raises(NoRoom, match="it is paused"):
                await agent.accept("eve")
            assert agent.owns("ada")
            assert await agent.accept("bob")
            assert (await speaker.route(namespace, "ada", "chat", fresh=True)).pod == 3
            with pytest.raises(NoRoutablePod, match="status 'Pending'"):
                await speaker.route(namespace, "eve", "chat", fresh=True)
            await agent.resume()
            assert agent.status == state(states)["status"] == RUNNING
            assert await agent.accept("eve")

    async def test_a_paused_pod_can_be_drained(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            await agent.pause()
            await agent.drain(0.5)
            assert state(states)["status"] == "Draining"

    @pytest.mark.parametrize("most", [0, -1, 1.0, True, "1"])
    async def test_a_limit_that_is_none_is_refused(
        self, speaker: Any, namespace: str, most: Any
    ) -> None:
        with pytest.raises(InvalidArgument, match="max_claims"):
            agent_of(speaker, namespace, "chat", 3, max_claims=most)


# --- gateways


def limited(states: StateProgram, pod: int, room: int, most: int = 10) -> None:
    states.set(pod, f'{{"status":"Running","max_claims":{most},"room":{room}}}')


@ONE_SERVER
class TestAGateway:
    async def test_it_goes_to_a_pod_with_room(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        limited(states, 1, 0)
        limited(states, 2, 5)
        assert {(await router.route(namespace, f"u{n}", "chat")).pod for n in range(4)} == {2}

    async def test_without_any_room_it_says_so(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        limited(states, 1, 0)
        with pytest.raises(NoRoutablePod, match="pod 1: has no room: all 10 that it takes"):
            await router.route(namespace, "ada", "chat")

    async def test_what_it_has_placed_itself_takes_room(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        for pod in range(5):
            limited(states, pod, 4)
        pods = Counter(
            link.pod
            for link in await asyncio.gather(
                *(router.route(namespace, f"u{number}", "chat") for number in range(20))
            )
        )
        assert pods == dict.fromkeys(range(5), 4)

    async def test_users_of_a_full_pod_stay(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        limited(states, 1, 0)
        limited(states, 2, 5)
        await router.set_linked_pod(namespace, "ada", "chat", 1)
        assert (await router.route(namespace, "ada", "chat")).pod == 1

    async def test_it_waits_for_room_and_for_life(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        limited(states, 1, 0)
        states.set(2, "Stopped")
        for pod, comes in (
            (1, lambda: limited(states, 1, 1)),
            (2, lambda: states.set(2, "Running")),
        ):
            waiting = asyncio.create_task(router.route(namespace, f"for-{pod}", "chat", wait=4))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            comes()
            assert (await waiting).pod == pod
            limited(states, 1, 0)
            await router.get_pods(namespace, "chat", fresh=True)

    async def test_it_waits_no_longer_than_it_is_told(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        limited(states, 1, 0)
        began = time.monotonic()
        # There is never room: nothing else would end it.
        async with asyncio.timeout(20):
            with pytest.raises(NoRoutablePod):
                await router.route(namespace, "ada", "chat", wait=0.5)
        assert time.monotonic() - began > 0.35

    async def test_nor_longer_than_the_call_may_take(
        self, make_router: Any, cluster: LocalCluster, states: StateProgram, namespace: str
    ) -> None:
        limited(states, 1, 0)
        router = make_router(cluster.url, config=RouterConfig(retry=RetryConfig(deadline=1.0)))
        await router.open()
        began = time.monotonic()
        with pytest.raises(NoRoutablePod):
            await router.route(namespace, "ada", "chat", wait=60)
        # Of the 60 seconds that it may wait.
        assert 0.5 < time.monotonic() - began < 30.0
        await router.aclose()

    async def test_it_looks_again_once_half_of_the_room_must_have_gone(
        self, make_router: Any, cluster: LocalCluster, states: StateProgram, namespace: str
    ) -> None:
        for pod in (1, 2):
            limited(states, pod, 8)
        # Without that, for a minute nobody would see what the other gateways have placed.
        config = RouterConfig(placement=PlacementConfig(pod_view_max_age=60))
        router = make_router(cluster.url, config=config)
        await router.open()
        await router.route(namespace, "first", "chat")
        limited(states, 1, 0)
        async with asyncio.timeout(20):
            number = 0
            while (await router.get_pods(namespace, "chat"))[1].room:
                number += 1
                await router.route(namespace, f"u{number}", "chat")
        assert {(await router.route(namespace, f"v{n}", "chat")).pod for n in range(4)} == {2}
        await router.aclose()

    @pytest.mark.slow
    async def test_it_learns_how_long_users_take_to_their_pods(
        self, cluster: LocalCluster, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trips, "LONGEST", 60.0)  # the machine may be slow
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3, max_claims=9, sigterm=False) as agent,
        ):
            began = time.monotonic()
            await router.route(namespace, "ada", "chat")
            parts = router._engine.parts
            assert parts is not None
            known = parts.views._services[namespace, "chat"].following.trips
            await asyncio.sleep(1.5)
            await agent.accept("ada")
            arrived = time.monotonic()
            async with asyncio.timeout(20):
                while known._under_way:
                    await router.get_pods(namespace, "chat", fresh=True)
            # Clocks of servers are known as well as the answer came fast.
            assert 0.5 < known.seconds < arrived - began + 0.1


# --- together


@pytest.mark.slow
@pytest.mark.parametrize(("come_in_all", "second_tries"), [(900, 0.02), (1000, 0.1)])
@ONE_SERVER
async def test_eight_gateways_at_full_speed_never_pass_the_limit(
    cluster: LocalCluster, namespace: str, come_in_all: int, second_tries: float
) -> None:
    """Ten pods take 100 users each, who come through eight gateways, each as fast as it can."""
    pods, most, gateways = 10, 100, 8
    async with AsyncRouter.from_url(cluster.url) as at_pods:
        agents = {
            pod: AsyncPodAgent(at_pods, namespace, "chat", pod, max_claims=most, sigterm=False)
            for pod in range(pods)
        }
        await asyncio.gather(*(agent.start() for agent in agents.values()))
        users = [f"u{number}" for number in range(come_in_all)]
        random.Random(1).shuffle(users)
        tries: Counter[int] = Counter()

        async def come(router: AsyncRouter, uid: str) -> None:
            refused: list[int] = []
            while True:
                link = await router.route(namespace, uid, "chat", exclude=refused, wait=4)
                try:
                    assert await agents[link.pod].accept(uid)
                    break
                except NoRoom:
                    refused.append(link.pod)
            tries[len(refused)] += 1

        async def gateway(number: int) -> None:
            async with AsyncRouter.from_url(cluster.url) as router:
                mine = users[number::gateways]
                for start in range(0, len(mine), 10):
                    await asyncio.gather(*(come(router, uid) for uid in mine[start : start + 10]))

        await asyncio.gather(*map(gateway, range(gateways)))
        claims = [agent._ownership.left for agent in agents.values()]
        assert sum(claims) == come_in_all
        assert max(claims) <= most
        second = sum(count for refused, count in tries.items() if refused)
        print(f"\nof {len(users)} users {second} were refused somewhere first: {dict(tries)}")
        assert second / len(users) <= second_tries
        await asyncio.gather(*(agent.stop() for agent in agents.values()))
