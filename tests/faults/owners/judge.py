"""Did the promises of ownership hold? Pure: histories in, findings out.

The promises, and how each is decided:

1. *No two lives are told* ``owns`` *for one uid at once.* Claims of a uid are ordered by their fences. Once a life is
   told that it owns the uid by a newer fence, no other life may be told so by an older one. Times are taken so that
   what is found is certain. How long a move by an operator takes to reach the old owner is measured apart.
2. *Fences of one uid only grow.* A fence belongs to one life; who enters later has a greater one, or is the same life;
   and the third store never refuses a write of a claim that began after the write that it is refused for.
3. *After a wipe nobody moves.* No answer of ``route()`` names another pod than the one that had the user when the wipe
   began, and no claim is ``Lost``.
4. *A claimed link is never removed by a late release.* No lookup that lies within a time for which a pod was told
   ``owns`` finds the uid without a link.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

from .record import Asked, Entered, Mine, Moved, Told, Written

__all__ = [
    "Overlap",
    "disordered_fences",
    "links_removed_under_claims",
    "lost_after",
    "overlaps",
    "percentile",
    "routed_elsewhere",
    "told_after",
    "wrong_refusals",
]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two lives were told ``owns`` for one uid; ``newer`` was, and ``older`` still was for so many ``seconds``."""

    uid: str
    older: Mine
    newer: Mine
    seconds: float


_R = TypeVar("_R", Mine, Entered, Written, Told, Moved)


def _by_uid(records: Iterable[_R]) -> dict[str, list[_R]]:
    found: dict[str, list[_R]] = defaultdict(list)
    for record in records:
        found[record.uid].append(record)
    return found


def overlaps(mine: Iterable[Mine]) -> list[Overlap]:
    """Promise 1: the times for which an older claim still counted although a newer one did."""
    found = []
    for uid, claims in _by_uid(mine).items():
        for older in claims:
            rivals = [
                newer
                for newer in claims
                if newer.fence >= older.fence
                and newer.life != older.life
                and (newer.fence > older.fence or newer.first >= older.first)
                and newer.first < older.last
            ]
            if rivals:
                first = min(rivals, key=lambda newer: newer.first)
                seconds = older.last - max(first.first, older.first)
                found.append(Overlap(uid, older, first, seconds))
    return sorted(found, key=lambda overlap: overlap.newer.first)


def disordered_fences(entered: Iterable[Entered]) -> list[tuple[Entered, Entered]]:
    """Promise 2: pairs of claims of which the later one has no greater fence, though it is another life's."""
    found = []
    for claims in _by_uid(claim for claim in entered if claim.fence).values():
        greatest: Entered | None = None
        by_end = sorted(claims, key=lambda claim: claim.end)
        done = 0
        owner: dict[int, Entered] = {}
        for claim in sorted(claims, key=lambda claim: claim.start):
            while by_end[done].end < claim.start:
                if greatest is None or by_end[done].fence > greatest.fence:
                    greatest = by_end[done]
                done += 1
            same = owner.setdefault(claim.fence, claim)
            if same.life != claim.life:
                found.append((same, claim))
            elif greatest is not None and claim.fence < greatest.fence:
                found.append((greatest, claim))
    return found


def wrong_refusals(
    written: Iterable[Written], entered: Iterable[Entered]
) -> list[tuple[Written, Written]]:
    """Promise 2, as the third store sees it: an accepted write, and one that was refused though its claim is newer."""
    began: dict[tuple[str, int], float] = {}
    for claim in entered:
        if claim.fence:
            at = began.setdefault((claim.uid, claim.fence), claim.start)
            began[claim.uid, claim.fence] = min(at, claim.start)
    found = []
    for uid, writes in _by_uid(written).items():
        accepted = [write for write in writes if write.number]
        for refused in writes:
            if refused.number:
                continue
            since = began.get((uid, refused.fence), refused.start)
            for write in accepted:
                if write.fence > refused.fence and write.end < since:
                    found.append((write, refused))
                    break
    return found


def told_after(
    moved: Iterable[Moved], told: Iterable[Told], mine: Iterable[Mine] = ()
) -> list[float | None]:
    """Promise 1: for each move off a pod, seconds after its mover knew at which that pod was told; None: never.

    A pod that is told before its mover knows counts as told at once. Left out is a user who was back at the pod before
    it had asked: its claim goes on, with the same fence, since nobody else has claimed the user.
    """
    claims = _by_uid(mine)
    losses = {
        uid: [event for event in events if event.what == "lost"]
        for uid, events in _by_uid(told).items()
    }
    found: list[float | None] = []
    for move in moved:
        since = [
            event.at - move.end
            for event in losses.get(move.uid, [])
            if event.pod == move.source and event.at >= move.start
        ]
        if not since and _goes_on(claims.get(move.uid, ()), move):
            continue
        found.append(max(0.0, min(since)) if since else None)
    return found


def _goes_on(claims: Sequence[Mine], move: Moved) -> bool:
    before = {(one.life, one.fence) for one in claims if one.first < move.end}
    return any(
        one.pod == move.source and one.first > move.end and (one.life, one.fence) in before
        for one in claims
    )


def routed_elsewhere(
    asked: Iterable[Asked], homes: Mapping[str, int], start: float, end: float
) -> list[Asked]:
    """Promise 3: answers asked for from ``start`` to ``end`` that name another pod than the user's home."""
    return [
        answer
        for answer in asked
        if start <= answer.start < end
        and answer.outcome == "ok"
        and answer.pod is not None
        and answer.uid in homes
        and answer.pod != homes[answer.uid]
    ]


def lost_after(told: Iterable[Told], start: float, end: float) -> list[Told]:
    """Promise 3: losses told from ``start`` to ``end``."""
    return [event for event in told if event.what == "lost" and start <= event.at < end]


def links_removed_under_claims(
    asked: Iterable[Asked], mine: Iterable[Mine]
) -> list[tuple[Asked, Mine]]:
    """Promise 4: lookups past the cache that found no link, although a pod was told ``owns`` all the while."""
    claims = {
        uid: sorted(records, key=lambda record: record.first)
        for uid, records in _by_uid(mine).items()
    }
    found = []
    for answer in asked:
        if answer.how != "look" or answer.outcome != "ok" or answer.pod is not None:
            continue
        records = claims.get(answer.uid, [])
        at = bisect_left(records, answer.start, key=lambda record: record.first)
        for record in records[:at]:
            if record.last > answer.end:
                found.append((answer, record))
                break
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; 0.0 without values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * share) - 1)]
