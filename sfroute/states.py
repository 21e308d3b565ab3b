"""The states that pods report: how they are read, and what they mean for routing. Pure.

Programs in several languages write them, so they are read tolerantly:

==================================================  ===============================================
state                                               read as
==================================================  ===============================================
``Running``, ``Available``, ``Ready``, ``READY``    routable, no load, no age
``Pending``, ``Draining``, ``Stopped``, ``Failed``  that status, no load, no age
``<load>-<epochMillis>-<1|0>``                      ``Running`` if 1, else ``Stopped``; load, age
``<load>-<epochMillis>``                            ``Running``; load, age
``<load>|READY|<epochSeconds>``                     ``Running``; load, age
JSON object                                         ``status``, ``load``, ``at``; the rest is
``extra``
anything else                                       ``Unknown``
==================================================  ===============================================

Ages are computed on the server (``statefulGetService``): no gateway compares two machines' clocks.

For a uid that is linked to a pod, and for one that needs a pod:

=====================================  ======  =============
the pod                                a link  new uids
=====================================  ======  =============
routable, heartbeat in time            kept    yes
``Pending``, ``Draining``, unknown     kept    no
heartbeat too old                      moved   no
``Stopped``, ``Failed``                moved   no
not reported, while others are         moved   no
no pod of the service is reported      kept    nobody to take
=====================================  ======  =============
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from .types import (
    DRAINING,
    FAILED,
    PENDING,
    RUNNING,
    STOPPED,
    UNKNOWN,
    Pod,
    PodChange,
)

__all__ = [
    "ROUTABLE",
    "asked_to_drain",
    "changes",
    "compose_state",
    "gone",
    "read_pod",
    "rejections",
]

ROUTABLE: Final = frozenset({RUNNING, "Available", "Ready", "READY"})
_PLAIN: Final = ROUTABLE | {PENDING, DRAINING, STOPPED, FAILED}
_OVER: Final = frozenset({STOPPED, FAILED})

# Digits of a number that a float can hold; longer ones are nobody's load.
_LOAD: Final = r"(\d{1,30}(?:\.\d{1,30})?)"
_LOAD_AND_STAMP: Final = re.compile(_LOAD + r"-\d+(?:-([01]))?", re.ASCII)
_LOAD_READY_STAMP: Final = re.compile(_LOAD + r"\|READY\|\d+", re.ASCII)


def read_pod(pod: int, state: str, age: float | None) -> Pod:
    """The view of one pod from its state string; never raises."""
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
    return Pod(
        pod,
        status if isinstance(status, str) else UNKNOWN,
        _finite(load),
        age,
        MappingProxyType(fields),
    )


def _finite(load: object) -> float | None:
    if isinstance(load, bool) or not isinstance(load, (int, float)):
        return None
    try:
        number = float(load)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def compose_state(status: str, load: float | None, extra: Mapping[str, object]) -> str:
    """The compact JSON of a heartbeat; the server adds ``at``, its own clock."""
    fields: dict[str, object] = {"status": status}
    if load is not None:
        fields["load"] = round(load, 6)
    return json.dumps({**fields, **extra}, separators=(",", ":"), allow_nan=False)


def asked_to_drain(state: str) -> bool | None:
    """The request that an operator has written into a pod's state, for its agent: True to drain, False to do so no
    longer; None if there is none.
    """
    try:
        fields = json.loads(state)
    except (ValueError, RecursionError):
        return None
    asked = fields.get("drain") if isinstance(fields, dict) else None
    return asked if isinstance(asked, bool) else None


def gone(pods: Mapping[int, Pod], pod_timeout: float) -> dict[int, str]:
    """The pods that links must be moved off, with the reason."""
    found: dict[int, str] = {}
    for pod in pods.values():
        if pod.status in _OVER:
            found[pod.id] = f"status {pod.status!r}"
        elif pod.age is not None and pod.age > pod_timeout:
            found[pod.id] = f"last heartbeat {pod.age:.1f} s ago"
    return found


def rejections(
    pods: Mapping[int, Pod], gone: Mapping[int, str], exclude: Iterable[int] = ()
) -> dict[int, str]:
    """Why each pod that may take nobody may not; pods that may are absent."""
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
    """What has happened between two views, by pod id; loads and ages alone are no change.

    ``dead_before``, ``dead_after``: which pods were ``gone`` in each.
    """
    found: list[PodChange] = []
    for pod in sorted(before.keys() | after.keys()):
        old, new = before.get(pod), after.get(pod)
        if new is None:
            assert old is not None
            if pod not in dead_before:
                found.append(PodChange("left", old))
        elif pod in dead_after:
            if old is not None and pod in dead_before:
                continue
            if new.status not in _OVER:
                found.append(PodChange("dead", new))
            elif old is not None:
                found.append(PodChange("left", new))
        elif old is not None and old.status == new.status and pod not in dead_before:
            continue
        elif new.status == DRAINING:
            found.append(PodChange("draining", new))
        elif new.status in ROUTABLE and (
            old is None or pod in dead_before or old.status not in ROUTABLE
        ):
            found.append(PodChange("joined", new))
    return found
