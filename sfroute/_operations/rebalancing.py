"""Rebalancing: moving users from full pods to emptier ones, as few as needed.

1. All links are counted, and ``_pods/balance.py`` plans how many users go from which pod to which.
2. ``handing_over.py`` moves the users whom no pod has claimed.
3. For the rest of the plan it asks the pods that have claimed users to hand them over.

Only one rebalance of a service runs at a time (``one_at_a_time.py``). Nobody is moved to a pod that takes no users, or
that is being emptied. When one stops taking users on the way, the rest is planned anew. An interrupted rebalance is
resumed by starting it again: it counts and plans by what is then.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final

from .._commands.command import Command
from .._contract.keys import link_key, rebalance_key
from .._contract.pod_states import ROUTABLE
from .._net.connection import encode
from .._pods.balance import Flows, members, plan_moves, skew_of_members
from ..errors import InvalidArgument
from ..types import RebalanceProgress
from .engine import Engine, Parts
from .handing_over import HandingOver, HowToMove
from .links import LinkWriter
from .listing import Listing
from .one_at_a_time import Turn

__all__ = ["Rebalance", "check_max_skew", "check_patience"]

REPORT_SECONDS: Final = 0.25
MAX_ROUNDS: Final = 3
"""The first plan, and new ones after pods have stopped taking users."""
MAX_PATIENCE: Final = 86_400


def check_max_skew(max_skew: float) -> None:
    """Raise ``InvalidArgument`` unless it is a finite number from 1."""
    is_number = isinstance(max_skew, (int, float)) and not isinstance(max_skew, bool)
    if not is_number or not 1 <= max_skew <= sys.float_info.max:
        raise InvalidArgument("max_skew must be a number >= 1, such as 1.2")


def check_patience(patience: float) -> None:
    """Raise ``InvalidArgument`` unless it is a number of seconds."""
    is_number = isinstance(patience, (int, float)) and not isinstance(patience, bool)
    if not is_number or not 0 < patience <= MAX_PATIENCE:
        raise InvalidArgument(f"patience must be seconds > 0, at most {MAX_PATIENCE:,}")


class Rebalance:
    """One rebalance. Everything in it runs on the event loop.

    Attributes:
        progress: how far it has come.
    """

    def __init__(
        self,
        engine: Engine,
        writer: LinkWriter,
        listing: Listing,
        service: tuple[str, str],
        *,
        max_skew: float,
        dry_run: bool,
        how: HowToMove,
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._listing = listing
        self._namespace, self._service = service
        self._max_skew = max_skew
        self._dry_run = dry_run
        self._how = how
        self.progress = RebalanceProgress()

    async def run(self) -> AsyncGenerator[RebalanceProgress, None]:
        """Run it, yielding progress about four times a second. The last element has ``done`` set.

        Raises:
            StoreError: not all links could be counted, or moved.
        """
        parts = await self._engine.opened()
        working = asyncio.get_running_loop().create_task(self._work(parts))
        try:
            while not working.done():
                await asyncio.wait([working], timeout=REPORT_SECONDS)
                if not working.done():
                    yield self.progress
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        working.result()
        self.progress = replace(self.progress, done=True)
        yield self.progress

    def _count(self, **more: int) -> None:
        now = self.progress
        self.progress = replace(now, **{name: getattr(now, name) + n for name, n in more.items()})

    async def _work(self, parts: Parts) -> None:
        if self._dry_run:
            await self._plan(parts)
            return
        turn = Turn(parts, "rebalance", rebalance_key(self._namespace, self._service))
        place = (self._namespace, self._service)
        async with turn.taken():
            for _ in range(MAX_ROUNDS):
                flows = await self._plan(parts)
                moving = HandingOver(
                    self._engine, parts, self._writer, self._listing, place, flows, self._how
                )
                moving.on_count = self._count
                moving.check_turn = turn.check
                await moving.run()
                if not moving.plan_again:
                    return

    async def _plan(self, parts: Parts) -> Flows:
        """Count all links, and plan what is to be moved."""
        view = await parts.views.get(self._namespace, self._service, fresh=True)
        pods = [
            pod
            for pod in view.pods.values()
            if pod.status in ROUTABLE and pod.id not in view.gone and pod.id not in view.emptied
        ]
        spread = members(pods, await self._counted(parts))
        plan = plan_moves(spread, self._max_skew)
        now = self.progress
        self.progress = replace(
            now,
            plan=plan,
            skew=skew_of_members(spread) if now.skew is None else now.skew,
            planned=now.gone + sum(moves.users for moves in plan),
        )
        return Flows(plan)

    async def _counted(self, parts: Parts) -> Counter[int]:
        """Pod -> its links."""
        namespace, service = self._namespace, self._service
        counts: Counter[int] = Counter()
        for address in sorted(parts.topology.primaries()):
            async for uids in self._listing.pages(parts, address, namespace, service, "rebalance"):
                self._count(scanned=len(uids))
                keys = [link_key(namespace, uid, service) for uid in uids]
                values = await parts.commands.run_many(
                    [Command("rebalance", key, "GET", encode("GET", key)) for key in keys],
                    corrupt_in_place=True,
                )
                found = Counter(value for value in values if isinstance(value, bytes))
                for pod, n in found.items():
                    # What is no pod id is the doctor's business.
                    if pod.isdigit() and len(pod) < 20:
                        counts[int(pod)] += n
        return counts
