"""``rebalance()``: users from full pods to emptier ones, by both fronts, on a real cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
import redis.cluster
from support.program import LinkProgram, StateProgram

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CacheConfig,
    CorruptReply,
    Handover,
    InvalidArgument,
    Lost,
    PlacementConfig,
    PlannedMoves,
    RebalanceProgress,
    RouterConfig,
    StoreUnavailable,
)
from sfroute._contract.keys import link_key, rebalance_key
from sfroute._operations import handing_over
from sfroute.embedded import LocalCluster

from .conftest import ONE_SERVER
from .test_agent import agent_of, until
from .test_evacuation import write_links
from .test_listing import every
from .test_ownership import until_watched

pytestmark = ONE_SERVER

Raw = redis.cluster.RedisCluster
QUICK = RouterConfig(placement=PlacementConfig(pod_view_max_age=0.05))


@pytest.fixture
async def speaker(make_router: Callable[..., Any], cluster: LocalCluster) -> AsyncIterator[Any]:
    router = make_router(cluster.url, config=QUICK)
    await router.open()
    yield router
    await router.aclose()


@pytest.fixture
async def operator(cluster: LocalCluster) -> AsyncIterator[AsyncRouter]:
    async with AsyncRouter.from_url(cluster.url, config=QUICK) as router:
        yield router


@pytest.fixture
def states(raw: Raw, namespace: str) -> StateProgram:
    return StateProgram(raw, namespace, "chat")


async def outcome(router: Any, namespace: str, **options: Any) -> RebalanceProgress:
    """The last step."""
    steps: list[RebalanceProgress] = await every(router.rebalance(namespace, "chat", **options))
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[-1].asked == 0
    return steps[-1]


def spread(raw: Raw, namespace: str, count: int) -> dict[int, int]:
    """Pod -> users, of uids u0, u1, ..."""
    pods = [raw.get(link_key(namespace, f"u{number}", "chat")) for number in range(count)]
    return Counter(int(str(pod)) for pod in pods if pod is not None)


def fill(raw: Raw, namespace: str, counts: dict[int, int]) -> int:
    """Links that nobody has claimed; how many."""
    pods = [pod for pod, count in counts.items() for _ in range(count)]
    write_links(raw, namespace, "chat", ((f"u{number}", pod) for number, pod in enumerate(pods)))
    return len(pods)


class TestUsersNobodyHasClaimed:
    async def test_as_few_as_needed_go_to_the_pod_that_has_come(
        self, router: Any, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        for pod in range(5):
            states.set(pod, '{"status":"Running"}', 1)
        count = fill(raw, namespace, {0: 50, 1: 50, 2: 50, 3: 50})
        plan = tuple(PlannedMoves(pod, 4, 2) for pod in range(4))
        done = await outcome(router, namespace, dry_run=True)
        assert (done.plan, done.planned, done.left, done.scanned) == (plan, 8, 8, 200)
        assert done.skew == pytest.approx(1.25)
        assert spread(raw, namespace, count)[4] == 0
        done = await outcome(router, namespace)
        assert (done.moved, done.left, done.failed) == (8, 0, 0)
        assert spread(raw, namespace, count) == {0: 48, 1: 48, 2: 48, 3: 48, 4: 8}
        done = await outcome(router, namespace)
        assert (done.plan, done.planned) == ((), 0)
        await outcome(router, namespace, max_skew=1.0)
        assert spread(raw, namespace, count) == dict.fromkeys(range(5), 40)

    async def test_only_pods_that_take_users_get_any(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        for pod, state in {
            0: '{"status":"Running"}',
            1: '{"status":"Draining"}',
            2: '{"status":"Pending"}',
            3: '{"status":"Running","max_claims":10,"room":4}',
            4: '{"status":"Running","max_claims":10,"room":10}',
            5: '{"status":"Stopped"}',
            6: '{"status":"Running"}',
        }.items():
            states.set(pod, state, 1)
        states.set("~empty:6", "{}", 1)
        count = fill(raw, namespace, {0: 60, 1: 1, 2: 50, 3: 8, 6: 7})
        done = await outcome(operator, namespace, max_skew=1.0)
        assert done.moved == 12
        # Pod 3 says that it has room for 4, and has 8 of 10 links; the paused and the draining keep theirs.
        assert spread(raw, namespace, count) == {0: 48, 1: 1, 2: 50, 3: 10, 4: 10, 6: 7}

    async def test_kind_and_time_are_kept(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        states.set(0, "Running")
        states.set(1, "Running")
        uids = [LinkProgram(raw, namespace, f"u{number}", "chat") for number in range(8)]
        for number, uid in enumerate(uids):
            uid.set_link(0, 100 if number % 2 else -1)
        assert (await outcome(operator, namespace, max_skew=1.0)).moved == 4
        for number, uid in enumerate(uids):
            assert (uid.ttl() == -1) == (number % 2 == 0)
            assert uid.listed() == (uid.pod() if number % 2 == 0 else None)

    async def test_a_target_that_drains_on_the_way_gets_no_more_and_the_rest_is_planned_anew(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        for pod in range(3):
            states.set(pod, "Running")
        count = fill(raw, namespace, {0: 300})
        at_draining = 0
        done = RebalanceProgress()
        async with aclosing(operator.rebalance(namespace, "chat", max_skew=1.0, rate=150)) as steps:
            async for done in steps:
                if done.moved > 20 and not at_draining:
                    states.set(1, "Draining")
                    await operator.get_pods(namespace, "chat", fresh=True)
                    at_draining = spread(raw, namespace, count)[1]
        now = spread(raw, namespace, count)
        assert now[1] <= at_draining + 64  # those under way
        assert now[0] + now[2] + now[1] == 300
        assert abs(now[0] - now[2]) <= 1
        assert done.left == 0

    async def test_a_damaged_key_stops_nobody_else(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        states.set(0, "Running")
        states.set(1, "Running")
        count = fill(raw, namespace, {0: 20})
        for number in range(2):
            damaged = LinkProgram(raw, namespace, f"u{number}", "chat")
            raw.set(damaged.claim_record, "nonsense")
            raw.delete(damaged.hash)
            raw.rpush(damaged.hash, "x")
        raw.set(link_key(namespace, "grace", "chat"), "nowhere")
        with contextlib.suppress(CorruptReply):
            await outcome(operator, namespace, max_skew=1.0)
        assert spread(raw, namespace, count) == {0: 10, 1: 10}

    async def test_links_that_spell_a_pod_otherwise_count_too(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        states.set(7, "Running")
        states.set(8, "Running")
        count = fill(raw, namespace, {7: 20})
        for number in range(0, count, 2):
            raw.set(link_key(namespace, f"u{number}", "chat"), "007")
        done = await outcome(operator, namespace, max_skew=1.0, dry_run=True)
        assert done.planned == 10

    async def test_at_a_low_rate_nobody_is_moved_by_what_was_known_long_ago(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        for pod in range(2):
            states.set(pod, "Running")
        count = fill(raw, namespace, {0: 8})
        at_draining = 0
        async with aclosing(operator.rebalance(namespace, "chat", max_skew=1.0, rate=0.5)) as steps:
            async for done in steps:
                if done.moved and not at_draining:
                    states.set(1, "Draining")
                    await operator.get_pods(namespace, "chat", fresh=True)
                    at_draining = spread(raw, namespace, count)[1]
        assert 1 <= at_draining < 4
        assert spread(raw, namespace, count)[1] == at_draining

    async def test_no_pods_or_no_users_or_one_pod(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        assert (await outcome(operator, namespace)).skew is None
        states.set(0, "Running")
        assert (await outcome(operator, namespace)).skew is None
        fill(raw, namespace, {0: 3, 9: 3})
        done = await outcome(operator, namespace)
        assert (done.skew, done.planned) == (1.0, 0)

    async def test_it_can_be_left_and_goes_on_when_it_is_started_again(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        for pod in range(2):
            states.set(pod, "Running")
        count = fill(raw, namespace, {0: 200})
        async with aclosing(operator.rebalance(namespace, "chat", max_skew=1.0, rate=100)) as steps:
            async for step in steps:
                if step.moved:
                    break
        assert raw.get(rebalance_key(namespace, "chat")) is None
        assert 0 < spread(raw, namespace, count)[1] < 100
        await outcome(operator, namespace, max_skew=1.0)
        assert spread(raw, namespace, count) == {0: 100, 1: 100}

    async def test_two_at_once_take_turns(
        self, cluster: LocalCluster, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        for pod in range(4):
            states.set(pod, "Running")
        count = fill(raw, namespace, {0: 200})
        async with contextlib.AsyncExitStack() as stack:
            routers = [
                await stack.enter_async_context(AsyncRouter.from_url(cluster.url, config=QUICK))
                for _ in range(3)
            ]
            done = await asyncio.gather(
                *(outcome(router, namespace, max_skew=1.0) for router in routers)
            )
        assert sorted(one.moved for one in done) == [0, 0, 150]
        assert spread(raw, namespace, count) == dict.fromkeys(range(4), 50)

    async def test_one_that_has_lost_its_turn_moves_nobody_any_more(
        self, operator: AsyncRouter, raw: Raw, states: StateProgram, namespace: str
    ) -> None:
        for pod in range(2):
            states.set(pod, "Running")
        count = fill(raw, namespace, {0: 400})

        async def robbed() -> None:
            async for step in operator.rebalance(namespace, "chat", max_skew=1.0, rate=40):
                if step.moved:
                    raw.set(rebalance_key(namespace, "chat"), "somebody else", px=30_000)

        with pytest.raises(StoreUnavailable, match="another process may have taken over"):
            await robbed()
        before = spread(raw, namespace, count)
        assert before[1] < 200
        assert raw.get(rebalance_key(namespace, "chat")) == "somebody else"
        assert spread(raw, namespace, count) == before


class Pod:
    """A pod with users, which does what it is told with what it is asked."""

    def __init__(self, agent: Any, heeds: Callable[[Any, Handover], Any] | None) -> None:
        self.agent = agent
        self.heeds = heeds
        self.asked: list[Handover] = []
        self.lost: list[Lost] = []

    async def read(self) -> None:
        async for event in self.agent.events():
            if isinstance(event, Handover):
                self.asked.append(event)
                if self.heeds is not None:
                    await self.heeds(self.agent, event)
            elif isinstance(event, Lost):
                self.lost.append(event)


async def hand_over(agent: Any, event: Handover) -> None:
    assert await agent.release(event)


@contextlib.asynccontextmanager
async def pods_of(
    router: Any,
    namespace: str,
    users: dict[int, int],
    heeds: Callable[[Any, Handover], Any] | None = hand_over,
) -> AsyncIterator[dict[int, Pod]]:
    """Pods that have accepted so many users: u0, u1, ..."""
    async with contextlib.AsyncExitStack() as stack:
        found: dict[int, Pod] = {}
        number = 0
        for pod, count in users.items():
            agent = AsyncPodAgent(router, namespace, "chat", pod, sigterm=False)
            await stack.enter_async_context(agent)
            found[pod] = Pod(agent, heeds)
            for _ in range(count):
                assert await agent.accept(f"u{number}")
                number += 1
        reading = [asyncio.create_task(pod.read()) for pod in found.values()]
        try:
            yield found
        finally:
            await stack.aclose()
            await asyncio.gather(*reading)


class TestUsersThatPodsHave:
    async def test_after_a_scale_out_nobody_is_owned_twice_and_few_are_moved(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        twice: list[str] = []

        async def watch(pods: dict[int, Pod]) -> None:
            while True:
                for number in range(200):
                    uid = f"u{number}"
                    # Newly placed users ask their new pod, as their gateway's next request does.
                    if sum(pod.agent.owns(uid) for pod in pods.values()) > 1:
                        twice.append(uid)
                await asyncio.sleep(0.005)

        async def come_back(pods: dict[int, Pod]) -> None:
            """The users who were let go send their next request."""
            while True:
                for number in range(200):
                    uid = f"u{number}"
                    if not any(pod.agent.owns(uid) for pod in pods.values()):
                        link = await operator.route(namespace, uid, "chat", persist_seconds=30)
                        await pods[link.pod].agent.accept(uid)
                await asyncio.sleep(0.01)

        users = {0: 50, 1: 50, 2: 50, 3: 50, 4: 0}
        async with pods_of(operator, namespace, users) as pods:
            tasks = [asyncio.create_task(watch(pods)), asyncio.create_task(come_back(pods))]
            done = await outcome(operator, namespace)
            assert (done.planned, done.handed_over, done.moved, done.left) == (8, 8, 0, 0)
            owned = [f"u{number}" for number in range(200)]
            await until(lambda: all(any(p.agent.owns(u) for p in pods.values()) for u in owned))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert twice == []
            assert spread(raw, namespace, 200) == {0: 48, 1: 48, 2: 48, 3: 48, 4: 8}
            assert sum(map(pods[4].agent.owns, owned)) == 8
            # Nobody but those who moved was asked for.
            assert sum(len(pod.asked) for pod in pods.values()) == 8

    async def test_a_pod_that_ignores_it_keeps_its_users(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        async with pods_of(operator, namespace, {0: 20, 1: 0}, None) as pods:
            done = await outcome(operator, namespace, max_skew=1.0, patience=0.4)
            assert (done.planned, done.kept, done.handed_over, done.left) == (10, 10, 0, 10)
            assert len(pods[0].asked) == 10
            assert "u1" not in repr(pods[0].asked)
            assert all(pods[0].agent.owns(f"u{number}") for number in range(20))
            assert spread(raw, namespace, 20) == {0: 20}
            assert pods[0].lost == []

    async def test_force_moves_whoever_is_not_let_go(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        async with pods_of(operator, namespace, {0: 20, 1: 0}, None) as pods:
            done = await outcome(operator, namespace, max_skew=1.0, patience=0.4, force=True)
            assert (done.forced, done.kept, done.left) == (10, 0, 0)
            assert spread(raw, namespace, 20) == {0: 10, 1: 10}
            await until(lambda: len(pods[0].lost) == 10)
            assert {(lost.reason, lost.owner) for lost in pods[0].lost} == {("moved", 1)}

    async def test_idle_only_takes_those_in_their_grace_period_and_asks_nobody(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        async with pods_of(operator, namespace, {0: 20, 1: 0}) as pods:
            for number in range(3):
                assert await pods[0].agent.release(f"u{number}", grace=60)
            done = await outcome(operator, namespace, max_skew=1.0, idle_only=True)
            assert (done.planned, done.moved, done.claimed, done.left) == (10, 3, 17, 7)
            assert pods[0].asked == []
            assert [LinkProgram(raw, namespace, f"u{n}", "chat").pod() for n in range(3)] == [
                "1"
            ] * 3

    async def test_those_away_go_before_those_who_are_there(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        async with pods_of(operator, namespace, {0: 20, 1: 0}) as pods:
            for number in range(12):
                assert await pods[0].agent.release(f"u{number}", grace=60)
            done = await outcome(operator, namespace, max_skew=1.0)
            assert (done.moved, done.handed_over) == (10, 0)
            assert pods[0].asked == []

    async def test_some_are_let_go_and_others_asked_for_instead_of_those_who_stay(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        busy = {f"u{number}" for number in range(6)}

        async def unless_busy(agent: Any, event: Handover) -> None:
            if event.uid not in busy:
                await agent.release(event)

        async with pods_of(operator, namespace, {0: 24, 1: 0}, unless_busy) as pods:
            done = await outcome(operator, namespace, max_skew=1.0, patience=0.5)
            assert (done.handed_over, done.left) == (12, 0)
            assert all(map(pods[0].agent.owns, busy))
            assert len(pods[0].asked) == done.handed_over + done.kept <= 24
            assert spread(raw, namespace, 24) == {0: 12, 1: 12}

    async def test_two_rebalances_at_once_ask_once(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        async with pods_of(operator, namespace, {0: 20, 1: 0}) as pods:
            done = await asyncio.gather(
                *(outcome(operator, namespace, max_skew=1.0) for _ in range(2))
            )
            assert sorted(one.handed_over for one in done) == [0, 10]
            assert len(pods[0].asked) == 10

    async def test_one_whose_keys_are_damaged_once_asked_for_does_not_stop_it(
        self,
        operator: AsyncRouter,
        raw: Raw,
        namespace: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(handing_over, "ASK_AGAIN_SECONDS", 0.2)
        damaged: list[LinkProgram] = []

        async def all_but_the_first(agent: Any, event: Handover) -> None:
            if not damaged:
                damaged.append(LinkProgram(raw, namespace, event.uid, "chat"))
                raw.delete(damaged[0].hash)
                raw.rpush(damaged[0].hash, "x")
                await asyncio.sleep(1.0)  # it is asked for again
            elif event.uid != damaged[0].uid:
                await agent.release(event)

        async with pods_of(operator, namespace, {0: 20, 1: 0}, all_but_the_first):
            with pytest.raises(CorruptReply):
                await outcome(operator, namespace, max_skew=1.0)
            now = spread(raw, namespace, 20)
            raw.delete(damaged[0].hash)
            assert now == {0: 11, 1: 9}

    async def test_a_target_that_stops_taking_users_gets_none_and_its_users_are_planned_anew(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        paused = asyncio.Event()

        async def once_paused(agent: Any, event: Handover) -> None:
            if not paused.is_set():
                await pods[1].agent.pause()
                paused.set()
            await agent.release(event)

        async with pods_of(operator, namespace, {0: 600, 1: 0, 2: 0}, once_paused) as pods:
            done = await outcome(operator, namespace, max_skew=1.0, patience=10.0)
            now = spread(raw, namespace, 600)
            # Those for whom the pod was asked before; the plan was 200.
            assert now[1] <= 128
            assert done.left == 0
            assert abs(now[0] - now[2]) <= 1


class TestHandingOver:
    async def test_it_is_let_go_to_the_other_pod_by_either_front(
        self, speaker: Any, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with (
            agent_of(speaker, namespace, "chat", 3) as agent,
            aclosing(agent.events()) as events,
        ):
            claim = await agent.accept("ada")
            await until_watched(agent)
            assert ada.hand_over(3, 7) == "asked"
            event = await asyncio.wait_for(anext(events), 5.0)
            assert event == Handover("ada", claim, 7)
            assert "ada" not in repr(event)
            assert await agent.release(event) is True
            assert not agent.owns("ada")
            assert (ada.pod(), ada.listed()) == ("7", None)
            assert 50 < ada.ttl() <= 60
            assert ada.record() == f"{claim.fence} - -"
            assert await agent.release(event) is False

    async def test_its_sessions_end_first(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with AsyncPodAgent(operator, namespace, "chat", 3, sigterm=False) as agent:
            async with (
                aclosing(agent.events()) as events,
                agent.session("ada", grace=30),
                agent.session("ada", grace=30),
            ):
                await until_watched(agent)
                ada.hand_over(3, 7)
                event = await asyncio.wait_for(anext(events), 5.0)
                assert isinstance(event, Handover)
                assert await agent.release(event, grace=20) is True
                assert agent.owns("ada")
                assert ada.pod() == "3"
            assert ada.pod() == "7"
            assert 10 < ada.ttl() <= 20

    async def test_who_is_accepted_again_meanwhile_stays(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with (
            AsyncPodAgent(operator, namespace, "chat", 3, sigterm=False) as agent,
            aclosing(agent.events()) as events,
        ):
            await agent.accept("ada")
            await until_watched(agent)
            ada.hand_over(3, 7)
            event = await asyncio.wait_for(anext(events), 5.0)
            assert isinstance(event, Handover)
            newer = await agent.accept("ada")
            assert await agent.release(event) is False
            assert (agent.owns("ada"), ada.pod()) == (True, "3")
            assert await agent.release(newer)

    async def test_it_is_told_once_for_each_request_and_not_of_other_claims(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with AsyncPodAgent(operator, namespace, "chat", 3, sigterm=False) as agent:
            first = await agent.accept("ada")
            await agent.release(first)
            raw.set(ada.keys["request"], f"{first.fence} 7", px=10_000)
            newer = await agent.accept("ada")
            pod = Pod(agent, None)
            reading = asyncio.create_task(pod.read())
            await until_watched(agent)
            raw.set(ada.claim_record, ada.record() or "")
            for _ in range(3):
                assert ada.hand_over(3, 7) == "asked"
                await until(lambda: len(pod.asked) == 1)
            assert ada.hand_over(3, 8) == "asked"
            await until(lambda: len(pod.asked) == 2)
            assert pod.asked == [Handover("ada", newer, 7), Handover("ada", newer, 8)]
        await reading

    async def test_what_is_not_read_is_bounded_and_goes_with_the_claim(
        self, operator: AsyncRouter, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with AsyncPodAgent(operator, namespace, "chat", 3, sigterm=False) as agent:
            table = agent._ownership.table
            claim = await agent.accept("ada")
            await until_watched(agent)
            for target in (7, 8):
                ada.hand_over(3, target)
                await until(lambda to=target: Handover("ada", claim, to) in table._events.values())  # type: ignore[misc]
            again = await agent.accept("ada")
            assert list(table._events.values()) == [Handover("ada", again, 8)]
            assert again != claim or again.turn > claim.turn
            await agent.release(again)
            assert not table._events

    async def test_a_server_that_pushes_nothing_is_asked_in_the_round(
        self, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        untracked = RouterConfig(cache=CacheConfig(tracking=False))
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with (
            AsyncRouter.from_url(cluster.url, config=untracked) as router,
            AsyncPodAgent(router, namespace, "chat", 3, sigterm=False, confirm_every=0.2) as agent,
            aclosing(agent.events()) as events,
        ):
            claim = await agent.accept("ada")
            assert ada.hand_over(3, 7) == "asked"
            assert await asyncio.wait_for(anext(events), 10.0) == Handover("ada", claim, 7)

    async def test_bad_handovers_are_refused(self, speaker: Any, raw: Raw, namespace: str) -> None:
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            claim = await agent.accept("ada")
            for to in (-1, True, "7", None):
                with pytest.raises(InvalidArgument):
                    await agent.release(Handover("ada", claim, to))  # type: ignore[arg-type]
            assert agent.owns("ada")


async def test_force_and_idle_only_exclude_each_other(router: Any, namespace: str) -> None:
    with pytest.raises(InvalidArgument):
        await every(router.rebalance(namespace, "chat", force=True, idle_only=True))
