"""The answers that a middleware gives itself. None of them holds a uid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from ..errors import InvalidArgument, NoRoutablePod, SfrouteError, StoreError
from ..telemetry.logs import log_fields
from .requests import MISDIRECTED, Scope, Send, UidExtractor, has_words

__all__ = [
    "ANOTHER_PODS",
    "LOOKUP_FAILED",
    "NOBODY_CAN_SERVE",
    "NO_SUCH_USER",
    "SERVICE_RESTART",
    "TRY_AGAIN_LATER",
    "answer_to",
    "closing_code",
    "headers_of",
    "no_user",
    "refuse",
]

POLICY_VIOLATION: Final = 1008
SERVICE_RESTART: Final = 1012
"""To a WebSocket: connect again, and you will get another pod."""
TRY_AGAIN_LATER: Final = 1013

NO_SUCH_USER: Final = 400, "the request names a user who cannot exist"
NOBODY_CAN_SERVE: Final = 503, "nobody can serve this user at the moment; try again soon"
LOOKUP_FAILED: Final = 503, "the user's place cannot be looked up at the moment; try again soon"
ANOTHER_PODS: Final = "the user is another pod's"


def no_user(uid: UidExtractor) -> tuple[int, str]:
    """What a request is told that names nobody. ``uid`` says where it should, if it has words for that."""
    where = f": {uid} is missing, or ambiguous" if has_words(uid) else ""
    return 400, f"the request does not say which user it is for{where}"


def answer_to(
    error: SfrouteError, log: logging.Logger, what: str, fields: Mapping[str, object]
) -> tuple[int, str]:
    """The answer for a user for whom the store was asked in vain.

    An error that will not pass by itself is logged: ``what`` failed, and the ``fields`` of the record.
    """
    if isinstance(error, InvalidArgument):  # everything but the uid was checked before
        return NO_SUCH_USER
    if isinstance(error, NoRoutablePod):
        return NOBODY_CAN_SERVE
    if isinstance(error, StoreError) and not error.retryable:
        log.error("%s: %s", what, error, extra={**fields, **log_fields(error=error)})
    return LOOKUP_FAILED


def closing_code(status: int) -> int:
    """The code for a WebSocket whose server cannot answer the handshake."""
    return {400: POLICY_VIOLATION, MISDIRECTED: SERVICE_RESTART}.get(status, TRY_AGAIN_LATER)


def headers_of(status: int, body: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of an answer."""
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    return headers


async def refuse(
    scope: Scope,
    send: Send,
    status: int,
    words: str,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer an HTTP request or the handshake of a WebSocket."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            code = closing_code(status)
            await send({"type": "websocket.close", "code": code, "reason": words})
            return
        kind = "websocket.http.response"
    body = f"{words}\n".encode()
    all_headers = [*headers_of(status, body), *headers]
    await send({"type": f"{kind}.start", "status": status, "headers": all_headers})
    await send({"type": f"{kind}.body", "body": body})
