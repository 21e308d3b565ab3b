"""What callers receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

__all__ = [
    "DRAINING",
    "FAILED",
    "PENDING",
    "PERSIST_FOREVER",
    "RUNNING",
    "STOPPED",
    "UNKNOWN",
    "CacheStats",
    "EvacuationProgress",
    "LaneStats",
    "Link",
    "Pod",
    "PodChange",
    "RouterStats",
    "TrySetResult",
]

PERSIST_FOREVER: Final = -1
"""``persist_seconds`` of a link without expiry (the contract shared with the Go and Java programs)."""

MAX_PERSIST_SECONDS: Final = 2**53 // 1000
"""The longest TTL whose milliseconds are still exact in a Lua or JavaScript number (about 285,000 years)."""

RUNNING: Final = "Running"
"""Takes new uids and keeps its own."""
PENDING: Final = "Pending"
"""Not ready yet: keeps what it has, takes no new uids."""
DRAINING: Final = "Draining"
"""Leaving: keeps its uids, takes no new ones."""
STOPPED: Final = "Stopped"
"""Has left: its uids are moved."""
FAILED: Final = "Failed"
"""Has failed: its uids are moved."""
UNKNOWN: Final = "Unknown"
"""What a state that nobody can read counts as: keeps its uids, takes no new ones."""

LinkSource = Literal["cache", "store", "placed", "moved"]


class TrySetResult(NamedTuple):
    """The outcome of ``try_set_linked_pod``.

    Attributes:
        success: False only if a different pod holds a persistent link.
        pod: who owns the uid afterwards.
    """

    success: bool
    pod: int


@dataclass(frozen=True, slots=True)
class Link:
    """A uid's link to a pod, with where the answer came from.

    Attributes:
        pod: the pod id, ``>= 0``.
        persistent: True if the link has no expiry.
        source: ``"cache"``, ``"store"``, ``"placed"`` (the uid had no link) or ``"moved"`` (its pod was gone).
        stale: True if the store could not be reached and the answer is older than the coherence contract allows.
        age: seconds since the look-up behind the answer was sent; 0.0 for an answer made by this call.
    """

    pod: int
    persistent: bool
    source: LinkSource
    stale: bool = False
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class Pod:
    """What a gateway knows of one pod of a service.

    Attributes:
        id: the pod id, ``>= 0``.
        status: the status the pod reported, such as ``"Running"``; ``"Unknown"`` if it could not be read.
        load: the load the pod reported (unit of the pods' own choice, lower is freer), or None.
        age: seconds since the pod's last heartbeat by the server's clock, or None if it carries no stamp.
        extra: further fields of a JSON state.
    """

    id: int
    status: str
    load: float | None = None
    age: float | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodChange:
    """Something that happened to a pod, from ``router.watch()``.

    Attributes:
        kind: ``"joined"`` (takes new uids), ``"draining"``, ``"left"`` (stopped, failed or no longer reported) or
            ``"dead"`` (its heartbeat is too old).
        pod: the pod as it is now; as it was last seen if it is no longer reported.
    """

    kind: Literal["joined", "draining", "left", "dead"]
    pod: Pod


@dataclass(frozen=True, slots=True)
class EvacuationProgress:
    """How far an evacuation has come. All counts since its beginning.

    Attributes:
        scanned: keys looked at.
        found: links to the pod.
        moved: links moved to another pod; a dry run moves none.
        elsewhere: links that somebody else had moved or removed meanwhile.
        failed: links that could not be moved; a further pass tries them again.
        passes: passes over all keys finished. The last one of a finished evacuation has found nothing, unless gateways
            go on placing uids on the pod: then there are ten.
        done: True in the last element.
    """

    scanned: int = 0
    found: int = 0
    moved: int = 0
    elsewhere: int = 0
    failed: int = 0
    passes: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class LaneStats:
    """One primary's lookup lane.

    Attributes:
        address: ``host:port`` of the primary.
        connected: the connection is up.
        tracked: the server pushes invalidations on it.
        healthy: connected, and its last PONG is younger than the heartbeat bound.
        in_flight: look-ups sent and not answered.
        waiting: look-ups not sent yet.
        reconnects: how often the connection was made again.
    """

    address: str
    connected: bool
    tracked: bool
    healthy: bool
    in_flight: int
    waiting: int
    reconnects: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts of a router's local cache since it was opened.

    Attributes:
        hits: answers served from the cache.
        misses: look-ups that had to ask the store.
        joined: look-ups that joined one under way instead of sending their own.
        stale: answers served past their bound because the store could not be reached.
        invalidations: keys the servers reported as changed.
        dropped: entries those invalidations and own writes removed.
        evictions: entries removed because the cache was full.
        entries: entries held now.
        max_entries: the bound of ``entries``.
    """

    hits: int
    misses: int
    joined: int
    stale: int
    invalidations: int
    dropped: int
    evictions: int
    entries: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class RouterStats:
    """A snapshot of a router, from ``router.stats()``.

    Attributes:
        cache: the local cache.
        lanes: one element per primary that has been asked something.
        placements: ``"placed"`` or ``"moved"`` -> links that ``route()`` made.
        pod_conflicts: processes seen to claim a pod id that an agent of this router has.
        spans_dropped: spans lost because the telemetry queue was full.
        retries: reason, such as ``"MOVED"`` or ``"timeout"`` -> how often something was sent again.
    """

    cache: CacheStats
    lanes: tuple[LaneStats, ...]
    retries: Mapping[str, int]
    placements: Mapping[str, int] = field(default_factory=dict)
    pod_conflicts: int = 0
    spans_dropped: int = 0
