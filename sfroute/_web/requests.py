"""Reads requests: where they name their user, which of them are for no user, and which headers are sfroute's own."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, cast
from urllib.parse import parse_qsl, quote, unquote

from .._contract.keys import check_persist_seconds, check_service_names
from .._pods.policies import Policy, check_policy
from ..errors import InvalidArgument

__all__ = [
    "ASGIApp",
    "CookieUid",
    "Exempt",
    "ForwardedUid",
    "HeaderUid",
    "Message",
    "Misdirected",
    "PathUid",
    "QueryUid",
    "Receive",
    "Scope",
    "Send",
    "UidExtractor",
    "check_key",
    "check_terms",
    "exemption",
    "has_words",
    "headers_for_pod",
    "is_ours",
    "is_preflight",
    "misdirected",
    "misdirection",
    "uid_from",
]

# As ASGI and its frameworks define them, `Any` included: other types would not fit theirs.
Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

UidExtractor: TypeAlias = Callable[[Scope], str | None]
"""Returns the uid for the scope of a request. None if the request names no user. Must not block."""

Exempt: TypeAlias = Collection[str] | Callable[[Scope], bool]
"""Requests for no user: paths (``"/healthz"``, or ``"/static/*"`` for all below it), or a function of the scope."""

Misdirected: TypeAlias = Literal["elsewhere", "left", "full"]
"""Why a pod does not serve a user: another one has them, it has stopped, or it takes nobody new."""

MISDIRECTED: Final = 421
"""What a pod answers when the user is another pod's (RFC 9110, 15.5.20)."""
OURS: Final = b"x-sfroute-"
UID_HEADER: Final = b"x-sfroute-uid"
SERVICE_HEADER: Final = b"x-sfroute-service"
OWNER_HEADER: Final = b"x-sfroute-owner"
LEFT_HEADER: Final = b"x-sfroute-left"
FULL_HEADER: Final = b"x-sfroute-full"

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""What may be the name of a header or a cookie (RFC 9110, 5.6.2)."""


def _values(scope: Scope, name: bytes) -> list[str]:
    # UTF-8, as in paths: a user has the same uid wherever it is read from. Invalid bytes become lone surrogates, which
    # no uid may contain.
    return [
        value.decode(errors="surrogateescape")
        for key, value in scope["headers"]
        if key.lower() == name
    ]


def _only(values: Collection[str]) -> str | None:
    """The value, if all are equal. Of two different ones, this program might use one and the pod the other."""
    distinct = set(values)
    return distinct.pop() or None if len(distinct) == 1 else None


def _check_token(kind: str, name: object) -> None:
    if not isinstance(name, str) or _TOKEN.fullmatch(name) is None:
        raise InvalidArgument(f"the name of a {kind} must be ASCII without spaces or separators")


@dataclass(frozen=True)
class HeaderUid:
    """The uid is the value of a header, in UTF-8. Two different values count as no user.

    Every client can send any header, so let the component that authenticates users set it.
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
    """The uid is the value of a cookie, in UTF-8, as sent but without surrounding quotes.

    Two different values count as no user.
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

    Percent-escapes are decoded, so a uid may contain a slash. The path is relative to ``root_path``.
    """

    template: str
    _segments: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        segments = tuple(str(self.template).split("/"))
        if segments[0] or segments.count("{uid}") != 1 or str(self.template).count("{") != 1:
            raise InvalidArgument(
                "the path template must begin with '/' and have exactly one segment '{uid}'"
            )
        object.__setattr__(self, "_segments", segments)

    def __call__(self, scope: Scope) -> str | None:
        """The uid of a request."""
        # Split before decoding: an escaped slash is not a separator.
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


