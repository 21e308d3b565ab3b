"""States of pods that were read before are not read again, and the answer is the same."""

from __future__ import annotations

import json

import pytest

from sfroute._contract.pod_states import read_pod
from sfroute._pods.remembered_states import MAX_LENGTH, MAX_STATES, RememberedStates


@pytest.mark.parametrize(
    "state", ["Running", '{"status":"Draining","load":0.5,"zone":"a"}', "0.5-17", "{", ""]
)
def test_a_state_means_the_same_when_it_is_read_again(state: str) -> None:
    states = RememberedStates()
    for pod, age in [(0, None), (7, 1.5), (0, 0.0)]:
        assert states.read(pod, state, age) == read_pod(pod, state, age)
    assert len(states) == 1


def test_what_is_remembered_is_bounded_in_number_and_in_length() -> None:
    states = RememberedStates()
    for load in range(MAX_STATES + 10):
        states.read(0, f"{load}-1", None)
    assert len(states) == MAX_STATES
    long = json.dumps({"status": "Running", "note": "x" * MAX_LENGTH})
    few = RememberedStates()
    assert few.read(3, long, 1.0) == read_pod(3, long, 1.0)
    assert len(few) == 0
