"""The types of results and events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

__all__ = [
    "AUTO",
    "DRAINING",
    "FAILED",
    "PENDING",
    "PERSIST_FOREVER",
    "RUNNING",
    "STOPPED",
    "UNKNOWN",
    "CacheStats",
    "Claim",
    "EvacuationProgress",
    "Handover",
    "Isolated",
    "LaneStats",
    "Link",
    "ListedLink",
    "Lost",
    "PlannedMoves",
    "Pod",
    "PodChange",
    "PodEvent",
    "PruneProgress",
    "RebalanceProgress",
    "Rejoined",
    "RouterStats",
    "Superseded",
    "TrySetResult",
]

PERSIST_FOREVER: Final = -1
"""``persist_seconds`` of a link without expiry (the contract shared with the Go and Java programs)."""

MAX_PERSIST_SECONDS: Final = 2**53 // 1000
"""The longest TTL whose milliseconds are still exact in a Lua or JavaScript number (about 285,000 years)."""

RUNNING: Final = "Running"
"""The pod keeps its uids and takes new ones."""
PENDING: Final = "Pending"
"""The pod is not ready yet, or paused: it keeps its uids and takes no new ones."""
DRAINING: Final = "Draining"
"""The pod is leaving: it keeps its uids and takes no new ones."""
STOPPED: Final = "Stopped"
"""The pod has left: its uids are moved."""
FAILED: Final = "Failed"
"""The pod has failed: its uids are moved."""
UNKNOWN: Final = "Unknown"
"""The pod's state cannot be read: it keeps its uids and takes no new ones."""

AUTO: Final = "auto"
"""``PodAgent(pod=AUTO)``: the agent takes a pod id that is free."""

MAX_LEASE_MS: Final = 86_400_000
"""The longest lease that is believed: a day."""

LinkSource = Literal["cache", "store", "placed", "moved"]
PodView = Literal["current", "old", "silent"]


class TrySetResult(NamedTuple):
    """The outcome of ``try_set_linked_pod``.

    Attributes:
        success: False only if a different pod holds a persistent link.
        pod: the pod that owns the uid afterwards.
    """

    success: bool
    pod: int


class Link(NamedTuple):
    """A uid's link to a pod, and where the answer came from.

    Attributes:
        pod: the pod id, ``>= 0``.
        persistent: True if the link has no expiry.
        source: ``"cache"``, ``"store"``, ``"placed"`` (the uid had no link) or ``"moved"`` (its pod was gone).
        stale: True if the store could not be reached and the answer is older than the coherence contract allows.
        age: seconds since the lookup behind the answer was sent. 0.0 if this call placed or moved the uid.
        pod_view: what ``route()`` knew of the pods. ``"current"``; ``"old"`` if their states could not be read in time,
            so that it used the last ones, or none; ``"silent"`` if all pods have fallen silent together and the link
            stands for that (``PlacementConfig.all_silent``). Other calls do not look at the pods.
        address: where the pod can be reached, as it said itself in the pod view that ``route()`` used; None if it said
            nothing, or is not in that view.
    """

    pod: int
    persistent: bool
    source: LinkSource
    stale: bool = False
    age: float = 0.0
    pod_view: PodView = "current"
    address: str | None = None


