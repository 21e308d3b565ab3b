"""A store outside of what is broken, where pods write under their fences: an older one than the stored is refused.

It listens on a Unix socket, which a pod reaches from any network namespace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from sfroute.embedded import LocalServer

__all__ = ["SOCKET", "ThirdStore", "third_store"]

SOCKET: Final = "third.sock"

# KEYS: fences, count. ARGV: uid, fence. Digits of one length compare like their numbers; a double holds 53 bits.
_WRITE: Final = """
local stored = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if tonumber(ARGV[2]) < stored then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('INCR', KEYS[2])
"""


def third_store(folder: Path, server_binary: str | None) -> LocalServer:
    """The server, to be started."""
    config = {"unixsocket": str(folder / SOCKET)}
    return LocalServer(server_binary=server_binary, extra_config=config)


class ThirdStore:
    """A pod's way to it."""

    def __init__(self, folder: Path) -> None:
        self._client = Redis(unix_socket_path=str(folder / SOCKET), protocol=2)
        self._write = self._client.register_script(_WRITE)

    async def write(self, uid: str, fence: int) -> int:
        """Write under a fence. Returns the number of the write, in the store's order; 0: refused."""
        number = await self._write(keys=["fences", "count"], args=[uid, fence])
        return int(number)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
