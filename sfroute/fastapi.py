"""FastAPI dependencies: what ``sfroute.asgi``'s middleware has found, as a parameter of a path operation.

::

    from sfroute.fastapi import CurrentRouted

    @app.get("/where")
    async def where(routed: CurrentRouted) -> int:
        return routed.pod

At a pod ``CurrentClaimed`` is the same for ``PodMiddleware``. Needs FastAPI to be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

from fastapi import Depends
from starlette.requests import HTTPConnection

from .asgi import Claimed, Routed
from .errors import ConfigError

__all__ = ["CurrentClaimed", "CurrentRouted", "claimed", "routed"]


def routed(key: str = "sfroute") -> Callable[[HTTPConnection], Routed]:
    """``Annotated[Routed, Depends(routed("chat"))]``: of the ``SfrouteMiddleware`` with that key.

    Works for requests and WebSockets. Raises ``ConfigError`` where there is none: the middleware is not installed, or
    the path is exempt, or names no user and need not.
    """

    def find(connection: HTTPConnection) -> Routed:
        found = connection.scope.get(key)
        if not isinstance(found, Routed):
            raise ConfigError(f"no SfrouteMiddleware with the key {key!r} has routed this request")
        return found

    return find


def claimed(key: str = "sfroute") -> Callable[[HTTPConnection], Claimed]:
    """``Annotated[Claimed, Depends(claimed())]``: of the ``PodMiddleware`` with that key; as ``routed``."""

    def find(connection: HTTPConnection) -> Claimed:
        found = connection.scope.get(key)
        if not isinstance(found, Claimed):
            raise ConfigError(f"no PodMiddleware with the key {key!r} has claimed this user")
        return found

    return find


CurrentRouted: TypeAlias = Annotated[Routed, Depends(routed())]
"""The user's place, from the middleware with the usual key."""
CurrentClaimed: TypeAlias = Annotated[Claimed, Depends(claimed())]
"""The user and the claim, from the middleware with the usual key."""
