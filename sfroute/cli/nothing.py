"""The end of a command that found nothing: a mistyped name is the most likely cause, so it says which exist."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final, NoReturn

import typer

from ..errors import SfrouteError
from .common import NO, complain, likely, run
from .keyspace import Names, look_for_names
from .nodes import open_store

__all__ = ["end_with_nothing"]

SECONDS: Final = 2.0
"""How long the names that exist are looked for: that goes through all keys."""


def end_with_nothing(text: str, *, url: str, namespace: str, service: str) -> NoReturn:
    """Say that nothing was found, and which namespaces or services there are if this one is not. Ends the command."""
    complain(text)
    for hint in _hints(run(_look(url)), namespace, service):
        complain(hint)
    raise typer.Exit(NO)


async def _look(url: str) -> Names:
    names = Names()
    try:
        async with asyncio.timeout(SECONDS), open_store(url) as store:
            await look_for_names(store, names)
    except (TimeoutError, SfrouteError):
        # It is a hint. What was found until then is still true.
        names.complete = False
    return names


def _hints(names: Names, namespace: str, service: str) -> Iterator[str]:
    """Pure."""
    known = names.services.get(namespace)
    if known is None and names.services:
        yield f"is the namespace right? These have keys: {likely(names.services, namespace)}"
    elif known is None and names.complete:
        yield "no namespace has any keys"
    elif known and service not in known:
        yield f"is the service right? Namespace {namespace!r} has these: {likely(known, service)}"
