"""One view of a service's pods: which links stay, who may take uids, and how long it is good for."""

from __future__ import annotations

import asyncio
import math
from typing import cast

import pytest

from sfroute import DRAINING, RUNNING, STOPPED, PlacementConfig, Pod, RouterConfig
from sfroute._commands.commands import Commands
from sfroute._pods.views import PodViews, ServiceView, notice_seconds


def view(*pods: Pod, at: float = 100.0) -> ServiceView:
    return ServiceView({pod.id: pod for pod in pods}, at, PlacementConfig())


def test_links_stay_with_pods_that_are_there_and_not_gone() -> None:
    pods = view(Pod(0, RUNNING), Pod(1, DRAINING), Pod(2, STOPPED), Pod(3, RUNNING, age=7.0))
    assert [pod for pod in range(5) if pods.keeps(pod)] == [0, 1]


def test_of_an_empty_view_nothing_is_known() -> None:
    assert view().keeps(7)
    assert view().takers((), 100.0) == []
    assert view().usable_until == math.inf


def test_it_is_good_until_the_next_pod_would_be_dead() -> None:
    pods = view(Pod(0, RUNNING, age=1.0), Pod(1, RUNNING, age=5.5), Pod(2, RUNNING, age=9.0))
    assert pods.usable_until == 100.5
    assert view(Pod(0, RUNNING), Pod(1, STOPPED, age=9.0)).usable_until == math.inf


def test_an_old_view_proposes_only_pods_that_are_still_in_time() -> None:
    pods = view(Pod(0, RUNNING, age=1.0), Pod(1, RUNNING, age=4.0), Pod(2, DRAINING, age=0.0))
    assert [pod.id for pod in pods.takers((), 100.0)] == [0, 1]
    assert [pod.id for pod in pods.takers((), 103.0)] == [0]
    assert [pod.id for pod in pods.takers({0}, 103.0)] == []
    assert pods.takers((), 106.0) == []


class TestAllSilent:
    def test_links_of_those_that_fell_silent_together_stand(self) -> None:
        pods = view(Pod(0, RUNNING, age=70.0), Pod(1, RUNNING, age=71.0), Pod(2, RUNNING, age=90.0))
        assert [pod for pod in range(3) if pods.keeps(pod)] == [0, 1]
        assert set(pods.gone) == {0, 1, 2}
        assert (set(pods.spared), pods.leaving()) == ({0, 1}, [2])
        # Nobody new is placed on them.
        assert pods.takers((), 100.0) == []

    def test_unless_they_are_to_move(self) -> None:
        pods = {0: Pod(0, RUNNING, age=70.0)}
        moving = ServiceView(pods, 100.0, PlacementConfig(all_silent="move"))
        assert (moving.keeps(0), moving.leaving()) == (False, [0])


class TestPodsThatAreEmptied:
    def emptied(self, *pods: int) -> ServiceView:
        found = {pod: Pod(pod, RUNNING) for pod in range(3)}
        return ServiceView(found, 100.0, PlacementConfig(), emptied=frozenset(pods))

    def test_they_get_nobody_while_there_is_another(self) -> None:
        assert [pod.id for pod in self.emptied(1).takers((), 100.0)] == [0, 2]
        assert [pod.id for pod in self.emptied(1).takers({0, 2}, 100.0)] == [1]
        assert [pod.id for pod in self.emptied(1).takers({0, 2}, 100.0, emptied=False)] == []
        assert self.emptied(0, 1, 2).takers((), 100.0, emptied=False) == []

    def test_their_links_stay_until_they_are_moved(self) -> None:
        assert self.emptied(1).keeps(1)


class TestUsersInGrace:
    """A temporary link at a draining pod: is its user away?"""

    @pytest.mark.parametrize(
        ("status", "extra", "persistent", "persist_seconds", "lets_go"),
        [
            (DRAINING, {}, False, -1, True),
            (DRAINING, {}, True, -1, False),
            (RUNNING, {}, False, -1, False),
            # Links that are temporary all the time are those of users who are there.
            (DRAINING, {}, False, 30, False),
            (DRAINING, {"confirmed": ""}, False, 30, True),
            (DRAINING, {"confirmed": ""}, True, 30, False),
        ],
    )
    def test_who_leaves(
        self,
        status: str,
        extra: dict[str, object],
        persistent: bool,
        persist_seconds: int,
        lets_go: bool,
    ) -> None:
        pods = view(Pod(0, status, extra=extra), Pod(1, RUNNING))
        asked = pods.lets_go(0, persistent=persistent, persist_seconds=persist_seconds)
        assert asked == lets_go


