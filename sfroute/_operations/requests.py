"""What a pod is asked by whoever rebalances its service: to hand users over.

A request lies beside the link, in the uid's slot, and names the claim by its fence (``statefulHandOver``). Whoever
writes one writes the claim record again too, unchanged, so the server pushes that to the pod. Where it does not push,
each turn of the round looks for a request.

A request that is missed does no harm: the user stays, and whoever asked asks again.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from .._commands.command import Command
from .._contract.keys import request_key
from .._net.connection import encode
from ..errors import SfrouteError
from ..telemetry.records import of_no_call
from .claims import ClaimTable, Held
from .engine import Parts

__all__ = ["Requests"]

AT_ONCE: Final = 128

_REQUEST: Final = re.compile(rb"([1-9][0-9]{0,15}) ([0-9]{1,18})")


class Requests:
    """Looks for requests, and tells the application. Claims are due one after the other, many in one go."""

    def __init__(self, parts: Parts, table: ClaimTable, place: tuple[str, str, int, str]) -> None:
        self._parts = parts
        self._table = table
        self._namespace, self._service, self._pod, _ = place
        self._due: dict[str, Held] = {}
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def look(self, held: Held) -> None:
        """There may be one for this claim."""
        if self._closed:
            return
        self._due[held.claim.uid] = held
        if self._looking is None:
            self._looking = self._parts.loop.create_task(self._look(), context=of_no_call())

    def close(self) -> None:
        """Look for nothing any more."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        try:
            while self._due:
                some = list(self._due.values())[:AT_ONCE]
                for held in some:
                    del self._due[held.claim.uid]
                await self._read([held for held in some if not held.over])
        finally:
            self._looking = None

    async def _read(self, claims: list[Held]) -> None:
        keys = [request_key(self._namespace, held.claim.uid, self._service) for held in claims]
        try:
            answers = await self._parts.commands.run_many(
                [
                    Command("events", key, name, encode(name, key))
                    for key in keys
                    for name in ("GET", "PTTL")
                ],
                corrupt_in_place=True,
            )
        except SfrouteError:
            return  # it is asked again
        for held, request, ttl in zip(claims, answers[::2], answers[1::2], strict=True):
            found = _REQUEST.fullmatch(request) if isinstance(request, bytes) else None
            if found is None or not isinstance(ttl, int) or ttl < 0:
                continue
            fence, target = int(found[1]), int(found[2])
            if fence == held.claim.fence and target != self._pod:
                self._table.ask(held, target, ttl / 1000)
