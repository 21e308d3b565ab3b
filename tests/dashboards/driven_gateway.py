"""A gateway process that shows its metrics to Prometheus and does what it is told, in numbers known beforehand.

    python tests/dashboards/driven_gateway.py URL

First it prints the port of ``/metrics``. Then it reads the name of a phase from each line of its input, and prints what
that phase has done, as JSON. It ends with its input.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping

from driven_pod import SERVICE as HELD_SERVICE
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from serving import NAMESPACE, Phase, serving

from sfroute import (
    AsyncRouter,
    CacheConfig,
    NoRoutablePod,
    PlacementConfig,
    RouterConfig,
    TelemetryConfig,
)

SERVICE = "chat"
LINKED = [f"linked-{number}" for number in range(40)]
"""Linked to pod 1, and known to the cache after ``read``."""
READS_EACH = 9
JOINING = 16
PLACED = 30
MAX_ENTRIES = 512
QUEUE = 1024
TAKEN, REMOVED = 5, 3
"""Users of pod 1 of the other service whom an operator moves to pod 2, and whose links are removed."""
EVACUATED_A_SECOND = 8.0


class TraceIds(SpanProcessor):
    """The ids of all traces, which a back end would have."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_end(self, span: ReadableSpan) -> None:
        self.seen.add(span.context.trace_id)


def make_config(meters: MeterProvider, tracers: TracerProvider) -> RouterConfig:
    """Nothing ages, and what is to overflow is small."""
    return RouterConfig(
        cache=CacheConfig(max_age=600, max_entries=MAX_ENTRIES, heartbeat=0.2),
        placement=PlacementConfig(pod_view_max_age=600),
        telemetry=TelemetryConfig(
            meter_provider=meters, tracer_provider=tracers, hit_spans="off", queue_size=QUEUE
        ),
    )


class Driver:
    """The phases."""

    def __init__(self, router: AsyncRouter, traces: TraceIds) -> None:
        self.router = router
        self._traces = traces
        self.phases: Mapping[str, Phase] = {
            "link": self.link,
            "read": self.read,
            "write": self.write,
            "place": self.place,
            "refuse": self.refuse,
            "fill": self.fill,
            "lose": self.lose,
            "overflow": self.overflow,
            "look": self.look,
            "take": self.take,
            "evacuate": self.evacuate,
            "traces": self.traces,
        }

    async def pod_of(self, uid: str) -> int | None:
        return await self.router.get_linked_pod(NAMESPACE, uid, SERVICE)

    async def link(self) -> dict[str, int]:
        """Writes, which touch no counter of the cache."""
        for uid in LINKED:
            await self.router.set_linked_pod(NAMESPACE, uid, SERVICE, 1)
        return {"set_linked_pod": len(LINKED)}

    async def read(self) -> dict[str, int]:
        """Misses, hits, and lookups that join one under way."""
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
        uids = [f"overflowing-{number}" for number in range(4 * QUEUE)]
        await asyncio.gather(*(self.pod_of(uid) for uid in uids))
        return {"dropped": self.router.stats().spans_dropped}

    async def look(self) -> dict[str, int]:
        """The pods of the other service as they are now."""
        pods = await self.router.get_pods(NAMESPACE, HELD_SERVICE, fresh=True)
        return {pod.status: pod.id for pod in pods.values()}

    async def take(self) -> dict[str, int]:
        """What an operator does: users are moved, and links removed, under the eyes of the pod that holds them."""
        for number in range(TAKEN):
            await self.router.set_linked_pod(NAMESPACE, f"held-1-{number}", HELD_SERVICE, 2)
        for number in range(TAKEN, TAKEN + REMOVED):
            await self.router.remove_linked_pod(NAMESPACE, f"held-1-{number}", HELD_SERVICE)
        return {"moved": TAKEN, "removed": REMOVED}

    async def evacuate(self) -> dict[str, int]:
        """Move the users of pod 2 to pod 1, so slowly that scrapes see it."""
        moved = 0
        steps = self.router.evacuate(NAMESPACE, HELD_SERVICE, 2, rate=EVACUATED_A_SECOND)
        async for progress in steps:
            moved = progress.moved
            if not progress.done:
                await self.look()
        return {"moved": moved}

    async def traces(self) -> dict[str, int]:
        return {f"{number:032x}": 1 for number in self._traces.seen}


async def main(url: str) -> None:
    traces, tracers = TraceIds(), TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(traces)
    async with serving() as served:
        config = make_config(served.meters, tracers)
        async with AsyncRouter.from_url(url, config=config) as router:
            await served.run(Driver(router, traces).phases)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
