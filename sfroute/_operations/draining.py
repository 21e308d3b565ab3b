"""A draining pod waits until its users have gone, and until every gateway has noticed.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final

from ..errors import RouterClosed, StoreError
from ..types import DRAINING, EvacuationProgress
from .heartbeats import Heartbeats
from .ownership import Ownership

__all__ = ["Draining"]

POLL_SECONDS: Final = 0.25


class Draining:
    """One wait for the users of a pod to leave.

    Args:
        heartbeats: the pod's; they say ``Draining`` from now on.
        ownership: the pod's claims and sessions.
        notice: seconds after which every gateway has noticed what a pod reports.
        accepts: True if the application claims its users. Otherwise the pod's links are counted in the store.
        links: goes through the links of the pod, and counts them.
        closed: True once the router is closed.
    """

    def __init__(
        self,
        heartbeats: Heartbeats,
        ownership: Ownership,
        notice: float,
        accepts: Callable[[], bool],
        links: Callable[[], AsyncGenerator[EvacuationProgress, None]],
        closed: Callable[[], bool],
    ) -> None:
        self._heartbeats = heartbeats
        self._ownership = ownership
        self._notice = notice
        self._accepts = accepts
        self._links = links
        self._closed = closed
        self._found = ownership.left

    async def run(self, deadline: float) -> int:
        """Report ``Draining`` and wait, for ``deadline`` seconds at most. Returns how many uids are left, at least.

        Raises ``RouterClosed``.
        """
        self._check_open()
        self._heartbeats.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._heartbeats.try_to_beat()
                await self._until_empty()
        return self._ownership.left if self._accepts() else self._found

    def _check_open(self) -> None:
        if self._closed():
            raise RouterClosed

    async def _until_empty(self) -> None:
        # The agent may be stopped meanwhile.
        while self._heartbeats.status == DRAINING and not self._ownership.ended:
            self._check_open()
            everybody_knows = self._everybody_knows()
            began = time.monotonic()
            pause = POLL_SECONDS
            empty = self._accepts() and self._ownership.left == 0
            with contextlib.suppress(StoreError):  # the store is away: look again
                if self._heartbeats.stored[0] != DRAINING:
                    await self._heartbeats.beat()
                elif everybody_knows and not self._accepts():
                    await self._look_through_store()
                    empty = not self._found
                    # Look for half of the time at most, however large the store is.
                    pause = max(1.0, time.monotonic() - began)
                if everybody_knows and empty:
                    return
            await self._pause_while_held(pause)

    async def _pause_while_held(self, seconds: float) -> None:
        """Wait this long, or until the last claim is gone."""
        if self._ownership.empty.is_set():
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ownership.empty.wait()

    def _everybody_knows(self) -> bool:
        """True if no gateway can still go by what the pod reported before."""
        stored, since = self._heartbeats.stored
        return stored == DRAINING and time.monotonic() >= since + self._notice

    async def _look_through_store(self) -> None:
        async with contextlib.aclosing(self._links()) as steps:
            async for progress in steps:
                if progress.done or progress.found > self._found:
                    self._found = progress.found
