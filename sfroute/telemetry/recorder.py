"""The queue of records, and the worker that turns them into spans.

The caller's path only appends to a bounded queue. A thread of the router takes records out and makes real spans
(``spans.py``: sampler, processors, parent, true start and end times). Records that do not fit are dropped and counted.
Cached answers have a ring of their own, three quarters of the queue, so a flood of them cannot push out errors. When it
is full, the oldest of them is dropped: the ring does that in C, while a check would cost the caller a frame of Python.

Who may touch the queue and the ring: any thread appends. Only the worker takes records out; after it has ended, a late
caller does, under a lock.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Token, copy_context
from itertools import count
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from .logs import log_fields
from .records import CallRecord, HitRecord
from .spans import Record, SpanMaker

__all__ = ["FLUSH_SECONDS", "HitHook", "Recorder", "reader_of_context"]

_log = logging.getLogger("sfroute.telemetry")

POLL_SECONDS: Final = 0.1
"""How often the worker checks the queue. Waking it for each record would cost the caller more than the record."""

FLUSH_SECONDS: Final = 5.0
"""How long closing waits for the worker, which runs the application's processors. Those may block on anything."""

HitHook = tuple[Callable[[HitRecord], None], Callable[[], Context]]
"""How to record a cached answer: what takes the record, and what reads the caller's context for it. Callers put the
record together themselves: a function for that would cost more than all the rest."""


class Recorder:
    """The queue and its worker; see the module's docstring.

    Attributes:
        queue: records waiting for the worker, without those of cached answers.
        hits: cached answers waiting for the worker.
        count_hits: how many cached answers there have been, by the cache's own count.
    """

    def __init__(self, capacity: int, maker: SpanMaker, log: logging.Logger = _log) -> None:
        self._log = log
        self.queue: deque[Record] = deque()
        self.hits: deque[HitRecord] = deque(maxlen=capacity - capacity // 4)
        self.count_hits: Callable[[], int] = lambda: 0
        self._dropped = self._hits_dropped = 0
        self._hits_before = self._hits_taken = 0
        self._capacity = capacity
        self._maker = maker
        self._fresh_worker()

    def _fresh_worker(self) -> None:
        self._lock = threading.Lock()
        self._draining = threading.Lock()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        self._when_stopped: Callable[[], None] | None = None
        self._failed = False
        # True while a worker is running.
        self._attended = False
        self._ended = False

    def __len__(self) -> int:
        """How many records wait for the worker."""
        return len(self.queue) + len(self.hits)

    @property
    def dropped(self) -> int:
        """Records that became no span, because there was no room or a processor failed."""
        return self._dropped + max(self._hits_dropped, self._hits_missing())

    def _hits_missing(self) -> int:
        """The cached answers that the ring has dropped, as long as it is full; 0 otherwise."""
        if len(self.hits) != self.hits.maxlen:
            return 0
        return self.count_hits() - self._hits_before - self._hits_taken - len(self.hits)

    def push(self, record: Record, *, always: bool = False) -> bool:
        """Queue a record for the worker. False if the queue was full. ``always``: queue it even then."""
        if len(self) >= self._capacity and not always:
            self._dropped += 1
            if isinstance(record, CallRecord):
                record.lost = True
            return False
        self.queue.append(record)
        if not self._attended:
            self.attend()
        return True

    def hit_hook(self) -> HitHook:
        """Records cached answers after ``attend``."""
        self._hits_before = self.count_hits() - self._hits_taken - len(self.hits)
        return self.hits.append, reader_of_context()

    def attend(self) -> None:
        """Make sure that queued records are taken out."""
        with self._lock:
            if not self._stop.is_set() and self._worker is None:
                worker = threading.Thread(target=self._work, name="sfroute-telemetry", daemon=True)
                try:
                    worker.start()
                except RuntimeError:  # the interpreter is exiting: closing takes the records out
                    return
                self._worker = worker
                self._attended = True
                # Exit handlers run in reverse order. The application has set up its SDK by now, so this handler runs
                # before the SDK shuts down.
                atexit.register(self._at_exit)
        if self._ended:
            # A call was in progress while the router closed.
            self._drain()

    def stop(self, done: Callable[[], None]) -> None:
        """Turn everything queued into spans, then end. Calls ``done`` from the worker, or at once if there is none."""
        with self._lock:
            self._stop.set()
            worker = self._worker
            self._when_stopped = done
        atexit.unregister(self._at_exit)
        if worker is None or self._ended:
            self._drain()
            self._ended = True
            done()

    def give_up(self) -> int:
        """Drop everything queued, and return how many records that was."""
        left = len(self)
        self.queue.clear()
        self.hits.clear()
        self._dropped += left
        return left

    def after_fork_in_child(self) -> None:
        """Start over in a forked child, without the parent's records and worker."""
        # Emptied, not replaced: the hit hook has bound the ring.
        self.queue.clear()
        self.hits.clear()
        self._dropped = self._hits_dropped = self._hits_taken = 0
        self._fresh_worker()

    def _at_exit(self) -> None:
        self._stop.set()
        worker = self._worker
        if worker is not None:
            worker.join(FLUSH_SECONDS)
        # The SDK shuts down next, so later spans would go nowhere.
        self._maker.tracer = None

    # The worker

    def _work(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._drain()
        self._drain()
        self._ended = True
        self._attended = False
        # A caller that still saw a worker may have queued one more record.
        self._drain()
        if self._when_stopped is not None:
            self._when_stopped()

    def _drain(self) -> None:
        with self._draining:
            # An empty context, so that nothing below, such as an exporter's own requests, joins a caller's trace.
            token = otel_context.attach(Context())
            try:
                for number in count():
                    if number % 1000 == 0:
                        self._maker.look_at_the_clock()
                    try:
                        record = self._next()
                    except IndexError:
                        return
                    self._take(record)
            finally:
                otel_context.detach(token)

    def _next(self) -> Record:
        """Calls first: there are fewer of them, and they are not dropped as long as there is room."""
        if self.queue:
            return self.queue.popleft()
        self._hits_dropped = max(self._hits_dropped, self._hits_missing())
        record = self.hits.popleft()
        self._hits_taken += 1
        return record

    def _take(self, record: Record) -> None:
        try:
            self._maker.make(record)
        except Exception as error:  # noqa: BLE001 - the application's code failed, not the call
            # The application's sampler or processor failed, not the recorded call. It may fail for every span, so only
            # the first failure is logged with its traceback.
            self._dropped += 1
            level = logging.DEBUG if self._failed else logging.ERROR
            self._failed = True
            self._log.log(
                level,
                "a span could not be made: the application's sampler or processor failed",
                exc_info=True,
                extra=log_fields(error=error),
            )


def reader_of_context() -> Callable[[], Context]:
    """The cheapest function that reads the caller's OpenTelemetry context.

    The usual runtime context is one context variable, which is read in C. Others (Datadog's) compute the current
    context. They must be asked during the call: the spans around it may have ended later.
    """

    def probe() -> Callable[[], Context]:
        # Only the mark, and no span that could be taken for the current one.
        mark = otel_context.set_value("sfroute_probe", True, Context())
        token: object = otel_context.attach(mark)
        try:
            if isinstance(token, Token) and token.var.get() is otel_context.get_current() is mark:
                reader: Callable[[], Context] = token.var.get
                return reader
            return otel_context.get_current
        finally:
            otel_context.detach(token)  # type: ignore[arg-type]  # the token that attach returned

    return copy_context().run(probe)
