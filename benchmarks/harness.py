"""How the benchmarks compare: contenders take turns in one run, and the figure is the ratio within a round.

Machines drift; two contenders measured one right after the other drift together. So each round runs every contender
once, in an order that rotates, and the ratio to the baseline is taken per round. Reported: the median, with the
smallest and largest.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from sfroute._native import HALF

__all__ = ["Comparison", "Cost", "Target", "machine", "table"]


@dataclass(frozen=True)
class Target:
    """What a comparison is to show.

    Attributes:
        contender: who is to show it.
        at_least: a ratio to the baseline.
        of_time: the ratio is one of time, and must not be larger; otherwise of throughput, and must not be smaller.
    """

    contender: str
    at_least: float
    of_time: bool = False

    def measured(self, comparison: Comparison) -> tuple[float, float, float]:
        """The ratio: median, worst and best round."""
        ratios = comparison.ratios(self.contender)
        middle = statistics.median(ratios)
        if self.of_time:
            return middle, ratios[-1], ratios[0]
        return 1 / middle, 1 / ratios[-1], 1 / ratios[0]

    def met(self, comparison: Comparison) -> bool:
        """True if the median does it."""
        middle = self.measured(comparison)[0]
        return middle <= self.at_least if self.of_time else middle >= self.at_least


def _not_here() -> float:
    raise RuntimeError("only what it measured was kept")


@dataclass
class Comparison:
    """Several ways to do the same work, and how long each takes.

    Attributes:
        work: what is done, for people.
        baseline: the contender all are compared with.
        contenders: name -> callable that does the work once and returns seconds per operation.
        does: name -> what one operation is there, so that nobody takes unlike things for like.
        target: what it is to show.
        unit: what the seconds are of.
        group: the chapter it belongs to.
    """

    work: str
    baseline: str
    contenders: Mapping[str, Callable[[], float]]
    samples: dict[str, list[float]] = field(default_factory=dict)
    does: Mapping[str, str] = field(default_factory=dict)
    target: Target | None = None
    unit: str = "us/op"
    group: str = ""

    def run(self, rounds: int) -> None:
        """Run every contender ``rounds`` times, interleaved, after one warm-up each."""
        names = list(self.contenders)
        for name in names:
            self.contenders[name]()
        # What came before is not this one's to search through.
        gc.collect()
        gc.freeze()
        self.samples = {name: [] for name in names}
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                self.samples[name].append(self.contenders[name]())
        gc.unfreeze()

    def seconds(self, name: str) -> float:
        """Median seconds per operation."""
        return statistics.median(self.samples[name])

    def ratios(self, name: str) -> list[float]:
        """Time of ``name`` over time of the baseline, one for each round, sorted."""
        pairs = zip(self.samples[name], self.samples[self.baseline], strict=True)
        return sorted(own / base for own, base in pairs)

    def rows(self) -> list[tuple[str, ...]]:
        """Contender, microseconds per operation, time ratio with spread, throughput ratio, what it does."""
        found: list[tuple[str, ...]] = []
        for name in self.contenders:
            ratios = self.ratios(name)
            middle = statistics.median(ratios)
            found.append(
                (
                    name,
                    f"{self.seconds(name) * 1e6:.2f}",
                    f"{middle:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
                    f"{1 / middle:.2f}x",
                    self.does.get(name, ""),
                )
            )
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Comparison:
        """What ``as_json`` has told; it cannot be run again."""
        contenders, target = found["contenders"], found.get("target")
        return cls(
            found["work"],
            found["baseline"],
            dict.fromkeys(contenders, _not_here),
            {name: told["seconds"] for name, told in contenders.items()},
            {name: told["does"] for name, told in contenders.items()},
            Target(target["contender"], target["at_least"], target["ratio_of"] == "time")
            if target
            else None,
            found["shown_as"],
            found["group"],
        )

    def as_json(self) -> dict[str, object]:
        """Everything measured, for programs."""
        result: dict[str, object] = {
            "work": self.work,
            "group": self.group,
            "baseline": self.baseline,
            "unit": "s",
            "shown_as": self.unit,
            "contenders": {
                name: {
                    "does": self.does.get(name, ""),
                    "seconds": self.samples[name],
                    "median": self.seconds(name),
                    "time_ratios": self.ratios(name),
                }
                for name in self.contenders
            },
        }
        if self.target is not None:
            middle, worst, best = self.target.measured(self)
            result["target"] = {
                "contender": self.target.contender,
                "ratio_of": "time" if self.target.of_time else "throughput",
                "at_least": self.target.at_least,
                "median": middle,
                "worst": worst,
                "best": best,
                "met": self.target.met(self),
            }
        return result


def table(comparisons: Sequence[Comparison]) -> str:
    """A text table of all comparisons."""
    lines = []
    for comparison in comparisons:
        lines.append(f"\n{comparison.work}  (baseline: {comparison.baseline})")
        header = ("", comparison.unit, "time ratio (min-max)", "throughput", "")
        rows = [header, *comparison.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines.extend(
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
    return "\n".join(lines)


def machine(*packages: str) -> str:
    """What ran this, for the head of a report: no name of a host, no path."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in packages if _is_installed(name)
    )
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, Python {sys.version.split()[0]} "
        f"({_build()}) on {platform.machine()}, {versions}, {HALF} lookups"
    )


def _build() -> str:
    """How the interpreter was compiled, which makes a tenth or more in anything written in Python."""
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    if not arguments:
        return "its build is not known"
    optimized = "--enable-optimizations" in arguments
    linked = "--with-lto" in arguments
    return f"{'with' if optimized else 'without'} PGO, {'with' if linked else 'without'} LTO"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


@dataclass(frozen=True)
class Cost:
    """One figure.

    Attributes:
        what: what is measured.
        value: the median.
        unit: of what.
        samples: every measurement.
        at_most: the mark, None if there is none.
    """

    what: str
    value: float
    unit: str
    samples: tuple[float, ...]
    at_most: float | None = None

    @classmethod
    def of(cls, what: str, samples: list[float], unit: str, at_most: float | None = None) -> Cost:
        """With the median of the samples."""
        return cls(what, statistics.median(samples), unit, tuple(samples), at_most)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Cost:
        """What ``as_json`` has told."""
        return cls(
            found["what"], found["median"], found["unit"], tuple(found["samples"]), found["at_most"]
        )

    def row(self) -> tuple[str, ...]:
        """What, measured with its spread, asked, reached."""
        spread = ""
        if len(self.samples) > 1:
            spread = f" ({min(self.samples):.3g} to {max(self.samples):.3g})"
        asked, reached = "", ""
        if self.at_most is not None:
            asked = f"<= {self.at_most:g} {self.unit}"
            reached = "yes" if self.value <= self.at_most else "**no**"
        return self.what, f"{self.value:.3g} {self.unit}{spread}", asked, reached

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "what": self.what,
            "unit": self.unit,
            "median": self.value,
            "samples": self.samples,
            "at_most": self.at_most,
        }
