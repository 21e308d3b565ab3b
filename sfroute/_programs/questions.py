"""What ``sfroute serve`` is asked, and what it answers: pure, without I/O.

Two forms of the question:

- ``/decide``: the proxy wrote this URL. Its query holds ``exclude``, ``refused``, ``wait`` and ``fresh``. The
  user's own URL, which may hold the uid, is in the header that the option ``--uri-header`` names.
- ``/decide/...``: the user's own path and query follow, as Envoy's ``ext_authz`` sends them. The client wrote the
  query, so nothing but the uid is read from it.

Before the user's path come the names that no option gives: ``/decide/<namespace>/<service>/...``.

Clients can send any header. No header that begins with ``X-Sfroute-`` is read.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar
from urllib.parse import parse_qsl, quote, unquote

from .._contract.keys import check_persist_seconds, check_service_names
from .._web.requests import Scope, UidExtractor, is_ours, uid_from
from ..errors import InvalidArgument
from ..types import Link

__all__ = [
    "PATH",
    "BadAddress",
    "BadQuestion",
    "Mode",
    "Question",
    "Rules",
    "Upstream",
    "headers_of",
    "read_question",
]

Mode = Literal["http", "nginx"]
_T = TypeVar("_T")

PATH: Final = b"/decide"
MAX_WAIT: Final = 60.0
MAX_EXCLUDED: Final = 1000

_FIELDS: Final = frozenset({"pod", "namespace", "service", "address"})
_ALONE: Final = "{address}"
_NO_PART_OF_AN_ADDRESS: Final = frozenset("?#@\\")


class BadQuestion(Exception):
    """The proxy asks what cannot be answered: its configuration is wrong. The text says why."""


class BadAddress(Exception):
    """The template and the address that the pod has published make no URL together."""


class Upstream:
    """The template of ``X-Sfroute-Upstream``, such as ``http://chat-{pod}.chat:8080``.

    Fields: ``{pod}``, ``{namespace}``, ``{service}``, and ``{address}``, which the pod has published. A pod may publish
    anything that is printable, such as ``http://10.0.3.7:80``. With text around it, ``{address}`` must be a host, or a
    host and a port: it would become ``http://http://...`` otherwise. Alone, it may have a scheme and a path.
    """

    def __init__(self, template: str) -> None:
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise InvalidArgument(f"the upstream template cannot be read: {error}") from None
        names = [name for _, name, _, _ in parts if name is not None]
        if not all(name in _FIELDS for name in names) or any(a or b for _, _, a, b in parts):
            raise InvalidArgument(
                f"the upstream template may hold {', '.join(f'{{{n}}}' for n in sorted(_FIELDS))}, and no other braces"
            )
        if not {"pod", "address"} & set(names):
            raise InvalidArgument("the upstream template must hold {pod} or {address}")
        if not template.isascii() or not template.isprintable() or " " in template:
            raise InvalidArgument("the upstream template must be printable ASCII without spaces")
        self._template = template
        self.needs_address = "address" in names

    def __call__(self, namespace: str, service: str, pod: int, address: str | None) -> bytes:
        """The upstream of a pod. Raises ``BadAddress``."""
        if address is not None and self.needs_address:
            alone = self._template == _ALONE
            if _NO_PART_OF_AN_ADDRESS & set(address) or ("/" in address and not alone):
                raise BadAddress
        return self._template.format(
            pod=pod,
            namespace=quote(namespace, safe=""),
            service=quote(service, safe=""),
            address=quote(address or "", safe=":[]/"),
        ).encode("ascii")


@dataclass(frozen=True)
class Rules:
    """How questions are read and answered. Raises ``InvalidArgument``.

    Attributes:
        uid: where requests name their user.
        namespace: the namespace; None: the question's path names it.
        service: the service; None: the question's path names it.
        uri_header: the header in which the proxy passes the user's own URL on. It must set it for each request, or
            clients could.
        upstream: the template of ``X-Sfroute-Upstream``; None: no such header.
        persist_seconds: as for ``route()``.
        mode: ``"nginx"``: no status but 200, 401 and 403, which are all that ``auth_request`` can pass on.
    """

    uid: UidExtractor
    namespace: str | None = None
    service: str | None = None
    uri_header: str | None = None
    upstream: Upstream | None = None
    persist_seconds: int | None = None
    mode: Mode = "http"
    _uri_header: bytes = field(init=False, repr=False, default=b"")

    def __post_init__(self) -> None:
        uid_from(self.uid)
        check_service_names(self.namespace or "n", self.service or "s")
        if self.persist_seconds is not None:
            check_persist_seconds(self.persist_seconds)
        if self.uri_header is not None:
            name = self.uri_header.lower().encode()
            if is_ours(name):
                raise InvalidArgument("the URI must not come from an X-Sfroute header")
            object.__setattr__(self, "_uri_header", name)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        namespace: the namespace.
        service: the service.
        uid: the user. None if the request names none.
        exclude: pods not to use.
        wait: seconds to wait for a pod that can take the user.
        fresh: ask the store, whatever is cached: a pod said that the user is not there.
        refused: the excluded pods did not take the connection, so that new users avoid them, too.
    """

    namespace: str
    service: str
    uid: str | None = field(repr=False)
    exclude: frozenset[int] = frozenset()
    wait: float = 0.0
    fresh: bool = False
    refused: bool = False


