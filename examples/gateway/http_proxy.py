"""Forwards HTTP requests. Bodies are streamed in both directions."""

from __future__ import annotations

import contextlib
from typing import Self

import httpx
from forwarding import (
    TIMEOUT,
    NoAddress,
    end_to_end,
    headers_for_pod,
    is_refusal,
    report,
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


class HttpProxy:
    """Forwards requests to the pod that the middleware has put into the scope; an asynchronous context manager."""

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
        except (SfrouteError, NoAddress):
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
        """The pod's answer; from another pod if nobody listens there, once. A 421 is the middleware's to follow."""
        try:
            return await self._send(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if not is_refusal(error):
                report(request)
                raise
            # Nothing was sent yet, the body neither: it can be sent elsewhere.
            await reroute(request)
            return await self._send(request)

    async def _send(self, request: Request) -> httpx.Response:
        with calling(request.scope["sfroute"]):
            return await self._pods.handle_async_request(
                httpx.Request(
                    request.method,
                    url_at_pod(request),
                    headers=headers_for_pod(request),
                    content=request.stream() if has_body(request) else None,
                    extensions={"timeout": TIMEOUT.as_dict()},
                )
            )


def has_body(request: Request) -> bool:
    """True if the request has a body, which can be read only once."""
    headers = request.headers
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
