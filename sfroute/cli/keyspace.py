"""Examines every key of a namespace: the links, the claims, and what no program should have written.

Nothing is changed, and nothing is kept of what is in order but counts, however many keys there are.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .._contract.keys import (
    SLOTS,
    LinkKey,
    check_link_names,
    check_service_names,
    claim_key,
    link_key,
    link_prefix,
    parse_link_key,
)
from ..errors import InvalidArgument, StoreUnavailable
from .claims import CLAIM_FLAWS, REPAIRED, Flawed, look_at_claims, pod_of
from .nodes import MOVING, Node, Store, code_of, failed

__all__ = [
    "FLAWS",
    "MAX_REPAIRS",
    "Examples",
    "Keyspace",
    "Names",
    "count_links",
    "judge_hash",
    "judge_link",
    "look_at_keys",
    "look_for_names",
]

FLAWS: Final = {
    "type": "keys of the wrong type",
    "value": "keys that hold something that is no pod id",
    "unlisted": "persistent links that the uid's hash does not list",
    "differs": "persistent links for which the uid's hash names another pod",
    "temporary": "temporary links that the uid's hash lists as persistent",
    "orphan": "entries of a uid's hash without a link",
    "unlinked": "orphaned claims: the uid has no link",
    "elsewhere": "orphaned claims: the uid's link leads to another pod",
    "record": "claim records that hold something else",
    "name": "keys whose uid or service no call accepts ('{', '}', control characters, over 512 bytes or not UTF-8)",
}
MAX_REPAIRS: Final = 100_000
"""The most flaws that are remembered for one repair."""
_EXAMPLES: Final = 5
_NAMES: Final = 100
"""The most namespaces, and services of one, that are told apart."""
_UNCOUNTED: Final = "the links could not be counted"
_SECOND_LOOK_SECONDS: Final = 0.2
"""A write between two of our commands looks like a flaw, but only for a moment."""

Progress = Callable[[int], None]


@dataclass
class Examples:
    """A count, and a few of the keys."""

    count: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, key: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.keys) < _EXAMPLES and key not in self.keys:
            self.keys.append(key)


@dataclass
class Keyspace:
    """What the keys of a namespace hold.

    Attributes:
        scanned: keys looked at.
        links: (service, pod) -> links.
        temporary: how many of the links have an expiry.
        idle: persistent links that nobody has read or written for as long as was asked.
        idle_untold: why the server did not tell that of some; empty if it did.
        services: services whose pods have reported states.
        flaws: one of ``FLAWS`` -> where.
        claims: how many claims are held.
        refused: claim records that the URL's user may not read (NOPERM).
        repairable: what a repair mends; as many as are kept.
        moved: keys that went to another server meanwhile, and were not looked at.
        unread: server -> why some or all of its keys could not be looked at.
        missing: primary that does not answer -> why; of its keys nothing is known.
        unserved: how many slots no server serves; of their keys nothing is known.
    """

    scanned: int = 0
    links: Counter[tuple[str, int]] = field(default_factory=Counter)
    temporary: int = 0
    idle: int = 0
    idle_untold: str = ""
    services: set[str] = field(default_factory=set)
    flaws: dict[str, Examples] = field(default_factory=dict)
    claims: int = 0
    refused: int = 0
    repairable: list[Flawed] = field(default_factory=list)
    moved: int = 0
    unread: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unserved: int = 0

    @property
    def complete(self) -> bool:
        """True if every key was seen."""
        return not (self.unread or self.missing or self.moved or self.unserved)

    def not_seen(self, node: Node, error: BaseException) -> None:
        """Note why nothing is known of a key that is there."""
        code = code_of(error)
        if code in MOVING:
            self.moved += 1
        else:
            self.unread[str(node.address)] = code

    def flawed(self, flaw: str, key: str) -> None:
        """Count a key with this flaw."""
        self.flaws.setdefault(flaw, Examples()).add(key)

    def disagrees(self, namespace: str, found: Flawed) -> None:
        """Count a link or claim whose keys do not agree."""
        key = claim_key if found.flaw in CLAIM_FLAWS or found.flaw == "record" else link_key
        self.flawed(found.flaw, key(namespace, found.uid, found.service))
        if found.flaw in REPAIRED and len(self.repairable) < MAX_REPAIRS:
            self.repairable.append(found)


# --- what is in order; pure


def judge_link(value: Any, ttl_ms: Any, in_hash: Any) -> str | None:
    """The flaw of a link, from the replies to GET, PTTL and the HGET of its entry in the uid's hash; None if none."""
    if isinstance(value, BaseException):
        return "type" if code_of(value) == "WRONGTYPE" else None
    if value is None:
        return None  # it has gone meanwhile
    if pod_of(value) is None:
        return "value"
    if isinstance(in_hash, BaseException):
        return None  # a flaw of the hash, which has its own turn
    if ttl_ms == -1:
        if in_hash is None:
            return "unlisted"
        return "differs" if in_hash != value else None
    return "temporary" if in_hash is not None and ttl_ms >= 0 else None


