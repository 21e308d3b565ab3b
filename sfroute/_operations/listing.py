"""Going through links: listing them, removing idle ones, and erasing a uid.

All primaries are looked through in steps (SCAN), one after the other, so memory stays bounded however many links there
are. What SCAN promises holds: a link that is there all the time, and whose slot does not move meanwhile, is found; one
may be found twice.

What one uid's keys hold stops nothing: everything else is done first, and then it is said how many are damaged.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeGuard

from .._commands.command import Command
from .._contract import replies
from .._contract.keys import (
    check_link_names,
    claim_key_parts,
    link_key,
    link_key_parts,
    link_prefix,
    slot_of,
)
from .._net.connection import Address, encode
from ..errors import CorruptReply, InvalidArgument, OutcomeUnknown, StoreError, StoreUnavailable
from ..types import PERSIST_FOREVER, ListedLink, PruneProgress
from .damaged import Damaged
from .engine import Engine, Parts
from .idle import IdleLinks
from .links import LinkWriter

__all__ = ["Listing", "check_idle_seconds", "literal", "may_be_sent"]

SCAN_COUNT: Final = 1000
REMOVALS_AT_ONCE: Final = 64


def check_idle_seconds(idle: float) -> None:
    """Raise ``InvalidArgument`` unless it is a number of seconds."""
    is_number = isinstance(idle, (int, float)) and not isinstance(idle, bool)
    if not is_number or not 0 < idle <= sys.float_info.max:
        raise InvalidArgument("idle must be seconds > 0")


def literal(name: str) -> str:
    """The name as a glob pattern that matches only itself."""
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in name)


def may_be_sent(namespace: str, uid: str, service: str) -> bool:
    """False for a uid that no call accepts: another program has written its link."""
    try:
        check_link_names(namespace, uid, service)
    except InvalidArgument:
        return False
    return True


class Listing:
    """What goes through the links of one router's store. Arguments are checked by who calls it."""

    def __init__(self, engine: Engine, writer: LinkWriter) -> None:
        self._engine = engine
        self._writer = writer

    # Listing

    async def links(
        self, namespace: str, service: str, pod: int | None
    ) -> AsyncGenerator[ListedLink, None]:
        """Every link of the service, or of one pod. Raises what the store raises; ``CorruptReply`` at the end."""
        parts = await self._engine.opened()
        damaged = Damaged()
        for address in sorted(parts.topology.primaries()):
            async for uids in self.pages(parts, address, namespace, service, "links"):
                for link in await self._read(parts, namespace, service, uids, damaged):
                    if pod is None or link.pod == pod:
                        yield link
        if damaged.first is not None:
            words = "link cannot be read" if damaged.count == 1 else "links cannot be read"
            raise damaged.error(f"links: {damaged.count} {words}; all others were told")

    async def pages(
        self, parts: Parts, address: Address, namespace: str, service: str, operation: str
    ) -> AsyncGenerator[list[str], None]:
        """The uids of the service's links at one primary, a page at a time."""
        pattern = f"sf:{{{literal(namespace)}:lk:*}}{literal(service)}"
        async for keys in self._scan(parts, address, pattern, operation, "TYPE", "string"):
            found = (link_key_parts(key) for key in keys)
            yield [
                key[1]
                for key in found
                if key is not None and key[0] == namespace and key[2:] == (service,)
            ]

    async def _scan(
        self, parts: Parts, address: Address, pattern: str, operation: str, *more: str
    ) -> AsyncGenerator[list[bytes], None]:
        cursor = b"0"
        while True:
            scan = encode("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, *more)
            reply = await parts.commands.run_on(address, Command(operation, "", "SCAN", scan))
            if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], list):
                raise replies.corrupt("", "an invalid SCAN reply")
            cursor = reply[0]
            yield [key for key in reply[1] if isinstance(key, bytes)]
            if cursor == b"0":
                return

    async def _read(
        self,
        parts: Parts,
        namespace: str,
        service: str,
        uids: Sequence[str],
        damaged: Damaged,
    ) -> list[ListedLink]:
        keys = [link_key(namespace, uid, service) for uid in uids]
        answers = await parts.commands.run_many(
            [
                Command("links", key, name, encode(name, key))
                for key in keys
                for name in ("GET", "PTTL")
            ],
            corrupt_in_place=True,
        )
        links = []
        for place, uid in enumerate(uids):
            value, ttl = answers[2 * place : 2 * place + 2]
            if value is None or not isinstance(ttl, int) or ttl == -2:
                continue  # it has gone meanwhile
            with damaged.noted():
                if isinstance(value, CorruptReply):
                    raise value
                owner = replies.pod(value, keys[place])
                assert owner is not None
                links.append(ListedLink(uid, owner, None if ttl == -1 else ttl / 1000))
        return links

    # Erasing

    async def forget(self, namespace: str, uid: str) -> int:
        """Remove all links of the uid and end its claims. How many links there were.

        Raises what the store raises; ``CorruptReply`` when everything has been removed that can be.
        """
        parts = await self._engine.opened()
        prefix = link_prefix(namespace, uid)
        damaged = Damaged()
        services: set[str] = set()
        with damaged.noted():
            listed = await parts.commands.run(
                Command("forget", prefix, "HGETALL", encode("HGETALL", prefix))
            )
            for field in replies.fields(listed, prefix):
                with damaged.noted():
                    services.add(replies.name(field, prefix))
        # Temporary links and claims are listed nowhere: all keys of the primary are looked through.
        address = None
        while address != (owner := await self._primary_of(parts, prefix)):
            # Again if the slot has moved meanwhile.
            address = owner
            services |= await self._services_of(parts, address, namespace, uid)
        removed, entries = 0, len(services) + damaged.count
        for service in sorted(services):
            with damaged.noted():
                if not may_be_sent(namespace, uid, service):
                    raise replies.corrupt(
                        link_key(namespace, uid, service), "a name that no call accepts"
                    )
                removed += await self._writer.remove_linked_pod(
                    namespace, uid, service, PERSIST_FOREVER
                )
        self._engine.cache.drop_uid(namespace, uid)
        if damaged.first is not None:
            raise damaged.error(
                f"forget: {damaged.count} of {entries} entries of the uid cannot be removed; all others were"
            )
        return removed

    async def _services_of(
        self, parts: Parts, address: Address, namespace: str, uid: str
    ) -> set[str]:
        """The services of which one primary has a link or a claim of the uid."""
        tag = f"{{{literal(namespace)}:lk:{literal(uid)}}}"
        services: set[str] = set()
        async for keys in self._scan(parts, address, f"sf:*{tag}*", "forget"):
            for key in keys:
                found = link_key_parts(key) or claim_key_parts(key)
                if found is not None and found[:2] == (namespace, uid) and len(found) == 3:
                    services.add(found[2])
        return services

    @staticmethod
    async def _primary_of(parts: Parts, key: str) -> Address:
        # An answer shows that the slot map is right.
        await parts.commands.run(Command("forget", key, "PTTL", encode("PTTL", key)))
        address = parts.topology.address_of(slot_of(key))
        if address is None:
            raise StoreUnavailable(
                "forget: the primary that holds the uid is not known; nothing more was removed",
                operation="forget",
            )
        return address

    # Pruning

    async def prune(
        self, namespace: str, service: str, idle: float, rate: float | None, *, dry_run: bool
    ) -> AsyncGenerator[PruneProgress, None]:
        """Remove what nobody has read or written for so long, telling after each page how far it has come.

        Raises what the store raises.
        """
        parts = await self._engine.opened()
        progress = PruneProgress()
        interval = 1.0 / rate if rate else 0.0
        links = IdleLinks(self._writer, namespace, service, idle, "prune")
        for address in sorted(parts.topology.primaries()):
            async for uids in self.pages(parts, address, namespace, service, "prune"):
                found = await links.find(parts, uids)
                progress = replace(
                    progress,
                    scanned=progress.scanned + len(uids),
                    idle=progress.idle + len(found.unused),
                    claimed=progress.claimed + len(found.claimed),
                    failed=progress.failed + len(found.damaged),
                )
                if not dry_run:
                    removed, failed = await self._remove(parts, links, found.unused, interval)
                    progress = replace(
                        progress,
                        removed=progress.removed + removed,
                        failed=progress.failed + failed,
                    )
                yield progress
        yield replace(progress, done=True)

    @staticmethod
    async def _remove(
        parts: Parts, links: IdleLinks, doomed: Mapping[str, int], interval: float
    ) -> tuple[int, int]:
        """How many were removed, and how many could not be."""
        items, removed, failed = list(doomed.items()), 0, 0
        at_once = 1 if interval else REMOVALS_AT_ONCE
        for start in range(0, len(items), at_once):
            outcomes = await asyncio.gather(
                *(links.remove(parts, uid, pod) for uid, pod in items[start : start + at_once]),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if _is_of_one(outcome):
                    failed += 1
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    removed += outcome
            if interval:
                await asyncio.sleep(interval)
        return removed, failed


def _is_of_one(outcome: bool | BaseException) -> TypeGuard[BaseException]:
    """True for an error that says nothing of the next link: what its keys hold or are called, or that passes."""
    if isinstance(outcome, StoreError):
        return outcome.retryable or isinstance(outcome, (CorruptReply, OutcomeUnknown))
    return isinstance(outcome, InvalidArgument)
