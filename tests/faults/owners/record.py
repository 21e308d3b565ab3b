"""What the observers in pods and gateways write down: one JSON line each, written at once, since many are killed.

All instants are of one clock that all processes of the machine share and that never jumps: ``CLOCK_BOOTTIME`` where
there is one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path

__all__ = [
    "Asked",
    "Ended",
    "Entered",
    "History",
    "Left",
    "Mine",
    "Moved",
    "Sample",
    "Told",
    "Writer",
    "Written",
    "now",
    "read_histories",
]

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """The one clock."""
    return time.clock_gettime(_CLOCK)


@dataclass(slots=True)
class Entered:
    """A pod's session began, or was refused: ``fence`` is 0, ``owner`` has the uid."""

    uid: str
    pod: int
    life: str
    start: float
    end: float
    fence: int
    how: str
    owner: int


@dataclass(slots=True)
class Left:
    """The last session of a uid ended, with a grace period of so many seconds."""

    uid: str
    pod: int
    life: str
    start: float
    end: float
    grace: int


@dataclass(slots=True)
class Sample:
    """What ``owns`` began or ceased to say of claims, and that it said the same as before of all others.

    Attributes:
        start: before the first of them was asked.
        end: after the last of them was.
        began: uid and fence of claims of which it says true since this sample.
        ceased: those of which it does so no more.
    """

    pod: int
    life: str
    start: float
    end: float
    began: list[tuple[str, int]]
    ceased: list[tuple[str, int]]


@dataclass(slots=True)
class Told:
    """An event of the agent; ``what``: ``lost``, ``isolated``, ``rejoined`` or ``superseded``."""

    pod: int
    life: str
    at: float
    what: str
    uid: str = ""
    fence: int = 0
    reason: str = ""
    owner: int | None = None


@dataclass(slots=True)
class Written:
    """A write of a pod to the third store, under its fence; ``number`` orders those that were accepted, 0: refused."""

    uid: str
    pod: int
    life: str
    fence: int
    start: float
    end: float
    number: int


@dataclass(slots=True)
class Asked:
    """A gateway asked where a user is; ``how``: ``route``, or ``look`` for a lookup past the cache."""

    uid: str
    start: float
    end: float
    how: str
    pod: int | None
    outcome: str = "ok"
    stale: bool = False


@dataclass(slots=True)
class Moved:
    """Somebody moved a user off a pod, by ``set``, ``exclude`` or ``evacuate``; ``end``: when they knew."""

    uid: str
    start: float
    end: float
    how: str
    source: int
    target: int


@dataclass(slots=True)
class Ended:
    """A life's agent was stopped in order; from then on it owns nobody."""

    pod: int
    life: str
    at: float


Record = Entered | Left | Sample | Told | Written | Asked | Moved | Ended
_KINDS = {
    kind.__name__: kind for kind in (Entered, Left, Sample, Told, Written, Asked, Moved, Ended)
}


class Writer:
    """Appends records to a file, each in one write: what was written survives SIGKILL."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, record: Record) -> None:
        """Append one; any thread may."""
        line = json.dumps([type(record).__name__, *astuple(record)], separators=(",", ":"))
        os.write(self._file, f"{line}\n".encode())


@dataclass(slots=True)
class Mine:
    """``owns`` said true of a claim: first by the instant ``first`` at the latest, last at ``last`` at the earliest."""

    uid: str
    fence: int
    pod: int
    life: str
    first: float
    last: float


@dataclass(slots=True)
class History:
    """Everything that was recorded, in the order of its beginning."""

    entered: list[Entered] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    mine: list[Mine] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)


def intervals(samples: Iterable[Sample]) -> list[Mine]:
    """The times for which ``owns`` was seen to be true, of one observer's samples in their order.

    A sample says the same of all claims that it does not name. It brackets the instant at which each was asked, so its
    end is the latest instant for the first truth, and its beginning the earliest one for the last.
    """
    found: list[Mine] = []
    running: dict[tuple[str, int], Mine] = {}
    before: Sample | None = None
    for sample in samples:
        for claim in sample.ceased:
            over = running.pop(tuple(claim))  # type: ignore[arg-type]
            assert before is not None
            over.last = before.start
        for uid, fence in sample.began:
            mine = Mine(uid, fence, sample.pod, sample.life, sample.end, sample.start)
            running[uid, fence] = mine
            found.append(mine)
        before = sample
    for mine in running.values():
        assert before is not None
        mine.last = before.start
    return found


def _read(path: Path) -> Iterator[Record]:
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):  # else its writer was killed meanwhile
                name, *values = json.loads(line)
                yield _KINDS[name](*values)


def read_histories(paths: Iterable[Path]) -> History:
    """The history of all files; each is that of one observer."""
    history = History()
    lists: dict[type, list] = {  # type: ignore[type-arg]
        Entered: history.entered,
        Left: history.left,
        Told: history.told,
        Written: history.written,
        Asked: history.asked,
        Moved: history.moved,
    }
    for path in paths:
        samples = []
        for record in _read(path):
            if isinstance(record, Sample):
                samples.append(record)
            elif not isinstance(record, Ended):
                lists[type(record)].append(record)
        history.mine += intervals(samples)
    for records in (history.entered, history.left, history.written, history.asked, history.moved):
        records.sort(key=lambda record: record.start)
    history.told.sort(key=lambda told: told.at)
    history.mine.sort(key=lambda mine: mine.first)
    return history
