"""Key formats, the rules for names, and the slot of a key.

This is the wire contract shared with programs in other languages::

    sf:{<namespace>:state:<service>}          hash    pod id -> state
    sf:{<namespace>:workload:<service>}       string  workload state
    sf:{<namespace>:lk:<uid>}                 hash    service -> pod id (persistent links only)
    sf:{<namespace>:lk:<uid>}<service>        string  pod id (TTL: a temporary link)
    sf:op:{<namespace>:lk:<uid>}:<token>      string  what a write replied, for its retry

A uid often comes from an end user, and a ``}`` in it would move its key to another slot or alias another user's key. So
every name is checked before a key is built, and only this module builds keys.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from .errors import InvalidArgument
from .types import MAX_PERSIST_SECONDS, PERSIST_FOREVER

__all__ = [
    "MAX_NAME_BYTES",
    "SLOTS",
    "LinkKey",
    "check_encodable",
    "check_link_names",
    "check_many_link_names",
    "check_persist_seconds",
    "check_pod",
    "check_service_names",
    "check_uid_names",
    "link_key",
    "link_key_parts",
    "link_prefix",
    "link_tag",
    "operation_key",
    "parse_link_key",
    "slot_of",
    "slot_of_tag",
    "state_key",
    "tag_and_slot",
    "tagged_link_key",
    "workload_key",
]

SLOTS: Final = 16384
MAX_NAME_BYTES: Final = 512
MAX_POD: Final = 2**63 - 1
"""A pod id is an int64 in the Go and Java programs."""

# Control characters of Unicode (category Cc): C0, DEL and C1.
_BAD_IN_NAMESPACE: Final = re.compile("[:{}\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BAD_IN_NAME: Final = re.compile("[{}\x00-\x1f\x7f-\x9f]")


class LinkKey(NamedTuple):
    """What identifies a link; also the key of its cache entry. ``service`` is None for a uid's hash of links."""

    namespace: str
    uid: str
    service: str | None


def _check_name(argument: str, value: object, forbidden: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str):
        raise InvalidArgument(f"{argument} must be a str, not {type(value).__name__}")
    # A uid is a person's: an error text shows where it breaks the rule, never what it is.
    shown = "" if argument == "uid" else f", not {value[:80]!r}"
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
    # Searched for, not caught: a UnicodeEncodeError carries the whole text into the error's context.
    if _SURROGATE.search(value) is not None:
        raise InvalidArgument(
            f"{argument} must be text that UTF-8 can hold; it has a lone surrogate"
        )


_NAMESPACE_RULE: Final = "':', '{', '}' or control characters"
_NAME_RULE: Final = "'{', '}' or control characters"


# Namespaces and services are few and used again and again; uids are many: only the former are remembered.
MAX_REMEMBERED: Final = 4096
_good_namespaces: set[str] = set()
_good_services: set[str] = set()


def _remember(good: set[str], name: str) -> None:
    # Of a subclass of str nobody knows what it equals.
    if type(name) is str:
        if len(good) >= MAX_REMEMBERED:
            good.clear()
        good.add(name)


def _check_namespace(namespace: str) -> None:
    if type(namespace) is not str or namespace not in _good_namespaces:
        _check_name("namespace", namespace, _BAD_IN_NAMESPACE, _NAMESPACE_RULE)
        _remember(_good_namespaces, namespace)


def check_service_names(namespace: str, service: str) -> None:
    """Raise ``InvalidArgument`` unless both names may be part of a key."""
    _check_namespace(namespace)
    if type(service) is not str or service not in _good_services:
        _check_name("service", service, _BAD_IN_NAME, _NAME_RULE)
        _remember(_good_services, service)


def check_link_names(namespace: str, uid: str, service: str) -> None:
    """Raise ``InvalidArgument`` unless all three names may be part of a key."""
    # As check_service_names, without its frame: every miss comes by here.
    if (
        type(namespace) is not str
        or namespace not in _good_namespaces
        or type(service) is not str
        or service not in _good_services
    ):
        check_service_names(namespace, service)
    _check_uid(uid)


