"""The application of ``sfroute serve``: the pod of a user, over HTTP. A thin layer over ``AsyncRouter.route``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from .._fronts.router import AsyncRouter
from .._web.answers import LOOKUP_FAILED, NO_SUCH_USER, NOBODY_CAN_SERVE, no_user
from .._web.requests import Receive, Scope, Send
from ..errors import InvalidArgument, NoRoutablePod, RouterClosed, SfrouteError, StoreError
from ..telemetry.logs import log_fields
from ..types import Link
from .answers import answer_json, answer_text, problem
from .openapi import decide_document
from .questions import PATH, BadAddress, BadQuestion, Question, Rules, headers_of, read_question

__all__ = ["Decide", "Refused"]

_log = logging.getLogger("sfroute.serve")

LOOK_AGAIN_SECONDS: Final = 0.25
"""While a question waits. Gateways see a change of the pods at most half a second late anyway."""
_TEXT: Final = b"text/plain; charset=utf-8"
_PROMETHEUS: Final = b"text/plain; version=0.0.4; charset=utf-8"


class Refused(Exception):
    """No pod can be named: the status, the reason for programs, and the words for people."""

    def __init__(self, status: int, reason: str, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.reason = reason
        self.words = words


class Decide:
    """See the module's docstring. It opens the router with lifespan, and goes on trying until the store is there.

    Args:
        router: makes the router, in the event loop that serves.
        rules: how questions are read and answered.
        metrics: the metrics of this process and its siblings, in Prometheus's text format.
    """

    def __init__(
        self,
        router: Callable[[], AsyncRouter],
        rules: Rules,
        metrics: Callable[[], Awaitable[bytes]],
    ) -> None:
        self._make_router = router
        self._rules = rules
        self._metrics = metrics
        self._router: AsyncRouter | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_open = False
        self._is_leaving = False

    def leave(self) -> None:
        """Say that this process is about to end, at ``/readyz``; go on answering."""
        self._is_leaving = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope (ASGI)."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        if raw == PATH or raw.startswith(b"/decide/"):
            await self._decide(scope, send)
        else:
            await self._tell(scope, send)

    # Decisions

    async def _decide(self, scope: Scope, send: Send) -> None:
        body_wanted = scope["method"] != "HEAD"
        try:
            question = self._read(scope)
            link = await self._route(question)
            upstream = self._upstream_of(question, link)
        except Refused as refused:
            status = refused.status
            if self._rules.mode == "nginx":
                status = 401 if refused.reason == "no-user" else 403
            await problem(send, status, refused.reason, refused.words, body_wanted=body_wanted)
            return
        fields: dict[str, object] = {
            "pod": link.pod,
            "source": link.source,
            "persistent": link.persistent,
            "stale": link.stale,
            "age": round(link.age, 6),
            "pod_view": link.pod_view,
        }
        if upstream is not None:
            fields["upstream"] = upstream.decode()
        assert question.uid is not None
        headers = headers_of(link, question.uid, upstream)
        await answer_json(send, 200, fields, headers, body_wanted=body_wanted)

    def _read(self, scope: Scope) -> Question:
        try:
            question = read_question(scope, self._rules)
        except BadQuestion as error:
            raise Refused(400, "bad-question", str(error)) from None
        if not question.uid:
            status, words = no_user(self._rules.uid)
            raise Refused(status, "no-user", words)
        return question

    async def _route(self, question: Question) -> Link:
        if self._router is None:
            raise Refused(LOOKUP_FAILED[0], "store", LOOKUP_FAILED[1])
        assert question.uid is not None
        for pod in question.exclude if question.refused else ():
            with contextlib.suppress(InvalidArgument):  # the names: route() says it
                self._router.report_failure(question.namespace, question.service, pod)
        loop = asyncio.get_running_loop()
        until = loop.time() + question.wait
        while True:
            left = until - loop.time()
            try:
                # One call waits until its own deadline at most.
                return await self._router.route(
                    question.namespace,
                    question.uid,
                    question.service,
                    persist_seconds=self._rules.persist_seconds,
                    exclude=question.exclude,
                    fresh=question.fresh,
                    wait=left if left > 0 else None,
                )
            except InvalidArgument:  # everything but the uid was checked before
                raise Refused(NO_SUCH_USER[0], "no-such-user", NO_SUCH_USER[1]) from None
            except NoRoutablePod:
                left = until - loop.time()
                if left <= 0:
                    raise Refused(NOBODY_CAN_SERVE[0], "no-pod", NOBODY_CAN_SERVE[1]) from None
                await asyncio.sleep(min(LOOK_AGAIN_SECONDS, left))
            except (StoreError, RouterClosed) as error:
                if isinstance(error, StoreError) and not error.retryable:
                    # It will not pass by itself, so somebody must be told.
                    _log.error(
                        "a user could not be routed: %s",
                        error,
                        extra=log_fields(question.namespace, question.service, error=error),
                    )
                raise Refused(LOOKUP_FAILED[0], "store", LOOKUP_FAILED[1]) from None

    def _upstream_of(self, question: Question, link: Link) -> bytes | None:
        upstream = self._rules.upstream
        if upstream is None:
            return None
        if upstream.needs_address and link.address is None:
            raise Refused(503, "no-address", "the user's pod has not said where it is")
        try:
            return upstream(question.namespace, question.service, link.pod, link.address)
        except BadAddress:
            # It will not pass by itself, so somebody must be told.
            _log.error(
                "the upstream of pod %d cannot be told: its address has a scheme or a path, and --upstream puts text "
                "around {address}. Let pods publish host:port, or give --upstream '{address}'",
                link.pod,
                extra=log_fields(question.namespace, question.service),
            )
            raise Refused(
                503,
                "bad-address",
                "the address that the user's pod has published does not fit the template of the upstream",
            ) from None

    # Everything else

    async def _tell(self, scope: Scope, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        body_wanted = method != "HEAD"
        if path not in {"/healthz", "/readyz", "/metrics", "/openapi.json"}:
            words = "there are /decide, /healthz, /readyz, /metrics and /openapi.json"
            await problem(send, 404, "not-found", words, body_wanted=body_wanted)
        elif method not in {"GET", "HEAD"}:
            allow = [(b"allow", b"GET, HEAD")]
            words = "only GET and HEAD are answered here"
            await problem(send, 405, "method-not-allowed", words, allow)
        elif path == "/healthz":
            await answer_text(send, b"alive\n", _TEXT, body_wanted=body_wanted)
        elif path == "/metrics":
            await answer_text(send, await self._metrics(), _PROMETHEUS, body_wanted=body_wanted)
        elif path == "/openapi.json":
            await answer_json(send, 200, decide_document(), body_wanted=body_wanted)
        elif self._is_leaving:
            await problem(send, 503, "leaving", "this process ends soon", body_wanted=body_wanted)
        elif not self._is_open:
            words = "the store has not answered yet"
            await problem(send, 503, "store", words, body_wanted=body_wanted)
        else:
            await answer_text(send, b"ready\n", _TEXT, body_wanted=body_wanted)

    # Lifespan

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        router = self._router = self._make_router()
        self._opening = asyncio.create_task(self._open(router))
        try:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        finally:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
            self._router = None
            self._is_open = False
            await router.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _open(self, router: AsyncRouter) -> None:
        """Until the store is there: a proxy that starts before it must not take this process for broken."""
        while True:
            try:
                await router.open()
            except SfrouteError as error:
                _log.warning(
                    "the store cannot be reached yet: %s", error, extra=log_fields(error=error)
                )
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
            else:
                self._is_open = True
                return
