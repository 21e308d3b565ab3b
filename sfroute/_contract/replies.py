"""Turns raw replies into values, or raises ``CorruptReply``. Pure.

Only this module decides what a reply may be. Callers pass keys for the error alone; its text masks the uid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args

from ..errors import CorruptReply, StoreError, StoreUnavailable
from .claims import Outcome
from .error_replies import Failure, Kind, meaning
from .keys import MAX_POD, claim_key_parts, parse_link_key

__all__ = [
    "claim_outcome",
    "claimed",
    "corrupt",
    "fields",
    "first",
    "links",
    "masked_key",
    "name",
    "owner",
    "pod",
    "pod_states",
    "refused",
    "script_pod",
    "service_notes",
    "text",
]


KeyName = str | Callable[[], str]
"""A key for the error, or a function that builds it. A lookup builds no key that no error needs."""


def masked_key(key: str) -> str:
    """The key with its uid masked, for error texts."""
    parsed = parse_link_key(key.encode("utf-8", "replace"))
    if parsed is not None:
        return f"sf:{{{parsed.namespace}:lk:***}}{parsed.service or ''}"
    if key.startswith("sf:{") and ":lk:" not in key:
        return key
    claim = claim_key_parts(key.encode("utf-8", "replace"))
    if claim is not None:
        return f"sf:own:{{{claim[0]}:lk:***}}{''.join(claim[2:])}"
    for kind in ("sf:op:", "sf:own:"):
        if key.startswith(kind):
            return f"{kind}***"
    return "a key outside the contract"


def corrupt(key: KeyName, found: str) -> CorruptReply:
    """The error for a key that holds ``found``, which the contract does not allow."""
    key = key if isinstance(key, str) else key()
    return CorruptReply(
        f"{masked_key(key)} holds {found}; repair or delete the key (its full name is in .key)",
        key=key,
    )


def pod(raw: object, key: KeyName) -> int | None:
    """A pod id from a string value. None if the key does not exist."""
    if raw is None:
        return None
    number = _pod_id(raw)
    if number is None:
        raise corrupt(key, "a value that is not a pod id (a decimal int >= 0)")
    return number


def _pod_id(raw: object) -> int | None:
    """The pod id that a string holds. None if it is not one."""
    if isinstance(raw, bytes) and len(raw) <= 19 and raw.isdigit():
        number = int(raw)
        if number <= MAX_POD:
            return number
    return None


def script_pod(raw: object, key: str) -> int | None:
    """A pod id from a script's reply, where ``-1`` means no pod."""
    return None if raw == b"-1" else pod(raw, key)


def first(reply: object) -> object:
    """The first element of a script's reply. None if there is none."""
    return reply[0] if isinstance(reply, list) and reply else None


def owner(reply: object, key: str) -> int:
    """The owner, the first element of a script's reply."""
    found = pod(first(reply), key)
    if found is None:
        raise corrupt(key, "no valid owner")
    return found


def _pairs(raw: object, key: KeyName) -> list[tuple[object, object]]:
    if isinstance(raw, Mapping):
        return list(raw.items())
    if isinstance(raw, Sequence) and not isinstance(raw, (bytes, str)) and len(raw) % 2 == 0:
        return list(zip(raw[::2], raw[1::2], strict=True))
    raise corrupt(key, "a value that is not a hash")


def links(raw: object, key: KeyName) -> dict[str, int]:
    """A uid's links (service -> pod id) from HGETALL."""
    found: dict[str, int] = {}
    for field, value in _pairs(raw, key):
        number = pod(value, key)
        if number is None:
            raise corrupt(key, "a field without a value")
        found[text(field, key)] = number
    return found


def fields(raw: object, key: KeyName) -> list[object]:
    """The fields of a hash from HGETALL, whatever their values."""
    return [field for field, _ in _pairs(raw, key)]


def name(raw: object, key: KeyName) -> str:
    """The name of a field. What is not UTF-8 is no name of ours."""
    try:
        return raw.decode() if isinstance(raw, bytes) else text(raw, key)
    except UnicodeDecodeError:
        raise corrupt(key, "a field that is not UTF-8") from None


def pod_states(raw: object, key: str) -> dict[int, str]:
    """Pod id -> state string from HGETALL. Skips fields that are not pod ids."""
    states: dict[int, str] = {}
    for field, value in _pairs(raw, key):
        number = _pod_id(field)
        if number is not None:
            states[number] = text(value, key)
    return states


