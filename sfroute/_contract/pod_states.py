"""The states that pods report: how to read them, and what they mean for routing. Pure.

Programs in several languages write them, so reading is tolerant:

==================================================  ===============================================
state                                               read as
==================================================  ===============================================
``Running``, ``Available``, ``Ready``, ``READY``    routable, no load, no age
``Pending``, ``Draining``, ``Stopped``, ``Failed``  that status, no load, no age
``<load>-<epochMillis>-<1|0>``                      ``Running`` if 1, else ``Stopped``; load, age
``<load>-<epochMillis>``                            ``Running``; load, age
``<load>|READY|<epochSeconds>``                     ``Running``; load, age
JSON object                                         ``status``, ``load``, ``at``; the rest becomes
                                                    ``extra``, without an address or labels that
                                                    break their rules (``attributes.py``)
anything else                                       ``Unknown``
==================================================  ===============================================

The server computes the ages (``statefulGetService``), so no gateway compares the clocks of two machines.

What happens to a link to the pod, and whether the pod takes new uids:

=====================================  ======  ==============
the pod                                a link  new uids
=====================================  ======  ==============
routable, heartbeat in time            kept    yes
another life than before               kept    yes
``Pending``, ``Draining``, unknown     kept    no
heartbeat too old                      moved   no
silent, together with all the others   kept    no
``Stopped``, ``Failed``                moved   no
not reported, while others are         moved   no
no pod of the service is reported      kept    no pod to take
=====================================  ======  ==============

The pod says how old is too old: older than its lease and ``lease_margin``. ``pod_timeout`` is for pods without a lease.

All pods are silent together if every one that is not over has a heartbeat that is too old, and of those the ones whose
last heartbeat was in time when the last of all was stored. It is more likely then that they cannot reach the store than
that all have ended at once, and in any case there is no pod to move a link to (``PlacementConfig.all_silent``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ..types import (
    DRAINING,
    FAILED,
    PENDING,
    RUNNING,
    STOPPED,
    UNKNOWN,
    Pod,
    PodChange,
)
from .attributes import bounded_labels, is_address

__all__ = [
    "ROUTABLE",
    "asked_to_drain",
    "changes",
    "compose_state",
    "gone",
    "read_pod",
    "rejections",
    "silent_together",
    "time_allowed",
]

ROUTABLE: Final = frozenset({RUNNING, "Available", "Ready", "READY"})
_PLAIN: Final = ROUTABLE | {PENDING, DRAINING, STOPPED, FAILED}
_OVER: Final = frozenset({STOPPED, FAILED})

# A number that a float can hold. A longer one is not a load.
_LOAD: Final = r"(\d{1,30}(?:\.\d{1,30})?)"
_LOAD_AND_STAMP: Final = re.compile(_LOAD + r"-\d+(?:-([01]))?", re.ASCII)
_LOAD_READY_STAMP: Final = re.compile(_LOAD + r"\|READY\|\d+", re.ASCII)


def read_pod(pod: int, state: str, age: float | None) -> Pod:
    """Read one pod's state string. Never raises."""
    if state in _PLAIN:
        return Pod(pod, state, None, age)
    match = _LOAD_AND_STAMP.fullmatch(state)
    if match:
        return Pod(pod, STOPPED if match[2] == "0" else RUNNING, float(match[1]), age)
    match = _LOAD_READY_STAMP.fullmatch(state)
    if match:
        return Pod(pod, RUNNING, float(match[1]), age)
    if state.lstrip().startswith("{"):
        return _read_json(pod, state, age)
    return Pod(pod, UNKNOWN, None, age)


def _read_json(pod: int, state: str, age: float | None) -> Pod:
    try:
        fields = json.loads(state)
    except (ValueError, RecursionError):
        return Pod(pod, UNKNOWN, None, age)
    status = fields.pop("status", None)
    load = fields.pop("load", None)
    fields.pop("at", None)
    _bound(fields)
    return Pod(
        pod,
        status if isinstance(status, str) else UNKNOWN,
        _finite(load),
        age,
        MappingProxyType(fields),
    )


def _bound(fields: dict[str, object]) -> None:
    """Leave out of a state what breaks the rules of addresses and labels (``attributes.py``)."""
    if "address" in fields and not is_address(fields["address"]):
        del fields["address"]
    if "labels" in fields:
        fields["labels"] = bounded_labels(fields["labels"])


