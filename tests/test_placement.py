"""Policies: whom they propose, and how evenly uids are spread by them."""

from __future__ import annotations

import math
import os
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfroute import (
    RUNNING,
    Candidate,
    LeastLoaded,
    Pod,
    Policy,
    PowerOfTwoChoices,
    Rendezvous,
    RoundRobin,
    WeightedByCapacity,
)
from sfroute._pods.policies import Placements, candidates

HUGE = 10**400
"""More than a float can hold, as JSON can."""

POLICIES: list[Policy] = [
    PowerOfTwoChoices(random.Random(1)),
    LeastLoaded(),
    Rendezvous(),
    RoundRobin(),
    WeightedByCapacity(random.Random(1)),
]

some_candidates = st.lists(
    st.builds(Candidate, st.integers(0, 2**63 - 1), st.floats(0, 1e9), st.floats(0.001, 1000)),
    min_size=1,
    max_size=12,
    unique_by=lambda candidate: candidate.id,
)


def pods(*loads: float | None) -> list[Pod]:
    return [Pod(number, RUNNING, load) for number, load in enumerate(loads)]


def spread(policy: Policy, loads: list[float], uids: int) -> Counter[int]:
    """How many of ``uids`` each pod gets from one gateway between two heartbeats."""
    placed: Counter[int] = Counter()
    for number in range(uids):
        placed[policy.rank(f"u{number}", candidates(pods(*loads), placed, None))[0]] += 1
    return placed


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
class TestEveryPolicy:
    @pytest.mark.slow
    @given(some_candidates, st.text())
    def test_it_proposes_each_candidate_once(
        self, policy: Policy, choice: list[Candidate], uid: str
    ) -> None:
        ids = [candidate.id for candidate in choice]
        assert sorted(policy.rank(uid, choice)) == sorted(ids)

    def test_equal_pods_share_alike(self, policy: Policy) -> None:
        placed = spread(policy, [0.0] * 4, 2000)
        assert all(400 <= placed[pod] <= 600 for pod in range(4))


class TestCandidates:
    def test_where_no_pod_reports_a_load_what_was_placed_counts(self) -> None:
        assert candidates(pods(None, None), {1: 3}, None) == [Candidate(0, 0.0), Candidate(1, 3.0)]

    def test_a_pod_without_a_load_is_no_better_than_the_others(self) -> None:
        loads = [one.load for one in candidates(pods(0.25, None, 0.75), {}, None)]
        assert loads == [0.25, 0.5, 0.75]

    def test_what_was_placed_counts_as_one_where_loads_are_counts(self) -> None:
        loads = [one.load for one in candidates(pods(0.5, 12.0), {0: 3}, None)]
        assert loads == [3.5, 12.0]

    def test_and_as_a_hundredth_where_loads_are_shares(self) -> None:
        loads = [one.load for one in candidates(pods(0.5, 0.75), {0: 25}, None)]
        assert loads == [0.75, 0.75]

    def test_or_as_what_the_configuration_says(self) -> None:
        assert [one.load for one in candidates(pods(0.5, 0.5), {1: 2}, 0.25)] == [0.5, 1.0]

    def test_a_load_is_per_unit_of_capacity(self) -> None:
        big = Pod(0, RUNNING, 8.0, extra={"capacity": 4})
        assert candidates([big], {}, None) == [Candidate(0, 2.0, 4.0)]

    @pytest.mark.parametrize(
        "capacity", [0, -1, True, "4", None, math.inf, math.nan, [4], pytest.param(HUGE, id="huge")]
    )
    def test_a_capacity_that_is_none_counts_as_one(self, capacity: object) -> None:
        odd = Pod(0, RUNNING, 8.0, extra={"capacity": capacity})
        assert candidates([odd], {}, None) == [Candidate(0, 8.0, 1.0)]


class TestLeastLoaded:
    def test_by_load_then_by_id(self) -> None:
        choice = [Candidate(3, 1.0), Candidate(1, 1.0), Candidate(2, 0.5)]
        assert LeastLoaded().rank("ada", choice) == [2, 1, 3]

    def test_it_evens_out_unequal_loads(self) -> None:
        assert spread(LeastLoaded(), [10.0, 12.0], 10) == {0: 6, 1: 4}


