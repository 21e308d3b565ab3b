"""The attributes of calls to the store, by OpenTelemetry's semantic conventions for database clients. Pure.

The stable names are always used. ``OTEL_SEMCONV_STABILITY_OPT_IN=database/dup`` adds the older names. sfroute never
used the older names alone, so there is nothing to opt out of.
"""

from __future__ import annotations

from typing import Any, Final

from . import names
from .records import ClientRecord

__all__ = ["OPT_IN", "database_attributes", "wants_old_names"]

OPT_IN: Final = "OTEL_SEMCONV_STABILITY_OPT_IN"

DATABASE: Final = "0"
"""A cluster has one database. On a single node, sfroute uses only this one (``targets.py``)."""

SYSTEM: Final = "redis"
"""For Valkey too: the conventions have no other value for this protocol."""


def wants_old_names(opt_in: str) -> bool:
    """True if a list of opt-ins asks for the older names in addition to the stable ones."""
    return "database/dup" in {one.strip() for one in opt_in.split(",")}


def database_attributes(record: ClientRecord, *, old_names_too: bool) -> dict[str, Any]:
    """The initial attributes of a span of a call to the store."""
    attributes: dict[str, Any] = {
        names.DB_SYSTEM_NAME: SYSTEM,
        names.DB_NAMESPACE: DATABASE,
        names.DB_OPERATION_NAME: record.operation,
    }
    if record.script:
        attributes[names.DB_STORED_PROCEDURE_NAME] = record.script
    if record.size >= 2:
        attributes[names.DB_OPERATION_BATCH_SIZE] = record.size
    if record.server is not None:
        attributes[names.SERVER_ADDRESS], attributes[names.SERVER_PORT] = record.server
    if record.peer is not None:
        attributes[names.NETWORK_PEER_ADDRESS], attributes[names.NETWORK_PEER_PORT] = record.peer
    if record.status_code is not None:
        attributes[names.DB_RESPONSE_STATUS_CODE] = record.status_code
    if old_names_too:
        attributes[names.OLD_DB_SYSTEM] = SYSTEM
        attributes[names.OLD_DB_OPERATION] = record.operation
        attributes[names.OLD_DB_REDIS_DATABASE_INDEX] = int(DATABASE)
        if record.server is not None:
            attributes[names.OLD_NET_PEER_NAME], attributes[names.OLD_NET_PEER_PORT] = record.server
    return attributes
