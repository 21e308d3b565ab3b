"""The thread behind a sync router: an event loop with an ``AsyncRouter`` in it, and the way in from other threads."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar, cast

from .._contract.keys import CacheKey
from .._lookups.answers import raise_unless_again
from .._lookups.cache import Entry, Flight, LinkName
from .._lookups.thread_lookups import ThreadLookups
from .._net.targets import StoreTarget
from .._net.timeouts import GiveUp
from .._operations.links import check_lookup
from ..config import RouterConfig
from ..errors import ConfigError, OutcomeUnknown, RouterClosed, StoreUnavailable
from ..telemetry import CallRecord
from ..telemetry.logs import log_fields
from .router import AsyncRouter

__all__ = ["Background", "open_routers"]

_log = logging.getLogger("sfroute.router")

_T = TypeVar("_T")

GRACE: Final = 1.0
"""Seconds that a thread waits for the loop beyond a call's deadline."""

CROWD: Final = 4
"""While this many threads wait for the loop, all lookups go there. What a crowd asks leaves together, which takes less
than a system call for each.
"""

_HELD_UP: Final = (
    "the router's background thread does not run; does a credential provider block it?"
)


class _ThreadWaiter:
    """A thread that waits for a flight. One lock is the lightest way to wake one thread."""

    __slots__ = ("_lock", "flight")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.flight: Flight | None = None

    def done(self) -> bool:
        return self.flight is not None

    def set_result(self, result: Flight) -> None:
        self.flight = result
        self._lock.release()

    def wait(self, seconds: float) -> Flight | None:
        """The finished flight. None if it takes longer than this."""
        return self.flight if self._lock.acquire(timeout=max(0.0, seconds)) else None


_Question = tuple[CacheKey, _ThreadWaiter, bool, CallRecord | None, float]


