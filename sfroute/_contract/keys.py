"""Key formats, the rules for names, and the slot of a key.

The wire contract shared with programs in other languages::

    sf:{<namespace>:state:<service>}          hash    pod id -> state
    sf:{<namespace>:workload:<service>}       string  workload state
    sf:{<namespace>:lk:<uid>}                 hash    service -> pod id (persistent links only)
    sf:{<namespace>:lk:<uid>}<service>        string  pod id (TTL: a temporary link)
    sf:own:{<namespace>:lk:<uid>}<service>    string  claim record: "<fence> <pod> <life>"
    sf:op:{<namespace>:lk:<uid>}:<token>      string  what a write replied, for its retry

A uid often comes from an end user. A ``}`` in it would move its key to another slot, or alias another user's key. So
every name is checked before a key is built, and only this module builds keys.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..errors import InvalidArgument
from ..types import MAX_PERSIST_SECONDS, PERSIST_FOREVER

__all__ = [
    "CONTRACT_VERSION",
    "EMPTYING",
    "MAX_NAME_BYTES",
    "SLOTS",
    "CacheKey",
    "LinkKey",
    "check_encodable",
    "check_link_names",
    "check_many_link_names",
    "check_persist_seconds",
    "check_pod",
    "check_service_names",
    "check_uid",
    "check_uid_names",
    "claim_key",
    "claim_key_parts",
    "left_key",
    "link_key",
    "link_key_parts",
    "link_prefix",
    "link_tag",
    "operation_key",
    "parse_link_key",
    "rebalance_key",
    "request_key",
    "slot_of",
    "slot_of_tag",
    "state_key",
    "tag_and_slot",
    "tagged_claim_keys",
    "tagged_link_key",
    "workload_key",
]

CONTRACT_VERSION: Final = 1
"""Of the wire contract: keys, scripts and the forms of states. It grows only by a change that is no addition
(docs/explanation/versions.md)."""

SLOTS: Final = 16384
MAX_NAME_BYTES: Final = 512
MAX_POD: Final = 2**63 - 1
"""A pod id is an int64 in the Go and Java programs."""

# Unicode control characters (category Cc): C0, DEL and C1.
_BAD_IN_NAMESPACE: Final = re.compile("[:{}\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BAD_IN_NAME: Final = re.compile("[{}\x00-\x1f\x7f-\x9f]")


CacheKey = tuple[str, str, str] | tuple[str, str]
"""The key of a cache entry: ``(namespace, uid, service)`` for a link, ``(namespace, uid)`` for a uid's links. The two
differ in length, so no argument can make one equal the other."""


class LinkKey(NamedTuple):
    """Identifies a link. ``service`` is None for a uid's hash of links."""

    namespace: str
    uid: str
    service: str | None


def _check_name(argument: str, value: object, forbidden: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str):
        raise InvalidArgument(f"{argument} must be a str, not {type(value).__name__}")
    # A uid identifies a person: an error text says where it breaks the rule, never what it is.
    shown = "" if argument in ("uid", "beside") else f", not {value[:80]!r}"
    if not value:
        raise InvalidArgument(f"{argument} must not be empty")
    if len(value) > MAX_NAME_BYTES or not value.isascii():
        check_encodable(argument, value)
        size = len(value.encode())
        if size > MAX_NAME_BYTES:
            raise InvalidArgument(
                f"{argument} must be at most {MAX_NAME_BYTES} bytes in UTF-8; it is {size}"
            )
    bad = forbidden.search(value)
    if bad is not None:
        raise InvalidArgument(
            f"{argument} must not contain {rule}{shown} (character {bad.start() + 1} is one)"
        )


def check_encodable(argument: str, value: str) -> None:
    """Raise ``InvalidArgument`` unless UTF-8 can hold the text."""
    # Searched, not caught: a UnicodeEncodeError would carry the whole text into the error's context.
    if _SURROGATE.search(value) is not None:
        raise InvalidArgument(
            f"{argument} must be encodable as UTF-8; it contains a lone surrogate"
        )


_NAMESPACE_RULE: Final = "':', '{', '}' or control characters"
_NAME_RULE: Final = "'{', '}' or control characters"


# Namespaces and services are few and recur, so good ones are remembered. Uids are too many.
MAX_REMEMBERED: Final = 4096
good_namespaces: set[str] = set()
good_services: set[str] = set()