class TestStatesThatVanish:
    def test_their_pods_are_waited_for_as_long_as_for_silent_ones(self) -> None:
        before = view(Pod(0, RUNNING), Pod(1, DRAINING), Pod(2, STOPPED), at=100.0)
        after = view(Pod(3, RUNNING), at=102.0)
        after.look_back(before)
        assert [pod for pod in range(5) if after.keeps(pod)] == [0, 1, 3]
        assert after.usable_until == 108.0
        later = view(Pod(3, RUNNING), at=105.0)
        later.look_back(after)
        assert later.keeps(0)
        last = view(Pod(3, RUNNING), at=108.1)
        last.look_back(later)
        assert [pod for pod in range(5) if last.keeps(pod)] == [3]

    def test_the_time_begins_when_others_are_seen_without_them(self) -> None:
        before = view(Pod(0, RUNNING), Pod(1, RUNNING), at=100.0)
        # Nobody could report for long, or nobody looked.
        empty = view(at=160.0)
        empty.look_back(before)
        first = view(Pod(1, RUNNING), at=200.0)
        first.look_back(empty)
        second = view(Pod(1, RUNNING), at=205.9)
        second.look_back(first)
        third = view(Pod(1, RUNNING), at=206.1)
        third.look_back(second)
        assert [each.keeps(0) for each in (empty, first, second, third)] == [True] * 3 + [False]

    def test_they_take_no_new_uids(self) -> None:
        after = view(Pod(3, RUNNING), at=102.0)
        after.look_back(view(Pod(0, RUNNING)))
        assert [pod.id for pod in after.takers((), 102.0)] == [3]

    def test_one_that_comes_back_is_judged_by_what_it_reports(self) -> None:
        after = view(Pod(0, STOPPED), Pod(3, RUNNING), at=102.0)
        after.look_back(view(Pod(0, RUNNING)))
        assert not after.keeps(0)


@pytest.mark.parametrize(("max_age", "seconds"), [(0.5, 1.0), (0.0, 0.0)])
def test_every_gateway_has_noticed_after_two_periods(max_age: float, seconds: float) -> None:
    assert notice_seconds(PlacementConfig(pod_view_max_age=max_age)) == seconds


class OtherClocks:
    """A store whose servers' clocks can be wrong, which no real one's can, and the pods that report to it."""

    def __init__(self) -> None:
        self.time = 100.0
        self.ahead = 0.0
        self.takes = 0.0
        self.stamps: dict[int, float] = {}

    def beat(self, *pods: int) -> None:
        self.stamps.update((pod, self.time + self.ahead) for pod in pods)

    async def run(self, command: object) -> list[bytes]:
        now = self.time + self.ahead
        self.time += self.takes
        reply: list[object] = [now]
        for pod, stamp in self.stamps.items():
            reply += [pod, "Running", max(now - stamp, 0.0)]
        return [
            b"%d" % (one * 1000) if isinstance(one, float) else str(one).encode() for one in reply
        ]


@pytest.mark.parametrize(("gateways", "pause"), [(1, 0.5), (8, 4.0)])
async def test_many_gateways_look_early_at_the_pods_no_more_often_than_one(
    gateways: int, pause: float
) -> None:
    """Ten times what a reading takes, for each of them, lies between two."""
    store = OtherClocks()
    views = PodViews(cast("Commands", store), RouterConfig(), lambda: store.time)
    store.takes = 0.05
    store.beat(0)
    await views.get("n", "s", fresh=True)
    # Of so many users that a pod has got this gateway has placed one in ``gateways``.
    views.placements("n", "s")._learn_claims(10 * gateways, 10)
    began = store.time - store.takes
    looks = []
    for after in (pause - 0.01, pause + 0.01):
        store.time = began + after
        views.renew_early("n", "s")
        await asyncio.sleep(0.01)
        looks.append(store.time > began + after)
    assert looks == [False, True]
    await views.close()


class TestServersWhoseClocksDiffer:
    """Another server may take over, and its clock be ahead of the one that stamped the heartbeats."""

    @pytest.fixture
    def store(self) -> OtherClocks:
        return OtherClocks()

    @pytest.fixture
    async def views(self, store: OtherClocks) -> PodViews:
        return PodViews(cast("Commands", store), RouterConfig(), lambda: store.time)

    async def test_one_that_is_ahead_kills_nobody(
        self, store: OtherClocks, views: PodViews
    ) -> None:
        store.beat(0, 1)
        assert (await views.get("n", "s", fresh=True)).gone == {}
        store.time += 1.0
        store.ahead = 60.0
        after = await views.get("n", "s", fresh=True)
        assert (after.gone, [pod.id for pod in after.takers((), store.time)]) == ({}, [0, 1])
        # Heartbeats have come by its clock; a pod of which none has is dead.
        store.time += 1.5
        store.beat(0)
        assert (await views.get("n", "s", fresh=True)).gone == {}
        store.time += 1.0
        assert set((await views.get("n", "s", fresh=True)).gone) == {1}

    async def test_one_that_is_behind_kills_nobody_either(
        self, store: OtherClocks, views: PodViews
    ) -> None:
        store.beat(0, 1)
        await views.get("n", "s", fresh=True)
        store.ahead = -60.0
        assert (await views.get("n", "s", fresh=True)).gone == {}
        store.beat(0)
        store.time += 7.0
        store.beat(1)
        assert set((await views.get("n", "s", fresh=True)).gone) == {0}

    @pytest.mark.parametrize("takes", [0.0, 0.4])
    async def test_a_slow_answer_and_drift_excuse_nobody(
        self, store: OtherClocks, views: PodViews, takes: float
    ) -> None:
        store.takes = takes
        store.beat(0)
        for _ in range(7):
            await views.get("n", "s", fresh=True)
            store.time += 1.0 - takes
            store.ahead += 0.001
        assert set((await views.get("n", "s", fresh=True)).gone) == {0}
