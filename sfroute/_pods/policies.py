"""Policies: rank the pods for a uid that needs one. Pure.

A policy sees only pods that may take new uids, so it can never choose an unroutable one. It ranks them, best first. The
script that places the uid takes the first one that is not gone.

Loads are as old as the pods' last heartbeats, and every gateway reads the same loads. If each took the least loaded
pod, all would choose the same one until its next heartbeat. Two things prevent that herd. The default policy is the
power of two choices (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001): the less loaded of
two random pods. And a load includes what has been placed on the pod since the load was measured (``Placements``).
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
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from .._chance import chance
from ..errors import InvalidArgument
from ..types import Pod

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
    "capacity_of",
    "check_policy",
    "room_is_going",
]


_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class Candidate(NamedTuple):
    """A pod that may take a uid.

    Attributes:
        id: the pod id.
        load: its load, as reported, plus what has been placed on it since; divided by its capacity. The pods choose the
            unit. A pod that reports no load gets the average of those that do.
        capacity: its weight relative to the other pods, ``> 0``: the field ``capacity`` of its state, else 1.
        labels: what it says of itself, such as ``{"version": "2.1", "zone": "a"}``.
        address: where it can be reached, if it said so.
        age: seconds since its last heartbeat, when its state was read. None if its state has no stamp.
        room: how many more users it takes, less what has been placed on it since it said so. None if it has no limit.
        max_claims: how many users it takes in all. None if it has no limit.
    """

    id: int
    load: float
    capacity: float = 1.0
    labels: Mapping[str, str] = _NO_LABELS
    address: str | None = None
    age: float | None = None
    room: int | None = None
    max_claims: int | None = None


class Policy(Protocol):
    """Ranks candidates. Implement it for a policy of your own. It runs on the event loop, so it must be fast."""

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """The ids of ``candidates`` (at least one), best first.

        A pod that is left out does not get the uid. Ids that are not candidates' are skipped.
        """
        ...


class PowerOfTwoChoices:
    """The less loaded of two random pods first, then the rest by load.

    Spreads uids well even when loads are seconds old. The most loaded pod gets none.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or chance

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        if len(candidates) == 1:
            return [candidates[0].id]
        one, other = self._random.sample(candidates, 2)
        # If the loads are equal, the one drawn first: by id, pod 0 would get twice its share.
        first = other if other.load < one.load else one
        return [first.id, *(pod for pod in _by_load(candidates) if pod != first.id)]


class LeastLoaded:
    """The least loaded pod first. For few gateways, or for loads that are always fresh."""

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        return _by_load(candidates)


class Rendezvous:
    """By a hash of uid and pod, weighted by capacity (highest random weight; Thaler and Ravishankar 1998).

    A uid gets the same order on every gateway. When a pod joins or leaves, only the uids that it wins or held move.
    Ignores loads.
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
    """One pod after another, by pod id."""

    def __init__(self) -> None:
        self._last = -1

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        ids = sorted(candidate.id for candidate in candidates)
        start = next((place for place, pod in enumerate(ids) if pod > self._last), 0)
        self._last = ids[start]
        return ids[start:] + ids[:start]


class WeightedByCapacity:
    """At random, in proportion to capacity. Ignores loads."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or chance

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        # Each pod draws an exponential time with its capacity as the rate. Sorted by time, the pods are in weighted
        # random order (Efraimidis and Spirakis 2006).
        return [
            candidate.id
            for candidate in sorted(
                candidates, key=lambda one: self._random.expovariate(one.capacity)
            )
        ]


def check_policy(policy: object, argument: str = "policy") -> None:
    """Raise ``InvalidArgument`` unless it is a policy, or None."""
    if isinstance(policy, type):
        raise InvalidArgument(f"{argument} must be an instance, such as Rendezvous()")
    if policy is not None and not callable(getattr(policy, "rank", None)):
        raise InvalidArgument(f"{argument} must have a method rank(uid, candidates)")


def _by_load(candidates: Sequence[Candidate]) -> list[int]:
    return [one.id for one in sorted(candidates, key=lambda one: (one.load, one.id))]


def candidates(
    pods: Sequence[Pod],
    placed: Mapping[int, int],
    load_per_uid: float | None,
    claims_per_uid: float = 1.0,
) -> list[Candidate]:
    """The candidates that a policy sees, from routable ``pods``.

    Args:
        pods: the routable pods.
        placed: pod id -> uids placed on the pod that its load does not include yet.
        load_per_uid: how much one uid adds to a load. None means 1 if any load is above 1 (loads are counts) or none
            is reported, else 0.01 (loads are fractions).
        claims_per_uid: how many users the pods get, through all gateways, for each uid placed here.
    """
    reported = [pod.load for pod in pods if pod.load is not None]
    if load_per_uid is None:
        load_per_uid = 1.0 if not reported or max(reported) > 1.0 else 0.01
    # Not 0: a pod whose load cannot be measured would get everybody.
    average = math.fsum(reported) / len(reported) if reported else 0.0
    found = []
    for pod in pods:
        capacity = capacity_of(pod)
        load = average if pod.load is None else pod.load
        load += load_per_uid * placed.get(pod.id, 0)
        room = pod.room
        if room is not None:
            room = max(0, room - math.ceil(claims_per_uid * placed.get(pod.id, 0)))
        found.append(
            Candidate(
                pod.id,
                load / capacity,
                capacity,
                pod.labels,
                pod.address,
                pod.age,
                room,
                pod.max_claims,
            )
        )
    return found


