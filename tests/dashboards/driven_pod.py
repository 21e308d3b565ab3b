"""A pod's process that shows its metrics to Prometheus and does what it is told, in numbers known beforehand.

    python tests/dashboards/driven_pod.py URL POD

It answers as ``driven_gateway.py`` does.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

from serving import NAMESPACE, Phase, serving

from sfroute import AsyncPodAgent, AsyncRouter, RouterConfig, TelemetryConfig

SERVICE = "room"
HELD = {1: 30, 2: 12}
"""Pod -> users that it takes at first. Each third user has a second connection."""
DRAIN_SECONDS = 3.0


class Driver:
    """The phases."""

    def __init__(self, agent: AsyncPodAgent) -> None:
        self._agent = agent
        self.load = 0.0
        self.phases: Mapping[str, Phase] = {"hold": self.hold, "drain": self.drain}

    async def hold(self) -> dict[str, int]:
        """Take users."""
        pod, connections = self._agent.pod, 0
        for number in range(HELD[pod]):
            for _ in range(1 + (number % 3 == 0)):
                await self._agent.session(f"held-{pod}-{number}").__aenter__()
                connections += 1
        self.load = float(HELD[pod])
        return {"claims": HELD[pod], "connections": connections}

    async def drain(self) -> dict[str, int]:
        """Ask users to leave; none does."""
        return {"left": await self._agent.drain(DRAIN_SECONDS)}


async def main(url: str, pod: int) -> None:
    async with serving() as served:
        config = RouterConfig(telemetry=TelemetryConfig(meter_provider=served.meters))
        async with AsyncRouter.from_url(url, config=config) as router:
            agent = AsyncPodAgent(
                router,
                NAMESPACE,
                SERVICE,
                pod,
                heartbeat=0.5,
                load=lambda: driver.load,
                confirm_every=0.3,
                max_claims=100,
                sigterm=False,
            )
            driver = Driver(agent)
            async with agent:
                await served.run(driver.phases)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