def _remember(good: set[str], name: str) -> None:
    # A subclass of str may define its own equality.
    if type(name) is str:
        if len(good) >= MAX_REMEMBERED:
            good.clear()
        good.add(name)


def _check_namespace(namespace: str) -> None:
    if type(namespace) is not str or namespace not in good_namespaces:
        _check_name("namespace", namespace, _BAD_IN_NAMESPACE, _NAMESPACE_RULE)
        _remember(good_namespaces, namespace)


def check_service_names(namespace: str, service: str) -> None:
    """Raise ``InvalidArgument`` unless both names may be part of a key."""
    _check_namespace(namespace)
    if type(service) is not str or service not in good_services:
        _check_name("service", service, _BAD_IN_NAME, _NAME_RULE)
        _remember(good_services, service)


def check_link_names(namespace: str, uid: str, service: str) -> None:
    """Raise ``InvalidArgument`` unless all three names may be part of a key."""
    # A copy of check_service_names without its frame: every miss passes through here.
    if (
        type(namespace) is not str
        or namespace not in good_namespaces
        or type(service) is not str
        or service not in good_services
    ):
        check_service_names(namespace, service)
    check_uid(uid)


def check_many_link_names(namespace: str, uids: Sequence[str], service: str) -> None:
    """``check_link_names`` for each uid."""
    check_service_names(namespace, service)
    # The rule of check_uid, applied to all uids at once: a tenth of the time in a batch.
    if not uids or (
        set(map(type, uids)) == {str}
        and min(map(len, uids)) > 0
        and max(map(len, uids)) <= MAX_NAME_BYTES
        and _is_plain("".join(uids))
    ):
        return
    for uid in uids:
        check_uid(uid)


def check_uid_names(namespace: str, uid: str) -> None:
    """Raise ``InvalidArgument`` unless both names may be part of a key."""
    _check_namespace(namespace)
    check_uid(uid)


def check_uid(uid: str, argument: str = "uid") -> None:
    """Raise ``InvalidArgument`` unless the uid may be part of a key."""
    # Fast path for a uid that is certainly well-formed. _check_name holds the rule and writes the error.
    if type(uid) is not str or not 0 < len(uid) <= MAX_NAME_BYTES or not _is_plain(uid):
        _check_name(argument, uid, _BAD_IN_NAME, _NAME_RULE)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and "{" not in text and "}" not in text


def check_pod(pod: int, argument: str = "pod") -> None:
    """Raise ``InvalidArgument`` unless ``pod`` is an int from 0 to 2**63 - 1 (a bool is not)."""
    if type(pod) is not int:
        raise InvalidArgument(
            f"{argument} must be an int >= 0 (a StatefulSet ordinal), not {pod!r:.80}"
        )
    if not 0 <= pod <= MAX_POD:
        raise InvalidArgument(f"{argument} must be from 0 to {MAX_POD}, not {_short(pod)}")


def check_persist_seconds(seconds: int) -> None:
    """Raise ``InvalidArgument`` unless ``seconds`` is ``PERSIST_FOREVER`` or a positive int of whole seconds."""
    if type(seconds) is not int:
        raise InvalidArgument(
            "persist_seconds must be PERSIST_FOREVER (-1) or a positive int of seconds, "
            f"not {seconds!r:.80}"
        )
    if seconds != PERSIST_FOREVER and not 0 < seconds <= MAX_PERSIST_SECONDS:
        raise InvalidArgument(
            "persist_seconds must be PERSIST_FOREVER (-1) or from 1 to "
            f"{MAX_PERSIST_SECONDS}, not {_short(seconds)}"
        )


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**24 else "a far larger number"


EMPTYING: Final = "~empty:"
"""Begins, before a pod id, the name of a field of the state hash: the pod is being emptied."""


def left_key(namespace: str, uid: str, service: str) -> str:
    """Where it is noted why a link was moved, from where, and when; one of the records that writes keep."""
    return operation_key(namespace, uid, f"left:{service}")


def request_key(namespace: str, uid: str, service: str) -> str:
    """Where the pod that has the uid is asked to hand it over; it expires like the records that writes keep."""
    return operation_key(namespace, uid, f"to:{service}")


def rebalance_key(namespace: str, service: str) -> str:
    """The string that whoever rebalances a service holds meanwhile. Checks both names."""
    check_service_names(namespace, service)
    return f"sf:{{{namespace}:rebalance:{service}}}"


