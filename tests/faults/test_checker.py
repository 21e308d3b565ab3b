"""The checker itself: it must accept what a register can do, and reject what none can."""

from __future__ import annotations

import random
from math import inf

import pytest

from .checker import linearizable, outdated
from .history import Call


def call(kind: str, start: float, end: float, result: object = None, **more: object) -> Call:
    return Call("u", kind, start, end, result=result, **more)  # type: ignore[arg-type]


def test_calls_one_after_the_other() -> None:
    assert not linearizable(
        [
            call("fresh", 0, 1, None),
            call("set", 1, 2, None, pod=1),
            call("set", 2, 3, 1, pod=2),
            call("try", 3, 4, [False, 2], pod=3),
            call("absent", 4, 5, 2, pod=4),
            call("move", 5, 6, 5, pod=5, expected=2),
            call("move", 6, 7, 5, pod=6, expected=2),
            call("remove_id", 7, 8, False, expected=2),
            call("remove_id", 8, 9, True, expected=5),
            call("remove", 9, 10, False),
            call("move", 10, 11, None, pod=7, expected=5),
            call("absent", 11, 12, 8, pod=8, persistent=False),
            call("try", 12, 13, [True, 9], pod=9),
            call("remove", 13, 14, True, persistent=False),
            call("try", 14, 15, [True, 10], pod=10),
            call("fresh", 15, 16, 10),
        ]
    )


BAD = {
    "a lost write": [call("set", 0, 1, None, pod=1), call("fresh", 2, 3, None)],
    "a value that was never written": [call("fresh", 0, 1, 7)],
    "a read of what is written only later": [call("fresh", 0, 1, 1), call("set", 2, 3, pod=1)],
    "two owners": [
        call("absent", 0, 2, 1, pod=1),
        call("absent", 1, 3, 2, pod=2),
    ],
    "two compare-and-sets that both won": [
        call("set", 0, 1, None, pod=1),
        call("move", 2, 4, 2, pod=2, expected=1),
        call("move", 3, 5, 3, pod=3, expected=1),
    ],
    "a write that happened twice": [
        call("set", 0, 1, None, pod=1),
        call("set", 2, 3, 2, pod=2),
    ],
    "a wrong previous value": [
        call("set", 0, 1, None, pod=1),
        call("set", 2, 3, 1, pod=2),
        call("set", 4, 5, 1, pod=3),
    ],
    "a value that comes back": [
        call("set", 0, 1, None, pod=1),
        call("set", 2, 3, 1, pod=2),
        call("fresh", 4, 5, 2),
        call("fresh", 6, 7, 1),
    ],
    "reads that turn time back": [
        call("set", 0, 1, None, pod=1),
        call("set", 1, 10, 1, pod=2),
        call("fresh", 2, 3, 2),
        call("fresh", 4, 5, 1),
    ],
    "a persistent link taken over": [
        call("set", 0, 1, None, pod=1),
        call("try", 2, 3, [True, 2], pod=2),
    ],
    "a temporary link that was defended": [
        call("set", 0, 1, None, pod=1, persistent=False),
        call("try", 2, 3, [False, 1], pod=2),
    ],
    "a removal that found nothing": [
        call("set", 0, 1, None, pod=1),
        call("remove", 2, 3, False),
    ],
    "a removed link": [
        call("set", 0, 1, None, pod=1),
        call("remove", 2, 3, True),
        call("fresh", 4, 5, 1),
    ],
    "a link that survived a flush": [
        call("set", 0, 1, None, pod=1),
        call("flush", 2, 3),
        call("fresh", 4, 5, 1),
    ],
    "an unknown write that undid itself": [
        call("set", 0, 1, None, pod=1),
        call("set", 2, 3, pod=2, outcome="OutcomeUnknown"),
        call("fresh", 4, 5, 2),
        call("fresh", 6, 7, 1),
    ],
    "a write that promised not to have happened": [
        call("set", 0, 1, pod=1, outcome="StoreUnavailable"),
        call("fresh", 2, 3, 1),
    ],
}


@pytest.mark.parametrize("history", BAD.values(), ids=BAD.keys())
def test_it_rejects(history: list[Call]) -> None:
    assert len(linearizable(history)) == 1


def test_calls_that_overlap_may_take_effect_in_any_order() -> None:
    assert not linearizable(
        [
            call("set", 0, 10, 2, pod=1),
            call("set", 0, 10, None, pod=2),
            call("fresh", 0, 10, None),
            call("fresh", 1, 9, 2),
            call("fresh", 11, 12, 1),
        ]
    )


@pytest.mark.parametrize("seen", [[], [2], [1, 1, 2, 2], [1, 1]])
def test_an_unknown_write_may_happen_at_any_later_time_or_never(seen: list[int]) -> None:
    reads = [call("fresh", 10 + n, 10.5 + n, pod) for n, pod in enumerate(seen)]
    assert not linearizable(
        [
            call("set", 0, 1, None, pod=1),
            call("set", 2, 3, pod=2, outcome="OutcomeUnknown"),
            *reads,
        ]
    )


