"""JSON answers of the programs, and the applications' common parts. No answer holds a uid."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from .._web.requests import Send

__all__ = ["Header", "answer_json", "answer_text", "problem"]

Header = tuple[bytes, bytes]

_JSON: Final = (b"content-type", b"application/json")
_NO_STORE: Final = (b"cache-control", b"no-store")
REASON_HEADER: Final = b"x-sfroute-reason"


async def answer(
    send: Send, status: int, body: bytes, headers: Iterable[Header], *, body_wanted: bool = True
) -> None:
    """Send an answer; for HEAD the body is left out, its length is not."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, _NO_STORE, length],
        }
    )
    await send({"type": "http.response.body", "body": body if body_wanted else b""})


async def answer_json(
    send: Send,
    status: int,
    fields: object,
    headers: Iterable[Header] = (),
    *,
    body_wanted: bool = True,
) -> None:
    """Answer with a JSON document."""
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
    await answer(send, status, body, [_JSON, *headers], body_wanted=body_wanted)


async def answer_text(
    send: Send, body: bytes, content_type: bytes, *, body_wanted: bool = True
) -> None:
    """Answer 200 with a text."""
    await answer(send, 200, body, [(b"content-type", content_type)], body_wanted=body_wanted)


async def problem(
    send: Send,
    status: int,
    reason: str,
    words: str,
    headers: Iterable[Header] = (),
    *,
    body_wanted: bool = True,
) -> None:
    """Say why not: the reason is one word of the OpenAPI document, in a header too; the words are for people."""
    found = [(REASON_HEADER, reason.encode()), *headers]
    if status == 503:
        found.append((b"retry-after", b"1"))
    fields = {"reason": reason, "detail": words}
    await answer_json(send, status, fields, found, body_wanted=body_wanted)
