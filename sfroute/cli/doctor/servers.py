"""Do the servers answer, do they serve all slots, what are they, and what time is it there? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ..._contract.keys import SLOTS
from ..._net.connection import Address
from ..common import counted, listed
from .findings import Check, Finding
from .server_facts import ServerFacts

__all__ = ["judge_servers"]

TRACKING_SINCE: Final = (7, 0)
OLDEST: Final = (6, 2)
_SKEW_SECONDS: Final = 0.5
"""Ages go by the clock of the server that has the states. This much changes nothing in practice."""


def judge_servers(
    servers: Sequence[ServerFacts],
    *,
    cluster: bool,
    silent: Mapping[Address, str],
    pod_timeout: float,
) -> list[Check]:
    """All checks of the servers."""
    answering = [server for server in servers if server.trouble is None]
    each = [
        _replicas(servers),
        _versions(answering),
        _clocks(answering, pod_timeout),
        _memory(answering),
        _disks(answering),
    ]
    if len(answering) < len(servers):
        each = [check.of_some() for check in each]
    return [_reachable(servers, silent), _slots(servers, cluster=cluster), *each]


def _reachable(servers: Sequence[ServerFacts], silent: Mapping[Address, str]) -> Check:
    findings = [
        Finding(
            "error" if server.primary else "warning",
            f"the {'primary' if server.primary else 'server'} {server.address} does not answer "
            f"({server.trouble})",
            "see whether it runs, and whether this machine may connect to the address it announces",
        )
        for server in servers
        if server.trouble is not None
    ]
    known = {server.address for server in servers if server.trouble is not None}
    findings += [
        Finding(
            "warning",
            f"the start node {address} {why.partition(';')[0]}",
            "correct the URL, or it will not be found when the others move",
        )
        for address, why in silent.items()
        if address not in known
    ]
    failing = sorted({name for server in servers for name in server.failing})
    if failing:
        findings.append(
            Finding(
                "warning",
                f"the cluster has given up {listed(failing)}",
                "start it again, or take it out of the cluster (CLUSTER FORGET)",
            )
        )
    primaries = sum(server.primary for server in servers)
    return Check(
        "servers",
        f"{counted(len(servers), 'server')}, {primaries} of them primary",
        tuple(findings),
    )


def _slots(servers: Sequence[ServerFacts], *, cluster: bool) -> Check:
    if not cluster:
        return _single(servers)
    answering = [server for server in servers if server.trouble is None]
    # A server whose cluster_state is not ok refuses every command on a key, of the slots that it has, too.
    serving = [server for server in answering if server.cluster_state == "ok"]
    covered, answered, served = map(_slots_of, (servers, answering, serving))
    findings = []
    if silent := len(covered) - len(answered):
        findings.append(
            Finding(
                "error",
                f"{silent} of {SLOTS} slots belong to servers that do not answer; "
                "their users cannot be routed",
                "bring the server back, or let a replica of it take over (CLUSTER FAILOVER TAKEOVER)",
            )
        )
    if missing := SLOTS - len(covered):
        first = next(slot for slot in range(SLOTS) if slot not in covered)
        findings.append(
            Finding(
                "error",
                f"{missing} of {SLOTS} slots are served by no server, slot {first} first; "
                "their users cannot be routed",
                "bring their server back, or give the slots to another (redis-cli --cluster fix)",
            )
        )
    if down := [server.address for server in answering if server.cluster_state != "ok"]:
        findings.append(_down(down, servers))
    return Check("slots", _share(len(served)), tuple(findings))


def _slots_of(servers: Sequence[ServerFacts]) -> set[int]:
    return {slot for server in servers for part in server.slots for slot in part}


def _share(served: int) -> str:
    """How many slots are served, and so about what share of the users fails: uids are spread evenly."""
    told = f"{served} of {SLOTS} slots are served"
    if served == SLOTS:
        return told
    if not served:
        return f"{told}: calls fail for every user"
    percent = 100 * (SLOTS - served) / SLOTS
    return f"{told}: calls fail for {f'about {percent:.0f}' if percent >= 1 else 'less than 1'} % of the users"


def _down(down: Sequence[Address], servers: Sequence[ServerFacts]) -> Finding:
    """Nodes that refuse every command on a key (CLUSTERDOWN)."""
    primaries = [server for server in servers if server.slots]
    answering = sum(server.trouble is None for server in primaries)
    whole = len(_slots_of([server for server in servers if server.trouble is None])) == SLOTS
    told = (
        f"the cluster is down at {listed(down)}: they refuse every command on a key (CLUSTERDOWN)"
    )
    if primaries and 2 * answering <= len(primaries):
        return Finding(
            "error",
            f"{told}, because only {answering} of {counted(len(primaries), 'primary')} answer: it takes a majority",
            "bring the others back; if they are lost, CLUSTER FAILOVER TAKEOVER at a replica of each",
        )
    if not whole:
        return Finding(
            "error",
            f"{told}, because not every slot is served and cluster-require-full-coverage is on",
            "get those slots served; meanwhile CONFIG SET cluster-require-full-coverage no, at every server, "
            "lets the others serve theirs",
        )
    return Finding(
        "error",
        f"{told}. From here all primaries can be reached",
        "wait for some seconds, and run it again; then see CLUSTER NODES there: whom it cannot reach",
    )


def _single(servers: Sequence[ServerFacts]) -> Check:
    nodes = [server.address for server in servers if server.info.get("cluster_enabled") in (1, "1")]
    if nodes:
        finding = Finding(
            "error",
            f"{listed(nodes)} is a node of a cluster: alone it has only some of the keys",
            "begin the URL with redis+cluster:// (or rediss+cluster://)",
        )
        return Check("slots", "the URL is that of a single server", (finding,))
    if all(server.trouble is not None for server in servers):
        return Check("slots", "the server does not answer", skipped=True)
    return Check("slots", "a single server: it has all keys")


def _replicas(servers: Sequence[ServerFacts]) -> Check:
    telling = [server for server in servers if server.trouble is None and server.info]
    alone = [
        server.address
        for server in telling
        if server.primary and not int(server.info.get("connected_slaves", 0))
    ]
    apart = [
        server.address for server in telling if server.info.get("master_link_status", "up") != "up"
    ]
    findings = []
    if alone:
        findings.append(
            Finding(
                "warning",
                f"no replica has {listed(alone)}: if such a primary dies, its links are lost",
                "add a replica to each primary",
            )
        )
    if apart:
        findings.append(
            Finding(
                "warning",
                f"not connected to its primary is {listed(apart)}",
                "see its log; until then it falls behind and should not take over",
            )
        )
    # A node without slots is listed with the replicas, and may be none.
    count = sum(
        not server.primary and server.info.get("role", "slave") == "slave" for server in servers
    )
    return Check("replicas", counted(count, "replica"), tuple(findings))


def _versions(servers: Sequence[ServerFacts]) -> Check:
    known = [server for server in servers if server.version]
    if not known:
        return Check("versions", "no server tells its version (INFO)", skipped=True)
    products: dict[str, list[ServerFacts]] = {}
    for server in sorted(known, key=lambda server: server.product):
        products.setdefault(server.product, []).append(server)
    findings = []
    for product, those in products.items():
        where = listed([server.address for server in those])
        if those[0].version[:2] < OLDEST:
            findings.append(
                Finding(
                    "error",
                    f"{product} at {where} is too old",
                    "upgrade: sfroute is tested with Redis 6.2, 7.0 and Valkey",
                )
            )
        elif those[0].version[:2] < TRACKING_SINCE:
            findings.append(
                Finding(
                    "warning",
                    f"{product} at {where} cannot push what changes: "
                    "answers are cached for half a second only",
                    "upgrade to Redis 7.0 or Valkey",
                )
            )
    if len(products) > 1:
        findings.append(
            Finding(
                "warning",
                f"the servers are of different versions: {', '.join(products)}",
                "finish the upgrade",
            )
        )
    return Check("versions", listed(list(products)), tuple(findings))


def _clocks(servers: Sequence[ServerFacts], pod_timeout: float) -> Check:
    clocks = [(server.clock, server) for server in servers if server.clock is not None]
    if not clocks:
        return Check("clocks", "no server tells the time (TIME)", skipped=True)
    (slow, slowest), (fast, fastest) = (
        pick(clocks, key=lambda pair: pair[0].offset) for pick in (min, max)
    )
    skew = fast.offset - slow.offset
    findings = []
    # Only what cannot be the network's doing.
    if skew - fast.error - slow.error > _SKEW_SECONDS:
        findings.append(
            Finding(
                "error" if skew >= pod_timeout / 2 else "warning",
                f"the clock of {fastest.address} is {skew:.1f} s ahead of that of {slowest.address}: "
                "after a failover heartbeats look that much older, or younger",
                "let NTP set the clocks of the servers",
            )
        )
    return Check(
        "clocks",
        f"{counted(len(clocks), 'clock')} within {max(skew, 0) * 1000:.0f} ms",
        tuple(findings),
    )


def _memory(servers: Sequence[ServerFacts]) -> Check:
    findings = []
    known = [server for server in servers if "maxmemory" in server.info]
    if not known:
        return Check("memory", "no server tells its limits (INFO)", skipped=True)
    for server in known:
        policy = str(server.info.get("maxmemory_policy", "noeviction"))
        limit = int(server.info["maxmemory"])
        if limit and policy != "noeviction":
            evicted = int(server.info.get("evicted_keys", 0))
            # The others throw away only what has an expiry.
            every = policy.startswith("allkeys")
            findings.append(
                Finding(
                    "error" if every else "warning",
                    f"{server.address} throws {'keys' if every else 'temporary links'} away when its memory is full "
                    f"({policy}; {counted(evicted, 'key')} so far): users lose their pods",
                    "CONFIG SET maxmemory-policy noeviction, and give it the memory it needs",
                )
            )
    used = sum(int(server.info.get("used_memory", 0)) for server in known if server.primary)
    return Check("memory", f"{used / 2**20:,.0f} MiB on the primaries", tuple(findings))


def _disks(servers: Sequence[ServerFacts]) -> Check:
    """What acknowledged writes survive: see docs/explanation/guarantees.md."""
    known = [server for server in servers if server.primary and "aof_enabled" in server.info]
    if not known:
        return Check("disks", "no server tells what it keeps (INFO)", skipped=True)
    bare: dict[str, list[Address]] = {}
    for server in known:
        if not int(server.info["aof_enabled"]):
            bare.setdefault(_comes_back(server.save), []).append(server.address)
    findings = [
        Finding(
            "warning",
            f"{listed(addresses)} writes no append-only file. Restarted before a replica takes over, a primary comes "
            f"back {how}, and its replicas copy that: acknowledged writes are lost",
            "CONFIG SET appendonly yes; or let its supervisor, which cannot be seen from here, wait for longer than "
            "cluster-node-timeout before it starts it again",
        )
        for how, addresses in bare.items()
    ]
    kept = sum(int(server.info["aof_enabled"]) for server in known)
    write = "writes" if kept == 1 else "write"
    return Check(
        "disks",
        f"{kept} of {counted(len(known), 'primary')} {write} an append-only file",
        tuple(findings),
    )


def _comes_back(save: str | None) -> str:
    if save is None:
        return "empty or as of its last snapshot (which, CONFIG GET would tell)"
    return f"as of its last snapshot (save {save})" if save else "empty"
