"""Four gateways and five pods, all processes, while pods are killed, drained, stopped and started."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pytest
from support.sizes import size

from sfroute import DRAINING, AsyncPodAgent, AsyncRouter, Pod
from sfroute.embedded import LocalCluster

from .fleet import Fleet, Process

ROUTES = size(16_000, 50_000)
UIDS = 6000
GATEWAYS = ("asyncio", "asyncio", "asyncio", "threads")
PODS = 5
CLOCKS_OFF = (-86_400.0, 0.0, 1.5, -3.0, 3_600.0)
"""By how many seconds the clocks of pods, and of gateways, are ahead. The one that counts is the server's."""
HEARTBEAT = 0.5
LEASE = 1.0
POD_TIMEOUT = 2.0
"""How long after its last heartbeat a pod counts as dead: its lease and ``lease_margin``, or ``pod_timeout``."""
VIEW = 0.3
NOTICE = 2 * VIEW
"""After so many seconds no gateway goes by an older view: two periods of ``pod_view_max_age``."""
TROUBLE = 1.0
"""Seconds for which a gateway that waits for the store gives the pods more time, at most, on a busy machine."""
ENDS = 30.0
"""Seconds in which a gateway hears of the pods again, however busy the machine is."""
PROBES_EVERY = size(4, 1) * 0.05
"""Seconds between two looks at whether all gateways agree."""
SECONDS = 25.0
"""For which each gateway routes; the events take about as long."""


class Answer(NamedTuple):
    asked: float
    answered: float
    uid: str
    pod: int
    source: str
    pod_view: str


@dataclass
class Gone:
    """A time in which nobody may be routed to a pod, by a gateway that can read the pods.

    One that waited for them in vain moves nobody, and says so (``Link.pod_view``). ``since`` is counted from an instant
    at which the store had it already that the pod has gone: whatever view is used ``NOTICE`` later shows it, and that
    is no matter of how fast the machine is.
    """

    pod: int
    since: float
    until: float

    def broken_by(self, answers: list[Answer], *sources: str) -> list[Answer]:
        """The answers that name it all the same; those from ``sources``, if there are any."""
        return [
            answer
            for answer in answers
            if answer.pod == self.pod
            and answer.pod_view == "current"
            and (not sources or answer.source in sources)
            and self.since <= answer.asked
            and answer.answered <= self.until
        ]


