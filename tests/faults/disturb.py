"""The faults. Each is a function that does it to a running cluster, and leaves it healthy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import redis

from sfroute.embedded import LocalCluster, LocalClusterError, Node

from .history import Call
from .load import UIDS, group_of, uid_slot
from .network import Network

__all__ = ["Scene", "Skipped"]

_POLL = 0.02
_PATIENCE = 20.0
_SLOTS_AT_ONCE = 32


class Skipped(Exception):
    """This server cannot do that."""


@dataclass(slots=True)
class Scene:
    """What a fault is done to.

    Attributes:
        cluster: the servers.
        random: what chooses.
        network: the proxies between gateways and servers, if there are any.
        calls: what the harness itself did to the links.
        unaffected: groups of uids that the present fault is not to touch.
    """

    cluster: LocalCluster
    random: random.Random
    network: Network | None = None
    calls: list[Call] = field(default_factory=list)
    unaffected: frozenset[int] = frozenset()

    # --- helpers

    def primaries(self) -> list[Node]:
        """Those that serve slots and have a running replica, asked now."""
        self.cluster.refresh()
        return [
            node
            for node in self.cluster.nodes
            if node.alive and node.role == "primary" and node.slots
        ]

    # Any: redis-py's execute_command has no types.
    def clients(self, nodes: Iterable[Node]) -> dict[Node, Any]:
        """A lasting connection to each node."""
        return {node: redis.Redis(host=node.host, port=node.port, protocol=2) for node in nodes}

    def groups_of(self, node: Node) -> frozenset[int]:
        """The groups of uids that a node serves at least one of."""
        return frozenset(
            group_of(uid)
            for group in UIDS
            for uid in group
            if any(uid_slot(uid) in part for part in node.slots)
        )

    def settle(self, seconds: float = 0.3) -> None:
        """Let the load run on for a while."""
        time.sleep(seconds)


def _wait(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > give_up:
            raise LocalClusterError(f"waited {_PATIENCE:g} s for {what}")
        time.sleep(_POLL)


# --- faults that promote nobody by a crash


def nothing(scene: Scene) -> int:
    """For comparison."""
    scene.settle(4)
    return 1


def script_flush(scene: Scene) -> int:
    """Every node forgets every script."""
    for _ in range(10):
        for node in scene.primaries():
            node.commands(("SCRIPT", "FLUSH"))
        scene.settle()
    return 10


def client_kill(scene: Scene) -> int:
    """Every node closes the connections of all its clients."""
    for _ in range(10):
        for node in scene.primaries():
            node.commands(("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
        scene.settle()
    return 10


def client_pause(scene: Scene) -> int:
    """A primary keeps all commands waiting, or all writes, for 400 ms."""
    for mode in ("ALL", "WRITE") * 3:
        node = scene.random.choice(scene.primaries())
        node.commands(("CLIENT", "PAUSE", 400, mode))
        scene.settle(0.6)
    return 6


def flushall(scene: Scene) -> int:
    """Everything is removed, by somebody else."""
    for _ in range(5):
        for node in scene.primaries():
            start = time.monotonic()
            node.commands(("FLUSHALL",))
            end = time.monotonic()
            for group in UIDS:
                for uid in group:
                    if any(uid_slot(uid) in part for part in node.slots):
                        scene.calls.append(Call(uid, "flush", start, end, caller="harness"))
        scene.settle()
    return 5


def graceful_failover(scene: Scene) -> int:
    """A replica takes over, its primary's writes waiting meanwhile."""
    for _ in range(3):
        primary = scene.random.choice(scene.primaries())
        scene.cluster.failover(scene.cluster.replica_of(primary))
        scene.cluster.wait_healthy()
        scene.settle()
    return 3


def _owners(scene: Scene) -> dict[int, Node]:
    owners = {}
    for node in scene.primaries():
        for part in node.slots:
            for slot in part:
                owners[slot] = node
    return owners


