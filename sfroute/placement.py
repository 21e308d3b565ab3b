"""Policies: the order in which pods are proposed to a uid that needs one. Pure.

A policy sees only pods that may take new uids, so it can never choose an unroutable one. It returns them, the best
first: the script that places the uid takes the first that is not gone.

Loads are as old as the pods' last heartbeats, and every gateway reads the same ones: whoever always takes the least
loaded pod sends everybody there until the next heartbeat. Two things prevent that. The default is the power of two
choices (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001): of two random pods the less
loaded. And a load counts together with what has been placed since it was measured (``Placements``).
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from .types import Pod

__all__ = [
    "Candidate",
    "LeastLoaded",
    "Placements",
    "Policy",
    "PowerOfTwoChoices",
    "Rendezvous",
    "RoundRobin",
    "WeightedByCapacity",
    "candidates",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod that may take a uid.

    Attributes:
        id: the pod id.
        load: its load by what is known now: as reported, plus what has been placed on it since. In units of the pods'
            own choice, per unit of capacity. A pod that reports none counts as loaded as the others are on average.
        capacity: its share of the work relative to the others, ``> 0``: the field ``capacity`` of its state, else 1.
    """

    id: int
    load: float
    capacity: float = 1.0


class Policy(Protocol):
    """How to order candidates. Implement it for a policy of your own; it is called on the event loop and must be
    quick.
    """

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """Pod ids of ``candidates`` (at least one), the best first.

        A pod left out does not get the uid; ids that are no candidate's are passed over.
        """
        ...


class PowerOfTwoChoices:
    """Of two random pods the less loaded; the rest by load. Spreads well even when loads are seconds old. The most
    loaded pod gets none.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        if len(candidates) == 1:
            return [candidates[0].id]
        one, other = self._random.sample(candidates, 2)
        # Of equals the one drawn first: by id, pod 0 would get twice its share.
        first = other if other.load < one.load else one
        return [first.id, *(pod for pod in _by_load(candidates) if pod != first.id)]


class LeastLoaded:
    """The least loaded pod first. For few gateways, or loads that are always fresh."""

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        return _by_load(candidates)


class Rendezvous:
    """By a hash of uid and pod, weighted by capacity (highest random weight; Thaler and Ravishankar 1998).

    The same uid gets the same order everywhere. When a pod joins or leaves, only the uids it wins or held change. Loads
    are not looked at.
    """

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        return [
            candidate.id
            for candidate in sorted(
                candidates, key=lambda candidate: self._score(uid, candidate), reverse=True
            )
        ]

    @staticmethod
    def _score(uid: str, candidate: Candidate) -> float:
        digest = hashlib.blake2b(f"{candidate.id}:{uid}".encode(), digest_size=8).digest()
        # Uniform in (0, 1); the weighted form -w / ln(u) keeps shares proportional to capacity.
        uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 2)
        return -candidate.capacity / math.log(uniform)


class RoundRobin:
    """One pod after the other, by pod id."""

    def __init__(self) -> None:
        self._last = -1

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        ids = sorted(candidate.id for candidate in candidates)
        start = next((place for place, pod in enumerate(ids) if pod > self._last), 0)
        self._last = ids[start]
        return ids[start:] + ids[:start]


class WeightedByCapacity:
    """At random, in proportion to capacity. Loads are not looked at."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        # Each pod's exponential clock runs at its capacity: the order of ringing is a weighted random order (Efraimidis
        # and Spirakis 2006).
        return [
            candidate.id
            for candidate in sorted(
                candidates, key=lambda one: self._random.expovariate(one.capacity)
            )
        ]


def _by_load(candidates: Sequence[Candidate]) -> list[int]:
    return [one.id for one in sorted(candidates, key=lambda one: (one.load, one.id))]


def candidates(
    pods: Sequence[Pod], placed: Mapping[int, int], load_per_uid: float | None
) -> list[Candidate]:
    """What a policy is shown of routable ``pods``.

    ``placed``: uids placed on each pod that its load does not show yet. ``load_per_uid``: what one of them adds to a
    load; None takes 1 where a load is above 1 (loads that count something), else a hundredth (loads that are shares),
    and 1 where no load is reported.
    """
    reported = [pod.load for pod in pods if pod.load is not None]
    if load_per_uid is None:
        load_per_uid = 1.0 if not reported or max(reported) > 1.0 else 0.01
    # Not 0: a pod whose load cannot be measured would get everybody.
    average = math.fsum(reported) / len(reported) if reported else 0.0
    found = []
    for pod in pods:
        capacity = _capacity(pod)
        load = average if pod.load is None else pod.load
        load += load_per_uid * placed.get(pod.id, 0)
        found.append(Candidate(pod.id, load / capacity, capacity))
    return found


