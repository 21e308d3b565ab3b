"""The judge itself: it must accept what was promised, and reject what was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from .judge import (
    disordered_fences,
    links_removed_under_claims,
    lost_after,
    overlaps,
    percentile,
    routed_elsewhere,
    told_after,
    wrong_refusals,
)
from .record import (
    Asked,
    Entered,
    History,
    Mine,
    Moved,
    Sample,
    Told,
    Writer,
    Written,
    intervals,
    read_histories,
)
from .stage import Held, Phase, Stored
from .table import evaluate


def mine(fence: int, first: float, last: float, life: str | None = None) -> Mine:
    return Mine("u", fence, fence, life or f"life {fence}", first, last)


def entered(fence: int, start: float, end: float, life: str | None = None) -> Entered:
    return Entered("u", fence, life or f"life {fence}", start, end, fence, "placed", fence)


def written(fence: int, start: float, end: float, number: int) -> Written:
    return Written("u", fence, f"life {fence}", fence, start, end, number)


def lost(at: float, pod: int = 1) -> Told:
    return Told(pod, "life 1", at, "lost", "u", 1, "moved", 2)


# Two owners at once


def test_owners_one_after_the_other_do_not_overlap() -> None:
    assert not overlaps([mine(1, 0, 10), mine(2, 11, 20), mine(3, 20.5, 30)])


@pytest.mark.parametrize(
    ("claims", "seconds"),
    [
        ([mine(1, 0, 10), mine(2, 9, 20)], 1),  # told late
        ([mine(1, 0, 10), mine(1, 30, 40), mine(2, 15, 20)], 10),  # a zombie: it owns again
        ([mine(2, 5, 6), mine(1, 3, 20)], 15),  # the newer one lies within
        ([mine(1, 0, 10, "a"), mine(1, 5, 20, "b")], 5),  # one fence, two lives
        ([mine(1, 0, 10), mine(1, 8, 30), mine(2, 12, 13)], 18),  # twice by the older one
    ],
    ids=["late", "zombie", "within", "one fence", "twice"],
)
def test_two_owners_at_once_are_found(claims: list[Mine], seconds: float) -> None:
    assert max(overlap.seconds for overlap in overlaps(claims)) == seconds


def test_a_life_may_claim_a_user_again_under_a_newer_fence() -> None:
    assert not overlaps([mine(1, 0, 10, "a"), mine(2, 10, 20, "a")])


def test_other_users_are_other_users() -> None:
    other = mine(2, 5, 15)
    other.uid = "v"
    assert not overlaps([mine(1, 0, 10), other])


def test_times_of_ownership_are_certain_ones() -> None:
    samples = [
        Sample(1, "a", 0, 1, [("u", 7)], []),
        Sample(1, "a", 2, 3, [], []),
        Sample(1, "a", 4, 5, [("v", 8)], [("u", 7)]),
        Sample(1, "a", 6, 7, [], []),
    ]
    # True by the end of the first sample, and still so at the beginning of the last that said so.
    assert intervals(samples) == [Mine("u", 7, 1, "a", 1, 2), Mine("v", 8, 1, "a", 5, 6)]


# Fences


def test_fences_that_grow_are_accepted() -> None:
    claims = [entered(1, 0, 1), entered(2, 2, 3), entered(3, 2.5, 3.5), entered(3, 9, 10)]
    assert not disordered_fences(claims)


@pytest.mark.parametrize(
    "claims",
    [
        [entered(2, 0, 1), entered(1, 2, 3)],
        [entered(1, 0, 1, "a"), entered(1, 2, 3, "b")],
        [entered(3, 0, 1), entered(2, 0.5, 9), entered(2, 10, 11)],
    ],
    ids=["smaller", "the same for two lives", "smaller than one that overlaps another"],
)
def test_fences_that_do_not_grow_are_found(claims: list[Entered]) -> None:
    assert len(disordered_fences(claims)) == 1


def test_claims_made_at_one_time_may_have_fences_in_any_order() -> None:
    assert not disordered_fences([entered(2, 0, 5), entered(1, 1, 4)])


def test_a_zombies_write_is_refused_rightly() -> None:
    writes = [written(1, 0, 1, 1), written(2, 2, 3, 2), written(1, 4, 5, 0)]
    assert not wrong_refusals(writes, [entered(1, 0, 0.1), entered(2, 1.5, 1.6)])


def test_a_new_owner_is_never_refused() -> None:
    writes = [written(2, 0, 1, 1), written(1, 4, 5, 0)]
    assert len(wrong_refusals(writes, [entered(2, 0, 0.1), entered(1, 3, 3.5)])) == 1


# Being told


def test_the_old_owner_is_told_after_a_move() -> None:
    moves = [Moved("u", 10, 11, "set", 1, 2)]
    assert told_after(moves, [lost(11.5)]) == [0.5]
    assert told_after(moves, [lost(10.5)]) == [0.0]


def test_who_is_never_told_is_found() -> None:
    moves = [Moved("u", 10, 11, "set", 1, 2)]
    assert told_after(moves, []) == [None]
    assert told_after(moves, [lost(9)]) == [None]
    assert told_after(moves, [lost(12, pod=3)]) == [None]


def test_who_was_back_before_the_old_pod_asked_was_not_lost() -> None:
    moves = [Moved("u", 10, 11, "evacuate", 1, -1)]
    back = [mine(1, 5, 10.9), mine(1, 11.1, 20)]
    assert told_after(moves, [], back) == []
    assert told_after(moves, [lost(11.5)], back) == [0.5]
    # Another claim of that pod, or of another one, is no sign of that; nor is one that only ended late.
    assert told_after(moves, [], [mine(1, 5, 10.9), Mine("u", 9, 1, "life 1", 11.1, 20)]) == [None]
    assert told_after(moves, [], [mine(1, 5, 10.9), mine(2, 11.1, 20)]) == [None]
    assert told_after(moves, [], [mine(1, 5, 11.05)]) == [None]


# A store that forgot


def asked(pod: int | None, start: float, how: str = "route", uid: str = "u") -> Asked:
    return Asked(uid, start, start + 1, how, pod)


def test_users_who_are_sent_elsewhere_are_found() -> None:
    answers = [asked(1, 5), asked(2, 6), asked(2, 1), asked(2, 11), asked(2, 7, uid="v")]
    assert routed_elsewhere(answers, {"u": 1}, 5, 10) == [answers[1]]


def test_losses_are_found() -> None:
    assert lost_after([lost(5), lost(15)], 0, 10) == [lost(5)]
    assert not lost_after([Told(1, "a", 5, "isolated")], 0, 10)


def test_a_claim_is_back_when_all_of_it_is() -> None:
    held = Held(3, 99)
    assert Stored("3", -1, "99 3 abc").is_of(held)
    for stored in (
        Stored(None, -2, "99 3 abc"),
        Stored("3", 900, "99 3 abc"),
        Stored("4", -1, "99 3 abc"),
        Stored("3", -1, None),
        Stored("3", -1, "98 3 abc"),
        Stored("3", -1, "99 - -"),
    ):
        assert not stored.is_of(held)


# Links under claims


def test_a_link_that_is_missing_under_a_claim_is_found() -> None:
    look = asked(None, 5, "look")
    assert links_removed_under_claims([look], [mine(1, 0, 10)]) == [(look, mine(1, 0, 10))]


@pytest.mark.parametrize(
    "claims", [[mine(1, 5.5, 10)], [mine(1, 0, 5.5)], []], ids=["before", "after", "never"]
)
def test_a_link_may_be_missing_without_a_claim(claims: list[Mine]) -> None:
    assert not links_removed_under_claims([asked(None, 5, "look")], claims)


# The verdict


def verdict(history: History, **phase: object) -> list[str]:
    (row,) = evaluate(history, [Phase("a fault", 0, 100, **phase)])  # type: ignore[arg-type]
    return row.broken


HELD = {"homes": {"u": 1}, "wiped_at": 1.0, "back": 0.5}

BAD = {
    "two owners": (History(mine=[mine(1, 0, 10), mine(2, 9, 20)]), {}),
    "told late": (
        History(moved=[Moved("u", 1, 2, "set", 1, 2)], told=[lost(2.2)]),
        {"moves": True},
    ),
    "never told": (History(moved=[Moved("u", 1, 2, "set", 1, 2)]), {"moves": True}),
    "two owners for long after a move": (
        History(mine=[mine(1, 0, 10), mine(2, 9, 20)]),
        {"moves": True},
    ),
    "a fence that fell": (History(entered=[entered(2, 0, 1), entered(1, 2, 3)]), {}),
    "a user sent elsewhere": (History(asked=[asked(2, 5)]), HELD),
    "a claim lost": (History(told=[lost(5)]), HELD),
    "claims back late": (History(), {**HELD, "back": 3.1}),
    "claims never back": (History(), {**HELD, "back": float("inf")}),
    "a link removed": (
        History(asked=[asked(None, 5, "look")], mine=[mine(1, 0, 10)]),
        {"keeps_links": True},
    ),
    "a link that stays": (History(), {"outlived": 2.0}),
    "servers that stay broken": (History(), {"failure": "not healthy"}),
}


@pytest.mark.parametrize(("history", "phase"), BAD.values(), ids=BAD.keys())
def test_a_broken_promise_fails_the_run(history: History, phase: dict[str, object]) -> None:
    assert len(verdict(history, **phase)) == 1


def test_kept_promises_do_not() -> None:
    history = History(
        mine=[mine(1, 0, 10), mine(2, 11, 20)],
        entered=[entered(1, 0, 1), entered(2, 10.5, 10.9)],
        moved=[Moved("u", 9, 10, "set", 1, 2)],
        told=[lost(10.05)],
        asked=[asked(None, 10.1, "look")],
    )
    assert not verdict(history, moves=True, keeps_links=True, outlived=0.1)
    assert not verdict(History(asked=[asked(1, 5)]), **HELD)


def test_a_move_may_be_told_late_to_one_in_a_hundred() -> None:
    moves = [Moved(f"u{n}", 1, 2, "set", 1, 2) for n in range(100)]
    told = [Told(1, "a", 2.05, "lost", f"u{n}", 1, "moved", 2) for n in range(99)]
    late = Told(1, "a", 9, "lost", "u99", 1, "moved", 2)
    assert not verdict(History(moved=moves, told=[*told, late]), moves=True)


def test_percentiles() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([5, 1, 3], 0.5) == 3
    assert percentile(list(range(1, 101)), 0.99) == 99


def test_histories_survive_their_writer(tmp_path: Path) -> None:
    path = tmp_path / "pod.jsonl"
    writer = Writer(path)
    writer.add(Sample(1, "a", 0, 1, [("u", 7)], []))
    writer.add(lost(3))
    writer.add(entered(7, 0, 1))
    writer.add(written(7, 1, 2, 1))
    with path.open("a") as file:
        file.write('["Told", 1, "half a li')  # killed within a write
    history = read_histories([path])
    assert history.mine == [Mine("u", 7, 1, "a", 1, 0)]
    assert history.told == [lost(3)]
    assert history.entered == [entered(7, 0, 1)]
    assert history.written == [written(7, 1, 2, 1)]
