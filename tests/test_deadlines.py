"""Many deadlines on one timer: each is kept, in whatever order they were set."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from sfroute.deadlines import Deadlines


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


async def test_nothing_expires_after_closing() -> None:
    deadlines = Deadlines(time.monotonic, expire)
    item = Item(time.monotonic() + 0.01)
    deadlines.watch(item)
    assert deadlines.close() == [item]
    await asyncio.sleep(0.03)
    assert item.expired == []
