"""Makes ``overview.json``, the Grafana dashboard of sfroute.

    python docs/dashboards/generate.py            # write it
    python docs/dashboards/generate.py --check    # fail if the file is not what this makes

The same text every time: what is committed is compared with what is made (``make test-dashboards``).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

OVERVIEW: Final = Path(__file__).with_name("overview.json")

SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN: Final = 'job=~"$job",instance=~"$instance"'

# Panels in a row -> columns of 24 for each; 8 otherwise.
WIDTHS: Final = {1: 24, 2: 12, 4: 12}

# The names that opentelemetry-exporter-prometheus and Prometheus' own OTLP receiver make of those in
# sfroute/telemetry/names.py.
CALLS: Final = "sfroute_operation_duration_seconds"
REQUESTS: Final = "sfroute_cache_requests_total"
FAILED: Final = 'error_type!=""'
HIT: Final = 'sfroute_outcome="hit"'
MOVED: Final = 'sfroute_reason="moved"'
LAG: Final = "sfroute_cache_invalidation_lag_seconds"

# In time series, Grafana chooses the window so that it holds enough scrapes; single numbers are of all the time shown.
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


def increase(metric: str, window: str, labels: str = "") -> str:
    """How often a counter counted in a window; of counters that are there from the beginning."""
    return summed(f"increase({chosen(metric, labels)}[{window}])", "")


def count(metric: str, window: str, labels: str = "", by: str = "") -> str:
    """How often a counter counted in a window, the beginning of its series included.

    A series that does not exist before its first event shows that one neither to ``rate()`` nor to ``increase()``;
    of errors, which are few, that may be all there is.
    """
    series = chosen(metric, labels)
    return summed(f"{series} unless {series} offset {window} or increase({series}[{window}])", by)


def gauge(metric: str) -> str:
    """The sum of a gauge over the gateways chosen."""
    return summed(chosen(metric), "")


def quantile(share: float, metric: str, window: str, by: str = "") -> str:
    """A quantile of a histogram in a window."""
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', window, by=grouping)})"


def error_ratio(window: str) -> str:
    """The share of the calls past the cache that failed; 0, not nothing, while none has."""
    failed = count(f"{CALLS}_count", window, FAILED)
    return f"({failed} or vector(0)) / {count(f'{CALLS}_count', window)}"


def hit_ratio(window: str) -> str:
    """The share of the look-ups that the cache answered."""
    return f"{rate(REQUESTS, window, HIT)} / {rate(REQUESTS, window)}"


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


AT_A_GLANCE: Final = (
    Shown(
        "Hit ratio",
        "Look-ups that the cache answered, of all look-ups.",
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
        "Connections for look-ups that are down or silent now.",
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
            ),
        ),
    ),
    (
        "Cache",
        (
            Shown(
                "Look-ups by outcome",
                "hit: answered by the cache. miss: asked the store. joined: waited for a look-up of the same link.",
                "ops",
                ((rate(REQUESTS, WINDOW, by="sfroute_outcome"), "{{sfroute_outcome}}"),),
                stacked=True,
            ),
            Shown(
                "Hit ratio over time",
                "Look-ups that the cache answered, of all look-ups.",
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
            ),
        ),
    ),
    (
        "Links and pods",
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
            Shown(
                "Pod id conflicts",
                "Processes that claim a pod id which another one has.",
                "ops",
                ((rate("sfroute_pods_conflicts_total", WINDOW), "conflicts"),),
                bars=True,
            ),
        ),
    ),
    (
        "Store",
        (
            Shown(
                "Lanes",
                "Connections for look-ups, one for each gateway and primary; and those of them that answer.",
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


def queries(shown: Shown) -> list[prometheus.Dataquery]:
    """What a panel asks Prometheus."""
    made = []
    for letter, (expression, legend) in zip("ABC", shown.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).ref_id(letter).legend_format(legend)
        made.append(query.instant() if shown.number else query.range())
    return made


def number_panel(shown: Shown, number: int) -> stat.Panel:
    """One number."""
    steps = [models.Threshold(color="green", value=None)]
    if shown.bad is not None:
        steps.append(models.Threshold(color="red", value=shown.bad))
    thresholds = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
    panel = stat.Panel().id(number).title(shown.title).description(shown.description)
    panel.datasource(SOURCE).unit(shown.unit).thresholds(thresholds).span(4).height(4)
    panel.graph_mode(common_models.BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    for query in queries(shown):
        panel.with_target(query)
    return panel


def series_panel(shown: Shown, number: int, width: int) -> timeseries.Panel:
    """A time series."""
    style = common_models.GraphDrawStyle
    panel = timeseries.Panel().id(number).title(shown.title).description(shown.description)
    panel.datasource(SOURCE).unit(shown.unit).min(0).span(width).height(8)
    panel.draw_style(style.BARS if shown.bars else style.LINE)
    panel.fill_opacity(40 if shown.bars or shown.stacked else 0)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    if shown.top is not None:
        panel.max(shown.top)
    if shown.stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for query in queries(shown):
        panel.with_target(query)
    return panel


def variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A choice of label values; everything unless something is chosen."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def overview() -> dashboard.Dashboard:
    """The dashboard."""
    made = (
        dashboard.Dashboard("sfroute")
        .uid("sfroute-overview")
        .description(
            "Every gateway's calls, cache, links, lanes and telemetry. See docs/dashboards."
        )
        .tags(["sfroute"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
        .with_variable(variable("job", "Job", f"label_values({REQUESTS}, job)"))
        .with_variable(
            variable("instance", "Gateway", f'label_values({REQUESTS}{{job=~"$job"}}, instance)')
        )
    )
    number = 0
    for shown in AT_A_GLANCE:
        number += 1
        made.with_panel(number_panel(shown, number))
    for title, row in ROWS:
        number += 1
        made.with_row(dashboard.Row(title).id(number))
        for shown in row:
            number += 1
            made.with_panel(series_panel(shown, number, WIDTHS.get(len(row), 8)))
    return made


def text() -> str:
    """The dashboard as the file holds it."""
    return json.dumps(overview().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if OVERVIEW.read_text(encoding="utf-8") != text():
            sys.exit(f"{OVERVIEW.name} is not what generate.py makes: run it and commit the result")
    else:
        OVERVIEW.write_text(text(), encoding="utf-8")
