"""Evacuation: moving every link off a pod.

Every primary is scanned, in parallel and in small steps, so that memory stays bounded however many links there are.
Each link found is moved by its own compare-and-set: gateways may route, and links may change, all the while.

A key can escape a scan while its slot migrates, and a node can go in the middle of one. So there are further passes,
until one has found nothing while no slot was on the move. An interrupted evacuation is resumed by starting it again:
what has been moved is found elsewhere.

The state hash says that a pod is being emptied, every second anew: no evacuation moves anybody to it, so that two
opposite ones do not pass users to and fro, and ``route()`` places nobody there while there is another pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from .._commands.command import Command, script_command
from .._contract import replies
from .._contract.keys import (
    EMPTYING,
    check_link_names,
    link_key,
    parse_link_key,
    state_key,
)
from .._contract.scripts import get_script
from .._net.connection import Address, encode
from .._net.topology import SingleNode
from .._pods.policies import Policy
from ..errors import CorruptReply, InvalidArgument, RouterClosed, SfrouteError, StoreError
from ..telemetry.logs import log_fields
from ..types import EvacuationProgress
from .damaged import Damaged
from .engine import Engine, Parts
from .idle import IdleLinks
from .links import LinkWriter
from .listing import literal
from .placing import Routes

__all__ = ["Evacuation", "check_idle", "check_rate"]

_log = logging.getLogger("sfroute.pods")

SCAN_COUNT = 1000
MOVES_AT_ONCE = 64
REPORT_SECONDS = 0.25
MAX_PASSES = 10
SAY_SECONDS = 1.0
"""Between two notes that the pod is being emptied; one counts for ``EMPTYING_SECONDS``."""


def check_rate(rate: float | None) -> None:
    """Raise ``InvalidArgument`` unless it is a number of moves per second, or None."""
    is_number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    # An int may be larger than any float.
    if rate is not None and not (is_number and 0 < rate <= sys.float_info.max):
        raise InvalidArgument("rate must be a number of moves per second > 0, or None")


def check_idle(idle: float | None, remove_idle: bool) -> None:
    """Raise ``InvalidArgument`` unless it is seconds or None, and seconds if idle links are to be removed."""
    is_number = isinstance(idle, (int, float)) and not isinstance(idle, bool)
    if idle is not None and not (is_number and 0 < idle <= sys.float_info.max):
        raise InvalidArgument("idle must be seconds > 0, or None")
    if remove_idle and idle is None:
        raise InvalidArgument("remove_idle needs idle: the seconds after which a link is idle")


class Evacuation:
    """One evacuation. Everything in it runs on the event loop.

    Attributes:
        progress: how far it has come.
    """

    def __init__(
        self,
        engine: Engine,
        routes: Routes,
        writer: LinkWriter,
        subject: tuple[str, str, int],
        policy: Policy | None,
        rate: float | None,
        *,
        dry_run: bool,
        idle: float | None = None,
        remove_idle: bool = False,
    ) -> None:
        self._engine = engine
        self._routes = routes
        self._namespace, self._service, self._pod = subject
        self._policy = policy
        self._interval = 1.0 / rate if rate else 0.0
        self._next_move = 0.0
        self._dry_run = dry_run
        self._idle_links = None
        if idle is not None:
            self._idle_links = IdleLinks(writer, self._namespace, self._service, idle, "evacuate")
        self._remove_idle = remove_idle
        # Counted in the present pass; every pass sees the same ones.
        self._idle_now = 0
        self._refused_now = 0
        # Links that no pass can move, and idle ones that were idle no more when they were to be removed.
        self._stuck_now = 0
        self._back_now = 0
        self._damaged = Damaged()
        self._error: StoreError | None = None
        self._empty_passes = 0
        self.progress = EvacuationProgress()

    async def run(self) -> AsyncGenerator[EvacuationProgress, None]:
        """Run it, yielding progress about four times a second. The last element has ``done`` set.

        Raises:
            NoRoutablePod: there is no other pod to move links to.
            StoreError: links could not be moved, or nodes not be scanned, in any of ``MAX_PASSES`` passes.
        """
        parts = await self._engine.opened()
        if self._dry_run:
            async with contextlib.aclosing(self._passes(parts)) as steps:
                async for progress in steps:
                    yield progress
            return
        await self._check_there_is_another(parts)
        saying = await self._begin_saying_so(parts)
        try:
            # Somebody may have begun to empty the other pods at the same time.
            await self._check_there_is_another(parts)
            async with contextlib.aclosing(self._passes(parts)) as steps:
                async for progress in steps:
                    yield progress
        finally:
            if saying is not None:
                saying.cancel()
                await asyncio.gather(saying, return_exceptions=True)
                await self._end_saying_so(parts)

    async def _check_there_is_another(self, parts: Parts) -> None:
        # The pods as they are now: the operator may just have started another one.
        await parts.views.get(self._namespace, self._service, fresh=True)
        await self._routes.rank_elsewhere(
            self._namespace, self._service, self._pod, "", self._policy
        )

    async def _begin_saying_so(self, parts: Parts) -> asyncio.Task[None] | None:
        """Keep saying that the pod is being emptied. None without the permission."""
        try:
            await self._say_so(parts)
        except StoreError as error:
            if error.retryable:
                raise
            _log.warning(
                "it cannot be noted that pod %d is being emptied: another evacuation may move users to it (%s)",
                self._pod,
                error,
                extra=log_fields(self._namespace, self._service, self._pod, error=error),
            )
            return None
        return asyncio.get_running_loop().create_task(self._keep_saying_so(parts))

    async def _keep_saying_so(self, parts: Parts) -> None:
        while not await parts.views.closes_within(SAY_SECONDS):
            with contextlib.suppress(StoreError):
                await self._say_so(parts)

    async def _say_so(self, parts: Parts) -> None:
        await parts.commands.run(
            script_command(
                "evacuate",
                get_script("statefulSetState"),
                [state_key(self._namespace, self._service)],
                [f"{EMPTYING}{self._pod}", "{}", "1"],
                write=True,
                repeatable=True,
            )
        )

    async def _end_saying_so(self, parts: Parts) -> None:
        key = state_key(self._namespace, self._service)
        remove = encode("HDEL", key, f"{EMPTYING}{self._pod}")
        # If this fails, it expires by itself.
        with contextlib.suppress(SfrouteError):
            await parts.commands.run(Command("evacuate", key, "HDEL", remove, write=True))

    async def _passes(self, parts: Parts) -> AsyncGenerator[EvacuationProgress, None]:
        while not self.progress.done:
            before, self._error = self.progress, None
            self._idle_now = self._refused_now = self._stuck_now = self._back_now = 0
            self._damaged = Damaged()
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
            found = self.progress.found - before.found
            self._end_pass(found == self._stuck_now and not self._back_now, calm)
        if self._damaged.count:
            links = "1 link" if self._damaged.count == 1 else f"{self._damaged.count} links"
            raise self._damaged.error(
                f"evacuate: {links} cannot be moved or removed; all others were treated"
            )
        yield self.progress

    def _end_pass(self, nothing_found: bool, calm: bool) -> None:
        self._count(passes=1)
        self.progress = replace(self.progress, idle=self._idle_now, refused=self._refused_now)
        if self._dry_run and self._error is not None:
            raise self._error
        if self._error is None and (nothing_found or self._dry_run):
            self._empty_passes += 1
            # A key that moves once may escape one pass, but not two.
            if calm or self._empty_passes == 2 or self._dry_run:
                self.progress = replace(self.progress, done=True)
            return
        self._empty_passes = 0
        if self.progress.passes >= MAX_PASSES:
            if self._error is not None:
                raise self._error
            # Somebody keeps linking uids to the pod. The counts say so.
            self.progress = replace(self.progress, done=True)

    async def _slots(self, parts: Parts) -> list[bytes] | None:
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
                reply = await parts.commands.run_on(address, command)
                lines = reply.splitlines() if isinstance(reply, bytes) else []
                said += [line.split()[8:] for line in lines if b"myself" in line]
        except RouterClosed:
            raise
        except SfrouteError:
            return None
        owned = [b" ".join(slots) for slots in said]
        return None if any(b"[" in slots for slots in owned) else owned

    async def _pass(self, parts: Parts) -> None:
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

    async def _scan(self, parts: Parts, address: Address) -> None:
        pattern = f"sf:{{{literal(self._namespace)}:lk:*}}{literal(self._service)}"
        cursor = b"0"
        while True:
            # TYPE keeps out keys that are no links: looking them up would fail.
            scan = encode("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, "TYPE", "string")
            try:
                reply = await parts.commands.run_on(address, Command("evacuate", "", "SCAN", scan))
                if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], list):
                    raise replies.corrupt("", "an invalid SCAN reply")
                cursor, keys = reply
                uids, refused = self._sorted(keys)
                await self._count_refused(parts, refused)
                await self._treat(parts, uids)
            except StoreError as error:
                if not error.retryable:
                    raise
                # The node may be failing over. The rest of its keys is for the next pass.
                self._error = error
                return
            if cursor == b"0":
                return

    def _sorted(self, keys: Sequence[object]) -> tuple[list[str], list[bytes]]:
        """The uids of the links among the keys, and the keys whose names no call accepts."""
        uids: list[str] = []
        refused: list[bytes] = []
        for key in keys:
            if not isinstance(key, bytes):
                continue
            parsed = parse_link_key(key)
            try:
                if parsed is None or parsed[::2] != (self._namespace, self._service):
                    raise InvalidArgument
                check_link_names(self._namespace, parsed.uid, self._service)
            except InvalidArgument:
                refused.append(key)
            else:
                uids.append(parsed.uid)
        return uids, refused

    async def _count_refused(self, parts: Parts, keys: Sequence[bytes]) -> None:
        values = await self._read(parts, keys)
        self._count(scanned=len(keys))
        self._refused_now += values.count(str(self._pod).encode())

    async def _treat(self, parts: Parts, uids: list[str]) -> None:
        self._count(scanned=len(uids))
        wanted = str(self._pod).encode()
        if self._idle_links is not None:
            idle = await self._idle_links.find(parts, uids)
            await self._treat_idle(
                parts, [uid for uid, pod in idle.unused.items() if pod == self._pod]
            )
            # Those of other pods are not read: they stay as idle as they are.
            elsewhere = {uid for uid, pod in idle.claimed.items() if pod != self._pod}
            uids = [uid for uid in uids if uid not in idle.unused and uid not in elsewhere]
        keys = [link_key(self._namespace, uid, self._service).encode() for uid in uids]
        values = await self._read(parts, keys)
        mine = [uid for uid, value in zip(uids, values, strict=True) if value == wanted]
        self._count(found=len(mine))
        if self._dry_run:
            return
        try:
            for start in range(0, len(mine), MOVES_AT_ONCE):
                async with asyncio.TaskGroup() as moves:
                    for uid in mine[start : start + MOVES_AT_ONCE]:
                        moves.create_task(self._move(uid))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    @staticmethod
    async def _read(parts: Parts, keys: Sequence[bytes]) -> list[object]:
        # A key that is not UTF-8 goes to a wrong slot first, and is redirected.
        return await parts.commands.run_many(
            [
                Command(
                    "evacuate", key.decode("utf-8", "backslashreplace"), "GET", encode("GET", key)
                )
                for key in keys
            ],
            corrupt_in_place=True,
        )

    async def _treat_idle(self, parts: Parts, uids: Sequence[str]) -> None:
        self._idle_now += len(uids)
        if self._remove_idle and not self._dry_run:
            for uid in uids:
                await self._remove(parts, uid)

    async def _remove(self, parts: Parts, uid: str) -> None:
        assert self._idle_links is not None
        await self._keep_to_rate()
        try:
            removed = await self._idle_links.remove(parts, uid, self._pod)
        except StoreError as error:
            self._note(error)
        else:
            self._count(removed=removed)
            self._back_now += not removed

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
            self._stuck_now += self._note(error)
        else:
            self._count(moved=moved, elsewhere=not moved)

    def _note(self, error: StoreError) -> bool:
        """A link could not be treated. The next pass finds it again, and the last one raises; True: none can do it."""
        self._count(failed=1)
        if isinstance(error, CorruptReply):
            self._damaged.note(error)
            return True
        self._error = error
        return False

    async def _keep_to_rate(self) -> None:
        if self._interval:
            loop = asyncio.get_running_loop()
            self._next_move = max(self._next_move + self._interval, loop.time())
            await asyncio.sleep(self._next_move - loop.time())
