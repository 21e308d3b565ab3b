"""How a router behaves: frozen, checked when they are made, with the reason for each default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .errors import ConfigError
from .types import MAX_PERSIST_SECONDS, PERSIST_FOREVER

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

__all__ = ["CacheConfig", "PlacementConfig", "RetryConfig", "RouterConfig", "TelemetryConfig"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _is_seconds(value: object, *, zero: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and (value >= 0 if zero else value > 0)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The local cache of look-ups. All times are seconds.

    Attributes:
        max_age: how long after a look-up was sent its value may be served while the lane is tracked and healthy. Pushes
            keep entries true to within milliseconds; this bounds what a lost push could cost. A few seconds keep that
            bound in line with a failover (node timeout plus election), and cost one look-up per active uid and period.
            0 turns the cache off.
        max_age_untracked: the same where the server does not push (refused by ACL, Redis < 7, a proxy). Nothing but
            this bounds staleness then, so it is short.
        max_entries: the most entries held; the oldest are evicted. 100,000 links of 20-character uids take about 40 MB.
        negative: also cache that a link is absent. Safe while tracked: servers push for missing keys too.
        stale_if_error: how much longer a known value may be served, marked stale, while the store cannot be reached. A
            minute outlasts a failover and most rolling restarts. 0 turns it off.
        tracking: ask servers to push invalidations (``CLIENT TRACKING``).
        heartbeat: how often a lane is pinged. Two pings a second and lane are no load to a server.
        heartbeat_timeout: a lane whose last answered ping was sent longer ago than this is not healthy: its entries
            stop counting as fresh. It must exceed ``heartbeat`` by more than a round trip and a busy loop's delay.
    """

    max_age: float = 3.0
    max_age_untracked: float = 0.5
    max_entries: int = 100_000
    negative: bool = True
    stale_if_error: float = 60.0
    tracking: bool = True
    heartbeat: float = 0.5
    heartbeat_timeout: float = 1.5

    def __post_init__(self) -> None:
        _require(_is_seconds(self.max_age, zero=True), "CacheConfig.max_age must be seconds >= 0")
        _require(
            _is_seconds(self.max_age_untracked, zero=True),
            "CacheConfig.max_age_untracked must be seconds >= 0",
        )
        _require(
            type(self.max_entries) is int and self.max_entries >= 1,
            "CacheConfig.max_entries must be an int >= 1 (to turn the cache off, set max_age=0)",
        )
        _require(
            _is_seconds(self.stale_if_error, zero=True),
            "CacheConfig.stale_if_error must be seconds >= 0",
        )
        _require(_is_seconds(self.heartbeat), "CacheConfig.heartbeat must be seconds > 0")
        _require(
            _is_seconds(self.heartbeat_timeout) and self.heartbeat_timeout > self.heartbeat,
            "CacheConfig.heartbeat_timeout must be seconds > heartbeat",
        )


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """Deadlines and retries of every call to the store. All times are seconds.

    Attributes:
        deadline: how long one call may take, retries included. Five seconds outlast a failover with the usual node
            timeouts of one to two seconds, and are short enough for a gateway's own request timeout.
        base: the first pause before a retry.
        cap: the longest pause. Short, because one call in a hundred waiting is cheaper than all failing.
        jitter: the share of each pause that is random, 0 to 1; without it a fleet retries in step.
        connect_timeout: how long one attempt to connect (TCP, TLS, HELLO) may take.
    """

    deadline: float = 5.0
    base: float = 0.02
    cap: float = 0.25
    jitter: float = 0.5
    connect_timeout: float = 1.0

    def __post_init__(self) -> None:
        _require(_is_seconds(self.deadline), "RetryConfig.deadline must be seconds > 0")
        _require(_is_seconds(self.base), "RetryConfig.base must be seconds > 0")
        _require(
            _is_seconds(self.cap) and self.cap >= self.base,
            "RetryConfig.cap must be seconds >= base",
        )
        _require(
            _is_seconds(self.jitter, zero=True) and self.jitter <= 1,
            "RetryConfig.jitter must be from 0 to 1",
        )
        _require(
            _is_seconds(self.connect_timeout), "RetryConfig.connect_timeout must be seconds > 0"
        )

    def pause(self, attempt: int, random: float) -> float:
        """Seconds to wait before retry ``attempt`` (1, 2, ...), for a ``random`` number from [0, 1).

        Exponential from ``base`` to ``cap``, the last ``jitter`` share of it random.
        """
        full = min(self.cap, self.base * 2.0 ** min(attempt - 1, 32))
        return full * (1.0 - self.jitter * random)


