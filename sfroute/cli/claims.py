"""Compares the claims of a namespace with its links, and repairs those that do not agree.

A claim record without a link, or whose link leads to another pod, is *orphaned*: nobody may act on it, and it has no
expiry. Pods end such claims themselves when they confirm; those of pods that are gone stay until somebody repairs.
A record of an earlier life of the link's own pod is in order: the next connection of the user inherits it.

Repairs are made by the scripts that pods and gateways use, each of which decides on what it finds in that instant: a
link that has changed since it was looked at is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from .._contract.claims import HELD, ClaimRecord, parse_record
from .._contract.keys import MAX_POD, claim_key, link_key, link_prefix
from .._contract.replies import claim_outcome
from .._fronts.router import AsyncRouter
from ..errors import SfrouteError
from .nodes import NODE_ERRORS, Node, Store, code_of

__all__ = [
    "CLAIM_FLAWS",
    "REPAIRED",
    "Flawed",
    "Repair",
    "judge_claim",
    "look_at_claims",
    "pod_of",
    "repair_all",
]

CLAIM_FLAWS: Final = frozenset({"unlinked", "elsewhere"})
"""Orphaned claims: there is a record but no link to its pod."""
REPAIRED: Final = CLAIM_FLAWS | {"unlisted", "differs", "orphan"}
"""What a repair mends."""

_SECOND_LOOK_SECONDS: Final = 0.2
_AT_ONCE: Final = 64


class Flawed(NamedTuple):
    """A link whose keys did not agree when it was examined.

    Attributes:
        flaw: one of ``keyspace.FLAWS``.
        uid: whose link; never shown unless asked for.
        service: the service of the link.
    """

    flaw: str
    uid: str
    service: str


class Repair(NamedTuple):
    """The outcome of a repair.

    Attributes:
        mended: links and claims whose keys agree again.
        left: those that had changed meanwhile, or that no script mends.
        failed: those that could not be written.
        why: the last error, or None.
    """

    mended: int = 0
    left: int = 0
    failed: int = 0
    why: str | None = None


# --- what is in order; pure


def pod_of(value: Any) -> int | None:
    """The pod that a reply names, None if it names none."""
    if isinstance(value, bytes) and len(value) <= 19 and value.isdigit():
        number = int(value)
        return number if number <= MAX_POD else None
    return None


def judge_claim(record: Any, ttl_ms: Any, link: Any, in_hash: Any) -> str | None:
    """The flaw of a claim, from the replies to GET and PTTL of its record, GET of the link and HGET of its entry."""
    if isinstance(record, BaseException):
        return "type" if code_of(record) == "WRONGTYPE" else None
    if record is None:
        return None  # it has gone meanwhile
    claim = _record_of(record)
    if claim is None:
        return "record"
    if isinstance(link, BaseException) or isinstance(in_hash, BaseException):
        return None  # a flaw of the link, which has its own turn
    if claim.pod is None or ttl_ms != -1:
        return None  # over, or in its grace: it goes by itself
    owner = link if link is not None else in_hash
    if owner is None:
        return "unlinked"
    return "elsewhere" if owner != str(claim.pod).encode() else None


def _record_of(reply: Any) -> ClaimRecord | None:
    if not isinstance(reply, bytes | str):
        return None
    return parse_record(reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply)


# --- looking


async def look_at_claims(
    node: Node, namespace: str, claims: Sequence[tuple[str, str]]
) -> tuple[int, list[BaseException], list[Flawed]]:
    """Of the claims, each a uid and a service: how many are held, why some were not read, and those with a flaw."""
    first = await _ask(node, namespace, claims)
    held = 0
    unread: list[BaseException] = []
    suspects: list[Flawed] = []
    for (uid, service), answer in zip(claims, first, strict=True):
        flaw = judge_claim(*answer)
        if flaw is not None:
            suspects.append(Flawed(flaw, uid, service))
        elif isinstance(answer[0], BaseException):
            unread.append(answer[0])
        elif (record := _record_of(answer[0])) is not None:
            held += record.pod is not None
    if not suspects:
        return held, unread, []
    # A write between two of our commands looks like a flaw, and so does a claim that its pod is about to end.
    await asyncio.sleep(_SECOND_LOOK_SECONDS)
    again = await _ask(node, namespace, [each[1:] for each in suspects])
    still = [
        each
        for each, answer in zip(suspects, again, strict=True)
        if judge_claim(*answer) == each.flaw
    ]
    return held, unread, still


async def _ask(
    node: Node, namespace: str, claims: Sequence[tuple[str, str]]
) -> list[tuple[Any, Any, Any, Any]]:
    replies = await node.ask_many(
        [
            command
            for uid, service in claims
            for command in (
                ("GET", claim_key(namespace, uid, service)),
                ("PTTL", claim_key(namespace, uid, service)),
                ("GET", link_key(namespace, uid, service)),
                ("HGET", link_prefix(namespace, uid), service),
            )
        ]
    )
    return list(zip(*(replies[part::4] for part in range(4)), strict=True))


# --- repairing


async def repair_all(
    router: AsyncRouter, store: Store, namespace: str, flawed: Sequence[Flawed]
) -> Repair:
    """Repair them, some at a time."""
    places = asyncio.Semaphore(_AT_ONCE)
    mended = left = failed = 0
    why: str | None = None

    async def one(each: Flawed) -> None:
        nonlocal mended, left, failed, why
        async with places:
            try:
                done = await _repair(router, store, namespace, each)
            except SfrouteError as error:
                failed += 1
                why = str(error)
            except NODE_ERRORS as error:
                failed += 1
                why = code_of(error)
            else:
                mended += done
                left += not done

    for start in range(0, len(flawed), 1000):
        async with asyncio.TaskGroup() as repairs:
            for each in flawed[start : start + 1000]:
                repairs.create_task(one(each))
    return Repair(mended, left, failed, why)


async def _repair(router: AsyncRouter, store: Store, namespace: str, flawed: Flawed) -> bool:
    """True if the keys of the link agree now."""
    flaw, uid, service = flawed
    link, links = link_key(namespace, uid, service), link_prefix(namespace, uid)
    record_key = claim_key(namespace, uid, service)
    record, linked, in_hash = await store.at(link).ask_many(
        [("GET", record_key), ("GET", link), ("HGET", links, service)]
    )
    claim = _record_of(record)
    if claim is not None and claim.pod is not None and claim.life is not None:
        # As that life itself would ask: an evicted link is restored, an orphaned claim is ended.
        reply = await router.execute_script(
            "statefulConfirmClaim",
            [link, links, record_key],
            [service, str(claim.pod), claim.life, str(claim.fence)],
        )
        told = claim_outcome(reply)
        if told is not None and (told[0] in HELD or flaw in CLAIM_FLAWS):
            return True
    # What has become no pod id meanwhile is another flaw, which no script mends.
    if flaw == "orphan" and (pod := pod_of(in_hash)) is not None:
        # The string was evicted. Whoever links the uid meanwhile is not disturbed.
        return await router.set_linked_pod_if_absent(namespace, uid, service, pod) == pod
    if flaw in ("unlisted", "differs") and (pod := pod_of(linked)) is not None:
        success, _ = await router.try_set_linked_pod(namespace, uid, service, pod)
        return success
    return False