def _age(raw: object, key: str) -> float | None:
    digits = text(raw, key)
    if digits == "-1":
        return None
    # Python refuses to convert far more digits to an int, or the int to a float.
    if len(digits) > 19 or not (digits.isascii() and digits.isdecimal()):
        raise corrupt(key, "an invalid age")
    return int(digits) / 1000


def text(raw: object, key: KeyName) -> str:
    """A string from UTF-8. Invalid bytes become backslash escapes."""
    if not isinstance(raw, bytes):
        raise corrupt(key, "a value that is not a string")
    return raw.decode("utf-8", "backslashreplace")


def refused(failure: Failure, operation: str, server: str = "the store") -> StoreError:
    """The error for a command that ``server`` refuses, with what to do about it."""
    if failure.kind is Kind.FULL:
        return StoreUnavailable(
            f"{operation}: {server} refused the command ({failure.code}: {meaning(failure.code)}); nothing was changed",
            operation=operation,
        )
    advice = {
        "NOPERM": "grant the router's user the permissions listed in docs/how-to/secure.md",
        "NOAUTH": "give a user name and a password",
        "MOVED": "the server is a node of a cluster: use a redis+cluster:// URL or a RedisCluster client",
    }.get(failure.code, "the server's log may say more")
    return StoreError(
        f"{operation}: {server} refused the command ({failure.code}); {advice}",
        operation=operation,
    )


def claimed(
    reply: object, key: str
) -> tuple[int, Literal["placed", "kept", "inherited", "refused"], int]:
    """Owner, outcome and fence, from ``statefulClaim``."""
    if isinstance(reply, list) and len(reply) == 3:
        how, fence = reply[1], reply[2]
        for known in ("placed", "kept", "inherited", "refused"):
            if (
                how == known.encode()
                and isinstance(fence, bytes)
                and fence.isdigit()
                and len(fence) < 17
            ):
                return owner(reply, key), known, int(fence)
    raise corrupt(key, "no reply of a claim")


_OUTCOMES: Final[dict[object, Outcome]] = {
    outcome.encode(): outcome for outcome in get_args(Outcome)
}


def claim_outcome(reply: object) -> tuple[Outcome, int | None] | None:
    """What became of a claim, and the owner, from ``statefulConfirmClaim``; None for anything else."""
    if not isinstance(reply, list) or len(reply) != 3:
        return None
    outcome = _OUTCOMES.get(reply[1]) if isinstance(reply[1], bytes) else None
    return None if outcome is None else (outcome, _pod_id(reply[0]))


def service_pods(raw: object, key: str) -> list[tuple[int, str, float | None]]:
    """Each pod's id, state and age in seconds (None without a stamp), from ``statefulGetService``."""
    if not isinstance(raw, list) or len(raw) % 3 != 1:
        raise corrupt(key, "an invalid list of pod states")
    found: list[tuple[int, str, float | None]] = []
    for field, state, age in zip(raw[1::3], raw[2::3], raw[3::3], strict=True):
        number = _pod_id(field)
        if number is not None:
            found.append((number, text(state, key), _age(age, key)))
    return found


def stored_state(raw: object, key: str) -> tuple[str | None, bool, int]:
    """The state before, whether the new one is stored, and when the life that has the pod id started, from
    ``statefulSetState`` with a life.
    """
    if isinstance(raw, list) and len(raw) == 4 and raw[2] in (b"stored", b"superseded"):
        up = raw[3]
        if isinstance(up, bytes) and up.isdigit() and len(up) < 17:
            previous = None if raw[1] is None else text(raw[1], key)
            return previous, raw[2] == b"stored", int(up)
    raise corrupt(key, "no reply of a heartbeat")


def service_notes(raw: object, key: str, prefix: str) -> list[tuple[int, float | None]]:
    """Pod id and age of the fields that say something of a pod: those named ``prefix`` and its id."""
    if not isinstance(raw, list) or len(raw) % 3 != 1:
        raise corrupt(key, "no pod states")
    start = prefix.encode()
    found: list[tuple[int, float | None]] = []
    for field, age in zip(raw[1::3], raw[3::3], strict=True):
        if isinstance(field, bytes) and field.startswith(start):
            number = _pod_id(field.removeprefix(start))
            if number is not None:
                found.append((number, _age(age, key)))
    return found


def server_time(raw: object, key: str) -> float:
    """The server's clock in seconds since 1970, from ``statefulGetService``."""
    seconds = _age(raw[0], key) if isinstance(raw, list) and raw else None
    if seconds is None:
        raise corrupt(key, "an invalid time")
    return seconds
