"""Failures that callers report of pods: who is ejected, for how long, and who is tried again."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sfroute import RUNNING, Pod
from sfroute._pods.failures import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    LONGEST_WAIT,
    MAX_PODS,
    MEMORY,
    MOST_FAILURES,
    TRIAL_SECONDS,
    UIDS_PER_TRIAL,
    Failures,
)


def pods(count: int, life: str | None = None) -> list[Pod]:
    return [Pod(number, RUNNING, extra={"by": life}) for number in range(count)]


def ids(offered: Sequence[Pod]) -> set[int]:
    return {pod.id for pod in offered}


class Gateway:
    """Places uids on the offered pods in turn, or on the first of those preferred."""

    def __init__(self, count: int) -> None:
        self.failures = Failures()
        self.pods = pods(count)
        self.now = 1000.0

    def offered(self) -> set[int]:
        return ids(self.failures.offered(self.pods, self.now))

    def place(self, *, prefer: int, landed_on: int | None = -1) -> int:
        """The pod that a uid is sent to: the preferred one, as if nobody were there, or the first other."""
        offered = self.offered()
        pod = prefer if prefer in offered else min(offered)
        with self.failures.attempt(pod, self.now) as attempt:
            attempt.landed_on = pod if landed_on == -1 else landed_on
        return pod

    def report(self, pod: int) -> bool:
        return self.failures.report(pod, self.now)

    def many_elsewhere(self) -> None:
        for _ in range(UIDS_PER_TRIAL):
            with self.failures.attempt(0, self.now) as attempt:
                attempt.landed_on = 0


def test_one_report_ejects_a_pod_at_once() -> None:
    gateway = Gateway(4)
    assert gateway.offered() == {0, 1, 2, 3}
    assert gateway.report(2)
    assert gateway.offered() == {0, 1, 3}
    assert not gateway.report(2), "it is ejected already"


def test_after_the_pause_one_uid_at_a_time_is_placed_there_to_try() -> None:
    gateway = Gateway(4)
    gateway.report(2)
    gateway.many_elsewhere()
    assert gateway.place(prefer=2) != 2
    gateway.now += FIRST_PAUSE
    assert gateway.place(prefer=2) == 2
    assert [gateway.place(prefer=2) for _ in range(100)] == [0] * 100


def test_a_trial_that_nobody_reports_brings_the_pod_back() -> None:
    gateway = Gateway(4)
    gateway.report(2)
    gateway.many_elsewhere()
    gateway.now += FIRST_PAUSE
    gateway.place(prefer=2)
    gateway.now += TRIAL_SECONDS
    assert [gateway.place(prefer=2) for _ in range(100)] == [2] * 100


def test_a_trial_that_fails_ejects_it_for_twice_as_long() -> None:
    gateway = Gateway(4)
    gateway.report(2)
    for pause in (1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE):
        gateway.many_elsewhere()
        gateway.now += pause - 0.1
        assert gateway.place(prefer=2) != 2
        gateway.now += 0.1
        assert gateway.place(prefer=2) == 2
        assert gateway.report(2)


def test_a_uid_that_is_placed_elsewhere_after_all_is_no_trial() -> None:
    gateway = Gateway(4)
    gateway.report(2)
    gateway.many_elsewhere()
    gateway.now += FIRST_PAUSE
    for landed_on in (None, 1):
        assert gateway.place(prefer=2, landed_on=landed_on) == 2
    assert gateway.place(prefer=2) == 2
    assert gateway.place(prefer=2) != 2


def test_many_users_who_fail_at_once_are_one_failure() -> None:
    gateway = Gateway(4)
    for _ in range(500):
        gateway.report(2)
    gateway.many_elsewhere()
    gateway.now += FIRST_PAUSE
    assert gateway.place(prefer=2) == 2


def test_a_pod_stays_ejected_while_its_users_go_on_failing() -> None:
    gateway = Gateway(4)
    gateway.report(2)
    gateway.many_elsewhere()
    gateway.now += 0.9 * FIRST_PAUSE
    gateway.report(2)
    gateway.now += 0.9 * FIRST_PAUSE
    assert gateway.place(prefer=2) != 2


def test_few_uids_are_trials_however_many_come() -> None:
    gateway = Gateway(10)
    gateway.report(2)
    uids, trials = 20_000, 0
    for _ in range(uids):
        gateway.now += 0.05
        if gateway.place(prefer=2) == 2:
            trials += 1
            gateway.report(2)
    assert 0 < trials <= uids / UIDS_PER_TRIAL


def test_where_few_users_come_a_pod_is_tried_all_the_same() -> None:
    gateway = Gateway(4)
    gateway.report(2)
    gateway.now += FIRST_PAUSE + LONGEST_WAIT - 0.1
    assert gateway.place(prefer=2) != 2
    gateway.now += 0.1
    assert gateway.place(prefer=2) == 2


def test_a_failure_is_forgotten() -> None:
    gateway = Gateway(4)
    gateway.report(2)
    gateway.now += FIRST_PAUSE + MEMORY
    assert gateway.offered() == {0, 1, 2, 3}
    gateway.failures.observe(gateway.pods, gateway.now)
    assert not gateway.failures


def test_what_an_earlier_life_failed_to_do_is_not_held_against_a_pod() -> None:
    gateway = Gateway(4)
    gateway.failures.observe(pods(4, "a"), gateway.now)
    gateway.report(2)
    gateway.failures.observe(pods(4, "a"), gateway.now)
    assert 2 not in gateway.offered()
    gateway.failures.observe(pods(4, "b"), gateway.now)
    assert 2 in gateway.offered()


def test_if_most_pods_are_reported_the_worst_half_is_ejected() -> None:
    gateway = Gateway(4)
    for pod in (3, 1, 2, 0):
        gateway.report(pod)
        gateway.now += 0.01
    assert gateway.offered() == {1, 3}, "those reported last are out"


def test_it_remembers_a_bounded_number_of_pods() -> None:
    failures = Failures()
    reported = range(MAX_PODS + 100)
    for pod in reported:
        failures.report(pod, pod / 1e6)
    others = range(10_000, 10_000 + len(reported))
    assert failures.ejected([*reported, *others], 0.1) == set(reported[100:])


@given(st.integers(1, 12), st.lists(st.integers(0, 11), max_size=30))
def test_half_of_the_pods_are_left_and_the_only_one_is_never_ejected(
    count: int, reported: list[int]
) -> None:
    gateway = Gateway(count)
    for pod in reported:
        gateway.report(pod)
    left = gateway.offered()
    assert len(left) >= max(1, count / 2)
    assert left >= set(range(count)) - set(reported)


class Reporting(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    @initialize(count=st.integers(1, 8))
    def begin(self, count: int) -> None:
        self.gateway = Gateway(count)
        self.reported: dict[int, float] = {}

    @rule(pod=st.integers(0, 7))
    def report(self, pod: int) -> None:
        self.gateway.report(pod)
        self.reported[pod] = self.gateway.now

    @rule(pod=st.integers(0, 7), landed_on=st.sampled_from([-1, 0, None]))
    def place(self, pod: int, landed_on: int | None) -> None:
        if pod < len(self.gateway.pods):
            self.gateway.place(prefer=pod, landed_on=landed_on)

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 5.0, 30.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.gateway.now += seconds

    @rule()
    def look(self) -> None:
        self.gateway.failures.observe(self.gateway.pods, self.gateway.now)

    @rule()
    def many(self) -> None:
        self.gateway.many_elsewhere()

    @invariant()
    def enough_is_left(self) -> None:
        if hasattr(self, "gateway"):
            offered, count = self.gateway.offered(), len(self.gateway.pods)
            assert len(offered) >= max(1, count / 2)
            assert all(pod in self.reported for pod in set(range(count)) - offered)

    @invariant()
    def nobody_is_ejected_for_ever(self) -> None:
        if hasattr(self, "gateway"):
            longest = LONGEST_PAUSE + MOST_FAILURES * MEMORY
            for pod in set(range(len(self.gateway.pods))) - self.gateway.offered():
                assert self.gateway.now - self.reported[pod] < longest


TestReporting = Reporting.TestCase