def migrate_slots(scene: Scene, count: int = 1000) -> int:
    """Slots with uids under load are moved there and back, key by key (``MIGRATE``)."""
    owners = _owners(scene)
    home = dict(owners)
    primaries = sorted(set(owners.values()), key=lambda node: node.port)
    slots = list(dict.fromkeys(uid_slot(uid) for group in UIDS for uid in group))
    moved = 0
    clients = scene.clients(primaries)
    try:
        while moved < count:
            # Some of one node to another, and back.
            source = scene.random.choice(primaries)
            target = scene.random.choice([node for node in primaries if node is not source])
            here = [slot for slot in slots if home[slot] is source]
            some = scene.random.sample(here, min(len(here), _SLOTS_AT_ONCE))
            for giving, taking in ((source, target), (target, source)):
                _migrate(clients, some, giving, taking)
                moved += len(some)
                # Servers that have not heard of a move yet would undo the next one.
                scene.cluster.wait_healthy()
    finally:
        for client in clients.values():
            client.close()
    return moved


def _migrate(clients: dict[Node, Any], slots: list[int], source: Node, target: Node) -> None:
    giving, taking = clients[source], clients[target]
    _all(taking, [("SETSLOT", slot, "IMPORTING", source.node_id) for slot in slots])
    _all(giving, [("SETSLOT", slot, "MIGRATING", target.node_id) for slot in slots])
    for slot in slots:
        # Few keys at a time, so that calls meet links that are half moved.
        while keys := giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 3):
            giving.execute_command("MIGRATE", *target.address, "", 0, 5000, "KEYS", *keys)
    # The target first, so that at no moment nobody owns a slot.
    for client in (taking, giving, *(c for n, c in clients.items() if n not in (source, target))):
        _all(client, [("SETSLOT", slot, "NODE", target.node_id) for slot in slots])


def _all(client: Any, commands: list[tuple[str | int, ...]]) -> None:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command("CLUSTER", *command)
    pipeline.execute()


def migrate_ranges(scene: Scene, count: int = 1000) -> int:
    """Ranges of slots are moved there and back as a whole (``CLUSTER MIGRATESLOTS`` of Valkey 9)."""
    owners = _owners(scene)
    moved = 0
    primaries = sorted(set(owners.values()), key=lambda node: node.port)
    while moved < count:
        source = scene.random.choice(primaries)
        target = scene.random.choice([node for node in primaries if node is not source])
        part = scene.random.choice([part for part in source.slots if len(part) > 500])
        size = min(250, len(part), count - moved)
        first = scene.random.choice(range(part.start, part.stop - size + 1))
        for giving, taking in ((source, target), (target, source)):
            _migrate_range(giving, taking, range(first, first + size))
            scene.settle()
            moved += size
    scene.cluster.wait_healthy()
    return moved


def _migrate_range(source: Node, target: Node, slots: range) -> None:
    words = ("SLOTSRANGE", slots[0], slots[-1], "NODE", target.node_id)
    try:
        source.commands(("CLUSTER", "MIGRATESLOTS", *words))
    except redis.ResponseError as error:
        if "unknown subcommand" in str(error).lower():
            raise Skipped("the server has no CLUSTER MIGRATESLOTS") from error
        raise

    def done() -> bool:
        (jobs,) = source.commands(("CLUSTER", "GETSLOTMIGRATIONS"))
        assert isinstance(jobs, list)
        latest = jobs[0]
        assert isinstance(latest, list)
        state = latest[latest.index("state") + 1]
        if state in ("failed", "cancelled"):
            raise LocalClusterError(f"a migration {state}: {latest}")
        return state == "success"

    _wait(done, "a migration of slots")


def add_and_remove_node(scene: Scene) -> int:
    """A primary joins, takes over slots with uids, gives them back and is removed."""
    cluster = scene.cluster
    added = cluster.add_node()
    owners = _owners(scene)
    primaries = sorted(set(owners.values()), key=lambda node: node.port)
    clients = scene.clients([*primaries, added])
    slots = list(dict.fromkeys(uid_slot(uid) for group in UIDS for uid in group[:10]))
    try:
        for node in primaries:
            _migrate(clients, [slot for slot in slots if owners[slot] is node], node, added)
        cluster.wait_healthy()
        scene.settle(1)
        for node in primaries:
            _migrate(clients, [slot for slot in slots if owners[slot] is node], added, node)
    finally:
        for client in clients.values():
            client.close()
    scene.settle(0.5)
    for node in cluster.nodes:
        if node.alive and node is not added:
            node.commands(("CLUSTER", "FORGET", added.node_id))
    cluster.kill(added)
    cluster.wait_healthy()
    return 1


