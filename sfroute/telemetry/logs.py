"""Logs public calls at DEBUG: one record per call, in the caller's context, so that it carries the ids of its trace.

The values are in ``extra``, under the names of the attributes. None of them holds a uid.
"""

from __future__ import annotations

import logging
from typing import Any

from . import names
from .records import CallRecord, HitRecord

__all__ = ["log_call", "log_fields", "log_hit"]


def log_call(log: logging.Logger, record: CallRecord, result: object) -> None:
    """Log the end of a call that the cache alone did not answer."""
    fields: dict[str, Any] = {
        names.OPERATION: record.operation,
        names.DURATION: max(0, record.ended - record.started) / 1e9,
    }
    answer = _pod_in(result)
    known = {
        names.NAMESPACE: _text(record.namespace),
        names.SERVICE: _text(record.service),
        names.POD: answer if answer is not None else record.pod,
        names.OUTCOME: record.outcome,
        names.LINK_SOURCE: record.source,
        names.STALE: record.stale or None,
        names.RETRY_REASONS: record.reasons,
        names.ERROR_TYPE: record.error,
    }
    fields |= {name: value for name, value in known.items() if value is not None}
    log.debug(
        "%s %s after %.3f ms",
        record.operation,
        record.error or "done",
        fields[names.DURATION] * 1e3,
        extra=fields,
    )


def log_hit(log: logging.Logger, record: HitRecord) -> None:
    """Log a cached answer."""
    operation, key, started, ended, _, entry = record
    fields: dict[str, Any] = {
        names.OPERATION: operation,
        names.DURATION: ended - started,
        names.NAMESPACE: key[0],
        names.OUTCOME: names.HIT,
    }
    if len(key) == 3:
        fields[names.SERVICE] = key[2]
        pod = _pod_in(entry)
        if pod is not None:
            fields[names.POD] = pod
    log.debug("%s answered from the cache", operation, extra=fields)


def log_fields(
    namespace: str | None = None,
    service: str | None = None,
    pod: int | None = None,
    *,
    node: tuple[str, int] | None = None,
    reason: str | None = None,
    error: BaseException | None = None,
) -> dict[str, Any]:
    """What a record is about, for ``extra``: whatever is known of it."""
    fields = {
        names.NAMESPACE: namespace,
        names.SERVICE: service,
        names.POD: pod,
        names.SERVER_ADDRESS: node[0] if node is not None else None,
        names.SERVER_PORT: node[1] if node is not None else None,
        names.REASON: reason,
        names.ERROR_TYPE: type(error).__name__ if error is not None else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _pod_in(result: object) -> int | None:
    """The pod in a result: a ``Link``, a ``TrySetResult``, a cache entry, or a flight with an entry."""
    pod = getattr(getattr(result, "entry", result), "pod", None)
    return pod if type(pod) is int else None


def _text(value: object) -> str | None:
    """A name, if it is a str: rejected arguments may be anything."""
    return value[:128] if isinstance(value, str) else None
