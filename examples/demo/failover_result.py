"""What the failover scene observed, and whether that is what was promised."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from director import table
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["FailoverResult", "GatewayReport", "PodReport", "percentile"]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the ascending values that at least ``percent`` of them do not exceed (nearest rank)."""
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """What one gateway wrote down.

    Attributes:
        answers: per request: when it was asked (monotonic seconds), how long it took (seconds), the source of the
            answer, and whether it was stale.
        errors: the texts of the errors that it saw.
    """

    name: str
    answers: list[tuple[float, float, str, bool]]
    errors: list[str]

    @classmethod
    def parse(cls, name: str, heard: Mapping[str, Any]) -> GatewayReport:
        """Read what the process reported."""
        answers = [(asked, took, source, stale) for asked, took, source, stale in heard["answers"]]
        return cls(name, answers, list(heard["errors"]))


@dataclass(frozen=True, slots=True)
class PodReport:
    """What one pod wrote down: the users it has seen, the requests it got, and its heartbeats."""

    pod: int
    users: frozenset[str]
    requests: int
    heartbeats: int
    heartbeats_missed: int

    @classmethod
    def parse(cls, pod: int, heard: Mapping[str, Any]) -> PodReport:
        """Read what the process reported."""
        return cls(
            pod,
            frozenset(heard["users"]),
            heard["requests"],
            heard["heartbeats"],
            heard["heartbeats_missed"],
        )


@dataclass(frozen=True, slots=True)
class FailoverResult:
    """Everything that was observed, and what follows from it.

    Attributes:
        expected: how many requests there were.
        gateways: what each gateway wrote down.
        pods: what each pod wrote down.
        links: pod -> the uids that the store links to it afterwards.
        killed: the address of the primary that was killed.
        killed_at: when (monotonic seconds).
        recovered_at: when its replica had taken over (monotonic seconds).
        whole_at: when it was back, as a replica that acknowledges (monotonic seconds).
    """

    expected: int
    gateways: list[GatewayReport]
    pods: list[PodReport]
    links: Mapping[int, Sequence[str]]
    killed: str
    killed_at: float
    recovered_at: float
    whole_at: float

    def during_failover(self) -> list[float]:
        """How long each request took (ascending seconds) that was under way before all was whole again."""
        return self._times(during=True)

    def apart_from_failover(self) -> list[float]:
        """The same for all other requests."""
        return self._times(during=False)

    def _times(self, *, during: bool) -> list[float]:
        return sorted(
            took
            for gateway in self.gateways
            for asked, took, _, _ in gateway.answers
            if (asked + took >= self.killed_at and asked <= self.whole_at) is during
        )

    def broken_promises(self) -> list[str]:
        """What was promised and did not hold, as sentences; empty if all is well."""
        broken = []
        for gateway in self.gateways:
            for text, times in Counter(gateway.errors).most_common(5):
                broken.append(f"the gateway on {gateway.name} saw {times} times: {text}")
        served = sum(len(gateway.answers) for gateway in self.gateways)
        if served != self.expected:
            broken.append(f"{self.expected - served} of {self.expected} requests were not routed")
        arrived = sum(pod.requests for pod in self.pods)
        if arrived != self.expected:
            broken.append(f"{arrived} requests arrived at the pods, not {self.expected}")
        for one, other in itertools.combinations(self.pods, 2):
            if shared := one.users & other.users:
                broken.append(f"{len(shared)} users met both pod {one.pod} and pod {other.pod}")
        for pod in self.pods:
            linked = frozenset(self.links.get(pod.pod, ()))
            if linked != pod.users:
                broken.append(
                    f"the store links {len(linked)} users to pod {pod.pod}, which has seen {len(pod.users)}"
                )
        if not self.during_failover():
            broken.append("no request was made while the primary was gone")
        return broken

    def fields(self) -> dict[str, Any]:
        """What was observed, for JSON."""
        return {
            "requests": self.expected,
            "gateways": [
                {
                    "router": gateway.name,
                    "requests": len(gateway.answers),
                    "cache_hits": sum(source == "cache" for _, _, source, _ in gateway.answers),
                    "stale": sum(stale for _, _, _, stale in gateway.answers),
                    "errors": len(gateway.errors),
                }
                for gateway in self.gateways
            ],
            "pods": [
                {
                    "pod": pod.pod,
                    "links": len(self.links.get(pod.pod, ())),
                    "requests": pod.requests,
                    "heartbeats": pod.heartbeats,
                    "heartbeats_missed": pod.heartbeats_missed,
                }
                for pod in self.pods
            ],
            "primary_killed": self.killed,
            "failover_seconds": round(self.recovered_at - self.killed_at, 3),
            "whole_seconds": round(self.whole_at - self.killed_at, 3),
        }

    def tables(self) -> RenderableType:
        """The same for people."""
        return Group(self._gateway_table(), Text(), self._pod_table(), Text(), self._failover())

    def _gateway_table(self) -> Table:
        made = table("Gateways")
        made.add_column("router")
        for heading in (
            "requests",
            "cache hits",
            "stale",
            "p50 ms",
            "p99 ms",
            "slowest ms",
            "errors",
        ):
            made.add_column(heading, justify="right")
        everything = GatewayReport(
            "together",
            [answer for gateway in self.gateways for answer in gateway.answers],
            [text for gateway in self.gateways for text in gateway.errors],
        )
        for gateway in (*self.gateways, everything):
            if gateway is everything:
                made.add_section()
            made.add_row(gateway.name, *_figures(gateway))
        return made

    def _pod_table(self) -> Table:
        made = table("Pods")
        for heading in ("pod", "links", "requests", "heartbeats", "missed"):
            made.add_column(heading, justify="right")
        for pod in self.pods:
            made.add_row(
                str(pod.pod),
                f"{len(self.links.get(pod.pod, ())):,}",
                f"{pod.requests:,}",
                str(pod.heartbeats),
                str(pod.heartbeats_missed),
            )
        return made

    def _failover(self) -> Text:
        gone, whole = self.recovered_at - self.killed_at, self.whole_at - self.killed_at
        during, apart = self.during_failover(), self.apart_from_failover()
        errors = sum(len(gateway.errors) for gateway in self.gateways)
        return Text(
            f"Primary {self.killed} was killed in the middle.\nIts replica took over after {gone:.1f} s; "
            f"it was back as a replica after {whole:.1f} s.\nMeanwhile {len(during):,} requests were answered, "
            f"{percentile(during, 50) * 1000:.1f} ms in the\nmedian and {percentile(during, 100) * 1000:,.0f} ms the "
            f"slowest; errors: {errors}.\nOf all other requests the p99 was {percentile(apart, 99) * 1000:.1f} ms."
        )


def _figures(gateway: GatewayReport) -> list[str]:
    took = sorted(answer[1] * 1000 for answer in gateway.answers)
    count = max(len(gateway.answers), 1)
    hits = sum(source == "cache" for _, _, source, _ in gateway.answers)
    stale = sum(stale for _, _, _, stale in gateway.answers)
    return [
        f"{len(gateway.answers):,}",
        f"{hits:,} ({100 * hits / count:.0f} %)",
        f"{stale:,}",
        f"{percentile(took, 50):.3f}",
        f"{percentile(took, 99):.1f}",
        f"{took[-1] if took else 0.0:,.0f}",
        str(len(gateway.errors)),
    ]
