"""What was written when: how old is an answer?"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field

__all__ = ["Ledger"]


@dataclass(slots=True)
class _Writes:
    pods: list[float] = field(default_factory=list)
    acked: list[float] = field(default_factory=list)
    absent_until: int = 0


class Ledger:
    """Writes of one writer for each uid, each with a pod of its own, and how far answers are behind them.

    All instants are ``time.monotonic()`` of this process.
    """

    def __init__(self) -> None:
        self._writes: dict[str, _Writes] = defaultdict(_Writes)

    def wrote(self, uid: str, pod: int) -> None:
        """The store has acknowledged that the uid is linked to ``pod``, which is greater than all before."""
        writes = self._writes[uid]
        assert not writes.pods or writes.pods[-1] < pod
        writes.pods.append(pod)
        writes.acked.append(time.monotonic())

    def lost(self, uid: str) -> None:
        """The store has lost the link: since a moment ago it is absent."""
        writes = self._writes[uid]
        writes.pods.append(writes.pods[-1] + 0.5)
        writes.acked.append(time.monotonic())
        writes.absent_until = len(writes.pods)

    def outdated(self, uid: str, pod: int | None, asked: float) -> float:
        """For how many seconds the answer had been superseded when it was asked for; 0.0 if it was the truth then.

        ``None`` counts as the answer from before the first write, or since the loss.
        """
        writes = self._writes[uid]
        following = writes.absent_until if pod is None else bisect_right(writes.pods, pod)
        if following >= len(writes.pods):
            return 0.0
        return max(0.0, asked - writes.acked[following])