@dataclass(frozen=True, slots=True)
class ListedLink:
    """One link, from ``router.links()``.

    Attributes:
        uid: the uid. No ``repr`` shows it.
        pod: the pod id, ``>= 0``.
        expires_in: seconds until a temporary link expires. None for a persistent one.
    """

    uid: str = field(repr=False)
    pod: int
    expires_in: float | None

    @property
    def persistent(self) -> bool:
        """True if the link has no expiry."""
        return self.expires_in is None


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of ``agent.accept(uid)`` or ``agent.session(uid)``. True if this pod has the uid.

    Attributes:
        success: False if another pod has the uid.
        pod: the pod that has the uid: this one or another.
        fence: a number that grows whenever the uid passes to another pod or another life of a pod. 0 if refused. Store
            it with what you write for the uid, and refuse a write whose fence is less than the stored one.
        how: ``"placed"``: the uid is new here. ``"kept"``: this life had it already, and no other has had it since.
            ``"inherited"``: an earlier life of this pod had it, and that life's memory is gone. ``"refused"``: another
            pod has it.
        uid: the uid. No ``repr`` shows it.
        turn: orders the claims of one agent. Releasing an older claim leaves a newer one alone.
    """

    success: bool
    pod: int
    fence: int
    how: Literal["placed", "kept", "inherited", "refused"]
    uid: str = field(repr=False)
    turn: int = field(repr=False, compare=False, default=0)

    def __bool__(self) -> bool:
        """``success``."""
        return self.success


@dataclass(frozen=True, slots=True)
class Lost:
    """This life has lost a claim: stop acting for the uid. From ``agent.events()``.

    Attributes:
        uid: the uid. No ``repr`` shows it.
        claim: the claim that ``accept`` or ``session`` returned.
        reason: ``"moved"``: another pod has the uid. ``"removed"``: the link was removed. ``"superseded"``: another
            life of this pod has it.
        owner: the pod that has the uid, as far as is known. None if no pod has it.
    """

    uid: str = field(repr=False)
    claim: Claim
    reason: Literal["moved", "removed", "superseded"]
    owner: int | None


@dataclass(frozen=True, slots=True)
class Isolated:
    """The lease ran out: the store could not be reached. Act for no uid until ``Rejoined``. From ``agent.events()``."""


@dataclass(frozen=True, slots=True)
class Rejoined:
    """A heartbeat was stored again. Claims lost meanwhile follow as ``Lost``. From ``agent.events()``.

    Attributes:
        seconds: how long this pod was without a lease.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer process has this pod's id. This agent has stopped, and its claims are lost. From ``agent.events()``.

    Attributes:
        by: the newer process's token, the field ``by`` of its state.
    """

    by: str | None


@dataclass(frozen=True, slots=True)
class Handover:
    """The pod is asked to hand a uid over to another pod (``router.rebalance``). From ``agent.events()``.

    To do so, save what the next pod needs, and then ``agent.release(handover)``. Whoever ignores it keeps the uid.

    Attributes:
        uid: the uid. No ``repr`` shows it.
        claim: the claim under which this pod has it.
        to: the pod that is to have it.
    """

    uid: str = field(repr=False)
    claim: Claim
    to: int


PodEvent = Lost | Isolated | Rejoined | Superseded | Handover
"""What ``agent.events()`` yields."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What a gateway knows of one pod of a service.

    Attributes:
        id: the pod id, ``>= 0``.
        status: the status that the pod reported, such as ``"Running"``. ``"Unknown"`` if it could not be read.
        load: the load that the pod reported. The pods choose the unit; lower is freer. None if not reported.
        age: seconds since the pod's last heartbeat, by the server's clock. None if its state has no stamp.
        extra: the other fields of a JSON state. Without the application's if the states of a service take more than
            16 MB together.
    """

    id: int
    status: str
    load: float | None = None
    age: float | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def life(self) -> str | None:
        """The life that reported: a random token for each run of the pod's process; None if the state names none."""
        life = self.extra.get("by")
        return life if isinstance(life, str) else None

    @property
    def lease(self) -> float | None:
        """Seconds after its last heartbeat for which the pod may act for its users; None if it published no lease."""
        milliseconds = self.extra.get("lease")
        if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
            return None
        # Whoever is silent for more than a day is not waited for, whatever was said.
        return milliseconds / 1000 if 0 < milliseconds <= MAX_LEASE_MS else None

    @property
    def address(self) -> str | None:
        """Where the pod can be reached, as it said itself, such as ``10.0.3.7:8080``; None if it said nothing."""
        address = self.extra.get("address")
        return address if isinstance(address, str) else None

    @property
    def labels(self) -> Mapping[str, str]:
        """What the pod says of itself for policies, such as ``{"version": "2.1", "zone": "a"}``; at most 16."""
        labels = self.extra.get("labels")
        return labels if isinstance(labels, Mapping) else {}

    @property
    def max_claims(self) -> int | None:
        """How many users the pod takes in all; None if it has no limit."""
        return _count(self.extra.get("max_claims"))

    @property
    def room(self) -> int | None:
        """How many more users the pod takes, as of its last heartbeat; None if it has no limit."""
        return _count(self.extra.get("room"))


def _count(value: object) -> int | None:
    """A number of users as a state has it."""
    return value if type(value) is int and value >= 0 else None


@dataclass(frozen=True, slots=True)
class PodChange:
    """A change of one pod, from ``router.watch()``.

    Attributes:
        kind: ``"joined"`` (takes new uids), ``"draining"``, ``"left"`` (stopped, failed or no longer reported),
            ``"dead"`` (its heartbeat is too old) or ``"restarted"`` (another run of its process has the pod id: what
            was in its memory is gone, and its address may have changed).
        pod: the pod as it is now, or as last seen if it is no longer reported.
    """

    kind: Literal["joined", "draining", "left", "dead", "restarted"]
    pod: Pod