def judge_hash(link: Any) -> str | None:
    """The flaw of an entry in a uid's hash, from the reply to GET of its link; others are found with the link."""
    return "orphan" if link is None else None


# --- looking


async def look_at_keys(
    store: Store, namespace: str, progress: Progress, idle: float | None = None
) -> Keyspace:
    """Examine all keys of a namespace. ``progress`` is told how many more there were.

    ``idle``: the seconds after which a persistent link is counted as idle.
    """
    seen = Keyspace()

    async def look(node: Node) -> None:
        # Links, states and claim records. Operation records live for minutes at most.
        ours = tuple(f"{head}{{{namespace}:".encode() for head in ("sf:", "sf:own:"))
        async for keys in node.keys(f"sf:*{{{_literal(namespace)}:*"):
            mine = [key for key in keys if key.startswith(ours)]
            await _look_at(node, namespace, mine, seen, idle)
            seen.scanned += len(mine)
            progress(len(mine))

    for node, outcome in await store.of_each(look, primaries=True):
        if isinstance(outcome, BaseException):
            seen.not_seen(node, outcome)
    return seen


@dataclass
class Names:
    """Namespaces that have states or links, and the services of each; a sample, if there are many.

    Attributes:
        services: namespace -> services.
        complete: every primary was asked for all of its keys, and told.
    """

    services: dict[str, set[str]] = field(default_factory=dict)
    complete: bool = True

    def add(self, key: bytes) -> None:
        """Note the names in a key that begins with ``sf:{``."""
        name, colon, rest = key[4:].decode("utf-8", "replace").partition(":")
        kind, colon, rest = rest.partition(":") if colon else ("", "", "")
        if not name or not colon or kind not in ("state", "workload", "lk"):
            return
        known = self.services.setdefault(name, set())
        inside, _, outside = rest.partition("}")
        service = outside if kind == "lk" else inside
        if service and len(known) < _NAMES:
            known.add(service)


async def look_for_names(store: Store, names: Names) -> None:
    """Fill in which namespaces and services there are."""

    async def look(node: Node) -> None:
        async for keys in node.keys("sf:{*:*"):
            for key in keys:
                names.add(key)
            if len(names.services) >= _NAMES:
                names.complete = False
                return

    for _, outcome in await store.of_each(look, primaries=True):
        if isinstance(outcome, BaseException):
            names.complete = False


async def _look_at(
    node: Node, namespace: str, keys: Sequence[bytes], seen: Keyspace, idle: float | None
) -> None:
    links: list[tuple[str, str]] = []
    hashes: list[str] = []
    claims: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for raw in keys:
        own = raw.startswith(b"sf:own:")
        key = b"sf:" + raw.removeprefix(b"sf:own:") if own else raw
        parsed = parse_link_key(key)
        kind, _, name = key.decode("utf-8", "replace")[len(f"sf:{{{namespace}:") :].partition(":")
        if not _is_name(parsed, key, kind, name):
            seen.flawed("name", raw.decode("utf-8", "backslashreplace"))
        elif parsed is not None and parsed.service is not None:
            (claims if own else links).append((parsed.uid, parsed.service))
        elif parsed is not None:
            hashes.append(parsed.uid)
        elif kind in ("state", "workload"):
            others.append((kind, name.removesuffix("}")))
    if idle is not None:
        # Before they are read.
        await _count_idle(node, namespace, links, seen, idle)
    await _look_at_links(node, namespace, links, seen)
    await _look_at_hashes(node, namespace, hashes, seen)
    await _look_at_claims(node, namespace, claims, seen)
    await _look_at_others(node, namespace, others, seen)


def _is_name(parsed: LinkKey | None, key: bytes, kind: str, name: str) -> bool:
    """False for a key whose names programs in other languages can write, and ours refuse."""
    try:
        key.decode()
        if parsed is not None:
            check_link_names(parsed.namespace, parsed.uid, parsed.service or "any")
        elif kind in ("state", "workload"):
            check_service_names("any", name.removesuffix("}"))
            return name.endswith("}")
        return parsed is not None or kind != "lk"
    except (InvalidArgument, UnicodeDecodeError):
        return False


async def _look_at_claims(
    node: Node, namespace: str, claims: Sequence[tuple[str, str]], seen: Keyspace
) -> None:
    held, errors, flawed = await look_at_claims(node, namespace, claims)
    seen.claims += held
    for error in errors:
        if code_of(error) == "NOPERM":
            seen.refused += 1
        else:
            seen.not_seen(node, error)
    for each in flawed:
        seen.disagrees(namespace, each)


async def _count_idle(
    node: Node, namespace: str, links: Sequence[tuple[str, str]], seen: Keyspace, idle: float
) -> None:
    keys = [link_key(namespace, uid, service) for uid, service in links]
    told = await node.ask_many([("OBJECT", "IDLETIME", key) for key in keys])
    times = await node.ask_many([("PTTL", key) for key in keys])
    for seconds, ttl_ms in zip(told, times, strict=True):
        if isinstance(seconds, BaseException):
            seen.idle_untold = code_of(seconds)
        elif seconds is not None:
            seen.idle += seconds >= idle and ttl_ms == -1


