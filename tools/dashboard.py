"""Writes ``docs/dashboards/overview.json``, the Grafana dashboard of sfroute.

    python tools/dashboard.py            # write it
    python tools/dashboard.py --check    # fail if the file is out of date

The output is deterministic: ``make test-dashboards`` compares the committed file with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from dashboard_panels import AT_A_GLANCE, EVENTS, LOOKUPS, ROWS, Event, Shown
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

OVERVIEW: Final = Path(__file__).parents[1] / "docs" / "dashboards" / "overview.json"

SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

# Panels in a row -> columns of 24 for each; 8 otherwise.
WIDTHS: Final = {1: 24, 2: 12, 4: 12}


def queries(shown: Shown) -> list[prometheus.Dataquery]:
    """What a panel asks Prometheus."""
    made = []
    for letter, (expression, legend) in zip("ABC", shown.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).ref_id(letter).legend_format(legend)
        if shown.exemplars:
            query.exemplar(True)
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
    panel.datasource(SOURCE).unit(shown.unit).span(width).height(8)
    if shown.exemplars:
        scale = common_models.ScaleDistribution.LOG
        panel.scale_distribution(common.ScaleDistributionConfig().type(scale).log(10))
    else:
        panel.min(0)
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


def annotation(event: Event) -> dashboard.AnnotationQuery:
    """Marks in all graphs. The SDK knows no fields of Prometheus here but the expression."""
    made = dashboard.AnnotationQuery().name(event.name).datasource(SOURCE).enable(True)
    return made.icon_color(event.colour).expr(event.expression)


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
            "Every gateway's calls, cache, links and lanes, and every pod's users. See docs/dashboards."
        )
        .tags(["sfroute"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
        .with_variable(variable("job", "Job", f"label_values({LOOKUPS}, job)"))
        .with_variable(
            variable("instance", "Process", f'label_values({LOOKUPS}{{job=~"$job"}}, instance)')
        )
    )
    for event in EVENTS:
        made.annotation(annotation(event))
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
            sys.exit(f"{OVERVIEW.name} is out of date; run: python tools/dashboard.py")
    else:
        OVERVIEW.write_text(text(), encoding="utf-8")
