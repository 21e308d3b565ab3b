"""A view of the pods in numbers, for metrics. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .._contract.pod_states import ROUTABLE
from ..telemetry import PodsSeen
from ..types import DRAINING, FAILED, PENDING, RUNNING, STOPPED, UNKNOWN, Pod
from .policies import capacity_of
from .views import ServiceView

__all__ = ["pods_seen"]

DEAD = "dead"
STATUSES = (RUNNING, PENDING, DRAINING, STOPPED, FAILED, UNKNOWN, DEAD)
_OVER = frozenset({STOPPED, FAILED})


def pods_seen(namespace: str, service: str, view: ServiceView, ejected: int) -> PodsSeen:
    """What this view says of the instant at which it was read; ``ejected``: how many pods are now.

    Not of now: a view that nobody needs is not renewed, and would show pods that are well as silent.
    """
    alive = [pod for pod in view.pods.values() if pod.id not in view.gone]
    takers = view.takers((), view.read_at)
    rooms = [pod.room for pod in takers if pod.room is not None]
    # A pod that takes nobody new, being full or paused or about to go, carries its users all the same.
    loads = [pod.load for pod in alive if pod.load is not None]
    ages = [pod.age for pod in alive if pod.age is not None]
    return PodsSeen(
        namespace=namespace,
        service=service,
        read_at=view.read_at,
        statuses={
            **dict.fromkeys(STATUSES, 0),
            **Counter(_status(pod, gone=pod.id in view.gone) for pod in view.pods.values()),
        },
        routable=len(takers),
        emptying=len(view.emptied),
        ejected=ejected,
        room=sum(rooms) if rooms else None,
        oldest_heartbeat=max(ages, default=None),
        load=sum(loads) if loads else None,
        skew=_skew(takers),
    )


def _status(pod: Pod, *, gone: bool) -> str:
    """One of a few: programs of several languages write whatever they like."""
    if gone and pod.status not in _OVER:
        return DEAD
    if pod.status in ROUTABLE:
        return RUNNING
    return pod.status if pod.status in STATUSES else UNKNOWN


def _skew(pods: Sequence[Pod]) -> float | None:
    loads = [pod.load / capacity_of(pod) for pod in pods if pod.load is not None]
    mean = sum(loads) / len(loads) if loads else 0.0
    return max(loads) / mean if mean > 0 else None
