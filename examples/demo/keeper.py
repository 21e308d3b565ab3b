"""A pod of the scene of the wipe: it claims the users who were sent to it, and tells in the end whom it lost."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from child import Director
from wipe import HEARTBEAT_SECONDS, LEASE_SECONDS, everybody

from sfroute import AsyncPodAgent, AsyncRouter

_CLAIMS_AT_ONCE = 100


async def _run(url: str, namespace: str, service: str, pod: int) -> None:
    director = Director()
    told: Counter[str] = Counter()

    async def listen() -> None:
        async for event in agent.events():
            told[type(event).__name__] += 1

    async with (
        AsyncRouter.from_url(url) as router,
        AsyncPodAgent(
            router, namespace, service, pod, heartbeat=HEARTBEAT_SECONDS, lease=LEASE_SECONDS
        ) as agent,
    ):
        listening = asyncio.create_task(listen())
        director.report("ready")
        await director.wait_for("welcome")
        found = await router.batch_get_linked_pod(namespace, everybody(), service)
        mine = found.get(pod, [])
        for start in range(0, len(mine), _CLAIMS_AT_ONCE):
            some = mine[start : start + _CLAIMS_AT_ONCE]
            await asyncio.gather(*(agent.accept(uid) for uid in some))
        director.report("welcomed", users=len(mine))
        await director.wait_for("count")
        director.report("counted", owned=sum(map(agent.owns, mine)), lost=told["Lost"])
        await director.wait_for("stop")
    await listening


if __name__ == "__main__":
    asyncio.run(_run(**json.loads(sys.argv[1])))
