"""Parses RESP within bounds: memory is taken for what has arrived, not for what a peer announces.

The one place that knows how much a reply may take. Everything that reads from the store reads through it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import hiredis

__all__ = ["MAX_REPLY_BYTES", "BoundedReader", "TooMuch"]

MAX_REPLY_BYTES: Final = 64 * 2**20
"""The most bytes one reply may take. The largest honest one is a service's pod states; beyond this the peer is
broken.
"""

_LONG_LIST: Final = re.compile(rb"[*>~|](?:[0-9]{5,7}|[0-9]*\Z)")
"""The header of a list, push, set or attribute of ten thousand elements or more, its beginning where the data end, or a
text like one. hiredis takes the memory for all elements when it reads the header: a thousand million cost gigabytes,
and stop the process for half a minute; so do hundreds of lists of a million, each in the one before."""

ELEMENT_BYTES: Final = 72
"""Each element of such a list counts for so many bytes of its reply, arrived or not; so does each line of a reply that
comes in many parts, since an empty list of four bytes is one of 72 in memory. So a million are too much; the longest
honest list, of the states of ten thousand pods, has 30,001."""


class TooMuch(Exception):
    """The peer has sent or announced more than an honest reply takes. The text repeats nothing of it."""


class BoundedReader:
    """A ``hiredis.Reader`` with bounds.

    ``feed()`` what arrived, take all that ``gets()`` has, and again as long as ``more()`` is true.

    Attributes:
        gets: the parser's own method: the next reply, or what the parser was told to return for none.
    """

    def __init__(self, reader: hiredis.Reader) -> None:
        self._reader = reader
        self.gets: Callable[..., object] = reader.gets
        self._held = b""
        self._fed = b""
        self._parts: list[bytes] = []
        self._unparsed = 0

    def feed(self, data: bytes) -> None:
        """Take in what has arrived, up to what may be the header of a long list."""
        if self._held:
            data, self._held = self._held + data, b""
        # Most of what arrives has none of these; to look for them costs a twentieth of the search.
        if b"*" in data or b">" in data or b"~" in data or b"|" in data:
            cuts = []
            for found in _LONG_LIST.finditer(data):
                place, end = found.span()
                if end == len(data) and end - place < 8:
                    # Nothing whole ends here, so nobody waits for it.
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
        """True if there is more to parse of what was fed. ``parsed``: ``gets()`` had something since the last time.

        Raises ``TooMuch``.
        """
        if parsed:
            self._unparsed = 0
        else:
            self._unparsed += len(self._fed) + self._fed.count(b"\n") * ELEMENT_BYTES
            if self._unparsed > MAX_REPLY_BYTES:
                raise TooMuch(f"the server sent a reply of more than {MAX_REPLY_BYTES} bytes")
        if not self._parts:
            return False
        part = self._fed = self._parts.pop()
        # What is before it tells a header from a text: in the middle of a text something is left to parse.
        if not self._reader.has_data():
            header = _LONG_LIST.match(part)
            assert header is not None
            self._unparsed += int(part[1 : header.end()]) * ELEMENT_BYTES
            if self._unparsed > MAX_REPLY_BYTES:
                raise TooMuch("the server announced a reply of a million elements or more")
        self._reader.feed(part)
        return True

    def has_data(self) -> bool:
        """True if something is left that has not become a reply."""
        return bool(self._held or self._parts) or self._reader.has_data()
