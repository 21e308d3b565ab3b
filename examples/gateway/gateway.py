"""A reverse proxy that sends each user to the user's pod, by HTTP and WebSocket.

    SFROUTE_URL=redis+cluster://10.0.0.1:6379 uvicorn --factory gateway:create_app --no-access-log --log-level warning

uvicorn's logs are turned down because they show paths, and a path may name a user. `Settings` lists the other
environment variables. Pods read the uid from the header `X-Sfroute-Uid`, wherever the gateway found it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Self

from denials import Denials
from http_proxy import HttpProxy
from spans import RequestSpan
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from websocket_proxy import WebSocketProxy

from sfroute import AsyncRouter, telemetry
from sfroute.asgi import CookieUid, HeaderUid, PathUid, SfrouteMiddleware, UidExtractor

__all__ = ["Settings", "create_app"]

UID_FROM: dict[str, Callable[[str], UidExtractor]] = {
    "header": HeaderUid,
    "cookie": CookieUid,
    "path": PathUid,
}


@dataclass(frozen=True)
class Settings:
    """What the gateway is told by its environment.

    Attributes:
        url: SFROUTE_URL, the store.
        namespace: SFROUTE_NAMESPACE, "default" if it is not set.
        service: SFROUTE_SERVICE, "chat" if it is not set.
        uid: UID_FROM: header:NAME, cookie:NAME or path:/users/{uid}.
    """

    url: str
    namespace: str
    service: str
    uid: UidExtractor

    @classmethod
    def from_environment(cls) -> Self:
        kind, _, where = os.environ.get("UID_FROM", "header:x-user-id").partition(":")
        return cls(
            url=os.environ["SFROUTE_URL"],
            namespace=os.environ.get("SFROUTE_NAMESPACE", "default"),
            service=os.environ.get("SFROUTE_SERVICE", "chat"),
            uid=UID_FROM[kind](where),
        )


def create_app(settings: Settings | None = None) -> Starlette:
    """The gateway. Middleware runs from the top: the request's span is around its routing."""
    settings = settings or Settings.from_environment()
    http, websocket = HttpProxy(), WebSocketProxy()

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["sfroute"] is None:  # a CORS preflight that names no user
            await PlainTextResponse("no user\n", 400)(scope, receive, send)
        elif scope["type"] == "websocket":
            await websocket.forward(WebSocket(scope, receive, send))
        else:
            await http.forward(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        shut_down = None
        if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
            shut_down = telemetry.setup("gateway")
        async with http:
            yield
        if shut_down is not None:
            await asyncio.to_thread(shut_down)

    return Starlette(
        routes=[Route("/healthz", healthy), Mount("/", forward)],
        middleware=[
            Middleware(Denials),
            Middleware(RequestSpan),
            Middleware(
                SfrouteMiddleware,
                router=lambda: AsyncRouter.from_url(settings.url),
                namespace=settings.namespace,
                service=settings.service,
                uid=settings.uid,
                exempt=["/healthz"],
            ),
        ],
        lifespan=lifespan,
    )


async def healthy(_request: Request) -> Response:
    """For whoever decides whether this process gets requests. It does not ask the store: if that is away, users with
    a known link are still served.
    """
    return PlainTextResponse("ok\n")
