"""From histories to the table of all faults, and what misses its target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Final, Literal

from sfroute import CacheConfig

from .checker import Violation, by_uid, linearizable, outdated
from .history import Call
from .load import group_of

__all__ = ["Phase", "Promise", "Row", "evaluate", "table", "write_document"]

BOUND: Final = CacheConfig().max_age
"""Seconds that an answer of the cache may be behind, in the default configuration that is run here."""
ELSEWHERE_LIMIT: Final = 0.25
"""Seconds that a call may take whose slot is not on the node that was stopped."""

Promise = Literal["all", "acknowledged", "none"]
"""What is promised: every result is that of one register; no acknowledged write is lost; neither."""


@dataclass(slots=True)
class Phase:
    """One fault, done one or more times, with the time until the cluster was healthy again.

    Attributes:
        name: what was done.
        promise: what holds.
        times: how often it was done.
        start: when it began.
        end: when all was well again.
        unaffected: groups of uids that it was not to touch.
    """

    name: str
    promise: Promise
    times: int
    start: float
    end: float
    unaffected: frozenset[int] = frozenset()


@dataclass(slots=True)
class Row:
    """What the calls of a phase came to."""

    name: str
    promise: Promise
    times: int = 0
    calls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_elsewhere: float | None = None
    marked_stale: int = 0
    oldest: float = 0.0
    past_bound: int = 0
    violations: int = 0
    rolled_back: int = 0

    def missed(self) -> list[str]:
        """The targets that were missed."""
        found = []
        if self.errors:
            found.append(f"{self.errors.total()} errors: {dict(self.errors)}")
        if self.violations and self.promise != "none":
            found.append(f"{self.violations} results that one register cannot have given")
        if self.past_bound and self.promise != "none":
            found.append(f"{self.past_bound} answers of the cache past the bound of {BOUND:g} s")
        if self.slowest_elsewhere is not None and self.slowest_elsewhere > ELSEWHERE_LIMIT:
            found.append(f"a call of another slot took {self.slowest_elsewhere:.3f} s")
        return found


def evaluate(
    calls: Sequence[Call], phases: Sequence[Phase], *, rows: dict[str, Row]
) -> list[Violation]:
    """Check the history of one load, and add its figures to ``rows``. Returns what broke a promise."""
    for phase in phases:
        row = rows.setdefault(phase.name, Row(phase.name, phase.promise))
        row.times += phase.times
        if phase.unaffected and row.slowest_elsewhere is None:
            row.slowest_elsewhere = 0.0
    _count(calls, phases, rows)
    broken = []
    for history in by_uid(calls).values():
        found = linearizable(history)
        if found:
            writes = linearizable(history, reads=False)
            broken += _sort_out(found, writes, phases, rows)
        for call, age in outdated(history):
            at = _phase_of(call, phases)
            if at is None or call.stale:
                continue
            row = rows[at.name]
            row.oldest = max(row.oldest, age)
            if age > BOUND:
                row.past_bound += 1
                if at.promise != "none":
                    broken.append(Violation(call, (), f"replaced {age:.3f} s before"))
    return broken


def _phase_of(call: Call, phases: Iterable[Phase]) -> Phase | None:
    return next((phase for phase in phases if phase.start <= call.start < phase.end), None)


def _count(calls: Iterable[Call], phases: Sequence[Phase], rows: Mapping[str, Row]) -> None:
    for call in calls:
        phase = _phase_of(call, phases)
        if phase is None or call.kind == "flush":
            continue
        row = rows[phase.name]
        row.calls += 1
        row.marked_stale += call.stale
        seconds = call.end - call.start
        row.slowest = max(row.slowest, seconds)
        if group_of(call.uid) in phase.unaffected:
            row.slowest_elsewhere = max(row.slowest_elsewhere or 0.0, seconds)
        if not call.ok:
            row.errors[call.outcome] += 1


def _sort_out(
    found: list[Violation],
    writes: list[Violation],
    phases: Sequence[Phase],
    rows: Mapping[str, Row],
) -> list[Violation]:
    """Which of the contradictions break a promise, and which are what a crash may roll back."""
    broken = []
    for violation in found:
        phase = _phase_of(violation.call, phases) or phases[-1]
        if phase.promise == "all":
            rows[phase.name].violations += 1
            broken.append(violation)
        else:
            rows[phase.name].rolled_back += 1
    for violation in writes:
        phase = _phase_of(violation.call, phases) or phases[-1]
        if phase.promise == "acknowledged":
            rows[phase.name].violations += 1
            broken.append(violation)
    return broken


# --- showing

_HEAD: Final = (
    "fault",
    "times",
    "calls",
    "errors",
    "slowest call",
    "marked stale",
    "oldest unmarked answer",
    "violations",
    "seen and rolled back",
)


def table(rows: Iterable[Row]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" * len(_HEAD) + "|"]
    for row in rows:
        errors = ", ".join(f"{count} {name}" for name, count in sorted(row.errors.items())) or "0"
        slowest = f"{row.slowest:.2f} s"
        if row.slowest_elsewhere is not None:
            slowest += f", of other slots {row.slowest_elsewhere * 1000:.0f} ms"
        oldest = "never true" if row.oldest == inf else f"{row.oldest:.2f} s"
        cells = (
            row.name,
            f"{row.times:,}",
            f"{row.calls:,}",
            errors,
            slowest,
            f"{row.marked_stale:,}",
            oldest,
            "not promised" if row.promise == "none" else str(row.violations + row.past_bound),
            "-" if row.promise == "all" else str(row.rolled_back),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_document(path: Path, text: str, part: str) -> None:
    """Replace one of the parts of a document that the harness writes."""
    begin, end = (
        f"<!-- written by python -m tests.faults, {part}: {at} -->" for at in ("begin", "end")
    )
    before, found, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    if not found or not after:
        raise RuntimeError(f"{path} has no part {part}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
