"""What an error reply of the store means for its command. Pure; the only place that knows error codes.

Every kind except ``FATAL``, ``UNKNOWN`` and ``CORRUPT`` proves that the command was not executed, so it may be sent
again. That holds for scripts too: a server refuses a script before its first write, or not at all.
"""

from __future__ import annotations

import enum
import re
from typing import Final, Literal, NamedTuple

from .keys import SLOTS

__all__ = [
    "MAX_HOPS",
    "RETRIED_CODES",
    "Failure",
    "Kind",
    "Step",
    "is_host",
    "known_code",
    "meaning",
    "next_step",
    "read_failure",
]


class Kind(enum.Enum):
    """What to do about an error reply."""

    MOVED = enum.auto()
    """The slot belongs to another node: remember it, and send the command there."""
    ASK = enum.auto()
    """The key is moving to another node: send the command there once, after ASKING."""
    NOSCRIPT = enum.auto()
    """The node does not know the script: send the source to the same node."""
    WAIT = enum.auto()
    """The condition passes by itself: send again after a pause."""
    RELOCATE = enum.auto()
    """The node is no longer a primary: learn the topology, then send again."""
    FULL = enum.auto()
    """The node refuses every write, for longer than a caller waits."""
    UNKNOWN = enum.auto()
    """The peer does not know a command that every server knows, so it is not a Redis or Valkey server."""
    CORRUPT = enum.auto()
    """The key holds something that the contract does not allow."""
    FATAL = enum.auto()
    """Sending again will not help."""


class Failure(NamedTuple):
    """A parsed error reply.

    Attributes:
        kind: what to do about it.
        code: the error's first word, such as ``"MOVED"``. Safe for logs and telemetry: never contains a key.
        slot: for MOVED and ASK.
        host: for MOVED and ASK. Empty means the host that sent the reply.
        port: for MOVED and ASK.
        corrupt: for CORRUPT: which of a link's keys is, as the scripts' texts name it.
    """

    kind: Kind
    code: str
    slot: int = -1
    host: str = ""
    port: int = 0
    corrupt: Literal["link", "hash", "claim"] = "link"

    @property
    def no_primary(self) -> bool:
        """No primary serves the slot now. A lookup treats this like a store that cannot be reached."""
        return self.code in {"CLUSTERDOWN", "MASTERDOWN"}

    @property
    def not_now(self) -> bool:
        """The node says that it will serve no data for a while."""
        return self.code in {"LOADING", "BUSY"}


class Step(enum.Enum):
    """The next step for a command that got an error reply."""

    FOLLOW = enum.auto()
    """Send it at once to the node that the reply names."""
    BY_SOURCE = enum.auto()
    """Send the script's source at once to the same node."""
    PAUSE = enum.auto()
    """Learn the topology, pause, and send it to the node that the slot map then names."""
    FAIL = enum.auto()
    """Raise an error."""


MAX_HOPS: Final = 3
"""Redirects followed without a pause. After more, the cluster is being rearranged, and a pause lets it settle."""

_KINDS: Final = {
    "NOSCRIPT": Kind.NOSCRIPT,
    "TRYAGAIN": Kind.WAIT,
    "CLUSTERDOWN": Kind.WAIT,
    "LOADING": Kind.WAIT,
    "BUSY": Kind.WAIT,
    "NOREPLICAS": Kind.WAIT,
    "OOM": Kind.FULL,
    "MISCONF": Kind.FULL,
    "MASTERDOWN": Kind.RELOCATE,
    "READONLY": Kind.RELOCATE,
    "WRONGTYPE": Kind.CORRUPT,
    "SFCORRUPT": Kind.CORRUPT,
    "SFTOOMANY": Kind.CORRUPT,
    "SFTOOLARGE": Kind.CORRUPT,
}

MAX_HOST: Final = 255
"""The longest DNS name has 253 characters."""

MAX_CODE: Final = 24
"""Longer than any server's code. A longer word may be anything."""

_REFUSED_IN_SCRIPT: Final = ("ACL failure in script", "The user executing the script can't")
"""How Valkey and Redis (the first) and Redis 7.0 (the second) say that a script's user lacks a permission."""

RETRIED_CODES: Final = (
    "MOVED",
    "ASK",
    "MAXCLIENTS",
    *(code for code, kind in _KINDS.items() if kind not in {Kind.CORRUPT, Kind.FULL}),
)
"""Codes of the error replies after which a command is sent again."""

_MEANINGS: Final = {
    "ASK": "its slots are being moved",
    "BUSY": "a script or function runs too long there; SCRIPT KILL ends one that has not written",
    "CLUSTERDOWN": "some slot has no primary, or most primaries are gone",
    "LOADING": "it is loading its data",
    "MASTERDOWN": "it is a replica, and has lost its primary",
    "MAXCLIENTS": "it has no room for another client; see maxclients",
    "MISCONF": "it cannot save its data to disk, and refuses writes until it can",
    "MOVED": "the slot belongs to another node",
    "NOREPLICAS": "fewer replicas are connected than min-replicas-to-write asks for",
    "OOM": "its memory is full; see maxmemory",
    "READONLY": "it is a replica; a failover may be under way, or the address leads to a node that was demoted",
    "TRYAGAIN": "the slot is being moved, key by key",
    "WRONGPASS": "check the user name and password",
}


