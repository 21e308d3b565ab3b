"""The thread behind a sync router: an event loop with an ``AsyncRouter`` in it, and the way in from other threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, TypeVar, cast

from .cache import CacheKey, Flight
from .config import RouterConfig
from .errors import ConfigError, RouterClosed
from .links import check_lookup
from .lookup import raise_unless_again
from .router import AsyncRouter
from .targets import StoreTarget
from .telemetry import CallRecord

__all__ = ["Background"]

_T = TypeVar("_T")


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

    def wait(self) -> Flight:
        self._lock.acquire()
        assert self.flight is not None
        return self.flight


_Question = tuple[CacheKey, _ThreadWaiter, bool, CallRecord | None, float]


class Background:
    """The loop thread and the ``AsyncRouter`` in it.

    ``_inbox`` is filled by any thread and emptied by the loop; once ``_stopped`` is set, whoever put something in
    empties it, so that nobody waits for a loop that has ended.
    """

    def __init__(self, target: StoreTarget, config: RouterConfig) -> None:
        self.loop = (config.loop_factory or asyncio.new_event_loop)()
        self.router = AsyncRouter.of_target(target, config)
        self._deadline = config.retry.deadline
        self._inbox: deque[_Question] = deque()
        self._awake = False
        self._stopped = False
        # Closed behind the last call that the loop will still run.
        self._door = threading.Lock()
        # Held here: a loop keeps only weak references to its tasks.
        self._ending: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="sfroute", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            # What is still under way ends as in asyncio.run: nobody waits for a loop that is gone.
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run on the loop; wait in this thread."""
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
            return future.result()
        except concurrent.futures.CancelledError:
            raise RouterClosed from None
        except BaseException:
            # KeyboardInterrupt and the like in this thread: the work on the loop is not wanted any more.
            future.cancel()
            raise

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

    def look_up(
        self, operation: str, key: CacheKey, *, fresh: bool, record: CallRecord | None = None
    ) -> Flight:
        """Past the cache: the finished flight. Raises what ``Lookups.find`` raises."""
        check_lookup(key)
        if self.router.engine.parts is None:
            self.call(self.router.open())
        give_up = time.monotonic() + self._deadline
        while True:
            waiter = _ThreadWaiter()
            self._inbox.append((key, waiter, fresh, record, give_up))
            self._wake_loop()
            flight = waiter.wait()
            if flight.error is None:
                return flight
            raise_unless_again(flight.error, operation, time.monotonic() < give_up)

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
        # First the flag, then the box: whoever still found the flag set has put in what this loop takes out.
        self._awake = False
        inbox = self._inbox
        parts = self.router.engine.parts
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
        """Close the router, end the loop and its thread."""
        try:
            self.call(self.router.aclose())
        finally:
            with self._door:
                self._stopped = True
            self.loop.call_soon_threadsafe(self._end)
            self._thread.join()
            self._refuse_inbox()

    def _end(self) -> None:
        async def end() -> None:
            # Who came in before the door closed is told so by the closed router; a loop that stopped under them would
            # let their threads wait for ever.
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
