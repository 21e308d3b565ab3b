"""What lookups, writes and pushes cost a primary, by its own account of its processor time and memory."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator, Sequence

import hiredis
from contenders import NAMESPACE, SCRIPT, SERVICE, key_of
from fleet_model import Constants

from sfroute._contract.keys import link_prefix
from sfroute.embedded import LocalCluster, Node

__all__ = ["READERS", "Reader", "cpu_of", "measure_constants"]

READERS, HOT_KEYS = 1000, 100
"""Who has read a link that changes, and how many such links are changed."""
PREFIX = link_prefix(NAMESPACE, "")[:-1]
"""Of the keys of all links."""


class Reader:
    """A tracked connection, as a lane's, without anything behind it."""

    def __init__(self, node: Node, *, tracked: bool, prefix: str | None = None) -> None:
        self._socket = socket.create_connection(node.address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = hiredis.Reader()
        self.pushes = 0
        # Everybody's keys, those whose clients have read them, or none.
        broadcast = () if prefix is None else ("BCAST", "PREFIX", prefix)
        self.send(
            [("HELLO", "3")] + ([("CLIENT", "TRACKING", "ON", *broadcast)] if tracked else [])
        )

    def send(self, commands: Sequence[tuple[str | bytes, ...]]) -> None:
        """Send all, wait for all replies."""
        self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))  # type: ignore[arg-type]
        self.wait(len(commands))

    def wait(self, replies: int = 0, pushes: int = 0) -> None:
        """Read until so many more replies and changed keys have come."""
        goal = self.pushes + pushes
        while replies > 0 or self.pushes < goal:
            self._parser.feed(self._socket.recv(65536))
            while (reply := self._parser.gets()) is not False:
                if isinstance(reply, hiredis.PushNotification):
                    # By prefix one message tells of all keys that have changed in a turn of the server's loop.
                    self.pushes += len(reply[1])
                else:
                    replies -= 1

    def close(self) -> None:
        """End it."""
        self._socket.close()


def cpu_of(node: Node) -> float:
    """Microseconds that the server has spent."""
    found = node.info("cpu")
    return 1e6 * (float(found["used_cpu_user"]) + float(found["used_cpu_sys"]))


def _memory(node: Node) -> float:
    return float(node.info("memory")["used_memory_dataset"])


def _look_ups(uids: Sequence[str], together: int) -> Iterator[list[tuple[str, ...]]]:
    for start in range(0, len(uids), together):
        yield [
            (name, key_of(uid))
            for uid in uids[start : start + together]
            for name in ("GET", "PTTL")
        ]


def measure_constants(scale: float = 1.0) -> Constants:
    """On one primary, by its own account of its CPU time and memory."""
    count = int(20_000 * scale)
    allow_connections(READERS)
    uids = [f"user-{number:015d}" for number in range(count)]
    with LocalCluster(1, 0) as cluster:
        node = cluster.nodes[0]
        writer = Reader(node, tracked=False)
        for start in range(0, count, 500):
            writer.send([("SET", key_of(uid), "1") for uid in uids[start : start + 500]])

        def spent(reader: Reader, together: int, sample: Sequence[str]) -> float:
            began = cpu_of(node)
            for batch in _look_ups(sample, together):
                reader.send(batch)
            return (cpu_of(node) - began) / len(sample)

        plain = Reader(node, tracked=False)
        without = spent(plain, 50, uids)
        one = Reader(node, tracked=True)
        began = _memory(node)
        batched = spent(one, 50, uids)
        per_first = (_memory(node) - began) / count
        alone = spent(Reader(node, tracked=True), 1, uids[: count // 4])
        readers = [Reader(node, tracked=True) for _ in range(20)]
        sample = uids[: count // 10]
        began = _memory(node)
        for reader in readers:
            spent(reader, 50, sample)
        per_pair = (_memory(node) - began) / (len(sample) * len(readers))
        for reader in readers:
            reader.close()
        write = _cost_of_a_write(node, writer, sample)
        # Never scaled: what a push costs depends on the crowd, and on how many writes come at once.
        by_key = _costs_of_a_push(node, writer, uids[:HOT_KEYS], READERS, None)
        by_prefix = _costs_of_a_push(node, writer, uids[:HOT_KEYS], READERS, PREFIX)
    return Constants(
        look_up=alone,
        look_up_batched=batched,
        untracked=without,
        write=write,
        push=by_key[0],
        push_in_bursts=by_key[1],
        push_broadcast=by_prefix[0],
        push_broadcast_in_bursts=by_prefix[1],
        key=max(0.0, per_first - per_pair),
        pair=per_pair,
    )


def _costs_of_a_push(
    node: Node, writer: Reader, uids: Sequence[str], crowd: int, prefix: str | None
) -> tuple[float, float]:
    """To a crowd of readers: of a write that comes alone, and of those that come all at once."""
    readers = [Reader(node, tracked=True, prefix=prefix) for _ in range(crowd)]
    writes = [("SET", key_of(uid), "2") for uid in uids]

    def read() -> None:
        for reader in readers:
            reader.send([("GET", key_of(uid)) for uid in uids])

    def spent(batches: Sequence[Sequence[tuple[str, ...]]]) -> float:
        began = cpu_of(node)
        for batch in batches:
            writer.send(batch)
        return cpu_of(node) - began

    def told(batches: Sequence[Sequence[tuple[str, ...]]]) -> float:
        # The read that asks for the time comes after the pushes have left; so does each write after those before it.
        read()
        found = spent(batches)
        for reader in readers:
            reader.wait(pushes=len(uids))
        return found

    alone, together = [[write] for write in writes], [writes]
    # Without anybody to tell, which is what a write itself costs and the question for the time.
    try:
        with_alone, with_burst = told(alone), told(together)
    finally:
        for reader in readers:
            reader.close()
    spent(together)  # forgets who has read
    pairs = len(uids) * crowd
    without_alone, without_burst = spent(alone), spent(together)
    return (
        max(0.0, with_alone - without_alone) / pairs,
        max(0.0, with_burst - without_burst) / pairs,
    )


def allow_connections(count: int) -> None:
    """Let this process, and the servers that it starts, hold so many and some more; no more than it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 200
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _cost_of_a_write(node: Node, writer: Reader, uids: Sequence[str]) -> float:
    writer.send([("SCRIPT", "LOAD", SCRIPT.source)])
    began = cpu_of(node)
    for number, uid in enumerate(uids):
        keys = (
            key_of(uid),
            link_prefix(NAMESPACE, uid),
            f"sf:op:{{{NAMESPACE}:lk:{uid}}}:{number:x}",
        )
        writer.send([("EVALSHA", SCRIPT.sha, "3", *keys, SERVICE, "4", "-1", "11000")])
    return (cpu_of(node) - began) / len(uids)
