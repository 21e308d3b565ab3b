"""Claim records, and the outcome of confirming a claim: the decision table of ``statefulConfirmClaim``. Pure.

The script decides atomically on what it reads. The table here is its reference; a test compares the two.

A claim holds only while the link is persistent and points to the record's pod. A link that is only in the uid's hash
was evicted; it counts as persistent. A record is *older* if its fence is less than the claim's: the store has then lost
a later state, in a failover or a restart without its data. A missing record counts as older. A server that evicts any
key may have evicted link and hash, and not the record; on any other, a link that is not there was removed.

=======================  ======================  ==============================================
the link is at           the claim record        outcome
=======================  ======================  ==============================================
this pod, persistent     none, or older          ``restored``: the record is written again
this pod, persistent     this life's             ``mine`` (``restored`` if the link was evicted)
this pod, persistent     another life's          ``superseded``
this pod, persistent     over, or another pod's  ``removed``
nowhere, or temporary    none, or older          ``claimed``: the store has forgotten it
nowhere, or temporary    another life's          ``superseded``
nowhere, or temporary    anything else           ``removed``
nowhere, if evicted      this life's             ``restored``
another pod, persistent  that pod's, and older   ``claimed``: the store forgot, and an older claim came first
another pod              anything else           ``moved``
=======================  ======================  ==============================================
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

__all__ = [
    "HELD",
    "MAX_FENCE",
    "TOMBSTONE_SECONDS",
    "ClaimRecord",
    "Outcome",
    "StoredLink",
    "confirm",
    "parse_record",
]

Outcome = Literal["mine", "restored", "claimed", "superseded", "moved", "removed"]

HELD: Final = frozenset({"mine", "restored", "claimed"})
"""The outcomes after which the claim holds; after the others it is lost."""

TOMBSTONE_SECONDS: Final = 600
"""How long the record of an ended claim stays. Within this time, "removed" can be told from "forgotten"."""

MAX_FENCE: Final = 2**53 - 2
"""This number and the next one are exact in Lua."""

_RECORD: Final = re.compile(r"([1-9][0-9]{0,15}) (?:([0-9]{1,19}) ([^\s]+)|- -)", re.ASCII)


class ClaimRecord(NamedTuple):
    """A parsed claim record.

    Attributes:
        fence: the fence of the claim.
        pod: the pod that holds the claim. None once the claim is over.
        life: the life of that pod. None once the claim is over.
    """

    fence: int
    pod: int | None
    life: str | None


class StoredLink(NamedTuple):
    """A link as the store holds it.

    Attributes:
        pod: the pod in the link's own key. None if there is no key.
        persistent: the key has no expiry.
        listed: the pod in the uid's hash. None if there is no field.
    """

    pod: int | None
    persistent: bool
    listed: int | None


def parse_record(text: str) -> ClaimRecord | None:
    """Parse a record. None if the text is not a record."""
    match = _RECORD.fullmatch(text)
    if match is None or int(match[1]) > MAX_FENCE or match[3] == "-":
        return None
    pod = int(match[2]) if match[2] is not None else None
    if pod is not None and pod >= 2**63:
        return None
    return ClaimRecord(int(match[1]), pod, match[3])


def confirm(
    link: StoredLink,
    record: ClaimRecord | None,
    pod: int,
    life: str,
    fence: int,
    *,
    evicts: bool = False,
) -> Outcome:
    """The outcome, by the table above, for a claim that a pod's life holds with this fence.

    ``evicts``: the server evicts any key when its memory is full, and has evicted some.
    """
    owner = link.pod if link.pod is not None else link.listed
    persistent = owner is not None and (link.pod is None or link.persistent)
    if record is None or record.fence < fence:
        if owner is not None and owner != pod:
            came_first = persistent and record is not None and record.pod == owner
            return "claimed" if came_first else "moved"
        return "restored" if persistent else "claimed"
    if owner is not None and owner != pod:
        return "moved"
    if record.pod == pod and record.life != life:
        return "superseded"
    if record.pod == pod and owner is None and evicts:
        return "restored"
    if record.pod != pod or not persistent:
        return "removed"
    return "mine" if link.pod is not None else "restored"
