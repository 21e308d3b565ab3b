"""The numbers behind the metrics of pods and agents. Their owners supply them when a metric is read. Pure.

Who may touch it: any thread reads. The event loop adds and retires agents, under a lock.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from . import names

__all__ = ["AgentSource", "AgentStats", "Agents", "BoundedNames", "PodsSeen", "newest"]

MAX_SERVICES: Final = 64
"""The most services with a label value of their own in one process. Later ones share one value."""
OTHER: Final = "_OTHER"
"""OpenTelemetry's value for everything else."""


class PodsSeen(NamedTuple):
    """A router's pod view of one service, as numbers.

    Attributes:
        namespace, service: the service.
        read_at: when the pods were read, by the monotonic clock.
        statuses: status -> number of pods.
        routable: how many pods may take new users.
        emptying: how many pods are being evacuated.
        ejected: how many pods get no new users from this router, for failures that callers reported.
        room: how many users these pods may still take. None if none says.
        oldest_heartbeat: the age in seconds of the oldest last heartbeat of a living pod. None if none has a stamp.
        load: the sum of the loads of living pods, whether they take new users or not, in their own unit. None if
            no load is reported.
        skew: the highest load per capacity of a routable pod, as a multiple of the mean. None if no load is reported.
    """

    namespace: str
    service: str
    read_at: float
    statuses: Mapping[str, int]
    routable: int
    emptying: int
    ejected: int
    room: int | None
    oldest_heartbeat: float | None
    load: float | None
    skew: float | None


def newest(seen: Iterable[PodsSeen]) -> list[PodsSeen]:
    """The newest reading of each service, whichever router made it."""
    found: dict[tuple[str, str], PodsSeen] = {}
    for one in seen:
        name = (one.namespace, one.service)
        if name not in found or found[name].read_at < one.read_at:
            found[name] = one
    return list(found.values())


class BoundedNames:
    """Label values: the first ``MAX_SERVICES`` names, then ``OTHER``. So the number of series is bounded."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """The label value for this name."""
        if name in self._known:
            return name
        if len(self._known) >= MAX_SERVICES:
            return OTHER
        self._known.add(name)
        return name


@dataclass(frozen=True, slots=True)
class AgentStats:
    """An agent's numbers. Counts are since its start.

    Attributes:
        claims: uids that it holds.
        sessions: connections of these uids. None if they are not counted.
        beats: heartbeats that were stored.
        beats_failed: heartbeats that could not be stored.
        drain_left: users who have yet to leave. None while the pod does not drain.
        lease_margin: seconds until the agent must stop acting for its users. None without a lease.
        lost: reason, such as ``"moved"`` -> number of claims lost.
        confirmed: claims that were checked and found unchanged.
        reasserted: claims made again because the store had forgotten them.
    """

    claims: int = 0
    sessions: int | None = None
    beats: int = 0
    beats_failed: int = 0
    drain_left: int | None = None
    lease_margin: float | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    confirmed: int = 0
    reasserted: int = 0


class AgentSource(Protocol):
    """An agent."""

    def _agent_stats(self) -> AgentStats:
        """A snapshot. Any thread may call it."""
        ...


Label = tuple[tuple[str, str], ...]

LOSSES: Final = ("moved", "removed", "superseded")
"""Why claims are lost, reported from zero."""


class Agents:
    """The agents that use one router. The counts of an agent that has ended are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[AgentSource] = []
        self._ended: Counter[tuple[str, Label]] = Counter()
        self._ever = False

    def add(self, agent: AgentSource) -> None:
        """Read this agent from now on."""
        with self._lock:
            self._ever = True
            if agent not in self._running:
                self._running.append(agent)

    def retire(self, agent: AgentSource) -> None:
        """Keep the counts of an agent that has ended."""
        with self._lock:
            if agent in self._running:
                self._running.remove(agent)
                self._ended.update(_counts(agent._agent_stats()))

    def counters(self) -> dict[tuple[str, Label], int]:
        """The sums over all agents, past ones too. Empty if there never was one."""
        with self._lock:
            if not self._ever:
                return {}
            running, total = list(self._running), Counter(dict(self._ended))
        total.update(_counts(AgentStats()))
        for agent in running:
            total.update(_counts(agent._agent_stats()))
        return dict(total)

    def gauges(self) -> dict[tuple[str, Label], int]:
        """The sums over running agents."""
        with self._lock:
            running = list(self._running)
        total: Counter[tuple[str, Label]] = Counter()
        for agent in running:
            stats = agent._agent_stats()
            total[names.AGENT_CLAIMS, ()] += stats.claims
            if stats.sessions is not None:
                total[names.AGENT_SESSIONS, ()] += stats.sessions
            if stats.drain_left is not None:
                total[names.AGENT_DRAIN_LEFT, ()] += stats.drain_left
        return dict(total)

    def lease_margins(self) -> list[float]:
        """The lease margins of the agents that have a lease."""
        with self._lock:
            running = list(self._running)
        margins = (agent._agent_stats().lease_margin for agent in running)
        return [margin for margin in margins if margin is not None]


def _counts(stats: AgentStats) -> dict[tuple[str, Label], int]:
    lost = {**dict.fromkeys(LOSSES, 0), **stats.lost}
    return {
        (names.AGENT_HEARTBEATS, ((names.OUTCOME, "stored"),)): stats.beats,
        (names.AGENT_HEARTBEATS, ((names.OUTCOME, "failed"),)): stats.beats_failed,
        (names.AGENT_CONFIRMED, ()): stats.confirmed,
        (names.AGENT_REASSERTED, ()): stats.reasserted,
        **{(names.AGENT_LOST, ((names.REASON, why),)): count for why, count in lost.items()},
    }
