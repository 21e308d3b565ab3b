"""Metrics: instruments that read the routers' plain counters when asked, and two histograms.

Instruments belong to the process, not to a router: a meter allows each name once. A counter is the sum over all open
routers, plus what closed ones had counted, so it never falls.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from .. import _forks as forks
from .._contract.error_replies import RETRIED_CODES
from .._version import __version__
from ..types import RouterStats
from . import names
from .watched import Agents, BoundedNames, PodsSeen, newest

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

__all__ = ["Instruments", "instruments"]


class Tally(Protocol):
    """The counts that telemetry itself keeps.

    Attributes:
        happened: metric -> count.
        agents: the agents of pods.
    """

    happened: Counter[str]
    agents: Agents


class Source(Protocol):
    """A router's engine."""

    @property
    def telemetry(self) -> Tally:
        """Its telemetry."""
        ...

    def stats(self) -> RouterStats:
        """A snapshot."""
        ...

    def pods_seen(self) -> list[PodsSeen]:
        """Its pod views, as numbers."""
        ...


Reading = dict[tuple[str, tuple[tuple[str, str], ...]], int]
"""Name and labels -> value. Not a ``Counter``: adding counters drops zeros, and a dashboard must show a zero."""

RETRY_REASONS: Final = (*RETRIED_CODES, "connection", "no owner")
PLACEMENTS: Final = ("placed", "moved")
"""Reported from zero, before they first happen: a series that begins with its first event hides that event from
``rate()`` and ``increase()``."""


SUMMED: Final[dict[str, Callable[[PodsSeen], float | None]]] = {
    names.PODS_ROUTABLE: lambda seen: seen.routable,
    names.PODS_ROOM: lambda seen: seen.room,
    names.PODS_LOAD: lambda seen: seen.load,
    names.PODS_EMPTYING: lambda seen: seen.emptying,
    names.PODS_EJECTED: lambda seen: seen.ejected,
}
"""Gauges of a service that are added up over its namespaces."""


