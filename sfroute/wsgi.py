"""Middleware for WSGI applications, such as Flask and Django: ``environ["sfroute"].pod`` is the pod of the user.

::

    from flask import Flask
    from sfroute import Router
    from sfroute.asgi import HeaderUid
    from sfroute.wsgi import SfrouteMiddleware

    app = Flask(__name__)
    app.wsgi_app = SfrouteMiddleware(
        app.wsgi_app,
        router=lambda: Router.from_url("redis+cluster://10.0.0.1:6379"),
        namespace="production",
        service="chat",
        uid=HeaderUid("x-user-id"),
    )

``PodMiddleware`` is the pod's half. Both need nothing but WSGI (PEP 3333).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

from . import _forks as forks
from ._fronts.sync import Router
from ._fronts.sync_agent import PodAgent
from ._operations.terms import checked_exclude
from ._pods.policies import Policy
from ._web.again import route_again
from ._web.answers import (
    ANOTHER_PODS,
    LOOKUP_FAILED,
    answer_to,
    headers_of,
    no_user,
)
from ._web.environ import Environ, scope_of, without_ours
from ._web.requests import (
    MISDIRECTED,
    Exempt,
    ForwardedUid,
    UidExtractor,
    check_key,
    check_terms,
    exemption,
    headers_for_pod,
    is_preflight,
    misdirection,
    uid_from,
)
from .errors import (
    ConfigError,
    InvalidArgument,
    NoRoom,
    NoRoutablePod,
    RouterClosed,
    StoreError,
)
from .telemetry.logs import log_fields
from .types import Claim, Link

__all__ = ["Claimed", "PodMiddleware", "Routed", "SfrouteMiddleware", "WSGIApp"]

_log = logging.getLogger("sfroute.wsgi")

# As WSGI and its frameworks define it, `Any` included.
WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_FORWARDED = ForwardedUid()
_Refusal: TypeAlias = tuple[int, str, Iterable[tuple[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class Routed:
    """What ``environ["sfroute"]`` is at a gateway: where the user of this request is.

    Attributes:
        uid: the user. Not shown by ``repr()``, so that it does not get into logs by accident.
        link: the link, and where the answer came from.
        router: the router that gave it.
        namespace: the namespace.
        service: the service.
    """

    uid: str = field(repr=False)
    link: Link
    router: Router = field(repr=False)
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

    def reroute(self, *, exclude: Collection[int] = (), fresh: bool = False) -> Routed:
        """Ask again, after this pod has refused: ``exclude=[routed.pod]`` if the connection was refused, ``fresh=True``
        if it answered 421.

        The refusal is reported (``Router.report_failure``). A pod that was restarted at another address meanwhile is
        neither excluded nor reported: its new address is returned. While the store does not tell of pods, a user whom
        the refusing life of the pod had claimed is moved at once; for others the pods are asked for, until the last
        second of ``RetryConfig.deadline``, which is for the move (the last half of a deadline under two seconds). The
        deadline holds for the whole call.

        Raises what ``Router.route`` does; ``StoreUnavailable`` also if a later life of the pod has the user, and its
        address could not be read.
        """
        excluded = checked_exclude(exclude)
        link = self.router._call(
            lambda router: route_again(
                router,
                (self.namespace, self.uid, self.service),
                self._terms,
                self.link,
                exclude=excluded,
                fresh=fresh,
                unless_elsewhere=self.pod in excluded,
                report=True,
            )
        )
        return Routed(self.uid, link, self.router, self.namespace, self.service, self._terms)


@dataclass(frozen=True, slots=True)
class Claimed:
    """What ``environ["sfroute"]`` is at a pod: the user of this request, and the claim under which the pod serves them.

    Attributes:
        uid: the user. Not shown by ``repr()``, so that it does not get into logs by accident.
        claim: the claim; its ``fence`` goes into what is written for the user.
        agent: the agent that has it.
    """

    uid: str = field(repr=False)
    claim: Claim
    agent: PodAgent = field(repr=False)

    @property
    def owned(self) -> bool:
        """True as long as this pod may act for the user under this very claim. Asks nobody."""
        claim = self.agent.claim_of(self.uid)
        return claim is not None and claim.fence == self.claim.fence


class SfrouteMiddleware:
    """Routes the user of each request before the application is called.

    The answers are those of ``sfroute.asgi.SfrouteMiddleware``, but for a pod's 421: the application that forwards
    requests follows it itself, by ``Routed.reroute(fresh=True)``. Headers ``X-Sfroute-*`` of clients are removed.

    WSGI has no lifespan. A router is used as it is given, and closed by whoever made it. A function makes one in each
    process that serves a request, and the operating system closes it: right for servers that fork.

    Args:
        app: the application.
        router: a router, or a function that makes one for each process.
        namespace: the namespace.
        service: the service.
        uid: as for ``sfroute.asgi.SfrouteMiddleware``; what it is called with has the method, path, query and headers
            of the request as ASGI has them.
        persist_seconds: as for ``Router.route``.
        policy: as for ``Router.route``.
        exempt: as for ``sfroute.asgi.SfrouteMiddleware``.
        required: False passes requests that name no user on, with ``environ["sfroute"]`` None.
        key: where the environ holds the answer.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        router: Router | Callable[[], Router],
        namespace: str,
        service: str,
        uid: UidExtractor,
        persist_seconds: int | None = None,
        policy: Policy | None = None,
        exempt: Exempt = (),
        required: bool = True,
        key: str = "sfroute",
    ) -> None:
        check_terms(namespace, service, persist_seconds, policy)
        check_key(key)
        if not isinstance(router, Router) and not callable(router):
            raise InvalidArgument("router must be a Router, or a function that makes one")
        self.app = app
        self._given = router
        self._names = namespace, service
        self._uid = uid_from(uid)
        self._terms = persist_seconds, policy
        self._is_exempt = exemption(exempt)
        self._required = required
        self._key = key
        self._lock = threading.Lock()
        self._made: tuple[int, Router] | None = None

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve one request (WSGI)."""
        without_ours(environ)
        scope = scope_of(environ)
        if self._is_exempt(scope):
            return self.app(environ, start_response)
        uid = self._uid(scope)
        if uid:
            refusal = self._route(environ, uid)
        elif self._required and not is_preflight(scope):
            refusal = no_user(self._uid)
        else:
            environ[self._key] = refusal = None
        if refusal is not None:
            return _refuse(start_response, *refusal)
        return self.app(environ, start_response)

    def _route(self, environ: Environ, uid: str) -> tuple[int, str] | None:
        namespace, service = self._names
        persist_seconds, policy = self._terms
        try:
            router = self._router()
            link = router.route(
                namespace, uid, service, persist_seconds=persist_seconds, policy=policy
            )
        except (InvalidArgument, NoRoutablePod, StoreError, RouterClosed) as error:
            about = log_fields(namespace, service)
            return answer_to(error, _log, "a user could not be routed", about)
        environ[self._key] = Routed(uid, link, router, namespace, service, self._terms)
        return None

    def _router(self) -> Router:
        if isinstance(self._given, Router):
            return self._given
        # A child of a fork makes its own: it may have inherited a lock that is held.
        made = self._made
        if made is None or made[0] != os.getpid():
            with self._lock:
                made = self._made
                if made is None or made[0] != os.getpid():
                    made = self._made = os.getpid(), self._given()
        return made[1]


class PodMiddleware:
    """Lets only requests of this pod's users through; the others are answered with 421 and the owner.

    The rules are those of ``sfroute.asgi.PodMiddleware``. The application reads ``agent.events()`` itself, in a thread
    of its own. Start the agent in the process that serves the requests: in a child that was forked from it, every
    request raises ``ConfigError``.

    Args:
        app: the application.
        agent: the pod's agent, or a function that returns it.
        uid: where requests name their user; where the gateway says so, unless told otherwise.
        accept: False if the application claims users itself: whoever is not claimed is answered with 421.
        exempt: requests for no user, as for ``sfroute.asgi.SfrouteMiddleware``.
        required: False passes requests that name no user on, with ``environ["sfroute"]`` None.
        key: where the environ holds the claim.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        agent: PodAgent | Callable[[], PodAgent],
        uid: UidExtractor = _FORWARDED,
        accept: bool = True,
        exempt: Exempt = (),
        required: bool = True,
        key: str = "sfroute",
    ) -> None:
        if not isinstance(agent, PodAgent) and not callable(agent):
            raise InvalidArgument("agent must be a PodAgent, or a function that returns it")
        if not callable(uid):
            raise InvalidArgument("uid must be a function from the scope to the uid")
        check_key(key)
        self.app = app
        self._given = agent
        self._uid = uid
        self._accept = accept
        self._is_exempt = exemption(exempt)
        self._required = required
        self._key = key

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve one request (WSGI)."""
        scope = scope_of(environ)
        if self._is_exempt(scope):
            return self.app(environ, start_response)
        uid = self._uid(scope)
        if uid:
            agent = self._given if isinstance(self._given, PodAgent) else self._given()
            claim = self._claim(agent, uid)
            if not isinstance(claim, Claim):
                return _refuse(start_response, *claim)
            environ[self._key] = Claimed(uid, claim, agent)
        elif self._required and not is_preflight(scope):
            return _refuse(start_response, *no_user(self._uid))
        else:
            environ[self._key] = None
        return self.app(environ, start_response)

    def _claim(self, agent: PodAgent, uid: str) -> Claim | _Refusal:
        """The claim under which to serve the user, or what to answer."""
        # In a child that was forked without Python's hooks, nothing of the parent's may be taken for its own.
        forks.notice()
        ours = agent._agent
        ours._check_is_own()
        owner, full = None, False
        try:
            claim = agent.claim_of(uid)
            if claim is None and self._accept and not ours._has_left():
                claim = agent.accept(uid)
            if claim and not ours._has_left():
                # The store answers, but the lease has run out: gateways may be moving the user already.
                return claim if ours._lease_runs() else (*LOOKUP_FAILED, ())
            owner = claim.pod if claim is not None and not claim else None
        except NoRoom:
            full = True
        except ConfigError:  # the agent has said its last word, and takes nobody any more
            pass
        except (InvalidArgument, StoreError, RouterClosed) as error:
            return *answer_to(error, _log, "a user could not be claimed", ours._log_fields), ()
        headers = misdirection(ours._service, owner, left=ours._has_left(), full=full)
        return MISDIRECTED, ANOTHER_PODS, headers


def _refuse(
    start_response: Callable[..., Any],
    status: int,
    words: str,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> list[bytes]:
    body = f"{words}\n".encode()
    said = [
        (name.decode("latin-1").title(), value.decode("latin-1"))
        for name, value in (*headers_of(status, body), *headers)
    ]
    start_response(f"{status} {HTTPStatus(status).phrase}", said)
    return [body]
