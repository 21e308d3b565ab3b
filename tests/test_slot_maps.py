"""The slot map of a large cluster: how much of the loop it takes, and how often it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from support.peer import Peer, bulk

from sfroute import AsyncRouter, CacheConfig, RouterConfig
from sfroute._contract.keys import SLOTS, link_key, slot_of
from sfroute._net.connection import Address
from sfroute._net.slot_map import NODES_IN_A_TURN, SlotMapReader, read_slot_map

CONFIG = RouterConfig(cache=CacheConfig(max_age=0.0))


def in_ranges(owners: Sequence[Peer], ranges: int) -> bytes:
    """The answer to CLUSTER SLOTS: so many ranges, which the owners have in turn."""
    size = SLOTS // ranges
    parts = []
    for number in range(ranges):
        first = number * size
        last = first + size - 1 if number < ranges - 1 else SLOTS - 1
        host, port = owners[number % len(owners)].address
        node = b"*3\r\n%b:%d\r\n%b" % (bulk(host), port, bulk(f"{port:040x}"))
        parts.append(b"*3\r\n:%d\r\n:%d\r\n%b" % (first, last, node))
    return b"*%d\r\n%b" % (ranges, b"".join(parts))


@pytest.mark.parametrize("ranges", [2, 100])
async def test_a_slot_is_learnt_with_its_range(
    ranges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one lookup in each range, none of any slot asks the slot map again."""
    uids = [f"u{number}" for number in range(2000)]
    slots = {slot_of(link_key("ns", uid, "chat")) for uid in uids}
    assert len(slots) > 1800
    async with Peer() as one, Peer() as other:
        one.answer("cluster", *[in_ranges([one, other], ranges)] * 100)
        async with AsyncRouter.from_url(one.cluster_url, config=CONFIG) as router:
            parts = router._inside.engine.parts
            assert parts is not None
            topology, asked = parts.topology, list[int]()

            def counted(slot: int) -> object:
                asked.append(slot)
                return told(slot)

            told = topology.address_of
            monkeypatch.setattr(topology, "address_of", counted)
            await router.batch_get_linked_pod("ns", uids, "chat")
            assert len(asked) == ranges
            await router.batch_get_linked_pod("ns", uids, "chat")
            assert len(asked) == ranges
            # A slot that has gone elsewhere does not go with its range any more; the others do.
            for peer in (one, other):
                peer.answers.pop("cluster", None)
                peer.answer("cluster", *[None] * 100)
            key = link_key("ns", "u0", "chat")
            target = other if told(slot_of(key)) == one.address else one
            topology.learn(slot_of(key), Address(*target.address))
            target.commands.clear()
            await router.batch_get_linked_pod("ns", uids, "chat")
            assert len(asked) - ranges <= ranges + 2
            assert [b"GET", key.encode()] in target.commands


def reply_of(ranges: int, serving: int) -> list[Any]:
    """A slot map as hiredis gives it: each range has a primary and replicas of its own."""
    size = SLOTS // ranges
    return [
        [
            n * size,
            (n + 1) * size - 1,
            *([f"10.{r}.{n % 250}.1".encode(), 1, b"id", []] for r in range(serving)),
        ]
        for n in range(ranges)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("ranges", "serving"), [(1024, 3), (SLOTS, 3), (60, 64)])
def test_a_large_map_is_read_in_turns(ranges: int, serving: int) -> None:
    """Counted: how many nodes are read in a turn, of which each takes about as long."""
    asked = Address("10.9.9.9", 1)
    reply = reply_of(ranges, serving)
    whole = read_slot_map(reply_of(ranges, serving), asked)
    reader = SlotMapReader(reply, asked)
    read, found = 0, None
    while found is None:
        found = reader.turn()
        done = sum(entry is None for entry in reply)
        assert (done - read) * serving < NODES_IN_A_TURN + 64
        read = done
    assert read == ranges
    assert found == whole
    assert len(found.primaries) == min(ranges, 250)


async def test_until_a_map_is_read_the_old_one_holds() -> None:
    """A lookup in between goes by the old map or the new one, never by half of it."""
    ranges = 1024
    async with Peer() as one, Peer() as other:
        one.answer("cluster", *[in_ranges([one], ranges)] * 100)
        async with AsyncRouter.from_url(one.cluster_url, config=CONFIG) as router:
            parts = router._inside.engine.parts
            assert parts is not None
            topology = parts.topology
            for peer in (one, other):
                peer.answers.pop("cluster", None)
                peer.answer("cluster", *[in_ranges([other], ranges)] * 100)
            asked = len(one.received("cluster"))
            refreshing = asyncio.ensure_future(topology.refresh())
            seen = [topology.primaries()]
            turns = 0
            while not refreshing.done():
                await asyncio.sleep(0)
                now = {topology.address_of(slot) for slot in range(0, SLOTS, 97)}
                assert now == topology.primaries()
                turns += len(one.received("cluster")) > asked and now == {one.address}
                if now != seen[-1]:
                    seen.append(topology.primaries())
            await refreshing
            assert seen == [{one.address}, {other.address}]
            assert turns > ranges // NODES_IN_A_TURN


async def test_what_is_learnt_while_a_map_is_read_is_newer() -> None:
    ranges, slot = 1024, 7
    async with Peer() as one, Peer() as other:
        one.answer("cluster", in_ranges([one], ranges))
        async with AsyncRouter.from_url(one.cluster_url, config=CONFIG) as router:
            parts = router._inside.engine.parts
            assert parts is not None
            topology = parts.topology
            asked = len(one.received("cluster"))
            # No question after this one is answered.
            one.answer("cluster", in_ranges([one], ranges), *[None] * 100)
            topology.refresh_soon()
            async with asyncio.timeout(20):
                while len(one.received("cluster")) == asked:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                topology.learn(slot, Address(*other.address))
                while len(one.received("cluster")) < asked + 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert topology.address_of(slot) == other.address
            assert topology.address_of(slot + 1) == one.address
            assert topology.primaries() == {one.address, other.address}
