"""What a user would choose instead: each peer as one class, opened on the same cluster, doing the same work.

``get`` is one lookup, ``get_many`` a batch of them, ``link`` one write. What one operation sends differs from peer to
peer; ``DOES`` says it, and the reports repeat it.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import coredis
import glide
import glide_sync
import hiredis
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster
from redis.maint_notifications import MaintNotificationsConfig

import sfroute
from sfroute._contract.keys import link_key, link_prefix, slot_of
from sfroute._contract.scripts import get_script

__all__ = [
    "DOES",
    "NAMESPACE",
    "SERVICE",
    "AsyncPeer",
    "Coredis",
    "Glide",
    "GlideSync",
    "Raw",
    "RedisPy",
    "RedisPySync",
    "Sfroute",
    "SfrouteSync",
    "SyncPeer",
    "key_of",
]

NAMESPACE, SERVICE = "bench", "game"
# Valkey rejects what redis-py's RESP3 default asks for besides.
OPTIONS: dict[str, Any] = {
    "protocol": 3,
    "legacy_responses": False,
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}
SCRIPT = get_script("statefulSetLink")
glide.Logger.set_logger_config(glide.LogLevel.ERROR)

DOES = {
    "get": "one GET",
    "pipeline": "GETs gathered by the caller, one round trip",
    "sfroute": "GET + PTTL, stored, tracked",
    "script": "EVALSHA of statefulSetLink.lua",
    "sfroute write": "the same with an operation record; its lookups are dropped before and after",
}


def key_of(uid: str) -> str:
    """The link's key."""
    return link_key(NAMESPACE, uid, SERVICE)


def _script_keys(uid: str) -> list[str]:
    return [key_of(uid), link_prefix(NAMESPACE, uid)]


def _script_args(pod: int) -> list[str]:
    return [SERVICE, str(pod), "-1"]


class AsyncPeer(ABC):
    """A client for asyncio. Opened and closed on one event loop."""

    name: str
    does_get = DOES["get"]

    @abstractmethod
    async def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        """Connect."""

    @abstractmethod
    async def close(self) -> None:
        """End it."""

    @abstractmethod
    async def get(self, uid: str) -> object:
        """One lookup."""

    async def get_many(self, uids: list[str]) -> object:
        """A batch of lookups, the way this client does that best."""
        raise NotImplementedError

    async def link(self, uid: str, pod: int) -> object:
        """One write by script."""
        raise NotImplementedError


class RedisPy(AsyncPeer):
    """redis-py, asyncio."""

    name = "redis-py"

    async def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        host, port = nodes[0]
        self.client = AsyncRedisCluster(host=host, port=port, **OPTIONS)
        await self.client.initialize()
        self._script = self.client.register_script(SCRIPT.source)

    async def close(self) -> None:
        await self.client.aclose()

    async def get(self, uid: str) -> object:
        return await self.client.get(key_of(uid))

    async def get_many(self, uids: list[str]) -> object:
        pipe = self.client.pipeline()
        for uid in uids:
            pipe.get(key_of(uid))
        return await pipe.execute()

    async def link(self, uid: str, pod: int) -> object:
        return await self._script(keys=_script_keys(uid), args=_script_args(pod))


class Coredis(AsyncPeer):
    """coredis."""

    name = "coredis"

    async def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        host, port = nodes[0]
        # As many connections as there are callers at most: it pools them, and would have callers wait.
        self.client = coredis.RedisCluster(host, port, max_connections=128)
        self._stop = asyncio.Event()
        ready = asyncio.get_running_loop().create_future()
        # Its context must be left by the task that entered it.
        self._holding = asyncio.create_task(self._hold(ready))
        await ready
        self._script = self.client.register_script(SCRIPT.source)

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        async with self.client:
            ready.set_result(None)
            await self._stop.wait()

    async def close(self) -> None:
        self._stop.set()
        await self._holding

    async def get(self, uid: str) -> object:
        return await self.client.get(key_of(uid))

    async def get_many(self, uids: list[str]) -> object:
        async with self.client.pipeline(transaction=False) as pipe:
            replies = [pipe.get(key_of(uid)) for uid in uids]
        return [await reply for reply in replies]

    async def link(self, uid: str, pod: int) -> object:
        return await self._script(keys=_script_keys(uid), args=_script_args(pod))


class Glide(AsyncPeer):
    """valkey-glide, asyncio."""

    name = "valkey-glide"

    async def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        config = glide.GlideClusterClientConfiguration(
            [glide.NodeAddress(host, port) for host, port in nodes], request_timeout=10_000
        )
        self.client = await glide.GlideClusterClient.create(config)
        self._script = glide.Script(SCRIPT.source.decode())

    async def close(self) -> None:
        await self.client.close()

    async def get(self, uid: str) -> object:
        return await self.client.get(key_of(uid))

    async def get_many(self, uids: list[str]) -> object:
        batch = glide.ClusterBatch(is_atomic=False)
        for uid in uids:
            batch.get(key_of(uid))
        return await self.client.exec(batch, raise_on_error=True)

    async def link(self, uid: str, pod: int) -> object:
        return await self.client.invoke_script(
            self._script, keys=list(_script_keys(uid)), args=list(_script_args(pod))
        )


