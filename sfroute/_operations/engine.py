"""The engine: everything that does I/O, from opening to closing. Both routers are fronts of one.

It opens once, on the event loop that first needs it, and belongs to that loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from threading import get_ident
from typing import Final

from .. import _forks as forks
from .._chance import chance
from .._commands.command import Command
from .._commands.commands import Commands
from .._contract.error_replies import Kind, read_failure
from .._contract.introduction import introduce
from .._lookups.cache import LookupCache
from .._lookups.dispatch import Dispatch
from .._lookups.lookups import Lookups
from .._native import heart
from .._net.cluster_topology import make_topology
from .._net.connection import encode
from .._net.lineage import Lineage
from .._net.outage import Outage
from .._net.targets import StoreTarget
from .._net.timeouts import GiveUp, give_up_after, seconds_of
from .._net.topology import Topology
from .._pods.observed import pods_seen
from .._pods.views import PodViews
from ..config import RouterConfig
from ..errors import ConfigError, RouterClosed, StoreUnavailable
from ..telemetry import PodsSeen, Telemetry
from ..telemetry.records import of_no_call
from ..types import CacheStats, RouterStats

__all__ = ["Engine", "Parts", "checked_config"]


OUT_OF_DATE_SECONDS: Final = 60.0
"""A view of pods older than this is nothing that metrics should show as the present."""

_ANOTHER_LOOP: Final = "this AsyncRouter is open on another event loop; make one router per loop"


def checked_config(config: RouterConfig | None) -> RouterConfig:
    """The configuration, or that of a router that was given none. Raises ``ConfigError``."""
    if config is None:
        return RouterConfig()
    if not isinstance(config, RouterConfig):
        raise ConfigError(f"config must be a RouterConfig, not {type(config).__name__}")
    return config


class Parts:
    """What an open engine consists of."""

    # What the native part reads, where it finds it.
    __slots__ = ("__dict__", "__weakref__", "lookups", "loop", "thread")

    def __init__(
        self,
        topology: Topology,
        lineage: Lineage,
        dispatch: Dispatch,
        lookups: Lookups,
        commands: Commands,
        views: PodViews,
    ) -> None:
        self.topology = topology
        self.lineage = lineage
        self.dispatch = dispatch
        self.lookups = lookups
        self.commands = commands
        self.views = views
        self.loop = asyncio.get_running_loop()
        self.thread = get_ident()

    async def close(self) -> None:
        """End every task and connection; commands under way end as their contracts say."""
        await self.views.close()
        await self.dispatch.close()
        await self.commands.close()
        await self.topology.close()

    def give_up_after_fork(self) -> None:
        """In a forked child: nothing inherited is used or finalized any more."""
        self.dispatch.give_up_after_fork()
        self.commands.give_up_after_fork()
        self.topology.give_up_after_fork()
        forks.keep_forever(self)


class Engine:
    """See the module's docstring.

    Attributes:
        cache: the local cache; replaced in a forked child.
        parts: what is open, None before opening and after closing.
    """

    # What the native part reads, where it finds it.
    __slots__ = ("__dict__", "__weakref__", "parts")

    def __init__(self, target: StoreTarget, config: RouterConfig) -> None:
        self._target = target
        self.config = target.completed(config)
        self.clock: Callable[[], float] = time.monotonic
        self._closed = False
        self.telemetry = Telemetry(
            config.telemetry, self.clock, config.logger or logging.getLogger("sfroute")
        )
        self._start_afresh()
        self.telemetry.count_hits_by(self._count_hits)
        forks.register(self.after_fork_in_child)

    def _start_afresh(self) -> None:
        self.parts: Parts | None = None
        self._opening: asyncio.Task[Parts] | None = None
        self._finishing: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self.cache = LookupCache(self.config.cache, self.clock, self.telemetry.lag)
        self.retries: Counter[str] = Counter()
        self.placements: Counter[str] = Counter()
        self.failures_reported = 0
        self.pod_conflicts = 0
        # Unique among all that write to the store; each write counts on.
        self._identity = secrets.token_urlsafe(8)
        self._operations = itertools.count()

    def _count_hits(self) -> int:
        counts = self.cache.counts
        return counts.hits - counts.inner_hits

    @property
    def closed(self) -> bool:
        """True once ``close`` was called."""
        return self._closed

    def operation_token(self) -> str:
        """A name for one write, unlike that of any other write."""
        return f"{self._identity}{next(self._operations):x}"

    def give_up(self, timeout: float | None) -> GiveUp | None:
        """The instant at which a call that begins now is given up; None for the configured deadline.

        Raises ``InvalidArgument``.
        """
        return None if timeout is None else give_up_after(timeout, self.clock)

    def parts_here(self) -> Parts | None:
        """The open parts if their event loop is the one that runs in this thread, and in this thread they were opened:
        ``opened()`` without a coroutine, for the hot path. None leaves the question to ``opened()``.
        """
        parts = self.parts
        # asyncio.get_running_loop() asks the system for the process id each time, for a twentieth of a miss.
        if parts is None or parts.thread != get_ident() or not parts.loop.is_running():
            return None
        return parts

    async def opened_by(self, give_up: float | None, operation: str) -> Parts:
        """``opened()`` for a call that has until ``give_up``; None: as long as opening may take.

        Raises what ``opened()`` raises; ``StoreUnavailable`` at ``give_up``.
        """
        parts = self.parts_here()
        if parts is not None:
            return parts
        if give_up is None:
            return await self.opened()
        failed: StoreUnavailable | None = None
        attempts = 0
        while True:
            try:
                async with asyncio.timeout(max(0.0, give_up - self.clock())):
                    return await self.opened()
            except TimeoutError as error:
                seconds = seconds_of(give_up, self.config.retry.deadline)
                raise StoreUnavailable(
                    f"{operation}: the router could not be opened within {seconds:g} s; nothing was changed. "
                    "The store may be down or failing over",
                    operation=operation,
                ) from failed or error
            except StoreUnavailable as error:
                # Opening began before this call, or takes less time than it. It may fail at once, again and again.
                failed = error
                attempts += 1
                pause = self.config.retry.pause(attempts, chance.random())
                await asyncio.sleep(min(pause, give_up - self.clock()))
                if self.clock() >= give_up:
                    raise

    async def opened(self) -> Parts:
        """The open parts; opens them if need be.

        Raises:
            StoreUnavailable: no start node answered before the deadline.
            ConfigError: it is open on another event loop.
            RouterClosed: it was closed.
        """
        parts = self.parts
        if parts is not None and parts.loop is not asyncio.get_running_loop():
            forks.notice()
            if self.parts is not None:
                raise ConfigError(_ANOTHER_LOOP)
            parts = None
        if parts is not None:
            return parts
        if self._closed:
            raise RouterClosed
        if self._opening is None or self._opening.done():
            # One that ended while nobody waited any more failed then, not now.
            loop = asyncio.get_running_loop()
            self._opening = loop.create_task(self._open(), context=of_no_call())
            # Waiters get its error. If nobody waits any more, the error is dropped without a warning.
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

    async def _open(self) -> Parts:
        # Digits, as far as a name in lists goes: random, so that it is another router's in a forked child.
        shown_as = introduce(self.config, f"{secrets.randbelow(10**10):010}")
        settings = self._target.wire_settings(self.config, shown_as)
        topology = make_topology(self._target, settings, self.config)
        try:
            await topology.open()
        except BaseException:
            await topology.close()
            raise
        outage = Outage(
            self.config.logger_for("store"),
            self.clock,
            lambda: self.cache.counts.stale,
            self.config.cache.stale_if_error,
        )
        lineage = Lineage(topology, self.clock, self.config.logger_for("store"))
        lineage.on_forgotten = self.telemetry.store_forgot
        dispatch = Dispatch(
            topology,
            lineage,
            settings,
            self.config,
            self.cache,
            self.clock,
            self.retries,
            self.telemetry,
            outage,
        )
        lookups = Lookups(dispatch, self.cache, self.clock, self.config.retry.deadline)
        commands = Commands(
            topology, settings, self.config, self.clock, self.retries, self.telemetry, outage
        )
        views = PodViews(commands, self.config, self.clock, self.config.logger_for("pods"))
        parts = Parts(topology, lineage, dispatch, lookups, commands, views)
        try:
            if not self._target.cluster:
                # A cluster has answered for its slot map; a single node has not been asked anything.
                try:
                    await commands.run(Command("open", "", "PING", encode("PING")))
                except StoreUnavailable as error:
                    # A server that cannot save its data (MISCONF) refuses PING as it refuses writes, and lets read.
                    if read_failure(str(error.__cause__)).kind is not Kind.FULL:
                        raise
        except BaseException:
            await parts.close()
            raise
        self.parts = parts
        self.telemetry.opened(self)
        return parts

    def finish_before_closing(self, task: asyncio.Task[None]) -> None:
        """The connections stay until this task is done, which deadlines must bound."""
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def close(self) -> None:
        """End it for good; a borrowed client stays open. Cancelling this does not keep it from happening.

        Raises:
            ConfigError: it is open on another event loop, which still can be used.
        """
        if not self._closed:
            parts = self.parts
            loop = asyncio.get_running_loop()
            loop_is_gone = parts is not None and parts.loop.is_closed()
            if parts is not None and parts.loop is not loop and not loop_is_gone:
                raise ConfigError(_ANOTHER_LOOP)
            self._closed = True
            self._closing = loop.create_task(self._close(loop_is_gone), context=of_no_call())
        closing = self._closing
        if closing is not None and closing.get_loop() is asyncio.get_running_loop():
            await asyncio.shield(closing)

    async def _close(self, loop_is_gone: bool) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        try:
            if self._finishing and not loop_is_gone:
                await asyncio.wait(self._finishing)
        finally:
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
        forks.keep_forever((self._opening, self._closing, self._finishing))
        self._start_afresh()
        # It counts from what the new cache has counted.
        self.telemetry.after_fork_in_child()

    def pods_seen(self) -> list[PodsSeen]:
        """What is known of the pods of each service that was asked for lately. Any thread may call it."""
        parts, now = self.parts, self.clock()
        if parts is None:
            return []
        ejected = parts.views.ejected()
        return [
            pods_seen(namespace, service, view, len(ejected.get((namespace, service), ())))
            for namespace, service, view in parts.views.seen()
            if view.pods and now - view.read_at < OUT_OF_DATE_SECONDS
        ]

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
            lanes=tuple(lane.stats() for lane in self.parts.dispatch.lanes)
            if self.parts is not None
            else (),
            retries=dict(self.retries),
            placements=dict(self.placements),
            pod_conflicts=self.pod_conflicts,
            failures_reported=self.failures_reported,
            ejected=self.parts.views.ejected() if self.parts is not None else {},
            spans_dropped=self.telemetry.dropped,
            native=heart is not None,
        )
