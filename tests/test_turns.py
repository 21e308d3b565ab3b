"""Turns: one at a time for each name, in the order of asking, whoever is cancelled."""

from __future__ import annotations

import asyncio

from sfroute._operations.turns import Turns


async def pause() -> None:
    """Until everybody has done what they can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Those who take turns of one name; ``done`` says who had one, in order."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.done: list[str] = []
        self.inside = 0

    async def one(self, who: str) -> None:
        await self.turns.take("ada")
        try:
            self.inside += 1
            assert self.inside == 1
            await asyncio.sleep(0)
            self.done.append(who)
        finally:
            self.inside -= 1
            self.turns.end("ada")

    def ask(self, who: str) -> asyncio.Task[None]:
        return asyncio.create_task(self.one(who))


async def test_the_first_to_ask_is_the_first_to_have_it() -> None:
    crowd = Crowd()
    await asyncio.gather(*(crowd.one(str(number)) for number in range(20)))
    assert crowd.done == [str(number) for number in range(20)]
    assert len(crowd.turns) == 0


async def test_another_name_is_not_waited_for() -> None:
    turns = Turns()
    await turns.take("ada")
    await turns.take("bob")
    assert len(turns) == 2


async def test_who_asks_again_at_once_comes_after_those_who_wait() -> None:
    crowd = Crowd()

    async def often() -> None:
        for _ in range(10):
            await crowd.one("often")

    busy = asyncio.create_task(often())
    await asyncio.sleep(0)
    await crowd.one("once")
    await busy
    assert crowd.done.index("once") == 1


async def test_who_is_cancelled_while_waiting_is_passed_over() -> None:
    crowd = Crowd()
    await crowd.turns.take("ada")
    tasks = [crowd.ask(who) for who in "abcd"]
    await pause()
    tasks[0].cancel()
    tasks[2].cancel()
    await pause()
    crowd.turns.end("ada")
    await asyncio.gather(*tasks, return_exceptions=True)
    assert crowd.done == ["b", "d"]
    assert len(crowd.turns) == 0


async def test_who_is_cancelled_when_the_turn_comes_hands_it_on() -> None:
    crowd = Crowd()
    await crowd.turns.take("ada")
    tasks = [crowd.ask(who) for who in "ab"]
    await pause()
    # The turn is given first, then its new owner is cancelled before it has run.
    crowd.turns.end("ada")
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[0].cancelled()
    assert crowd.done == ["b"]
    assert len(crowd.turns) == 0