def _capacity(pod: Pod) -> float:
    given = pod.extra.get("capacity")
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return 1.0
    # An int may be larger than any float.
    return float(given) if 0 < given <= sys.float_info.max else 1.0


class _Measurement(NamedTuple):
    load: float | None
    instant: float


class Placements:
    """What one gateway has placed on the pods of a service that their loads do not show yet.

    It also learns what that means: by how much the loads grow, all gateways together, for each uid that this one
    places. So every gateway counts with what the others do meanwhile, however many there are, and with loads in
    whatever unit.

    All instants are those of one monotonic clock, in seconds.
    """

    REMEMBERED_SECONDS: Final = 30.0
    """How long a placement counts on a pod that reports no load, or always the same without a stamp."""
    MAX_REMEMBERED: Final = 100_000
    """Placements remembered for each pod: what one gateway places between two heartbeats, and far more."""
    SAME_SECONDS: Final = 0.05
    """Two readings of one heartbeat differ by a round trip at most; two heartbeats by more."""
    MEMORY: Final = 0.95
    """Weight of what was learned before each new measurement: about twenty count."""

    def __init__(self) -> None:
        self._placed: dict[int, deque[float]] = {}
        self._under_way: Counter[int] = Counter()
        self._measured: dict[int, _Measurement] = {}
        self._growth = 0.0
        self._cause = 0.0

    @contextmanager
    def under_way(self, pod: int) -> Iterator[None]:
        """A uid is being placed on the pod: it counts already, so that those decided at once spread."""
        self._under_way[pod] += 1
        try:
            yield
        finally:
            self._under_way[pod] -= 1
            if not self._under_way[pod]:
                del self._under_way[pod]

    def add(self, pod: int, now: float) -> None:
        """A uid was placed on the pod."""
        times = self._placed.get(pod)
        if times is None:
            times = self._placed[pod] = deque(maxlen=self.MAX_REMEMBERED)
        times.append(now)

    def observe(self, pods: Iterable[Pod], read_at: float) -> None:
        """The pods were read: what was placed before a load was measured is part of it."""
        measured = {pod.id: self._measurement(pod, read_at) for pod in pods}
        for pod, now in measured.items():
            included = self._forget(pod, now.instant)
            before = self._measured.get(pod)
            if included and before is not None and None not in (before.load, now.load):
                self._learn((now.load or 0.0) - (before.load or 0.0), included)
        for pod in self._placed.keys() - measured.keys():
            del self._placed[pod]
        self._measured = measured

    def unseen(self) -> dict[int, int]:
        """Pod id -> uids placed on it, or about to be, since its load was measured."""
        counts: Counter[int] = Counter(self._under_way)
        for pod, times in self._placed.items():
            measurement = self._measured.get(pod)
            since = measurement.instant if measurement is not None else -math.inf
            counts[pod] += len(times) - bisect_right(times, since)
        return counts

    @property
    def load_per_uid(self) -> float | None:
        """By how much the loads have grown for each uid placed here; None while that is not known."""
        return self._growth / self._cause if self._cause >= 1.0 else None

    def _measurement(self, pod: Pod, read_at: float) -> _Measurement:
        before = self._measured.get(pod.id)
        oldest = read_at - self.REMEMBERED_SECONDS
        if pod.load is None:
            instant = oldest
        elif pod.age is not None:
            instant = read_at - pod.age
            if before is not None and abs(instant - before.instant) < self.SAME_SECONDS:
                instant = before.instant
        elif before is not None and before.load == pod.load:
            instant = max(before.instant, oldest)
        else:
            instant = read_at
        return _Measurement(pod.load, instant)

    def _forget(self, pod: int, until: float) -> int:
        times = self._placed.get(pod)
        forgotten = 0
        while times and times[0] <= until:
            times.popleft()
            forgotten += 1
        if times is not None and not times:
            del self._placed[pod]
        return forgotten

    def _learn(self, growth: float, placed: int) -> None:
        # Users leave too: a load that shrinks says nothing of what a uid adds.
        self._growth = self.MEMORY * self._growth + max(growth, 0.0)
        self._cause = self.MEMORY * self._cause + placed
