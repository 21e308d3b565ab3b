"""A router's configuration: frozen, validated when made, with the reason for each default."""

from __future__ import annotations

import logging
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

_MAX_CLIENT_NAME = 256
"""Of the 1024 characters that are read of a connection's name: versions, settings and figures follow, 400 or fewer."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _is_seconds(value: object, *, zero: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and (value >= 0 if zero else value > 0)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The local cache of lookups. All times are seconds.

    Attributes:
        max_age: how long a value may be served after its lookup was sent, while the lane is tracked and healthy. Pushes
            keep entries current to within milliseconds; this limits how stale an answer can get if a push is lost. A
            few seconds match the length of a failover (node timeout plus election), and cost one lookup per active uid
            in that time. 0 turns the cache off.
        max_age_untracked: the same for a server that does not push (refused by ACL, Redis < 7, a proxy). Short, because
            nothing else limits staleness there.
        max_entries: the most entries held; the oldest are evicted. 100,000 links of 20-character uids take about 40 MB.
        negative: also cache that a link is absent. Safe while tracked: servers push for missing keys too.
        stale_if_error: how much longer a known value may be served, marked stale, while the store cannot be reached. A
            minute outlasts a failover and most rolling restarts. 0 turns it off.
        tracking: ask servers to push invalidations (``CLIENT TRACKING``).
        heartbeat: the interval between pings of a lane. Two pings per second and lane do not load a server.
        heartbeat_timeout: a lane is unhealthy if its last answered ping was sent longer ago than this. Its entries then
            no longer count as fresh. Must exceed ``heartbeat`` by more than a round trip plus the delay of a busy loop.
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
        deadline: how long one call may take, retries included. Five seconds outlast a failover at the usual node
            timeouts of one to two seconds, and fit within a gateway's own request timeout.
        base: the first pause before a retry.
        cap: the longest pause. Short, so that calls succeed soon after a failover ends.
        jitter: the random share of each pause, 0 to 1. Without it, a fleet retries in step.
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
        """Seconds to wait before retry ``attempt`` (1, 2, ...), given a ``random`` number from [0, 1).

        Grows exponentially from ``base`` to ``cap``. The ``jitter`` share of the pause is random.
        """
        full = min(self.cap, self.base * 2.0 ** min(attempt - 1, 32))
        return full * (1.0 - self.jitter * random)


@dataclass(frozen=True, slots=True)
class PlacementConfig:
    """How ``route()`` places a uid that has no usable link.

    Attributes:
        persist_seconds: the kind of link it makes: ``PERSIST_FOREVER`` or a number of seconds.
        pod_view_max_age: seconds after which a pod view in use is refreshed. By default a gateway that routes reads the
            pods twice a second per service, and sees a dead pod at most half a second late.
        pod_timeout: seconds after its last stamped heartbeat at which a pod without a lease counts as dead. By default
            three heartbeats.
        lease_margin: seconds by which a pod's silence must exceed its published lease before it counts as dead. The pod
            stops acting for its users at the lease; the margin covers the difference between two clocks.
        all_silent: what happens to links when all pods of a service fall silent together. ``"keep"``: links stay and
            are marked (``Link.pod_view``), and no uid is placed. It is more likely that the pods cannot reach the store
            than that all ended at once. ``"move"``: the pods count as dead; if none is left, ``route()`` raises
            ``NoRoutablePod``.
        settle: seconds in which a caller's ``exclude`` does not move a link back to the pod that it came from, unless
            its new pod is gone. Otherwise two gateways that each reach one of two pods would move it at every call.
            Nor does it move a link more than twice a minute. 0: as often as callers say.
        reassert_grace: seconds for which no uid is placed on a primary that has lost its data, so that pods can claim
            their uids again. None: the longest lease that a pod of the service has published. ``route()`` waits at most
            until a second before its deadline. 0: no wait.
        load_per_uid: how much one uid adds to a pod's load, in the unit of the reported loads. None: 1 if the loads are
            above 1 (counts), 0.01 if they are fractions.
        max_pods: a state hash with more fields than this is refused: reading it would block the server.
    """

    persist_seconds: int = PERSIST_FOREVER
    pod_view_max_age: float = 0.5
    pod_timeout: float = 6.0
    lease_margin: float = 1.0
    all_silent: Literal["keep", "move"] = "keep"
    settle: float = 5.0
    reassert_grace: float | None = None
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
            _is_seconds(self.lease_margin, zero=True),
            "PlacementConfig.lease_margin must be seconds >= 0",
        )
        _require(
            self.all_silent in {"keep", "move"},
            "PlacementConfig.all_silent must be 'keep' or 'move'",
        )
        _require(_is_seconds(self.settle, zero=True), "PlacementConfig.settle must be seconds >= 0")
        _require(
            self.reassert_grace is None or _is_seconds(self.reassert_grace, zero=True),
            "PlacementConfig.reassert_grace must be seconds >= 0, or None",
        )
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
    """What a router reports to OpenTelemetry. Without an SDK it reports nothing and costs nothing.

    Attributes:
        enabled: False turns all telemetry off.
        tracer_provider: where spans go. None: the global provider, whether it is set now or later.
        meter_provider: where metrics go. None: the global provider, whether it is set now or later.
        hit_spans: spans of cached answers. ``"follow_parent"``: none while the request around them is not sampled; the
            usual samplers decide the same, at a higher cost. ``"all"``: ask the sampler about each. ``"off"``: none.
        background_spans: ``"on"`` makes root spans of what the router does by itself: heartbeats, refreshes of pod
            views that no call waits for, the steps of an evacuation, invalidations, lanes lost and restored, changes of
            topology. ``"off"`` leaves them out: no request waits for them, and metrics count them.
        service_label: ``"on"`` puts ``sfroute.service`` on the duration metrics of calls, for rates, errors and
            durations per service. It multiplies their series by the number of services, at most 64; the rest share one
            value.
        queue_size: how many records may wait for the worker. More are dropped and counted.
        user_hash_key: 16 to 64 secret bytes. Puts ``user.hash``, a keyed BLAKE2b of the uid, on spans. None: no trace
            of a uid appears anywhere.
    """

    enabled: bool = True
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    hit_spans: Literal["follow_parent", "all", "off"] = "follow_parent"
    background_spans: Literal["off", "on"] = "off"
    service_label: Literal["off", "on"] = "off"
    queue_size: int = 8192
    user_hash_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require(
            self.hit_spans in {"follow_parent", "all", "off"},
            "TelemetryConfig.hit_spans must be 'follow_parent', 'all' or 'off'",
        )
        _require(
            self.background_spans in {"off", "on"},
            "TelemetryConfig.background_spans must be 'off' or 'on'",
        )
        _require(
            self.service_label in {"off", "on"},
            "TelemetryConfig.service_label must be 'off' or 'on'",
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
    """A router's whole configuration.

    Attributes:
        cache: the local cache of lookups.
        retry: deadlines and retries.
        placement: how ``route()`` chooses a pod.
        telemetry: what OpenTelemetry gets.
        loop_factory: makes the event loop of the sync router's background thread, such as ``uvloop.new_event_loop``
            (measurably faster). None: asyncio's default. An ``AsyncRouter`` runs on the loop of its callers.
        client_name: the name of its connections, which the servers show in ``CLIENT LIST``: 1 to 256 characters of
            printable ASCII, no spaces. The router adds what
            ``sfroute gateways`` compares: its versions, the settings that decide its answers, how many entries its
            cache has. Nothing of that comes from a call.
        min_replica_acks: how many replicas must have a write before the call returns (``WAIT``). A write that too few
            have is repeated until ``retry.deadline``, which changes nothing, and then raises a ``StoreError`` that says
            so. 0, the default of Redis itself: if a primary dies right after its reply, the write may be lost. As
            many as each primary has replicas: writes survive the crash of any one node, for about a millisecond each.
        at_most_once: keep an operation record with each write on a link, so that it can be sent again after its reply
            was lost. False: servers do less and keep no such keys; a write whose reply was lost raises
            ``OutcomeUnknown`` at once, and one that too few replicas have, ``StoreError`` after ``ack_timeout``.
            docs/reference/operation-records.md has the figures.
        ack_timeout: seconds that one ``WAIT`` waits for the replicas.
        logger: the logger whose children, such as ``<logger>.store``, the router and its agents log to. None: the
            logger ``sfroute``. docs/reference/telemetry.md lists the loggers, their levels and their fields.
        max_in_flight: the most commands in flight on one connection. More commands wait; they do not fail.
        address_remap: maps the ``(host, port)`` that a node announces to the one that this process connects to: for
            nodes behind NAT, in containers, or at the far end of a tunnel. Applies to the slot map, MOVED and ASK;
            errors name the result. The start nodes are used as given. It must be fast and must not block. None: nodes
            are reached at the address they announce, or as the ``address_remap`` of the redis-py client that the router
            was made from says.
    """

    cache: CacheConfig = field(default_factory=CacheConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    client_name: str = "sfroute"
    min_replica_acks: int = 0
    at_most_once: bool = True
    ack_timeout: float = 0.5
    max_in_flight: int = 4096
    address_remap: Callable[[tuple[str, int]], tuple[str, int]] | None = None
    logger: logging.Logger | None = None

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
            "RouterConfig.client_name must be printable ASCII without spaces (the servers require it)",
        )
        _require(
            len(self.client_name) <= _MAX_CLIENT_NAME,
            f"RouterConfig.client_name must have at most {_MAX_CLIENT_NAME} characters: sfroute gateways reads "
            "versions, settings and figures after it",
        )
        _require(
            self.logger is None or isinstance(self.logger, logging.Logger),
            "RouterConfig.logger must be a logging.Logger, or None",
        )
        _require(
            self.loop_factory is None or callable(self.loop_factory),
            "RouterConfig.loop_factory must be a callable that returns an event loop, or None",
        )
        _require(
            self.address_remap is None or callable(self.address_remap),
            "RouterConfig.address_remap must be a callable from (host, port) to (host, port), or None",
        )
        _require(
            type(self.min_replica_acks) is int and self.min_replica_acks >= 0,
            "RouterConfig.min_replica_acks must be an int >= 0",
        )
        _require(type(self.at_most_once) is bool, "RouterConfig.at_most_once must be a bool")
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

    def logger_for(self, part: str) -> logging.Logger:
        """The logger of a part, such as ``"store"``: a child of ``logger``."""
        return (self.logger or logging.getLogger("sfroute")).getChild(part)
