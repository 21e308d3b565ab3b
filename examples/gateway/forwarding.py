"""What requests and WebSockets share when they are forwarded: address, headers, and when to try another pod."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator

import httpx
from opentelemetry import propagate
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response

from sfroute.asgi import Routed

__all__ = [
    "TIMEOUT",
    "NoAddress",
    "base_of",
    "end_to_end",
    "headers_for_pod",
    "is_refusal",
    "report",
    "reroute",
    "unavailable",
    "url_at_pod",
]

TIMEOUT = httpx.Timeout(60.0, connect=2.0)
# They belong to one connection, not to the message (RFC 9110, 7.6.1).
HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
NOT_FORWARDED = {
    *("host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"),
    *HOP_BY_HOP,
}


class NoAddress(Exception):
    """The pod does not say where it is."""


def url_at_pod(connection: HTTPConnection) -> httpx.URL:
    """Where the same path and query are at the user's pod. Raises `NoAddress`."""
    target = connection.scope["raw_path"]
    if connection.scope["query_string"]:
        target += b"?" + connection.scope["query_string"]
    routed: Routed = connection.scope["sfroute"]
    return base_of(routed.link.address).copy_with(raw_path=target)


def base_of(address: str | None) -> httpx.URL:
    """Where a pod listens that says its address, `host:port`.

    Whoever may write pods' states decides where users' requests go. Anything but a host and a port is refused.
    """
    with contextlib.suppress(httpx.InvalidURL):
        base = httpx.URL(f"http://{address or ''}")
        only_these = base.raw_path == b"/" and not base.userinfo and not base.fragment
        if base.host and only_these and (base.port or 80) < 65536:
            return base
    raise NoAddress


def report(connection: HTTPConnection) -> None:
    """The pod could not be reached in time. The user stays, new ones go elsewhere for a while."""
    routed: Routed = connection.scope["sfroute"]
    routed.router.report_failure(routed.namespace, routed.service, routed.pod)


async def reroute(connection: HTTPConnection) -> None:
    """Another pod: this one has refused the connection, which is reported, too."""
    routed: Routed = connection.scope["sfroute"]
    connection.scope["sfroute"] = await routed.reroute(exclude=[routed.pod])


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
        # The middleware has removed the client's own.
        **connection.scope["sfroute"].headers,
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