@dataclass(frozen=True, slots=True)
class EvacuationProgress:
    """The progress of an evacuation. All counts are since its start.

    Attributes:
        scanned: keys scanned.
        found: links to the pod.
        moved: links moved to another pod. A dry run moves none.
        elsewhere: links that another client had moved or removed first.
        failed: links that could not be moved or removed. The next pass tries them again; at the end it is an error.
        passes: finished passes over all keys. The last pass of a finished evacuation has found nothing, unless gateways
            keep placing uids on the pod: then it ends after ten.
        idle: idle links to the pod, as the last pass counted them. They are not part of ``found``, nor are those that a
            living pod has claimed part of them: such users are there, and are moved.
        removed: idle links that were removed.
        refused: links to the pod whose uid no call accepts (``{``, ``}``, control characters, over 512 bytes, not
            UTF-8), as the last pass counted them. Another program has written them, and they stay where they are.
        done: True in the last element.
    """

    scanned: int = 0
    found: int = 0
    moved: int = 0
    elsewhere: int = 0
    failed: int = 0
    passes: int = 0
    done: bool = False
    idle: int = 0
    removed: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class PruneProgress:
    """The progress of a prune. All counts are since its start.

    Attributes:
        scanned: links looked at.
        idle: persistent links that nobody has read or written for so long, without those that are claimed. Who comes
            back before the removal is counted here and nowhere else.
        claimed: idle links whose uid a living pod has claimed: they stay.
        removed: idle links that were removed. A dry run removes none.
        failed: idle links that could not be removed; the next prune tries them again. Those whose keys hold what no
            link can be are among them: ``sfroute doctor`` names them.
        done: True in the last element.
    """

    scanned: int = 0
    idle: int = 0
    claimed: int = 0
    removed: int = 0
    failed: int = 0
    done: bool = False


class PlannedMoves(NamedTuple):
    """What a rebalance means to move from one pod to another.

    Attributes:
        source: the pod that has too many users.
        target: the pod that has room for them.
        users: how many, ``> 0``.
    """

    source: int
    target: int
    users: int


@dataclass(frozen=True, slots=True)
class RebalanceProgress:
    """The progress of a rebalance. All counts are since its start.

    Attributes:
        scanned: links looked at.
        plan: what is to be moved; empty until the links are counted, and if nothing needs to be moved. It is made anew
            if a pod of it stops taking users.
        skew: the users of the fullest pod by its capacity, as a multiple of an even share, before anything was moved.
            None until the links are counted, and if there are none.
        planned: how many users are to be moved in all.
        moved: users moved whom no pod had claimed.
        handed_over: users whom their pod let go, as it was asked to.
        forced: users moved although their pod had claimed them. Only with ``force``.
        elsewhere: users who left their pod otherwise meanwhile.
        asked: users for whom a pod was asked and who are still there.
        kept: users whom their pod did not let go in time; they stay.
        claimed: with ``idle_only``: users of the pods with too many who were left alone, because they are claimed.
        failed: moves that failed because of the store. Starting again goes on.
        done: True in the last element.
    """

    scanned: int = 0
    plan: tuple[PlannedMoves, ...] = ()
    skew: float | None = None
    planned: int = 0
    moved: int = 0
    handed_over: int = 0
    forced: int = 0
    elsewhere: int = 0
    asked: int = 0
    kept: int = 0
    claimed: int = 0
    failed: int = 0
    done: bool = False

    @property
    def gone(self) -> int:
        """How many of the planned users have left their pod."""
        return self.moved + self.handed_over + self.forced + self.elsewhere

    @property
    def left(self) -> int:
        """How many users are still to be moved."""
        return max(0, self.planned - self.gone)


@dataclass(frozen=True, slots=True)
class LaneStats:
    """One primary's lookup lane.

    Attributes:
        address: ``host:port`` of the primary.
        connected: the connection is up.
        tracked: the server pushes invalidations on it.
        healthy: it is connected, and its last PONG is younger than the heartbeat bound.
        in_flight: lookups sent and not answered yet.
        waiting: lookups not sent yet.
        reconnects: how often it has reconnected.
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
        misses: lookups that had to ask the store.
        joined: lookups that joined one in flight instead of sending their own.
        stale: answers served past their bound because the store could not be reached.
        invalidations: keys that the servers reported as changed.
        dropped: entries that invalidations and own writes removed.
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
        lanes: one element per primary that has been sent a lookup.
        placements: ``"placed"`` or ``"moved"`` -> number of links that ``route()`` made.
        pod_conflicts: how many other processes claimed a pod id that an agent of this router has.
        spans_dropped: spans lost because the telemetry queue was full.
        retries: reason, such as ``"MOVED"`` or ``"timeout"`` -> how often a command was sent again.
        failures_reported: how often ``report_failure()`` was called.
        ejected: namespace and service -> the pods that this router places nobody on now, for what was reported.
        native: lookups run on the compiled part; False where only the pure code runs, which answers the same.
    """

    cache: CacheStats
    lanes: tuple[LaneStats, ...]
    retries: Mapping[str, int]
    placements: Mapping[str, int] = field(default_factory=dict)
    pod_conflicts: int = 0
    spans_dropped: int = 0
    failures_reported: int = 0
    ejected: Mapping[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    native: bool = False
