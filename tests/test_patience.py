"""How long a fetch is awaited: the store's silence counts, this process's own lateness does not. The clock is ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from sfroute._pods.patience import LONGEST, PATIENCE, STEP, STEP_AFTER, Patience


class Turns:
    """The part of a loop that is used here; its clock goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[Callable[[], None]] = []
        self.delay = 0.0
        self.create_future = asyncio.get_running_loop().create_future

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> Turns:
        self.delay, self.due = delay, [call]
        return self

    def cancel(self) -> None:
        self.due = []

    def turn(self, after: float) -> None:
        self.now += after
        for call in self.due:
            call()


def begun() -> tuple[Turns, Patience]:
    turns = Turns()
    return turns, Patience(cast("asyncio.AbstractEventLoop", turns))


async def test_it_is_over_after_its_time_in_a_loop_that_turns() -> None:
    turns, patience = begun()
    while not patience.over.done():
        turns.turn(after=STEP)
    assert turns.now - 100.0 == pytest.approx(PATIENCE, abs=STEP)


async def test_a_pause_of_the_process_counts_for_one_short_step() -> None:
    turns, patience = begun()
    turns.turn(after=3600.0)
    assert patience.waited == LONGEST
    assert not patience.over.done()


async def test_a_loop_that_is_always_late_turns_a_dozen_times_first() -> None:
    turns, patience = begun()
    for _ in range(12):
        turns.turn(after=1.0)
        assert not patience.over.done()
    turns.turn(after=1.0)
    assert patience.over.done()


async def test_what_counts_goes_on_until_it_is_stopped() -> None:
    turns, patience = begun()
    while turns.now < 110.0:
        turns.turn(after=turns.delay)
    turns.now += STEP / 2
    patience.stop()
    counted = patience.waited
    assert counted == pytest.approx(turns.now - 100.0)
    turns.turn(after=STEP)
    assert patience.waited == counted


async def test_a_store_that_hangs_costs_a_few_turns_a_second() -> None:
    turns, patience = begun()
    while not patience.over.done():
        assert turns.delay == STEP
        turns.turn(after=turns.delay)
    assert turns.delay == STEP_AFTER
    turns.turn(after=3600.0)
    assert patience.waited == pytest.approx(PATIENCE + 2 * STEP_AFTER, abs=STEP)
