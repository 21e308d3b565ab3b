"""Watching a service: what happens to its pods, from one pod view to the next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from .._contract.pod_states import changes
from ..errors import RouterClosed
from ..types import Pod, PodChange
from .engine import Engine

__all__ = ["pod_changes"]


async def pod_changes(
    engine: Engine, namespace: str, service: str
) -> AsyncGenerator[PodChange, None]:
    """Yield what happens to the pods of a service, beginning with those that are there. The names are checked.

    Ends when the router is closed. While the store cannot be reached nothing is reported.
    """
    try:
        views = (await engine.opened()).views
        before: Mapping[int, Pod] = {}
        gone_before: Mapping[int, str] = {}
        while True:
            view = await views.get_soon(namespace, service, fresh=True)
            if view is not None:
                for change in changes(before, after := view.pods, gone_before, view.gone):
                    yield change
                before, gone_before = after, view.gone
            if await views.closes_within(max(engine.config.placement.pod_view_max_age, 0.05)):
                return
    except RouterClosed:
        return
