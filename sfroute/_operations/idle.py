"""Links that nobody has used for long: finding them, and removing those of which that still holds.

No such link is read, to whichever pod it leads, or it would be idle no more: the uid's hash tells of it. A link whose
claim a living pod holds is in use, however long the store was not asked; so is one of pods that are silent together.

What is found may be removed much later, and its user may have come back. So right before a removal the claim is looked
at once more, and the script that removes the link asks how long it has been idle, in the same step.

Who may touch it: only the event loop.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil
from typing import NamedTuple

from .._commands.command import Command
from .._contract import replies
from .._contract.claims import parse_record
from .._contract.keys import claim_key, link_key, link_prefix
from .._net.connection import encode
from ..errors import CorruptReply
from ..types import PERSIST_FOREVER
from .engine import Parts
from .links import LinkWriter

__all__ = ["Idle", "IdleLinks"]


class Idle(NamedTuple):
    """The idle ones among some links.

    Attributes:
        unused: uid -> pod.
        claimed: uid -> pod, of those that a living pod has claimed: they are in use.
        damaged: uids whose hash says what no link can be.
    """

    unused: dict[str, int]
    claimed: dict[str, int]
    damaged: set[str]


class IdleLinks:
    """The persistent links of one service that nobody has read or written for ``idle`` seconds."""

    def __init__(
        self, writer: LinkWriter, namespace: str, service: str, idle: float, operation: str
    ) -> None:
        self._writer = writer
        self._namespace = namespace
        self._service = service
        # The server tells whole seconds.
        self._idle = ceil(idle)
        self._operation = operation

    async def find(self, parts: Parts, uids: Sequence[str]) -> Idle:
        """The idle ones among the links of these uids. Raises what the store raises."""
        keys = [link_key(self._namespace, uid, self._service) for uid in uids]
        seconds = await parts.commands.run_many(
            [self._ask(key, "OBJECT", "IDLETIME", key) for key in keys]
        )
        old = [
            uid
            for uid, since in zip(uids, seconds, strict=True)
            if isinstance(since, int) and since >= self._idle
        ]
        found, damaged = await self._listed(parts, old)
        claimed = await self._claimed(parts, found)
        return Idle(
            {uid: pod for uid, pod in found.items() if uid not in claimed},
            {uid: pod for uid, pod in found.items() if uid in claimed},
            damaged,
        )

    async def remove(self, parts: Parts, uid: str, pod: int) -> bool:
        """Remove a link if it is still the pod's, idle and not in use. True if it was. Raises what the store raises."""
        if await self._claimed(parts, [uid]):
            return False
        return await self._writer.remove_linked_pod_with_id(
            self._namespace,
            uid,
            self._service,
            pod,
            PERSIST_FOREVER,
            idle=self._idle,
            operation=self._operation,
        )

    def _ask(self, key: str, *command: str) -> Command:
        return Command(self._operation, key, command[0], encode(*command))

    async def _listed(self, parts: Parts, uids: Sequence[str]) -> tuple[dict[str, int], set[str]]:
        """Uid -> pod of the persistent links among them, and the uids whose hash cannot be read."""
        hashes = [link_prefix(self._namespace, uid) for uid in uids]
        listed = await parts.commands.run_many(
            [self._ask(key, "HGET", key, self._service) for key in hashes], corrupt_in_place=True
        )
        found: dict[str, int] = {}
        damaged: set[str] = set()
        for uid, key, value in zip(uids, hashes, listed, strict=True):
            try:
                if isinstance(value, CorruptReply):
                    raise value
                pod = replies.pod(value, key)
            except CorruptReply:
                damaged.add(uid)
            else:
                if pod is not None:
                    found[uid] = pod
        return found, damaged

    async def _claimed(self, parts: Parts, uids: Collection[str]) -> set[str]:
        """Those of whom a pod that lives says that it has them."""
        if not uids:
            return set()
        keys = [claim_key(self._namespace, uid, self._service) for uid in uids]
        records = await parts.commands.run_many(
            [self._ask(key, "GET", key) for key in keys], corrupt_in_place=True
        )
        view = await parts.views.get(self._namespace, self._service)
        found = set()
        for uid, record in zip(uids, records, strict=True):
            claim = (
                parse_record(record.decode("utf-8", "replace"))
                if isinstance(record, bytes)
                else None
            )
            if claim is None or claim.pod is None:
                continue
            if claim.pod in view.gone and claim.pod not in view.spared:
                continue
            pod = view.pods.get(claim.pod)
            if pod is not None and pod.life == claim.life:
                found.add(uid)
        return found
