"""Each server of the store by itself, for what no router knows: versions, clocks, rights and all keys.

Plain redis-py clients, one per server: they follow no redirection, so that each server speaks for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from .._contract.error_replies import meaning
from .._contract.keys import SLOTS, slot_of
from .._net.causes import what_the_system_said
from .._net.dialer import Address
from .._net.targets import target_of_url
from ..config import RouterConfig
from ..errors import StoreError, StoreUnavailable
from .common import CLIENT_NAME
from .dialed import dialed

__all__ = [
    "MOVING",
    "NODE_ERRORS",
    "REFUSALS",
    "SECONDS",
    "Node",
    "Store",
    "code_of",
    "failed",
    "open_store",
    "trouble_at",
]

_T = TypeVar("_T")

NODE_ERRORS: Final = (RedisError, OSError, TimeoutError)
SECONDS: Final = 2.0
"""For one command, and for one call of the doctor's router. A server that takes longer is a finding."""
MOVING: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})
"""A key's slot has moved, or is being moved."""
REFUSALS: Final = frozenset({"NOPERM", "NOAUTH", "WRONGPASS"})
"""The server answers others: this user, or this password, it does not let in."""
_SCAN_COUNT: Final = 1000
_CODES: Final = {
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "WRONGPASS",
    "AuthenticationWrongNumberOfArgsError": "NOAUTH",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "ReadOnlyError": "READONLY",
    "OutOfMemoryError": "OOM",
    "NoScriptError": "NOSCRIPT",
    "ExecAbortError": "EXECABORT",
    "ClusterCrossSlotError": "CROSSSLOT",
}
"""redis-py's classes for errors whose code it takes off the text."""


def code_of(error: BaseException) -> str:
    """What went wrong, in a word. Texts of servers may echo uids, and texts of clients addresses: neither is shown."""
    code = str(error).partition(" ")[0]
    if code.isupper() and code.isalpha() and not isinstance(error, OSError):
        return code
    # redis-py takes the code off the errors that it has classes for, and has one class for two of them.
    if type(error).__name__ == "AuthenticationError" and "invalid" not in str(error):
        return "NOAUTH"
    # Why a connection could not be made is for the system to say: a name that nobody knows, a certificate.
    if isinstance(error, (OSError, NoConnection)) and (said := what_the_system_said(error)):
        return said
    name = type(error).__name__
    if "max number of clients" in str(error):
        return "MAXCLIENTS"
    if name in _CODES:
        return _CODES[name]
    if isinstance(error, ResponseError):
        return "ERR"
    others = {"ConnectionError": "no connection", "TimeoutError": "no answer in time"}
    return others.get(name) or what_the_system_said(error) or "no usable answer"


def trouble_at(address: Address, error: BaseException) -> str:
    """What was wrong, and where, in the words of the router's own errors (``_net/trouble.py``)."""
    code = code_of(error)
    if isinstance(error, ResponseError) or code.isupper():
        said = meaning(code)
        return f"{address} answers {code}: {said}" if said else f"{address} answers {code}"
    if isinstance(error, (TimeoutError, NoAnswer)):
        return f"{address} does not answer ({code})"
    return f"{address} cannot be reached ({code})"


def failed(what: str, address: Address, error: BaseException) -> StoreError:
    """The error of a command: what could not be done, where, and why."""
    kind = StoreError if code_of(error) in REFUSALS else StoreUnavailable
    return kind(f"{what}: {trouble_at(address, error)}")


