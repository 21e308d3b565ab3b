"""Do the gateways and pods that are connected speak one wire contract? Pure."""

from __future__ import annotations

from collections import Counter

from ..._contract.keys import CONTRACT_VERSION
from ..clients import Clients
from ..common import counted
from .findings import Check, Finding, listed

__all__ = ["judge_fleet"]


def judge_fleet(clients: Clients) -> Check:
    """Settings are for `sfroute gateways`: fleets that differ in them on purpose are well."""
    if clients.unread:
        told = listed([f"{address} ({why})" for address, why in clients.unread.items()])
        return Check("fleet", f"who is connected is not told by {told}", skipped=True)
    contracts = Counter(router.said.contract or "?" for router in clients.routers)
    versions = sorted({router.said.version for router in clients.routers})
    findings = []
    if contracts.keys() - {str(CONTRACT_VERSION)}:
        counts = [f"{contract} at {count}" for contract, count in contracts.most_common()]
        findings.append(
            Finding(
                "warning",
                f"the wire contract differs: version {listed(counts)}; this command has {CONTRACT_VERSION}",
                "finish the upgrade; sfroute gateways says who has which",
            )
        )
    summary = f"{counted(len(clients.routers), 'router')} connected"
    if versions:
        summary += f", of sfroute {listed(versions)}"
    return Check("fleet", summary, tuple(findings))
