"""The gateway's half: routes the user of each request, and follows a pod that says it does not have the user."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from .._fronts.router import AsyncRouter
from .._operations.terms import checked_exclude
from .._pods.policies import Policy
from ..errors import (
    InvalidArgument,
    NoRoutablePod,
    RouterClosed,
    SfrouteError,
    StoreError,
)
from ..telemetry.logs import log_fields
from ..types import Link
from .again import route_again
from .answers import NOBODY_CAN_SERVE, answer_to, no_user, refuse
from .requests import (
    ASGIApp,
    Exempt,
    Message,
    Misdirected,
    Receive,
    Scope,
    Send,
    UidExtractor,
    check_key,
    check_terms,
    exemption,
    headers_for_pod,
    is_ours,
    is_preflight,
    misdirected,
    uid_from,
)

__all__ = ["Routed", "SfrouteMiddleware"]

_log = logging.getLogger("sfroute.asgi")

_STARTED: Final = "lifespan.startup.complete"
_ENDS: Final = frozenset(
    {"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"}
)
_ANSWERS: Final = frozenset({"http.response.start", "websocket.http.response.start"})
_BEGINNINGS: Final = _ANSWERS | {"websocket.accept", "websocket.close"}


@dataclass(frozen=True, slots=True)
class Routed:
    """What ``scope["sfroute"]`` is: where the user of this request is.

    Attributes:
        uid: the user. Not shown by ``repr()``, so that it does not get into logs by accident.
        link: the link, and where the answer came from.
        router: the router that gave it.
        namespace: the namespace.
        service: the service.
    """

    uid: str = field(repr=False)
    link: Link
    router: AsyncRouter = field(repr=False)
    namespace: str
    service: str
    _terms: tuple[int | None, Policy | None] = field(default=(None, None), repr=False)

    @property
    def pod(self) -> int:
        """The pod id."""
        return self.link.pod

    @property
    def headers(self) -> dict[str, str]:
        """What the request must tell the pod: ``X-Sfroute-Uid``, which ``ForwardedUid`` reads there."""
        return headers_for_pod(self.uid)

    async def reroute(self, *, exclude: Collection[int] = (), fresh: bool = False) -> Routed:
        """Route again, after the pod has refused the user.

        Pass ``exclude=[routed.pod]`` if it refused the connection, ``fresh=True`` if it says that another pod has the
        user. The refusal is reported (``AsyncRouter.report_failure``). A pod that was restarted at another address
        meanwhile is neither excluded nor reported: its new address is returned. While the store does not tell of
        pods, a user whom the refusing life of the pod had claimed is moved at once; for others the pods are asked for,
        until the last second of ``RetryConfig.deadline``, which is for the move (the last half of a deadline under two
        seconds). The deadline holds for the whole call.

        Raises what ``AsyncRouter.route`` raises; ``StoreUnavailable`` also if a later life of the pod has the user, and
        its address could not be read.
        """
        excluded = checked_exclude(exclude)
        link = await route_again(
            self.router,
            (self.namespace, self.uid, self.service),
            self._terms,
            self.link,
            exclude=excluded,
            fresh=fresh,
            unless_elsewhere=self.pod in excluded,
            report=True,
        )
        return Routed(self.uid, link, self.router, self.namespace, self.service, self._terms)


class SfrouteMiddleware:
    """Routes the user of each HTTP request and WebSocket before the application is called.

    A request that names no user, or one that cannot be a uid, is answered with 400; one whose user no pod can take, or
    for whom the store cannot be asked, with 503. WebSockets are refused with the same answers where the server can send
    them (extension ``websocket.http.response``), else closed with 1008 and 1013. No answer holds the uid. A CORS
    preflight that names no user is passed on, with ``scope["sfroute"]`` None.

    If the application answers with the 421 of a pod's ``PodMiddleware``, the client does not see it: the store is asked
    which pod has the user, and the application is called again, once, with the same request. If that pod does not have
    the user either, or the request's body was longer than ``replay``, the answer is 503.

    Headers ``X-Sfroute-*`` are removed from every request: only gateways send them, and only pods.

    With lifespan the router opens before the application starts (if the store cannot be reached, it does not start) and
    closes after it has ended, also for applications that know no lifespan. A server without lifespan opens it with the
    first request, and never closes it.

    Args:
        app: the application.
        router: a router, or a function that makes one for each lifespan, as tests that start an application twice need
            it. Either way it is closed with the application.
        namespace: the namespace.
        service: the service.
        uid: where requests name their user: ``HeaderUid``, ``CookieUid``, ``PathUid``, or a function from the scope to
            the uid, such as ``lambda scope: scope["user"].identity`` behind what authenticates users.
        persist_seconds: as for ``AsyncRouter.route``.
        policy: as for ``AsyncRouter.route``.
        exempt: requests for no user, which are passed on as they come: paths such as ``/healthz``, ``/static/*`` for
            all below it, or a function from the scope to bool.
        required: False passes requests that name no user on, with ``scope["sfroute"]`` None.
        key: where the scope holds the answer. Several middlewares, each with a service and a key of its own, may be
            around one application; given one router, they share it.
        replay: the longest body, in bytes, that is kept until the answer begins, to be sent to another pod.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        router: AsyncRouter | Callable[[], AsyncRouter],
        namespace: str,
        service: str,
        uid: UidExtractor,
        persist_seconds: int | None = None,
        policy: Policy | None = None,
        exempt: Exempt = (),
        required: bool = True,
        key: str = "sfroute",
        replay: int = 65536,
    ) -> None:
        check_terms(namespace, service, persist_seconds, policy)
        check_key(key)
        if isinstance(replay, bool) or not isinstance(replay, int) or replay < 0:
            raise InvalidArgument("replay must be an int of bytes >= 0")
        if isinstance(router, AsyncRouter):
            given = router
            self._make_router: Callable[[], AsyncRouter] = lambda: given
        elif callable(router):
            self._make_router = router
        else:
            raise InvalidArgument("router must be an AsyncRouter, or a function that makes one")
        self.app = app
        self._namespace = namespace
        self._service = service
        self._uid = uid_from(uid)
        self._terms = persist_seconds, policy
        self._is_exempt = exemption(exempt)
        self._required = required
        self._key = key
        self._replay = replay
        self._router: AsyncRouter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope (ASGI)."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["type"] in ("http", "websocket"):
            scope["headers"] = [one for one in scope["headers"] if not is_ours(one[0])]
            if not self._is_exempt(scope):
                refusal = await self._find(scope)
                if refusal is None and scope[self._key] is not None:
                    refusal = await self._forward(scope, receive, send)
                    if refusal is None:
                        return
                if refusal is not None:
                    await refuse(scope, send, *refusal)
                    return
        await self.app(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, str] | None:
        """Call the application; once more if the pod does not have the user. Status and words if that fails too."""
        before = dict(scope)
        first = _Attempt(receive, send, self._service, self._replay)
        await self.app(scope, first.hear, first.say)
        if first.misdirected is None:
            return None
        # Applications write into the scope: what they find must be what the first call found.
        scope.clear()
        scope.update(before)
        routed: Routed = before[self._key]
        # Also if the body is gone: the client's next request will be told the right pod.
        refusal = await self._route(scope, routed.uid, after=(routed.link, first.misdirected))
        if refusal is not None or first.heard is None:
            return refusal or NOBODY_CAN_SERVE
        second = _Attempt(_replayed(first.heard, receive), send, self._service, 0)
        await self.app(scope, second.hear, second.say)
        return NOBODY_CAN_SERVE if second.misdirected else None

    async def _find(self, scope: Scope) -> tuple[int, str] | None:
        """Put the user's pod into the scope, or return the status and text of the refusal."""
        uid = self._uid(scope)
        if not uid:
            if not self._required or is_preflight(scope):
                scope[self._key] = None
                return None
            return no_user(self._uid)
        return await self._route(scope, uid)

    async def _route(
        self, scope: Scope, uid: str, *, after: tuple[Link, Misdirected] | None = None
    ) -> tuple[int, str] | None:
        """``after``: where the user was turned away, and how."""
        if self._router is None:
            self._router = self._make_router()
        router, link = self._router, (self._namespace, uid, self._service)
        try:
            if after is None:
                persist_seconds, policy = self._terms
                found = await router.route(*link, persist_seconds=persist_seconds, policy=policy)
            else:
                before, why = after
                # A stopped pod may be thought to run for a moment still. Another life of it may run elsewhere.
                found = await route_again(
                    router,
                    link,
                    self._terms,
                    before,
                    exclude=frozenset({before.pod} if why in ("full", "left") else ()),
                    fresh=True,
                    unless_elsewhere=why == "left",
                )
            scope[self._key] = Routed(
                uid, found, router, self._namespace, self._service, self._terms
            )
        except (InvalidArgument, NoRoutablePod, StoreError, RouterClosed) as error:
            about = log_fields(self._namespace, self._service)
            return answer_to(error, _log, "a user could not be routed", about)
        return None

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        first: Message | None = await receive()
        router = self._router = self._make_router()
        try:
            await router.open()
        except SfrouteError as error:
            await self._close(router)
            await send({"type": "lifespan.startup.failed", "message": f"sfroute: {error}"})
            return
        said: set[str] = set()

        async def hear() -> Message:
            nonlocal first
            message, first = first, None
            return await receive() if message is None else message

        async def say(message: Message) -> None:
            said.add(message["type"])
            if message["type"] in _ENDS:
                # Closed before the server hears of it, because the server may end the process at once.
                await self._close(router)
            await send(message)

        try:
            try:
                await self.app(scope, hear, say)
            except Exception:
                if said:
                    raise
                # This is how an application says that it does not support lifespan (ASGI, "Lifespan Protocol").
                _log.info("the application has no lifespan; the router has one all the same")
            if not said:
                await say({"type": _STARTED})
            if not said & _ENDS:
                await receive()
                await say({"type": "lifespan.shutdown.complete"})
        finally:
            await self._close(router)

    async def _close(self, router: AsyncRouter) -> None:
        if self._router is router:
            self._router = None
        await router.aclose()


class _Attempt:
    """One call of the application: remembers what it has read, until its answer begins.

    Attributes:
        heard: what it has read; None if that is too much to be kept, or no longer needed.
        misdirected: it has answered with a pod's 421, which was kept back: where the user is.
    """

    def __init__(self, receive: Receive, send: Send, service: str, room: int) -> None:
        self._receive = receive
        self._send = send
        self._service = service
        self._room = room
        self.heard: list[Message] | None = []
        self.misdirected: Misdirected | None = None

    async def hear(self) -> Message:
        """For ``receive``."""
        message = await self._receive()
        if self.heard is not None:
            self._room -= len(message.get("body", b""))
            if self._room < 0:
                self.heard = None
            else:
                self.heard.append(message)
        return message

    async def say(self, message: Message) -> None:
        """For ``send``."""
        if self.misdirected is None and message["type"] in _ANSWERS:
            self.misdirected = misdirected(message, self._service)
        if self.misdirected is not None:
            return
        if message["type"] in _BEGINNINGS:
            self.heard = None
        await self._send(message)


def _replayed(heard: list[Message], receive: Receive) -> Receive:
    """What was read before, then what comes."""
    waiting = iter(heard)

    async def hear() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return hear
