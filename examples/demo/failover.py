"""The scene of the failover: gateways route requests to pods, and a primary is killed in the middle."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Final

from child import Child, children
from director import NAMESPACE, Audience
from failover_result import FailoverResult, GatewayReport, PodReport
from traffic import Traffic

from sfroute import AsyncRouter
from sfroute._contract.keys import state_key
from sfroute.embedded import LocalCluster

__all__ = ["Failover"]

SERVICE: Final = "chat"
PODS: Final = 3
GATEWAYS: Final = ("asyncio", "threads")
_LOOK_SECONDS: Final = 0.02
"""How often the scene looks whether the replica has taken over."""
_WHOLE_SECONDS: Final = 60.0
"""How long the scene waits until the killed node is a replica that acknowledges."""


@dataclass(frozen=True, slots=True)
class Failover:
    """Two gateways route all requests of ``traffic`` to three pods; a primary is killed after half of them.

    It comes back once its replica has taken over.
    """

    traffic: Traffic
    name: str = "failover"

    async def play(self, cluster: LocalCluster, audience: Audience) -> FailoverResult:
        """Play it.

        Raises:
            ChildFailed: a process ended before its time.
            SfrouteError: the cluster did not answer.
        """
        traffic = self.traffic
        common = {"url": cluster.url, "namespace": NAMESPACE, "service": SERVICE}
        pod_options = {
            f"pod {ordinal}": {**common, "ordinal": ordinal, "capacity": traffic.users}
            for ordinal in range(PODS)
        }
        gateway_options = {
            kind: {
                **common,
                "kind": kind,
                "gateway": number,
                "gateways": len(GATEWAYS),
                "traffic": asdict(traffic),
            }
            for number, kind in enumerate(GATEWAYS)
        }
        async with children("chat_pod.py", pod_options) as pods:
            audience.say(f"{PODS} pods of the service {SERVICE!r} send heartbeats")
            async with children("chat_gateway.py", gateway_options) as gateways:
                audience.say(
                    f"2 gateways, on asyncio and on threads, route {traffic.requests:,} requests of "
                    f"{traffic.users:,} users, about {traffic.rate:,.0f} a second"
                )
                stage = _Stage(cluster, traffic, audience)
                gateway_reports = await stage.play(gateways)
                pod_reports = [
                    PodReport.parse(ordinal, await _last_words(pod))
                    for ordinal, pod in enumerate(pods)
                ]
        async with AsyncRouter.from_url(cluster.url) as router:
            links = await router.batch_get_linked_pod(NAMESPACE, traffic.uids(), SERVICE)
        return FailoverResult(
            expected=traffic.requests,
            gateways=gateway_reports,
            pods=pod_reports,
            links=links,
            killed=stage.killed,
            killed_at=stage.killed_at,
            recovered_at=stage.recovered_at,
            whole_at=stage.whole_at,
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
        self.killed_at = self.recovered_at = self.whole_at = 0.0

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
        # Not before: an empty primary would take its data from the replica. New links wait for somebody to copy them.
        await asyncio.to_thread(self._cluster.restart, node)
        await asyncio.to_thread(self._cluster.wait_healthy, _WHOLE_SECONDS)
        self.whole_at = time.monotonic()
        self._audience.say(
            f"{self.killed} is back, as a replica, after {self.whole_at - self.killed_at:.1f} s"
        )


async def _last_words(pod: Child) -> dict[str, object]:
    pod.tell("stop")
    return await pod.hear()
