"""A gateway process that shows its metrics to Prometheus and does what it is told, in numbers known beforehand.

    python tests/dashboards/driven_gateway.py URL

First it prints the port of ``/metrics``. Then it reads the name of a phase from each line of its input, and prints what
that phase has done, as JSON. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, start_http_server

from sfroute import (
    AsyncRouter,
    CacheConfig,
    NoRoutablePod,
    PlacementConfig,
    RouterConfig,
    TelemetryConfig,
)

NAMESPACE, SERVICE = "shown", "chat"
LINKED = [f"linked-{number}" for number in range(40)]
"""Linked to pod 1, and known to the cache after ``read``."""
READS_EACH = 9
JOINING = 16
PLACED = 30
MAX_ENTRIES = 512
QUEUE = 256

Phase = Callable[[], Awaitable[dict[str, int]]]


def make_config(provider: MeterProvider) -> RouterConfig:
    """Nothing ages, and what is to overflow is small."""
    return RouterConfig(
        cache=CacheConfig(max_age=600, max_entries=MAX_ENTRIES, heartbeat=0.2),
        placement=PlacementConfig(pod_view_max_age=600),
        telemetry=TelemetryConfig(meter_provider=provider, queue_size=QUEUE),
    )


class Driver:
    """The phases."""

    def __init__(self, router: AsyncRouter) -> None:
        self.router = router
        self.phases: dict[str, Phase] = {
            "link": self.link,
            "read": self.read,
            "write": self.write,
            "place": self.place,
            "refuse": self.refuse,
            "fill": self.fill,
            "lose": self.lose,
            "overflow": self.overflow,
        }

    async def pod_of(self, uid: str) -> int | None:
        return await self.router.get_linked_pod(NAMESPACE, uid, SERVICE)

    async def link(self) -> dict[str, int]:
        """Writes, which touch no counter of the cache."""
        for uid in LINKED:
            await self.router.set_linked_pod(NAMESPACE, uid, SERVICE, 1)
        return {"set_linked_pod": len(LINKED)}

    async def read(self) -> dict[str, int]:
        """Misses, hits, and look-ups that join one under way."""
        for uid in LINKED:
            for _ in range(1 + READS_EACH):
                assert await self.pod_of(uid) == 1
        together = [self.pod_of("nobody") for _ in range(1 + JOINING)]
        assert set(await asyncio.gather(*together)) == {None}
        return {"miss": len(LINKED) + 1, "hit": len(LINKED) * READS_EACH, "joined": JOINING}

    async def write(self) -> dict[str, int]:
        """Writes to links that the cache holds: the servers push them back."""
        for uid in LINKED:
            await self.router.set_linked_pod(NAMESPACE, uid, SERVICE, 1)
        for uid in LINKED:
            assert await self.pod_of(uid) == 1
        return {"written": len(LINKED)}

    async def place(self) -> dict[str, int]:
        """Placements, and moves off a pod that has stopped."""
        for pod in range(3):
            await self.router.set_service_state(NAMESPACE, SERVICE, pod, "Running")
        uids = [f"placed-{number}" for number in range(PLACED)]
        pods = Counter([(await self.router.route(NAMESPACE, uid, SERVICE)).pod for uid in uids])
        pod = pods.most_common(1)[0][0]
        await self.router.set_service_state(NAMESPACE, SERVICE, pod, "Stopped")
        await self.router.get_pods(NAMESPACE, SERVICE, fresh=True)
        for uid in uids:
            assert (await self.router.route(NAMESPACE, uid, SERVICE)).pod != pod
        return {"placed": PLACED, "moved": pods[pod]}

    async def refuse(self) -> dict[str, int]:
        """Errors: a service without pods."""
        refused = 0
        for uid in LINKED:
            try:
                await self.router.route(NAMESPACE, uid, "nowhere")
            except NoRoutablePod:
                refused += 1
        return {"NoRoutablePod": refused}

    async def fill(self) -> dict[str, int]:
        """More links than the cache may hold, then the known ones again: the newest."""
        for number in range(MAX_ENTRIES):
            assert await self.pod_of(f"filling-{number}") is None
        for uid in LINKED:
            assert await self.pod_of(uid) == 1
        return {"evicted": self.router.stats().cache.evictions}

    async def lose(self) -> dict[str, int]:
        """A primary has died: its links are answered from memory, a write waits for its successor."""
        lanes = self.router.stats().lanes
        while all(lane.healthy for lane in lanes):
            await asyncio.sleep(0.01)
            lanes = self.router.stats().lanes
        for uid in LINKED:
            assert await self.pod_of(uid) == 1
        stale = self.router.stats().cache.stale
        for uid in LINKED:
            await self.router.set_linked_pod(NAMESPACE, uid, SERVICE, 1)
        return {
            "written": len(LINKED),
            "stale": stale,
            "lost": sum(not lane.healthy for lane in lanes),
        }

    async def overflow(self) -> dict[str, int]:
        """More calls at once than telemetry has room for."""
        uids = [f"overflowing-{number}" for number in range(16 * QUEUE)]
        await asyncio.gather(*(self.pod_of(uid) for uid in uids))
        return {"dropped": self.router.stats().spans_dropped}


async def main(url: str) -> None:
    registry = CollectorRegistry()
    provider = MeterProvider(
        metric_readers=[PrometheusMetricReader(registry=registry)], shutdown_on_exit=False
    )
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        async with AsyncRouter.from_url(url, config=make_config(provider)) as router:
            driver = Driver(router)
            print(server.server_port, flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                print(json.dumps(await driver.phases[line.strip()]()), flush=True)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        provider.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
