"""Parses RESP within bounds: it allocates for what has arrived, not for what a peer announces.

The only place that knows how large a reply may be. Everything read from the store passes through it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import hiredis

__all__ = ["MAX_REPLY_BYTES", "BoundedReader", "TooMuch"]

MAX_REPLY_BYTES: Final = 64 * 2**20
"""The most bytes of one reply. The largest honest one holds a service's pod states; beyond this the peer is broken."""

_LONG_LIST: Final = re.compile(rb"[*>~|](?:[0-9]{5,7}|[0-9]*\Z)")
"""The header of a list, push, set or attribute of ten thousand elements or more; or the start of one at the end of the
data; or text that looks like one. hiredis allocates for all elements when it reads the header: a thousand million take
gigabytes and stop the process for half a minute. So do hundreds of nested lists of a million."""

ELEMENT_BYTES: Final = 72
"""Each element of such a list counts as this many bytes of its reply, arrived or not. So does each line of a reply that
comes in many parts: an empty list takes four bytes on the wire and 72 in memory. A million elements are too many; the
longest honest list, the states of ten thousand pods, has 30,001."""


class TooMuch(Exception):
    """The peer has sent or announced more than any honest reply. The text repeats none of it."""


class BoundedReader:
    """A ``hiredis.Reader`` with bounds.

    Call ``feed()`` with what arrived, then ``gets()`` until it has no more. Repeat ``gets()`` while ``more()`` is true.

    Args:
        reader: the parser.
        most: the most bytes of one reply.

    Attributes:
        gets: the parser's own method. Returns the next reply, or the parser's value for "not enough data".
    """

    def __init__(self, reader: hiredis.Reader, most: int = MAX_REPLY_BYTES) -> None:
        self._reader = reader
        self._most = most
        self.gets: Callable[..., object] = reader.gets
        self._held = b""
        self._fed = b""
        self._parts: list[bytes] = []
        self._unparsed = 0

    def feed(self, data: bytes) -> None:
        """Feed what has arrived to the parser, up to the first possible header of a long list."""
        if self._held:
            data, self._held = self._held + data, b""
        # Most data contain none of these. This check costs a twentieth of the search.
        if b"*" in data or b">" in data or b"~" in data or b"|" in data:
            cuts = []
            for found in _LONG_LIST.finditer(data):
                place, end = found.span()
                if end == len(data) and end - place < 8:
                    # No complete reply ends here, so holding it back delays nobody.
                    self._held, data = data[place:], data[:place]
                    break
                cuts.append(place)
            if cuts:
                self._parts = [
                    data[a:b] for a, b in zip(cuts, [*cuts[1:], len(data)], strict=True)
                ][::-1]
                data = data[: cuts[0]]
        self._fed = data
        self._reader.feed(data)

    def more(self, *, parsed: bool) -> bool:
        """True if more of the fed data can be parsed.

        Args:
            parsed: ``gets()`` has returned a reply since the last call.

        Raises:
            TooMuch: the reply is larger than the bound.
        """
        if parsed:
            self._unparsed = 0
        else:
            self._unparsed += len(self._fed) + self._fed.count(b"\n") * ELEMENT_BYTES
            if self._unparsed > self._most:
                raise TooMuch(f"the server sent a reply of more than {self._most} bytes")
        if not self._parts:
            return False
        part = self._fed = self._parts.pop()
        # A header follows a complete reply. Unparsed data before it means that this is the middle of a text.
        if not self._reader.has_data():
            header = _LONG_LIST.match(part)
            assert header is not None
            self._unparsed += int(part[1 : header.end()]) * ELEMENT_BYTES
            if self._unparsed > self._most:
                raise TooMuch(f"the server announced a reply of more than {self._most} bytes")
        self._reader.feed(part)
        return True

    def has_data(self) -> bool:
        """True if some of the data has not become a reply yet."""
        return bool(self._held or self._parts) or self._reader.has_data()
