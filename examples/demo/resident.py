"""A pod of the scene of departures: its agent drains and stops when told to. The scene may also kill it."""

from __future__ import annotations

import asyncio
import json
import sys

from child import Director
from departures import HEARTBEAT_SECONDS, LEASE_SECONDS, SETTINGS

from sfroute import AsyncPodAgent, AsyncRouter

_DRAIN_SECONDS = 1.0


async def _run(url: str, namespace: str, service: str, pod: int) -> None:
    director = Director()
    async with (
        AsyncRouter.from_url(url, config=SETTINGS) as router,
        AsyncPodAgent(
            router, namespace, service, pod, heartbeat=HEARTBEAT_SECONDS, lease=LEASE_SECONDS
        ) as agent,
    ):
        director.report("ready")
        await director.wait_for("drain")
        director.report("draining", left=await agent.drain(_DRAIN_SECONDS))
        await director.wait_for("stop")
    director.report("stopped")


if __name__ == "__main__":
    asyncio.run(_run(**json.loads(sys.argv[1])))
