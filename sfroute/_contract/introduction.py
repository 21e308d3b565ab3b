"""What a router says of itself in the name of its connections, and how that is read again. Pure.

``CLIENT LIST`` shows it: ``checkout;sfroute=0.1.0;contract=1;router=9f86d081;max_age=30;...``. HELLO carries it, so it
costs no command, no key and no right, and it ends with the connection. It has what makes two gateways answer
differently. Nothing in it comes from a call: no namespace, uid or credential.

Whoever reads it reads what any client of the store may have written. So only what these rules allow is read:

- at most 1024 characters in all, and 32 fields, separated by ``;``;
- a field is ``<name>=<value>``: 1 to 32 of ``a-z`` and ``_``, and at most 64 printable ASCII characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .._version import __version__
from ..config import RouterConfig
from .keys import CONTRACT_VERSION

__all__ = [
    "AGENT_NAME",
    "SETTINGS",
    "Introduction",
    "introduce",
    "read_introduction",
    "with_figures",
]

AGENT_NAME: Final = "sfroute-agent"
"""The name of the router of ``sfroute agent``. It places nobody, so its settings decide no answer."""

SETTINGS: Final = (
    ("placement", "persist_seconds"),
    ("placement", "pod_timeout"),
    ("placement", "lease_margin"),
    ("placement", "all_silent"),
    ("placement", "settle"),
    ("cache", "max_age"),
    ("cache", "max_age_untracked"),
    ("cache", "stale_if_error"),
    ("cache", "tracking"),
    ("", "at_most_once"),
    ("", "min_replica_acks"),
)
"""The part of a ``RouterConfig``, and the setting."""

_FIGURES: Final = ("entries", "lag_ms")

_MARK: Final = ";sfroute="
_MAX_LENGTH: Final = 1024
_MAX_FIELDS: Final = 32
_FIELD: Final = re.compile(r"([a-z_]{1,32})=([!-:<-~]{0,64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a router says of itself.

    Attributes:
        name: its ``RouterConfig.client_name``.
        version: of the library.
        contract: the version of the wire contract.
        router: tells it from other routers: random for each router that opens.
        settings: name -> value, as text. A later version may have others.
        entries: how many answers its cache has. None: not said yet, or on no lane.
        lag_ms: the longest that a heartbeat of this connection took lately, milliseconds: the server, the network, and
            how long the router's event loop was busy. None: not said yet, or on no lane.
    """

    name: str
    version: str
    contract: str
    router: str
    settings: Mapping[str, str]
    entries: int | None = None
    lag_ms: int | None = None


def introduce(config: RouterConfig, router: str) -> str:
    """The name of a router's connections: printable ASCII without spaces, as servers require."""
    said = [f"{config.client_name}{_MARK}{__version__}", f"contract={CONTRACT_VERSION}"]
    said.append(f"router={router}")
    for part, setting in SETTINGS:
        value = getattr(getattr(config, part) if part else config, setting)
        said.append(f"{setting}={_text(value)}")
    return ";".join(said)


def with_figures(introduction: str, entries: int, lag: float) -> str:
    """The same, with what changes; ``lag`` in seconds."""
    return f"{introduction};entries={entries};lag_ms={lag * 1000:.0f}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def read_introduction(text: str) -> Introduction | None:
    """From the name of a connection; None if it does not introduce a router. Never raises."""
    name, mark, rest = text.rpartition(_MARK)
    version, *parts = rest.split(";")
    if not mark or len(text) > _MAX_LENGTH or len(parts) > _MAX_FIELDS:
        return None
    found = [_FIELD.fullmatch(part) for part in (f"version={version}", *parts)]
    fields = {match[1]: match[2] for match in found if match is not None}
    if None in found or len(fields) != len(found) or not fields.get("router"):
        return None
    version, contract, router = (fields.pop(each, "") for each in ("version", "contract", "router"))
    entries, lag = (_count(fields.pop(each, "")) for each in _FIGURES)
    return Introduction(name, version, contract, router, fields, entries, lag)


def _count(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= 15 else None
