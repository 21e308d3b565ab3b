"""Blocking calls, each in a thread of its own: the system's resolver, an application's credential provider.

The event loop's default executor belongs to the application: a resolver that hangs would take all its threads. And the
interpreter waits at exit for the threads of a ``ThreadPoolExecutor``. Here a thread that hangs is left behind, and the
number of threads is bounded.

Who may touch it: only the event loop. A thread only runs the call and hands over the result. A forked child has none of
the threads, so the objects there make new ones (see ``_forks.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

__all__ = ["BlockingQuestions"]

_T = TypeVar("_T")


class _Question(Generic[_T]):
    """One call, running or waiting for a thread, and the callers that share its result."""

    def __init__(self, key: object, ask: Callable[[], _T]) -> None:
        self.key: Final = key
        self.ask: Final = ask
        self.askers: list[asyncio.Future[_T]] = []


class BlockingQuestions(Generic[_T]):
    """Runs at most ``threads`` calls at once, and never two with the same key."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._threads = threads
        self._under_way: dict[object, _Question[_T]] = {}
        self._waiting: deque[_Question[_T]] = deque()
        self._asked = 0

    async def ask(self, key: object, question: Callable[[], _T]) -> _T:
        """The result of ``question()``, run in a thread. Joins a call with the same ``key`` that is in progress.

        Raises what ``question()`` raises. Cancelling the caller affects neither the thread nor the other callers.
        """
        known = self._under_way.get(key)
        if known is None:
            known = self._under_way[key] = _Question(key, question)
            self._waiting.append(known)
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        known.askers.append(future)
        self._start()
        return await future

    def _start(self) -> None:
        """Start waiting calls while threads are free. Drop those whose callers were all cancelled."""
        while self._waiting and self._asked < self._threads:
            question = self._waiting.popleft()
            if all(asker.done() for asker in question.askers):
                del self._under_way[question.key]
                continue
            self._asked += 1
            threading.Thread(
                target=_ask,
                args=(question, asyncio.get_running_loop(), self._answered),
                name=self._name,
                daemon=True,
            ).start()

    def _answered(
        self, question: _Question[_T], result: _T | None, error: BaseException | None
    ) -> None:
        self._asked -= 1
        del self._under_way[question.key]
        for asker in question.askers:
            if asker.done():
                continue
            if error is not None:
                asker.set_exception(error)
            else:
                asker.set_result(result)  # type: ignore[arg-type]  # no error: a result
        self._start()


def _ask(
    question: _Question[_T],
    loop: asyncio.AbstractEventLoop,
    answered: Callable[[_Question[_T], _T | None, BaseException | None], None],
) -> None:
    """The body of a thread."""
    result: _T | None = None
    error: BaseException | None = None
    try:
        result = question.ask()
    except Exception as raised:  # noqa: BLE001 - the callers get it, whatever it is
        error = raised
    # RuntimeError: the loop was closed meanwhile, so no caller is waiting.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(answered, question, result, error)
