"""The commands of a lookup in RESP. Pure.

Packed by hand, which takes half the time: every miss comes by here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .._contract.keys import tagged_link_key
from .._native import heart
from .._net.connection import encode

__all__ = ["after_asking", "all_links", "value_and_ttl", "value_and_ttl_in_python"]

_ASKING: Final = encode("ASKING")
_GET: Final = b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n"
_PTTL: Final = b"*2\r\n$4\r\nPTTL\r\n$%d\r\n%b\r\n"
_GET_AND_PTTL: Final = _GET + _PTTL


def value_and_ttl_in_python(tag: bytes, service: str) -> bytes:
    """GET and PTTL of the link with this hash tag and service."""
    key = tagged_link_key(tag, service)
    size = len(key)
    return _GET_AND_PTTL % (size, key, size, key)


value_and_ttl: Final[Callable[[bytes, str], bytes]] = (
    value_and_ttl_in_python if heart is None else heart.pack
)
"""The same, by the half that runs."""


def after_asking(tag: bytes, service: str) -> bytes:
    """The same for a slot that is being imported: ASKING holds for the next command only."""
    key = tagged_link_key(tag, service)
    named = len(key), key
    return _ASKING + _GET % named + _ASKING + _PTTL % named


def all_links(tag: bytes, *, asking: bool) -> bytes:
    """HGETALL of the links of the uid with this hash tag."""
    get_all = encode("HGETALL", tagged_link_key(tag, ""))
    return _ASKING + get_all if asking else get_all
