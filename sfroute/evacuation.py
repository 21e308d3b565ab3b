"""Evacuation: moving every link off a pod.

Every primary is scanned, in parallel and in small steps, so that memory stays bounded however many links there are.
Each link found is moved by its own compare-and-set: gateways may route, and links may change, all the while.

A key can escape a scan while its slot migrates, and a node can go in the middle of one. So there are further passes,
until one has found nothing while no slot was on the move. An interrupted evacuation is resumed by starting it again:
what has been moved is found elsewhere.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from . import replies
from .engine import Engine, OpenEngine
from .errors import InvalidArgument, RouterClosed, SfrouteError, StoreError
from .keys import link_key, parse_link_key
from .placement import Policy
from .routing import Routes
from .store import Command
from .topology import SingleNode
from .types import EvacuationProgress
from .wire import Address, encode

__all__ = ["Evacuation", "check_rate"]

SCAN_COUNT = 1000
MOVES_AT_ONCE = 64
REPORT_SECONDS = 0.25
MAX_PASSES = 10


def check_rate(rate: float | None) -> None:
    """Raise ``InvalidArgument`` unless it is a number of moves per second, or None."""
    is_number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    # An int may be larger than any float.
    if rate is not None and not (is_number and 0 < rate <= sys.float_info.max):
        raise InvalidArgument("rate must be moves per second > 0, or None")


class Evacuation:
    """One evacuation. Everything in it runs on the event loop.

    Attributes:
        progress: how far it has come.
    """

    def __init__(
        self,
        engine: Engine,
        routes: Routes,
        subject: tuple[str, str, int],
        policy: Policy | None,
        rate: float | None,
        *,
        dry_run: bool,
    ) -> None:
        self._engine = engine
        self._routes = routes
        self._namespace, self._service, self._pod = subject
        self._policy = policy
        self._interval = 1.0 / rate if rate else 0.0
        self._next_move = 0.0
        self._dry_run = dry_run
        self._error: StoreError | None = None
        self._empty_passes = 0
        self.progress = EvacuationProgress()

    async def run(self) -> AsyncGenerator[EvacuationProgress, None]:
        """Do it, telling about four times a second how far it has come; the last element has ``done`` set.

        Raises:
            NoRoutablePod: there is no other pod to move links to.
            StoreError: links could not be moved, or nodes not be scanned, in any of ``MAX_PASSES`` passes.
        """
        parts = await self._engine.opened()
        if not self._dry_run:
            # The pods as they are now: who evacuates may just have started another one.
            await parts.views.get(self._namespace, self._service, fresh=True)
            await self._routes.rank_elsewhere(
                self._namespace, self._service, self._pod, "", self._policy
            )
        while not self.progress.done:
            before, self._error = self.progress, None
            slots = await self._slots(parts)
            working = asyncio.get_running_loop().create_task(self._pass(parts))
            try:
                while not working.done():
                    await asyncio.wait([working], timeout=REPORT_SECONDS)
                    yield self.progress
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
            working.result()
            calm = slots is not None and slots == await self._slots(parts)
            self._end_pass(self.progress.found == before.found, calm)
        yield self.progress

    def _end_pass(self, nothing_found: bool, calm: bool) -> None:
        self._count(passes=1)
        if self._dry_run and self._error is not None:
            raise self._error
        if self._error is None and (nothing_found or self._dry_run):
            self._empty_passes += 1
            # A key that moves once may escape one pass, and not two.
            if calm or self._empty_passes == 2 or self._dry_run:
                self.progress = replace(self.progress, done=True)
            return
        self._empty_passes = 0
        if self.progress.passes >= MAX_PASSES:
            if self._error is not None:
                raise self._error
            # Somebody goes on linking uids to the pod; the counts say so.
            self.progress = replace(self.progress, done=True)

    async def _slots(self, parts: OpenEngine) -> list[bytes] | None:
        """Who serves which slots, as each primary says of itself; None if slots are on the move, or that cannot be
        told.
        """
        if self._dry_run or isinstance(parts.topology, SingleNode):
            return []
        await parts.topology.refresh()
        said = []
        command = Command("evacuate", "", "CLUSTER NODES", encode("CLUSTER", "NODES"))
        try:
            for address in sorted(parts.topology.primaries()):
                reply = await parts.store.run_on(address, command)
                lines = reply.splitlines() if isinstance(reply, bytes) else []
                said += [line.split()[8:] for line in lines if b"myself" in line]
        except RouterClosed:
            raise
        except SfrouteError:
            return None
        owned = [b" ".join(slots) for slots in said]
        return None if any(b"[" in slots for slots in owned) else owned

    async def _pass(self, parts: OpenEngine) -> None:
        """Look at every key once.

        The first error that nothing can be done about ends it; with it end the others.
        """
        try:
            async with asyncio.TaskGroup() as scans:
                for address in sorted(parts.topology.primaries()):
                    scans.create_task(self._scan(parts, address))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _count(self, **more: int) -> None:
        now = self.progress
        self.progress = replace(now, **{name: getattr(now, name) + n for name, n in more.items()})

    async def _scan(self, parts: OpenEngine, address: Address) -> None:
        pattern = f"sf:{{{_literal(self._namespace)}:lk:*}}{_literal(self._service)}"
        cursor = b"0"
        while True:
            # TYPE keeps out what is no link and would make an error of its look-up.
            scan = encode("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, "TYPE", "string")
            try:
                reply = await parts.store.run_on(address, Command("evacuate", "", "SCAN", scan))
                if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], list):
                    raise replies.corrupt("", "no reply of a scan")
                cursor, keys = reply
                await self._treat(parts, self._uids(keys))
            except StoreError as error:
                if not error.retryable:
                    raise
                # The node may be failing over. The rest of its keys is for the next pass.
                self._error = error
                return
            if cursor == b"0":
                return

    def _uids(self, keys: Sequence[object]) -> list[str]:
        found = (parse_link_key(key) for key in keys if isinstance(key, bytes))
        return [
            key.uid
            for key in found
            if key is not None and (key.namespace, key.service) == (self._namespace, self._service)
        ]

    async def _treat(self, parts: OpenEngine, uids: list[str]) -> None:
        keys = [link_key(self._namespace, uid, self._service) for uid in uids]
        values = await parts.store.run_many(
            [Command("evacuate", key, "GET", encode("GET", key)) for key in keys]
        )
        wanted = str(self._pod).encode()
        mine = [uid for uid, value in zip(uids, values, strict=True) if value == wanted]
        self._count(scanned=len(uids), found=len(mine))
        if self._dry_run:
            return
        try:
            for start in range(0, len(mine), MOVES_AT_ONCE):
                async with asyncio.TaskGroup() as moves:
                    for uid in mine[start : start + MOVES_AT_ONCE]:
                        moves.create_task(self._move(uid))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _move(self, uid: str) -> None:
        await self._keep_to_rate()
        try:
            ranked = await self._routes.rank_elsewhere(
                self._namespace, self._service, self._pod, uid, self._policy
            )
            _, moved = await self._routes.move(
                (self._namespace, uid, self._service), self._pod, ranked, "evacuate"
            )
        except StoreError as error:
            # The next pass finds it again; the last one raises.
            self._error = error
            self._count(failed=1)
        else:
            self._count(moved=moved, elsewhere=not moved)

    async def _keep_to_rate(self) -> None:
        if self._interval:
            loop = asyncio.get_running_loop()
            self._next_move = max(self._next_move + self._interval, loop.time())
            await asyncio.sleep(self._next_move - loop.time())


def _literal(name: str) -> str:
    """The name as a glob pattern that matches only itself."""
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in name)
