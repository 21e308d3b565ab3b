"""From histories to the table: what each fault came to, and which promises it broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from .judge import (
    Overlap,
    disordered_fences,
    links_removed_under_claims,
    lost_after,
    overlaps,
    percentile,
    routed_elsewhere,
    told_after,
    wrong_refusals,
)
from .record import History
from .stage import Phase

__all__ = ["OwnersRow", "evaluate", "merged", "owners_table"]

TOLD_SECONDS: Final = 0.1
"""The 99th percentile of what passes between a move and the old owner being told."""
BACK_SECONDS: Final = 3.0
"""Until all claims are back after the return of a store that forgot them."""
OUTLIVED_SECONDS: Final = 1.0
"""What a release may take under load, and the harness to see that the link is gone."""


@dataclass(slots=True)
class OwnersRow:
    """What the history of a fault came to. Lists hold what broke a promise, in words."""

    name: str
    times: int
    how: str = ""
    claims: int = 0
    answers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    overlaps: int = 0
    longest: float = 0.0
    moves: int = 0
    told: float | None = None
    refused: int = 0
    fences: int = 0
    homes: int = 0
    elsewhere: int = 0
    lost: int = 0
    back: float | None = None
    broken: list[str] = field(default_factory=list)


_ADDED: Final = (
    "times",
    "claims",
    "answers",
    "errors",
    "overlaps",
    "moves",
    "refused",
    "fences",
    "homes",
    "elsewhere",
    "lost",
    "broken",
)
_GREATEST: Final = ("longest", "told", "back")


def merged(rows: Iterable[OwnersRow]) -> list[OwnersRow]:
    """One row for each fault, of all its runs."""
    found: dict[str, OwnersRow] = {}
    for row in rows:
        first = found.setdefault(row.name, row)
        if first is row:
            continue
        for name in _ADDED:
            setattr(first, name, getattr(first, name) + getattr(row, name))
        for name in _GREATEST:
            values = [v for v in (getattr(first, name), getattr(row, name)) if v is not None]
            setattr(first, name, max(values, default=None))
    return list(found.values())


def evaluate(history: History, phases: Sequence[Phase]) -> list[OwnersRow]:
    """A row for each phase."""
    found = overlaps(history.mine)
    disordered = disordered_fences(history.entered)
    refusals = wrong_refusals(history.written, history.entered)
    rows = []
    for phase in phases:
        row = OwnersRow(phase.name, phase.times, phase.how)
        rows.append(row)
        if phase.failure:
            row.broken.append(phase.failure)
        here = [answer for answer in history.asked if phase.start <= answer.start < phase.end]
        row.answers = len(here)
        row.errors.update(answer.outcome for answer in here if answer.outcome != "ok")
        row.claims = sum(m.first < phase.end and m.last >= phase.start for m in history.mine)
        row.refused = sum(
            not write.number and phase.start <= write.start < phase.end for write in history.written
        )
        _judge_overlaps(row, phase, [o for o in found if phase.start <= o.newer.first < phase.end])
        _judge_moves(row, phase, history)
        _judge_fences(
            row,
            [late.end for _, late in disordered] + [late.end for _, late in refusals],
            phase,
        )
        _judge_homes(row, phase, history)
        if phase.keeps_links:
            removed = links_removed_under_claims(here, history.mine)
            if removed:
                row.broken.append(f"{len(removed)} links were removed under a claim")
        if phase.outlived is not None and phase.outlived > OUTLIVED_SECONDS:
            row.broken.append(f"a link outlived its grace period by {phase.outlived:.2f} s")
    return rows


def _judge_overlaps(row: OwnersRow, phase: Phase, found: Sequence[Overlap]) -> None:
    row.overlaps = len(found)
    row.longest = max((overlap.seconds for overlap in found), default=0.0)
    # While users are moved, an overlap is the time until the old owner was told, which is judged by itself.
    if found and not phase.moves and not phase.may_lose:
        row.broken.append(f"{len(found)} users had two owners, for up to {row.longest:.3f} s")
    if phase.moves and percentile([o.seconds for o in found], 0.99) > TOLD_SECONDS:
        row.broken.append(f"users had two owners for up to {row.longest:.3f} s")


def _judge_moves(row: OwnersRow, phase: Phase, history: History) -> None:
    moved = [move for move in history.moved if phase.start <= move.start < phase.end]
    if not moved:
        return
    told = told_after(moved, history.told, history.mine)
    never = told.count(None)
    row.moves = len(told)
    row.told = percentile([seconds for seconds in told if seconds is not None], 0.99)
    if row.told > TOLD_SECONDS:
        row.broken.append(f"old owners were told after {row.told:.3f} s (p99)")
    if never:
        row.broken.append(f"{never} old owners were never told")


def _judge_fences(row: OwnersRow, late: Iterable[float], phase: Phase) -> None:
    row.fences = sum(phase.start <= at < phase.end for at in late)
    if row.fences and not phase.may_lose:
        row.broken.append(f"{row.fences} fences did not grow")


def _judge_homes(row: OwnersRow, phase: Phase, history: History) -> None:
    if not phase.homes:
        return
    row.homes, row.back = len(phase.homes), phase.back
    elsewhere = routed_elsewhere(history.asked, phase.homes, phase.wiped_at, phase.end)
    row.elsewhere = len({answer.uid for answer in elsewhere})
    lost = lost_after(history.told, phase.wiped_at, phase.end)
    row.lost = len({event.uid for event in lost})
    if row.elsewhere:
        row.broken.append(f"{row.elsewhere} users were routed to another pod")
    if row.lost:
        reasons = dict(Counter(event.reason for event in lost))
        row.broken.append(f"{row.lost} claims were lost: {reasons}")
    if row.back is None or row.back > BACK_SECONDS:
        row.broken.append(f"claims were back after {row.back} s")


_HEAD: Final = (
    "fault",
    "times",
    "claims",
    "answers",
    "errors",
    "two owners at once",
    "old owner told (p99)",
    "fences that did not grow",
    "old writes refused",
    "users routed elsewhere",
    "lost",
    "all claims back",
)


def owners_table(rows: Iterable[OwnersRow]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" * len(_HEAD) + "|"]
    for row in rows:
        errors = ", ".join(f"{count} {name}" for name, count in sorted(row.errors.items())) or "0"
        overlapping = str(row.overlaps)
        if row.overlaps:
            overlapping += f", {row.longest * 1000:.0f} ms at most"
        homes = row.homes > 0
        cells = (
            f"{row.name} ({row.how})" if row.how else row.name,
            f"{row.times:,}",
            f"{row.claims:,}",
            f"{row.answers:,}",
            errors,
            overlapping,
            "-" if row.told is None else f"{row.told * 1000:.0f} ms, {row.moves:,} moves",
            str(row.fences),
            str(row.refused),
            f"{row.elsewhere} of {row.homes:,}" if homes else "-",
            str(row.lost) if homes else "-",
            _seconds(row.back) if homes else "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return "never" if value == inf else f"{value:.2f} s"
