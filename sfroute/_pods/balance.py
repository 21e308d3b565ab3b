"""How evenly users are spread over pods, and which moves make it even enough. Pure.

The rules, stated once:

- A pod's *share* is its users, divided by its capacity. The *skew* is the greatest share, as a multiple of what each
  would be if all users were spread by capacity. 1.0 is even.
- A plan leaves no share above ``max_skew`` times that even share. Where whole users or full pods make it impossible, it
  comes as close as can be.
- It moves as few users as needed: only what a pod has above that bound, only to pods below it, the emptiest first. So
  whoever would plan again after it would move nobody, and no pod both gives and gets.
- A pod never gets more than it has room for; one that takes nobody only gives.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ..types import PlannedMoves, Pod
from .policies import capacity_of

__all__ = ["MAX_SKEW", "Flows", "Member", "members", "plan_moves", "skew_of_members"]

MAX_SKEW: Final = 1.2
"""What counts as even enough, where nobody says otherwise."""

_STEPS: Final = 100
"""Halvings of an interval between two floats: enough for any two."""


class Member(NamedTuple):
    """A pod among which users are spread.

    Attributes:
        pod: the pod id.
        links: how many users it has.
        capacity: its weight relative to the others, > 0.
        room: how many more users it takes; ``math.inf`` for any number.
    """

    pod: int
    links: int
    capacity: float = 1.0
    room: float = math.inf

    @property
    def share(self) -> float:
        """Users by capacity."""
        return self.links / self.capacity

    def most(self, share: float) -> int:
        """How many users it may have for its share to be at most this, and with no more than it has room for."""
        users = share * self.capacity
        # A share that was computed from a whole number of users must give that number again.
        bound = math.floor(users + 1e-9 * max(1.0, users))
        return int(min(bound, self.links + self.room))


def members(pods: Iterable[Pod], links: Mapping[int, int]) -> list[Member]:
    """These pods, each of which takes users, with their links by pod id."""
    made = []
    for pod in pods:
        count = links.get(pod.id, 0)
        room: float = math.inf if pod.room is None else pod.room
        if pod.max_claims is not None:
            # Users on their way have no claim yet.
            room = max(0, min(room, pod.max_claims - count))
        made.append(Member(pod.id, count, capacity_of(pod), room))
    return made


def skew_of_members(members: Iterable[Member]) -> float | None:
    """The skew; None if nobody has any users."""
    pods = list(members)
    total = sum(pod.links for pod in pods)
    if not total:
        return None
    return max(pod.share for pod in pods) * sum(pod.capacity for pod in pods) / total


def plan_moves(members: Iterable[Member], max_skew: float) -> tuple[PlannedMoves, ...]:
    """The moves, those of the fullest pod first. At most one less than there are pods."""
    pods = list(members)
    total = sum(pod.links for pod in pods)
    if not total:
        return ()
    bound = _bound(pods, total, max_skew)
    giving = {pod.pod: pod.links - pod.most(bound) for pod in pods if pod.links > pod.most(bound)}
    getting = _fill(pods, sum(giving.values()), bound)
    shares = {pod.pod: pod.share for pod in pods}
    givers = sorted(giving.items(), key=lambda item: (-shares[item[0]], item[0]))
    takers = sorted(getting.items(), key=lambda item: (shares[item[0]], item[0]))
    return tuple(_pairs(givers, takers))


def _bound(pods: Sequence[Member], total: int, max_skew: float) -> float:
    """The share that none may exceed: ``max_skew`` times the even one, or the least above it that is possible."""

    def is_possible(share: float) -> bool:
        return sum(pod.most(share) for pod in pods) >= total

    low = max_skew * total / sum(pod.capacity for pod in pods)
    if is_possible(low):
        return low
    high = max(pod.share for pod in pods)  # as it is now
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if is_possible(middle) else (middle, high)
    return high


def _fill(pods: Sequence[Member], count: int, bound: float) -> dict[int, int]:
    """Pod -> how many of so many users it gets: always the one with the least share, none beyond the bound."""
    takers = [pod for pod in pods if pod.most(bound) > pod.links]

    def got(pod: Member, level: float) -> int:
        return max(0, min(pod.most(level), pod.most(bound)) - pod.links)

    low, high = 0.0, bound
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        enough = sum(got(pod, middle) for pod in takers) >= count
        low, high = (low, middle) if enough else (middle, high)
    filled = {pod.pod: got(pod, low) for pod in takers}
    # What is left is less than one for each pod or so: those that tie at this level.
    left = count - sum(filled.values())
    queue = [((pod.links + filled[pod.pod]) / pod.capacity, pod.pod, pod) for pod in takers]
    heapq.heapify(queue)
    while left > 0 and queue:
        _, number, pod = heapq.heappop(queue)
        if pod.links + filled[number] < pod.most(bound):
            filled[number] += 1
            left -= 1
            share = (pod.links + filled[number]) / pod.capacity
            heapq.heappush(queue, (share, number, pod))
    return {number: users for number, users in filled.items() if users}


def _pairs(
    givers: Iterable[tuple[int, int]], takers: Iterable[tuple[int, int]]
) -> Iterable[PlannedMoves]:
    waiting = iter(takers)
    target, place = 0, 0
    for source, users in givers:
        left = users
        while left:
            if not place:
                target, place = next(waiting)
            moved = min(left, place)
            yield PlannedMoves(source, target, moved)
            left -= moved
            place -= moved


class Flows:
    """What is left of a plan."""

    def __init__(self, plan: Iterable[PlannedMoves]) -> None:
        self._left: dict[int, dict[int, int]] = {}
        for source, target, users in plan:
            self._left.setdefault(source, {})[target] = users

    @property
    def sources(self) -> frozenset[int]:
        """The pods of which users are still to be moved."""
        return frozenset(pod for pod, targets in self._left.items() if any(targets.values()))

    @property
    def targets(self) -> frozenset[int]:
        """The pods to which users are still to be moved."""
        return frozenset(
            pod for targets in self._left.values() for pod, left in targets.items() if left
        )

    def take(self, source: int) -> int | None:
        """The pod that one more user of this one is to go to; None if there is none."""
        targets = self._left.get(source, {})
        for target, left in targets.items():
            if left:
                targets[target] = left - 1
                return target
        return None

    def give_back(self, source: int, target: int) -> None:
        """One that was taken did not move."""
        targets = self._left.get(source, {})
        if target in targets:
            targets[target] += 1

    def drop(self, *, source: int | None = None, target: int | None = None) -> None:
        """Move nobody any more from, or to, this pod."""
        if source is not None:
            self._left.pop(source, None)
        if target is not None:
            for targets in self._left.values():
                targets.pop(target, None)
