"""The spans of a request. Nothing on them identifies the user, so they have no path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import propagate, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfroute.asgi import Routed

__all__ = ["RequestSpan", "calling"]

tracer = trace.get_tracer("gateway")


class RequestSpan:
    """The span of a request, part of the caller's trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] == "/healthz":
            await self._app(scope, receive, send)
            return
        method = scope.get("method", "WEBSOCKET")
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        with tracer.start_as_current_span(
            method,
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": scope.get("method", "GET")},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            async def watch(message: Message) -> None:
                if message["type"].endswith("http.response.start"):
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(trace.StatusCode.ERROR)
                await send(message)

            try:
                await self._app(scope, receive, watch)
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(trace.StatusCode.ERROR)
                raise
            finally:
                routed: Routed | None = scope.get("sfroute")
                if routed is not None:
                    span.set_attribute("app.pod", routed.pod)


@contextlib.contextmanager
def calling(routed: Routed) -> Iterator[None]:
    """The span around waiting for a pod."""
    with tracer.start_as_current_span(
        f"forward to {routed.service}-{routed.pod}",
        kind=trace.SpanKind.CLIENT,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise
