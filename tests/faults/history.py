"""What a call was, when it began and ended, and what it returned: one JSON line each.

All instants are ``time.monotonic()``, which all processes of one machine share (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TextIO

__all__ = ["READS", "WRITES", "Call", "Writer", "read_histories"]

WRITES = frozenset({"set", "try", "absent", "move", "remove", "remove_id", "flush"})
READS = frozenset({"fresh"})

Result = int | bool | None | list[int | bool]


@dataclass(slots=True)
class Call:
    """One call of one caller.

    Attributes:
        uid: the user.
        kind: ``set``, ``try``, ``absent``, ``move``, ``remove``, ``remove_id``: writes; ``fresh``: a read past the
            cache; ``cached``: a read through it; ``flush``: the harness removed everything.
        start: when it was called.
        end: when it returned or raised.
        pod: the pod to link; unlike that of any other call.
        expected: the pod that ``move`` and ``remove_id`` expect.
        persistent: the kind of link to make; for removals: delete now (else: demote).
        outcome: ``ok``, or the name of the error that was raised.
        result: what it returned.
        stale: the answer was marked as old.
        caller: who called.
    """

    uid: str
    kind: str
    start: float
    end: float
    pod: int = -1
    expected: int = -1
    persistent: bool = True
    outcome: str = "ok"
    result: Result = None
    stale: bool = False
    caller: str = ""

    @property
    def ok(self) -> bool:
        """It returned."""
        return self.outcome == "ok"

    @property
    def effective(self) -> bool:
        """It is a write that returned and changed whose link it is."""
        if not self.ok:
            return False
        match self.kind:
            case "set":
                return True
            case "try":
                return self.result == [True, self.pod]
            case "absent" | "move":
                return self.result == self.pod
            case "remove" | "remove_id":
                return self.result is True and self.persistent
        return self.kind == "flush"


class Writer:
    """Appends calls to a file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, call: Call) -> None:
        """Append one."""
        json.dump(astuple(call), self._file, separators=(",", ":"))
        self._file.write("\n")


def _read(path: Path) -> Iterator[Call]:
    with path.open() as file:
        for line in file:
            yield Call(*json.loads(line))


def read_histories(paths: Iterable[Path]) -> list[Call]:
    """The calls of all files, in the order of their beginning."""
    return sorted((call for path in paths for call in _read(path)), key=lambda call: call.start)
