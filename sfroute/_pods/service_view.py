"""The pods of one service at one instant: which links stay, who may take uids, and how long that is good for. Pure."""

from __future__ import annotations

from collections.abc import Collection
from math import inf

from .._contract.pod_states import ROUTABLE, gone, silent_together, time_allowed
from ..config import PlacementConfig
from ..types import DRAINING, PERSIST_FOREVER, Pod

__all__ = ["ServiceView"]


class ServiceView:
    """The pods of one service at one instant.

    Attributes:
        pods: pod id -> view. Ages are those at the reading.
        addresses: pod id -> address, of those that say theirs.
        rooms: pod id -> how many more users it takes, of those that have a limit.
        gone: pod id -> why: the pod has ended, or is silent.
        spared: gone pods whose links stay all the same, because all pods fell silent together.
        emptied: pods that are being evacuated.
        draining: pods that are leaving and keep their users, but not those who are away: see ``lets_go``.
        allowance: seconds by which heartbeats may seem late through no fault of the pods.
        missed: pod id -> how long to wait for it, as an instant: it was alive, and its state has vanished.
        read_at: when they were asked for, by the clock of ``PodViews``.
        usable_until: instant from which a newer one is needed.
        renewing: a newer one has been asked for.
    """

    __slots__ = (
        "_config",
        "_waits",
        "addresses",
        "allowance",
        "draining",
        "emptied",
        "gone",
        "missed",
        "pods",
        "read_at",
        "renewing",
        "rooms",
        "spared",
        "usable_until",
    )

    def __init__(
        self,
        pods: dict[int, Pod],
        read_at: float,
        config: PlacementConfig,
        *,
        allowance: float = 0.0,
        emptied: frozenset[int] = frozenset(),
    ) -> None:
        self.pods = pods
        self.addresses = {pod.id: pod.address for pod in pods.values() if pod.address is not None}
        self.rooms = {pod.id: pod.room for pod in pods.values() if pod.room is not None}
        self.read_at = read_at
        self._config = config
        self.allowance = allowance
        self.emptied = emptied
        self.draining = frozenset(pod.id for pod in pods.values() if pod.status == DRAINING)
        limits = config.pod_timeout + allowance, config.lease_margin + allowance
        self.gone = gone(pods, *limits)
        self.spared = (
            silent_together(pods, *limits)
            if self.gone and config.all_silent == "keep"
            else frozenset()
        )
        self.missed: dict[int, float] = {}
        self._waits: dict[int, float] = {}
        self.usable_until = min(
            (
                read_at + self._allowed(pod) - pod.age
                for pod in pods.values()
                if pod.age is not None and pod.id not in self.gone
            ),
            default=inf,
        )
        self.renewing = False

    def keeps(self, pod: int) -> bool:
        """True if links to this pod stay: it is there and not gone, or nothing at all is known of the service."""
        if not self.pods:
            return True
        if pod in self.pods and pod not in self.gone:
            return True
        return pod in self.missed or pod in self.spared

    def lets_go(self, pod: int, *, persistent: bool, persist_seconds: int) -> bool:
        """True if the link's user is away, in the grace period of a release, at a draining pod.

        A temporary link means that if ``route()`` makes persistent links, or if the pod claims its users.
        """
        if persistent or pod not in self.draining or pod in self.gone:
            return False
        return persist_seconds == PERSIST_FOREVER or "confirmed" in self.pods[pod].extra

    def leaving(self) -> list[int]:
        """The pods whose links are moved."""
        return [pod for pod in self.gone if pod not in self.spared]

    def takers(self, exclude: Collection[int], now: float, *, emptied: bool = True) -> list[Pod]:
        """The pods that may take new uids: routable, not full, not excluded, and still within their time if the view is
        old. A pod that is being emptied is the last resort, and none at all unless ``emptied``.
        """
        passed = now - self.read_at
        found = [
            pod
            for pod in self.pods.values()
            if pod.status in ROUTABLE
            and (pod.age or 0.0) + passed <= self._allowed(pod)
            and pod.id not in self.gone
            and pod.id not in exclude
            and self.rooms.get(pod.id) != 0
        ]
        if not self.emptied:
            return found
        staying = [pod for pod in found if pod.id not in self.emptied]
        return staying if staying or not emptied else found

    def look_back(self, before: ServiceView) -> None:
        """Wait for a pod whose state has vanished as long as for a silent one. Losing the states does not end the
        pods, and their next heartbeats bring them back.

        The time begins with the first view that has other pods and not this one. Whatever was before may have been an
        outage of the store, or nobody may have looked.
        """
        waits = before._waits | {
            pod.id: time_allowed(pod, *self._limits)
            for pod in before.pods.values()
            if pod.id not in before.gone
        }
        begun = before.missed if before.pods else {}
        missed = {
            pod: begun.get(pod, self.read_at + seconds)
            for pod, seconds in waits.items()
            if pod not in self.pods
        }
        self.missed = {pod: until for pod, until in missed.items() if until > self.read_at}
        self._waits = {pod: waits[pod] for pod in self.missed}
        self.usable_until = min(self.usable_until, *self.missed.values(), inf)

    @property
    def _limits(self) -> tuple[float, float]:
        return self._config.pod_timeout, self._config.lease_margin

    def _allowed(self, pod: Pod) -> float:
        return time_allowed(pod, *self._limits) + self.allowance