async def _ask_links(
    node: Node, namespace: str, links: Sequence[tuple[str, str]]
) -> list[tuple[Any, Any, Any]]:
    replies = await node.ask_many(
        [
            command
            for uid, service in links
            for command in (
                ("GET", link_key(namespace, uid, service)),
                ("PTTL", link_key(namespace, uid, service)),
                ("HGET", link_prefix(namespace, uid), service),
            )
        ]
    )
    return list(zip(replies[::3], replies[1::3], replies[2::3], strict=True))


async def _look_at_links(
    node: Node, namespace: str, links: Sequence[tuple[str, str]], seen: Keyspace
) -> None:
    suspects: list[tuple[tuple[str, str], tuple[Any, Any, Any]]] = []
    for link, answer in zip(links, await _ask_links(node, namespace, links), strict=True):
        value, ttl_ms, in_hash = answer
        if isinstance(value, BaseException) and code_of(value) != "WRONGTYPE":
            seen.not_seen(node, value)
        elif judge_link(value, ttl_ms, in_hash) is not None:
            suspects.append((link, answer))
        if (pod := pod_of(value)) is not None:
            seen.links[link[1], pod] += 1
            seen.temporary += isinstance(ttl_ms, int) and ttl_ms >= 0
    if not suspects:
        return
    await asyncio.sleep(_SECOND_LOOK_SECONDS)
    again = await _ask_links(node, namespace, [link for link, _ in suspects])
    for (link, before), after in zip(suspects, again, strict=True):
        flaw = judge_link(*after)
        if flaw is not None and flaw == judge_link(*before):
            seen.disagrees(namespace, Flawed(flaw, *link))


async def _look_at_hashes(node: Node, namespace: str, uids: Sequence[str], seen: Keyspace) -> None:
    replies = await node.ask_many([("HGETALL", link_prefix(namespace, uid)) for uid in uids])
    entries: list[tuple[str, str]] = []
    for uid, reply in zip(uids, replies, strict=True):
        if isinstance(reply, BaseException):
            if code_of(reply) == "WRONGTYPE":
                seen.flawed("type", link_prefix(namespace, uid))
            else:
                seen.not_seen(node, reply)
            continue
        for service, value in reply.items():
            if pod_of(value) is None:
                seen.flawed("value", link_prefix(namespace, uid))
            else:
                entries.append((uid, service.decode("utf-8", "replace")))
    suspects = await _without_link(node, namespace, entries)
    if suspects:
        await asyncio.sleep(_SECOND_LOOK_SECONDS)
        still = await node.ask_many(
            [("HEXISTS", link_prefix(namespace, uid), service) for uid, service in suspects]
        )
        listed = [link for link, there in zip(suspects, still, strict=True) if there == 1]
        for uid, service in await _without_link(node, namespace, listed):
            seen.disagrees(namespace, Flawed("orphan", uid, service))


async def _without_link(
    node: Node, namespace: str, entries: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    links = await node.ask_many(
        [("GET", link_key(namespace, uid, service)) for uid, service in entries]
    )
    return [
        entry for entry, link in zip(entries, links, strict=True) if judge_hash(link) is not None
    ]


async def _look_at_others(
    node: Node, namespace: str, others: Sequence[tuple[str, str]], seen: Keyspace
) -> None:
    keys = [f"sf:{{{namespace}:{kind}:{name}}}" for kind, name in others]
    replies = await node.ask_many(
        [
            ("HLEN" if kind == "state" else "GET", key)
            for (kind, _), key in zip(others, keys, strict=True)
        ]
    )
    for (kind, name), key, reply in zip(others, keys, replies, strict=True):
        if not isinstance(reply, BaseException):
            if kind == "state":
                seen.services.add(name)
        elif code_of(reply) == "WRONGTYPE":
            seen.flawed("type", key)
        else:
            seen.not_seen(node, reply)


# --- counting


async def count_links(
    store: Store, namespace: str, service: str, progress: Progress
) -> Counter[int]:
    """Pod -> its links of a service. It takes a scan of every key of the store.

    Raises ``StoreError`` if not all could be seen.
    """
    found: Counter[int] = Counter()

    async def look(node: Node) -> None:
        pattern = f"sf:{{{_literal(namespace)}:lk:*}}{_literal(service)}"
        async for keys in node.keys(pattern):
            values = await node.ask_many([("GET", key) for key in keys])
            for value in values:
                # A key that is no link is the doctor's business; one that has moved may be counted elsewhere.
                if isinstance(value, BaseException) and code_of(value) not in MOVING | {
                    "WRONGTYPE"
                }:
                    raise value
            found.update(pod for value in values if (pod := pod_of(value)) is not None)
            progress(len(keys))

    if unserved := store.unserved:
        raise StoreUnavailable(f"{_UNCOUNTED}: no node serves {unserved} of {SLOTS} slots")
    for node, outcome in await store.of_each(look, primaries=True):
        if isinstance(outcome, BaseException):
            raise failed(_UNCOUNTED, node.address, outcome)
    return found


def _literal(name: str) -> str:
    """The name as a glob pattern that matches only itself."""
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in name)