class Instruments:
    """The instruments of one meter and the routers they read."""

    def __init__(self, meter: Meter) -> None:
        self._sources: weakref.WeakSet[Source] = weakref.WeakSet()
        self.services = BoundedNames()
        self.after_fork_in_child()
        forks.register(self.after_fork_in_child)
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
            (names.CACHE_REQUESTS, "{request}", "Lookups, by what the cache did."),
            (names.CACHE_EVICTIONS, "{entry}", "Entries removed because the cache was full."),
            (names.CACHE_INVALIDATIONS, "{key}", "Keys that servers reported as changed."),
            (names.LANES_LOST, "{lane}", "Lanes whose connection was lost or closed."),
            (names.TOPOLOGY_CHANGES, "{change}", "Times that slots moved to another node."),
            (names.LINKS_PLACED, "{link}", "Links made or moved by route()."),
            (names.POD_CONFLICTS, "{process}", "Other processes that claim a pod id in use here."),
            (names.POD_FAILURES, "{report}", "Failures to reach a pod that callers reported."),
            (names.RETRIES, "{retry}", "Commands sent again, by reason."),
            (names.STALE_ANSWERS, "{answer}", "Answers served past their bound, marked stale."),
            (names.SPANS_DROPPED, "{span}", "Spans lost because the queue was full."),
            (
                names.AGENT_HEARTBEATS,
                "{heartbeat}",
                "Heartbeats of agents, by what became of them.",
            ),
            (names.AGENT_LOST, "{claim}", "Claims that agents have lost, by reason."),
            (names.AGENT_CONFIRMED, "{claim}", "Claims looked up again and found unchanged."),
            (names.AGENT_REASSERTED, "{claim}", "Claims made again after the store had forgotten."),
            (
                names.STORE_FORGOTTEN,
                "{time}",
                "Times that a primary was found to have lost its data.",
            ),
        ):
            meter.create_observable_counter(
                name, callbacks=[self._reader(name)], unit=unit, description=description
            )
        for name, unit, description in (
            (names.CACHE_ENTRIES, "{entry}", "Entries held."),
            (names.LANES, "{lane}", "Lookup lanes."),
            (names.LANES_HEALTHY, "{lane}", "Lanes that are connected and answer their heartbeat."),
            (names.LANES_TRACKED, "{lane}", "Lanes on which the server pushes invalidations."),
            (names.AGENT_CLAIMS, "{claim}", "Users that agents hold."),
            (names.AGENT_SESSIONS, "{session}", "Connections of the users that agents hold."),
            (names.AGENT_DRAIN_LEFT, "{user}", "Users who are still to go from draining pods."),
        ):
            meter.create_observable_up_down_counter(
                name, callbacks=[self._reader(name)], unit=unit, description=description
            )
        for name, unit, description in (
            (names.PODS, "{pod}", "Pods, as the router that looked last has seen them."),
            (names.PODS_ROUTABLE, "{pod}", "Pods that may take new users."),
            (names.PODS_ROOM, "{user}", "Users that pods may still take, where these say."),
            (names.PODS_LOAD, "{load}", "Sum of the loads of pods that may take new users."),
            (names.PODS_EMPTYING, "{pod}", "Pods that are being evacuated."),
            (names.PODS_EJECTED, "{pod}", "Pods that get no new users from here, as reported."),
            (names.PODS_HEARTBEAT_AGE, "s", "Age of the oldest last heartbeat of a living pod."),
            (
                names.PODS_LOAD_SKEW,
                "{multiple}",
                "Highest load of a pod as a multiple of their mean.",
            ),
            (names.AGENT_LEASE_MARGIN, "s", "Least time until an agent's lease would run out."),
        ):
            meter.create_observable_gauge(
                name, callbacks=[self._gauge(name)], unit=unit, description=description
            )

    def after_fork_in_child(self) -> None:
        """Start from zero in a forked child."""
        self._retired: Reading = {}
        self._lock = threading.Lock()

    def add(self, source: Source) -> None:
        """Read this router from now on."""
        with self._lock:
            self._sources.add(source)

    def retire(self, source: Source) -> None:
        """Keep the counts of a router that closes."""
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

    def _gauge(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                sources = list(self._sources)
            if name == names.AGENT_LEASE_MARGIN:
                margins = [m for source in sources for m in source.telemetry.agents.lease_margins()]
                return [Observation(min(margins))] if margins else []
            seen = newest(one for source in sources for one in source.pods_seen())
            return self._of_pods(name, seen)

        return read

    def _of_pods(self, name: str, seen: Iterable[PodsSeen]) -> list[Observation]:
        """One number per service: services of the same name in several namespaces are added up."""
        found: dict[tuple[str, str], float] = {}
        for one in seen:
            service = self.services.label(one.service)
            if name == names.PODS:
                for status, pods in one.statuses.items():
                    found[service, status] = found.get((service, status), 0) + pods
            elif name in SUMMED:
                number = SUMMED[name](one)
                if number is not None:
                    found[service, ""] = found.get((service, ""), 0) + number
            else:
                age = name == names.PODS_HEARTBEAT_AGE
                value = one.oldest_heartbeat if age else one.skew
                if value is not None:
                    found[service, ""] = max(found.get((service, ""), value), value)
        return [
            Observation(
                value,
                {names.SERVICE: service} | ({names.POD_STATUS: status} if status else {}),
            )
            for (service, status), value in found.items()
        ]


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
    reading[names.POD_FAILURES, ()] = stats.failures_reported
    reading[names.SPANS_DROPPED, ()] = stats.spans_dropped
    for name, value in source.telemetry.happened.items():
        reading[name, ()] = value
    reading.update(source.telemetry.agents.counters())
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
    reading.update(source.telemetry.agents.gauges())
    return reading


_lock = threading.Lock()
_by_provider: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()
_global: Instruments | None = None


def instruments(provider: MeterProvider | None) -> Instruments:
    """The instruments of a provider. None means the global provider, whether it is set now, later or never."""
    global _global  # noqa: PLW0603  (one meter, one set of instruments)
    with _lock:
        # A meter allows each name once, even if a router names the global provider explicitly.
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
