"""Many deadlines on one timer: each is kept, in whatever order they were set."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from dataclasses import dataclass, field

import pytest

from sfroute._net.deadlines import SPARE, Deadlines


@dataclass(eq=False)
class Item:
    deadline: float
    done: bool = False
    expired: list[float] = field(default_factory=list)


def expire(item: Item) -> None:
    item.expired.append(time.monotonic())
    item.done = True


async def all_over(items: list[Item]) -> None:
    async with asyncio.timeout(10):
        while not all(item.done for item in items):  # noqa: ASYNC110 - as the clock has it
            await asyncio.sleep(0.001)


async def test_each_expires_once_and_not_before_its_time() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    now = time.monotonic()
    items = [Item(now + seconds) for seconds in (0.05, 0.02, 0.08, 0.02, -1.0)]
    for item in items:
        deadlines.watch(item)
    await all_over(items)
    for item in items:
        (when,) = item.expired
        # Event loops round timers to their clock's resolution.
        assert when >= item.deadline - 0.001
    order = sorted(items, key=lambda item: item.expired[0])
    assert [item.deadline for item in order] == sorted(item.deadline for item in items)


async def test_an_earlier_one_that_comes_later_is_not_late() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    far, near = Item(time.monotonic() + 3600), Item(time.monotonic() + 0.02)
    deadlines.watch(far)
    deadlines.watch(near)
    await all_over([near])
    assert not far.done
    assert deadlines.close() == [far]


async def test_nor_is_one_after_something_that_is_done() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    far, near = Item(time.monotonic() + 3600), Item(time.monotonic() + 0.02)
    deadlines.watch(far)
    far.done = True
    deadlines.watch(near)
    await all_over([near])
    assert deadlines.close() == []


async def test_what_is_done_does_not_expire() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    done, other = Item(time.monotonic() + 0.01), Item(time.monotonic() + 0.03)
    deadlines.watch(done)
    deadlines.watch(other)
    done.done = True
    await all_over([other])
    assert done.expired == []


async def test_what_is_done_is_not_held() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    for _ in range(10_000):
        item = Item(time.monotonic() + 3600)
        deadlines.watch(item)
        item.done = True
    assert len(deadlines._queue) == 1


async def test_nor_is_it_behind_something_that_is_stuck() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    stuck = Item(time.monotonic() + 1800)
    deadlines.watch(stuck)
    under_way: deque[Item] = deque()
    most = 0
    for _ in range(10_000):
        item = Item(time.monotonic() + 3600)
        deadlines.watch(item)
        most = max(most, len(deadlines._queue))
        under_way.append(item)
        if len(under_way) > 50:
            under_way.popleft().done = True
    assert most < 2 * 51 + 2 * SPARE
    assert {id(item) for item in deadlines.close()} == {id(item) for item in (stuck, *under_way)}


async def test_after_a_pause_of_the_loop_what_has_arrived_is_read_first() -> None:
    """An answer that lay in the socket when the deadline passed is an answer."""
    deadlines = Deadlines(time.monotonic, expire)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        answered, silent = (Item(time.monotonic() + 0.02) for _ in range(2))
        deadlines.watch(answered)
        deadlines.watch(silent)

        read = bytearray()

        def answer() -> None:
            # A little each turn, as a connection does.
            read.extend(ours.recv(1))
            answered.done = len(read) == 3

        asyncio.get_running_loop().add_reader(ours, answer)
        theirs.send(b"abc")
        # The loop, or the whole process, is stopped.
        time.sleep(0.3)  # noqa: ASYNC251
        await all_over([answered, silent])
        asyncio.get_running_loop().remove_reader(ours)
    assert answered.expired == []
    assert len(silent.expired) == 1


async def test_a_loop_that_is_always_late_ends_what_is_due() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    items = [Item(time.monotonic() + 0.02) for _ in range(2)]
    for item in items:
        deadlines.watch(item)
    for _ in range(10):
        time.sleep(0.2)  # noqa: ASYNC251 - each turn of the loop takes so long
        await asyncio.sleep(0)
    assert [len(item.expired) for item in items] == [1, 1]


def test_on_uvloop_one_that_is_due_at_once_expires_too() -> None:
    """What uvloop is to do at once it takes for no timer: it does not say when it is due."""
    uvloop = pytest.importorskip("uvloop")

    async def watch() -> None:
        deadlines = Deadlines(time.monotonic, expire)
        items = [Item(time.monotonic() + seconds) for seconds in (-1.0, 0.0, 0.0001, 0.02)]
        for item in items:
            deadlines.watch(item)
            await asyncio.sleep(0)
        await all_over(items)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watch())


async def test_nothing_expires_after_closing() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    item = Item(time.monotonic() + 0.01)
    deadlines.watch(item)
    assert deadlines.close() == [item]
    await asyncio.sleep(0.03)
    assert item.expired == []