def new_addresses(scene: Scene) -> int:
    """All nodes are restarted one by one, each on a new address."""
    cluster = scene.cluster
    nodes = [node for node in cluster.nodes if node.alive]
    for node in nodes:
        cluster.refresh()
        if node.role == "primary":
            cluster.failover(cluster.replica_of(node))
            cluster.wait_healthy()
        cluster.restart(node, new_port=True)
        cluster.wait_healthy()
    return len(nodes)


# --- faults of the network, at the proxies


def partition(scene: Scene) -> int:
    """Nothing passes between all gateways and one node for 0.8 s; connections then go on, or are reset."""
    return _partitions(scene, 6, 0.8)


def long_partition(scene: Scene) -> int:
    """The same for 3 s, which is longer than the heartbeat's bound."""
    return _partitions(scene, 2, 3.0)


def _partitions(scene: Scene, times: int, seconds: float) -> int:
    network = scene.network
    assert network is not None
    for number in range(times):
        proxy = network.choose(scene.random)
        network.do(proxy.hang)
        scene.settle(seconds)
        if number % 2:
            network.do(proxy.reset)
        network.do(proxy.resume)
        scene.settle(0.5)
    return times


def delays(scene: Scene) -> int:
    """What passes between the gateways and one node is up to 60 ms late, each way."""
    network = scene.network
    assert network is not None
    proxy = network.choose(scene.random)
    jitter = random.Random(scene.random.random())
    for flow in (proxy.requests, proxy.replies):
        flow.delay = lambda: jitter.uniform(0, 0.06)
    scene.settle(4)
    for flow in (proxy.requests, proxy.replies):
        flow.delay = None
    return 1


def cut_replies(scene: Scene) -> int:
    """A connection is cut within a reply: the command has happened, its caller is not told."""
    network = scene.network
    assert network is not None
    for _ in range(40):
        proxy = network.choose(scene.random)
        after = scene.random.randrange(1, 12)
        network.do(lambda proxy=proxy, after=after: proxy.replies.cut(after))  # type: ignore[misc]
        scene.settle(0.1)
    return 40


# --- faults after which a replica is promoted without its primary


def kill_primary(scene: Scene, times: int = 20) -> int:
    """``kill -9`` of a primary; its replica takes over, and it comes back, empty, as a replica."""
    cluster = scene.cluster
    promoted: Node | None = None
    for _ in range(times):
        # Not the same pair twice running: a call that waits for one failover and then for the acknowledgement of the
        # node that comes back would meet the next, and two take longer than its deadline of 5 s.
        primary = scene.random.choice([node for node in scene.primaries() if node is not promoted])
        replica = promoted = cluster.replica_of(primary)
        scene.settle(scene.random.uniform(0.1, 0.4))
        cluster.kill(primary)
        # Back before that it would be a primary without data, and its replica would drop its own.
        _wait(lambda node=replica: _is_primary(node), "a promotion")  # type: ignore[misc]
        cluster.restart(primary)
        cluster.wait_healthy()
    return times


def kill_primary_a_few_times(scene: Scene) -> int:
    """The same, a few times."""
    return kill_primary(scene, 4)


def _is_primary(node: Node) -> bool:
    return node.info("replication").get("role") == "master"


def stop_primary(scene: Scene) -> int:
    """``SIGSTOP`` of a primary for 10 s: it keeps its connections and says nothing; then ``SIGCONT``."""
    cluster = scene.cluster
    primary = scene.random.choice(scene.primaries())
    scene.unaffected = frozenset(range(len(UIDS))) - scene.groups_of(primary)
    # By default the servers themselves refuse every slot from the vote that a primary has failed to the promotion of
    # its replica.
    _require_full_coverage(cluster, "no")
    cluster.pause(primary)
    scene.settle(10)
    cluster.resume(primary)
    cluster.wait_healthy()
    _require_full_coverage(cluster, "yes")
    return 1


def _require_full_coverage(cluster: LocalCluster, value: str) -> None:
    for node in cluster.nodes:
        cluster.execute(node, "CONFIG", "SET", "cluster-require-full-coverage", value)


def forced_failover(scene: Scene) -> int:
    """A replica takes over without asking its primary (``CLUSTER FAILOVER FORCE``)."""
    for _ in range(3):
        primary = scene.random.choice(scene.primaries())
        scene.cluster.failover(scene.cluster.replica_of(primary), force=True)
        scene.cluster.wait_healthy()
        scene.settle()
    return 3
