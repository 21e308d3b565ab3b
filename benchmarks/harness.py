"""How the benchmarks compare: contenders take turns in one run, and the figure is the ratio within a round.

Machines drift; two contenders measured one right after the other drift together. So each round runs every contender
once, in an order that rotates, and the ratio to the baseline is taken per round. Reported: the median, with the
smallest and largest.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

__all__ = ["Comparison", "machine", "table"]


@dataclass
class Comparison:
    """Several ways to do the same work, and how long each takes.

    Attributes:
        work: what is done, for people.
        baseline: the contender all are compared with.
        contenders: name -> callable that does the work once and returns seconds per operation.
    """

    work: str
    baseline: str
    contenders: Mapping[str, Callable[[], float]]
    samples: dict[str, list[float]] = field(default_factory=dict)

    def run(self, rounds: int) -> None:
        """Run every contender ``rounds`` times, interleaved, after one warm-up each."""
        names = list(self.contenders)
        for name in names:
            self.contenders[name]()
        self.samples = {name: [] for name in names}
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                self.samples[name].append(self.contenders[name]())

    def seconds(self, name: str) -> float:
        """Median seconds per operation."""
        return statistics.median(self.samples[name])

    def ratios(self, name: str) -> list[float]:
        """Time of ``name`` over time of the baseline, one for each round, sorted."""
        pairs = zip(self.samples[name], self.samples[self.baseline], strict=True)
        return sorted(own / base for own, base in pairs)

    def rows(self) -> list[tuple[str, ...]]:
        """Contender, microseconds per operation, time ratio with spread, throughput ratio."""
        found = []
        for name in self.contenders:
            ratios = self.ratios(name)
            middle = statistics.median(ratios)
            found.append(
                (
                    name,
                    f"{self.seconds(name) * 1e6:.2f}",
                    f"{middle:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
                    f"{1 / middle:.2f}x",
                )
            )
        return found


def table(comparisons: Sequence[Comparison]) -> str:
    """A text table of all comparisons."""
    lines = []
    for comparison in comparisons:
        lines.append(f"\n{comparison.work}  (baseline: {comparison.baseline})")
        header = ("", "us/op", "time ratio (min-max)", "throughput")
        rows = [header, *comparison.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines.extend(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
    return "\n".join(lines)


def machine(*packages: str) -> str:
    """What ran this, for the head of a report."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"Python {sys.version.split()[0]} on {platform.machine()}, {versions}"
