"""Middleware for ASGI applications, for both sides of the way from a gateway to a pod.

At a gateway ``scope["sfroute"].pod`` is the pod of the user a request comes from::

    from fastapi import FastAPI
    from sfroute import AsyncRouter
    from sfroute.asgi import HeaderUid, SfrouteMiddleware

    app = FastAPI()
    app.add_middleware(
        SfrouteMiddleware,
        router=lambda: AsyncRouter.from_url("redis+cluster://10.0.0.1:6379"),
        namespace="production",
        service="chat",
        uid=HeaderUid("x-user-id"),
    )

At a pod ``PodMiddleware`` lets only requests of the pod's own users through.

Both need nothing but the ASGI 3 protocol, and work with HTTP, WebSocket and lifespan of any framework and server.
"""

from __future__ import annotations

from ._web.gateway import Routed, SfrouteMiddleware
from ._web.pod import Claimed, PodMiddleware
from ._web.requests import (
    ASGIApp,
    CookieUid,
    Exempt,
    ForwardedUid,
    HeaderUid,
    Message,
    PathUid,
    QueryUid,
    Receive,
    Scope,
    Send,
    UidExtractor,
)

__all__ = [
    "ASGIApp",
    "Claimed",
    "CookieUid",
    "Exempt",
    "ForwardedUid",
    "HeaderUid",
    "Message",
    "PathUid",
    "PodMiddleware",
    "QueryUid",
    "Receive",
    "Routed",
    "Scope",
    "Send",
    "SfrouteMiddleware",
    "UidExtractor",
]
