"""Asks one node for the slot map.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from .._contract.error_replies import read_failure
from .connection import (
    Address,
    Connection,
    ConnectionLost,
    HandshakeRefused,
    ReplyError,
    Token,
    WireSettings,
    ask_for_credentials,
    encode,
)
from .slot_map import MAX_SLOT_MAP_BYTES, NoSlotMap, SlotMap, SlotMapReader

__all__ = ["SlotMapInquiry"]

_CLUSTER_SLOTS: Final = encode("CLUSTER", "SLOTS")


class SlotMapInquiry:
    """The connection over which the slot map is asked for: one at a time, made when needed, and kept."""

    def __init__(self, settings: WireSettings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._answer: asyncio.Future[object] | None = None
        self.address: Address | None = None

    async def slot_map(self, address: Address, reached: Callable[[Address], Address]) -> SlotMap:
        """The slot map, as a node tells it. ``reached``: where a node is reached that the cluster knows by an address.

        Raises ``ConnectionLost``, ``HandshakeRefused`` or ``NoSlotMap``.
        """
        reply = await self._ask(address)
        if isinstance(reply, ReplyError):
            code = read_failure(str(reply)).code
            if "cluster support disabled" in str(reply):
                raise HandshakeRefused(
                    f"{address} is not a cluster node; for a single node use a redis:// URL or a Redis client"
                )
            if code == "NOPERM":
                raise HandshakeRefused(
                    f"{address} refused CLUSTER SLOTS (NOPERM); grant the router's user the permissions in "
                    "docs/how-to/secure.md",
                    code,
                )
            raise NoSlotMap(f"{address} refused CLUSTER SLOTS ({code})")
        reader = SlotMapReader(reply, address, reached)
        del reply  # let go by the reader, part by part
        while (found := reader.turn()) is None:  # noqa: ASYNC110 - others have their turn
            await asyncio.sleep(0)
        if not found.primaries:
            raise NoSlotMap(f"{address} knows no node that serves a slot")
        return found

    async def _ask(self, address: Address) -> object:
        """A node's reply to CLUSTER SLOTS, which may be an error."""
        if self._connection is None or self.address != address:
            self.drop()
            credentials = await ask_for_credentials(address, self._settings)
            self._connection, _ = await Connection.open(
                address,
                self._settings,
                self,
                credentials=credentials,
                max_reply=MAX_SLOT_MAP_BYTES,
            )
            self.address = address
        self._answer = asyncio.get_running_loop().create_future()
        self._connection.send(_CLUSTER_SLOTS, (self,))
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                return await self._answer
        except TimeoutError:
            self.drop()
            seconds = self._settings.connect_timeout
            raise ConnectionLost(f"{address} did not answer within {seconds:g} s") from None
        except ConnectionLost as error:
            raise ConnectionLost(f"{address}: {error}") from None
        except BaseException:
            self.drop()  # nobody waits for the answer any more
            raise
        finally:
            self._answer = None

    def drop(self) -> None:
        """End the connection, if there is one."""
        connection, self._connection = self._connection, None
        self.address = None
        if connection is not None:
            connection.abort()

    def give_up_after_fork(self) -> None:
        """In a forked child: give up the inherited socket."""
        if self._connection is not None:
            self._connection.detach_after_fork()

    # connection.Token and connection.Receiver

    def on_reply(self, reply: object) -> None:
        """The answer."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(reply)

    def on_push(self, push: list[object]) -> None:
        """Nothing is tracked."""

    def on_read(self) -> None:
        """One question at a time."""

    def on_lost(self, tokens: deque[Token], error: ConnectionLost) -> None:
        """The connection is gone."""
        self._connection = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