class TestPowerOfTwoChoices:
    def test_the_less_loaded_a_pod_the_more_often_it_is_first(self) -> None:
        policy = PowerOfTwoChoices(random.Random(1))
        choice = [Candidate(number, float(number)) for number in range(5)]
        firsts = Counter(policy.rank("ada", choice)[0] for _ in range(5000))
        # Of ten pairs pod 0 wins four, pod 3 one.
        assert [round(firsts[pod] / 500) for pod in range(5)] == [4, 3, 2, 1, 0]

    @given(some_candidates)
    def test_the_most_loaded_one_is_never_first(self, choice: list[Candidate]) -> None:
        first = PowerOfTwoChoices().rank("ada", choice)[0]
        load = {one.id: one.load for one in choice}
        most = max(load.values())
        assert len(choice) == 1 or load[first] < most or list(load.values()).count(most) > 1

    def test_equals_are_equals(self) -> None:
        policy = PowerOfTwoChoices(random.Random(1))
        choice = [Candidate(number, 1.0) for number in range(10)]
        firsts = Counter(policy.rank("ada", choice)[0] for _ in range(10_000))
        assert max(firsts.values()) < 1.15 * 1000

    def test_forked_workers_do_not_choose_alike(self) -> None:
        policy = PowerOfTwoChoices()
        choice = [Candidate(number, 1.0) for number in range(10)]

        def choices_of_a_worker() -> bytes:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(writing, bytes(policy.rank("ada", choice)[0] for _ in range(50)))
                os._exit(0)
            os.waitpid(child, 0)
            os.close(writing)
            with os.fdopen(reading, "rb") as told:
                return told.read()

        assert choices_of_a_worker() != choices_of_a_worker()

    @pytest.mark.slow
    @given(some_candidates)
    def test_the_others_follow_by_load(self, choice: list[Candidate]) -> None:
        load = {one.id: one.load for one in choice}
        rest = [load[pod] for pod in PowerOfTwoChoices().rank("ada", choice)[1:]]
        assert rest == sorted(rest)


class TestRendezvous:
    def test_the_same_uid_gets_the_same_order_everywhere(self) -> None:
        choice = [Candidate(number, 0.0) for number in range(10)]
        assert Rendezvous().rank("ada", choice) == Rendezvous().rank("ada", choice[::-1])

    @pytest.mark.slow
    @given(some_candidates, st.data())
    def test_when_a_pod_leaves_only_its_own_uids_move(
        self, choice: list[Candidate], data: st.DataObject
    ) -> None:
        leaves = data.draw(st.sampled_from(choice))
        rest = [one for one in choice if one is not leaves]
        for number in range(20):
            before = Rendezvous().rank(f"u{number}", choice)
            assert Rendezvous().rank(f"u{number}", rest) == [p for p in before if p != leaves.id]

    def test_when_a_pod_joins_it_takes_its_share_and_nobody_else_moves(self) -> None:
        choice = [Candidate(number, 0.0) for number in range(10)]
        uids = [f"u{number}" for number in range(10_000)]
        before = {uid: Rendezvous().rank(uid, choice)[0] for uid in uids}
        after = {uid: Rendezvous().rank(uid, [*choice, Candidate(10, 0.0)])[0] for uid in uids}
        moved = [uid for uid in uids if before[uid] != after[uid]]
        assert {after[uid] for uid in moved} == {10}
        assert 0.85 < len(moved) / (len(uids) / 11) < 1.15

    def test_shares_are_those_of_the_capacities(self) -> None:
        choice = [Candidate(0, 0.0, 1.0), Candidate(1, 0.0, 2.0), Candidate(2, 0.0, 5.0)]
        firsts = Counter(Rendezvous().rank(f"u{n}", choice)[0] for n in range(16_000))
        assert [round(firsts[pod] / 2000, 1) for pod in range(3)] == pytest.approx(
            [1, 2, 5], rel=0.06
        )

    def test_loads_are_not_looked_at(self) -> None:
        choice = [Candidate(number, 0.0) for number in range(5)]
        loaded = [Candidate(number, float(number)) for number in range(5)]
        assert Rendezvous().rank("ada", choice) == Rendezvous().rank("ada", loaded)


