"""Forwarding HTTP requests: bodies are passed on as they come, in both directions."""

from __future__ import annotations

import contextlib
from typing import Self

import httpx
from forwarding import (
    MISDIRECTED,
    TIMEOUT,
    end_to_end,
    headers_for_pod,
    is_refusal,
    reroute,
    unavailable,
    url_at_pod,
)
from spans import calling
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from sfroute import SfrouteError

__all__ = ["HttpProxy"]

# Pods keep idle connections for longer than this: so it is never the pod that closes one just as a request is sent.
LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=200, keepalive_expiry=15.0)


SAID_BY_THE_SERVER = {b"date", b"server"}
"""What the server that this runs in adds to every answer."""


class NotRepeatable(Exception):
    """The pod said that the user is another one's, and the body has been read: only the client can send it again."""


class HttpProxy:
    """Forwards requests to the pod that the middleware has put into the scope; an asynchronous context manager."""

    def __init__(self, template: str) -> None:
        self._template = template

    async def __aenter__(self) -> Self:
        # A transport and not a client: that would keep cookies, and give one user's to the next.
        self._pods = httpx.AsyncHTTPTransport(limits=LIMITS, trust_env=False)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pods.aclose()

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._ask_pod(request)
        except (SfrouteError, NotRepeatable):
            await unavailable()(scope, receive, send)
        except httpx.TimeoutException:
            await PlainTextResponse("the pod did not answer in time\n", 504)(scope, receive, send)
        except httpx.TransportError:
            await PlainTextResponse("the pod was lost\n", 502)(scope, receive, send)
        else:
            async with contextlib.aclosing(response):
                answer = StreamingResponse(response.aiter_raw(), response.status_code)
                answer.raw_headers = [
                    (name, value)
                    for name, value in end_to_end(response.headers.raw)
                    if name not in SAID_BY_THE_SERVER
                ]
                await answer(scope, receive, send)

    async def _ask_pod(self, request: Request) -> httpx.Response:
        """The pod's answer; from another pod if this one refuses. Once: a second refusal is the user's to hear of."""
        try:
            response = await self._send(request)
        except httpx.ConnectError as error:
            if not is_refusal(error):
                raise
            # Nothing was sent yet, the body neither: it can be sent elsewhere.
            await reroute(request, refused=True)
            return await self._send(request)
        if response.status_code != MISDIRECTED:
            return response
        await response.aclose()
        await reroute(request, refused=False)
        if has_body(request):
            raise NotRepeatable
        return await self._send(request)

    async def _send(self, request: Request) -> httpx.Response:
        with calling(request.scope["sfroute"]):
            return await self._pods.handle_async_request(
                httpx.Request(
                    request.method,
                    url_at_pod(request, self._template),
                    headers=headers_for_pod(request),
                    content=request.stream() if has_body(request) else None,
                    extensions={"timeout": TIMEOUT.as_dict()},
                )
            )


def has_body(request: Request) -> bool:
    """True if the request has a body, which can be read only once."""
    headers = request.headers
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
