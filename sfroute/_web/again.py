"""Routing again, after a pod has turned a user away: for the middleware of ASGI and of WSGI.

One deadline holds for all of it: asking whether the pod has only moved, and routing.
"""

from __future__ import annotations

from .._fronts.router import AsyncRouter
from .._operations.restarted import is_elsewhere
from .._operations.terms import RouteTerms
from .._pods.policies import Policy
from ..types import Link

__all__ = ["route_again"]


async def route_again(
    router: AsyncRouter,
    link: tuple[str, str, str],
    terms: tuple[int | None, Policy | None],
    found: Link,
    *,
    exclude: frozenset[int] = frozenset(),
    fresh: bool = False,
    unless_elsewhere: bool = False,
    report: bool = False,
) -> Link:
    """The pod of a user whom the pod of ``found`` has turned away.

    ``unless_elsewhere``: that pod is excluded only if it does not say another address by now; ``report``: and reported.
    ``link``: namespace, uid and service. ``terms``: ``persist_seconds`` and ``policy``, checked.

    Raises what ``AsyncRouter.route`` raises, and what ``is_elsewhere`` does.
    """
    namespace, _, service = link
    engine = router._inside.engine
    retry, placement = engine.config.retry, engine.config.placement
    give_up = engine.clock() + retry.deadline
    if unless_elsewhere:
        if await is_elsewhere(engine, link, found, give_up):
            exclude, fresh = exclude - {found.pod}, True
        elif report:
            router.report_failure(namespace, service, found.pod)
    persist_seconds, policy = terms
    if persist_seconds is None:
        persist_seconds = placement.persist_seconds
    return await router._route_by(
        give_up, link, RouteTerms(persist_seconds, policy, exclude, fresh)
    )
