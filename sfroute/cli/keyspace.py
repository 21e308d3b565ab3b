"""All keys of a namespace, looked at one by one: the links, and what no program should have written.

Nothing is changed, and nothing is kept of what is in order but counts, however many keys there are.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..keys import MAX_POD, link_key, link_prefix, parse_link_key
from .nodes import Node, Store, code_of

__all__ = [
    "FLAWS",
    "Examples",
    "Keyspace",
    "count_links",
    "judge_hash",
    "judge_link",
    "look_at_keys",
]

FLAWS: Final = {
    "type": "keys of the wrong type",
    "value": "keys that hold something that is no pod id",
    "unlisted": "persistent links that the uid's hash does not list",
    "differs": "persistent links for which the uid's hash names another pod",
    "temporary": "temporary links that the uid's hash lists as persistent",
    "orphan": "entries of a uid's hash without a link",
}
_EXAMPLES: Final = 5
_SECOND_LOOK_SECONDS: Final = 0.2
"""A write between two of our commands looks like a flaw, but not for long."""

Progress = Callable[[int], None]


@dataclass
class Examples:
    """How many there are, and a few of their keys."""

    count: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, key: str) -> None:
        """One more."""
        self.count += 1
        if len(self.keys) < _EXAMPLES and key not in self.keys:
            self.keys.append(key)


@dataclass
class Keyspace:
    """What was seen.

    Attributes:
        scanned: keys looked at.
        links: (service, pod) -> links.
        temporary: how many of the links have an expiry.
        services: services whose pods have reported states.
        flaws: one of ``FLAWS`` -> where.
        moved: keys that went to another server meanwhile, and were not looked at.
        unread: server -> why its keys could not be looked at.
    """

    scanned: int = 0
    links: Counter[tuple[str, int]] = field(default_factory=Counter)
    temporary: int = 0
    services: set[str] = field(default_factory=set)
    flaws: dict[str, Examples] = field(default_factory=dict)
    moved: int = 0
    unread: dict[str, str] = field(default_factory=dict)

    def flawed(self, flaw: str, key: str) -> None:
        """One more key with this flaw."""
        self.flaws.setdefault(flaw, Examples()).add(key)


# --- what is in order; pure


def _pod_of(value: Any) -> int | None:
    if isinstance(value, bytes) and len(value) <= 19 and value.isdigit():
        number = int(value)
        return number if number <= MAX_POD else None
    return None


def judge_link(value: Any, ttl_ms: Any, in_hash: Any) -> str | None:
    """The flaw of a link, from the replies to GET, PTTL and the HGET of its entry in the uid's hash; None if none."""
    if isinstance(value, BaseException):
        return "type" if code_of(value) == "WRONGTYPE" else None
    if value is None:
        return None  # it has gone meanwhile
    if _pod_of(value) is None:
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


async def look_at_keys(store: Store, namespace: str, progress: Progress) -> Keyspace:
    """Look at all keys of a namespace; ``progress`` is told how many more there were."""
    seen = Keyspace()

    async def look(node: Node) -> None:
        # Keys of a namespace begin alike but for operation records, which live for seconds.
        async for keys in node.keys(f"sf:{{{_literal(namespace)}:*"):
            await _look_at(node, namespace, keys, seen)
            seen.scanned += len(keys)
            progress(len(keys))

    for node, outcome in await store.of_each(look, primaries=True):
        if isinstance(outcome, BaseException):
            seen.unread[str(node.address)] = code_of(outcome)
    return seen


async def _look_at(node: Node, namespace: str, keys: Sequence[bytes], seen: Keyspace) -> None:
    links: list[tuple[str, str]] = []
    hashes: list[str] = []
    others: list[tuple[str, str]] = []
    for raw in keys:
        parsed = parse_link_key(raw)
        kind, _, name = raw.decode("utf-8", "replace")[len(f"sf:{{{namespace}:") :].partition(":")
        if parsed is not None and parsed.service is not None:
            links.append((parsed.uid, parsed.service))
        elif parsed is not None:
            hashes.append(parsed.uid)
        elif kind in ("state", "workload") and name.endswith("}"):
            others.append((kind, name.removesuffix("}")))
    await _look_at_links(node, namespace, links, seen)
    await _look_at_hashes(node, namespace, hashes, seen)
    await _look_at_others(node, namespace, others, seen)


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
        if isinstance(value, BaseException) and code_of(value) in ("MOVED", "ASK", "TRYAGAIN"):
            seen.moved += 1
        elif judge_link(value, ttl_ms, in_hash) is not None:
            suspects.append((link, answer))
        if (pod := _pod_of(value)) is not None:
            seen.links[link[1], pod] += 1
            seen.temporary += isinstance(ttl_ms, int) and ttl_ms >= 0
    if not suspects:
        return
    await asyncio.sleep(_SECOND_LOOK_SECONDS)
    again = await _ask_links(node, namespace, [link for link, _ in suspects])
    for (link, before), after in zip(suspects, again, strict=True):
        flaw = judge_link(*after)
        if flaw is not None and flaw == judge_link(*before):
            seen.flawed(flaw, link_key(namespace, *link))


async def _look_at_hashes(node: Node, namespace: str, uids: Sequence[str], seen: Keyspace) -> None:
    replies = await node.ask_many([("HGETALL", link_prefix(namespace, uid)) for uid in uids])
    entries: list[tuple[str, str]] = []
    for uid, reply in zip(uids, replies, strict=True):
        if isinstance(reply, BaseException):
            if code_of(reply) == "WRONGTYPE":
                seen.flawed("type", link_prefix(namespace, uid))
            continue
        for service, value in reply.items():
            if _pod_of(value) is None:
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
            seen.flawed("orphan", link_key(namespace, uid, service))


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


# --- counting


async def count_links(
    store: Store, namespace: str, service: str, progress: Progress
) -> Counter[int]:
    """Pod -> its links of a service; every key of the store is passed over.

    Raises what a server says that does not answer.
    """
    found: Counter[int] = Counter()

    async def look(node: Node) -> None:
        pattern = f"sf:{{{_literal(namespace)}:lk:*}}{_literal(service)}"
        async for keys in node.keys(pattern):
            values = await node.ask_many([("GET", key) for key in keys])
            found.update(pod for value in values if (pod := _pod_of(value)) is not None)
            progress(len(keys))

    for _, outcome in await store.of_each(look, primaries=True):
        if isinstance(outcome, BaseException):
            raise outcome
    return found


def _literal(name: str) -> str:
    """The name as a glob pattern that matches only itself."""
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in name)
