"""WebSockets that were denied with a response are no errors, though uvicorn logs them as such.

Its protocol `websockets-sansio` says `ASGI callable returned without completing handshake` after each of them
(https://github.com/Kludex/uvicorn/pull/3138). Of an application that has really not answered it says the same, so this
tells the two apart.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Denials"]

# Of the task of one connection, in which uvicorn calls the application and then logs.
_denied: ContextVar[bool] = ContextVar("denied", default=False)


class Denials:
    """Middleware, the outermost: remembers which WebSockets were denied, and keeps them out of uvicorn's log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # The same function each time: it is added once, however many applications there are.
        logging.getLogger("uvicorn.error").addFilter(_is_news)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        denied = False

        async def watch(message: Message) -> None:
            nonlocal denied
            await send(message)
            if message["type"] == "websocket.http.response.body":
                denied = not message.get("more_body", False)

        await self._app(scope, receive, watch if scope["type"] == "websocket" else send)
        if denied:
            _denied.set(True)


def _is_news(record: logging.LogRecord) -> bool:
    return not (_denied.get() and "without completing handshake" in record.getMessage())