class Sfroute(AsyncPeer):
    """This library."""

    name = "sfroute"
    does_get = DOES["sfroute"]

    def __init__(self, config: sfroute.RouterConfig) -> None:
        self._config = config

    async def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        hosts = ",".join(f"{host}:{port}" for host, port in nodes)
        self.router = sfroute.AsyncRouter.from_url(f"redis+cluster://{hosts}", config=self._config)
        await self.router.open()

    async def close(self) -> None:
        await self.router.aclose()

    async def get(self, uid: str) -> object:
        return await self.router.get_linked_pod(NAMESPACE, uid, SERVICE)

    async def get_many(self, uids: list[str]) -> object:
        return await self.router.batch_get_linked_pod(NAMESPACE, uids, SERVICE)

    async def link(self, uid: str, pod: int) -> object:
        return await self.router.set_linked_pod(NAMESPACE, uid, SERVICE, pod)


class SyncPeer(ABC):
    """A client for threads."""

    name: str
    does_get = DOES["get"]

    @abstractmethod
    def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        """Connect."""

    @abstractmethod
    def close(self) -> None:
        """End it."""

    @abstractmethod
    def get(self, uid: str) -> object:
        """One lookup."""

    def get_many(self, uids: list[str]) -> object:
        """A batch of lookups, the way this client does that best."""
        raise NotImplementedError


class RedisPySync(SyncPeer):
    """redis-py."""

    name = "redis-py"

    def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        host, port = nodes[0]
        self.client = RedisCluster(host=host, port=port, **OPTIONS)

    def close(self) -> None:
        self.client.close()

    def get(self, uid: str) -> object:
        return self.client.get(key_of(uid))

    def get_many(self, uids: list[str]) -> object:
        pipe: Any = self.client.pipeline()  # type: ignore[no-untyped-call]
        for uid in uids:
            pipe.get(key_of(uid))
        return pipe.execute()


class GlideSync(SyncPeer):
    """valkey-glide for threads."""

    name = "valkey-glide-sync"

    def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        config = glide_sync.GlideClusterClientConfiguration(
            [glide_sync.NodeAddress(host, port) for host, port in nodes], request_timeout=10_000
        )
        self.client = glide_sync.GlideClusterClient.create(config)

    def close(self) -> None:
        self.client.close()

    def get(self, uid: str) -> object:
        return self.client.get(key_of(uid))

    def get_many(self, uids: list[str]) -> object:
        batch = glide_sync.ClusterBatch(is_atomic=False)
        for uid in uids:
            batch.get(key_of(uid))
        return self.client.exec(batch, raise_on_error=True)


class SfrouteSync(SyncPeer):
    """This library."""

    does_get = DOES["sfroute"]

    def __init__(self, config: sfroute.RouterConfig, name: str = "sfroute") -> None:
        self._config = config
        self.name = name

    def open(self, nodes: Sequence[tuple[str, int]]) -> None:
        hosts = ",".join(f"{host}:{port}" for host, port in nodes)
        self.router = sfroute.Router.from_url(f"redis+cluster://{hosts}", config=self._config)
        self.router.open()

    def close(self) -> None:
        self.router.close()

    def get(self, uid: str) -> object:
        return self.router.get_linked_pod(NAMESPACE, uid, SERVICE)

    def get_many(self, uids: list[str]) -> object:
        return self.router.batch_get_linked_pod(NAMESPACE, uids, SERVICE)


class Raw:
    """Blocking sockets and hiredis, nothing else: what server, kernel and parser need."""

    def __init__(self, owner_of: Callable[[int], tuple[str, int]]) -> None:
        self._owner_of = owner_of
        self._sockets: dict[tuple[str, int], tuple[socket.socket, hiredis.Reader]] = {}

    def close(self) -> None:
        """End it."""
        for connection, _ in self._sockets.values():
            connection.close()

    def pack(self, uids: Sequence[str], *, pttl: bool) -> list[tuple[tuple[str, int], bytes, int]]:
        """The lookups as bytes: node, what to send, how many replies come."""
        keys = sorted(
            ((self._owner_of(slot_of(key)), key) for key in map(key_of, uids)),
            key=lambda pair: pair[0],
        )
        packed = []
        for node, group in groupby(keys, key=lambda pair: pair[0]):
            commands = [
                hiredis.pack_command((name, key))  # type: ignore[arg-type]
                for _, key in group
                for name in (("GET", "PTTL") if pttl else ("GET",))
            ]
            packed.append((node, b"".join(commands), len(commands)))
        return packed

    def ask(self, packed: list[tuple[tuple[str, int], bytes, int]]) -> None:
        """Send to every node, then read all replies."""
        for node, payload, _ in packed:
            if node not in self._sockets:
                connection = socket.create_connection(node)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets[node] = connection, hiredis.Reader()
            self._sockets[node][0].sendall(payload)
        for node, _, expected in packed:
            connection, reader = self._sockets[node]
            replies = 0
            while replies < expected:
                reader.feed(connection.recv(65536))
                while reader.gets() is not False:
                    replies += 1