def _finite(load: object) -> float | None:
    if isinstance(load, bool) or not isinstance(load, (int, float)):
        return None
    try:
        number = float(load)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def compose_state(status: str, load: float | None, extra: Mapping[str, object]) -> str:
    """The compact JSON of a heartbeat. The server adds ``at``, from its own clock."""
    fields: dict[str, object] = {"status": status}
    if load is not None:
        fields["load"] = round(load, 6)
    return json.dumps({**fields, **extra}, separators=(",", ":"), allow_nan=False)


def asked_to_drain(state: str) -> bool | None:
    """The request that an operator wrote into a pod's state for its agent.

    True: drain. False: stop draining. None: no request.
    """
    try:
        fields = json.loads(state)
    except (ValueError, RecursionError):
        return None
    asked = fields.get("drain") if isinstance(fields, dict) else None
    return asked if isinstance(asked, bool) else None


LEASE_MARGIN: Final = 1.0
"""Seconds by which gateways outwait a lease, unless they are told otherwise."""


def time_allowed(pod: Pod, pod_timeout: float, lease_margin: float = LEASE_MARGIN) -> float:
    """Seconds after its last heartbeat at which the pod counts as dead."""
    lease = pod.lease
    return pod_timeout if lease is None else lease + lease_margin


def gone(
    pods: Mapping[int, Pod], pod_timeout: float, lease_margin: float = LEASE_MARGIN
) -> dict[int, str]:
    """Pod id -> reason, for each pod that is over or silent: its links must be moved."""
    found: dict[int, str] = {}
    for pod in pods.values():
        if pod.status in _OVER:
            found[pod.id] = f"status {pod.status!r}"
        elif pod.age is not None and pod.age > time_allowed(pod, pod_timeout, lease_margin):
            found[pod.id] = f"last heartbeat {pod.age:.1f} s ago"
    return found


def silent_together(
    pods: Mapping[int, Pod], pod_timeout: float, lease_margin: float = LEASE_MARGIN
) -> frozenset[int]:
    """The pods that fell silent together with all others; empty while one that is not over is heard, or never was."""
    ages: dict[int, float] = {}
    for pod in pods.values():
        if pod.status in _OVER:
            continue
        if pod.age is None or pod.age <= time_allowed(pod, pod_timeout, lease_margin):
            return frozenset()
        ages[pod.id] = pod.age
    last = min(ages.values(), default=0.0)
    return frozenset(
        pod
        for pod, age in ages.items()
        if age - last <= time_allowed(pods[pod], pod_timeout, lease_margin)
    )


def rejections(
    pods: Mapping[int, Pod], gone: Mapping[int, str], exclude: Iterable[int] = ()
) -> dict[int, str]:
    """Pod id -> reason, for each pod that may not take new uids."""
    rejected = dict(gone)
    for pod in pods.values():
        if pod.id not in rejected and pod.status not in ROUTABLE:
            rejected[pod.id] = f"status {pod.status[:40]!r}"
    rejected.update((pod, "excluded by the caller") for pod in exclude if pod in pods)
    return rejected


def changes(
    before: Mapping[int, Pod],
    after: Mapping[int, Pod],
    dead_before: Collection[int],
    dead_after: Collection[int],
) -> list[PodChange]:
    """The changes between two pod views, in order of pod id. A new load or age alone is not a change, nor is a new life
    of a pod that had none or was dead: it joins.

    ``dead_before`` and ``dead_after``: the pods that were ``gone`` in each view.
    """
    found: list[PodChange] = []
    for pod in sorted(before.keys() | after.keys()):
        old, new = before.get(pod), after.get(pod)
        if new is None:
            assert old is not None
            if pod not in dead_before:
                found.append(PodChange("left", old))
        elif pod not in dead_after:
            found += _of_living(old if pod not in dead_before else None, new)
        elif old is not None and pod in dead_before:
            continue
        elif new.status not in _OVER:
            found.append(PodChange("dead", new))
        elif old is not None:
            found.append(PodChange("left", new))
    return found


def _of_living(old: Pod | None, new: Pod) -> list[PodChange]:
    """What has happened to a pod that lives; ``old``: as it was, None if it did not live before."""
    found: list[PodChange] = []
    if old is not None and None not in (old.life, new.life) and old.life != new.life:
        found.append(PodChange("restarted", new))
    if old is not None and old.status == new.status:
        return found
    if new.status == DRAINING:
        found.append(PodChange("draining", new))
    elif new.status in ROUTABLE and (old is None or old.status not in ROUTABLE):
        found.append(PodChange("joined", new))
    return found
