"""Policies that go by labels, version and room: whom they put first, composed in any way."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfroute import (
    RUNNING,
    Candidate,
    InvalidArgument,
    LeastLoaded,
    NewestVersion,
    Pod,
    Policy,
    PowerOfTwoChoices,
    Prefer,
    Rendezvous,
    Require,
    RoundRobin,
    SoftAffinity,
    WeightedByCapacity,
)
from sfroute._pods.policies import candidates
from sfroute._pods.preferences import version_key

ZONES = ("a", "b", "c")
VERSIONS = ("1.9", "1.10", "2.0-rc.1", "2.0")


@st.composite
def a_candidate(draw: st.DrawFn) -> Candidate:
    labels = {"zone": draw(st.sampled_from(ZONES))}
    if draw(st.booleans()):
        labels["version"] = draw(st.sampled_from(VERSIONS))
    most = draw(st.none() | st.integers(1, 100))
    room = None if most is None else draw(st.integers(0, most))
    return Candidate(
        draw(st.integers(0, 2**63 - 1)),
        draw(st.floats(0, 1e9)),
        draw(st.floats(0.001, 1000)),
        labels,
        room=room,
        max_claims=most,
    )


some_candidates = st.lists(a_candidate(), min_size=1, max_size=12, unique_by=lambda one: one.id)

MAKE_PLAIN: list[Callable[[], Policy]] = [
    lambda: PowerOfTwoChoices(random.Random(1)),
    LeastLoaded,
    Rendezvous,
    RoundRobin,
    lambda: WeightedByCapacity(random.Random(1)),
]


@st.composite
def a_policy(draw: st.DrawFn, depth: int = 3) -> Policy:
    """Up to three of them, one inside the other."""
    kind = draw(st.sampled_from(["plain", "prefer", "newest", "affine"])) if depth else "plain"
    if kind == "plain":
        return draw(st.sampled_from(MAKE_PLAIN))()
    return draw(composed(depth - 1, kind))


@st.composite
def composed(draw: st.DrawFn, depth: int = 0, kind: str = "") -> Policy:
    then = draw(a_policy(depth))
    kind = kind or draw(st.sampled_from(["prefer", "newest", "affine"]))
    if kind == "prefer":
        return Prefer("zone", draw(st.sampled_from(ZONES)), then)
    if kind == "newest":
        return NewestVersion(then=then)
    return SoftAffinity(draw(st.floats(0.01, 10)), then)


def has_room(one: Candidate) -> bool:
    return one.room is None or one.room > 0


def first_of(policy: Policy, choice: Sequence[Candidate], uid: str = "ada") -> Candidate:
    ranked = policy.rank(uid, choice)
    return next(one for one in choice if one.id == ranked[0])


class TestHoweverComposed:
    @given(a_policy(), some_candidates, st.text())
    def test_each_candidate_is_proposed_once(
        self, policy: Policy, choice: list[Candidate], uid: str
    ) -> None:
        assert sorted(policy.rank(uid, choice)) == sorted(one.id for one in choice)

    @given(composed(), some_candidates)
    def test_one_without_room_is_never_first_while_another_has_room(
        self, policy: Policy, choice: list[Candidate]
    ) -> None:
        assert has_room(first_of(policy, choice)) or not any(map(has_room, choice))

    @given(a_policy(), some_candidates)
    def test_it_may_be_required_that_all_of_them_have_a_label(
        self, policy: Policy, choice: list[Candidate]
    ) -> None:
        ranked = Require("zone", "a", policy).rank("ada", choice)
        assert sorted(ranked) == sorted(one.id for one in choice if one.labels["zone"] == "a")

    def test_rounds_go_on_among_the_best(self) -> None:
        choice = [Candidate(n, 0.0, labels={"zone": "a" if n < 3 else "b"}) for n in range(6)]
        policy = Prefer("zone", "a", then=RoundRobin())
        assert [policy.rank("ada", choice)[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]


class TestPrefer:
    @given(st.sampled_from(ZONES), some_candidates)
    def test_one_with_the_label_and_room_is_first_if_there_is_one(
        self, zone: str, choice: list[Candidate]
    ) -> None:
        good = [one for one in choice if one.labels["zone"] == zone and has_room(one)]
        first = first_of(Prefer("zone", zone, LeastLoaded()), choice)
        assert first in good or not good

    @given(st.sampled_from(ZONES), some_candidates)
    def test_the_other_policy_decides_among_them(self, zone: str, choice: list[Candidate]) -> None:
        good = [one for one in choice if one.labels["zone"] == zone and has_room(one)]
        if good:
            ranked = Prefer("zone", zone, Rendezvous()).rank("ada", choice)
            assert ranked[: len(good)] == Rendezvous().rank("ada", good)

    def test_it_spills_when_those_have_no_room(self) -> None:
        near = Candidate(1, 0.0, labels={"zone": "a"}, room=0, max_claims=10)
        far = Candidate(2, 9.0, labels={"zone": "b"}, room=1, max_claims=10)
        assert Prefer("zone", "a").rank("ada", [near, far]) == [2, 1]
        assert Prefer("zone", "a").rank("ada", [near._replace(room=1), far]) == [1, 2]

    def test_the_herd_is_spread_among_them(self) -> None:
        choice = [Candidate(n, 0.0, labels={"zone": "ab"[n % 2]}) for n in range(8)]
        firsts = Counter(Prefer("zone", "a").rank("ada", choice)[0] for _ in range(4000))
        assert set(firsts) == {0, 2, 4, 6}
        assert min(firsts.values()) > 850


class TestNewestVersion:
    @given(some_candidates)
    def test_nobody_who_is_newer_and_has_room_is_passed_over(self, choice: list[Candidate]) -> None:
        first = first_of(NewestVersion(), choice)
        newest = max(
            (VERSIONS.index(one.labels["version"]) if "version" in one.labels else -1)
            for one in [one for one in choice if has_room(one)] or choice
        )
        labels = first.labels
        assert (VERSIONS.index(labels["version"]) if "version" in labels else -1) == newest

    def test_then_the_next_newer_ones(self) -> None:
        choice = [
            Candidate(number, 0.0, labels={"version": version} if version else {})
            for number, version in enumerate(["1.9", "", "2.0", "1.10"])
        ]
        assert NewestVersion().rank("ada", choice) == [2, 3, 0, 1]

    def test_the_order_of_versions(self) -> None:
        # Semantic Versioning 2.0.0, section 11, and what people write besides.
        in_order = [
            *("", "0.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta"),
            *("1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "v1.2", "1.9"),
            *("1.10", "2", "2.0.1", "2024.11", "build"),
        ]
        shuffled = random.Random(1).sample(in_order, len(in_order))
        assert sorted(shuffled, key=version_key) == in_order

    @pytest.mark.parametrize("pair", [("2", "2.0.0"), ("v1.2", "1.2"), ("1.2+linux", "1.2+mac")])
    def test_versions_that_are_equally_new(self, pair: tuple[str, str]) -> None:
        assert version_key(pair[0]) == version_key(pair[1])

    @given(st.text(max_size=128), st.text(max_size=128), st.text(max_size=128))
    def test_any_text_has_its_place(self, one: str, two: str, three: str) -> None:
        a, b, c = sorted(map(version_key, (one, two, three)))
        assert a <= b <= c
        assert a <= c


class TestSoftAffinity:
    @given(st.text(), some_candidates)
    def test_it_stays_while_there_is_room(self, uid: str, choice: list[Candidate]) -> None:
        favourite = Rendezvous().rank(uid, choice)[0]
        empty = [
            one._replace(load=0.0, room=one.max_claims) if one.id == favourite else one
            for one in choice
        ]
        assert SoftAffinity().rank(uid, empty)[0] == favourite

    @pytest.mark.slow
    @given(st.text(), some_candidates, st.floats(0.01, 1.0))
    def test_nobody_is_placed_above_the_share_while_another_is_below(
        self, uid: str, choice: list[Candidate], spill_at: float
    ) -> None:
        def used(one: Candidate) -> float:
            return one.load if one.max_claims is None else 1 - (one.room or 0) / one.max_claims

        first = first_of(SoftAffinity(spill_at), choice, uid)
        below = [one for one in choice if has_room(one) and used(one) < spill_at]
        assert first in below or not below

    def test_spilled_uids_spread_and_the_others_stay(self) -> None:
        choice = [Candidate(n, 0.0, room=10, max_claims=10) for n in range(5)]
        full = [one._replace(room=2) if one.id == 3 else one for one in choice]
        policy = SoftAffinity(spill_at=0.8)
        uids = [f"u{n}" for n in range(1000)]
        before = {uid: policy.rank(uid, choice)[0] for uid in uids}
        after = {uid: policy.rank(uid, full)[0] for uid in uids}
        assert all(after[uid] == before[uid] for uid in uids if before[uid] != 3)
        spilled = Counter(after[uid] for uid in uids if before[uid] == 3)
        assert set(spilled) == {0, 1, 2, 4}


class TestCandidates:
    def test_they_carry_what_their_pod_says(self) -> None:
        said = {"address": "10.0.0.1:80", "labels": {"zone": "a"}, "max_claims": 10, "room": 4}
        pod = Pod(3, RUNNING, 0.5, 1.5, said)
        assert candidates([pod], {3: 1}, 0.25) == [
            Candidate(3, 0.75, 1.0, {"zone": "a"}, "10.0.0.1:80", 1.5, 3, 10)
        ]

    def test_what_was_placed_takes_room_but_no_more_than_there_is(self) -> None:
        pod = Pod(3, RUNNING, extra={"max_claims": 10, "room": 4})
        assert [one.room for one in candidates([pod], {3: 9}, None)] == [0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prefer("", "a"),
        lambda: Prefer("x" * 65, "a"),
        lambda: Prefer("zone", 1),  # type: ignore[arg-type]
        lambda: Prefer("zone", "a\n"),
        lambda: Prefer("zone", "a", LeastLoaded),  # type: ignore[arg-type]
        lambda: Require("zone", None),  # type: ignore[arg-type]
        lambda: Require("zone", "a", object()),  # type: ignore[arg-type]
        lambda: NewestVersion(7),  # type: ignore[arg-type]
        lambda: NewestVersion(then="best"),  # type: ignore[arg-type]
        lambda: SoftAffinity(0),
        lambda: SoftAffinity(float("nan")),
        lambda: SoftAffinity(True),
        lambda: SoftAffinity("0.8"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()