def room_is_going(pods: Sequence[Pod], found: Sequence[Candidate]) -> bool:
    """True if more than half of the room that a pod had is thought to be used up.

    ``found``: the candidates made of ``pods``. Pods report room by the same rule, so newer figures may be there.
    """
    return any(
        pod.room is not None and one.room is not None and one.room < pod.room / 2
        for pod, one in zip(pods, found, strict=True)
    )


def capacity_of(pod: Pod) -> float:
    """A pod's weight relative to the others."""
    given = pod.extra.get("capacity")
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return 1.0
    # An int may be larger than any float.
    return float(given) if 0 < given <= sys.float_info.max else 1.0


class _Measurement(NamedTuple):
    load: float | None
    instant: float
    claims: int | None


class Placements:
    """What one gateway has placed on the pods of a service and their loads do not include yet.

    It also learns how much the loads grow, through all gateways together, for each uid that this gateway places. So
    each gateway allows for what the others place meanwhile, however many there are and whatever the unit of the loads.

    All instants are seconds of one monotonic clock.
    """

    REMEMBERED_SECONDS: Final = 30.0
    """How long a placement counts if the pod reports no load, or an unchanging load without a stamp."""
    MAX_REMEMBERED: Final = 100_000
    """Placements remembered per pod: far more than one gateway places between two heartbeats."""
    SAME_SECONDS: Final = 0.05
    """Two readings of one heartbeat differ by at most a round trip. Two heartbeats differ by more."""
    MEMORY: Final = 0.95
    """Weight of older measurements at each new one: in effect, the last twenty count."""

    def __init__(self) -> None:
        self._placed: dict[int, deque[float]] = {}
        self._under_way: Counter[int] = Counter()
        self._measured: dict[int, _Measurement] = {}
        self._trip = 0.0
        self._growth = 0.0
        self._cause = 0.0
        self._claims_growth = 0.0
        self._claims_cause = 0.0

    @contextmanager
    def under_way(self, pod: int) -> Iterator[None]:
        """Count a uid while it is being placed on the pod, so that concurrent decisions spread."""
        self._under_way[pod] += 1
        try:
            yield
        finally:
            self._under_way[pod] -= 1
            if not self._under_way[pod]:
                del self._under_way[pod]

    def add(self, pod: int, now: float) -> None:
        """Count a uid that was placed on the pod."""
        times = self._placed.get(pod)
        if times is None:
            times = self._placed[pod] = deque(maxlen=self.MAX_REMEMBERED)
        times.append(now)

    def observe(self, pods: Iterable[Pod], read_at: float, trip: float = 0.0) -> None:
        """Take in a new reading of the pods. A load includes what was placed ``trip`` seconds before it."""
        self._trip = trip
        measured = {pod.id: self._measurement(pod, read_at) for pod in pods}
        for pod, now in measured.items():
            included = self._forget(pod, now.instant - trip)
            before = self._measured.get(pod)
            if not included or before is None:
                continue
            if None not in (before.load, now.load):
                self._learn((now.load or 0.0) - (before.load or 0.0), included)
            if None not in (before.claims, now.claims):
                self._learn_claims((now.claims or 0) - (before.claims or 0), included)
        for pod in self._placed.keys() - measured.keys():
            del self._placed[pod]
        self._measured = measured

    def unseen(self) -> dict[int, int]:
        """Pod id -> uids that its load does not include: placed since then, on their way, or being placed now."""
        counts: Counter[int] = Counter(self._under_way)
        for pod, times in self._placed.items():
            measurement = self._measured.get(pod)
            since = measurement.instant - self._trip if measurement is not None else -math.inf
            counts[pod] += len(times) - bisect_right(times, since)
        return counts

    @property
    def load_per_uid(self) -> float | None:
        """How much the loads have grown for each uid placed here. None until that is known."""
        return self._growth / self._cause if self._cause >= 1.0 else None

    @property
    def claims_per_uid(self) -> float:
        """How many users the pods have got, through all gateways, for each uid placed here; 1.0 until that is known."""
        if self._claims_cause < 1.0:
            return 1.0
        return max(1.0, self._claims_growth / self._claims_cause)

    def _measurement(self, pod: Pod, read_at: float) -> _Measurement:
        before = self._measured.get(pod.id)
        oldest = read_at - self.REMEMBERED_SECONDS
        claims = None
        if pod.room is not None and pod.max_claims is not None:
            claims = pod.max_claims - pod.room
        if pod.load is None and claims is None:
            instant = oldest
        elif pod.age is not None:
            instant = read_at - pod.age
            if before is not None and abs(instant - before.instant) < self.SAME_SECONDS:
                instant = before.instant
        elif before is not None and (before.load, before.claims) == (pod.load, claims):
            instant = max(before.instant, oldest)
        else:
            instant = read_at
        return _Measurement(pod.load, instant, claims)

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
        # Users also leave: a load that shrinks says nothing about what a uid adds.
        self._growth = self.MEMORY * self._growth + max(growth, 0.0)
        self._cause = self.MEMORY * self._cause + placed

    def _learn_claims(self, growth: int, placed: int) -> None:
        self._claims_growth = self.MEMORY * self._claims_growth + max(growth, 0)
        self._claims_cause = self.MEMORY * self._claims_cause + placed
