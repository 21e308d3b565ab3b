"""Parses one node's view of its cluster: the replies to CLUSTER NODES and INFO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ._node import Reply

__all__ = ["Peer", "parse_nodes", "replicas_online"]


class Peer(NamedTuple):
    """One line of CLUSTER NODES: a node, as the answering node sees it."""

    node_id: str
    flags: frozenset[str]
    primary_id: str | None
    epoch: int
    connected: bool
    slots: tuple[range, ...]

    @property
    def usable(self) -> bool:
        """True if the node is known, linked and not suspected to have failed."""
        bad = {"fail", "fail?", "handshake", "noaddr"}
        return (self.connected or "myself" in self.flags) and not self.flags & bad


def parse_nodes(reply: Reply) -> dict[str, Peer]:
    """Node id -> peer.

    Source: https://valkey.io/commands/cluster-nodes/ (id, address, flags, primary, ping, pong, epoch, link, slots).
    """
    assert isinstance(reply, str)
    peers = {}
    for line in reply.splitlines():
        node_id, _, flags, primary, _, _, epoch, link, *slots = line.split()
        peers[node_id] = Peer(
            node_id,
            frozenset(flags.split(",")),
            None if primary == "-" else primary,
            int(epoch),
            link == "connected",
            # Slots in brackets are being moved. Their owner also lists them without brackets.
            tuple(_slot_range(part) for part in slots if not part.startswith("[")),
        )
    return peers


def _slot_range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def replicas_online(replication: Mapping[str, str]) -> dict[int, bool]:
    """Port -> True if the replica has acknowledged, for each replica that has its primary's data.

    From INFO replication. A replica that has just loaded the data is sent nothing before its first acknowledgement,
    which may take a second. A WAIT takes as long.
    """
    online: dict[int, bool] = {}
    for name, value in replication.items():
        if name.startswith("slave") and name[5:].isdigit():
            replica = dict(part.split("=", 1) for part in value.split(","))
            if replica["state"] == "online":
                port = int(replica["port"])
                # A replica that reconnected may be listed twice for a while.
                online[port] = online.get(port, True) and int(replica["offset"]) > 0
    return online
