"""What a run has found, as tables for people, JSON for programs and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from math import log10
from pathlib import Path

import ioredis
from harness import Comparison, Cost, machine

__all__ = ["Report", "Run"]

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
DATA = DOCUMENT.with_suffix(".json")
PLOT = DOCUMENT.parent / "images" / "benchmarks.svg"
PACKAGES = (
    "sfroute",
    "redis",
    "hiredis",
    "coredis",
    "valkey-glide",
    "valkey-glide-sync",
    "cachetools",
    "cachebox",
    "uvloop",
    "opentelemetry-sdk",
)
CHAPTERS = {
    "hits": "Hits: an answer from the local cache",
    "tracing": "Hits with an OpenTelemetry SDK",
    "misses": "Misses: an answer from the store",
    "batches": "Batches",
    "writes": "Writes",
    "gateway": "A gateway's requests",
}
OPENING = {
    "sync hit, no SDK": "a known user, on threads",
    "async hit, no SDK": "a known user, on asyncio",
    "async miss, 1 at a time": "a user that is not known yet, one at a time",
    "async miss, 100 at a time": "the same, 100 at a time",
    "sync miss, 16 threads": "the same, on 16 threads",
    "async batch of 1,000 cold uids, per uid": "1,000 unknown users in one call, for each",
    "set_linked_pod, 100 at a time": "a write, 100 at a time",
    "gateway mix with 100 callers, 99th percentile": "the slowest hundredth of a gateway's requests, 100 callers",
    "gateway mix at 8,000 requests/s, CPU": "processor time of a gateway's request, 8,000 a second",
}
"""What a reader wants to know first: how a work is called, or begins -> in the reader's words."""
PLOTTED = (
    "sync hit, no SDK",
    "async miss, 1 at a time",
    "async miss, 100 at a time",
    "sync miss, 16 threads",
    "async batch of 1,000 cold uids, per uid",
    "set_linked_pod, 100 at a time",
)


def this_machine() -> str:
    """What runs it here."""
    node = ioredis.version()
    return machine(*PACKAGES) + (f", ioredis {node}" if node else "")


@dataclass
class Run:
    """All comparisons on one server."""

    server: str
    comparisons: list[Comparison] = field(default_factory=list)


@dataclass
class Report:
    """A whole run.

    Attributes:
        runs: the comparisons, for each server.
        costs: what sfroute itself costs.
        seconds: how long it took.
        rounds: turns of each contender.
        command: what repeats it.
        machine: what ran it.
    """

    runs: list[Run]
    costs: list[Cost]
    seconds: float
    rounds: int
    command: str
    machine: str = field(default_factory=this_machine)

    @classmethod
    def kept(cls) -> Report:
        """The run that docs/benchmarks.json holds."""
        found = json.loads(DATA.read_text())
        return cls(
            [
                Run(run["server"], [Comparison.from_json(each) for each in run["comparisons"]])
                for run in found["runs"]
            ],
            [Cost.from_json(each) for each in found["costs"]],
            found["seconds"],
            found["rounds"],
            found["command"],
            found["machine"],
        )

    def targets_text(self) -> str:
        """Every figure that has a mark to reach, for a terminal."""
        return "\n".join("  ".join(row) for row in self._targets())

    def costs_text(self) -> str:
        """What sfroute itself costs, for a terminal."""
        return "\n".join("  ".join(cost.row()) for cost in self.costs)

    def _targets(self) -> Iterator[tuple[str, ...]]:
        for run in self.runs:
            for comparison in run.comparisons:
                target = comparison.target
                if target is None:
                    continue
                middle, worst, best = target.measured(comparison)
                unit = "its time" if target.of_time else "throughput"
                bound = "<=" if target.of_time else ">="
                yield (
                    comparison.work,
                    comparison.baseline,
                    f"{bound} {target.at_least:g}x {unit}",
                    f"{middle:.2f}x ({worst:.2f} to {best:.2f})",
                    "yes" if target.met(comparison) else "**no**",
                    run.server,
                )

    def _opening(self) -> Iterator[tuple[str, ...]]:
        for work, words in OPENING.items():
            for comparison in self.runs[0].comparisons:
                target = comparison.target
                if target is not None and comparison.work.startswith(work):
                    middle, worst, best = target.measured(comparison)
                    of = "its time" if target.of_time else "its throughput"
                    yield (
                        words,
                        f"{comparison.seconds(target.contender) * 1e6:.2f} us",
                        f"{comparison.baseline}: {comparison.seconds(comparison.baseline) * 1e6:.2f} us",
                        f"{middle:.2f}x ({worst:.2f} to {best:.2f}) {of}",
                    )

    def _missed(self) -> str:
        marks = [
            comparison.target.met(comparison)
            for run in self.runs
            for comparison in run.comparisons
            if comparison.target is not None
        ] + [cost.value <= cost.at_most for cost in self.costs if cost.at_most is not None]
        missed = marks.count(False)
        return (
            f"The design sets {len(marks)} marks; {missed or 'none'} of them "
            f"{'was' if missed == 1 else 'were'} missed in this run: [the marks](#the-marks)."
        )

    def write(self) -> None:
        """The three files."""
        DATA.write_text(json.dumps(self._json(), indent=1) + "\n")
        PLOT.write_text(plot(self.runs[0]))
        DOCUMENT.write_text("\n".join(self._document()) + "\n")
        print("wrote docs/benchmarks.md, docs/benchmarks.json and docs/images/benchmarks.svg")

    def _json(self) -> dict[str, object]:
        return {
            "command": self.command,
            "machine": self.machine,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "runs": [
                {"server": run.server, "comparisons": [each.as_json() for each in run.comparisons]}
                for run in self.runs
            ],
            "costs": [cost.as_json() for cost in self.costs],
        }

    def _document(self) -> Iterator[str]:
        servers = " and ".join(run.server for run in self.runs)
        yield "# Benchmarks"
        yield ""
        yield "<!-- Written by `make bench`; do not edit. -->"
        yield ""
        yield (
            "What a gateway waits for, beside what it would use otherwise. Medians; in brackets the worst and the best "
            "round."
        )
        yield ""
        yield from markdown(("what is asked", "sfroute", "beside", "ratio"), self._opening())
        yield ""
        yield self._missed()
        yield ""
        yield "![Time per operation of each contender](images/benchmarks.svg)"
        yield ""
        yield (
            "Bars are medians, lines reach from the fastest to the slowest round, on a logarithmic scale: "
            f"{self.runs[0].server}."
        )
        yield ""
        yield "## How it was measured"
        yield ""
        yield f"Written by `{self.command}`, which runs everything below again and rewrites this page."
        yield ""
        yield f"- Machine: {self.machine}"
        yield f"- Servers: {servers}, each three primaries on the same machine, over loopback"
        yield (
            f"- {self.rounds} rounds; in each round every contender has one turn, in an order that rotates. Ratios are "
            "taken within a round; the tables show the median and, in brackets, the extremes of all rounds"
        )
        yield f"- The run took {self.seconds / 60:.0f} minutes; all samples are in [benchmarks.json](benchmarks.json)"
        yield ""
        yield (
            "The servers share the machine's cores with the clients, and a round trip over loopback is shorter than "
            "one in a data centre. That favours clients that use little CPU, and hides what batching saves on "
            "a network."
        )
        yield ""
        if self.costs:
            yield "## What sfroute itself costs"
            yield ""
            yield from markdown(("what", "measured", "asked", "reached"), map(Cost.row, self.costs))
            yield ""
        for run in self.runs:
            for chapter, title in CHAPTERS.items():
                found = [each for each in run.comparisons if each.group == chapter]
                if not found:
                    continue
                yield f"## {title} ({run.server})"
                yield ""
                for comparison in found:
                    yield from _comparison(comparison)
        yield "## The marks"
        yield ""
        yield "What the design requires of sfroute; medians of one run."
        yield ""
        header = (
            "work",
            "against",
            "asked",
            "measured (worst to best round)",
            "reached",
            "server",
        )
        yield from markdown(header, self._targets())
        yield ""
        yield "## What is compared with what"
        yield ""
        yield (
            "A lookup of sfroute asks for the link and for its remaining time (GET and PTTL), has the server track "
            "the key, checks the names, and stores the answer. A lookup of every other client here is one GET. A "
            "write of sfroute leaves an operation record beside the link, so that it can be repeated without harm. The "
            "others run the same script without one. Gathered GETs (pipelines, batches) need a caller who has all "
            "uids at hand. Single lookups come from as many independent callers as the row says."
        )


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield f"**{comparison.work[0].upper()}{comparison.work[1:]}**"
    yield ""
    header = ("", comparison.unit, f"time, {comparison.baseline} = 1", "throughput", "what it does")
    yield from markdown(header, comparison.rows())
    yield ""


