"""Claims that are confirmed together, and pushes between their answers: no answer hides a later change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from logging import getLogger

import pytest
from support.scripted import ScriptedPeer, bulk, push

from sfroute import AsyncRouter
from sfroute._contract.keys import link_key
from sfroute._operations.claims import ClaimTable, Held, Reason
from sfroute._operations.confirming import Confirmer

from .conftest import CALM, settings

pytestmark = pytest.mark.asyncio

UIDS = ("ada", "bob")
KEYS = [link_key("sf", uid, "chat") for uid in UIDS]
Loss = tuple[str, Reason, int | None]


@dataclass
class Pod:
    peer: ScriptedPeer
    table: ClaimTable
    confirmer: Confirmer
    lost: asyncio.Queue[Loss]

    def claim(self, uid: str) -> Held:
        return self.table.take(uid, 1, 7, "placed", self.table.generation)


def answer(outcome: str, owner: str = "1") -> bytes:
    return b"*3\r\n" + bulk(owner) + bulk(outcome) + bulk("7")


@asynccontextmanager
async def confirming() -> AsyncIterator[Pod]:
    """What confirms the claims of a pod of a scripted server."""
    async with (
        asyncio.timeout(10),
        ScriptedPeer() as peer,
        AsyncRouter.from_url(peer.url, config=settings(**CALM)) as router,
    ):
        parts = router._engine.parts
        assert parts is not None
        table = ClaimTable(asyncio.get_running_loop().time, None)
        lost: asyncio.Queue[Loss] = asyncio.Queue()

        def on_lost(held: Held, reason: Reason, owner: int | None) -> None:
            held.over = True
            lost.put_nowait((held.claim.uid, reason, owner))

        place = ("sf", "chat", 1, "life")
        confirmer = Confirmer(parts, table, place, (60.0, 60.0), on_lost, getLogger("sfroute"))
        try:
            yield Pod(peer, table, confirmer, lost)
        finally:
            confirmer.close()


@pytest.mark.parametrize("was_confirmed", [False, True])
async def test_a_push_between_the_answers_of_a_batch_is_heeded(was_confirmed: bool) -> None:
    """The link of the first claim changes while the second one is being confirmed."""
    async with confirming() as pod:
        for uid in UIDS:
            pod.confirmer.add(pod.claim(uid))
        lane = await pod.peer.lane()
        if was_confirmed:
            for _ in UIDS:
                await lane.command(b"EVALSHA")
            await lane.send(answer("mine"), answer("mine"), push(*KEYS))
        for _ in UIDS:
            await lane.command(b"EVALSHA")
        await lane.send(answer("mine"), push(KEYS[0]), answer("mine"))
        asked = await lane.command(b"EVALSHA")
        assert KEYS[0].encode() in asked
        await lane.send(answer("moved", "2"))
        assert await pod.lost.get() == (UIDS[0], "moved", 2)
        assert pod.lost.empty()


async def test_a_push_during_the_long_way_makes_its_answer_an_old_one() -> None:
    """The node has forgotten the script, and the link changes between its answer there and the answer's arrival."""
    async with confirming() as pod:
        held = pod.claim(UIDS[0])
        pod.confirmer.add(held)
        lane = await pod.peer.lane()
        await lane.command(b"EVALSHA")
        await lane.send(answer("mine"))
        await until(lambda: held.stretch is not None)
        pod.confirmer.add(held)
        await lane.command(b"EVALSHA")
        await lane.send(b"-NOSCRIPT No matching script\r\n")
        other = await pod.peer.other()
        await other.command(b"EVALSHA")
        await lane.send(push(KEYS[0]))
        await until(lambda: held.generation != pod.table.generation)
        await other.send(answer("mine"))
        await lane.command(b"EVALSHA")
        assert held.generation != pod.table.generation
        await lane.send(answer("moved", "2"))
        assert await pod.lost.get() == (UIDS[0], "moved", 2)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