@dataclass(frozen=True)
class QueryUid:
    """The uid is a parameter of the query, UTF-8, percent-decoded. Two that differ count as none.

    For WebSockets of browsers, which can set no header. Addresses get into logs: let the parameter be short-lived, or
    the logs leave it out.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidArgument("the name of a query parameter must be a non-empty str")

    def __call__(self, scope: Scope) -> str | None:
        """The uid of a request."""
        query = scope.get("query_string", b"").decode("latin-1")
        pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
        return _only([value for name, value in pairs if name == self.name])

    def __str__(self) -> str:
        return f"the query parameter {self.name}"


@dataclass(frozen=True)
class ForwardedUid:
    """For pods: the uid is what the gateway says in ``X-Sfroute-Uid`` (``Routed.headers``)."""

    def __call__(self, scope: Scope) -> str | None:
        """The uid of a request."""
        value = _only(_values(scope, UID_HEADER))
        try:
            return unquote(value, errors="strict") if value else None
        except UnicodeDecodeError:
            return None

    def __str__(self) -> str:
        return "the header X-Sfroute-Uid"


def _decoded(raw_path: bytes) -> list[str]:
    try:
        return [
            unquote(segment, errors="strict") for segment in raw_path.decode("ascii").split("/")
        ]
    except UnicodeDecodeError:  # no text: nobody's path
        return []


def has_words(extractor: object) -> bool:
    """True if its ``str()`` says where it looks."""
    return isinstance(extractor, (HeaderUid, CookieUid, PathUid, QueryUid, ForwardedUid))


def uid_from(uid: object) -> UidExtractor:
    """The argument ``uid`` of a gateway's middleware, checked."""
    if not callable(uid):
        raise InvalidArgument("uid must be a function from the scope to the uid")
    if isinstance(uid, ForwardedUid) or (isinstance(uid, HeaderUid) and is_ours(uid.name.encode())):
        raise InvalidArgument("uid must not come from X-Sfroute headers: clients could send them")
    return cast("UidExtractor", uid)


def check_terms(
    namespace: str, service: str, persist_seconds: int | None, policy: Policy | None
) -> None:
    """Raise ``InvalidArgument`` unless a gateway's middleware can route by these."""
    check_service_names(namespace, service)
    check_policy(policy)
    if persist_seconds is not None:
        check_persist_seconds(persist_seconds)


def check_key(key: object) -> None:
    """Raise ``InvalidArgument`` unless it can be a key of the scope."""
    if not isinstance(key, str) or not key:
        raise InvalidArgument("key must be a non-empty str")


def exemption(exempt: Exempt) -> Callable[[Scope], bool]:
    """The argument ``exempt`` as a function."""
    if callable(exempt):
        return exempt
    if isinstance(exempt, str):
        raise InvalidArgument("exempt must be a collection of paths, not one str")
    whole = frozenset(exempt)
    if not all(isinstance(path, str) and path.startswith("/") for path in whole):
        raise InvalidArgument("paths in exempt must begin with '/'")
    below = tuple(path[:-1] for path in whole if path.endswith("/*"))
    return lambda scope: scope["path"] in whole or scope["path"].startswith(below)


def is_preflight(scope: Scope) -> bool:
    """True if a browser asks whether it may send a request; it shows no header or cookie of the user then."""
    if scope.get("method") != "OPTIONS":
        return False
    names = {name.lower() for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


# The headers between gateways and pods


def is_ours(name: bytes) -> bool:
    """True for ``X-Sfroute-*``; also with underscores, which are hyphens to a WSGI program."""
    return name.lower().replace(b"_", b"-").startswith(OURS)


def headers_for_pod(uid: str) -> dict[str, str]:
    """What tells a pod whose request it is."""
    return {UID_HEADER.decode(): quote(uid, safe="")}


def misdirection(
    service: str, owner: int | None = None, *, left: bool = False, full: bool = False
) -> list[tuple[bytes, bytes]]:
    """The headers of a pod's 421; ``left``: the pod has stopped; ``full``: it takes nobody new."""
    headers = [(SERVICE_HEADER, quote(service, safe="").encode())]
    if left:
        headers.append((LEFT_HEADER, b"1"))
    if full:
        headers.append((FULL_HEADER, b"1"))
    if owner is not None:
        headers.append((OWNER_HEADER, b"%d" % owner))
    return headers


def misdirected(message: Message, service: str) -> Misdirected | None:
    """Whether an answer begins as the 421 of a pod of the service, and why."""
    if message["status"] != MISDIRECTED:
        return None
    said = {bytes(name).lower(): bytes(value) for name, value in message.get("headers", ())}
    if said.get(SERVICE_HEADER) != quote(service, safe="").encode():
        return None
    return "left" if LEFT_HEADER in said else "full" if FULL_HEADER in said else "elsewhere"
