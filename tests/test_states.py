"""The states pods report: how they are read, whose links are moved away, and who takes new uids."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sfroute import (
    DRAINING,
    FAILED,
    PENDING,
    RUNNING,
    STOPPED,
    UNKNOWN,
    Pod,
)
from sfroute._contract.pod_states import (
    ROUTABLE,
    changes,
    compose_state,
    gone,
    read_pod,
    rejections,
    silent_together,
    time_allowed,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


class TestReading:
    @pytest.mark.parametrize("state", ["Running", "Available", "Ready", "READY"])
    def test_a_plain_status_is_routable(self, state: str) -> None:
        assert read_pod(3, state, 1.5) == Pod(3, state, None, 1.5)
        assert state in ROUTABLE

    @pytest.mark.parametrize(
        ("state", "status", "load"),
        [
            ("12-1700000000000-1", RUNNING, 12.0),
            ("12-1700000000000-0", "Stopped", 12.0),
            ("12-1700000000000", RUNNING, 12.0),
            ("0.25-1700000000000", RUNNING, 0.25),
            ("7|READY|1700000000", RUNNING, 7.0),
        ],
    )
    def test_states_of_other_programs_carry_their_load(
        self, state: str, status: str, load: float
    ) -> None:
        assert read_pod(0, state, None) == Pod(0, status, load, None)

    def test_an_object_gives_status_load_and_the_rest(self) -> None:
        state = '{"status": "Running", "load": 3, "zone": "a", "at": 5}'
        assert read_pod(0, state, 0.5) == Pod(0, "Running", 3.0, 0.5, {"zone": "a"})

    @pytest.mark.parametrize(
        "load", ['"3"', "true", "null", "NaN", "Infinity", "[]", "1e400", "1" + "0" * 400]
    )
    def test_a_load_that_is_no_number_is_none(self, load: str) -> None:
        pod = read_pod(0, f'{{"status": "Running", "load": {load}}}', None)
        assert (pod.status, pod.load) == ("Running", None)

    @pytest.mark.parametrize(
        "state", ["", "running", "12-x-1", "12-17-2", "|READY|", "{", "{}", "[]"]
    )
    def test_anything_else_is_unknown_and_not_routable(self, state: str) -> None:
        pod = read_pod(0, state, None)
        assert pod.status == UNKNOWN
        assert list(rejections({0: pod}, {})) == [0]

    @given(
        st.text()
        | json_values.map(json.dumps)
        | st.dictionaries(st.text(), json_values).map(json.dumps)
    )
    @example('{"load": 1' + "0" * 5000 + "}")
    @example("{" + '"a":{' * 5000)
    @example('{"status": ["Running"]}')
    @example("٣-17-1")
    @example("9" * 400 + "-1-1")
    def test_no_state_is_an_error(self, state: str) -> None:
        pod = read_pod(3, state, None)
        assert pod.id == 3
        assert isinstance(pod.status, str)
        assert pod.load is None or pod.load < float("inf")


class TestGone:
    @pytest.mark.parametrize("status", ["Stopped", "Failed"])
    def test_links_are_moved_off_a_pod_that_is_over(self, status: str) -> None:
        assert gone({0: Pod(0, status, age=0.1)}, 6) == {0: f"status {status!r}"}

    def test_links_are_moved_off_a_pod_whose_heartbeat_is_too_old(self) -> None:
        assert gone({0: Pod(0, RUNNING, age=6.1)}, 6) == {0: "last heartbeat 6.1 s ago"}

    @pytest.mark.parametrize("status", ["Running", "Pending", "Draining", "Unknown"])
    @pytest.mark.parametrize("age", [None, 0.0, 6.0])
    def test_links_to_any_other_pod_are_kept(self, status: str, age: float | None) -> None:
        assert gone({0: Pod(0, status, age=age)}, 6) == {}


def rejected(pods: dict[int, Pod], exclude: Collection[int] = ()) -> dict[int, str]:
    return rejections(pods, gone(pods, 6), exclude)


class TestLeases:
    """A pod says itself how long it may be silent."""

    LEASED = MappingProxyType({"lease": 2500})

    @pytest.mark.parametrize(
        ("extra", "seconds"),
        [
            ({}, 6.0),
            ({"lease": 2500}, 3.5),
            ({"lease": 60_000}, 61.0),
            ({"lease": 0}, 6.0),
            ({"lease": -1}, 6.0),
            ({"lease": True}, 6.0),
            ({"lease": "2500"}, 6.0),
            ({"lease": math.nan}, 6.0),
            ({"lease": 10**30}, 6.0),
        ],
    )
    def test_it_is_gone_after_its_lease_and_a_margin(
        self, extra: dict[str, object], seconds: float
    ) -> None:
        assert time_allowed(Pod(0, RUNNING, extra=extra), 6.0) == seconds
        for age, expected in ((seconds, {}), (seconds + 0.1, {0})):
            assert set(gone({0: Pod(0, RUNNING, age=age, extra=extra)}, 6.0)) == set(expected)

    def test_the_margin_is_the_gateways(self) -> None:
        pods = {0: Pod(0, RUNNING, age=3.0, extra=self.LEASED)}
        assert gone(pods, 6.0, 1.0) == {}
        assert set(gone(pods, 6.0, 0.0)) == {0}


class TestSilentTogether:
    @pytest.mark.parametrize(
        ("pods", "together"),
        [
            ({}, set()),
            ({0: (RUNNING, 5.0)}, set()),
            ({0: (RUNNING, 7.0)}, {0}),
            ({0: (RUNNING, 70.0), 1: (RUNNING, 71.0), 2: (DRAINING, 75.9)}, {0, 1, 2}),
            # One that had been silent before the last heartbeat of all is dead.
            ({0: (RUNNING, 70.0), 1: (RUNNING, 76.1)}, {0}),
            # One that is heard, or never was.
            ({0: (RUNNING, 7.0), 1: (RUNNING, 1.0)}, set()),
            ({0: (RUNNING, 7.0), 1: (PENDING, 1.0)}, set()),
            ({0: (RUNNING, 7.0), 1: (RUNNING, None)}, set()),
            # One that has said that it ends says nothing of the others.
            ({0: (RUNNING, 7.0), 1: (STOPPED, 1.0), 2: (FAILED, None)}, {0}),
            ({0: (STOPPED, 7.0)}, set()),
        ],
    )
    def test_who_is(self, pods: dict[int, tuple[str, float | None]], together: set[int]) -> None:
        found = {pod: Pod(pod, status, age=age) for pod, (status, age) in pods.items()}
        assert silent_together(found, 6.0) == together


class TestRejections:
    def test_a_routable_pod_is_absent(self) -> None:
        assert rejected({0: Pod(0, RUNNING), 1: Pod(1, "Ready", age=5.9)}) == {}

    def test_the_reason_is_the_status_or_the_age(self) -> None:
        pods = {0: Pod(0, "Draining"), 1: Pod(1, RUNNING, age=6.1), 2: Pod(2, "Stopped")}
        assert rejected(pods) == {
            0: "status 'Draining'",
            1: "last heartbeat 6.1 s ago",
            2: "status 'Stopped'",
        }

    def test_or_the_callers_wish(self) -> None:
        pods = {0: Pod(0, RUNNING), 1: Pod(1, RUNNING)}
        assert rejected(pods, exclude=[1, 7]) == {1: "excluded by the caller"}

    def test_a_long_status_is_shortened(self) -> None:
        assert len(rejected({0: Pod(0, "x" * 10_000)})[0]) < 60

    @given(
        st.dictionaries(
            st.integers(0, 9),
            st.tuples(
                st.sampled_from([RUNNING, "Ready", PENDING, DRAINING, STOPPED, FAILED, "x"]),
                st.none() | st.floats(0, 20),
            ),
        ),
        st.sets(st.integers(0, 9)),
    )
    def test_who_may_take_uids_is_routable_in_time_and_not_excluded(
        self, reported: dict[int, tuple[str, float | None]], exclude: set[int]
    ) -> None:
        pods = {pod: Pod(pod, status, age=age) for pod, (status, age) in reported.items()}
        may = {
            pod
            for pod, (status, age) in reported.items()
            if status in ROUTABLE and (age is None or age <= 6) and pod not in exclude
        }
        assert pods.keys() - rejected(pods, exclude).keys() == may


class TestComposing:
    @given(
        st.sampled_from([RUNNING, DRAINING, STOPPED]),
        st.none() | st.floats(-1e9, 1e9),
        st.dictionaries(
            st.text(max_size=8).filter(lambda name: name not in {"status", "load", "at"}),
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            max_size=4,
        ),
    )
    def test_what_an_agent_reports_is_read_back(
        self, status: str, load: float | None, extra: dict[str, object]
    ) -> None:
        pod = read_pod(3, compose_state(status, load, extra), 0.5)
        assert (pod.status, pod.age, dict(pod.extra)) == (status, 0.5, extra)
        assert pod.load == (None if load is None else pytest.approx(load, abs=1e-6))

    def test_it_is_compact(self) -> None:
        assert (
            compose_state(RUNNING, 0.5, {"by": "x"}) == '{"status":"Running","load":0.5,"by":"x"}'
        )


def told(before: dict[int, Pod], after: dict[int, Pod]) -> list[tuple[str, int]]:
    found = changes(before, after, gone(before, 6), gone(after, 6))
    return [(change.kind, change.pod.id) for change in found]


some_pods = st.dictionaries(
    st.integers(0, 4),
    st.tuples(
        st.sampled_from([RUNNING, PENDING, DRAINING, STOPPED, UNKNOWN]),
        st.none() | st.floats(0, 12),
    ),
).map(lambda found: {pod: Pod(pod, status, age=age) for pod, (status, age) in found.items()})


class TestChanges:
    @pytest.mark.parametrize(
        ("before", "after", "kind"),
        [
            (None, Pod(0, RUNNING), "joined"),
            (None, Pod(0, DRAINING), "draining"),
            (None, Pod(0, RUNNING, age=7.0), "dead"),
            (None, Pod(0, PENDING), None),
            (None, Pod(0, STOPPED), None),
            (Pod(0, RUNNING), Pod(0, RUNNING, 5.0, age=1.0), None),
            (Pod(0, RUNNING), Pod(0, "Ready"), None),
            (Pod(0, PENDING), Pod(0, RUNNING), "joined"),
            (Pod(0, RUNNING), Pod(0, PENDING), None),
            (Pod(0, DRAINING), Pod(0, RUNNING), "joined"),
            (Pod(0, STOPPED), Pod(0, RUNNING), "joined"),
            (Pod(0, RUNNING, age=7.0), Pod(0, RUNNING, age=0.0), "joined"),
            (Pod(0, RUNNING), Pod(0, DRAINING), "draining"),
            (Pod(0, DRAINING, age=7.0), Pod(0, DRAINING, age=0.0), "draining"),
            (Pod(0, DRAINING), Pod(0, DRAINING), None),
            (Pod(0, RUNNING), Pod(0, RUNNING, age=7.0), "dead"),
            (Pod(0, RUNNING, age=7.0), Pod(0, RUNNING, age=8.0), None),
            (Pod(0, DRAINING), Pod(0, STOPPED), "left"),
            (Pod(0, RUNNING), Pod(0, FAILED), "left"),
            (Pod(0, RUNNING, age=7.0), Pod(0, STOPPED), None),
            (Pod(0, RUNNING), None, "left"),
            (Pod(0, STOPPED), None, None),
            (Pod(0, RUNNING, age=7.0), None, None),
        ],
    )
    def test_each_is_told_once(
        self, before: Pod | None, after: Pod | None, kind: str | None
    ) -> None:
        found = told({0: before} if before else {}, {0: after} if after else {})
        assert found == ([(kind, 0)] if kind else [])

    @given(some_pods, some_pods)
    def test_a_view_is_no_change_from_itself(
        self, before: dict[int, Pod], after: dict[int, Pod]
    ) -> None:
        assert told(before, before) == []
        kinds = told(before, after)
        assert len({pod for _, pod in kinds}) == len(kinds) <= 5


class TestRestarts:
    """Another life under the same id."""

    @pytest.mark.parametrize(
        ("before", "after", "kinds"),
        [
            ((RUNNING, "a"), (RUNNING, "a"), []),
            ((RUNNING, "a"), (RUNNING, "b"), ["restarted"]),
            ((RUNNING, None), (RUNNING, "b"), []),
            ((RUNNING, "a"), (RUNNING, None), []),
            ((DRAINING, "a"), (RUNNING, "b"), ["restarted", "joined"]),
            ((RUNNING, "a"), (DRAINING, "b"), ["restarted", "draining"]),
            ((STOPPED, "a"), (RUNNING, "b"), ["joined"]),
            ((RUNNING, "a"), (STOPPED, "b"), ["left"]),
        ],
    )
    def test_it_is_told(
        self,
        before: tuple[str, str | None],
        after: tuple[str, str | None],
        kinds: list[str],
    ) -> None:
        old, new = (
            {0: Pod(0, status, extra={"by": life} if life else {})}
            for status, life in (before, after)
        )
        assert [change.kind for change in changes(old, new, gone(old, 6), gone(new, 6))] == kinds


class TestWhatAPodSays:
    def test_its_fields_have_names(self) -> None:
        state = '{"status":"Running","by":"x","lease":2500,"address":"10.0.0.1:80","labels":{"zone":"b","n":1}}'
        pod = read_pod(0, state, 1.0)
        assert (pod.life, pod.lease, pod.address) == ("x", 2.5, "10.0.0.1:80")
        assert pod.labels == {"zone": "b"}

    @pytest.mark.parametrize(
        "state", ["Running", "{}", '{"by":1,"lease":"x","address":[],"labels":[]}']
    )
    def test_what_is_not_there_or_of_another_type_is_none(self, state: str) -> None:
        pod = read_pod(0, state, 1.0)
        assert (pod.life, pod.lease, pod.address, pod.labels) == (None, None, None, {})