@dataclass
class Stage:
    """What runs, and what has happened."""

    fleet: Fleet
    url: str
    namespace: str
    router: AsyncRouter
    pods: dict[int, Process] = field(default_factory=dict)
    gateways: list[Process] = field(default_factory=list)
    draining: list[Gone] = field(default_factory=list)
    stopped: list[Gone] = field(default_factory=list)
    dead: list[Gone] = field(default_factory=list)
    probes: int = 0
    disagreements: list[tuple[str, list[int]]] = field(default_factory=list)

    async def start_pod(self, pod: int) -> None:
        self.pods[pod] = process = await self.prepare_pod(pod)
        await process.ask("begin")

    async def prepare_pod(self, pod: int) -> Process:
        return await self.fleet.start(
            "pod_process",
            CLOCKS_OFF[pod],
            url=self.url,
            namespace=self.namespace,
            pod=pod,
            heartbeat=HEARTBEAT,
            lease=LEASE,
            view=VIEW,
            kind="threads" if pod == 4 else "asyncio",
        )

    async def start_gateways(self) -> None:
        self.gateways = await asyncio.gather(
            *(
                self.fleet.start(
                    "gateway_process",
                    CLOCKS_OFF[-1 - seed],
                    url=self.url,
                    namespace=self.namespace,
                    kind=kind,
                    pod_timeout=POD_TIMEOUT,
                    view=VIEW,
                    seed=seed,
                )
                for seed, kind in enumerate(GATEWAYS)
            )
        )

    async def everybody(self, do: str, **options: object) -> list[Any]:
        return await asyncio.gather(*(gateway.ask(do, **options) for gateway in self.gateways))

    async def living(self) -> dict[int, Pod]:
        """The living pods, by the test's own look at the store."""
        pods = await self.router.get_pods(self.namespace, "game", fresh=True)
        return {
            pod.id: pod
            for pod in pods.values()
            if pod.status != "Stopped" and (pod.age or 0) <= POD_TIMEOUT
        }

    async def status(self, pod: int) -> str:
        return (await self.router.get_pods(self.namespace, "game", fresh=True))[pod].status

    async def links_of(self, pod: int) -> set[str]:
        uids = [f"u{number}" for number in range(UIDS)]
        links = await self.router.batch_get_linked_pod(self.namespace, uids, "game", fresh=True)
        return set(links.get(pod, ()))

    async def answers(self, **options: object) -> list[Answer]:
        reports = await self.everybody("report", **options)
        assert [report["errors"] for report in reports] == [[]] * len(reports)
        return [Answer(*entry) for report in reports for entry in report["log"]]

    async def probe(self) -> None:
        """Ask all gateways for the same uids, each after all have seen the pods."""
        uids = [f"u{random.randrange(UIDS)}" for _ in range(20)]
        before = await self.living()
        await self.everybody("see")
        told = await self.everybody("route", uids=uids)
        after = await self.living()
        # One that was started anew meanwhile has not lived all the time.
        living = {
            pod for pod in before.keys() & after.keys() if before[pod].life == after[pod].life
        }
        for uid, links in zip(uids, zip(*told, strict=True), strict=True):
            self.probes += 1
            pods = [pod for pod, _ in links]
            if len(set(pods) & living) > 1:
                self.disagreements.append((uid, pods))

    async def probe_until(self, end: asyncio.Event) -> None:
        while not end.is_set():
            await self.probe()
            await asyncio.sleep(PROBES_EVERY)

    async def burst(self, uid: str) -> None:
        """A thousand routes of an unlinked uid, 250 from each gateway, at the same instant."""
        at = time.monotonic() + 0.2
        told = await self.everybody("burst", uid=uid, times=250, at=at)
        entries = [tuple(entry) for gateway in told for entry in gateway]
        assert len(entries) == 1000
        assert len({pod for pod, _ in entries}) == 1
        assert Counter(source for _, source in entries)["placed"] == 1

    async def crash(self, pod: int) -> None:
        """kill -9: the pod is dead, and nobody is told."""
        killed = await self.pods[pod].end(signal.SIGKILL)
        theirs = await self.links_of(pod)
        assert theirs
        gone = killed + POD_TIMEOUT + TROUBLE
        await asyncio.sleep(gone - time.monotonic())
        now = await asyncio.gather(
            *(
                self.routed(gateway, sorted(theirs)[number :: len(self.gateways)])
                for number, gateway in enumerate(self.gateways)
            )
        )
        living = await self.living()
        assert set().union(*now) <= living.keys() - {pod}
        self.dead.append(Gone(pod, gone, time.monotonic()))
        last = max(
            entry.answered
            for entry in await self.answers()
            if entry.pod == pod and entry.pod_view == "current" and entry.asked < gone
        )
        print(
            f"\n  kill -9 of pod {pod} with {len(theirs)} uids: nobody was sent there after "
            f"{last - killed:.2f} s (pod_timeout {POD_TIMEOUT:g} s)"
        )
        await self.start_pod(pod)

    async def routed(self, gateway: Process, uids: list[str]) -> set[int]:
        """Where a gateway routes these, once it can read the pods."""
        pods: set[int] = set()
        async with asyncio.timeout(ENDS):
            while uids:
                told = await gateway.ask("route", uids=uids)
                pods.update(pod for pod, view in told if view == "current")
                uids = [uid for uid, (_, view) in zip(uids, told, strict=True) if view != "current"]
        return pods

    async def drain_and_restart(self, pod: int, *, seconds: float) -> None:
        """An orderly departure, and a new process under the same id."""
        draining = asyncio.create_task(self.pods[pod].ask("drain", deadline=seconds))
        preparing = asyncio.create_task(self.prepare_pod(pod))
        async with asyncio.timeout(ENDS):
            while (await self.status(pod)) != DRAINING:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        noticed = time.monotonic() + NOTICE
        await asyncio.sleep(NOTICE)
        # Whoever was placed by an older view has come by now.
        await self.everybody("settle")
        before = await self.links_of(pod)
        left = await draining
        after = await self.links_of(pod)
        assert before
        assert before == after, "a draining pod got or lost uids"
        assert left <= len(after)
        successor = await preparing
        self.draining.append(Gone(pod, noticed, time.monotonic()))
        old, self.pods[pod] = self.pods[pod], successor
        await old.end(signal.SIGTERM)
        noticed = time.monotonic() + NOTICE
        assert old.returncode == 128 + signal.SIGTERM
        await asyncio.sleep(NOTICE + 0.5)
        self.stopped.append(Gone(pod, noticed, time.monotonic()))
        await successor.ask("begin")


