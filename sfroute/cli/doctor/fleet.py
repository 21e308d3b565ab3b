"""Do the gateways and pods that are connected speak one wire contract, with the same settings? Pure."""

from __future__ import annotations

from collections import Counter
from typing import Final

from ..._contract.keys import CONTRACT_VERSION
from ..clients import Clients, differing
from ..common import counted, listed
from .findings import Check, Finding

__all__ = ["judge_fleet"]

_SHOWN: Final = 3


def judge_fleet(clients: Clients) -> Check:
    """A warning for each setting in which the routers differ; ``sfroute gateways`` says which of them has which."""
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
    for setting, having in differing(clients.routers).items():
        if setting == "contract":
            continue
        counts = [f"{value} at {counted(len(those), 'router')}" for value, those in having.items()]
        remedy = (
            "finish the upgrade"
            if setting == "version"
            else "give all of them the same RouterConfig, or they answer differently"
        )
        findings.append(
            Finding(
                "warning",
                f"the routers differ in {setting}: {listed(counts, _SHOWN)}",
                f"{remedy}; sfroute gateways says who has which",
            )
        )
    summary = f"{counted(len(clients.routers), 'router')} connected"
    if versions:
        summary += f", of sfroute {listed(versions)}"
    return Check("fleet", summary, tuple(findings))
