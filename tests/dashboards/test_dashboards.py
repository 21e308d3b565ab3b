"""The dashboard and the rules in docs/dashboards show what a real gateway does, by a real Prometheus.

    make test-dashboards

A gateway and two pods drive known numbers of everything there is a panel for, on a real cluster; Prometheus scrapes
them each second; then every panel is asked for. Not part of ``make test``: it needs the programs ``prometheus``,
``promtool`` and ``chromium``.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import promql_parser
import pytest
from driven_gateway import REMOVED, TAKEN
from driven_pod import HELD
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from scraping import Prometheus, running_prometheus, wait_for
from support.command import commands
from support.documents import block, typed
from support.processes import Child

from sfroute._contract.keys import link_key
from sfroute.embedded import LocalCluster

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "docs" / "dashboards"
RULES = [DASHBOARDS / "rules" / name for name in ("recording.yml", "alerting.yml")]
PAGE = (DASHBOARDS / "README.md").read_text(encoding="utf-8")
OVERVIEW = json.loads((DASHBOARDS / "overview.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in OVERVIEW["panels"] if panel["type"] != "row"]
SERIES = [panel for panel in PANELS if panel["type"] == "timeseries"]
NUMBERS = [panel for panel in PANELS if panel["type"] == "stat"]

STILL = {"Pod id conflicts"}
"""Panels that show zeros only, because nothing here brings about what they count."""
RANGE = "10m"
"""Longer than the whole test, so that it holds the zeros at its beginning."""
RATE_INTERVAL = "4s"
"""What Grafana makes of ``$__rate_interval`` where targets are scraped each second: four scrapes."""
UIDS = ("linked-", "nobody", "placed-", "filling-", "overflowing-", "held-")
GATEWAYS, PODS = "gateways", "pods"
OWN = f'job="{GATEWAYS}"'
"""The gateway's series: pods have routers too."""


def title_of(panel: dict[str, Any]) -> str:
    title: str = panel["title"]
    return title