@pytest.fixture
async def stage(some_cluster: LocalCluster, namespace: str) -> AsyncIterator[Stage]:
    async with Fleet() as fleet, AsyncRouter.from_url(some_cluster.url) as router:
        stage = Stage(fleet, some_cluster.url, namespace, router)
        await asyncio.gather(*map(stage.start_pod, range(PODS)), stage.start_gateways())
        yield stage


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.timeout(300)
async def test_the_promises_hold_while_pods_come_and_go(stage: Stage) -> None:
    for number in range(3):
        await stage.burst(f"u{UIDS - 1 - number}")
    await stage.everybody("work", routes=ROUTES // len(GATEWAYS), seconds=SECONDS, uids=UIDS)
    over = asyncio.Event()
    probing = asyncio.create_task(stage.probe_until(over))
    try:
        await asyncio.sleep(1.0)
        await stage.crash(1)
        await stage.drain_and_restart(2, seconds=3.0)
        await stage.crash(4)
        for pod in range(PODS):
            await stage.drain_and_restart(pod, seconds=NOTICE + 0.75)
    finally:
        over.set()
        await probing
    answers = await stage.answers(finish=True)

    print(f"  {len(answers):,} routes, {stage.probes:,} uids asked of all gateways at once")
    print("  by source:", dict(Counter(answer.source for answer in answers)))
    views = Counter(answer.pod_view for answer in answers)
    print("  by pod view:", dict(views))
    assert len(answers) >= ROUTES // len(GATEWAYS) * len(GATEWAYS)
    assert stage.disagreements == []
    assert views["current"] > len(answers) / 2
    for drained in stage.draining:
        assert drained.broken_by(answers, "placed", "moved") == [], "a draining pod got new uids"
    for stopped in stage.stopped:
        assert stopped.broken_by(answers) == [], "somebody was routed to a stopped pod"
    for dead in stage.dead:
        assert dead.broken_by(answers) == [], "somebody was routed to a dead pod"


@pytest.mark.slow
async def test_uids_spread_over_equal_pods_with_loads_two_seconds_old(
    some_cluster: LocalCluster, namespace: str
) -> None:
    pods, uids, gateways = 10, 10_000, 4
    held: Counter[int] = Counter()
    async with AsyncRouter.from_url(some_cluster.url) as speaker:
        agents = [
            AsyncPodAgent(
                speaker,
                namespace,
                "game",
                pod,
                heartbeat=2.0,
                sigterm=False,
                load=partial(held.__getitem__, pod),
            )
            for pod in range(pods)
        ]
        await asyncio.gather(*(agent.start() for agent in agents))
        routers = [AsyncRouter.from_url(some_cluster.url) for _ in range(gateways)]

        async def gateway(number: int) -> None:
            # About two thousand uids a second together: five seconds, or two to three heartbeats.
            for uid in range(number, uids, gateways):
                link = await routers[number].route(namespace, f"u{uid}", "game")
                held[link.pod] += 1
                if uid % 40 == number:
                    await asyncio.sleep(0.02)

        began = time.monotonic()
        await asyncio.gather(*map(gateway, range(gateways)))
        took = time.monotonic() - began
        for router in routers:
            await router.aclose()
        for agent in agents:
            await agent.stop()
    spread = max(held.values()) / (uids / pods)
    print(f"\n  {uids:,} uids on {pods} pods in {took:.1f} s: max/mean {spread:.3f}")
    assert held.total() == uids
    assert len(held) == pods
    assert spread <= 1.15
