"""Options of a store URL, under redis-py's names: each is honoured, or refused with the reason. Nothing is ignored.

The two tables below name every option of redis-py; a test walks redis-py's own parameter lists against them.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from ..errors import ConfigError

__all__ = ["HONOURED", "REFUSED", "read_options"]

_TRUE: Final = {"1", "true", "t", "yes", "y", "on"}
_FALSE: Final = {"0", "false", "f", "no", "n", "off"}


def _flag(value: str) -> bool:
    """redis-py takes every other word for true, and so ``flase``, too."""
    lower = value.lower()
    if lower not in _TRUE | _FALSE:
        raise ValueError
    return lower in _TRUE


def _seconds(value: str) -> float:
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError
    return seconds


def _one_of(*values: str) -> Callable[[str], str]:
    return lambda value: values[values.index(value)]


def _verify_flags(value: str) -> list[ssl.VerifyFlags]:
    """Such as ``VERIFY_X509_STRICT, VERIFY_X509_PARTIAL_CHAIN``, in brackets or not, as redis-py reads them."""
    names = [name.strip() for name in value.strip("[] ").split(",")]
    return [ssl.VerifyFlags[name] for name in names if name]


def _only(accepted: object, kind: Callable[[str], object]) -> Callable[[str], object]:
    """For an option that can have one value here."""

    def read(value: str) -> object:
        if kind(value) != accepted:
            raise ValueError
        return accepted

    return read


class _Option(NamedTuple):
    """How to read a value (``ValueError`` or ``KeyError``: it is none), and what to say of one that is none."""

    read: Callable[[str], object]
    hint: str


_TEXT: Final = _Option(str, "it is a text")
_FLAG: Final = _Option(_flag, "it is true or false")
_FLAGS: Final = _Option(_verify_flags, "it names members of ssl.VerifyFlags, separated by commas")

HONOURED: Final[Mapping[str, _Option]] = {
    "username": _TEXT,
    "password": _TEXT,
    "db": _Option(
        _only(0, int), "the URL must not name a database other than 0: a cluster has no other"
    ),
    "client_name": _TEXT,
    "socket_connect_timeout": _Option(_seconds, "it is a number of seconds > 0"),
    "protocol": _Option(
        _only(3, int), "what changes is pushed in RESP3 only; leave it out, or say 3"
    ),
    "read_from_replicas": _Option(
        _only(False, _flag),
        "a replica may be behind its primary, so that answers would be older than promised; leave it out",
    ),
    "ssl": _FLAG,
    "ssl_ca_certs": _TEXT,
    "ssl_ca_data": _TEXT,
    "ssl_ca_path": _TEXT,
    "ssl_cert_reqs": _Option(
        _one_of("none", "optional", "required"), "it is none, optional or required"
    ),
    "ssl_certfile": _TEXT,
    "ssl_check_hostname": _FLAG,
    "ssl_ciphers": _TEXT,
    "ssl_exclude_verify_flags": _FLAGS,
    "ssl_include_verify_flags": _FLAGS,
    "ssl_keyfile": _TEXT,
    "ssl_min_version": _Option(
        lambda value: ssl.TLSVersion(int(value)),
        "it is the number of an ssl.TLSVersion, such as 771",
    ),
    "ssl_password": _TEXT,
}
"""What has an effect."""

_NODES: Final = "nodes stand before the question mark, as host:port, separated by commas"
_ONE_CONNECTION: Final = (
    "one pipelined connection per node replaces the pool; see RouterConfig.max_in_flight"
)
_DEADLINE: Final = (
    "a call has one deadline, retries included; set RetryConfig.deadline (a silent server is noticed by "
    "CacheConfig.heartbeat_timeout)"
)
_RETRIES: Final = "retries have rules and a deadline of their own; see RetryConfig"
_OBJECT: Final = "it is an object, which no URL can hold"
_REPLIES: Final = (
    "it changes how redis-py shows replies, and a router's answers are the same whatever it says"
)
_TOPOLOGY: Final = (
    "the router follows the slot map by rules of its own; see docs/explanation/architecture.md"
)
_OCSP: Final = "OCSP is not supported, and leaving the check out silently would be worse"

REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("host", "port", "startup_nodes", "url"), _NODES),
    **dict.fromkeys(("path", "unix_socket_path"), "a Unix socket is not supported; connect by TCP"),
    **dict.fromkeys(
        (
            "max_connections",
            "timeout",
            "queue_class",
            "single_connection_client",
            "auto_close_connection_pool",
        ),
        _ONE_CONNECTION,
    ),
    "socket_timeout": _DEADLINE,
    **dict.fromkeys(
        ("retry", "retry_on_error", "retry_on_timeout", "cluster_error_retry_attempts"), _RETRIES
    ),
    **dict.fromkeys(
        ("decode_responses", "encoding", "encoding_errors", "legacy_responses"), _REPLIES
    ),
    **dict.fromkeys(
        ("require_full_coverage", "dynamic_startup_nodes", "reinitialize_steps"), _TOPOLOGY
    ),
    "load_balancing_strategy": "links are read from primaries only: a replica may be behind",
    "health_check_interval": "set CacheConfig.heartbeat instead: every connection is pinged that often",
    **dict.fromkeys(
        ("socket_keepalive", "socket_keepalive_options"),
        "TCP keepalive is always on, and the heartbeat notices earlier; see CacheConfig.heartbeat",
    ),
    "socket_read_size": "what is read at once is bounded so that the event loop stays free",
    "socket_type": "it is always a stream",
    **dict.fromkeys(
        ("lib_name", "lib_version", "driver_info"),
        "CLIENT SETINFO is not sent: it takes one more right; set client_name",
    ),
    "address_remap": "it is a function, which no URL can hold; set RouterConfig.address_remap",
    "credential_provider": (
        "it is an object, which no URL can hold; give it to a redis-py client, and that to the router"
    ),
    **dict.fromkeys(
        (
            "ssl_validate_ocsp",
            "ssl_validate_ocsp_stapled",
            "ssl_ocsp_context",
            "ssl_ocsp_expected_cert",
        ),
        _OCSP,
    ),
    **dict.fromkeys(
        (
            "cache",
            "cache_config",
        ),
        "the router has a cache of its own; see CacheConfig",
    ),
    **dict.fromkeys(
        (
            "command_packer",
            "connection_class",
            "connection_pool",
            "connection_pool_class",
            "encoder_class",
            "event_dispatcher",
            "himport_registry",
            "maint_notifications_config",
            "maint_notifications_pool_handler",
            "maintenance_notification_hash",
            "maintenance_state",
            "nodes_flag",
            "orig_host_address",
            "orig_socket_connect_timeout",
            "orig_socket_timeout",
            "oss_cluster_maint_notifications_handler",
            "parser_class",
            "policy_resolver",
            "redis_connect_func",
        ),
        _OBJECT,
    ),
}
"""Name -> why there is nothing to honour, and what to do instead."""


def read_options(query: str) -> dict[str, Any]:
    """The options of a URL's query string, read.

    Raises:
        ConfigError: an option that is refused, unknown, given twice, or has no such value. The text never repeats a
            value, which may be a secret.
    """
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        # A password that was not percent-encoded may have ended up here.
        shown = name if name.isidentifier() and len(name) <= 40 else "that it names"
        if name in REFUSED:
            raise ConfigError(f"the URL's option {name} is not honoured: {REFUSED[name]}")
        if name not in HONOURED:
            raise ConfigError(
                f"redis-py does not know the option {shown} of the URL; use the names of its keyword arguments"
            )
        if name in options:
            raise ConfigError(f"the URL gives the option {name} twice; give it once")
        if not value:
            raise ConfigError(f"the URL's option {name} has no value; give one or leave it out")
        try:
            options[name] = HONOURED[name].read(value)
        except (ValueError, KeyError):
            # Python's own texts repeat the value.
            raise ConfigError(
                f"the URL's option {name} cannot be used: {HONOURED[name].hint}"
            ) from None
    return options
