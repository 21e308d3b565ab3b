"""The keys and the pods: is what is stored what the contract says, and is there somebody behind each link? Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from ...replies import masked_key
from ...states import ROUTABLE, gone
from ...types import UNKNOWN, Pod
from ..common import at_service, counted
from ..keyspace import FLAWS, Keyspace
from .findings import Check, Finding, listed

__all__ = ["judge_keys", "judge_pods"]

_REPAIR: Final = "write the link again (sfroute link set --service NAME), which mends both keys"
_REMEDIES: Final = {
    "type": "find out who writes it, and delete the key (DEL): no call on it works",
    "value": "find out who writes it, and delete the key (DEL): no call on it works",
    "unlisted": _REPAIR,
    "differs": _REPAIR,
    "temporary": "write the link again, or remove it: sfroute link set or remove, with --service NAME",
    "orphan": "sfroute link remove --service NAME, which clears the entry",
}
_ERRORS: Final = frozenset({"type", "value"})


def judge_keys(seen: Keyspace, *, show_uids: bool) -> Check:
    """Keys that no program of the contract has written so."""
    findings = []
    for flaw, words in FLAWS.items():
        if flaw not in seen.flaws:
            continue
        found = seen.flaws[flaw]
        names = found.keys if show_uids else list(dict.fromkeys(map(masked_key, found.keys)))
        findings.append(
            Finding(
                "error" if flaw in _ERRORS else "warning",
                f"{words}: {found.count:,}, such as {listed(names)}",
                _REMEDIES[flaw] + ("" if show_uids else "; --show-uids names some of them"),
            )
        )
    for server, why in seen.unread.items():
        findings.append(
            Finding(
                "error" if why != "NOPERM" else "warning",
                f"the keys of {server} could not be looked at ({why})",
                "give the right to SCAN" if why == "NOPERM" else "see above, and run it again",
            )
        )
    if seen.moved:
        findings.append(
            Finding(
                "warning",
                f"{seen.moved:,} keys moved to another server and were not looked at",
                "run it again when no slot is on the move",
            )
        )
    total = sum(seen.links.values())
    summary = f"{counted(seen.scanned, 'key')}, {counted(total, 'link')}, {seen.temporary:,} of them temporary"
    return Check("keys", summary, tuple(findings))


def judge_pods(
    services: Mapping[str, Mapping[int, Pod]],
    links: Mapping[tuple[str, int], int] | None,
    pod_timeout: float,
) -> list[Check]:
    """Pods that are silent or cannot be read, and links that lead to nobody (None: they were not looked at)."""
    findings: list[Finding] = []
    for service, pods in sorted(services.items()):
        findings += _of_service(service, pods, pod_timeout)
    count = sum(len(pods) for pods in services.values())
    pods_check = Check(
        "pods",
        f"{counted(count, 'pod')} of {counted(len(services), 'service')}",
        tuple(findings),
    )
    if links is None:
        return [pods_check, Check("links", "not looked at (--no-keys)", skipped=True)]
    return [pods_check, _links(services, links, pod_timeout)]


def _of_service(service: str, pods: Mapping[int, Pod], pod_timeout: float) -> list[Finding]:
    findings = []
    dead = gone(pods, pod_timeout)
    silent = [
        pod
        for pod in pods.values()
        if pod.id in dead
        and (pod.age or 0.0) > pod_timeout
        and not dead[pod.id].startswith("status")
    ]
    findings += [
        Finding(
            "warning",
            f"pod {pod.id} of {service!r} is silent: its last heartbeat was {pod.age:.0f} s ago",
            "see whether it runs and reaches the store; if it is gone for good, "
            + at_service(f"state set {pod.id} Stopped", service),
        )
        for pod in silent
    ]
    alive = [pod for pod in pods.values() if pod.id not in dead]
    if unknown := [pod.id for pod in alive if pod.status == UNKNOWN]:
        findings.append(
            Finding(
                "warning",
                f"the states of pods {listed(unknown)} of {service!r} cannot be read: they get no new users",
                "write a status such as Running, or a JSON object with one",
            )
        )
    if unstamped := [pod.id for pod in alive if pod.age is None and pod.status != UNKNOWN]:
        findings.append(
            Finding(
                "warning",
                f"pods {listed(unstamped)} of {service!r} send no heartbeat: nobody notices when they die",
                "let them use PodAgent, or call statefulSetState with a stamp",
            )
        )
    if pods and not any(pod.status in ROUTABLE for pod in alive):
        findings.append(
            Finding(
                "error",
                f"no pod of {service!r} takes new users: route() fails for them",
                f"start one; to see why each does not: {at_service('pods', service)}",
            )
        )
    return findings


def _links(
    services: Mapping[str, Mapping[int, Pod]],
    links: Mapping[tuple[str, int], int],
    pod_timeout: float,
) -> Check:
    findings = []
    lost: Counter[str] = Counter()
    for (service, pod), count in sorted(links.items()):
        if service not in services:
            continue  # its states could not be read, which is said elsewhere
        pods = services[service]
        if not pods:
            lost[service] += count
            continue
        reasons = gone(pods, pod_timeout)
        why = reasons.get(pod) or (None if pod in pods else "not reported")
        if why is not None:
            findings.append(
                Finding(
                    "warning",
                    f"{counted(count, 'link')} of {service!r} to pod {pod}, which is dead ({why})",
                    "each is moved when its user is next routed; all of them now: "
                    + at_service(f"evacuate {pod}", service),
                )
            )
    findings += [
        Finding(
            "warning",
            f"{counted(count, 'link')} of {service!r} kept, but no pod of it reports a state",
            "let its pods report (PodAgent): until then nobody can be placed or moved",
        )
        for service, count in lost.items()
    ]
    return Check("links", counted(sum(links.values()), "link"), tuple(findings))