def test_writes_alone_may_be_checked() -> None:
    rolled_back = [
        call("set", 0, 1, None, pod=1),
        call("set", 2, 9, 1, pod=2),
        call("fresh", 3, 4, 2),  # seen on a primary that died with it
        call("fresh", 5, 6, 1),
        call("try", 10, 11, [False, 2], pod=3),
    ]
    assert linearizable(rolled_back)
    assert not linearizable(rolled_back, reads=False)


def test_the_search_goes_on_after_a_violation() -> None:
    history = [
        call("set", 0, 1, None, pod=1),
        call("fresh", 2, 3, 9),
        call("set", 4, 5, 1, pod=2),
        call("fresh", 6, 7, 2),
        call("fresh", 8, 9, 8),
    ]
    assert [violation.call.start for violation in linearizable(history)] == [2, 8]


def simulated(seed: int, calls: int = 400, callers: int = 6) -> list[Call]:
    """A history of a real register: each call takes effect at a random instant within it."""
    rng = random.Random(seed)
    planned = []
    for caller in range(callers):
        now = 0.0
        for n in range(calls // callers):
            start = now + rng.random()
            now = start + rng.random() * 3
            kind = rng.choice(["set", "try", "absent", "move", "remove", "remove_id", "fresh"])
            at = rng.uniform(start, now)
            planned.append((at, kind, start, now, caller + callers * n))
    state: tuple[int, bool] | None = None
    history = []
    for _, kind, start, end, pod in sorted(planned):
        persistent = rng.random() < 0.7
        expected = state[0] if state is not None and rng.random() < 0.7 else -5
        entry = call(kind, start, end, pod=pod, expected=expected, persistent=persistent)
        owner = state[0] if state is not None else None
        match kind:
            case "fresh":
                entry.result = owner
            case "set":
                entry.result, state = owner, (pod, persistent)
            case "try":
                won = state is None or not state[1]
                state = (pod, persistent) if won or state is None else state
                entry.result = [won, state[0]]
            case "absent":
                state = state or (pod, persistent)
                entry.result = state[0]
            case "move":
                if state is not None and owner == expected:
                    state = (pod, state[1])
                entry.result = state[0] if state is not None else None
            case _:
                found = state is not None and (kind == "remove" or owner == expected)
                entry.result = found
                if found:
                    assert owner is not None
                    state = None if persistent else (owner, False)
        history.append(entry)
    return sorted(history, key=lambda entry: entry.start)


@pytest.mark.parametrize("seed", range(20))
def test_it_accepts_whatever_a_register_does(seed: int) -> None:
    assert not linearizable(simulated(seed))


@pytest.mark.parametrize("seed", range(20))
def test_it_rejects_whatever_a_register_does_if_one_result_is_changed(seed: int) -> None:
    history = simulated(seed)
    reads = [entry for entry in history if entry.kind == "fresh"]
    spoiled = random.Random(seed).choice(reads)
    spoiled.result = 1_000_000
    assert spoiled in [violation.call for violation in linearizable(history)]


def age(*calls: Call) -> float:
    ((_, seconds),) = outdated(calls)
    return seconds


def test_the_age_of_a_cached_answer_counts_from_the_end_of_the_write_that_replaced_it() -> None:
    writes = [call("set", 0, 1, None, pod=1), call("set", 2, 3, 1, pod=2)]
    assert age(*writes, call("cached", 2.5, 2.6, 1)) == 0
    assert age(*writes, call("cached", 5, 5.1, 1)) == 2
    assert age(*writes, call("cached", 5, 5.1, 2)) == 0


def test_an_absent_answer_is_as_old_as_the_first_write_after_the_last_removal() -> None:
    writes = [call("set", 0, 1, None, pod=1), call("remove", 2, 3, True)]
    assert age(call("cached", 0, 1, None)) == 0
    assert age(*writes[:1], call("cached", 4, 5, None)) == 3
    assert age(*writes, call("cached", 4, 5, None)) == 0
    assert age(*writes, call("absent", 4, 5, 2, pod=2), call("cached", 6, 7, None)) == 1


def test_a_cached_answer_that_was_never_true() -> None:
    assert age(call("cached", 0, 1, 7)) == inf
    assert age(call("cached", 0, 1, 7), call("set", 2, 3, None, pod=7)) == inf
    assert age(call("try", 0, 1, [False, 3], pod=7), call("cached", 2, 3, 7)) == inf


def test_an_unknown_write_neither_replaces_for_certain_nor_is_it_impossible() -> None:
    writes = [
        call("set", 0, 1, None, pod=1),
        call("set", 2, 3, pod=2, outcome="OutcomeUnknown"),
    ]
    assert age(*writes, call("cached", 9, 10, 1)) == 0
    assert age(*writes, call("cached", 9, 10, 2)) == 0