_OTHER_CODES: Final = frozenset({"NOAUTH", "NOPERM", "NOPROTO", "DENIED"})


def meaning(code: str) -> str:
    """What an error code says about the server, for an error text. Empty for an unknown code."""
    return _MEANINGS.get(code, "")


_IN_SCRIPT_62: Final = re.compile(
    r"(?:ERR Error running script \(call to f_[0-9a-f]{40}\): @user_script:\d+: )?@user_script: ?\d+: (-?)"
)
"""The prefix that Redis before 7.0 gives to the error of a command in a script, shorter if the script returns the error
that ``pcall`` gave it. A dash precedes the code, if any."""

_CLUSTER_DOWN_IN_SCRIPT: Final = re.compile(
    r"ERR (Can not|Script attempted to|Lua script attempted to) execute a (write )?command( '[a-z|]{1,32}')? "
    r"while the cluster is down"
)
"""How Valkey, Redis 7 and Redis 6.2 refuse a command in a script when, outside a script, they reply CLUSTERDOWN."""


def known_code(message: str) -> str:
    """The code at the start of an error reply if the servers define it, else ``"ERR"``.

    For replies to commands that held a secret: a hostile server may echo the secret as a code.
    """
    code = message.partition(" ")[0]
    return code if code in _KINDS or code in _MEANINGS or code in _OTHER_CODES else "ERR"


def read_failure(message: str) -> Failure:
    """Parse the text of an error reply."""
    wrapped = _IN_SCRIPT_62.match(message)
    if wrapped is not None:
        message = ("" if wrapped[1] else "ERR ") + message[wrapped.end() :]
    if _CLUSTER_DOWN_IN_SCRIPT.match(message):
        return Failure(Kind.WAIT, "CLUSTERDOWN")
    words = message.split(" ", 3)
    code = words[0] if _is_code(words[0]) else "ERR"
    if code in {"MOVED", "ASK"}:
        redirect = _redirect(words)
        if redirect is not None:
            slot, host, port = redirect
            return Failure(Kind.MOVED if code == "MOVED" else Kind.ASK, code, slot, host, port)
        return Failure(Kind.FATAL, code)
    if code == "ERR" and "max number of clients" in message:
        return Failure(Kind.WAIT, "MAXCLIENTS")
    if code == "ERR" and any(text in message for text in _REFUSED_IN_SCRIPT):
        return Failure(Kind.FATAL, "NOPERM")
    if message.lower().startswith("err unknown command"):
        return Failure(Kind.UNKNOWN, code)
    kind = _KINDS.get(code, Kind.FATAL)
    if kind is Kind.CORRUPT and "KEYS[2]" in message:
        return Failure(kind, code, corrupt="hash")
    if kind is Kind.CORRUPT and "claim record" in message:
        return Failure(kind, code, corrupt="claim")
    return Failure(kind, code)


def next_step(failure: Failure, hops: int, *, source_at_hand: bool = False) -> Step:
    """The one rule for error replies, for lookups and for all other commands.

    Args:
        failure: the reply.
        hops: redirects followed since the last pause.
        source_at_hand: the command ran a script by its SHA-1 and can send the source instead.
    """
    kind = failure.kind
    if kind is Kind.MOVED or kind is Kind.ASK:
        return Step.FOLLOW if hops < MAX_HOPS else Step.PAUSE
    if kind is Kind.NOSCRIPT and source_at_hand:
        return Step.BY_SOURCE
    if kind is Kind.WAIT or kind is Kind.RELOCATE:
        return Step.PAUSE
    return Step.FAIL


def _is_code(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.isupper() and len(word) <= MAX_CODE


def _redirect(words: list[str]) -> tuple[int, str, int] | None:
    """Slot, host and port of ``MOVED 3999 127.0.0.1:6381``. An empty host or ``?`` means the sender's host."""
    if len(words) < 3:
        return None
    host, _, port = words[2].rpartition(":")
    slot_number, port_number = _number(words[1]), _number(port)
    # An invalid slot must never reach the slot map.
    if slot_number is None or slot_number >= SLOTS or port_number is None or port_number == 0:
        return None
    host = "" if host == "?" else host.strip("[]")
    return (slot_number, host, port_number) if is_host(host) else None


def is_host(text: str) -> bool:
    """True for text that may be a host name or address, and for the empty string. Such text is safe to log."""
    return len(text) <= MAX_HOST and text.isascii() and text.isprintable() and " " not in text


def _number(text: str) -> int | None:
    """A number from 0 to 65535. None for anything else, however long."""
    if len(text) > 5 or not (text.isascii() and text.isdecimal()):
        return None
    number = int(text)
    return number if number <= 65535 else None