@dataclass(frozen=True, slots=True)
class PlacementConfig:
    """How ``route()`` places a uid that has no usable link.

    Attributes:
        persist_seconds: the kind of link it makes: ``PERSIST_FOREVER`` or a number of seconds.
        pod_view_max_age: seconds after which a view of a service's pods is renewed while it is used. A gateway that
            routes asks for it twice a second and service, and sees a dead pod half a second late.
        pod_timeout: seconds after its last stamped heartbeat at which a pod counts as dead. Three heartbeats.
        load_per_uid: what one uid adds to a pod's load, in the unit of the reported loads; None: 1 where loads are
            above 1, a hundredth where they are shares.
        max_pods: a state hash with more fields than this is refused: reading it would hold up the server.
    """

    persist_seconds: int = PERSIST_FOREVER
    pod_view_max_age: float = 0.5
    pod_timeout: float = 6.0
    load_per_uid: float | None = None
    max_pods: int = 10_000

    def __post_init__(self) -> None:
        _require(
            type(self.persist_seconds) is int
            and (
                self.persist_seconds == PERSIST_FOREVER
                or 0 < self.persist_seconds <= MAX_PERSIST_SECONDS
            ),
            "PlacementConfig.persist_seconds must be PERSIST_FOREVER (-1) or an int of seconds from 1 to "
            f"{MAX_PERSIST_SECONDS}",
        )
        _require(
            _is_seconds(self.pod_view_max_age, zero=True),
            "PlacementConfig.pod_view_max_age must be seconds >= 0",
        )
        _require(_is_seconds(self.pod_timeout), "PlacementConfig.pod_timeout must be seconds > 0")
        _require(
            self.load_per_uid is None or _is_seconds(self.load_per_uid, zero=True),
            "PlacementConfig.load_per_uid must be a number >= 0, or None",
        )
        _require(
            type(self.max_pods) is int and self.max_pods >= 1,
            "PlacementConfig.max_pods must be an int >= 1",
        )


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """What a router tells OpenTelemetry. Without an SDK it tells nothing and costs nothing.

    Attributes:
        enabled: False turns everything off.
        tracer_provider: where spans go; None: the process's own, set now or later.
        meter_provider: where metrics go; None: the process's own, set now or later.
        hit_spans: what to do with spans of cached answers. ``"follow_parent"``: none while the request around them is
            not sampled, which is what the usual samplers would decide, only cheaper. ``"all"``: every one is put to the
            sampler. ``"off"``: none.
        queue_size: records that may wait for the worker; further ones are dropped and counted.
        user_hash_key: put ``user.hash``, a keyed BLAKE2b of the uid, on spans; 16 to 64 secret bytes. None: nothing of
            a uid appears anywhere.
    """

    enabled: bool = True
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    hit_spans: Literal["follow_parent", "all", "off"] = "follow_parent"
    queue_size: int = 8192
    user_hash_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require(
            self.hit_spans in {"follow_parent", "all", "off"},
            "TelemetryConfig.hit_spans must be 'follow_parent', 'all' or 'off'",
        )
        _require(
            type(self.queue_size) is int and self.queue_size >= 1,
            "TelemetryConfig.queue_size must be an int >= 1",
        )
        _require(
            self.user_hash_key is None
            or (isinstance(self.user_hash_key, bytes) and 16 <= len(self.user_hash_key) <= 64),
            "TelemetryConfig.user_hash_key must be 16 to 64 bytes",
        )


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Everything a router can be told.

    Attributes:
        cache: the local cache of look-ups.
        retry: deadlines and retries.
        placement: how ``route()`` chooses.
        telemetry: what OpenTelemetry is told.
        loop_factory: makes the event loop of the sync router's background thread, such as ``uvloop.new_event_loop``
            (measurably faster); None: asyncio's own. An ``AsyncRouter`` runs on the loop of its callers.
        client_name: shown by ``CLIENT LIST`` on the servers.
        min_replica_acks: how many replicas must have a write before it is answered (``WAIT``). A write with too few is
            repeated until ``retry.deadline``, which changes nothing, and then raises a ``StoreError`` that says so. 0,
            the default of Redis itself: a primary that dies right after its reply may take the write with it. 1
            survives the loss of any one node, for about a millisecond per write.
        ack_timeout: seconds that one ``WAIT`` waits for them.
        max_in_flight: the most commands one connection has under way; further ones wait, they never fail for this.
    """

    cache: CacheConfig = field(default_factory=CacheConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    client_name: str = "sfroute"
    min_replica_acks: int = 0
    ack_timeout: float = 0.5
    max_in_flight: int = 4096

    def __post_init__(self) -> None:
        for name, kind in (
            ("cache", CacheConfig),
            ("retry", RetryConfig),
            ("placement", PlacementConfig),
            ("telemetry", TelemetryConfig),
        ):
            _require(
                isinstance(getattr(self, name), kind),
                f"RouterConfig.{name} must be a {kind.__name__}",
            )
        _require(
            isinstance(self.client_name, str)
            and bool(self.client_name)
            and self.client_name.isascii()
            and self.client_name.isprintable()
            and " " not in self.client_name,
            "RouterConfig.client_name must be printable ASCII without spaces (a rule of the servers)",
        )
        _require(
            self.loop_factory is None or callable(self.loop_factory),
            "RouterConfig.loop_factory must be a callable that returns an event loop, or None",
        )
        _require(
            type(self.min_replica_acks) is int and self.min_replica_acks >= 0,
            "RouterConfig.min_replica_acks must be an int >= 0",
        )
        _require(
            _is_seconds(self.ack_timeout)
            and (
                self.min_replica_acks == 0
                or self.ack_timeout < min(self.retry.deadline, self.cache.heartbeat_timeout)
            ),
            "RouterConfig.ack_timeout must be seconds > 0, less than retry.deadline and cache.heartbeat_timeout",
        )
        _require(
            type(self.max_in_flight) is int and self.max_in_flight >= 1,
            "RouterConfig.max_in_flight must be an int >= 1",
        )
