"""One rebalance of a service at a time, whoever starts it: two that plan by the same counts would both move users.

A key in the store names who has the turn. It expires unless it is renewed, so a process that dies holds nobody up for
longer than ``TURN_SECONDS``. Who finds that another has the turn waits. Who cannot renew its own in time has lost it,
and stops.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

from .._commands.command import Command
from .._net.connection import encode
from ..errors import RouterClosed, SfrouteError, StoreError, StoreUnavailable
from .engine import Parts

__all__ = ["Turn"]

TURN_SECONDS: Final = 5.0
RENEW_SECONDS: Final = 1.0
LOST_SECONDS: Final = 4.0
"""Without a renewal for so long the turn may soon be somebody else's."""


class Turn:
    """One process's turn at one key."""

    def __init__(self, parts: Parts, operation: str, key: str) -> None:
        self._parts = parts
        self._operation = operation
        self._key = key
        self._token = secrets.token_hex(8)
        self._renewed_at = 0.0

    def check(self) -> None:
        """Raise ``StoreUnavailable`` if the turn is lost."""
        if self._parts.loop.time() - self._renewed_at > LOST_SECONDS:
            raise StoreUnavailable(
                f"{self._operation}: the store did not answer for {LOST_SECONDS:g} s, so another process may have "
                "taken over; what was done until then is done. The same call goes on",
                operation=self._operation,
            )

    @asynccontextmanager
    async def taken(self) -> AsyncGenerator[None, None]:
        """Wait for the turn, and keep it. Raises what the store raises, and ``RouterClosed``."""
        while not await self._take():
            if await self._parts.views.closes_within(RENEW_SECONDS / 4):
                raise RouterClosed
        keeping = self._parts.loop.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            with suppress(SfrouteError):  # it expires by itself
                if await self._is_mine():
                    await self._run("DEL", self._key)

    async def _run(self, name: str, *args: str | int) -> object:
        command = Command(
            self._operation, self._key, name, encode(name, *args), write=name != "GET"
        )
        return await self._parts.commands.run(command)

    async def _is_mine(self) -> bool:
        return await self._run("GET", self._key) == self._token.encode()

    async def _take(self) -> bool:
        began = self._parts.loop.time()
        lasts = int(TURN_SECONDS * 1000)
        await self._run("SET", self._key, self._token, "NX", "PX", lasts)
        # Not by the reply: it may be that of a repetition.
        if not await self._is_mine():
            return False
        self._renewed_at = began
        return True

    async def _keep(self) -> None:
        lasts = int(TURN_SECONDS * 1000)
        while not await self._parts.views.closes_within(RENEW_SECONDS):
            began = self._parts.loop.time()
            with suppress(StoreError):
                if not await self._is_mine():
                    # Nobody else takes it before it has expired; then this one has stopped.
                    await self._run("SET", self._key, self._token, "NX", "PX", lasts)
                    if not await self._is_mine():
                        self._renewed_at = -LOST_SECONDS
                        return
                await self._run("SET", self._key, self._token, "XX", "PX", lasts)
                self._renewed_at = began