def state_key(namespace: str, service: str) -> str:
    """The hash of a service's pod states. Checks both names."""
    check_service_names(namespace, service)
    return f"sf:{{{namespace}:state:{service}}}"


def workload_key(namespace: str, service: str) -> str:
    """The string that holds a service's workload state. Checks both names."""
    check_service_names(namespace, service)
    return f"sf:{{{namespace}:workload:{service}}}"


def link_prefix(namespace: str, uid: str) -> str:
    """The hash of a uid's persistent links; also the prefix of each of its link keys. Does not check."""
    return f"sf:{{{namespace}:lk:{uid}}}"


def link_key(namespace: str, uid: str, service: str) -> str:
    """The string that holds one link. Does not check: call ``check_link_names`` first."""
    return f"sf:{{{namespace}:lk:{uid}}}{service}"


def link_tag(namespace: str, uid: str) -> bytes:
    """The hash tag of a uid's keys, as bytes, for ``slot_of_tag`` and ``tagged_link_key``. Does not check."""
    return f"{namespace}:lk:{uid}".encode()


def tag_and_slot(namespace: str, uid: str) -> tuple[bytes, int]:
    """``link_tag`` and ``slot_of_tag`` at once."""
    tag = f"{namespace}:lk:{uid}".encode()
    return tag, binascii.crc_hqx(tag, 0) & (SLOTS - 1)


def tagged_link_key(tag: bytes, service: str) -> bytes:
    """``link_key`` as bytes, from a tag. ``service=""`` gives ``link_prefix``."""
    return b"sf:{%b}%b" % (tag, service.encode())


def tagged_claim_keys(tag: bytes, service: str) -> bytes:
    """Link, hash and claim record from a tag that is there already, as the three bulk strings of a command."""
    link = b"sf:{%b}%b" % (tag, service.encode())
    size = len(link)
    return b"$%d\r\n%b\r\n$%d\r\nsf:{%b}\r\n$%d\r\nsf:own:%b\r\n" % (
        size,
        link,
        len(tag) + 5,
        tag,
        size + 4,
        link[3:],
    )


def slot_of_tag(tag: bytes) -> int:
    """The slot of the keys with this hash tag."""
    return binascii.crc_hqx(tag, 0) & (SLOTS - 1)


def claim_key(namespace: str, uid: str, service: str) -> str:
    """The claim record of a link: which life of which pod owns the uid, and the fence. Does not check."""
    return f"sf:own:{{{namespace}:lk:{uid}}}{service}"


def operation_key(namespace: str, uid: str, token: str) -> str:
    """The operation record of a write on this uid's links: its reply, for its own retry. Does not check."""
    return f"sf:op:{{{namespace}:lk:{uid}}}:{token}"


def parse_link_key(key: bytes) -> LinkKey | None:
    """The inverse of ``link_key`` and ``link_prefix``. None for any other key."""
    parts = link_key_parts(key)
    if parts is None:
        return None
    return LinkKey(*parts) if len(parts) == 3 else LinkKey(*parts, None)


def link_key_parts(key: bytes) -> tuple[str, str, str] | tuple[str, str] | None:
    """Namespace and uid, and the service if the key names one. None for any other key.

    Every invalidation passes through here, so it makes two cuts and no named tuple.
    """
    try:
        head, brace, service = key.decode().partition("}")
    except UnicodeDecodeError:
        return None
    start, _, uid = head.partition(":lk:")
    namespace = start[4:]
    if not (brace and uid and namespace and start.startswith("sf:{")) or ":" in namespace:
        return None
    return (namespace, uid, service) if service else (namespace, uid)


def claim_key_parts(key: bytes) -> tuple[str, str, str] | tuple[str, str] | None:
    """Namespace, uid and service of a claim record. None for any other key."""
    return link_key_parts(b"sf:" + key[7:]) if key.startswith(b"sf:own:{") else None


def slot_of(key: str | bytes) -> int:
    """The cluster slot of a key (CRC-16/XMODEM of its hash tag modulo 16384, Redis Cluster specification)."""
    raw = key.encode() if isinstance(key, str) else key
    start = raw.find(b"{")
    if start >= 0:
        end = raw.find(b"}", start + 1)
        if end > start + 1:
            raw = raw[start + 1 : end]
    return slot_of_tag(raw)
