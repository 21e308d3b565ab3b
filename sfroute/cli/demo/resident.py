"""One pod of the demo's second act: an agent that drains and stops when told so, and may be killed."""

from __future__ import annotations

import asyncio
import json
import sys

from ...pods import AsyncPodAgent
from ...router import AsyncRouter
from .child import Director
from .departures import HEARTBEAT_SECONDS, SETTINGS

_DRAIN_SECONDS = 2.0


async def _run(url: str, namespace: str, service: str, pod: int) -> None:
    director = Director()
    async with (
        AsyncRouter.from_url(url, config=SETTINGS) as router,
        AsyncPodAgent(router, namespace, service, pod, heartbeat=HEARTBEAT_SECONDS) as agent,
    ):
        director.report("ready")
        await director.wait_for("drain")
        director.report("draining", left=await agent.drain(_DRAIN_SECONDS))
        await director.wait_for("stop")
    director.report("stopped")


if __name__ == "__main__":
    asyncio.run(_run(**json.loads(sys.argv[1])))
