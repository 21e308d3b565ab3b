"""Metrics: instruments that read the routers' plain counters when asked, and two histograms.

Instruments belong to the process, not to a router: a meter allows each name once. Counters of all open routers are
added up, and what a closed one had counted is kept, so that a counter never falls.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from .. import forks
from .._version import __version__
from ..failures import RETRIED_CODES
from ..types import RouterStats
from . import names

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

__all__ = ["Instruments", "instruments"]


class Source(Protocol):
    """A router's engine."""

    def stats(self) -> RouterStats:
        """A snapshot."""
        ...


Reading = dict[tuple[str, tuple[tuple[str, str], ...]], int]
"""Name and labels -> value. No ``Counter``: adding those loses zeros, and a dashboard wants to see a zero."""

RETRY_REASONS: Final = (*RETRIED_CODES, "connection", "no owner")
PLACEMENTS: Final = ("placed", "moved")
"""Counted from zero, and so reported before they first happen: a series that begins with its first event hides that
event from ``rate()`` and ``increase()``."""


class Instruments:
    """The instruments of one meter and the routers they read."""

    def __init__(self, meter: Meter) -> None:
        self._sources: weakref.WeakSet[Source] = weakref.WeakSet()
        self.after_fork_in_child()
        forks.register(self)
        self.duration: Histogram = meter.create_histogram(
            names.OPERATION_DURATION,
            unit="s",
            description="Duration of calls that the cache alone could not answer.",
            explicit_bucket_boundaries_advisory=names.SECONDS_BUCKETS,
        )
        self.lag: Histogram = meter.create_histogram(
            names.INVALIDATION_LAG,
            unit="s",
            description="From sending an own write to the push that reports it on the lane.",
            explicit_bucket_boundaries_advisory=names.SECONDS_BUCKETS,
        )
        for name, unit, description in (
            (names.CACHE_REQUESTS, "{request}", "Look-ups, by what the cache did."),
            (names.CACHE_EVICTIONS, "{entry}", "Entries removed because the cache was full."),
            (names.CACHE_INVALIDATIONS, "{key}", "Keys that servers reported as changed."),
            (names.LINKS_PLACED, "{link}", "Links made or moved by route()."),
            (names.POD_CONFLICTS, "{process}", "Other processes that claim a pod id in use here."),
            (names.RETRIES, "{retry}", "Commands sent again, by reason."),
            (names.STALE_ANSWERS, "{answer}", "Answers served past their bound, marked stale."),
            (names.SPANS_DROPPED, "{span}", "Spans lost because the queue was full."),
        ):
            meter.create_observable_counter(
                name, callbacks=[self._reader(name)], unit=unit, description=description
            )
        for name, unit, description in (
            (names.CACHE_ENTRIES, "{entry}", "Entries held."),
            (names.LANES, "{lane}", "Lookup lanes."),
            (names.LANES_HEALTHY, "{lane}", "Lanes that are connected and answer their heartbeat."),
            (names.LANES_TRACKED, "{lane}", "Lanes on which the server pushes invalidations."),
        ):
            meter.create_observable_up_down_counter(
                name, callbacks=[self._reader(name)], unit=unit, description=description
            )

    def after_fork_in_child(self) -> None:
        """What the parent has counted is the parent's."""
        self._retired: Reading = {}
        self._lock = threading.Lock()

    def add(self, source: Source) -> None:
        """Read this router from now on."""
        with self._lock:
            self._sources.add(source)

    def retire(self, source: Source) -> None:
        """A router closes: keep what it has counted."""
        with self._lock:
            if source in self._sources:
                self._sources.discard(source)
                _add(self._retired, _counters(source))

    def _reader(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                total = dict(self._retired)
                sources = list(self._sources)
            for source in sources:
                _add(total, _counters(source))
                _add(total, _gauges(source))
            return [
                Observation(value, dict(labels))
                for (counted, labels), value in total.items()
                if counted == name
            ]

        return read


def _add(total: Reading, reading: Reading) -> None:
    for key, value in reading.items():
        total[key] = total.get(key, 0) + value


def _counters(source: Source) -> Reading:
    stats = source.stats()
    cache = stats.cache
    reading: Reading = {}
    for outcome, value in (
        (names.HIT, cache.hits),
        (names.MISS, cache.misses),
        (names.JOINED, cache.joined),
    ):
        reading[names.CACHE_REQUESTS, ((names.OUTCOME, outcome),)] = value
    reading[names.CACHE_EVICTIONS, ()] = cache.evictions
    reading[names.CACHE_INVALIDATIONS, ()] = cache.invalidations
    reading[names.STALE_ANSWERS, ()] = cache.stale
    reading[names.POD_CONFLICTS, ()] = stats.pod_conflicts
    reading[names.SPANS_DROPPED, ()] = stats.spans_dropped
    for reason, value in {**dict.fromkeys(RETRY_REASONS, 0), **stats.retries}.items():
        reading[names.RETRIES, ((names.RETRY_REASON, reason),)] = value
    for reason, value in {**dict.fromkeys(PLACEMENTS, 0), **stats.placements}.items():
        reading[names.LINKS_PLACED, ((names.REASON, reason),)] = value
    return reading


def _gauges(source: Source) -> Reading:
    stats = source.stats()
    reading: Reading = {}
    reading[names.CACHE_ENTRIES, ()] = stats.cache.entries
    reading[names.LANES, ()] = len(stats.lanes)
    reading[names.LANES_HEALTHY, ()] = sum(lane.healthy for lane in stats.lanes)
    reading[names.LANES_TRACKED, ()] = sum(lane.tracked for lane in stats.lanes)
    return reading


_lock = threading.Lock()
_by_provider: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()
_global: Instruments | None = None


def instruments(provider: MeterProvider | None) -> Instruments:
    """The instruments of a provider; of the process's own (set now, later or never) for None."""
    global _global  # noqa: PLW0603  (one meter, one set of instruments)
    with _lock:
        # A meter allows each name once, also for those who name the process's own provider.
        if provider is None or provider is metrics.get_meter_provider():
            if _global is None:
                _global = Instruments(
                    metrics.get_meter(names.SCOPE, __version__, schema_url=names.SCHEMA_URL)
                )
            return _global
        found = _by_provider.get(provider)
        if found is None:
            meter = provider.get_meter(names.SCOPE, __version__, schema_url=names.SCHEMA_URL)
            found = _by_provider[provider] = Instruments(meter)
        return found
