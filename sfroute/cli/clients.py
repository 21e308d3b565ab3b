"""Who is connected to the servers, by their CLIENT LIST: routers, which introduce themselves, and other programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .._contract.introduction import AGENT_NAME, Introduction, read_introduction
from .._net.dialer import Address
from .common import CLIENT_NAME
from .nodes import Node, Store, code_of

__all__ = [
    "Clients",
    "ConnectedRouter",
    "Differences",
    "Program",
    "differing",
    "gather_clients",
    "odd_in",
]

Differences = dict[str, dict[str, list[str]]]
"""Setting -> value -> the routers that have it."""
UNTOLD: Final = "?"
"""What a router of another version does not say."""


@dataclass(slots=True)
class ConnectedRouter:
    """A router, by its connections to all servers.

    Attributes:
        said: what it says of itself.
        hosts: where its connections come from.
        connections: how many it has.
        servers: the servers that it is connected to.
        tracked: the servers that push to it what changes.
        age: seconds since its oldest connection was made.
        idle: seconds since a server heard of it.
        unread: bytes that servers keep for it because it does not read them.
        entries: how many answers its cache has; None: it has not said.
        lag_ms: the longest that a heartbeat of a lane took lately, milliseconds; None: it has not said.
    """

    said: Introduction
    hosts: set[str] = field(default_factory=set)
    connections: int = 0
    servers: set[str] = field(default_factory=set)
    tracked: set[str] = field(default_factory=set)
    age: int = 0
    idle: int | None = None
    unread: int = 0
    entries: int | None = None
    lag_ms: int | None = None

    @property
    def values(self) -> dict[str, str]:
        """What is compared between routers."""
        settings = {} if self.places_nobody else self.said.settings
        return {"version": self.said.version, "contract": self.said.contract, **settings}

    @property
    def places_nobody(self) -> bool:
        """It is that of ``sfroute agent``: it has the defaults, whatever the gateways have, and needs no others."""
        return self.said.name == AGENT_NAME

    def add(self, server: str, said: Introduction, fields: Mapping[str, str]) -> None:
        """One of its connections."""
        self.hosts.add(_host(fields))
        self.connections += 1
        self.servers.add(server)
        if "t" in fields.get("flags", ""):
            self.tracked.add(server)
        self.age = max(self.age, _number(fields, "age"))
        idle = _number(fields, "idle")
        self.idle = idle if self.idle is None else min(self.idle, idle)
        self.unread += _number(fields, "omem")
        self.entries = _greater(self.entries, said.entries)
        self.lag_ms = _greater(self.lag_ms, said.lag_ms)


@dataclass(frozen=True, slots=True)
class Program:
    """Connections that introduce no router: programs in other languages, other clients, older versions.

    Attributes:
        name: the connections' name, and ``library`` that of the client library, as they said; empty if they did not.
    """

    name: str
    library: str


@dataclass(slots=True)
class Clients:
    """All who are connected.

    Attributes:
        routers: in order of name, host and age.
        others: how many connections each of the other programs has, and from where.
        unread: the servers that did not tell, and why in a word.
    """

    routers: Sequence[ConnectedRouter] = ()
    others: dict[Program, Counter[str]] = field(default_factory=dict)
    unread: dict[Address, str] = field(default_factory=dict)


async def gather_clients(store: Store) -> Clients:
    """Ask every server. This command's own connections, and those of others like it, are left out."""

    async def ask(node: Node) -> Any:
        # Replicas of the server have connections, too, and no name.
        return await node.ask("CLIENT", "LIST", "TYPE", "NORMAL")

    found = Clients()
    routers: dict[str, ConnectedRouter] = {}
    for node, reply in await store.of_each(ask):
        if isinstance(reply, BaseException):
            found.unread[node.address] = code_of(reply)
            continue
        for fields in _read(reply):
            name = fields.get("name", "")
            said = read_introduction(name)
            if CLIENT_NAME in (name, said.name if said is not None else ""):
                continue
            if said is not None:
                router = routers.setdefault(said.router, ConnectedRouter(said))
                router.add(str(node.address), said, fields)
            else:
                program = Program(name, _library(fields))
                found.others.setdefault(program, Counter())[_host(fields)] += 1
    found.routers = sorted(
        routers.values(),
        key=lambda one: (one.said.name, sorted(one.hosts), -one.age, one.said.router),
    )
    return found


def _read(reply: Any) -> Iterable[dict[str, str]]:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    for line in text.splitlines():
        # Servers accept no blank in a name.
        parts = (part.partition("=") for part in line.split(" "))
        yield {name: value for name, _, value in parts}


def _library(fields: Mapping[str, str]) -> str:
    return "-".join(part for part in (fields.get("lib-name"), fields.get("lib-ver")) if part)


def _host(fields: Mapping[str, str]) -> str:
    return fields.get("addr", "").rpartition(":")[0]


def _number(fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if text.isdecimal() else 0


def _greater(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)


def differing(routers: Sequence[ConnectedRouter]) -> Differences:
    """What the routers do not agree on, each value with the routers that have it: the most frequent first.

    The one rule of ``sfroute gateways`` and ``sfroute doctor``.
    """
    found: Differences = {}
    for name in dict.fromkeys(name for router in routers for name in router.values):
        having: dict[str, list[str]] = {}
        for router in routers:
            values = router.values
            if name in values or not router.places_nobody:
                having.setdefault(values.get(name, UNTOLD), []).append(router.said.router)
        if len(having) > 1:
            found[name] = dict(sorted(having.items(), key=lambda pair: (-len(pair[1]), pair[0])))
    return found


def odd_in(router: ConnectedRouter, differences: Differences) -> list[str]:
    """In what it is not like most. Where there is no most, all are odd."""
    odd = []
    for name, having in differences.items():
        first, second, *_ = having.values()
        alone = len(first) > len(second)
        if not alone or router.said.router not in first:
            odd.append(name)
    return odd
