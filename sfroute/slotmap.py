"""What a node may tell redis-py of the slots: no more bytes than a cluster's slot map has, and nothing that is none.

redis-py believes the nodes: it takes the memory for lists as long as they announce, counts through the slots from 0 to
a million million if one says so, and makes an object for every node it is told of.
"""

from __future__ import annotations

from typing import Any, Final

import hiredis
from redis._parsers import _AsyncHiredisParser
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import InvalidResponse

from .failures import is_host
from .keys import SLOTS
from .reader import BoundedReader, TooMuch

__all__ = ["checked_slot_map", "distrust"]

MAX_NODES: Final = 4096
"""The most nodes of one cluster. Redis and Valkey name a thousand as the limit of the design."""


class _Reader:
    """What redis-py's parser uses of a ``hiredis.Reader``."""

    def __init__(self, reader: hiredis.Reader) -> None:
        self._reader = BoundedReader(reader)
        self._parsed = False

    def feed(self, data: bytes) -> None:
        self._reader.feed(data)

    def gets(self, *decode: bool) -> object:
        while (reply := self._reader.gets(*decode)) is NOT_ENOUGH_DATA:
            parsed, self._parsed = self._parsed, False
            try:
                more = self._reader.more(parsed=parsed)
            except TooMuch as error:
                raise InvalidResponse(str(error)) from None
            if not more:
                break
        else:
            self._parsed = True
        return reply

    def has_data(self) -> bool:
        return self._reader.has_data()


class BoundedParser(_AsyncHiredisParser):
    """redis-py's parser, with the bounds of ``reader.py``."""

    def on_connect(self, connection: Any) -> None:
        """A connection begins; its parser is made here."""
        # redis-py's parser has no types.
        whole: Any = self
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        whole._reader = _Reader(whole._reader)


def distrust(client: RedisCluster) -> None:
    """Bound what a client takes from the nodes it asks for the slot map; before its first use."""
    for options in (client.connection_kwargs, *(n.connection_kwargs for n in client.startup_nodes)):
        options["parser_class"] = BoundedParser
    client.set_response_callback("CLUSTER SLOTS", checked_slot_map)


def checked_slot_map(response: Any, **_: Any) -> Any:
    """The reply to CLUSTER SLOTS, if it is one.

    ``[[first slot, last slot, [host, port, ...], ...], ...]``; no slot twice. Raises ``InvalidResponse``.
    """
    if not isinstance(response, list):
        raise InvalidResponse("the reply to CLUSTER SLOTS is no slot map")
    left = SLOTS
    nodes: set[tuple[object, int]] = set()
    for entry in response:
        if not (isinstance(entry, list) and len(entry) >= 3):
            raise InvalidResponse("the reply to CLUSTER SLOTS is no slot map")
        first, last, *served_by = entry
        if not (_is_number(first, SLOTS - 1) and _is_number(last, SLOTS - 1) and first <= last):
            raise InvalidResponse("the reply to CLUSTER SLOTS names slots that are none")
        left -= last - first + 1
        nodes.update(map(_checked_node, served_by))
        if left < 0 or len(nodes) > MAX_NODES:
            raise InvalidResponse("the reply to CLUSTER SLOTS names more than a cluster has")
    return response


def _checked_node(node: object) -> tuple[object, int]:
    if isinstance(node, list) and len(node) >= 2 and _is_number(node[1], 65_535):
        if node[0] is None:
            # The host that was asked (cluster-preferred-endpoint-type unknown-endpoint); redis-py knows it by this.
            node[0] = b""
        if isinstance(node[0], bytes) and is_host(node[0].decode("latin-1")):
            return node[0], node[1]
    raise InvalidResponse("the reply to CLUSTER SLOTS names a node that is none")


def _is_number(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
