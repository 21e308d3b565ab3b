"""One channel per node: made once, kept while it is of use, closed together."""

from __future__ import annotations

from time import monotonic

import pytest

from sfroute import RouterClosed, RouterConfig
from sfroute._commands.attempts import Call
from sfroute._net.channel import Channel
from sfroute._net.connection import Address, WireSettings
from sfroute._net.nodes import MAX_STRAYS, Nodes
from sfroute._net.topology import SingleNode

SERVING = Address("127.0.0.1", 1)


def stray(number: int) -> Address:
    return Address("127.0.0.1", 2 + number)


def nodes() -> Nodes[Channel]:
    def make(address: Address) -> Channel:
        return Channel(address, WireSettings(), RouterConfig(), monotonic)

    return Nodes(SingleNode(SERVING), make)


async def test_a_node_has_one_channel() -> None:
    held = nodes()
    channel = held.at(SERVING)
    assert channel.address == SERVING
    assert held.at(SERVING) is channel is held.get(SERVING)
    assert list(held) == [channel]


async def test_too_many_channels_to_nodes_without_slots_leave_unless_someone_waits_for_them() -> (
    None
):
    held = nodes()
    serving = held.at(SERVING)
    busy = held.at(stray(0))
    call = Call(b"", asking=False, settled=lambda: None)
    busy.submit(call)
    for number in range(1, MAX_STRAYS):
        held.at(stray(number))
    assert len(held) == 1 + MAX_STRAYS
    newest = held.at(stray(MAX_STRAYS))
    assert set(held) == {serving, busy, newest}
    held.close()
    await held.wait_closed()


async def test_a_dropped_node_gets_a_new_channel_on_its_next_use() -> None:
    held = nodes()
    before = held.at(SERVING)
    call = Call(b"", asking=False, settled=lambda: None)
    before.submit(call)
    held.drop({SERVING, stray(0)})
    assert call.ended
    assert held.get(SERVING) is None
    assert held.at(SERVING) is not before


async def test_once_closed_it_makes_no_channel() -> None:
    held = nodes()
    held.at(SERVING)
    held.close()
    await held.wait_closed()
    with pytest.raises(RouterClosed):
        held.at(SERVING)
