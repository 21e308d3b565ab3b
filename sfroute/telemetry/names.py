"""Every name that sfroute uses in telemetry. Pure.

Spans and attributes follow OpenTelemetry's semantic conventions 1.44 for database clients (Redis). Names that they do
not define begin with ``sfroute.``. No name, value or label holds a uid, a key or a credential.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "sfroute"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

# Attributes of the conventions.
DB_NAMESPACE: Final = "db.namespace"
DB_SYSTEM_NAME: Final = "db.system.name"
DB_OPERATION_NAME: Final = "db.operation.name"
DB_OPERATION_BATCH_SIZE: Final = "db.operation.batch.size"
DB_STORED_PROCEDURE_NAME: Final = "db.stored_procedure.name"
DB_RESPONSE_STATUS_CODE: Final = "db.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"
ERROR_TYPE: Final = "error.type"
USER_HASH: Final = "user.hash"

# The older names.
OLD_DB_SYSTEM: Final = "db.system"
OLD_DB_OPERATION: Final = "db.operation"
OLD_DB_REDIS_DATABASE_INDEX: Final = "db.redis.database_index"
OLD_NET_PEER_NAME: Final = "net.peer.name"
OLD_NET_PEER_PORT: Final = "net.peer.port"

# Our own.
NAMESPACE: Final = "sfroute.namespace"
SERVICE: Final = "sfroute.service"
OUTCOME: Final = "sfroute.outcome"
LINK_SOURCE: Final = "sfroute.link.source"
STALE: Final = "sfroute.stale"
POD_VIEW: Final = "sfroute.pod_view"
RETRY_REASONS: Final = "sfroute.retry.reasons"
RETRY_EVENT: Final = "sfroute.retry"
RETRY_REASON: Final = "sfroute.retry.reason"
RETRY_PAUSE: Final = "sfroute.retry.pause"
OPERATION: Final = "sfroute.operation"
REASON: Final = "sfroute.reason"
DURATION: Final = "sfroute.duration"
POD: Final = "sfroute.pod"
POD_STATUS: Final = "sfroute.pod.status"
COUNT: Final = "sfroute.count"
PRIMARIES: Final = "sfroute.primaries"
TRACKED: Final = "sfroute.lane.tracked"

# Values of OUTCOME.
HIT: Final = "hit"
MISS: Final = "miss"
JOINED: Final = "joined"

# Metrics.
OPERATION_DURATION: Final = "sfroute.operation.duration"
CACHE_REQUESTS: Final = "sfroute.cache.requests"
CACHE_ENTRIES: Final = "sfroute.cache.entries"
CACHE_EVICTIONS: Final = "sfroute.cache.evictions"
CACHE_INVALIDATIONS: Final = "sfroute.cache.invalidations"
INVALIDATION_LAG: Final = "sfroute.cache.invalidation.lag"
LANES: Final = "sfroute.lanes"
LANES_HEALTHY: Final = "sfroute.lanes.healthy"
LANES_TRACKED: Final = "sfroute.lanes.tracked"
LANES_LOST: Final = "sfroute.lanes.lost"
TOPOLOGY_CHANGES: Final = "sfroute.topology.changes"
LINKS_PLACED: Final = "sfroute.links.placed"
POD_CONFLICTS: Final = "sfroute.pods.conflicts"
POD_FAILURES: Final = "sfroute.pods.failures"
PODS: Final = "sfroute.pods"
PODS_ROUTABLE: Final = "sfroute.pods.routable"
PODS_ROOM: Final = "sfroute.pods.room"
PODS_EMPTYING: Final = "sfroute.pods.emptying"
PODS_EJECTED: Final = "sfroute.pods.ejected"
PODS_HEARTBEAT_AGE: Final = "sfroute.pods.heartbeat.age"
PODS_LOAD: Final = "sfroute.pods.load"
PODS_LOAD_SKEW: Final = "sfroute.pods.load.skew"
AGENT_CLAIMS: Final = "sfroute.agent.claims"
AGENT_SESSIONS: Final = "sfroute.agent.sessions"
AGENT_DRAIN_LEFT: Final = "sfroute.agent.drain.left"
AGENT_LEASE_MARGIN: Final = "sfroute.agent.lease.margin"
AGENT_HEARTBEATS: Final = "sfroute.agent.heartbeats"
AGENT_LOST: Final = "sfroute.agent.claims.lost"
AGENT_CONFIRMED: Final = "sfroute.agent.claims.confirmed"
AGENT_REASSERTED: Final = "sfroute.agent.claims.reasserted"
STORE_FORGOTTEN: Final = "sfroute.store.forgotten"
RETRIES: Final = "sfroute.retries"
STALE_ANSWERS: Final = "sfroute.answers.stale"
SPANS_DROPPED: Final = "sfroute.spans.dropped"

SECONDS_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
"""From a tenth of a millisecond (a lookup on a local network) to the default deadline."""
