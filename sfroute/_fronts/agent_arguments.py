"""What an agent may be told, checked before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from .._contract.attributes import check_address, check_labels, check_pod_name
from ..errors import InvalidArgument
from ..types import MAX_LEASE_MS, MAX_PERSIST_SECONDS, PERSIST_FOREVER

__all__ = ["check_deadline", "fields_of_state", "seconds_of"]

MAX_SECONDS: Final = 10.0**9
RESERVED: Final = frozenset(
    {
        *("status", "load", "at", "by", "up", "before", "lease", "confirmed", "capacity", "drain"),
        *("address", "labels", "max_claims", "room", "name"),
    }
)
"""Fields of the state that the agent writes itself."""


def fields_of_state(
    extra: Mapping[str, object] | None,
    *,
    load: object,
    heartbeat: float,
    capacity: float | None,
    forget_after: float,
    lease: float | None,
    confirm_every: float,
    max_claims: int | None,
    address: str | None,
    labels: Mapping[str, str] | None,
    name: str | None,
) -> dict[str, object]:
    """The fields of the state that stay the same in every heartbeat: ``extra``, and what the pod says of itself.

    Raises ``InvalidArgument`` for an argument that an agent cannot have.
    """
    if not _is_positive(heartbeat):
        raise InvalidArgument("heartbeat must be seconds > 0")
    if capacity is not None and not _is_positive(capacity):
        raise InvalidArgument("capacity must be a number > 0")
    if not _is_positive(forget_after) or not 10 * heartbeat <= forget_after <= MAX_SECONDS:
        raise InvalidArgument("forget_after must be seconds, at least ten heartbeats")
    longest = MAX_LEASE_MS / 1000
    if lease is not None and not (_is_positive(lease) and 2 * heartbeat <= lease <= longest):
        raise InvalidArgument(
            "lease must be seconds, at least two heartbeats and at most a day, or None"
        )
    if not _is_positive(confirm_every):
        raise InvalidArgument("confirm_every must be seconds > 0")
    if load is not None and not callable(load):
        raise InvalidArgument("load must be a function that returns a number, or None")
    if extra is not None and (not isinstance(extra, Mapping) or RESERVED & extra.keys()):
        raise InvalidArgument(
            f"extra must be a mapping without the fields {', '.join(sorted(RESERVED))}"
        )
    if max_claims is not None and (type(max_claims) is not int or max_claims < 1):
        raise InvalidArgument("max_claims must be an int >= 1, or None")
    check_address(address)
    check_labels(labels)
    check_pod_name(name)
    own: dict[str, object] = {
        "capacity": capacity,
        "lease": None if lease is None else round(lease * 1000),
        "max_claims": max_claims,
        "address": address,
        "labels": dict(labels) if labels else None,
        "name": name,
    }
    said = {name: value for name, value in own.items() if value is not None}
    try:
        # A copy: a later change of the application's mapping must not end the heartbeats.
        fields: dict[str, object] = json.loads(
            json.dumps({**(extra or {}), **said}, allow_nan=False)
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgument("extra must be what JSON can hold") from error
    return fields


def _is_positive(value: object) -> bool:
    """True for a number of seconds, or of shares, that makes sense."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value <= MAX_SECONDS


def check_deadline(deadline: float) -> None:
    """Raise ``InvalidArgument`` unless it is a number of seconds, 0 or more."""
    is_zero = not isinstance(deadline, bool) and deadline == 0
    if not (is_zero or _is_positive(deadline)):
        raise InvalidArgument("deadline must be seconds >= 0")


def seconds_of(grace: int | None) -> int:
    """A grace period as the scripts take it. Raises ``InvalidArgument``."""
    if grace is None:
        return PERSIST_FOREVER
    if type(grace) is not int or not 0 < grace <= MAX_PERSIST_SECONDS:
        raise InvalidArgument(
            f"grace must be whole seconds from 1 to {MAX_PERSIST_SECONDS}, or None, not {grace!r:.80}"
        )
    return grace
