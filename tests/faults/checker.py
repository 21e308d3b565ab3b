"""Is a history one that a single, never failing register for each uid could have produced?

``linearizable`` decides it for calls that do not go through the cache: each must seem to take effect at one instant
between its beginning and its end. It follows Wing and Gong, in the just-in-time form of Lowe ("Testing for
linearizability", 2017): going through the calls in the order of time it keeps every *configuration* that is still
possible, a state together with the set of calls under way that have already taken effect, and lets calls take effect
only when one that ends needs it. A call whose outcome is unknown may take effect at any time after its beginning, or
never. Uids are independent, so each is checked alone.

``outdated`` tells how far an answer of the cache lies behind: for how long the value had certainly been replaced when
the answer was asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from .history import READS, WRITES, Call

__all__ = ["Violation", "by_uid", "linearizable", "outdated"]

NOTHING_HAPPENED: Final = frozenset({"StoreUnavailable"})
"""Errors that promise that the call changed nothing."""

State = tuple[int, bool] | None
"""A pod and whether the link is persistent; None: no link."""


class _Anything:
    """The state after a violation: whatever the next call says."""


ANYTHING: Final = _Anything()
_Known = State | _Anything


class _Impossible(Exception):
    """The call cannot have had this result in this state."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A call whose result nothing explains.

    Attributes:
        call: the call.
        recent: the calls on the uid that ended before it, the latest last.
        why: in words.
    """

    call: Call
    recent: tuple[Call, ...]
    why: str


def by_uid(calls: Iterable[Call]) -> dict[str, list[Call]]:
    """The calls of each uid, in the order given."""
    found: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        found[call.uid].append(call)
    return dict(found)


# --- the register


def _pod(state: _Known) -> int | None:
    return None if state is None or isinstance(state, _Anything) else state[0]


def _after(state: _Known, call: Call) -> tuple[_Known, object]:
    """The next state and the result, by the rules of the operations."""
    if isinstance(state, _Anything):
        return _learned(call), call.result
    pod = _pod(state)
    made = (call.pod, call.persistent)
    match call.kind:
        case "fresh":
            return state, pod
        case "set":
            return made, pod
        case "try":
            if state is None or pod == call.pod or not state[1]:
                return made, [True, call.pod]
            return state, [False, pod]
        case "absent":
            return (made, call.pod) if state is None else (state, pod)
        case "move":
            if state is None or pod != call.expected:
                return state, pod
            return (call.pod, state[1]), call.pod
        case "remove" | "remove_id":
            if state is None or (call.kind == "remove_id" and pod != call.expected):
                return state, False
            return (None if call.persistent else (state[0], False)), True
        case "flush":
            return None, None
    raise AssertionError(call.kind)


def _learned(call: Call) -> _Known:
    """The state after a call in an unknown one, from what it returned."""
    result = call.result
    if not call.ok:
        return ANYTHING
    if call.kind == "set":
        return call.pod, call.persistent
    if call.kind == "flush" or (call.kind.startswith("remove") and result is True):
        return None if call.persistent else ANYTHING
    # Whether the link that was there is persistent is not known, nor who has it if it was not the expected pod.
    return None if result is None and call.kind in {"fresh", "move"} else ANYTHING


def _step(state: _Known, call: Call) -> _Known:
    after, result = _after(state, call)
    if call.ok and call.kind != "flush" and result != call.result:
        raise _Impossible
    return after


# --- linearizability

_Configuration = tuple[_Known, int]
"""A state, and the calls under way that have taken effect, as bits."""


class _Search:
    def __init__(self) -> None:
        self.configurations: set[_Configuration] = {(None, 0)}
        self.open: dict[int, Call] = {}
        self._free: list[int] = []
        self._bits = 0

    def begin(self, call: Call) -> int:
        if self._free:
            bit = self._free.pop()
        else:
            bit = 1 << self._bits
            self._bits += 1
        self.open[bit] = call
        return bit

    def end(self, bit: int) -> bool:
        """The call has returned: keep the configurations in which it has taken effect. False if there is none."""
        kept: set[_Configuration] = set()
        seen = set(self.configurations)
        todo = list(seen)
        while todo:
            state, done = todo.pop()
            if done & bit:
                kept.add((state, done & ~bit))
                continue
            for other, call in self.open.items():
                if done & other:
                    continue
                try:
                    following = (_step(state, call), done | other)
                except _Impossible:
                    continue
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        call = self.open.pop(bit)
        self._free.append(bit)
        if kept:
            self.configurations = kept
            return True
        # Go on from what this call said; calls under way may or may not have taken effect.
        state = _learned(call)
        under_way = list(self.open)
        masks = [0]
        for other in under_way[:4]:
            masks += [mask | other for mask in masks]
        self.configurations = {(state, mask) for mask in masks}
        return False


def linearizable(calls: Sequence[Call], *, reads: bool = True) -> list[Violation]:
    """What contradicts that one register answered these calls of one uid; cached reads are left out.

    ``reads``: consider fresh reads, too. After a violation the search goes on from what the call in question said.
    """
    kinds = WRITES | READS if reads else WRITES
    events: list[tuple[float, int, int, Call]] = []
    for number, call in enumerate(calls):
        if call.kind not in kinds or call.outcome in NOTHING_HAPPENED:
            continue
        if not call.ok and call.kind in READS:
            continue
        events.append((call.start, 0, number, call))
        if call.ok:
            events.append((call.end, 1, number, call))
    events.sort(key=lambda event: event[:3])
    search = _Search()
    bits: dict[int, int] = {}
    ended: list[Call] = []
    violations = []
    for _, is_end, number, call in events:
        if not is_end:
            bits[number] = search.begin(call)
            continue
        if not search.end(bits.pop(number)):
            violations.append(
                Violation(call, tuple(ended[-6:]), "no order of the calls explains this result")
            )
        ended.append(call)
    return violations


# --- answers of the cache


class _Replacements:
    """When the value that a call has written was certainly replaced."""

    def __init__(self, calls: Sequence[Call]) -> None:
        effective = sorted((c for c in calls if c.effective), key=lambda c: c.start)
        self._starts = [call.start for call in effective]
        # The earliest end of all that began at or after each.
        self._earliest = [inf] * (len(effective) + 1)
        for number in range(len(effective) - 1, -1, -1):
            self._earliest[number] = min(self._earliest[number + 1], effective[number].end)

    def after(self, instant: float) -> float:
        """The earliest end of an effective write that began after ``instant``."""
        return self._earliest[bisect_left(self._starts, instant)]


def outdated(calls: Sequence[Call]) -> list[tuple[Call, float]]:
    """For each cached read of one uid: how many seconds its answer had been replaced when it was asked for.

    0.0 if it may have been the truth then; ``inf`` if it never was.
    """
    replaced = _Replacements(calls)
    # Where each value may come from: the end of a write that may have written it.
    sources: dict[int | None, list[tuple[float, float]]] = defaultdict(list)
    sources[None].append((-inf, -inf))
    for call in calls:
        if call.kind in WRITES and call.outcome not in NOTHING_HAPPENED:
            value = None if call.kind in {"remove", "remove_id", "flush"} else call.pod
            if value is None and not call.persistent:
                continue
            if call.effective or not call.ok:
                sources[value].append((call.start, call.end if call.ok else inf))
    ages = []
    for call in calls:
        if call.kind != "cached" or not call.ok:
            continue
        assert call.result is None or isinstance(call.result, int)
        best = inf
        for start, end in sources.get(call.result, ()):
            if start <= call.end:
                best = min(best, max(0.0, call.start - replaced.after(end)))
        ages.append((call, best))
    return ages
