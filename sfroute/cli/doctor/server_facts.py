"""What each server says of itself."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..._net.connection import Address
from ..nodes import NODE_ERRORS, Node, Store, code_of

__all__ = ["Clock", "ServerFacts", "gather_servers"]

_CLOCK_SAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a server's clock is ahead of this machine's, in seconds; the true value is within ``error``."""

    offset: float
    error: float


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What one server says of itself.

    Attributes:
        trouble: why it said nothing; None if it did.
        failing: nodes of the cluster that it believes dead.
        clock: None if it could not be read.
        save: its save points, empty for none; None if it may not be asked.
    """

    address: Address
    primary: bool
    slots: Sequence[range] = ()
    trouble: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    cluster_state: str = "ok"
    failing: Sequence[str] = ()
    clock: Clock | None = None
    save: str | None = None

    @property
    def version(self) -> tuple[int, ...]:
        """Such as ``(9, 1, 2)``; Valkey's own number where it is one. Empty if it is not known."""
        text = str(self.info.get("valkey_version") or self.info.get("redis_version") or "")
        return tuple(int(part) for part in re.findall(r"\d+", text)[:3])

    @property
    def product(self) -> str:
        """Such as ``"valkey 9.1.2"``."""
        name = self.info.get("server_name", "redis")
        return f"{name} {'.'.join(map(str, self.version)) or '?'}"


async def gather_servers(store: Store) -> list[ServerFacts]:
    """Ask every server."""

    async def ask(node: Node) -> ServerFacts:
        if node.address in store.hanging:
            why = store.hanging[node.address]
            return ServerFacts(node.address, node.primary, node.slots, trouble=why)
        try:
            await node.ask("PING")
            clock = await _read_clock(node)
        except NODE_ERRORS as error:
            return ServerFacts(node.address, node.primary, node.slots, trouble=code_of(error))
        info = await _or_nothing(node, "INFO")
        state, nodes = "ok", b""
        if store.cluster:
            state = _field(await _or_nothing(node, "CLUSTER", "INFO"), "cluster_state") or "ok"
            nodes = await _or_nothing(node, "CLUSTER", "NODES")
        return ServerFacts(
            node.address,
            node.primary,
            node.slots,
            info=info if isinstance(info, dict) else {},
            cluster_state=state,
            failing=_failing(nodes),
            clock=clock,
            save=_save_points(await _or_nothing(node, "CONFIG", "GET", "save")),
        )

    return [facts for _, facts in await store.of_each(ask) if not isinstance(facts, BaseException)]


async def _read_clock(node: Node) -> Clock | None:
    best: Clock | None = None
    for _ in range(_CLOCK_SAMPLES):
        before = time.time()
        try:
            seconds, microseconds = await node.ask("TIME")
        except NODE_ERRORS:
            return best
        after = time.time()
        # The reading was made at some instant between the two; the quickest answer says the most.
        sample = Clock(
            seconds + microseconds / 1e6 - (before + after) / 2, max(after - before, 0) / 2
        )
        best = sample if best is None or sample.error < best.error else best
    return best


async def _or_nothing(node: Node, *command: str) -> Any:
    """The reply; b"" if it is refused: the rights are another check's business."""
    try:
        return await node.ask(*command)
    except NODE_ERRORS:
        return b""


def _field(reply: Any, name: str) -> str:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
    found = (line.partition(":") for line in text.splitlines())
    return next((value for field, _, value in found if field == name), "")


def _save_points(reply: Any) -> str | None:
    """From the reply to CONFIG GET; None if it was refused."""
    values = list(reply.values()) if isinstance(reply, dict) else reply[1:] if reply else []
    if len(values) != 1:
        return None
    return values[0].decode("utf-8", "replace") if isinstance(values[0], bytes) else str(values[0])


def _failing(nodes: Any) -> list[str]:
    text = nodes.decode("utf-8", "replace") if isinstance(nodes, bytes) else ""
    # id, address@bus port[,host name], flags, ...; "fail?" is a suspicion that a moment's delay can raise.
    lines = [line.split() for line in text.splitlines()]
    return [parts[1].partition("@")[0] for parts in lines if "fail" in parts[2].split(",")]
