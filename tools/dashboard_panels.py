"""What the Grafana dashboard of sfroute shows, and what it asks Prometheus for. ``dashboard.py`` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["AT_A_GLANCE", "EVENTS", "LOOKUPS", "ROWS", "Event", "Shown"]

CHOSEN: Final = 'job=~"$job",instance=~"$instance"'

# The names that opentelemetry-exporter-prometheus and Prometheus' own OTLP receiver make of those in
# sfroute/telemetry/names.py.
CALLS: Final = "sfroute_operation_duration_seconds"
LOOKUPS: Final = "sfroute_cache_requests_total"
FAILED: Final = 'error_type!=""'
HIT: Final = 'sfroute_outcome="hit"'
MOVED: Final = 'sfroute_reason="moved"'
LAG: Final = "sfroute_cache_invalidation_lag_seconds"
SERVICE: Final = "sfroute_service"
STATUS: Final = "sfroute_pod_status"

# In time series, Grafana chooses the window so that it holds enough scrapes; single numbers are of all the time shown.
LEGEND_SERVICE: Final = "{{sfroute_service}}"
LEGEND_STATUS: Final = "{{sfroute_service}}: {{sfroute_pod_status}}"

WINDOW: Final = "$__rate_interval"
ALL_SHOWN: Final = "$__range"


def chosen(metric: str, labels: str = "") -> str:
    """The series of the gateways chosen."""
    return f"{metric}{{{','.join(filter(None, (CHOSEN, labels)))}}}"


def summed(expression: str, by: str) -> str:
    """The sum over gateways, for each value of some labels."""
    return f"sum by ({by}) ({expression})" if by else f"sum ({expression})"


def rate(metric: str, window: str, labels: str = "", by: str = "") -> str:
    """How often per second a counter counted in a window."""
    return summed(f"rate({chosen(metric, labels)}[{window}])", by)


def increase(metric: str, window: str, labels: str = "", by: str = "") -> str:
    """How often a counter counted in a window; of counters that are there from the beginning."""
    return summed(f"increase({chosen(metric, labels)}[{window}])", by)


def count(metric: str, window: str, labels: str = "", by: str = "") -> str:
    """How often a counter counted in a window, the beginning of its series included.

    A series that does not exist before its first event shows that one neither to ``rate()`` nor to ``increase()``;
    of errors, which are few, that may be all there is.
    """
    series = chosen(metric, labels)
    return summed(f"{series} unless {series} offset {window} or increase({series}[{window}])", by)


def gauge(metric: str, by: str = "") -> str:
    """The sum of a gauge over the gateways chosen."""
    return summed(chosen(metric), by)


def seen(metric: str, by: str = SERVICE, of: str = "max") -> str:
    """A gauge of the pods of a service. Each process that looked tells of the same pods: they are not added up."""
    return f"{of} by ({by}) ({chosen(metric)})"


def quantile(share: float, metric: str, window: str, by: str = "") -> str:
    """A quantile of a histogram in a window."""
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', window, by=grouping)})"


def error_ratio(window: str) -> str:
    """The share of the calls past the cache that failed; 0, not nothing, while none has."""
    failed = count(f"{CALLS}_count", window, FAILED)
    return f"({failed} or vector(0)) / {count(f'{CALLS}_count', window)}"


def hit_ratio(window: str) -> str:
    """The share of the lookups that the cache answered."""
    return f"{rate(LOOKUPS, window, HIT)} / {rate(LOOKUPS, window)}"


@dataclass(frozen=True)
class Shown:
    """One panel.

    Attributes:
        title: unique; README.md explains the panel under it.
        description: what Grafana shows on hovering.
        unit: Grafana's name of the unit.
        queries: expression and legend of each.
        number: one number for all the time shown, rather than a time series.
        bad: the value from which the number is red.
        bars: rare events: bars rather than lines.
        stacked: the series add up to something.
        top: the end of the axis, if the values have one.
        exemplars: points of single calls are shown, each of which leads to a trace; these are far apart, so the axis is
            logarithmic.
    """

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    number: bool = False
    bad: float | None = None
    bars: bool = False
    stacked: bool = False
    top: float | None = None
    exemplars: bool = False


@dataclass(frozen=True)
class Event:
    """What is marked in all graphs, as long as an expression has values.

    Attributes:
        name: unique; README.md explains it.
        expression: has a series for each event.
        colour: the mark's.
    """

    name: str
    expression: str
    colour: str


AT_A_GLANCE: Final = (
    Shown(
        "Hit ratio",
        "Lookups that the cache answered, of all lookups.",
        "percentunit",
        ((hit_ratio(ALL_SHOWN), ""),),
        number=True,
    ),
    Shown(
        "Error ratio",
        "Calls that raised an error, of all calls that the cache alone could not answer.",
        "percentunit",
        ((error_ratio(ALL_SHOWN), ""),),
        number=True,
        bad=0.01,
    ),
    Shown(
        "Slowest 1 %",
        "99 of 100 calls that the cache alone could not answer took less.",
        "s",
        ((quantile(0.99, CALLS, ALL_SHOWN), ""),),
        number=True,
        bad=0.25,
    ),
    Shown(
        "Lanes not healthy",
        "Connections for lookups that are down or silent now.",
        "short",
        ((f"{gauge('sfroute_lanes')} - {gauge('sfroute_lanes_healthy')}", ""),),
        number=True,
        bad=1,
    ),
    Shown(
        "Stale answers given",
        "Old answers served because the store could not be reached.",
        "short",
        ((increase("sfroute_answers_stale_total", ALL_SHOWN), ""),),
        number=True,
        bad=1,
    ),
    Shown(
        "Links moved",
        "Links taken off pods that were gone.",
        "short",
        (
            (
                increase("sfroute_links_placed_total", ALL_SHOWN, MOVED),
                "",
            ),
        ),
        number=True,
    ),
)

ROWS: Final[tuple[tuple[str, tuple[Shown, ...]], ...]] = (
    (
        "Calls",
        (
            Shown(
                "Calls past the cache",
                "Calls per second that the cache alone could not answer, by operation.",
                "ops",
                (
                    (
                        rate(f"{CALLS}_count", WINDOW, by="sfroute_operation"),
                        "{{sfroute_operation}}",
                    ),
                ),
            ),
            Shown(
                "Errors",
                "Calls that raised an error, in each window of the graph, by operation and error.",
                "short",
                (
                    (
                        count(f"{CALLS}_count", WINDOW, FAILED, by="sfroute_operation, error_type"),
                        "{{sfroute_operation}}: {{error_type}}",
                    ),
                ),
                bars=True,
            ),
            Shown(
                "Duration, median",
                "Half of the calls past the cache took less, by operation.",
                "s",
                (
                    (
                        quantile(0.5, CALLS, WINDOW, by="sfroute_operation"),
                        "{{sfroute_operation}}",
                    ),
                ),
                exemplars=True,
            ),
            Shown(
                "Duration, 99th percentile",
                "99 of 100 calls past the cache took less, by operation.",
                "s",
                (
                    (
                        quantile(0.99, CALLS, WINDOW, by="sfroute_operation"),
                        "{{sfroute_operation}}",
                    ),
                ),
                exemplars=True,
            ),
        ),
    ),
    (
        "Cache",
        (
            Shown(
                "Lookups by outcome",
                "hit: answered by the cache. miss: asked the store. joined: waited for a lookup of the same link.",
                "ops",
                ((rate(LOOKUPS, WINDOW, by="sfroute_outcome"), "{{sfroute_outcome}}"),),
                stacked=True,
            ),
            Shown(
                "Hit ratio over time",
                "Lookups that the cache answered, of all lookups.",
                "percentunit",
                ((hit_ratio(WINDOW), "hits"),),
                top=1,
            ),
            Shown(
                "Entries",
                "Links held by the caches of all gateways chosen.",
                "short",
                ((gauge("sfroute_cache_entries"), "entries"),),
            ),
            Shown(
                "Evictions and invalidations",
                "Entries removed because a cache was full; keys that the servers reported as changed.",
                "ops",
                (
                    (rate("sfroute_cache_evictions_total", WINDOW), "evictions"),
                    (rate("sfroute_cache_invalidations_total", WINDOW), "invalidations"),
                ),
            ),
            Shown(
                "Invalidation lag",
                "From sending an own write to the server's push that reports it.",
                "s",
                (
                    (quantile(0.5, LAG, WINDOW), "median"),
                    (quantile(0.99, LAG, WINDOW), "99th percentile"),
                ),
                exemplars=True,
            ),
        ),
    ),
    (
        "Links",
        (
            Shown(
                "Links placed and moved",
                "placed: uids that had no link. moved: uids taken off a pod that was gone.",
                "ops",
                (
                    (
                        rate("sfroute_links_placed_total", WINDOW, by="sfroute_reason"),
                        "{{sfroute_reason}}",
                    ),
                ),
                stacked=True,
            ),
        ),
    ),
    (
        "Pods",
        (
            Shown(
                "Pods by status",
                "Pods of each service, as the gateways have seen them last; only statuses that some pod has.",
                "short",
                ((f"{seen('sfroute_pods', f'{SERVICE}, {STATUS}')} > 0", LEGEND_STATUS),),
            ),
            Shown(
                "Pods that take new users",
                "At 0, route() raises NoRoutablePod for users without a pod. Of several gateways the lowest counts.",
                "short",
                ((seen("sfroute_pods_routable", of="min"), LEGEND_SERVICE),),
            ),
            Shown(
                "Oldest heartbeat",
                "Age of the oldest last heartbeat of a living pod; at its lease or pod_timeout the pod counts as dead.",
                "s",
                ((seen("sfroute_pods_heartbeat_age_seconds"), LEGEND_SERVICE),),
            ),
            Shown(
                "Heartbeats",
                "Heartbeats of pods per second, by what became of them.",
                "ops",
                (
                    (
                        rate("sfroute_agent_heartbeats_total", WINDOW, by="sfroute_outcome"),
                        "{{sfroute_outcome}}",
                    ),
                ),
            ),
            Shown(
                "Pod id conflicts",
                "Processes that claim a pod id which another one has.",
                "ops",
                ((rate("sfroute_pods_conflicts_total", WINDOW), "conflicts"),),
                bars=True,
            ),
            Shown(
                "Users left to drain",
                "Users who are still to leave pods that drain.",
                "short",
                ((gauge("sfroute_agent_drain_left"), "users"),),
            ),
        ),
    ),
    (
        "Ownership",
        (
            Shown(
                "Claims held",
                "Users that pods hold, and their connections where pods count them.",
                "short",
                (
                    (gauge("sfroute_agent_claims"), "claims"),
                    (gauge("sfroute_agent_sessions"), "connections"),
                ),
            ),
            Shown(
                "Claims lost",
                "Users that were taken from pods, by reason, in each window of the graph.",
                "short",
                (
                    (
                        increase("sfroute_agent_claims_lost_total", WINDOW, by="sfroute_reason")
                        + " > 0",
                        "{{sfroute_reason}}",
                    ),
                ),
                bars=True,
                stacked=True,
            ),
            Shown(
                "Lease margin",
                "Least time until a pod must stop acting for its users. At 0 it serves nobody.",
                "s",
                ((f"min ({chosen('sfroute_agent_lease_margin_seconds')})", "least of all pods"),),
            ),
            Shown(
                "Confirmations",
                "Claims that pods looked up again and found unchanged.",
                "ops",
                ((rate("sfroute_agent_claims_confirmed_total", WINDOW), "confirmed"),),
            ),
            Shown(
                "Claims made again",
                "Claims that the store had forgotten and pods made again, in each window of the graph.",
                "short",
                ((increase("sfroute_agent_claims_reasserted_total", WINDOW), "claims"),),
                bars=True,
            ),
            Shown(
                "Nodes that forgot",
                "How often a process found that a node of the store had lost its data, in each window of the graph.",
                "short",
                ((increase("sfroute_store_forgotten_total", WINDOW), "times"),),
                bars=True,
            ),
        ),
    ),
    (
        "Balance",
        (
            Shown(
                "Users of each pod",
                "Users that each process of a pod holds.",
                "short",
                ((gauge("sfroute_agent_claims", by="instance"), "{{instance}}"),),
            ),
            Shown(
                "Room",
                "Users that pods may still take, of those that say how many they take (max_claims).",
                "short",
                ((seen("sfroute_pods_room", of="min"), LEGEND_SERVICE),),
            ),
            Shown(
                "Skew of users",
                "Users of the fullest pod as a multiple of the mean of its job. 1 is balanced.",
                "short",
                (
                    (
                        "max by (job) ({0}) / avg by (job) ({0})".format(
                            gauge("sfroute_agent_claims", by="job, instance")
                        ),
                        "{{job}}",
                    ),
                ),
            ),
            Shown(
                "Skew of loads",
                "Highest load of a pod, per unit of its capacity, as a multiple of their mean. 1 is balanced.",
                "short",
                ((seen("sfroute_pods_load_skew"), LEGEND_SERVICE),),
            ),
        ),
    ),
    (
        "Store",
        (
            Shown(
                "Lanes",
                "Connections for lookups, one for each gateway and primary; and those of them that answer.",
                "short",
                (
                    (gauge("sfroute_lanes"), "all"),
                    (gauge("sfroute_lanes_healthy"), "healthy"),
                ),
            ),
            Shown(
                "Retries",
                "Commands sent again, by reason; only reasons that occur.",
                "ops",
                (
                    (
                        rate("sfroute_retries_total", WINDOW, by="sfroute_retry_reason") + " > 0",
                        "{{sfroute_retry_reason}}",
                    ),
                ),
                bars=True,
                stacked=True,
            ),
            Shown(
                "Stale answers",
                "Old answers served because the store could not be reached.",
                "ops",
                ((rate("sfroute_answers_stale_total", WINDOW), "stale answers"),),
                bars=True,
            ),
        ),
    ),
    (
        "Telemetry",
        (
            Shown(
                "Telemetry dropped",
                "Spans and durations lost because the queue of the telemetry worker was full.",
                "ops",
                ((rate("sfroute_spans_dropped_total", WINDOW), "dropped"),),
                bars=True,
            ),
        ),
    ),
)

EVENTS: Final = (
    Event(
        "Failovers",
        f"{increase('sfroute_topology_changes_total', '5m', by='job')} > 0",
        "#ff9830",
    ),
    Event("Evacuations", f"{seen('sfroute_pods_emptying')} > 0", "#ca95e5"),
)
"""A fixed window: Grafana asks for marks with a step of its own."""
