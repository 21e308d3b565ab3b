"""What an error reply of the store means for the command that got it. Pure; the one place that knows error codes.

Every code here except ``FATAL`` and ``CORRUPT`` proves that the command was not executed, so it may be sent again.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from .keys import SLOTS

__all__ = ["RETRIED_CODES", "Failure", "Kind", "is_host", "read_failure"]


class Kind(enum.Enum):
    """What to do about an error reply."""

    MOVED = enum.auto()
    """The slot belongs to another node: learn it, send again there."""
    ASK = enum.auto()
    """This key is on its way to another node: send there once, after ASKING."""
    NOSCRIPT = enum.auto()
    """The node does not know the script: send its source to the same node."""
    WAIT = enum.auto()
    """It passes by itself: send again after a pause."""
    RELOCATE = enum.auto()
    """The node is no primary any more: learn the topology, then send again."""
    CORRUPT = enum.auto()
    """The key holds what the contract does not allow."""
    FATAL = enum.auto()
    """Sending again will not help."""


class Failure(NamedTuple):
    """An error reply, read.

    Attributes:
        kind: what to do.
        code: the error's first word, such as ``"MOVED"``; fit for logs and telemetry, never contains a key.
        slot: for MOVED and ASK.
        host: for MOVED and ASK; empty means the host that sent the reply.
        port: for MOVED and ASK.
        second_key: for CORRUPT: it is the command's second key, the uid's hash (the scripts say so by its name).
    """

    kind: Kind
    code: str
    slot: int = -1
    host: str = ""
    port: int = 0
    second_key: bool = False


_KINDS: Final = {
    "NOSCRIPT": Kind.NOSCRIPT,
    "TRYAGAIN": Kind.WAIT,
    "CLUSTERDOWN": Kind.WAIT,
    "LOADING": Kind.WAIT,
    "BUSY": Kind.WAIT,
    "OOM": Kind.WAIT,
    "NOREPLICAS": Kind.WAIT,
    "MASTERDOWN": Kind.RELOCATE,
    "READONLY": Kind.RELOCATE,
    "WRONGTYPE": Kind.CORRUPT,
    "SFCORRUPT": Kind.CORRUPT,
    "SFTOOMANY": Kind.CORRUPT,
}

MAX_HOST: Final = 255
"""The longest name there is in the DNS has 253 characters."""

_REFUSED_IN_SCRIPT: Final = ("ACL failure in script", "The user executing the script can't")
"""How Valkey and Redis, and Redis 7.0, say that a script lacks a right of its user's."""

RETRIED_CODES: Final = (
    "MOVED",
    "ASK",
    "MAXCLIENTS",
    *(code for code, kind in _KINDS.items() if kind is not Kind.CORRUPT),
)
"""Codes of the error replies after which a command is sent again."""


def read_failure(message: str) -> Failure:
    """Read the text of an error reply."""
    words = message.split(" ", 3)
    code = words[0] if words[0].isupper() and words[0].isalpha() else "ERR"
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
    kind = _KINDS.get(code, Kind.FATAL)
    return Failure(kind, code, second_key=kind is Kind.CORRUPT and "KEYS[2]" in message)


def _redirect(words: list[str]) -> tuple[int, str, int] | None:
    """Slot, host and port of ``MOVED 3999 127.0.0.1:6381``; ``?`` or nothing for a host means the sender's."""
    if len(words) < 3:
        return None
    host, _, port = words[2].rpartition(":")
    slot_number, port_number = _number(words[1]), _number(port)
    # What no slot is must not get as far as the slot map.
    if slot_number is None or slot_number >= SLOTS or port_number is None or port_number == 0:
        return None
    host = "" if host == "?" else host.strip("[]")
    return (slot_number, host, port_number) if is_host(host) else None


def is_host(text: str) -> bool:
    """True for what may be a host's name or address, and for nothing at all; so that it is fit for a log, too."""
    return len(text) <= MAX_HOST and text.isascii() and text.isprintable() and " " not in text


def _number(text: str) -> int | None:
    """A number from 0 to 65535, None for anything else, however long."""
    if len(text) > 5 or not (text.isascii() and text.isdecimal()):
        return None
    number = int(text)
    return number if number <= 65535 else None