class TestRoundRobin:
    def test_one_pod_after_the_other(self) -> None:
        policy, choice = RoundRobin(), [Candidate(2, 0.0), Candidate(0, 0.0), Candidate(7, 0.0)]
        assert [policy.rank("ada", choice)[0] for _ in range(4)] == [0, 2, 7, 0]

    def test_the_others_follow_in_turn(self) -> None:
        policy, choice = RoundRobin(), [Candidate(number, 0.0) for number in range(3)]
        assert [policy.rank("ada", choice) for _ in range(2)] == [[0, 1, 2], [1, 2, 0]]

    def test_a_pod_that_leaves_or_joins_stops_nobody(self) -> None:
        policy = RoundRobin()
        some = [Candidate(number, 0.0) for number in (1, 5)]
        assert [policy.rank("ada", some)[0] for _ in range(2)] == [1, 5]
        more = [Candidate(number, 0.0) for number in (0, 5, 9)]
        assert [policy.rank("ada", more)[0] for _ in range(3)] == [9, 0, 5]


class TestWeightedByCapacity:
    def test_shares_are_those_of_the_capacities(self) -> None:
        policy = WeightedByCapacity(random.Random(1))
        choice = [Candidate(0, 0.0, 1.0), Candidate(1, 0.0, 3.0)]
        firsts = Counter(policy.rank("ada", choice)[0] for _ in range(4000))
        assert 0.7 < firsts[1] / 4000 < 0.8

    @given(some_candidates)
    def test_any_capacity_gives_an_order(self, choice: list[Candidate]) -> None:
        tiny = [Candidate(one.id, one.load, 5e-324) for one in choice]
        assert sorted(WeightedByCapacity().rank("ada", tiny)) == sorted(one.id for one in choice)


class TestPlacements:
    """What was placed and is not in the loads yet."""

    def test_what_was_placed_counts_until_the_load_is_measured_again(self) -> None:
        placements = Placements()
        placements.observe([Pod(0, RUNNING, 5.0, age=1.0)], 100.0)
        for instant in (99.5, 100.5, 101.5):
            placements.add(0, instant)
        assert placements.unseen() == {0: 3}
        # The same heartbeat, read later.
        placements.observe([Pod(0, RUNNING, 5.0, age=2.99)], 102.0)
        assert placements.unseen() == {0: 3}
        placements.observe([Pod(0, RUNNING, 7.0, age=1.0)], 102.0)
        assert placements.unseen() == {0: 1}

    def test_what_is_under_way_counts_already(self) -> None:
        placements = Placements()
        with placements.under_way(0), placements.under_way(0), placements.under_way(1):
            assert placements.unseen() == {0: 2, 1: 1}
        assert placements.unseen() == {}

    def test_a_load_without_a_stamp_is_new_when_it_changes(self) -> None:
        placements = Placements()
        placements.observe([Pod(0, RUNNING, 5.0)], 100.0)
        placements.add(0, 100.5)
        placements.observe([Pod(0, RUNNING, 5.0)], 101.0)
        assert placements.unseen() == {0: 1}
        placements.observe([Pod(0, RUNNING, 6.0)], 102.0)
        assert placements.unseen() == {}

    def test_a_pod_without_a_load_keeps_what_was_placed_for_a_while(self) -> None:
        placements = Placements()
        placements.observe([Pod(0, RUNNING, None, age=0.0)], 100.0)
        placements.add(0, 100.5)
        placements.observe([Pod(0, RUNNING, None, age=0.0)], 130.0)
        assert placements.unseen() == {0: 1}
        placements.observe([Pod(0, RUNNING, None, age=0.0)], 131.0)
        assert placements.unseen() == {}

    def test_a_pod_that_has_left_is_forgotten(self) -> None:
        placements = Placements()
        placements.observe([Pod(0, RUNNING, 5.0)], 100.0)
        placements.add(0, 100.5)
        placements.observe([], 101.0)
        assert placements.unseen() == {}

    def test_what_a_uid_adds_is_learned_with_what_others_place(self) -> None:
        placements = Placements()
        assert placements.load_per_uid is None
        load = 0.0
        for second in range(10):
            placements.observe([Pod(0, RUNNING, load, age=0.0)], float(second))
            for _ in range(5):
                placements.add(0, second + 0.5)
            load += 0.02 * (5 + 15)  # fifteen by other gateways
        assert placements.load_per_uid == pytest.approx(0.08)

    def test_nothing_is_learned_from_loads_that_fall(self) -> None:
        placements = Placements()
        for second, load in enumerate([10.0, 5.0]):
            placements.observe([Pod(0, RUNNING, load, age=0.0)], float(second))
            placements.add(0, second + 0.5)
        assert placements.load_per_uid == 0.0

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["add", "observe"]),
                st.integers(0, 3),
                st.none() | st.floats(-1e300, 1e300),
                st.none() | st.floats(0, 1e6),
            ),
            max_size=60,
        )
    )
    def test_whatever_pods_report_it_stays_a_count(
        self, steps: list[tuple[str, int, float | None, float | None]]
    ) -> None:
        placements, added = Placements(), 0
        for second, (what, pod, load, age) in enumerate(steps):
            if what == "add":
                placements.add(pod, float(second))
                added += 1
            else:
                placements.observe([Pod(pod, RUNNING, load, age)], float(second))
            assert 0 <= sum(placements.unseen().values()) <= added
            learned = placements.load_per_uid
            assert learned is None or learned >= 0