class Background:
    """The loop thread and the ``AsyncRouter`` in it.

    Any thread fills ``_inbox`` and the loop empties it. Once ``_stopped`` is set, the thread that puts a lookup in also
    empties it, so that no thread waits for a loop that has ended. Nor does a thread wait for a blocked loop: the loop
    ends every call by its deadline, and a thread that has waited longer checks whether the loop still runs.
    """

    def __init__(self, target: StoreTarget, config: RouterConfig) -> None:
        self.loop = (config.loop_factory or asyncio.new_event_loop)()
        self.router = AsyncRouter._of_target(target, config)
        self.inside = self.router._inside
        self._deadline = config.retry.deadline
        self._inbox: deque[_Question] = deque()
        self._awake = False
        self._thread_lookups: ThreadLookups | None = None
        # Who waits for the loop. Any thread puts itself in and out, in one step each.
        self._crowd: set[_ThreadWaiter] = set()
        self._stopped = False
        # Closed behind the last call that the loop will still run.
        self._door = threading.Lock()
        # Held here: a loop keeps only weak references to its tasks.
        self._ending: asyncio.Task[None] | None = None
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="sfroute", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self.loop.close()
            # So CPython says, from 3.12 on as soon as exit handlers run.
            if "interpreter shutdown" in str(error):
                raise RouterClosed(
                    "the interpreter is ending: no router can be opened any more"
                ) from error
            raise StoreUnavailable(
                "no thread could be started for the router; the process may have too many",
                operation="open",
            ) from error

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, where the thread is gone."""
        return self._process == os.getpid()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            # Remaining tasks end as in asyncio.run: no thread waits for a loop that is gone.
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()

    def call(self, coroutine: Coroutine[Any, Any, _T], timeout: float | None = None) -> _T:
        """Run on the loop; wait in this thread. ``timeout``: the call's own, checked."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise ConfigError(
                "a sync Router must not be called from its own background thread: it would wait for itself"
            )
        try:
            with self._door:
                if self._stopped:
                    raise RouterClosed
                future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except (RuntimeError, RouterClosed):  # RuntimeError: the loop was closed meanwhile
            coroutine.close()
            raise RouterClosed from None
        try:
            return self._result(future, self._deadline if timeout is None else timeout)
        except concurrent.futures.CancelledError:
            raise RouterClosed from None
        except BaseException:
            # KeyboardInterrupt and the like in this thread: nobody wants the work on the loop any more.
            future.cancel()
            raise

    def _result(self, future: concurrent.futures.Future[_T], seconds: float) -> _T:
        """A call's result, however long it takes, as long as the loop runs."""
        while True:
            try:
                return future.result(timeout=seconds + GRACE)
            except TimeoutError:
                if future.done():
                    return future.result()
            turned = threading.Event()
            self.loop.call_soon_threadsafe(turned.set)
            if not turned.wait(GRACE) and not future.done():
                raise OutcomeUnknown(f"the call may or may not have happened: {_HELD_UP}")

    def call_plain(self, function: Callable[[], _T]) -> _T:
        """Call a plain function on the loop; wait in this thread."""

        async def call() -> _T:
            return function()

        return self.call(call())

    def iterate(self, steps: AsyncGenerator[_T, None]) -> Generator[_T, None, None]:
        """An async generator's elements, one by one, in this thread."""
        # A step that was interrupted ends before the generator is closed.
        stepping = asyncio.Lock()

        async def step() -> tuple[bool, _T | None]:
            async with stepping:
                try:
                    return True, await anext(steps)
                except StopAsyncIteration:
                    return False, None

        async def close() -> None:
            async with stepping:
                await steps.aclose()

        try:
            while True:
                more, element = self.call(step())
                if not more:
                    return
                yield cast("_T", element)
        finally:
            with suppress(RouterClosed):  # then the end of the loop has closed it
                self.call(close())

    def cached(self, operation: str, key: CacheKey, *, fresh: bool) -> Entry | None:
        """The entry that answers now, if there is one. Needs no loop."""
        return self.inside.reader.cached(operation, key, fresh)

    def past_cache(
        self,
        operation: str,
        key: CacheKey,
        *,
        fresh: bool,
        stale_ok: bool,
        timeout: float | None = None,
    ) -> Flight:
        """The finished flight of a lookup that is a public call of its own. Raises what ``Lookups.find`` raises."""
        telemetry = self.inside.telemetry
        record = telemetry.begin(operation, key[0], key[2] if len(key) == 3 else None, key[1])
        if record is None:
            return self.look_up(operation, key, fresh, stale_ok, timeout=timeout)
        try:
            flight = self.look_up(operation, key, fresh, stale_ok, record, timeout)
        except BaseException as error:
            telemetry.end(record, error)
            raise
        record.stale = flight.stale
        telemetry.end(record)
        return flight

    def look_up(
        self,
        operation: str,
        key: CacheKey,
        fresh: bool,
        stale_ok: bool = True,
        record: CallRecord | None = None,
        timeout: float | None = None,
    ) -> Flight:
        """Past the cache: the finished flight. Raises what ``Lookups.find`` raises."""
        check_lookup(key)
        own = self.inside.engine.give_up(timeout)
        if self.inside.engine.parts is None:
            self.call(self.inside.engine.opened_by(own, operation), timeout)
        if own is None and not fresh and len(key) == 3 and len(self._crowd) < CROWD:
            flight = self._in_this_thread(key, record)
            if flight is not None:
                return flight
        give_up = own if own is not None else time.monotonic() + self._deadline
        while True:
            waiter = _ThreadWaiter()
            # The flight keeps the configured deadline for who joins it (see Lookups.find).
            ends = give_up if own is None else time.monotonic() + self._deadline
            self._crowd.add(waiter)
            try:
                self._inbox.append((key, waiter, fresh, record, ends))
                self._wake_loop()
                flight = waiter.wait(give_up - time.monotonic() + (GRACE if own is None else 0.0))
            finally:
                self._crowd.discard(waiter)
            if flight is None and own is not None:
                flight = self._given_up(waiter, key, own, stale_ok and not fresh)
            if flight is None:
                raise StoreUnavailable(f"{operation}: {_HELD_UP}", operation=operation)
            if flight.error is None:
                if stale_ok or not flight.stale:
                    return flight
                fresh = True
                continue
            raise_unless_again(flight.error, operation, time.monotonic() < give_up)

    def _in_this_thread(self, key: LinkName, record: CallRecord | None) -> Flight | None:
        """The finished flight of a lookup that this thread made. None: the loop must make it."""
        lookups = self._thread_lookups
        if lookups is None:
            engine = self.inside.engine
            parts = engine.parts
            if parts is None:
                return None
            patience = min(self._deadline, engine.config.cache.heartbeat_timeout)
            lookups = ThreadLookups(
                parts.dispatch, engine.cache, engine.clock, patience, engine.telemetry
            )
            self._thread_lookups = lookups
        return lookups.find(key, record)

    def _given_up(
        self, waiter: _ThreadWaiter, key: CacheKey, give_up: GiveUp, stale_ok: bool
    ) -> Flight | None:
        """What a call is told whose own time is over. None if the loop does not say."""
        parts = self.inside.engine.parts
        if parts is None:
            raise RouterClosed
        told: concurrent.futures.Future[Flight] = concurrent.futures.Future()
        lookups = parts.lookups

        def tell() -> None:
            # The answer may have come at the last moment.
            told.set_result(waiter.flight or lookups.given_up(key, give_up, stale_ok))

        try:
            self.loop.call_soon_threadsafe(tell)
            return told.result(GRACE)
        except TimeoutError:
            return None
        except RuntimeError:  # the loop was closed meanwhile
            raise RouterClosed from None

    def _wake_loop(self) -> None:
        if self._stopped:
            self._refuse_inbox()
        elif not self._awake:
            self._awake = True
            try:
                self.loop.call_soon_threadsafe(self._take_inbox)
            except RuntimeError:  # the loop was closed meanwhile
                self._refuse_inbox()

    def _take_inbox(self) -> None:
        # First the flag, then the inbox: a thread that still saw the flag set put its lookup in before the loop below.
        self._awake = False
        inbox = self._inbox
        parts = self.inside.engine.parts
        if parts is None:
            self._refuse_inbox()
            return
        while inbox:
            key, waiter, fresh, record, give_up = inbox.popleft()
            parts.lookups.request_again(key, waiter, fresh, record, give_up)

    def _refuse_inbox(self) -> None:
        while True:
            try:
                key, waiter, _, _, _ = self._inbox.popleft()
            except IndexError:
                return
            refused = Flight(key, 0.0)
            refused.waiters.append(waiter)
            refused.finish(error=RouterClosed())

    def stop(self) -> None:
        """Close the router, and end the loop and its thread. Whatever holds the loop up delays that."""
        try:
            with suppress(OutcomeUnknown):
                self.call(self.router.aclose())
        finally:
            with self._door:
                self._stopped = True
            self.loop.call_soon_threadsafe(self._end)
            self._thread.join(self._deadline + GRACE)
            self._refuse_inbox()

    def _end(self) -> None:
        async def end() -> None:
            # Calls that came in before the door closed get RouterClosed from the closed router. If the loop stopped
            # first, their threads would wait forever.
            inside = asyncio.all_tasks() - {self._ending}
            if inside:
                await asyncio.wait(inside)
            self.loop.stop()

        self._ending = self.loop.create_task(end())

    def abandon(self) -> None:
        """Like ``stop``, without waiting: for a finalizer, which may run in any thread."""
        self._stopped = True

        async def shut_down() -> None:
            await self.router.aclose()
            self.loop.stop()

        def begin() -> None:
            self._ending = self.loop.create_task(shut_down())

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(begin)


class _Closable(Protocol):
    def close(self) -> None: ...


open_routers: Final[weakref.WeakSet[_Closable]] = weakref.WeakSet()
"""The sync routers whose background runs. In any thread, a router adds itself when it opens and removes itself when it
closes."""


@atexit.register
def _close_all() -> None:
    """Close all routers before the interpreter ends the background threads: later calls raise instead of hanging."""
    for router in list(open_routers):
        try:
            router.close()
        except Exception as error:  # noqa: BLE001 - the others must be closed all the same
            _log.exception("closing a router at exit failed", extra=log_fields(error=error))
