"""What servers were asked, for tests that say how much that may be."""

from __future__ import annotations

from collections import Counter

from sfroute.embedded import LocalCluster

HOUSEKEEPING = frozenset({"ping", "info", "replconf", "psync", "hello", "auth", "select", "config"})


def commands(cluster: LocalCluster) -> Counter[str]:
    """Command -> how often the primaries have run it, without what routers and servers send by themselves.

    Replicas run what is replicated, the removal of expired keys of other tests included.
    """
    calls: Counter[str] = Counter()
    for node in cluster.nodes:
        if node.role != "primary":
            continue
        for name, stats in node.info("commandstats").items():
            command = name.removeprefix("cmdstat_")
            if command not in HOUSEKEEPING and command.partition("|")[0] not in {
                "cluster",
                "client",
            }:
                calls[command] += int(stats.partition("calls=")[2].partition(",")[0])
    return calls


def reads(cluster: LocalCluster) -> int:
    """How often the servers have read from a socket."""
    return sum(int(node.info("stats")["total_reads_processed"]) for node in cluster.nodes)