def check_many_link_names(namespace: str, uids: Sequence[str], service: str) -> None:
    """``check_link_names`` for each uid."""
    check_service_names(namespace, service)
    # Well-formed ones all at once, as _check_uid does one; in a batch that is a tenth of the time.
    if not uids or (
        set(map(type, uids)) == {str}
        and min(map(len, uids)) > 0
        and max(map(len, uids)) <= MAX_NAME_BYTES
        and _is_plain("".join(uids))
    ):
        return
    for uid in uids:
        _check_uid(uid)


def check_uid_names(namespace: str, uid: str) -> None:
    """Raise ``InvalidArgument`` unless both names may be part of a key."""
    _check_namespace(namespace)
    _check_uid(uid)


def _check_uid(uid: str) -> None:
    # What is certainly well-formed; the slow path has the rule, and finds the words for a bad one.
    if type(uid) is not str or not 0 < len(uid) <= MAX_NAME_BYTES or not _is_plain(uid):
        _check_name("uid", uid, _BAD_IN_NAME, _NAME_RULE)


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


def state_key(namespace: str, service: str) -> str:
    """The hash of a service's pod states. Checks both names."""
    check_service_names(namespace, service)
    return f"sf:{{{namespace}:state:{service}}}"


def workload_key(namespace: str, service: str) -> str:
    """The string that holds a service's workload state. Checks both names."""
    check_service_names(namespace, service)
    return f"sf:{{{namespace}:workload:{service}}}"


def link_prefix(namespace: str, uid: str) -> str:
    """The hash of a uid's persistent links, which is also the prefix of each of its link keys. Does not check."""
    return f"sf:{{{namespace}:lk:{uid}}}"


def link_key(namespace: str, uid: str, service: str) -> str:
    """The string that holds one link. Does not check: call ``check_link_names`` first."""
    return f"sf:{{{namespace}:lk:{uid}}}{service}"


def link_tag(namespace: str, uid: str) -> bytes:
    """The hash tag of a uid's keys, as bytes; what ``slot_of_tag`` and ``tagged_link_key`` take. Does not check."""
    return f"{namespace}:lk:{uid}".encode()


def tag_and_slot(namespace: str, uid: str) -> tuple[bytes, int]:
    """``link_tag`` and ``slot_of_tag`` at once."""
    tag = f"{namespace}:lk:{uid}".encode()
    return tag, binascii.crc_hqx(tag, 0) & (SLOTS - 1)


def tagged_link_key(tag: bytes, service: str) -> bytes:
    """``link_key`` as bytes, from a tag that is there already; ``service=""`` gives ``link_prefix``."""
    return b"sf:{%b}%b" % (tag, service.encode())


def slot_of_tag(tag: bytes) -> int:
    """The slot of the keys with this hash tag."""
    return binascii.crc_hqx(tag, 0) & (SLOTS - 1)


def operation_key(namespace: str, uid: str, token: str) -> str:
    """Where a write on this uid's links leaves its reply for its own retry. Does not check."""
    return f"sf:op:{{{namespace}:lk:{uid}}}:{token}"


def parse_link_key(key: bytes) -> LinkKey | None:
    """The inverse of ``link_key`` and ``link_prefix``; None for any other key."""
    parts = link_key_parts(key)
    if parts is None:
        return None
    return LinkKey(*parts) if len(parts) == 3 else LinkKey(*parts, None)


def link_key_parts(key: bytes) -> tuple[str, str, str] | tuple[str, str] | None:
    """Namespace and uid, and the service if the key names one; None for a key that is no link's.

    Every push of an invalidation comes by here: two cuts, and no named tuple.
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


def slot_of(key: str | bytes) -> int:
    """The cluster slot of a key (CRC-16/XMODEM of its hash tag modulo 16384, Redis Cluster specification)."""
    raw = key.encode() if isinstance(key, str) else key
    start = raw.find(b"{")
    if start >= 0:
        end = raw.find(b"}", start + 1)
        if end > start + 1:
            raw = raw[start + 1 : end]
    return slot_of_tag(raw)
