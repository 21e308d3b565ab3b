"""A proxy in front of each node of a cluster, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from support.proxy import ProxiedCluster, Proxy

__all__ = ["Network"]


class Network:
    """A context manager for ``with``."""

    def __init__(
        self, nodes: Sequence[tuple[str, int]], primaries: Sequence[tuple[str, int]]
    ) -> None:
        self._nodes = nodes
        self._primaries = primaries
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies")
        self._proxied: ProxiedCluster | None = None

    def __enter__(self) -> Self:
        self._thread.start()

        async def begin() -> ProxiedCluster:
            return await ProxiedCluster(self._nodes).__aenter__()

        self._proxied = asyncio.run_coroutine_threadsafe(begin(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._proxied is not None:
            ending = self._proxied.__aexit__(None, None, None)
            asyncio.run_coroutine_threadsafe(ending, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def remap(self) -> dict[str, tuple[str, int]]:
        """``"host:port"`` of a node -> the address of its proxy."""
        assert self._proxied is not None
        return {f"{host}:{port}": p.address for (host, port), p in self._proxied.proxies.items()}

    def choose(self, rng: random.Random) -> Proxy:
        """The proxy of a primary."""
        assert self._proxied is not None
        return self._proxied.proxies[rng.choice(self._primaries)]

    def proxies(self) -> list[Proxy]:
        """Those of all nodes."""
        assert self._proxied is not None
        return list(self._proxied.proxies.values())

    def do(self, action: Callable[[], object]) -> None:
        """Do something to a proxy, on its loop."""

        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result()