def expressions(panel: dict[str, Any], job: str = ".*") -> list[str]:
    """A panel's queries, variables replaced as Grafana replaces them while everything is chosen."""
    replaced = {
        "$__rate_interval": RATE_INTERVAL,
        "$__range": RANGE,
        "$job": job,
        "$instance": ".*",
    }
    found = []
    for target in panel["targets"]:
        expression: str = target["expr"]
        for variable, value in replaced.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression
        found.append(expression)
    return found


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of prometheus and promtool."""
    found = shutil.which("promtool")
    assert found, (
        'promtool is not on PATH: run make test-dashboards, or PATH="$(.ci/prometheus):$PATH"'
    )
    return Path(found).parent


class Driven:
    """A process that does what it is told."""

    def __init__(self, told: IO[str], answered: IO[str]) -> None:
        self._told = told
        self._answered = answered
        self.port = int(answered.readline())

    def drive(self, phase: str) -> dict[str, int]:
        self._told.write(f"{phase}\n")
        self._told.flush()
        done: dict[str, int] = json.loads(self._answered.readline())
        return done


@contextmanager
def running(program: str, *arguments: str) -> Iterator[Driven]:
    with Child(
        [sys.executable, Path(__file__).with_name(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Driven(process.stdin, process.stdout)
        process.stdin.close()
        assert process.wait(20) == 0


@dataclass
class Shown:
    """What was driven, and what Prometheus says of it.

    Attributes:
        prometheus: still running, and still scraping.
        began: when the first scrape was there, all counters at zero.
        ended: when the last thing was scraped.
        driven: phase -> its numbers, all times together.
        requests: the cache's counters after ``read``.
        ratios: what the panels of the hit ratio showed then.
        calls: durations counted then, by operation.
        held: claims of each pod's process, after the evacuation of one.
    """

    prometheus: Prometheus
    began: float
    ended: float = 0.0
    driven: dict[str, Counter[str]] = field(default_factory=dict)
    requests: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)


def drive(shown: Shown, gateway: Driven, pods: list[Driven], cluster: LocalCluster) -> None:
    """Every phase, each seen by a scrape of its own."""

    def do(phase: str, process: Driven = gateway) -> None:
        done = process.drive(phase)
        shown.driven.setdefault(phase, Counter()).update(done)
        shown.prometheus.wait_for_scrape("sfroute_lanes")

    do("link")
    do("read")
    shown.requests = shown.prometheus.values(
        f"sfroute_cache_requests_total{{{OWN}}}", "sfroute_outcome"
    )
    shown.calls = shown.prometheus.values(
        f"sfroute_operation_duration_seconds_count{{{OWN}}}", "sfroute_operation"
    )
    for panel in PANELS:
        if title_of(panel).startswith("Hit ratio"):
            (expression,) = expressions(panel, GATEWAYS)
            # Over the whole time, whichever window the panel uses: see the test of the hit ratio.
            whole = expression.replace(f"[{RATE_INTERVAL}]", f"[{RANGE}]")
            ((_, shown.ratios[title_of(panel)]),) = shown.prometheus.query(whole)
    for phase in ("write", "place", "refuse", "refuse", "fill"):
        do(phase)
    for node in cluster.nodes:
        if node.role == "primary":
            cluster.execute(node, "SCRIPT", "FLUSH")
    do("write")
    drive_pods(shown, do, pods)
    cluster.kill(cluster.primary_of(link_key("shown", "linked-0", "chat")))
    do("lose")
    do("overflow")
    forget(shown, pods, cluster)
    do("traces")
    shown.ended = time.time()


def drive_pods(shown: Shown, do: Callable[..., None], pods: list[Driven]) -> None:
    """What pods hold, lose and get back."""
    prometheus = shown.prometheus
    for pod in pods:
        do("hold", pod)

    def skewed() -> object:
        do("look")
        return prometheus.query("sfroute_pods_load_skew > 1") or None

    # Their heartbeats tell of their loads.
    wait_for(skewed, "the skew of loads")
    do("take")
    lost = f"sum (sfroute_agent_claims_lost_total) >= {TAKEN + REMOVED}"
    wait_for(lambda: prometheus.query(lost) or None, "the claims lost")
    confirmed = "sfroute_agent_claims_confirmed_total > 0"
    wait_for(lambda: prometheus.query(confirmed) or None, "claims confirmed in rounds")
    do("evacuate")
    do("look")
    shown.held = prometheus.values("sfroute_agent_claims", "instance")


def forget(shown: Shown, pods: list[Driven], cluster: LocalCluster) -> None:
    """The store loses its data, and the pods bring it back; then one of them drains."""
    cluster.execute(cluster.primary_of(link_key("shown", "held-1-20", "room")), "FLUSHALL")
    again = "sum (sfroute_agent_claims_reasserted_total) > 0"
    wait_for(lambda: shown.prometheus.query(again) or None, "claims made again")
    shown.driven["drain"] = Counter(pods[0].drive("drain"))


@pytest.fixture(scope="module")
def shown(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    directory = tmp_path_factory.mktemp("prometheus")
    with (
        LocalCluster() as cluster,
        running("driven_gateway.py", cluster.url) as gateway,
        running("driven_pod.py", cluster.url, "1") as one,
        running("driven_pod.py", cluster.url, "2") as other,
    ):
        jobs = {
            GATEWAYS: [f"127.0.0.1:{gateway.port}"],
            PODS: [f"127.0.0.1:{pod.port}" for pod in (one, other)],
        }
        with running_prometheus(programs / "prometheus", jobs, RULES, directory) as prometheus:
            zeros = 'sfroute_cache_requests_total{sfroute_outcome="hit"} == 0'
            wait_for(lambda: len(prometheus.query(zeros)) == 3 or None, "the first scrapes")
            observed = Shown(prometheus, time.time())
            drive(observed, gateway, [one, other], cluster)
            yield observed


# The dashboard


def test_the_committed_dashboard_is_the_generated_one() -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "dashboard.py", "--check"], check=True)


def test_the_dashboard_is_one_by_grafanas_own_types() -> None:
    register_default_plugins()
    read = Dashboard.from_json(OVERVIEW)
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == OVERVIEW


def test_every_panel_has_its_place_id_and_title() -> None:
    ids = [panel["id"] for panel in OVERVIEW["panels"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    assert len({title_of(panel) for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in OVERVIEW["panels"]):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=title_of)
def test_every_expression_of_a_panel_is_promql(panel: dict[str, Any]) -> None:
    for expression in expressions(panel):
        promql_parser.parse(expression)


@pytest.mark.parametrize("panel", SERIES, ids=title_of)
def test_every_query_of_a_time_series_shows_what_was_driven(
    panel: dict[str, Any], shown: Shown
) -> None:
    for expression in expressions(panel):
        series = shown.prometheus.query_range(expression, shown.began, shown.ended)
        values = [value for _, found in series for value in found if not math.isnan(value)]
        assert values, expression
        assert (max(values) > 0) == (title_of(panel) not in STILL), expression


@pytest.mark.parametrize("panel", NUMBERS, ids=title_of)
def test_every_single_number_is_there(panel: dict[str, Any], shown: Shown) -> None:
    for expression in expressions(panel):
        ((labels, value),) = shown.prometheus.query(expression)
        assert labels == {}
        assert math.isfinite(value)
        assert value >= 0


def test_the_choices_of_the_dashboard_offer_the_job_and_the_gateway(shown: Shown) -> None:
    offered = {}
    for variable in OVERVIEW["templating"]["list"]:
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
        if query is not None:
            selector, label = query[1].replace("$job", ".*"), query[2]
            offered[label] = shown.prometheus.get(f"label/{label}/values", match=selector)
    assert offered["job"] == [GATEWAYS, PODS]
    assert len(offered["instance"]) == 3


# The numbers


def test_the_hit_ratio_shown_is_the_one_driven(shown: Shown) -> None:
    """Exactly, but for the last bits of a float.

    The counters are compared as they are. The panels divide one rate by another: Prometheus extrapolates a rate to the
    borders of its window, by a factor that depends only on the times of the samples when the first one is 0. All
    outcomes are scraped together and begin with a scraped 0, so it is the same factor above and below the line.
    """
    driven = {name: float(count) for name, count in shown.driven["read"].items()}
    assert shown.requests == driven
    ratio = driven["hit"] / sum(driven.values())
    assert shown.ratios == {
        "Hit ratio": pytest.approx(ratio, rel=1e-12),
        "Hit ratio over time": pytest.approx(ratio, rel=1e-12),
    }


def test_durations_are_those_of_the_calls_that_the_cache_could_not_answer(shown: Shown) -> None:
    read = shown.driven["read"]
    assert shown.calls == {
        "set_linked_pod": shown.driven["link"]["set_linked_pod"],
        "get_linked_pod": read["miss"] + read["joined"],
    }


def test_placed_moved_refused_stale_and_dropped_are_those_driven(shown: Shown) -> None:
    prometheus, driven = shown.prometheus, shown.driven
    links = driven["place"] + Counter(moved=driven["evacuate"]["moved"])
    assert prometheus.values("sfroute_links_placed_total", "sfroute_reason") == links
    errors = prometheus.values(
        f'sfroute_operation_duration_seconds_count{{{OWN}, error_type!=""}}', "error_type"
    )
    assert errors == driven["refuse"]
    for metric, (phase, name) in {
        "sfroute_answers_stale_total": ("lose", "stale"),
        "sfroute_spans_dropped_total": ("overflow", "dropped"),
    }.items():
        ((_, value),) = prometheus.query(f"{metric}{{{OWN}}}")
        assert value == driven[phase][name] > 0


def test_the_claims_held_lost_and_moved_are_those_driven(shown: Shown) -> None:
    prometheus, evacuated = shown.prometheus, shown.driven["evacuate"]["moved"]
    assert shown.driven["hold"]["claims"] == sum(HELD.values())
    # The user of a link that is written or removed by hand is let go. Nobody has taken the evacuated ones yet.
    assert evacuated == HELD[2] + TAKEN
    assert sorted(shown.held.values()) == [0, HELD[1] - TAKEN - REMOVED]
    lost = prometheus.values("sfroute_agent_claims_lost_total", "sfroute_reason")
    assert lost == {"moved": TAKEN + HELD[2], "removed": REMOVED, "superseded": 0}


def test_the_exemplars_of_a_panel_lead_to_the_traces_of_the_gateway(shown: Shown) -> None:
    """``trace_id`` is the label by which Grafana finds the trace in its source of traces."""
    with_exemplars = [
        panel for panel in PANELS if any(target.get("exemplar") for target in panel["targets"])
    ]
    assert {title_of(panel) for panel in with_exemplars} == {
        "Duration, median",
        "Duration, 99th percentile",
        "Invalidation lag",
    }
    for panel in with_exemplars:
        for expression in expressions(panel, GATEWAYS):
            found = shown.prometheus.exemplars(expression, shown.began, shown.ended)
            assert found, expression
            assert {labels["trace_id"] for labels in found} <= set(shown.driven["traces"])


@pytest.mark.parametrize("mark", OVERVIEW["annotations"]["list"], ids=lambda mark: mark["name"])
def test_failovers_and_evacuations_are_marked_when_they_happen(
    mark: dict[str, Any], shown: Shown
) -> None:
    (expression,) = expressions({"targets": [mark]})
    found = shown.prometheus.query_range(expression, shown.began, shown.ended)
    seconds = shown.ended - shown.began
    assert found
    for _, values in found:
        assert 0 < len(values) < seconds
    assert f"\n| {mark['name']} |" in PAGE


def test_the_lag_is_that_of_the_pushes_of_own_writes(shown: Shown) -> None:
    """Each write of a link, or of the knowledge that there is none, that a living primary had told the cache of."""
    place, lose = shown.driven["place"], shown.driven["lose"]
    written = shown.driven["write"]["written"] + place["placed"] + place["moved"]
    ((_, count),) = shown.prometheus.query(f"sfroute_cache_invalidation_lag_seconds_count{{{OWN}}}")
    assert count == written + lose["written"] - lose["stale"]


def test_the_error_ratio_counts_the_errors_with_which_a_series_begins(shown: Shown) -> None:
    name = f"sfroute_operation_duration_seconds_count{{{OWN}}}"
    calls = sum(shown.prometheus.values(name, "sfroute_operation").values())
    (panel,) = (panel for panel in PANELS if title_of(panel) == "Error ratio")
    ((_, ratio),) = shown.prometheus.query(expressions(panel, GATEWAYS)[0])
    assert ratio == pytest.approx(shown.driven["refuse"]["NoRoutablePod"] / calls, rel=1e-12)


def test_a_forgotten_script_and_a_lost_primary_are_seen_as_retries(shown: Shown) -> None:
    retries = shown.prometheus.values(f"sfroute_retries_total{{{OWN}}}", "sfroute_retry_reason")
    assert retries["NOSCRIPT"] >= 3
    assert retries["connection"] > 0
    assert retries["TRYAGAIN"] == 0  # reported before it ever happens


def test_the_lost_primary_is_seen_and_forgotten(shown: Shown) -> None:
    (panel,) = (panel for panel in PANELS if title_of(panel) == "Lanes not healthy")
    (expression,) = expressions(panel, GATEWAYS)
    ((_, unhealthy),) = shown.prometheus.query_range(expression, shown.began, shown.ended)
    assert max(unhealthy) == shown.driven["lose"]["lost"] == 1
    assert unhealthy[-1] == 0


def test_no_label_holds_a_uid(shown: Shown) -> None:
    series = shown.prometheus.get("series", match='{__name__=~"sfroute_.+"}')
    assert series
    assert [uid for uid in UIDS if uid in json.dumps(series)] == []


# The page that shows it without Grafana


PICTURES = {
    "dashboard-calls.png": ("At a glance,Calls,Cache", 1220),
    "dashboard-pods.png": ("Links,Pods,Ownership,Balance", 1850),
    "dashboard-store.png": ("Store,Telemetry", 620),
}
"""File of docs/images -> its rows, and its height in pixels."""
WIDTH = 1400


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP."""
    with (
        tempfile.TemporaryFile() as log,
        Child(
            [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        found = re.search(r"port (\d+)", process.stdout.readline())
        assert found is not None
        yield f"http://127.0.0.1:{found[1]}"


def browse(url: str, *options: str) -> str:
    """What Chromium prints of a page; it reaches nothing but this machine."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "chromium is not on PATH: run make test-dashboards, or .ci/chromium"
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--disable-background-networking",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--virtual-time-budget=60000",
                f"--user-data-dir={profile}",
                *options,
                url,
            ],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=60,
        )
    return done.stdout


def view(shown: Shown, server: str, **parameters: str) -> str:
    """The address of the page for what was driven."""
    asked = {
        "prometheus": shown.prometheus.url,
        "end": f"{shown.ended:.3f}",
        "minutes": f"{(shown.ended - shown.began) / 60:.4f}",
        "scrape": "1",
        "traces": "http://127.0.0.1/traces/{trace}",
        **parameters,
    }
    return f"{server}/view.html?{urllib.parse.urlencode(asked)}"


def test_the_page_draws_every_panel_and_links_its_exemplars_to_traces(shown: Shown) -> None:
    with served(DASHBOARDS) as server:
        drawn = browse(view(shown, server), "--dump-dom")
    found = dict(
        re.findall(r'class="panel" data-title="([^"]+)"[^>]* data-series="(-?\d+)"', drawn)
    )
    assert found.keys() == {title_of(panel) for panel in PANELS}
    assert [title for title, series in found.items() if int(series) <= 0] == []
    linked = set(re.findall(r'href="http://127.0.0.1/traces/(\w+)"', drawn))
    assert linked
    assert linked <= set(shown.driven["traces"])


@pytest.mark.skipif(
    "SFROUTE_PICTURES" not in os.environ, reason="make dashboard-pictures asks for them"
)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_taken(name: str, shown: Shown) -> None:
    picture = Path(os.environ["SFROUTE_PICTURES"]).resolve() / name
    rows, height = PICTURES[name]
    with served(DASHBOARDS) as server:
        size = f"--window-size={WIDTH},{height}"
        browse(view(shown, server, rows=rows), size, f"--screenshot={picture}")
    assert picture.stat().st_size > 10_000


# The rules


def test_promtool_accepts_the_rules_and_their_tests_pass(programs: Path) -> None:
    promtool = programs / "promtool"
    subprocess.run([promtool, "check", "rules", *RULES], check=True)
    subprocess.run([promtool, "test", "rules", DASHBOARDS / "rules" / "tests.yml"], check=True)


def test_prometheus_evaluates_every_rule(shown: Shown) -> None:
    rules = [rule for group in shown.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert [rule["lastError"] for rule in rules if rule["health"] != "ok"] == []
    for rule in rules:
        promql_parser.parse(rule["query"])
        if rule["type"] == "recording":
            assert shown.prometheus.query(rule["name"]), rule["name"]


def test_what_was_driven_is_on_its_way_to_an_alert(shown: Shown) -> None:
    alerts = shown.prometheus.get("alerts")["alerts"]
    names = {alert["labels"]["alertname"] for alert in alerts}
    assert names >= {"SfrouteNoRoutablePod", "SfrouteStaleAnswers", "SfrouteTelemetryDropped"}
    assert not names & {"SfrouteStoreErrors", "SfrouteOutcomeUnknown", "SfroutePodConflicts"}


# The page


def test_the_code_of_the_page_serves_metrics() -> None:
    code = block("docs/dashboards/README.md", "python", 0).text.replace("9464", "0") + (
        "import prometheus_client\n"
        "metrics.get_meter('shown').create_counter('shown.calls', unit='{call}').add(1)\n"
        "print(prometheus_client.generate_latest().decode())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\nshown_calls_total{" in done.stdout
    assert done.stderr == ""


def test_the_configuration_of_the_page_is_one(programs: Path, tmp_path: Path) -> None:
    configuration = block("docs/dashboards/README.md", "yaml", 0).text
    (tmp_path / "prometheus.yml").write_text(configuration)
    for rules in RULES:
        shutil.copy(rules, tmp_path)
    subprocess.run(
        [programs / "promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, check=True
    )


def test_the_label_that_the_page_names_is_that_of_the_exemplars(shown: Shown) -> None:
    settings = json.loads(block("docs/dashboards/README.md", "json", 0).text)
    (destination,) = settings["exemplarTraceIdDestinations"]
    found = shown.prometheus.exemplars(
        "sfroute_operation_duration_seconds_bucket", shown.began, shown.ended
    )
    assert found
    assert all(destination["name"] in labels for labels in found)


def test_the_command_of_the_page_makes_runbooks_absolute(tmp_path: Path) -> None:
    (entry,) = typed(block("docs/dashboards/README.md", "console", 1))
    shutil.copy(RULES[1], tmp_path)
    subprocess.run(entry.command, shell=True, cwd=tmp_path, check=True)
    text = (tmp_path / "alerting.yml").read_text(encoding="utf-8")
    urls = re.findall(r"runbook_url: (.+)", text)
    assert len(urls) == len(alerts())
    assert all(url.startswith("https://git.example.com/sfroute/blob/main/docs/") for url in urls)


def alerts() -> list[dict[str, str]]:
    """Name and whole text of every alert in ``alerting.yml``."""
    text = RULES[1].read_text(encoding="utf-8")
    return [
        {"name": alert.split("\n", 1)[0], "text": alert} for alert in text.split("- alert: ")[1:]
    ]


@pytest.mark.parametrize("panel", PANELS, ids=title_of)
def test_every_panel_is_explained(panel: dict[str, Any]) -> None:
    assert f"\n| {title_of(panel)} |" in PAGE


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["name"])
def test_every_alert_is_tested_and_has_its_runbook(alert: dict[str, str]) -> None:
    name, text = alert["name"], alert["text"]
    for part in ("summary: ", "description: ", "severity: "):
        assert part in text
    action = re.search(r"action: >-\n((?:            .+\n)+)", text)
    assert action is not None
    (command,) = re.findall(r"\bsfroute (\w+)", action[1])[:1]
    assert command in {words[0] for words, _ in commands()}
    assert f"runbook_url: docs/dashboards/README.md#{name.lower()}\n" in text
    assert f"\n### {name}\n" in PAGE
    tests = (DASHBOARDS / "rules" / "tests.yml").read_text(encoding="utf-8")
    assert len(re.findall(rf"alertname: {name}\n\s+eval_time: \w+\n\s+exp_alerts:", tests)) >= 1
    assert (
        len(re.findall(rf"alertname: {name}\b(?!\n\s+eval_time: \w+\n\s+exp_alerts:)", tests)) >= 1
    )
