"""The scene of arrivals: a pod is added to three, and a rebalance moves users to it. The pods let go who plays."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

from child import Child, children
from director import NAMESPACE, Audience, table
from rich.table import Table

from sfroute import AsyncRouter, RebalanceProgress
from sfroute.embedded import LocalCluster

__all__ = ["NEWCOMERS", "PLAYING", "USERS", "Arrivals", "ArrivalsResult"]

SERVICE: Final = "table"
OLD_PODS: Final = 3
ADDED: Final = OLD_PODS
USERS: Final = 600
PLAYING: Final = 570
"""So many of them are claimed by their pods. The others are away: their links are there, and no pod has them."""
NEWCOMERS: Final = 30
LEASE_SECONDS: Final = 30.0
"""Nobody dies in this scene, however slow the machine is."""
MAX_SKEW: Final = 1.05
RATE: Final = 100.0
"""Users per second: slow enough to be watched."""
_BAR: Final = 20
_ROUTES_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class ArrivalsResult:
    """What became of the users when a pod was added.

    Attributes:
        users: how many there were, newcomers included.
        before, after: pod -> users who were linked to it before the rebalance and after it.
        newcomers: how many came between the arrival of the pod and the rebalance.
        newcomers_at_added: how many of them were sent to the pod that was added.
        planned: how many users the rebalance meant to move.
        moved: users whom no pod had claimed, and whom it moved.
        handed_over: users whom their pod let go.
        asked: for how many users pods got a ``Handover``.
        kept: users whom their pod did not let go.
        strayed: users who were sent, while it ran, to a pod that was theirs neither before nor after.
        claimed: users whom a pod had claimed before.
        owned: how many of them a pod owns after.
        lost: how many claims pods were told to have lost.
    """

    users: int
    before: Mapping[int, int]
    after: Mapping[int, int]
    newcomers: int
    newcomers_at_added: int
    planned: int
    moved: int
    handed_over: int
    asked: int
    kept: int
    strayed: int
    claimed: int
    owned: int
    lost: int

    def broken_promises(self) -> list[str]:
        """What was promised and did not hold, as sentences; empty if all is well."""
        linked, fullest = sum(self.after.values()), max(self.after.values(), default=0)
        # Users are whole.
        most = math.ceil(MAX_SKEW * self.users / (OLD_PODS + 1))
        checks = [
            (
                linked == self.users,
                f"{linked} of {self.users} users have a pod after the rebalance",
            ),
            (self.newcomers_at_added > 0, "nobody new was sent to the pod that was added"),
            (fullest <= most, f"a pod has {fullest} users after the rebalance, not {most} at most"),
            (
                self.moved + self.handed_over == self.planned,
                f"{self.moved + self.handed_over} of {self.planned} users were moved",
            ),
            (self.handed_over > 0, "no pod was asked to hand a user over"),
            (
                self.asked == self.handed_over,
                f"pods were asked for {self.asked} users and handed {self.handed_over} over",
            ),
            (self.kept == 0, f"{self.kept} users were not let go"),
            (self.strayed == 0, f"{self.strayed} users met a third pod during the rebalance"),
            (self.owned == self.claimed, f"pods own {self.owned} of {self.claimed} users"),
            (self.lost == 0, f"{self.lost} claims were lost in the rebalance"),
        ]
        return [sentence for kept, sentence in checks if not kept]

    def fields(self) -> dict[str, Any]:
        """What was observed, for JSON."""
        return asdict(self)

    def tables(self) -> Table:
        """The same for people."""
        made = table("A pod is added; users before the rebalance and after it")
        made.add_column("pod", justify="right")
        for name in ("before", "after"):
            made.add_column(name, justify="right")
            made.add_column("")
        longest = max([*self.before.values(), *self.after.values(), 1])
        for pod in sorted({*self.before, *self.after}):
            line = [str(pod)]
            for users in (self.before.get(pod, 0), self.after.get(pod, 0)):
                line += [str(users), "#" * round(_BAR * users / longest)]
            made.add_row(*line)
        made.caption = (
            f"{self.moved} were away and moved, {self.handed_over} were handed over by their pods, "
            f"{self.lost} lost."
        )
        made.caption_justify = "left"
        return made


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A fourth pod comes to three that have all users; then users are moved to it."""

    name: str = "arrivals"

    async def play(self, cluster: LocalCluster, audience: Audience) -> ArrivalsResult:
        """Play it.

        Raises:
            ChildFailed: a process ended before its time.
            SfrouteError: the cluster did not answer.
        """
        everybody = [f"guest-{number:03d}" for number in range(USERS)]
        common = {
            "url": cluster.url,
            "namespace": NAMESPACE,
            "service": SERVICE,
            "lease": LEASE_SECONDS,
            "uids": everybody[:PLAYING],
        }
        options = {f"keeper {pod}": {**common, "pod": pod} for pod in range(OLD_PODS + 1)}
        old, added = dict(list(options.items())[:ADDED]), dict(list(options.items())[ADDED:])
        async with AsyncRouter.from_url(cluster.url) as router, AsyncExitStack() as stack:
            pods = await stack.enter_async_context(children("keeper.py", old))
            scene = _Scene(router, everybody, audience.say)
            await scene.route(everybody)
            claimed = await welcome(pods)
            audience.say(
                f"{USERS} users are on {OLD_PODS} pods, which have claimed {claimed} of them; "
                f"pod {ADDED} is added"
            )
            pods = [*pods, *await stack.enter_async_context(children("keeper.py", added))]
            return await scene.grow(pods, claimed)


