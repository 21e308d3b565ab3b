"""The scene of the wipe: the store forgets every link; the pods, who have the users, tell it again; nobody moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from child import Child, children
from director import NAMESPACE, Audience, table
from rich.table import Table

from sfroute import AsyncRouter
from sfroute.embedded import LocalCluster

__all__ = ["USERS", "Wipe", "WipeResult"]

SERVICE: Final = "room"
LEASE_SECONDS: Final = 5.0
PODS: Final = 3
USERS: Final = 1_000
PROPOSED_SECONDS: Final = 60
"""A gateway proposes a pod by a temporary link; the pod's claim makes it persistent."""
_ROUTES_AT_ONCE: Final = 200


def _everybody() -> list[str]:
    """All users."""
    return [f"guest-{number:04d}" for number in range(USERS)]


@dataclass(frozen=True, slots=True)
class WipeResult:
    """What became of users whose links the store forgot.

    Attributes:
        users: how many there were, each claimed by a pod.
        links_left: how many keys the store had when it was wiped.
        moved: how many users were sent to another pod afterwards.
        owned: how many users their pods still own.
        lost: how many claims pods were told to have lost.
        seconds: after how many seconds the gateway had found the pod of every user again.
    """

    users: int
    links_left: int
    moved: int
    owned: int
    lost: int
    seconds: float

    def broken_promises(self) -> list[str]:
        """What was promised and did not hold, as sentences; empty if all is well."""
        checks = [
            (self.moved == 0, f"{self.moved} users were sent to another pod after the wipe"),
            (self.owned == self.users, f"pods own {self.owned} of {self.users} users"),
            (self.lost == 0, f"{self.lost} claims were lost in the wipe"),
        ]
        return [sentence for kept, sentence in checks if not kept]

    def fields(self) -> dict[str, Any]:
        """What was observed, for JSON."""
        return asdict(self)

    def tables(self) -> Table:
        """The same for people."""
        made = table("The store is wiped; nobody moves")
        made.add_column("users", justify="right")
        made.add_column("moved", justify="right")
        made.add_column("lost", justify="right")
        made.add_column("all found again after", justify="right")
        made.add_row(f"{self.users:,}", str(self.moved), str(self.lost), f"{self.seconds:.2f} s")
        return made


@dataclass(frozen=True, slots=True)
class Wipe:
    """Every primary forgets everything while pods have users."""

    name: str = "wipe"

    async def play(self, cluster: LocalCluster, audience: Audience) -> WipeResult:
        """Play it.

        Raises:
            ChildFailed: a process ended before its time.
            SfrouteError: the cluster did not answer.
        """
        common = {
            "url": cluster.url,
            "namespace": NAMESPACE,
            "service": SERVICE,
            "lease": LEASE_SECONDS,
            "uids": _everybody(),
        }
        options = {f"keeper {number}": {**common, "pod": number} for number in range(PODS)}
        async with children("keeper.py", options) as pods:
            return await _wipe(cluster, pods, audience.say)


async def _wipe(
    cluster: LocalCluster, pods: Sequence[Child], say: Callable[[str], None]
) -> WipeResult:
    async with AsyncRouter.from_url(cluster.url) as router:
        where = await _route(router)
        for pod in pods:
            pod.tell("welcome")
        users = sum([(await pod.hear())["users"] for pod in pods])
        say(
            f"{users:,} users are claimed by {len(pods)} pods; FLUSHALL: the store forgets all links"
        )
        # Requests come all the while: who is routed first must wait for the pods.
        links_left, meanwhile = await asyncio.gather(
            asyncio.to_thread(_flush, cluster), _route(router)
        )
        began = time.monotonic()
        found = await _route(router)
        seconds = time.monotonic() - began
        for pod in pods:
            pod.tell("count")
        counts = [await pod.hear() for pod in pods]
        moved = sum({found[uid], meanwhile[uid]} != {pod} for uid, pod in where.items())
        say(f"{users - moved:,} of {users:,} users are where they were, {seconds:.2f} s later")
        for pod in pods:
            pod.tell("stop")
        return WipeResult(
            users=users,
            links_left=links_left,
            moved=moved,
            owned=sum(count["owned"] for count in counts),
            lost=sum(count["lost"] for count in counts),
            seconds=seconds,
        )


def _flush(cluster: LocalCluster) -> int:
    cluster.refresh()
    primaries = [node for node in cluster.nodes if node.alive and node.role == "primary"]
    sizes = [node.commands(("FLUSHALL",), ("DBSIZE",))[1] for node in primaries]
    return sum(size for size in sizes if isinstance(size, int))


async def _route(router: AsyncRouter) -> dict[str, int]:
    """The pod of everybody."""
    found: dict[str, int] = {}
    uids = _everybody()
    for start in range(0, len(uids), _ROUTES_AT_ONCE):
        some = uids[start : start + _ROUTES_AT_ONCE]
        links = await asyncio.gather(
            *(
                router.route(NAMESPACE, uid, SERVICE, persist_seconds=PROPOSED_SECONDS)
                for uid in some
            )
        )
        found.update(zip(some, (link.pod for link in links), strict=True))
    return found
