"""Middleware for ASGI applications: ``scope["sfroute"].pod`` is the pod of the user a request comes from.

::

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

It needs nothing but the ASGI 3 protocol, and works with HTTP, WebSocket and lifespan of any framework and server.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from .errors import InvalidArgument, NoRoutablePod, RouterClosed, SfrouteError, StoreError
from .keys import check_persist_seconds, check_service_names
from .placement import Policy
from .router import AsyncRouter
from .routing import check_policy
from .types import Link

__all__ = ["CookieUid", "HeaderUid", "PathUid", "Routed", "SfrouteMiddleware", "UidExtractor"]

_log = logging.getLogger(__name__)

# As ASGI and its frameworks define them, `Any` included: other types would not fit theirs.
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

UidExtractor: TypeAlias = Callable[[Scope], str | None]
"""From the scope of a request to the uid, None if the request names no user. Must not block."""

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""What may be the name of a header or a cookie (RFC 9110, 5.6.2)."""
POLICY_VIOLATION: Final = 1008
TRY_AGAIN_LATER: Final = 1013
_STARTED: Final = "lifespan.startup.complete"
_ENDS: Final = frozenset(
    {"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"}
)


def _values(scope: Scope, name: bytes) -> list[str]:
    # UTF-8, as in paths: a user has one name, wherever it is read from. What is none becomes lone surrogates, which no
    # uid may have.
    return [
        value.decode(errors="surrogateescape")
        for key, value in scope["headers"]
        if key.lower() == name
    ]


def _only(values: Collection[str]) -> str | None:
    """The value on which all agree. Of two, this program might take one and the pod the other."""
    distinct = set(values)
    return distinct.pop() or None if len(distinct) == 1 else None


def _check_token(kind: str, name: object) -> None:
    if not isinstance(name, str) or _TOKEN.fullmatch(name) is None:
        raise InvalidArgument(f"the name of a {kind} must be ASCII without spaces or separators")


@dataclass(frozen=True)
class HeaderUid:
    """The uid is the value of a header, UTF-8. Two headers that differ count as none.

    Whoever can reach the application can send any header: let what authenticates users set it.
    """

    name: str

    def __post_init__(self) -> None:
        _check_token("header", self.name)

    def __call__(self, scope: Scope) -> str | None:
        """The uid of a request."""
        return _only(_values(scope, self.name.lower().encode()))

    def __str__(self) -> str:
        return f"the header {self.name}"


@dataclass(frozen=True)
class CookieUid:
    """The uid is the value of a cookie, UTF-8, as it was sent but for quotes around it.

    Two that differ count as none.
    """

    name: str

    def __post_init__(self) -> None:
        _check_token("cookie", self.name)

    def __call__(self, scope: Scope) -> str | None:
        """The uid of a request."""
        found = []
        for header in _values(scope, b"cookie"):
            for pair in header.split(";"):
                name, _, value = pair.partition("=")
                if name.strip() == self.name:
                    value = value.strip()
                    quoted = len(value) > 1 and value[0] == value[-1] == '"'
                    found.append(value[1:-1] if quoted else value)
        return _only(found)

    def __str__(self) -> str:
        return f"the cookie {self.name}"


@dataclass(frozen=True)
class PathUid:
    """The uid is a segment of the path: ``PathUid("/users/{uid}")`` reads it from that path and from any below it.

    Percent-escapes are decoded, so that a uid may contain a slash. The path below ``root_path`` counts.
    """

    template: str
    _segments: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        segments = tuple(str(self.template).split("/"))
        if segments[0] or segments.count("{uid}") != 1 or str(self.template).count("{") != 1:
            raise InvalidArgument(
                "the template of a path must begin with '/' and have one segment '{uid}'"
            )
        object.__setattr__(self, "_segments", segments)

    def __call__(self, scope: Scope) -> str | None:
        """The uid of a request."""
        # Split before it is decoded: an escaped slash separates nothing.
        raw = scope.get("raw_path")
        segments = _decoded(raw) if raw else scope["path"].split("/")
        root = scope.get("root_path", "").rstrip("/").split("/")
        if len(root) > 1 and segments[: len(root)] == root:
            segments = ["", *segments[len(root) :]]
        if len(segments) < len(self._segments):
            return None
        uid = None
        for expected, segment in zip(self._segments, segments, strict=False):
            if expected == "{uid}":
                uid = segment
            elif expected != segment:
                return None
        return uid or None

    def __str__(self) -> str:
        return f"the path {self.template}"


