"""A pod that claims the users who were sent to it, hands over whom it is asked for, and tells whom it lost."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence

from child import Director

from sfroute import AsyncPodAgent, AsyncRouter, Handover

HEARTBEAT_SECONDS = 0.25
_CLAIMS_AT_ONCE = 100


async def _run(
    url: str, namespace: str, service: str, pod: int, lease: float, uids: Sequence[str]
) -> None:
    """``uids``: those whom it claims if they are sent to it."""
    director = Director()
    told: Counter[str] = Counter()
    mine: list[str] = []

    async def listen() -> None:
        async for event in agent.events():
            if isinstance(event, Handover):
                # A real pod saves the user first.
                told["Handover"] += await agent.release(event)
            else:
                told[type(event).__name__] += 1

    async with (
        AsyncRouter.from_url(url) as router,
        AsyncPodAgent(
            *(router, namespace, service, pod),
            heartbeat=HEARTBEAT_SECONDS,
            lease=lease,
            load=lambda: float(len(mine)),
        ) as agent,
    ):
        listening = asyncio.create_task(listen())
        director.report("ready")
        while (word := await director.next_word()) != "stop":
            if word == "welcome":
                found = await router.batch_get_linked_pod(namespace, uids, service)
                mine[:] = found.get(pod, [])
                for start in range(0, len(mine), _CLAIMS_AT_ONCE):
                    some = mine[start : start + _CLAIMS_AT_ONCE]
                    await asyncio.gather(*(agent.accept(uid) for uid in some))
                director.report("welcomed", users=len(mine))
            elif word == "count":
                owned = sum(map(agent.owns, mine))
                director.report("counted", owned=owned, lost=told["Lost"], asked=told["Handover"])
    await listening


if __name__ == "__main__":
    asyncio.run(_run(**json.loads(sys.argv[1])))
