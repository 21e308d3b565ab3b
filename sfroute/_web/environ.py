"""A WSGI environ as the scope that extractors read."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from .requests import OURS, Scope

__all__ = ["Environ", "scope_of", "without_ours"]

Environ: TypeAlias = dict[str, Any]

_OURS: Final = "HTTP_" + OURS.decode().upper().replace("-", "_")
_UNPREFIXED: Final = ("CONTENT_TYPE", "CONTENT_LENGTH")


def scope_of(environ: Environ) -> Scope:
    """What of the request an extractor may read: method, path, query and headers, as ASGI has them.

    WSGI joins headers of one name by commas, and cannot tell ``X_User`` from ``X-User``: servers should drop the first.
    """
    headers = [
        (name[5:].lower().replace("_", "-").encode("latin-1"), value.encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    headers += [
        (name.lower().replace("_", "-").encode(), environ[name].encode("latin-1"))
        for name in _UNPREFIXED
        if environ.get(name)
    ]
    root = _text(environ.get("SCRIPT_NAME", ""))
    scope: dict[str, Any] = {
        "type": "http",
        "method": environ["REQUEST_METHOD"],
        "path": root + _text(environ.get("PATH_INFO", "")),
        "root_path": root,
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
        "headers": headers,
    }
    # As it came; not in the standard, but most servers have one of the two.
    raw = environ.get("REQUEST_URI") or environ.get("RAW_URI")
    if raw and raw.startswith("/"):
        scope["raw_path"] = raw.partition("?")[0].encode("latin-1")
    return scope


def without_ours(environ: Environ) -> None:
    """Remove ``X-Sfroute-*``."""
    for name in [name for name in environ if name.startswith(_OURS)]:
        del environ[name]


def _text(value: str) -> str:
    """WSGI has bytes as Latin-1; what is no UTF-8 becomes lone surrogates, which no uid may have."""
    return value.encode("latin-1").decode(errors="surrogateescape")
