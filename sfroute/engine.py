"""The engine: everything that does I/O, from opening to closing. Both routers are faces of one.

It opens once, on the event loop that first needs it, and belongs to that loop.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable
from threading import get_ident
from typing import Final

from . import forks
from .cache import LookupCache
from .config import RouterConfig
from .errors import ConfigError, RouterClosed
from .lookup import Lookups
from .store import Command, Store
from .targets import StoreTarget
from .telemetry import Telemetry
from .topology import Topology, make_topology
from .types import CacheStats, RouterStats
from .views import PodViews
from .wire import encode

__all__ = ["Engine", "OpenEngine", "checked_config"]


_ANOTHER_LOOP: Final = "this AsyncRouter is open on another event loop; make one router per loop"


def checked_config(config: RouterConfig | None) -> RouterConfig:
    """The configuration, or that of a router that was given none. Raises ``ConfigError``."""
    if config is None:
        return RouterConfig()
    if not isinstance(config, RouterConfig):
        raise ConfigError(f"config must be a RouterConfig, not {type(config).__name__}")
    return config


class OpenEngine:
    """The parts of an engine that is open."""

    def __init__(self, topology: Topology, lookups: Lookups, store: Store, views: PodViews) -> None:
        self.topology = topology
        self.lookups = lookups
        self.store = store
        self.views = views
        self.loop = asyncio.get_running_loop()
        self.thread = get_ident()

    async def close(self) -> None:
        """End every task and connection; commands under way end as their contracts say."""
        await self.views.close()
        await self.lookups.close()
        await self.store.close()
        await self.topology.close()

    def give_up_after_fork(self) -> None:
        """In a forked child: nothing inherited is used or finalized any more."""
        self.lookups.connections_after_fork()
        self.store.connections_after_fork()
        forks.keep_forever(self)


class Engine:
    """See the module's text.

    Attributes:
        cache: the local cache; replaced in a forked child.
        parts: what is open, None before opening and after closing.
    """

    def __init__(self, target: StoreTarget, config: RouterConfig) -> None:
        self._target = target
        self.config = config
        self.clock: Callable[[], float] = time.monotonic
        self._closed = False
        self.telemetry = Telemetry(config.telemetry, self.clock)
        self._start_afresh()
        forks.register(self)

    def _start_afresh(self) -> None:
        self.parts: OpenEngine | None = None
        self._opening: asyncio.Task[OpenEngine] | None = None
        self.cache = LookupCache(self.config.cache, self.clock, self.telemetry.lag)
        self.retries: Counter[str] = Counter()
        self.placements: Counter[str] = Counter()
        self.pod_conflicts = 0
        # Unique among all that write to the store; each write counts on.
        self._identity = secrets.token_hex(8)
        self._operations = itertools.count()

    @property
    def closed(self) -> bool:
        """True once ``close`` was called."""
        return self._closed

    def operation_token(self) -> str:
        """A name for one write, unlike that of any other write."""
        return f"{self._identity}{next(self._operations):x}"

    def parts_here(self) -> OpenEngine | None:
        """The open parts if their event loop is the one that runs in this thread, and in this thread they were opened:
        ``opened()`` without a coroutine, for the hot path. None leaves the question to ``opened()``.
        """
        parts = self.parts
        # asyncio.get_running_loop() asks the system for the process id each time, for a twentieth of a miss.
        if parts is None or parts.thread != get_ident() or not parts.loop.is_running():
            return None
        return parts

    async def opened(self) -> OpenEngine:
        """The open parts; opens them if need be.

        Raises:
            StoreUnavailable: no start node answered before the deadline.
            ConfigError: it is open on another event loop.
            RouterClosed: it was closed.
        """
        parts = self.parts
        if parts is not None:
            if parts.loop is not asyncio.get_running_loop():
                raise ConfigError(_ANOTHER_LOOP)
            return parts
        if self._closed:
            raise RouterClosed
        if self._opening is None or self._opening.done():
            # One that ended while nobody waited any more failed then, not now.
            self._opening = asyncio.get_running_loop().create_task(self._open())
            # Whoever waits for it is told; if nobody does any more, its error is nobody's.
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        opening = self._opening
        try:
            # One caller giving up must not fail the others.
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if self._closed and opening.cancelled():
                raise RouterClosed from None
            raise
        finally:
            if opening.done() and self._opening is opening:
                self._opening = None

    async def _open(self) -> OpenEngine:
        settings = self._target.wire_settings(self.config)
        topology = make_topology(self._target, self.config)
        try:
            await topology.open()
        except BaseException:
            await topology.close()
            raise
        lookups = Lookups(
            topology,
            settings,
            self.config,
            self.cache,
            self.clock,
            self.retries,
            self.telemetry,
        )
        store = Store(topology, settings, self.config, self.clock, self.retries, self.telemetry)
        views = PodViews(store, self.config.placement, self.clock)
        parts = OpenEngine(topology, lookups, store, views)
        try:
            if not self._target.cluster:
                # A cluster has answered for its slot map; a single node has not been asked anything.
                await store.run(Command("open", "", "PING", encode("PING")))
            await store.preload_scripts()
        except BaseException:
            await parts.close()
            raise
        self.parts = parts
        self.telemetry.opened(self)
        return parts

    async def close(self) -> None:
        """End it for good; a borrowed client stays open.

        Raises:
            ConfigError: it is open on another event loop, which still can be used.
        """
        if self._closed:
            return
        parts = self.parts
        loop_is_gone = parts is not None and parts.loop.is_closed()
        if parts is not None and parts.loop is not asyncio.get_running_loop() and not loop_is_gone:
            raise ConfigError(_ANOTHER_LOOP)
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        parts, self.parts = self.parts, None
        # A loop that was closed before its router has left nothing to end: nothing of it can run any more, and its
        # sockets go with it.
        if parts is not None and not loop_is_gone:
            await parts.close()
        await self.telemetry.close(self)

    def after_fork_in_child(self) -> None:
        """Forget the parent's; the next call opens anew."""
        if self.parts is not None:
            self.parts.give_up_after_fork()
        forks.keep_forever(self._opening)
        self.telemetry.after_fork_in_child()
        self._start_afresh()

    def stats(self) -> RouterStats:
        """A snapshot of the cache, the lanes and the retries."""
        counts, entries = self.cache.counts, self.cache.entries
        return RouterStats(
            cache=CacheStats(
                hits=counts.hits,
                misses=counts.misses,
                joined=counts.joined,
                stale=counts.stale,
                invalidations=counts.invalidations,
                dropped=counts.dropped,
                evictions=entries.evictions,
                entries=len(entries),
                max_entries=self.config.cache.max_entries,
            ),
            lanes=self.parts.lookups.lanes() if self.parts is not None else (),
            retries=dict(self.retries),
            placements=dict(self.placements),
            pod_conflicts=self.pod_conflicts,
            spans_dropped=self.telemetry.dropped,
        )
