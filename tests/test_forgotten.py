"""Until when nobody is placed on a primary that has lost its data: the table, row by row."""

from __future__ import annotations

from math import inf

import pytest

from sfroute import RUNNING, PlacementConfig, Pod
from sfroute._net.lineage import Past
from sfroute._operations.forgotten import ends_at, living
from sfroute._pods.service_view import ServiceView

HISTORY = ("a" * 40, "b" * 40)
OLD = ("c" * 40,)


def pods(*confirmed: str | None) -> list[Pod]:
    return [
        Pod(pod, RUNNING, extra={} if ids is None else {"confirmed": ids})
        for pod, ids in enumerate(confirmed)
    ]


AAAA, BBBB, CCCC = "a" * 8, "b" * 8, "c" * 8


@pytest.mark.parametrize(
    ("past", "confirmed", "until"),
    [
        # Nothing has happened.
        (Past(HISTORY), (None,), -inf),
        (Past(HISTORY), (CCCC,), -inf),
        # Another history than before.
        (Past(HISTORY, forgotten_at=100.0), (None,), 104.0),
        (Past(HISTORY, forgotten_at=100.0), (CCCC,), 104.0),
        (Past(HISTORY, forgotten_at=100.0), (AAAA, CCCC), 104.0),
        (Past(HISTORY, forgotten_at=100.0), (AAAA, f"{CCCC} {AAAA}"), -inf),
        (Past(HISTORY, forgotten_at=100.0), (AAAA, None), -inf),
        (Past(HISTORY, forgotten_at=100.0), (), 104.0),
        # All keys have changed: its history is the same as before.
        (Past(HISTORY, flushed_at=100.0), (AAAA,), 104.0),
        (Past((), flushed_at=100.0), (), 104.0),
        # All keys have changed, and another history too: the later one counts.
        (Past(HISTORY, flushed_at=50.0, forgotten_at=100.0), (CCCC,), 104.0),
        (Past(HISTORY, flushed_at=100.0, forgotten_at=50.0), (CCCC,), 104.0),
        (Past(HISTORY, flushed_at=100.0, forgotten_at=50.0), (AAAA,), 104.0),
        (Past(HISTORY, flushed_at=50.0, forgotten_at=100.0), (AAAA,), 54.0),
        (Past(HISTORY, flushed_at=50.0, seen_first_at=100.0), (CCCC,), 104.0),
        (Past(HISTORY, flushed_at=100.0, seen_first_at=50.0), (CCCC,), 104.0),
        # Nothing is known from before this router saw it.
        (Past(HISTORY, seen_first_at=100.0), (CCCC, CCCC), 104.0),
        (Past(HISTORY, seen_first_at=100.0), (CCCC, AAAA), -inf),
        (Past(HISTORY, seen_first_at=100.0), ("",), 104.0),
        (Past(HISTORY, seen_first_at=100.0), (AAAA, BBBB), -inf),
        (Past(HISTORY, seen_first_at=100.0), (None,), -inf),
        (Past(HISTORY, seen_first_at=100.0), (), -inf),
    ],
)
def test_until_when(past: Past, confirmed: tuple[str | None, ...], until: float) -> None:
    assert ends_at(past, pods(*confirmed), 4.0) == until


def test_a_pod_whose_state_was_lost_too_is_waited_for() -> None:
    """Others that are quicker to report again do not end the grace of its users."""
    config = PlacementConfig()
    before, after = pods(CCCC, CCCC), pods(AAAA)
    view = ServiceView({pod.id: pod for pod in after}, 101.0, config)
    view.look_back(ServiceView({pod.id: pod for pod in before}, 99.0, config))
    past = Past(HISTORY, forgotten_at=100.0)
    assert ends_at(past, living(view), 4.0) == 104.0
    assert ends_at(past, after, 4.0) == -inf


def test_nobody_lives_whose_lease_is_over_or_of_whom_nothing_is_known() -> None:
    silent = Pod(0, RUNNING, age=1e6, extra={"confirmed": CCCC})
    heard = Pod(1, RUNNING, age=0.0, extra={"confirmed": AAAA})
    view = ServiceView({0: silent, 1: heard}, 100.0, PlacementConfig())
    assert [pod.id for pod in living(view)] == [1]
    assert living(None) == []
