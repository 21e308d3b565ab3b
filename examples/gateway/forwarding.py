"""What forwarding a request and forwarding a WebSocket share: address, headers, and when to try another pod."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from urllib.parse import quote

import httpx
from opentelemetry import propagate
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response

from sfroute.asgi import Routed

__all__ = [
    "MISDIRECTED",
    "TIMEOUT",
    "end_to_end",
    "headers_for_pod",
    "is_refusal",
    "reroute",
    "unavailable",
    "url_at_pod",
]

UID_HEADER = "x-sfroute-uid"
MISDIRECTED = 421
"""What a pod answers when the user is another pod's (RFC 9110, 15.5.20)."""
TIMEOUT = httpx.Timeout(60.0, connect=2.0)
# They belong to one connection, not to the message (RFC 9110, 7.6.1).
HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
NOT_FORWARDED = {
    *("host", UID_HEADER, "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"),
    *HOP_BY_HOP,
}


def url_at_pod(connection: HTTPConnection, template: str) -> httpx.URL:
    """Where the same path and query are at the user's pod."""
    routed: Routed = connection.scope["sfroute"]
    address = template.format(namespace=routed.namespace, service=routed.service, pod=routed.pod)
    target = connection.scope["raw_path"]
    if connection.scope["query_string"]:
        target += b"?" + connection.scope["query_string"]
    return httpx.URL(address).copy_with(raw_path=target)


async def reroute(connection: HTTPConnection, *, refused: bool) -> None:
    """Another pod if this one refused the connection; the right one if it said that the user is not its own."""
    routed: Routed = connection.scope["sfroute"]
    connection.scope["sfroute"] = await routed.reroute(
        exclude=[routed.pod] if refused else (), fresh=not refused
    )


def is_refusal(error: BaseException | None) -> bool:
    """True if nobody listens there, or the name is no longer known.

    Not on a time-out, nor if the network is unreachable: the pod may well live, and have the user's state.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_refusal(one) for one in error.exceptions)
    if isinstance(error, socket.gaierror):
        return error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
    if isinstance(error, ConnectionRefusedError) or error is None:
        return error is not None
    return is_refusal(error.__cause__ or error.__context__)


def headers_for_pod(connection: HTTPConnection) -> list[tuple[bytes, bytes]]:
    """The client's headers, with the user, where the request came from, and the trace. As bytes: they need be no text
    of any encoding.
    """
    # What this program says itself replaces what the client said of it.
    dropped = {*NOT_FORWARDED, *propagate.get_global_textmap().fields}
    headers = [
        (name, value)
        for name, value in end_to_end(connection.scope["headers"])
        if name.decode("latin-1") not in dropped
    ]
    came_through = connection.headers.getlist("x-forwarded-for")
    if connection.client is not None:
        came_through.append(connection.client.host)
    own = {
        # Encoded, since a uid may be any text.
        UID_HEADER: quote(connection.scope["sfroute"].uid, safe=""),
        "x-forwarded-for": ", ".join(came_through),
        "x-forwarded-proto": connection.url.scheme,
        "x-forwarded-host": connection.headers.get("host", ""),
    }
    propagate.inject(own)
    return headers + [(name.encode(), value.encode("latin-1")) for name, value in own.items()]


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Without those of the connection: the known ones, and those that its header ``Connection`` names."""
    headers = [(name.lower(), value) for name, value in headers]
    dropped = {name.encode() for name in HOP_BY_HOP}
    for name, value in headers:
        if name == b"connection":
            dropped.update(option.strip().lower() for option in value.split(b","))
    return ((name, value) for name, value in headers if name not in dropped)


def unavailable() -> Response:
    return PlainTextResponse(
        "nobody can serve this user at the moment; try again soon\n",
        503,
        headers={"retry-after": "1"},
    )