def _decoded(raw_path: bytes) -> list[str]:
    try:
        return [
            unquote(segment, errors="strict") for segment in raw_path.decode("ascii").split("/")
        ]
    except UnicodeDecodeError:  # no text: nobody's path
        return []


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

    async def reroute(self, *, exclude: Collection[int] = (), fresh: bool = False) -> Routed:
        """Ask again, after this pod has refused: ``exclude=[routed.pod]`` if the connection was refused, ``fresh=True``
        if it says that the user is another pod's.

        Raises what ``AsyncRouter.route`` does.
        """
        return await _route(
            self.router,
            (self.namespace, self.uid, self.service),
            self._terms,
            exclude=exclude,
            fresh=fresh,
        )


async def _route(
    router: AsyncRouter,
    link: tuple[str, str, str],
    terms: tuple[int | None, Policy | None],
    *,
    exclude: Collection[int] = (),
    fresh: bool = False,
) -> Routed:
    namespace, uid, service = link
    persist_seconds, policy = terms
    found = await router.route(
        namespace,
        uid,
        service,
        persist_seconds=persist_seconds,
        policy=policy,
        exclude=exclude,
        fresh=fresh,
    )
    return Routed(uid, found, router, namespace, service, terms)


class SfrouteMiddleware:
    """Routes the user of each HTTP request and WebSocket before the application is called.

    A request that names no user, or one that cannot be a uid, is answered with 400; one whose user no pod can take, or
    for whom the store cannot be asked, with 503. WebSockets are refused with the same answers where the server can send
    them (extension ``websocket.http.response``), else closed with 1008 and 1013. No answer holds the uid.

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
        exempt: paths that are for no user, such as ``/healthz``: they are passed on as they come.
        required: False passes requests that name no user on, with ``scope["sfroute"]`` None.
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
        exempt: Collection[str] = (),
        required: bool = True,
    ) -> None:
        check_service_names(namespace, service)
        check_policy(policy)
        if persist_seconds is not None:
            check_persist_seconds(persist_seconds)
        if not callable(uid):
            raise InvalidArgument("uid must be a function from the scope to the uid")
        if isinstance(exempt, str):
            raise InvalidArgument("exempt must be a collection of paths, not one str")
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
        self._uid = uid
        self._terms = persist_seconds, policy
        self._exempt = frozenset(exempt)
        self._required = required
        self._router: AsyncRouter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope (ASGI)."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["type"] in ("http", "websocket") and scope["path"] not in self._exempt:
            refusal = await self._find(scope)
            if refusal is not None:
                await _refuse(scope, send, *refusal)
                return
        await self.app(scope, receive, send)

    async def _find(self, scope: Scope) -> tuple[int, str] | None:
        """Put the user's pod into the scope, or tell with which status and words to refuse."""
        uid = self._uid(scope)
        if not uid:
            if not self._required:
                scope["sfroute"] = None
                return None
            where = f": {self._uid} is missing, or ambiguous" if _has_words(self._uid) else ""
            return 400, f"the request does not say which user it is for{where}"
        if self._router is None:
            self._router = self._make_router()
        link = (self._namespace, uid, self._service)
        try:
            scope["sfroute"] = await _route(self._router, link, self._terms)
        except InvalidArgument:  # everything but the uid was checked when this was set up
            return 400, "the request names a user who cannot exist"
        except NoRoutablePod:
            return 503, "nobody can serve this user at the moment; try again soon"
        except (StoreError, RouterClosed) as error:
            if isinstance(error, StoreError) and not error.retryable:
                # It will not pass by itself, so somebody must be told.
                _log.error("a user could not be routed: %s", error)
            return 503, "the user's place cannot be looked up at the moment; try again soon"
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
                # Closed before the server is told: it may end the process at once.
                await self._close(router)
            await send(message)

        try:
            try:
                await self.app(scope, hear, say)
            except Exception:
                if said:
                    raise
                # How an application says that it knows no lifespan (ASGI, "Lifespan Protocol").
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


def _has_words(extractor: object) -> bool:
    return isinstance(extractor, (HeaderUid, CookieUid, PathUid))


async def _refuse(scope: Scope, send: Send, status: int, words: str) -> None:
    """Answer an HTTP request or the handshake of a WebSocket."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            code = POLICY_VIOLATION if status == 400 else TRY_AGAIN_LATER
            await send({"type": "websocket.close", "code": code, "reason": words})
            return
        kind = "websocket.http.response"
    body = f"{words}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
