"""The scene of departures: of four pods one is drained, one crashes, one is evacuated; the last takes all users."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from child import Child, children
from director import NAMESPACE, Audience, table
from rich.table import Table

from sfroute import AsyncRouter, PlacementConfig, RouterConfig
from sfroute.embedded import LocalCluster

__all__ = [
    "HEARTBEAT_SECONDS",
    "LEASE_SECONDS",
    "NOTICED_SECONDS",
    "SETTINGS",
    "Departures",
    "DeparturesResult",
    "Sent",
    "noticed_after",
]

SERVICE: Final = "game"
HEARTBEAT_SECONDS: Final = 0.25
LEASE_SECONDS: Final = 0.75
SETTINGS: Final = RouterConfig(
    placement=PlacementConfig(pod_timeout=1.0, lease_margin=0.25, pod_view_max_age=0.25)
)
"""Shorter than the defaults, like the demo: a pod is dead once it has missed four heartbeats."""
DRAINED, CRASHED, EVACUATED, LAST = range(4)
USERS: Final = 2_000
NEW_USERS: Final = 200
NOTICED_SECONDS: Final = (
    LEASE_SECONDS
    + SETTINGS.placement.lease_margin
    + 2 * SETTINGS.placement.pod_view_max_age
    + SETTINGS.placement.pod_timeout / 3
)
"""No request that begins later goes to a dead pod. Its silence must exceed its lease and the margin. The gateway may go
by what it read so long before, and after a slow answer of the store it gives pods a third of their time more."""
_PATIENCE: Final = 60.0
"""Seconds until the scene goes on although users still have a pod that is gone."""
_LOOK_SECONDS: Final = 0.01
_ROUTES_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class DeparturesResult:
    """What became of the users of pods that left.

    Attributes:
        drained: users of the pod that was drained.
        drained_kept: how many of them were still routed to it while it drained.
        drained_new: users who came meanwhile and were sent to it.
        drained_moved: how many of them had another pod when it had stopped.
        crashed: users of the pod that was killed.
        crashed_moved: how many of them had a living pod in the end.
        crash_seconds: how long after its last heartbeat the last request began that was sent to it. Where the pods
            could not be read meanwhile: how long after the last answer that was known to be old.
        evacuated: users of the pod that was evacuated.
        evacuated_moved: how many links the evacuation moved.
        evacuation_seconds: how long it took.
        pods_in_the_end: the pods that all users are routed to in the end.
    """

    drained: int
    drained_kept: int
    drained_new: int
    drained_moved: int
    crashed: int
    crashed_moved: int
    crash_seconds: float
    evacuated: int
    evacuated_moved: int
    evacuation_seconds: float
    pods_in_the_end: frozenset[int]

    def broken_promises(self) -> list[str]:
        """What was promised and did not hold, as sentences; empty if all is well."""
        checks = [
            (
                self.drained_kept == self.drained,
                f"{self.drained - self.drained_kept} users lost their pod while it drained",
            ),
            (
                self.drained_new == 0,
                f"{self.drained_new} new users were sent to a draining pod",
            ),
            (
                self.drained_moved == self.drained,
                f"{self.drained - self.drained_moved} users were sent to a stopped pod",
            ),
            (
                self.crashed_moved == self.crashed,
                f"{self.crashed - self.crashed_moved} users of a dead pod got no living one",
            ),
            (
                self.crash_seconds <= NOTICED_SECONDS,
                f"users were sent to a dead pod for {self.crash_seconds:.2f} s, not {NOTICED_SECONDS:.2f} s at most",
            ),
            (
                self.evacuated_moved == self.evacuated,
                f"{self.evacuated_moved} of {self.evacuated} users were evacuated",
            ),
            (
                self.pods_in_the_end == {LAST},
                f"in the end users are on the pods {sorted(self.pods_in_the_end)}",
            ),
        ]
        return [sentence for kept, sentence in checks if not kept]

    def fields(self) -> dict[str, Any]:
        """What was observed, for JSON."""
        return {**asdict(self), "pods_in_the_end": sorted(self.pods_in_the_end)}

    def tables(self) -> Table:
        """The same for people."""
        made = table("Pods that leave")
        made.add_column("what happened")
        made.add_column("users", justify="right")
        made.add_column("and then")
        made.add_row(
            "drained",
            f"{self.drained:,}",
            f"{self.drained_kept:,} stayed, {self.drained_new} of {NEW_USERS} new ones came; "
            f"{self.drained_moved:,} moved when it stopped",
        )
        made.add_row(
            "kill -9",
            f"{self.crashed:,}",
            f"{self.crashed_moved:,} moved, {self.crash_seconds:.2f} s after its last heartbeat "
            f"(its lease: {LEASE_SECONDS:g} s)",
        )
        made.add_row(
            "evacuated",
            f"{self.evacuated:,}",
            f"{self.evacuated_moved:,} moved in {self.evacuation_seconds:.2f} s",
        )
        return made


class Sent(NamedTuple):
    """A request: when it began and was answered (monotonic seconds), by which pod, and whether the pods were known."""

    began: float
    answered: float
    pod: int
    current: bool


def noticed_after(requests: Sequence[Sent], pod: int, since: float) -> float:
    """How long after ``since`` the last of ``requests`` began that was sent to ``pod`` by what was known of the pods.

    Where they could not be read meanwhile: how long after the last answer that says so.
    """
    longest = 0.0
    for one in sorted(requests):
        if not one.current:
            since = max(since, one.answered)
        elif one.pod == pod:
            longest = max(longest, one.began - since)
    return longest


class _Users:
    """Everybody who plays, the gateway they come through, and what it answered."""

    def __init__(self, router: AsyncRouter) -> None:
        self._router = router
        self.sent: list[Sent] = []

    async def route(self, uids: Sequence[str]) -> dict[str, int]:
        """The pod of each."""
        found: dict[str, int] = {}
        for start in range(0, len(uids), _ROUTES_AT_ONCE):
            some = uids[start : start + _ROUTES_AT_ONCE]
            found.update(zip(some, await asyncio.gather(*map(self._pod_of, some)), strict=True))
        return found

    async def _pod_of(self, uid: str) -> int:
        began = time.monotonic()
        link = await self._router.route(NAMESPACE, uid, SERVICE)
        current = link.pod_view == "current"
        self.sent.append(Sent(began, time.monotonic(), link.pod, current))
        return link.pod

    async def elsewhere(self, uids: Sequence[str], pod: int, within: float) -> dict[str, int]:
        """Wait until none of them is routed to ``pod``. Returns the pods they have then."""
        until = time.monotonic() + within
        while True:
            found = await self.route(uids)
            if pod not in found.values() or time.monotonic() >= until:
                return found
            await asyncio.sleep(_LOOK_SECONDS)

    async def silent_since(self, pod: int) -> float:
        """When the store got the last heartbeat of a pod (monotonic seconds)."""
        pods = await self._router.get_pods(NAMESPACE, SERVICE, fresh=True)
        return time.monotonic() - (pods[pod].age or 0.0)


@dataclass(frozen=True, slots=True)
class Departures:
    """Four pods leave, one after the other, until one is left."""

    name: str = "departures"

    async def play(self, cluster: LocalCluster, audience: Audience) -> DeparturesResult:
        """Play it.

        Raises:
            ChildFailed: a process ended before its time.
            SfrouteError: the cluster did not answer.
        """
        common = {"url": cluster.url, "namespace": NAMESPACE, "service": SERVICE}
        options = {f"pod {number}": {**common, "pod": number} for number in range(LAST + 1)}
        async with children("resident.py", options) as pods:
            return await _depart(cluster.url, pods, audience.say)


async def _depart(url: str, pods: Sequence[Child], say: Callable[[str], None]) -> DeparturesResult:
    async with AsyncRouter.from_url(url, config=SETTINGS) as router:
        users = _Users(router)
        everybody = [f"player-{number:04d}" for number in range(USERS)]
        where = await users.route(everybody)
        of = [[uid for uid in everybody if where[uid] == pod] for pod in range(len(pods))]
        say(f"{USERS:,} users play on {len(pods)} pods; pod {DRAINED} drains, and then it stops")

        pods[DRAINED].tell("drain")
        await pods[DRAINED].hear()
        newcomers = await users.route([f"newcomer-{number:03d}" for number in range(NEW_USERS)])
        kept = await users.route(of[DRAINED])
        pods[DRAINED].tell("stop")
        await pods[DRAINED].hear()
        await users.elsewhere(of[DRAINED], DRAINED, 2 * SETTINGS.placement.pod_view_max_age)
        moved = await users.route(of[DRAINED])

        # Also those who have come from the drained pod.
        theirs = [uid for uid, pod in (await users.route(everybody)).items() if pod == CRASHED]
        await pods[CRASHED].kill()
        say(f"kill -9: pod {CRASHED} is gone")
        silent_since = await users.silent_since(CRASHED)
        users.sent.clear()
        recovered = await users.elsewhere(theirs, CRASHED, _PATIENCE)
        noticed = noticed_after(users.sent, CRASHED, silent_since)

        everyone = [*everybody, *newcomers]
        leaving = [uid for uid, pod in (await users.route(everyone)).items() if pod == EVACUATED]
        began = time.monotonic()
        evacuated = 0
        async for progress in router.evacuate(NAMESPACE, SERVICE, EVACUATED):
            evacuated = progress.moved
        took = time.monotonic() - began
        say(f"pod {EVACUATED} is evacuated: {evacuated:,} links moved in {took:.2f} s")
        return DeparturesResult(
            drained=len(of[DRAINED]),
            drained_kept=list(kept.values()).count(DRAINED),
            drained_new=list(newcomers.values()).count(DRAINED),
            drained_moved=sum(pod != DRAINED for pod in moved.values()),
            crashed=len(theirs),
            crashed_moved=sum(pod != CRASHED for pod in recovered.values()),
            crash_seconds=noticed,
            evacuated=len(leaving),
            evacuated_moved=evacuated,
            evacuation_seconds=took,
            pods_in_the_end=frozenset((await users.route(everyone)).values()),
        )
