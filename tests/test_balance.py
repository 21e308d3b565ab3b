"""Planning a rebalance: few moves, even enough, nobody where there is no room."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfroute import PlannedMoves
from sfroute._pods.balance import Member, plan_moves, skew_of_members

SKEWS = st.floats(1.0, 3.0)


@st.composite
def fleets(draw: st.DrawFn) -> list[Member]:
    links = draw(st.lists(st.integers(0, 300), min_size=1, max_size=8))
    capacities = st.sampled_from([1.0, 1.0, 1.0, 0.5, 2.0, 3.7])
    rooms = st.one_of(st.just(math.inf), st.integers(0, 100))
    return [Member(pod, count, draw(capacities), draw(rooms)) for pod, count in enumerate(links)]


def after(fleet: list[Member], plan: tuple[PlannedMoves, ...]) -> list[Member]:
    """The pods once it is done."""
    change = dict.fromkeys(range(len(fleet)), 0)
    for move in plan:
        change[move.source] -= move.users
        change[move.target] += move.users
    return [
        pod._replace(links=pod.links + change[pod.pod], room=pod.room - change[pod.pod])
        for pod in fleet
    ]


@given(fleets(), SKEWS)
def test_it_moves_from_full_pods_to_those_with_room_and_loses_nobody(
    fleet: list[Member], max_skew: float
) -> None:
    plan = plan_moves(fleet, max_skew)
    assert {move.source for move in plan}.isdisjoint(move.target for move in plan)
    assert len(plan) < len(fleet)
    assert all(move.users > 0 for move in plan)
    then = after(fleet, plan)
    assert sum(pod.links for pod in then) == sum(pod.links for pod in fleet)
    for pod, now in zip(fleet, then, strict=True):
        assert 0 <= now.links <= pod.links + max(0, pod.room)


@given(fleets(), SKEWS)
def test_nothing_is_left_to_move_afterwards(fleet: list[Member], max_skew: float) -> None:
    assert plan_moves(after(fleet, plan_moves(fleet, max_skew)), max_skew) == ()


@given(fleets(), SKEWS)
def test_it_is_even_enough_or_as_even_as_whole_users_and_room_allow(
    fleet: list[Member], max_skew: float
) -> None:
    plan = plan_moves(fleet, max_skew)
    total = sum(pod.links for pod in fleet)
    if not total:
        assert plan == ()
        return
    bound = max_skew * total / sum(pod.capacity for pod in fleet)
    greatest = max(pod.share for pod in after(fleet, plan))
    if greatest > bound * (1 + 1e-6):
        # Any lesser bound has no place for all of them.
        least = greatest * (1 - 1e-6)
        assert sum(pod.most(least) for pod in fleet) < total


@given(fleets(), SKEWS)
def test_it_moves_no_more_than_what_the_full_pods_have_above_the_bound(
    fleet: list[Member], max_skew: float
) -> None:
    plan = plan_moves(fleet, max_skew)
    greatest = max(pod.share for pod in after(fleet, plan))
    even = sum(pod.links for pod in fleet) / sum(pod.capacity for pod in fleet)
    bound = max(greatest, max_skew * even)
    above = sum(max(0, pod.links - math.floor(bound * pod.capacity + 1e-6)) for pod in fleet)
    assert sum(move.users for move in plan) <= above
    for move in plan:
        source = fleet[move.source]
        assert source.share > fleet[move.target].share


@pytest.mark.parametrize(
    ("links", "max_skew", "plan"),
    [
        # A fifth pod has come: the skew is 1.25.
        ([50, 50, 50, 50, 0], 1.2, [(0, 4, 2), (1, 4, 2), (2, 4, 2), (3, 4, 2)]),
        ([50, 50, 50, 50, 0], 1.25, []),
        ([50, 50, 50, 50, 0], 1.0, [(0, 4, 10), (1, 4, 10), (2, 4, 10), (3, 4, 10)]),
        # After an outage everybody is at the pod that came back first.
        ([600, 0, 0, 0, 0], 1.0, [(0, 1, 120), (0, 2, 120), (0, 3, 120), (0, 4, 120)]),
        ([600, 0, 0, 0, 0], 1.2, [(0, 1, 114), (0, 2, 114), (0, 3, 114), (0, 4, 114)]),
        ([0, 0, 0], 1.0, []),
        ([7], 1.0, []),
        ([1, 1, 1, 0, 0], 1.0, []),
        ([3, 0, 0, 0, 0], 1.0, [(0, 1, 1), (0, 2, 1)]),
        ([], 1.0, []),
    ],
)
def test_plans(links: list[int], max_skew: float, plan: list[tuple[int, int, int]]) -> None:
    fleet = [Member(pod, count) for pod, count in enumerate(links)]
    assert plan_moves(fleet, max_skew) == tuple(PlannedMoves(*move) for move in plan)


def test_larger_pods_get_more() -> None:
    fleet = [Member(0, 400), Member(1, 0), Member(2, 0, capacity=2.0)]
    assert plan_moves(fleet, 1.0) == (PlannedMoves(0, 1, 100), PlannedMoves(0, 2, 200))


def test_ten_million_users_are_planned_at_once() -> None:
    fleet = [Member(pod, 10**7 if pod < 5 else 0) for pod in range(1000)]
    plan = plan_moves(fleet, 1.0)
    assert skew_of_members(after(fleet, plan)) == pytest.approx(1.0)
