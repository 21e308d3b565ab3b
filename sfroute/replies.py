"""Raw replies into values, or ``CorruptReply``.

Pure: what a reply may be is decided here and nowhere else. Keys are given only for the error, whose text masks the uid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .errors import CorruptReply, StoreError
from .failures import Failure
from .keys import MAX_POD, parse_link_key

__all__ = [
    "corrupt",
    "first",
    "links",
    "masked_key",
    "owner",
    "pod",
    "pod_states",
    "refused",
    "script_pod",
    "text",
]


KeyName = str | Callable[[], str]
"""A key for the error, or how to name it: on the way of a look-up that has none, a name would be made for nothing."""


def masked_key(key: str) -> str:
    """The key with its uid hidden, for error texts."""
    parsed = parse_link_key(key.encode("utf-8", "replace"))
    if parsed is not None:
        return f"sf:{{{parsed.namespace}:lk:***}}{parsed.service or ''}"
    if key.startswith("sf:{") and ":lk:" not in key:
        return key
    return "a key outside the contract" if not key.startswith("sf:op:") else "sf:op:***"


def corrupt(key: KeyName, found: str) -> CorruptReply:
    """The error for a key that holds ``found`` where the contract asks for something else."""
    key = key if isinstance(key, str) else key()
    return CorruptReply(
        f"{masked_key(key)} holds {found}; repair or delete the key (its full name is in .key)",
        key=key,
    )


def pod(raw: object, key: KeyName) -> int | None:
    """A pod id from a string value: None if there is none."""
    if raw is None:
        return None
    number = _pod_id(raw)
    if number is None:
        raise corrupt(key, "something that is no pod id (a decimal int >= 0)")
    return number


def _pod_id(raw: object) -> int | None:
    """The pod id that a string stands for, None if it is none."""
    if isinstance(raw, bytes) and len(raw) <= 19 and raw.isdigit():
        number = int(raw)
        if number <= MAX_POD:
            return number
    return None


def script_pod(raw: object, key: str) -> int | None:
    """A pod id from a script's reply, where ``-1`` stands for none."""
    return None if raw == b"-1" else pod(raw, key)


def first(reply: object) -> object:
    """The first element of a script's reply, None if there is none."""
    return reply[0] if isinstance(reply, list) and reply else None


def owner(reply: object, key: str) -> int:
    """The owner that a script's reply begins with."""
    found = pod(first(reply), key)
    if found is None:
        raise corrupt(key, "no owner")
    return found


def _pairs(raw: object, key: KeyName) -> list[tuple[object, object]]:
    if isinstance(raw, Mapping):
        return list(raw.items())
    if isinstance(raw, Sequence) and not isinstance(raw, (bytes, str)) and len(raw) % 2 == 0:
        return list(zip(raw[::2], raw[1::2], strict=True))
    raise corrupt(key, "no hash")


def links(raw: object, key: KeyName) -> dict[str, int]:
    """A uid's links, service -> pod id, from HGETALL."""
    found: dict[str, int] = {}
    for field, value in _pairs(raw, key):
        number = pod(value, key)
        if number is None:
            raise corrupt(key, "a field without a value")
        found[text(field, key)] = number
    return found


def pod_states(raw: object, key: str) -> dict[int, str]:
    """Pod id -> state string from HGETALL; fields that are not pod ids are skipped."""
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
    # Of more digits Python would make no number, or no float.
    if len(digits) > 19 or not (digits.isascii() and digits.isdecimal()):
        raise corrupt(key, "no age")
    return int(digits) / 1000


def text(raw: object, key: KeyName) -> str:
    """A UTF-8 string; bytes that are none are kept as backslash escapes."""
    if not isinstance(raw, bytes):
        raise corrupt(key, "no string")
    return raw.decode("utf-8", "backslashreplace")


def refused(failure: Failure, operation: str) -> StoreError:
    """The error for a command the store will not execute, with what to do about it."""
    advice = {
        "NOPERM": "give the router's user the rights listed in docs/how-to/secure.md",
        "NOAUTH": "give a user name and a password",
        "MOVED": "the server is a node of a cluster: use a redis+cluster:// URL or a RedisCluster client",
    }.get(failure.code, "the server's log may say more")
    return StoreError(
        f"{operation}: the store refused the command ({failure.code}); {advice}",
        operation=operation,
    )


def service_pods(raw: object, key: str) -> list[tuple[int, str, float | None]]:
    """Pod id, state and age in seconds (None: no stamp) of each pod, from ``statefulGetService``."""
    if not isinstance(raw, list) or len(raw) % 3 != 1:
        raise corrupt(key, "no pod states")
    found: list[tuple[int, str, float | None]] = []
    for field, state, age in zip(raw[1::3], raw[2::3], raw[3::3], strict=True):
        number = _pod_id(field)
        if number is not None:
            found.append((number, text(state, key), _age(age, key)))
    return found


def server_time(raw: object, key: str) -> float:
    """The server's clock in seconds since 1970, from ``statefulGetService``."""
    seconds = _age(raw[0], key) if isinstance(raw, list) and raw else None
    if seconds is None:
        raise corrupt(key, "no time")
    return seconds
