"""The course of the demo: cluster, pods and gateways start, a primary dies, and everybody is asked what they saw; then
pods leave.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Final, Protocol

from ...embedded import LocalCluster
from ...keys import state_key
from ...router import AsyncRouter
from .child import Child
from .departures import SERVICE as SECOND_SERVICE
from .departures import depart
from .report import GatewayReport, Outcome, PodReport
from .traffic import Traffic

__all__ = ["Audience", "direct"]

NAMESPACE: Final = "demo"
SERVICE: Final = "chat"
PODS: Final = 3
GATEWAYS: Final = ("asyncio", "threads")
_LOOK_SECONDS: Final = 0.02
"""How often the director looks whether the replica has taken over."""


class Audience(Protocol):
    """Who is told what happens."""

    def say(self, text: str) -> None:
        """Something happened."""

    def routed(self, requests: int) -> None:
        """So many requests have been dealt with."""


async def direct(traffic: Traffic, audience: Audience) -> Outcome:
    """Play the demo to its end; nothing that it started is left, however it ends.

    Raises:
        ChildFailed: a process ended before its time.
        SfrouteError: the cluster did not start or did not answer.
    """
    began = time.monotonic()
    async with LocalCluster(primaries=3, replicas_per_primary=1) as cluster:
        took = time.monotonic() - began
        audience.say(
            f"{cluster.server_name.capitalize()} {cluster.server_version}: "
            f"3 primaries and 3 replicas, up in {took:.1f} s"
        )
        common = {"url": cluster.url, "namespace": NAMESPACE, "service": SERVICE}
        async with AsyncExitStack() as stack:
            pods = [
                await stack.enter_async_context(
                    _child(
                        f"pod {ordinal}",
                        f"{__package__}.pod",
                        {**common, "ordinal": ordinal, "capacity": traffic.users},
                    )
                )
                for ordinal in range(PODS)
            ]
            await _all_ready(pods)
            audience.say(f"{PODS} pods of the service {SERVICE!r} send heartbeats")
            gateways = [
                await stack.enter_async_context(
                    _child(
                        kind,
                        f"{__package__}.gateway",
                        {
                            **common,
                            "kind": kind,
                            "gateway": number,
                            "gateways": len(GATEWAYS),
                            "traffic": asdict(traffic),
                        },
                    )
                )
                for number, kind in enumerate(GATEWAYS)
            ]
            await _all_ready(gateways)
            audience.say(
                f"2 gateways, on asyncio and on threads, route {traffic.requests:,} requests of "
                f"{traffic.users:,} users, about {traffic.rate:,.0f} a second"
            )
            stage = _Stage(cluster, traffic, audience)
            gateway_reports = await stage.play(gateways)
            pod_reports = [
                PodReport.parse(ordinal, await _last_words(pod)) for ordinal, pod in enumerate(pods)
            ]
        async with AsyncRouter.from_url(cluster.url) as router:
            links = await router.batch_get_linked_pod(NAMESPACE, traffic.uids(), SERVICE)
        async with AsyncExitStack() as stack:
            leaving = [
                await stack.enter_async_context(
                    _child(
                        f"pod {number}",
                        f"{__package__}.resident",
                        {**common, "service": SECOND_SERVICE, "pod": number},
                    )
                )
                for number in range(4)
            ]
            await _all_ready(leaving)
            departures = await depart(cluster.url, leaving, audience.say)
        return Outcome(
            expected=traffic.requests,
            gateways=gateway_reports,
            pods=pod_reports,
            links=links,
            killed=stage.killed,
            killed_at=stage.killed_at,
            recovered_at=stage.recovered_at,
            departures=departures,
        )


class _Stage:
    """The requests, and the accident in the middle of them."""

    def __init__(self, cluster: LocalCluster, traffic: Traffic, audience: Audience) -> None:
        self._cluster = cluster
        self._traffic = traffic
        self._audience = audience
        self._done: dict[str, int] = {}
        self._half = asyncio.Event()
        self.killed = ""
        self.killed_at = self.recovered_at = 0.0

    async def play(self, gateways: list[Child]) -> list[GatewayReport]:
        """Let the gateways begin; return what they report in the end."""
        for gateway in gateways:
            gateway.tell("go")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._kill_a_primary())
                listening = [group.create_task(self._listen(gateway)) for gateway in gateways]
        except ExceptionGroup as failures:
            # The first ended the others; it is what the caller can understand.
            raise failures.exceptions[0] from None
        return [task.result() for task in listening]

    async def _listen(self, gateway: Child) -> GatewayReport:
        while (heard := await gateway.hear())["event"] != "served":
            self._progress(gateway, heard["done"])
        report = GatewayReport.parse(gateway.name, heard)
        self._progress(gateway, len(report.answers) + len(report.errors))
        return report

    def _progress(self, gateway: Child, done: int) -> None:
        self._done[gateway.name] = done
        total = sum(self._done.values())
        self._audience.routed(total)
        if total >= self._traffic.requests / 2:
            self._half.set()

    async def _kill_a_primary(self) -> None:
        await self._half.wait()
        # The one that the pods' heartbeats go to, so that they meet the accident too.
        key = state_key(NAMESPACE, SERVICE)
        node = await asyncio.to_thread(self._cluster.primary_of, key)
        self.killed = f"{node.address[0]}:{node.address[1]}"
        self.killed_at = time.monotonic()
        await asyncio.to_thread(self._cluster.kill, node)
        self._audience.say(f"kill -9: primary {self.killed} is gone")
        # No server tells when it has been promoted.
        while await asyncio.to_thread(self._cluster.primary_of, key) is node:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        self.recovered_at = time.monotonic()
        self._audience.say(
            f"its replica has taken over after {self.recovered_at - self.killed_at:.1f} s"
        )


@asynccontextmanager
async def _child(name: str, module: str, options: dict[str, object]) -> AsyncIterator[Child]:
    child = await Child.start(name, module, options)
    try:
        yield child
    finally:
        await child.stop()


async def _all_ready(children: list[Child]) -> None:
    for child in children:
        await child.hear()


async def _last_words(pod: Child) -> dict[str, object]:
    pod.tell("stop")
    return await pod.hear()
