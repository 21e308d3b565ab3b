"""Failures that callers have reported of the pods of one service: who gets no new uids, and who is tried again. Pure.

What proxies call outlier detection (Envoy, "Outlier detection"), for placements. It is one gateway's own memory:

- One report *ejects* a pod: it gets no new uids. Links stay where they are.
- An ejection lasts ``FIRST_PAUSE`` seconds, twice as long after each further failure, at most ``LONGEST_PAUSE``.
  Reports meanwhile do not double it, but it ends no sooner than ``FIRST_PAUSE`` after the last of them.
- Then one uid is placed on the pod, if the policy chooses it: a *trial*. A report within ``TRIAL_SECONDS`` ejects the
  pod again. Silence is success: the pod is back.
- Before each trial ``UIDS_PER_TRIAL`` uids go elsewhere, so a dead pod gets few, however many come. A pod that has
  waited ``LONGEST_WAIT`` for so many is tried without them.
- After the pause a failure is forgotten every ``MEMORY`` seconds, and all of them when the pod runs as another life.
- At most half of the pods are ejected at once, and never the only one: if more are reported, the trouble is rather this
  gateway's own.

All instants are seconds of one monotonic clock. Who may touch it: the event loop; ``ejected`` any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Final

from ..types import Pod

__all__ = ["Attempt", "Failures"]

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
TRIAL_SECONDS: Final = 5.0
"""Longer than most callers wait for a connection."""
UIDS_PER_TRIAL: Final = 40
LONGEST_WAIT: Final = 30.0
MEMORY: Final = 60.0
MOST_FAILURES: Final = 6
"""More do not make the pause longer, and would only be remembered longer."""
MAX_PODS: Final = 1024
"""Pods remembered. Beyond that the one whose last failure is the oldest is forgotten."""


@dataclass(slots=True)
class _Record:
    """What is remembered of one pod.

    ``failures``: how many, when the last was counted; ``pause_until``: ejected until then; ``uids``: how many uids had
    been placed when that began; ``trial_until``: until when the uid on trial may still fail, ``-inf`` if there is none.
    """

    failures: int
    failed_at: float
    pause_until: float
    uids: int
    trial_until: float = -inf


class Attempt:
    """A uid that is being placed.

    Attributes:
        landed_on: the pod on which it was placed, None if it was not.
    """

    __slots__ = ("landed_on",)

    def __init__(self) -> None:
        self.landed_on: int | None = None


class Failures:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        self._lives: dict[int, str | None] = {}
        self._uids = 0

    def __bool__(self) -> bool:
        """False if nothing is remembered of any pod."""
        return bool(self._records)

    def report(self, pod: int, now: float) -> bool:
        """A caller could not reach the pod. True if that ejects it, False if it was ejected already."""
        record = self._records.get(pod)
        if record is not None and now < record.pause_until:
            record.failed_at = now
            record.pause_until = max(record.pause_until, now + FIRST_PAUSE)
            return False
        failures = 1 if record is None else min(MOST_FAILURES, _left(record, now) + 1)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1))
        # The newest are the last.
        self._records.pop(pod, None)
        self._records[pod] = _Record(failures, now, now + pause, self._uids)
        if len(self._records) > MAX_PODS:
            del self._records[min(self._records, key=lambda one: self._records[one].failed_at)]
        return True

    def observe(self, pods: Iterable[Pod], now: float) -> None:
        """Take in a new reading of the pods: what another life has failed to do is not held against this one."""
        lives = {pod.id: pod.life for pod in pods}
        for pod, record in list(self._records.items()):
            before, after = self._lives.get(pod), lives.get(pod)
            restarted = None not in (before, after) and before != after
            if restarted or (_is_over(record, now) and _left(record, now) == 0):
                del self._records[pod]
        self._lives = lives

    def ejected(self, pods: Iterable[int], now: float) -> frozenset[int]:
        """Those of ``pods``, which may take uids otherwise, that get none now. Any thread may call it."""
        considered = frozenset(pods)
        closed = [
            (_left(record, now), record.failed_at, pod)
            for pod, record in list(self._records.items())
            if pod in considered and self._is_closed(record, now)
        ]
        closed.sort(reverse=True)
        return frozenset(pod for _, _, pod in closed[: len(considered) // 2])

    def offered(self, pods: Sequence[Pod], now: float) -> Sequence[Pod]:
        """Those of ``pods`` on which a uid may be placed now: at least one, if there is one."""
        if not self._records:
            return pods
        ejected = self.ejected((pod.id for pod in pods), now)
        return [pod for pod in pods if pod.id not in ejected] if ejected else pods

    @contextmanager
    def attempt(self, pod: int | None, now: float) -> Iterator[Attempt]:
        """While a uid is being placed, on the pod if all goes well: a trial, if the pod is to be tried."""
        attempt = Attempt()
        record = self._records.get(pod) if pod is not None else None
        trial = record is not None and self._may_be_tried(record, now)
        if record is not None and trial:
            record.trial_until = now + TRIAL_SECONDS
        try:
            yield attempt
        finally:
            if attempt.landed_on is not None:
                self._uids += 1
            if record is not None and trial and attempt.landed_on != pod:
                record.trial_until = -inf

    def _is_closed(self, record: _Record, now: float) -> bool:
        """Nobody is placed there."""
        if _is_over(record, now):
            return False
        return not self._may_be_tried(record, now)

    def _may_be_tried(self, record: _Record, now: float) -> bool:
        if now < record.pause_until or record.trial_until != -inf:
            return False
        return (
            self._uids - record.uids >= UIDS_PER_TRIAL or now >= record.pause_until + LONGEST_WAIT
        )


def _left(record: _Record, now: float) -> int:
    """How many failures are still remembered."""
    return max(0, record.failures - int(max(0.0, now - record.pause_until) / MEMORY))


def _is_over(record: _Record, now: float) -> bool:
    """The ejection has ended: a trial has passed, or the failures are forgotten."""
    if now < record.pause_until:
        return False
    if record.trial_until != -inf:
        return now >= record.trial_until
    return _left(record, now) == 0