@dataclass
class Node:
    """One server.

    Attributes:
        address: where it listens.
        primary: it serves slots, or is the one server there is; others are replicas, or empty.
        client: to ask it.
        slots: the slots it serves.
    """

    address: Address
    primary: bool
    client: redis.asyncio.Redis = field(repr=False)
    slots: list[range] = field(default_factory=list)
    _can_look: bool = field(default=True, repr=False)

    async def ask(self, *command: str | bytes | int) -> Any:
        """Its reply to one command, text as bytes; raises what is in ``NODE_ERRORS``."""
        return await self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def ask_many(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """Its replies in one round trip; an error among them is an element.

        What is read looks no more used than before, where the server can do that (since Redis 7.2).
        """
        if not commands:
            return []
        looking = self._can_look
        async with self.client.pipeline(transaction=False) as pipe:
            if looking:
                pipe.execute_command("CLIENT", "NO-TOUCH", "ON")
            for command in commands:
                pipe.execute_command(*command)
            replies = await pipe.execute(raise_on_error=False)
        if looking:
            self._can_look = not isinstance(replies.pop(0), BaseException)
        return replies

    async def keys(self, pattern: str) -> AsyncGenerator[list[bytes]]:
        """All of its keys that match, some at a time. A key may come twice."""
        cursor: bytes | int = b"0"
        while True:
            cursor, found = _scanned(
                await self.ask("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            )
            yield list(dict.fromkeys(found))
            if int(cursor) == 0:
                return


def _scanned(reply: Any) -> tuple[Any, list[bytes]]:
    return reply[0], list(reply[1])


@dataclass
class Store:
    """The servers there are, by the word of the start nodes.

    Attributes:
        cluster: it is a cluster.
        nodes: primaries first.
        silent: start nodes that cannot be used, with why.
        hanging: those of them that do not answer at all, with why in a word: they need not be waited for again.
    """

    cluster: bool
    nodes: list[Node]
    silent: dict[Address, str] = field(default_factory=dict)
    hanging: dict[Address, str] = field(default_factory=dict)

    @property
    def primaries(self) -> list[Node]:
        """The nodes that have keys of their own."""
        return [node for node in self.nodes if node.primary]

    @property
    def unserved(self) -> int:
        """How many slots no node serves."""
        return SLOTS - len({slot for node in self.nodes for part in node.slots for slot in part})

    def at(self, key: str) -> Node:
        """The primary that has a key. Raises ``StoreUnavailable`` if none is known."""
        slot = slot_of(key)
        for node in self.primaries:
            if any(slot in part for part in node.slots):
                return node
        raise StoreUnavailable(
            f"no node serves slot {slot}: its primary is gone, or a failover is under way"
        )

    async def of_each(
        self, question: Callable[[Node], Awaitable[_T]], *, primaries: bool = False
    ) -> list[tuple[Node, _T | BaseException]]:
        """Ask all of them at once. Returns each answer, or the error."""
        nodes = self.primaries if primaries else self.nodes
        answers = await asyncio.gather(*map(question, nodes), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, NODE_ERRORS):
                raise answer
        return list(zip(nodes, answers, strict=True))

    async def key_count(self) -> int | None:
        """About how many keys there are. None if a server does not say."""
        counts = await self.of_each(lambda node: node.ask("DBSIZE"), primaries=True)
        numbers = [count for _, count in counts if isinstance(count, int)]
        return sum(numbers) if len(numbers) == len(counts) else None


@asynccontextmanager
async def open_store(url: str) -> AsyncGenerator[Store]:
    """The servers behind a URL.

    Raises:
        ConfigError: the URL cannot be used.
        StoreUnavailable: no start node answered.
        StoreError: a start node refused.
    """
    target = target_of_url(url)
    settings = target.wire_settings(RouterConfig())
    clients: dict[Address, redis.asyncio.Redis] = {}

    def client(address: Address) -> redis.asyncio.Redis:
        if address not in clients:
            options = {
                **dialed(settings),
                "host": address.host,
                "port": address.port,
                "protocol": 2,
                "decode_responses": False,
                "socket_timeout": SECONDS,
                "socket_connect_timeout": SECONDS,
                "shown_as": CLIENT_NAME,
                # A server in trouble is what this is here to find.
                "retry": Retry(NoBackoff(), 0),
            }
            pool: redis.asyncio.ConnectionPool = redis.asyncio.ConnectionPool(**options)
            clients[address] = redis.asyncio.Redis(connection_pool=pool)
        return clients[address]

    try:
        if target.cluster:
            asked, reply, silent, hanging = await _answers(target.nodes, client, "CLUSTER", "SLOTS")
            nodes, names = _read_cluster(asked, reply, client)
            nodes += await _others(names, asked, client)
            yield Store(True, nodes, silent, hanging)
        else:
            asked, *_ = await _answers(target.nodes, client, "PING")
            yield Store(False, [Node(asked, True, client(asked), [range(SLOTS)])])
    finally:
        for made in clients.values():
            await made.aclose(close_connection_pool=True)


async def _answers(
    start: Sequence[Address], client: Callable[[Address], redis.asyncio.Redis], *command: str
) -> tuple[Address, Any, dict[Address, str], dict[Address, str]]:
    """The first start node that has answered, its reply, and the ``silent`` and ``hanging`` of a ``Store``."""
    replies = await asyncio.gather(
        *(client(address).execute_command(*command) for address in start),  # type: ignore[no-untyped-call]
        return_exceptions=True,
    )
    answered: tuple[Address, Any] | None = None
    silent: dict[Address, str] = {}
    hanging: dict[Address, str] = {}
    for address, reply in zip(start, replies, strict=True):
        if not isinstance(reply, BaseException):
            answered = answered or (address, reply)
        elif not isinstance(reply, NODE_ERRORS):
            raise reply
        elif "cluster support disabled" in str(reply):
            silent[address] = "is no node of a cluster; for a single node use a redis:// URL"
        elif (code := code_of(reply)) in REFUSALS:
            silent[address] = (
                f"refused {' '.join(command)} ({code}); check user name, password and rights"
            )
        else:
            silent[address] = f"did not answer ({code}); check the address and that the server runs"
            hanging[address] = code
    if answered is None:
        first, why = next(iter(silent.items()))
        kind = StoreUnavailable if first in hanging else StoreError
        raise kind(f"no start node could be used: {first} {why}")
    return *answered, silent, hanging


def _read_cluster(
    asked: Address, reply: Any, client: Callable[[Address], redis.asyncio.Redis]
) -> tuple[list[Node], set[bytes]]:
    """The servers in a reply to CLUSTER SLOTS, and the names of all of them."""
    slots: dict[Address, list[range]] = {}
    replicas: set[Address] = set()
    names: set[bytes] = set()
    for first, last, *nodes in reply:
        names.update(node[2] for node in nodes)
        # A node that does not know its own name sends an empty one: it is the one that was asked.
        primary, *others = (
            Address(host.decode() if host else asked.host, port) for host, port, *_ in nodes
        )
        slots.setdefault(primary, []).append(range(first, last + 1))
        replicas.update(others)
    found = [Node(address, True, client(address), slots[address]) for address in sorted(slots)]
    found += [Node(address, False, client(address)) for address in sorted(replicas - slots.keys())]
    return found, names


async def _others(
    known: set[bytes], asked: Address, client: Callable[[Address], redis.asyncio.Redis]
) -> list[Node]:
    """Servers that CLUSTER SLOTS leaves out: replicas that have received nothing yet, primaries without slots."""
    try:
        reply: Any = await client(asked).execute_command("CLUSTER", "NODES")  # type: ignore[no-untyped-call]
    except NODE_ERRORS:
        return []
    found = []
    for line in reply.splitlines():
        name, address, flags, *_ = line.split()
        # <host>:<port>@<bus port>[,<host name>]
        host, _, port = address.partition(b"@")[0].rpartition(b":")
        if name not in known and not {b"fail", b"noaddr", b"handshake"} & set(flags.split(b",")):
            there = Address(host.decode() or asked.host, int(port))
            found.append(Node(there, False, client(there)))
    return found
