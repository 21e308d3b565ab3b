"""What one node says about its cluster: the replies of CLUSTER NODES and INFO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ._node import Reply

__all__ = ["Peer", "parse_nodes", "replicas_online"]


class Peer(NamedTuple):
    """One line: a node as the answering node sees it."""

    node_id: str
    flags: frozenset[str]
    primary_id: str | None
    epoch: int
    connected: bool
    slots: tuple[range, ...]

    @property
    def usable(self) -> bool:
        """Known, linked and not suspected to have failed."""
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
            # In brackets stand slots that are being moved; their owner lists them plainly too.
            tuple(_slot_range(part) for part in slots if not part.startswith("[")),
        )
    return peers


def _slot_range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def replicas_online(replication: Mapping[str, str]) -> dict[int, bool]:
    """Port of each replica that has its primary's data -> it has acknowledged something. From INFO replication.

    A replica that has just loaded the data is sent nothing before its first acknowledgement, for which it may take a
    second; a WAIT waits as long.
    """
    online: dict[int, bool] = {}
    for name, value in replication.items():
        if name.startswith("slave") and name[5:].isdigit():
            replica = dict(part.split("=", 1) for part in value.split(","))
            if replica["state"] == "online":
                port = int(replica["port"])
                # One that has come back may be listed twice for a while.
                online[port] = online.get(port, True) and int(replica["offset"]) > 0
    return online