class Simulation:
    """Gateways that place uids on equal pods, whose loads they see as old as heartbeats make them."""

    HEARTBEAT = 2.0
    VIEW = 0.5

    def __init__(self, *, pods: int, gateways: int, rate: float, unit: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.held = [0] * pods
        self.reported = [(0.0, 0.0)] * pods
        self.beats = [self.random.uniform(0, self.HEARTBEAT) for _ in range(pods)]
        self.placements = [Placements() for _ in range(gateways)]
        self.views: list[list[Pod]] = [[]] * gateways
        self.renewals = [self.random.uniform(0, self.VIEW) for _ in range(gateways)]
        self.policy = PowerOfTwoChoices(self.random)
        self.rate, self.unit, self.now = rate, unit, 0.0

    def place(self) -> None:
        self.now += 1 / self.rate
        for pod, beat in enumerate(self.beats):
            if beat <= self.now:
                self.reported[pod] = (self.held[pod] * self.unit, beat)
                self.beats[pod] += self.HEARTBEAT * self.random.uniform(0.9, 1.1)
        gateway = self.random.randrange(len(self.views))
        placements = self.placements[gateway]
        if not self.views[gateway] or self.renewals[gateway] <= self.now:
            self.renewals[gateway] = self.now + self.VIEW
            self.views[gateway] = [
                Pod(pod, RUNNING, load, self.now - at)
                for pod, (load, at) in enumerate(self.reported)
            ]
            placements.observe(self.views[gateway], self.now)
        shown = candidates(self.views[gateway], placements.unseen(), placements.load_per_uid)
        pod = self.policy.rank("", shown)[0]
        placements.add(pod, self.now)
        self.held[pod] += 1


@pytest.mark.parametrize(
    ("gateways", "rate", "unit"),
    [
        pytest.param(1, 1_000.0, 1.0, id="one gateway"),
        pytest.param(4, 1_000.0, 1.0, id="four"),
        pytest.param(4, 4_000.0, 1.0, id="four in a hurry"),
        pytest.param(4, 2_000.0, 1e-4, id="four, loads are shares"),
        pytest.param(50, 2_000.0, 1.0, id="fifty"),
        pytest.param(50, 20_000.0, 100.0, id="fifty, all at once"),
    ],
)
def test_uids_spread_whatever_the_gateways_the_rate_and_the_unit(
    gateways: int, rate: float, unit: float
) -> None:
    simulation = Simulation(pods=10, gateways=gateways, rate=rate, unit=unit, seed=5)
    for _ in range(10_000):
        simulation.place()
    assert max(simulation.held) / 1000 <= 1.15


@pytest.mark.parametrize("pods", [2, 3])
def test_and_over_few_pods_of_which_one_has_just_joined(pods: int) -> None:
    simulation = Simulation(pods=pods, gateways=20, rate=1_000.0, unit=1.0, seed=5)
    simulation.held = [1000] * (pods - 1) + [0]
    for _ in range(4_000):
        simulation.place()
    assert max(simulation.held) / (sum(simulation.held) / pods) <= 1.15
