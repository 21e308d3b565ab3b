"""The keys and the pods: do the stored keys follow the contract, and does each link lead to a living pod? Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..._contract.error_replies import meaning
from ..._contract.pod_states import ROUTABLE, gone, rejections
from ..._contract.replies import masked_key
from ..._pods.policies import capacity_of
from ...telemetry import PodsSeen
from ...types import UNKNOWN, Pod
from ..common import at_service, counted, likely, listed
from ..keyspace import FLAWS, Keyspace
from ..pods import in_numbers
from .findings import Check, Finding, remedy_of_code

__all__ = ["judge_keys", "judge_pods"]

_REPAIR: Final = "mend them: sfroute doctor --repair"
_REMEDIES: Final = {
    "type": "find out who writes it, and delete the key (DEL): no call on it works",
    "value": "find out who writes it, and delete the key (DEL): no call on it works",
    "unlisted": _REPAIR,
    "differs": _REPAIR,
    "temporary": "write the link again, or remove it: sfroute link set or remove, with --service NAME",
    "orphan": "the store has evicted the links, or a program has deleted their keys. To have them back: "
    "sfroute doctor --repair",
    "unlinked": "the store has lost the link, or a program that knows no claims has removed it. To end the claims: "
    "sfroute doctor --repair",
    "elsewhere": "a gateway has moved the user off a pod that was silent or Failed, or a program that knows no claims "
    "has moved the link. To end the claims: sfroute doctor --repair",
    "record": "find out who writes it, and delete the key (DEL): no pod can claim the uid",
    "name": "another program writes them. Let it refuse such names, move its users to others, and delete the keys",
}
_ERRORS: Final = frozenset({"type", "value", "record", "name"})
UNEVEN_SHARE: Final = 0.5
UNEVEN_DEVIATIONS: Final = 3.0
"""A pod has too many or too few links if it is beyond both: this share of its fair number, and this many standard
deviations of random placement."""
_NEVER_NAMED: Final = frozenset({"name"})
"""Nobody can say where the uid ends in such a key, so it cannot be masked."""


def judge_keys(
    seen: Keyspace, namespace: str, namespaces: Collection[str], *, show_uids: bool
) -> Check:
    """Keys that no program of the contract writes. ``namespaces``: those that exist, if this one is empty."""
    findings = []
    if not seen.scanned and seen.complete:
        there = (
            f"those that have keys: {likely(namespaces, namespace)}"
            if namespaces
            else "no other has"
        )
        findings.append(
            Finding(
                "warning",
                f"namespace {namespace!r} has no keys; {there}",
                "correct --namespace (SFROUTE_NAMESPACE), or start the pods that report in it",
            )
        )
    for flaw, words in FLAWS.items():
        if flaw not in seen.flaws:
            continue
        found = seen.flaws[flaw]
        names = found.keys if show_uids else list(dict.fromkeys(map(masked_key, found.keys)))
        shown = "" if flaw in _NEVER_NAMED and not show_uids else f", such as {listed(names)}"
        findings.append(
            Finding(
                "error" if flaw in _ERRORS else "warning",
                f"{words}: {found.count:,}{shown}",
                _remedy(flaw, namespace)
                + ("" if show_uids else "; --show-uids names some of them"),
            )
        )
    if seen.refused:
        findings.append(
            Finding(
                "warning",
                f"{counted(seen.refused, 'claim record')} could not be read",
                "give the right to GET on sf:own:*; docs/how-to/secure.md has the whole rule",
            )
        )
    for server, why in seen.unread.items():
        findings.append(
            Finding(
                "error" if why != "NOPERM" else "warning",
                f"the keys of {server} could not all be looked at ({_with_meaning(why)})",
                remedy_of_code(why, "SCAN, and to read keys of each kind"),
            )
        )
    for server, why in seen.missing.items():
        findings.append(
            Finding(
                "error",
                f"nothing is known of the keys of {server}, which does not answer ({why})",
                "bring it back, and run it again",
            )
        )
    if seen.unserved:
        findings.append(
            Finding(
                "error",
                f"nothing is known of the keys of {counted(seen.unserved, 'slot')}, which no server serves",
                remedy_of_code("CLUSTERDOWN", ""),
            )
        )
    if seen.moved:
        findings.append(
            Finding(
                "warning",
                f"not looked at, since moved to another server: {counted(seen.moved, 'key')}",
                "run it again when no slot is on the move",
            )
        )
    total = sum(seen.links.values())
    summary = f"{counted(seen.scanned, 'key')}, {counted(total, 'link')}, {seen.temporary:,} of them temporary"
    if not seen.complete:
        summary = f"not all could be seen: {summary}"
    if seen.claims:
        summary += f", {counted(seen.claims, 'claim')}"
    return Check("keys", summary, tuple(findings))


def _with_meaning(code: str) -> str:
    said = meaning(code)
    return f"{code}: {said}" if said else code


def _remedy(flaw: str, namespace: str) -> str:
    repair = "sfroute doctor --repair"
    return _REMEDIES[flaw].replace(repair, f"{repair} --namespace {shlex.quote(namespace)}")


@dataclass(frozen=True, slots=True)
class View:
    """The pods that were found.

    Attributes:
        namespace: where they are.
        services: service -> its pods.
        unread: what there was in the way of seeing others.
        numbers: service -> its pods in numbers, as metrics have them.
        complete: all primaries were asked, so no service is missing.
        idle: how many of the links are idle; None if that was not asked.
        idle_untold: why a server did not tell it of some; empty if it did.
    """

    namespace: str
    services: Mapping[str, Mapping[int, Pod]]
    unread: tuple[Finding, ...] = ()
    numbers: Mapping[str, PodsSeen] = field(default_factory=dict)
    complete: bool = True
    idle: int | None = None
    idle_untold: str = ""

    def command(self, words: str, service: str) -> str:
        """A command to type. It works on this service whatever the environment says."""
        return f"{at_service(words, service)} --namespace {shlex.quote(self.namespace)}"


def judge_pods(
    view: View, links: Mapping[tuple[str, int], int] | None, pod_timeout: float
) -> list[Check]:
    """Pods that are silent or cannot be read, and links that lead to nobody (None: they were not examined)."""
    services = view.services
    findings: list[Finding] = [*view.unread]
    for service, pods in sorted(services.items()):
        findings += _of_service(view, service, pods, pod_timeout)
    count = sum(len(pods) for pods in services.values())
    summary = f"{counted(count, 'pod')} of {counted(len(services), 'service')}"
    partial = "" if view.complete else "not all could be seen: "
    checks = [
        Check(
            "pods",
            partial + summary + _statuses(view.numbers.values()),
            tuple(findings),
            skipped=not view.complete,
            numbers={service: in_numbers(seen) for service, seen in view.numbers.items()},
        ),
    ]
    if links is None:
        return [*checks, Check("links", "not looked at (--no-keys)", skipped=True)]
    found = _links(view, links, pod_timeout)
    total = counted(sum(links.values()), "link")
    if view.idle is not None:
        total += f", {view.idle:,} of them idle"
    if view.idle:
        found.append(
            Finding(
                "warning",
                f"{counted(view.idle, 'link')} without end, which nobody has used for as long as --idle says",
                "remove them: sfroute prune with the same --idle and a --service",
            )
        )
    if view.idle_untold:
        found.append(
            Finding(
                "warning",
                f"idle links could not all be counted ({_with_meaning(view.idle_untold)})",
                "servers with an LFU maxmemory-policy do not tell it"
                if view.idle_untold == "ERR"
                else remedy_of_code(view.idle_untold, "OBJECT IDLETIME"),
            )
        )
    return [*checks, Check("links", partial + total, tuple(found), skipped=not view.complete)]


def _statuses(numbers: Iterable[PodsSeen]) -> str:
    statuses, routable = Counter[str](), 0
    for seen in numbers:
        statuses.update(seen.statuses)
        routable += seen.routable
    told = ", ".join(f"{count} {status}" for status, count in statuses.items() if count)
    return f" ({told}); {routable} take new users" if told else ""


def _of_service(
    view: View, service: str, pods: Mapping[int, Pod], pod_timeout: float
) -> list[Finding]:
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
            + view.command(f"state set {pod.id} Stopped", service),
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
                f"start one; to see why each does not: {view.command('pods', service)}",
            )
        )
    return findings


def _links(view: View, links: Mapping[tuple[str, int], int], pod_timeout: float) -> list[Finding]:
    services = view.services
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
                    + view.command(f"evacuate {pod}", service),
                )
            )
    findings += _imbalances(view, links, pod_timeout)
    findings += [
        Finding(
            "warning",
            f"{counted(count, 'link')} of {service!r} kept, but no pod of it reports a state",
            "let its pods report (PodAgent): until then nobody can be placed or moved",
        )
        for service, count in lost.items()
    ]
    return findings


def _imbalances(
    view: View, links: Mapping[tuple[str, int], int], pod_timeout: float
) -> list[Finding]:
    """Services whose users are spread more unevenly than chance explains."""
    findings = []
    for service, pods in sorted(view.services.items()):
        rejected = rejections(pods, gone(pods, pod_timeout))
        takers = [pod for pod in pods.values() if pod.id not in rejected]
        share = sum(map(capacity_of, takers))
        total = sum(links.get((service, pod.id), 0) for pod in takers)
        odd = []
        for pod in takers:
            fair, has = total * capacity_of(pod) / share, links.get((service, pod.id), 0)
            apart = abs(has - fair)
            if apart > UNEVEN_SHARE * fair and apart > UNEVEN_DEVIATIONS * fair**0.5:
                odd.append((apart, f"pod {pod.id} has {has:,} instead of about {fair:,.0f}"))
        if odd:
            worst = [words for _, words in sorted(odd, reverse=True)]
            findings.append(
                Finding(
                    "warning",
                    f"the links of {service!r} are spread unevenly: {listed(worst)}",
                    "new users go to the pods with least if these report loads; to move users of the pods that have "
                    "too many: " + view.command("rebalance", service),
                )
            )
    return findings
