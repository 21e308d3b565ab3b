"""Whether a pod that refuses a connection has only moved: it was restarted, and listens at another address now."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from .._fronts.router import AsyncRouter
from .._pods.views import PATIENCE
from ..errors import StoreUnavailable
from ..types import Link

__all__ = ["is_elsewhere"]


async def is_elsewhere(router: AsyncRouter, namespace: str, service: str, link: Link) -> bool:
    """True if the pod of ``link`` says another address than the link does.

    False if the store does not tell in a moment: then all there is to go by is that the connection was refused.
    """
    if link.address is None:
        return False
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            pods = await router.get_pods(namespace, service, fresh=True)
        now = pods.get(link.pod)
        return now is not None and now.address not in (None, link.address)
    return False