class _Scene:
    """The users, and the gateway they come through."""

    def __init__(
        self, router: AsyncRouter, everybody: Sequence[str], say: Callable[[str], None]
    ) -> None:
        self._router = router
        self._everybody = list(everybody)
        self._say = say

    async def route(self, uids: Sequence[str]) -> dict[str, int]:
        """The pod of each."""
        found: dict[str, int] = {}
        for start in range(0, len(uids), _ROUTES_AT_ONCE):
            some = uids[start : start + _ROUTES_AT_ONCE]
            links = await asyncio.gather(
                *(self._router.route(NAMESPACE, uid, SERVICE) for uid in some)
            )
            found.update(zip(some, (link.pod for link in links), strict=True))
        return found

    async def grow(self, pods: Sequence[Child], claimed: int) -> ArrivalsResult:
        """From the arrival of the last of ``pods`` on."""
        await self._router.get_pods(NAMESPACE, SERVICE, fresh=True)
        new = await self.route([f"newcomer-{number:02d}" for number in range(NEWCOMERS)])
        self._everybody += new
        at_added = list(new.values()).count(ADDED)
        self._say(f"{at_added} of {NEWCOMERS} new users came to it; the others stay where they are")

        before = await self.route(self._everybody)
        meanwhile: dict[str, set[int]] = {uid: set() for uid in self._everybody}
        done, progress = await self._rebalanced(meanwhile)
        after = await self._linked()
        strayed = sum(
            not seen <= {before[uid], after.get(uid, before[uid])}
            for uid, seen in meanwhile.items()
        )
        # Those who were handed over come back: their new pods claim them.
        await welcome(pods)
        counts = await _counts(pods)
        for pod in pods:
            pod.tell("stop")
        self._say(
            f"rebalanced in {done:.1f} s; {sum(one['owned'] for one in counts)} users play on"
        )
        return ArrivalsResult(
            users=len(self._everybody),
            before=_users_of(before),
            after=_users_of(after),
            newcomers=len(new),
            newcomers_at_added=at_added,
            planned=progress.planned,
            moved=progress.moved,
            handed_over=progress.handed_over,
            asked=sum(one["asked"] for one in counts),
            kept=progress.kept,
            strayed=strayed,
            claimed=claimed,
            owned=sum(one["owned"] for one in counts),
            lost=sum(one["lost"] for one in counts),
        )

    async def _rebalanced(
        self, meanwhile: Mapping[str, set[int]]
    ) -> tuple[float, RebalanceProgress]:
        """Rebalance while requests come. How many seconds it took, and what it did in the end."""
        loop = asyncio.get_running_loop()
        began, progress = loop.time(), RebalanceProgress()
        coming = asyncio.create_task(self._come_all_the_while(meanwhile))
        try:
            planned = told = 0
            async for progress in self._router.rebalance(
                NAMESPACE, SERVICE, max_skew=MAX_SKEW, rate=RATE
            ):
                if progress.planned and not planned:
                    planned = progress.planned
                    plan = ", ".join(f"{one.users} of pod {one.source}" for one in progress.plan)
                    self._say(f"rebalance, at most {RATE:.0f} a second: {plan} go to pod {ADDED}")
                if progress.gone * 3 >= planned * (told + 1) and not progress.done:
                    told = progress.gone * 3 // max(planned, 1)
                    self._say(f"{progress.gone} of {planned} have gone")
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        return loop.time() - began, progress

    async def _come_all_the_while(self, meanwhile: Mapping[str, set[int]]) -> None:
        while True:
            for uid, pod in (await self.route(self._everybody)).items():
                meanwhile[uid].add(pod)
            await asyncio.sleep(0.05)

    async def _linked(self) -> dict[str, int]:
        """The pod of everybody who has one."""
        found = await self._router.batch_get_linked_pod(NAMESPACE, self._everybody, SERVICE)
        return {uid: pod for pod, uids in found.items() for uid in uids}


async def welcome(pods: Sequence[Child]) -> int:
    """Let all pods claim those of their users who play; return how many users that are."""
    for pod in pods:
        pod.tell("welcome")
    return sum([(await pod.hear())["users"] for pod in pods])


async def _counts(pods: Sequence[Child]) -> list[dict[str, Any]]:
    for pod in pods:
        pod.tell("count")
    return [await pod.hear() for pod in pods]


def _users_of(where: Mapping[str, int]) -> dict[int, int]:
    return dict(sorted(Counter(where.values()).items()))
