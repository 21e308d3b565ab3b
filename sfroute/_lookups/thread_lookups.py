"""Lookups that the calling thread makes itself, on a lane for threads (``thread_lanes.py``).

It takes the plain answer to a plain question. Everything else the event loop asks again and decides: a redirect, a
value that no link can be, a link that changes meanwhile, a node in trouble, all lanes in use.

Any thread may call it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, get_ident

from .._contract.keys import tag_and_slot
from .._net.connection import Address
from ..telemetry import CallRecord, ClientRecord, Telemetry, names
from .cache import Entry, Expected, Flight, LinkName, LookupCache
from .dispatch import Dispatch
from .packing import value_and_ttl
from .thread_lanes import MAX_QUESTION

__all__ = ["ThreadLookups"]


class ThreadLookups:
    """See the module's docstring.

    Args:
        dispatch: knows the lanes.
        cache: gets the answers.
        clock: monotonic seconds.
        patience: seconds to wait for another thread's answer; it waits no longer for the store's.
        telemetry: is told of questions as of the loop's.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        cache: LookupCache,
        clock: Callable[[], float],
        patience: float,
        telemetry: Telemetry,
    ) -> None:
        self._dispatch = dispatch
        self._cache = cache
        self._clock = clock
        self._patience = patience
        self._telemetry = telemetry

    def find(self, key: LinkName, record: CallRecord | None) -> Flight | None:
        """The finished flight of a lookup of a link. None: the loop must make it.

        ``record``: the public call it is for, as telemetry knows it.
        """
        tag, slot = tag_and_slot(key[0], key[1])
        lane = self._dispatch.known_lane(slot)
        if lane is None or lane.troubled or lane.not_now or self._cache.join(key) is not None:
            return None
        expected = self._cache.expected(key)
        if expected is not None:
            # A signal handler must not wait for the call that it has interrupted.
            mine = expected.thread == get_ident()
            return self._joined(expected, key, record) if not mine else None
        lanes, question = lane.threads, value_and_ttl(tag, key[2])
        if lanes is None or len(question) > MAX_QUESTION:
            return None
        own = lanes.take()
        if own is None:
            return None
        place = self._cache.expect(key, lanes.epoch, get_ident())
        entry = None
        try:
            batch = self._begun(place, record, lane.address, own.peer)
            sent = self._clock()
            answer = lanes.ask(own, question, sent)
            # A link may end between the two commands.
            if answer is not None and (answer[0] is None) == (answer[1] == -2):
                pod, ttl = answer
                entry = self._cache.answer(key, place, pod, ttl / 1000 if ttl >= 0 else None, sent)
            if batch is not None and entry is not None:
                self._telemetry.client_ended(batch)
        finally:
            place.end(entry if entry is not place else None)
        return _flight(key, entry)

    def _begun(
        self, place: Expected, record: CallRecord | None, server: Address, peer: Address
    ) -> ClientRecord | None:
        """What telemetry knows of the question; None if it need not know."""
        if record is None or place.calls is None:
            return None
        record.outcome = names.MISS
        place.calls.append(record)
        if not self._telemetry.tracing:
            return None
        batch = self._telemetry.batch([place.calls], {"GET"})
        if batch is not None:
            batch.server, batch.peer = server, peer
        return batch

    def _joined(
        self, expected: Expected, key: LinkName, record: CallRecord | None
    ) -> Flight | None:
        """The flight of another thread, once it is over."""
        self._cache.counts.joined += 1
        if record is not None:
            record.outcome = record.outcome or names.JOINED
        over = Lock()
        over.acquire()
        if expected.join(record, over.release):
            over.acquire(timeout=self._patience)
        entry = expected.answer
        # To who joined late it may be too old.
        late = entry is not None and self._clock() - entry.sent >= entry.epoch.max_age
        return _flight(key, entry if not late else None)


def _flight(key: LinkName, entry: Entry | None) -> Flight | None:
    if entry is None:
        return None
    flight = Flight(key, 0.0)
    flight.finish(entry=entry)
    return flight