def markdown(header: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A table."""
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


# The plot: one panel for each comparison, drawn by hand, since nothing but text and rectangles is in it.

WIDTH, PANEL, LABELS, BAR, MARGIN = 1040, 500, 190, 18, 20


def plot(run: Run) -> str:
    """Panels of horizontal bars, as SVG."""
    chosen = [each for work in PLOTTED for each in run.comparisons if each.work == work]
    parts: list[str] = []
    tops = [MARGIN, MARGIN]
    for number, comparison in enumerate(chosen):
        column = number % 2
        left = MARGIN + column * (PANEL + MARGIN)
        parts += _panel(comparison, left, tops[column])
        tops[column] += 50 + BAR * len(comparison.contenders)
    height = max(tops)
    frame = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {frame} font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _panel(comparison: Comparison, left: int, top: int) -> Iterator[str]:
    samples = comparison.samples
    low = min(min(values) for values in samples.values()) * 0.8
    high = max(max(values) for values in samples.values()) * 1.6
    room = PANEL - LABELS

    def place(seconds: float) -> float:
        return left + LABELS + room * log10(seconds / low) / log10(high / low)

    yield (
        f'<text x="{left}" y="{top + 14}" font-weight="bold" fill="#222">{escape(comparison.work)}, '
        f"{escape(comparison.unit)}</text>"
    )
    for number, (name, values) in enumerate(samples.items()):
        y = top + 24 + number * BAR
        middle = statistics.median(values)
        colour = "#c2410c" if name.startswith("sfroute") else "#94a3b8"
        if name.startswith("raw"):
            colour = "#d4d4d8"
        end = place(middle)
        yield f'<text x="{left}" y="{y + 11}" fill="#222">{escape(name)}</text>'
        yield (
            f'<rect x="{left + LABELS}" y="{y}" width="{end - left - LABELS:.1f}" height="{BAR - 4}" fill="{colour}"/>'
        )
        yield (
            f'<line x1="{place(min(values)):.1f}" x2="{place(max(values)):.1f}" y1="{y + 7}" y2="{y + 7}" '
            'stroke="#222" stroke-width="1"/>'
        )
        yield (
            f'<text x="{place(max(values)) + 4:.1f}" y="{y + 11}" fill="#222">{middle * 1e6:.3g}</text>'
        )