def read_question(scope: Scope, rules: Rules) -> Question:
    """The question of a request to ``/decide`` or below. Raises ``BadQuestion``."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    rest = raw[len(PATH) :]
    namespace, rest = _named(rules.namespace, rest, "namespace")
    service, rest = _named(rules.service, rest, "service")
    try:
        check_service_names(namespace, service)
    except InvalidArgument as error:
        raise BadQuestion(str(error)) from None
    headers = [one for one in scope["headers"] if not is_ours(one[0])]
    if rest:
        return Question(
            namespace,
            service,
            rules.uid(_user_scope(rest, scope["query_string"], headers)),
        )
    path, query = b"/", scope["query_string"]
    if rules._uri_header:
        path, query = _own_url(headers, rules._uri_header)
    uid = rules.uid(_user_scope(path, query, headers))
    if not scope["query_string"]:
        return Question(namespace, service, uid)
    return Question(namespace, service, uid, *_terms(scope["query_string"]))


def _named(given: str | None, rest: bytes, what: str) -> tuple[str, bytes]:
    if given is not None:
        return given, rest
    segment, slash, after = rest[1:].partition(b"/")
    try:
        name = unquote(segment.decode("ascii"), errors="strict")
    except UnicodeDecodeError:
        raise BadQuestion(f"the {what} in the path is no text") from None
    if not name:
        raise BadQuestion(f"the path must name the {what}, because no option does")
    return name, slash + after


def _own_url(headers: list[tuple[bytes, bytes]], name: bytes) -> tuple[bytes, bytes]:
    values = {value for key, value in headers if key.lower() == name}
    if len(values) != 1:
        raise BadQuestion(
            f"the header {name.decode()} must hold the user's URL; it is missing, or there are several"
        )
    url = values.pop()
    if url.startswith((b"http://", b"https://")):
        _, slash, path = url.partition(b"://")[2].partition(b"/")
        url = slash + path
    path, _, query = url.partition(b"#")[0].partition(b"?")
    return path or b"/", query


def _user_scope(raw_path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]) -> Scope:
    """What an extractor looks at: the user's own request."""
    return {
        "type": "http",
        "path": raw_path.decode("latin-1"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
    }


def _terms(query: bytes) -> tuple[frozenset[int], float, bool, bool]:
    exclude: set[int] = set()
    wait, fresh, refused = 0.0, False, False
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "exclude":
            # A proxy that has no pod to exclude may leave it empty.
            exclude.update(_read(_pod, one, "exclude") for one in value.split(",") if one)
        elif name == "wait" and value:
            wait = _read(_seconds, value, "wait")
        elif name == "fresh":
            fresh = value not in ("", "0")
        elif name == "refused":
            refused = value == "1"  # whatever else a proxy writes for what it does not know
    if len(exclude) > MAX_EXCLUDED:
        raise BadQuestion(f"exclude must not name more than {MAX_EXCLUDED} pods")
    return frozenset(exclude), wait, fresh, refused


def _read(read: Callable[[str], _T], value: str, name: str) -> _T:
    try:
        return read(value)
    except ValueError as error:
        raise BadQuestion(f"{name} {error}") from None


def _pod(value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise ValueError("must be pod ids, separated by commas")
    return int(value)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_WAIT:
        raise ValueError(f"must be seconds from 0 to {MAX_WAIT:g}")
    return seconds


def headers_of(link: Link, uid: str, upstream: bytes | None) -> list[tuple[bytes, bytes]]:
    """The headers of a decision. The uid is percent-encoded, as pods read it (``ForwardedUid``)."""
    headers = [
        (b"x-sfroute-pod", b"%d" % link.pod),
        (b"x-sfroute-source", link.source.encode()),
        (b"x-sfroute-uid", quote(uid, safe="").encode()),
    ]
    if upstream is not None:
        headers.append((b"x-sfroute-upstream", upstream))
    if link.stale:
        headers.append((b"x-sfroute-stale", b"true"))
    return headers
