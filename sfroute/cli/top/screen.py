"""Draws a frame. Pure: facts in, something that rich can print out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ...telemetry import PodsSeen
from ..common import plain_table, printable
from ..pods import in_numbers, pod_cells, pod_rows
from .facts import Frame, NodeRates

__all__ = ["as_fields", "draw"]

_COLOURS = {"Running": "green", "Draining": "yellow", "Pending": "yellow"}


def draw(
    frame: Frame,
    title: str,
    events: Sequence[str],
    *,
    now: float,
    pod_timeout: float,
    height: int | None,
) -> RenderableType:
    """The screen. ``now``: by the monotonic clock. ``height``: lines; None: as many as needed."""
    rows = _rows(frame, pod_timeout)
    parts: list[RenderableType] = [
        Text.assemble(
            ("sfroute top", "bold"), f"  {printable(title)}  {datetime.now().astimezone():%H:%M:%S}"
        ),
        _totals(frame, now),
    ]
    if frame.seen is not None:
        parts.append(_pods_in_numbers(frame.seen))
    if (trouble := frame.trouble or frame.link_trouble) is not None:
        parts.append(Text(printable(trouble), style="bold red"))
    parts += [Text(), _nodes(frame.nodes), Text()]
    # What is fixed: two headings, blank lines, totals, two lines of the pods in numbers, one for pods left out, events.
    shown = rows
    if height is not None:
        shown = rows[: max(height - len(frame.nodes) - len(events) - 11, 3)]
    parts.append(_pods(shown))
    if len(shown) < len(rows):
        parts.append(Text(f"and {len(rows) - len(shown)} more pods", style="dim"))
    if frame.pods is None:
        parts.append(Text("the pods could not be read", style="dim"))
    elif not rows:
        parts.append(Text("no pod has reported a state", style="dim"))
    if events:
        parts += [Text(), *(Text(printable(event), style="dim") for event in events)]
    return Group(*parts)


def _rows(frame: Frame, pod_timeout: float) -> list[dict[str, Any]]:
    """The pods; none if they could not be read: their links alone would make them look as if they had not reported."""
    if frame.pods is None:
        return []
    counts = frame.links.by_pod if frame.links is not None else None
    return pod_rows(frame.pods, counts, pod_timeout)


def _totals(frame: Frame, now: float) -> Text:
    lanes = [node.now.lanes for node in frame.nodes if node.now.lanes is not None]
    hits = sum(node.reads * (node.hit_ratio or 0.0) for node in frame.nodes)
    reads = sum(node.reads for node in frame.nodes)
    parts = [
        f"lookups {_rate([node.look_ups for node in frame.nodes])}",
        f"scripts {_rate([node.writes for node in frame.nodes])}",
        f"hits {_percent(hits / reads if reads else None)}",
        f"lanes {sum(lanes)}" if lanes else "lanes -",
    ]
    if frame.links is not None:
        total = sum(frame.links.by_pod.values())
        parts.append(f"links {total:,} ({max(now - frame.links.at, 0):.0f} s ago)")
    else:
        parts.append("links being counted" if frame.link_trouble is None else "links not counted")
    return Text("   ".join(parts))


def _pods_in_numbers(seen: PodsSeen) -> Text:
    statuses = ", ".join(f"{count} {status}" for status, count in seen.statuses.items() if count)
    parts = [f"pods {statuses}", f"{seen.routable} take users"]
    if seen.oldest_heartbeat is not None:
        parts.append(f"heartbeats {seen.oldest_heartbeat:.1f} s")
    if seen.room is not None:
        parts.append(f"room for {seen.room:,}")
    if seen.skew is not None:
        parts.append(f"skew {seen.skew:.2f}")
    if seen.emptying:
        parts.append(f"{seen.emptying} being evacuated")
    return Text("   ".join(parts))


def _rate(rates: Sequence[float | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    return f"{sum(known):,.0f}/s" if known else "-"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _nodes(nodes: Sequence[NodeRates]) -> RenderableType:
    headings = ["PRIMARY", ">LOOK-UPS/S", ">SCRIPTS/S", ">HITS", ">LANES", ">KEYS", ">MIB", ">MS"]
    rows: list[list[Any]] = []
    for node in nodes:
        if node.now.trouble is not None:
            rows.append(
                [node.address, Text(printable(node.now.trouble), style="bold red"), *[""] * 6]
            )
            continue
        rows.append(
            [
                node.address,
                "-" if node.look_ups is None else f"{node.look_ups:,.0f}",
                "-" if node.writes is None else f"{node.writes:,.0f}",
                _percent(node.hit_ratio),
                "-" if node.now.lanes is None else str(node.now.lanes),
                f"{node.now.keys:,}",
                f"{node.now.memory / 2**20:,.0f}",
                f"{node.now.took * 1000:.1f}",
            ]
        )
    return plain_table(headings, rows)


def _pods(rows: Sequence[dict[str, Any]]) -> RenderableType:
    counted = any("links" in row for row in rows)
    headings = [">POD", "STATUS", ">LOAD", ">AGE", *([">LINKS"] if counted else []), "NEW USERS"]
    cells: list[list[Any]] = []
    for row in rows:
        columns: list[Any] = [*pod_cells(row)]
        # A pod that reports Running and is silent is not well.
        well = row["takes_new_users"] or row["status"] != "Running"
        colour = _COLOURS.get(str(row["status"]), "red") if well else "red"
        columns[1] = Text(printable(columns[1]), style=colour)
        cells.append(columns)
    return plain_table(headings, cells)


def as_fields(frame: Frame, pod_timeout: float) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "pods": _rows(frame, pod_timeout),
        "pods_in_numbers": in_numbers(frame.seen) if frame.seen is not None else None,
        "primaries": [node.fields() for node in frame.nodes],
        "trouble": frame.trouble or frame.link_trouble,
    }
