"""The native part of a lookup, where there is one: ``heart``, compiled from the C files of this folder.

The pure code is the reference. It decides what is right and runs everywhere; ``heart`` does two of its steps in less
time, for the plain case, and leaves everything else to it. Callers cannot tell which of them runs, except by the time
it takes.

``SFROUTE_PURE=1`` in the environment chooses the pure code. So does an installation that was built without a compiler,
and so do subinterpreters and builds of Python without the GIL: ``heart`` supports neither. So does a part that was
compiled from other files than those beside it, which a new checkout leaves in an editable installation.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

__all__ = ["HALF", "SOURCES", "STALE", "WHY_PURE", "Heart", "heart", "hot"]

SWITCH: Final = "SFROUTE_PURE"
"""The environment variable that chooses the pure code; empty and ``0`` do not."""


STALE: Final = "the native part was compiled from other sources"
"""Why the pure code runs where the part is not of its source."""

SOURCES: Final = ("heart.h", "heart.c", "waiting.c", "misses.c", "leaving.c", "calls.c")
"""What it is compiled from, in this folder."""

_F = TypeVar("_F", bound=Callable[..., Any])


class Heart(Protocol):
    """What the native module does. It is told the pure classes, since this folder imports nothing."""

    def learn(self, read: type, entry: type, epoch: type, /) -> None:
        """Take these as the pure classes ``Read``, ``Entry`` and ``Epoch``. TypeError if one lacks a slot."""

    def learn_hits(
        self,
        router: type,
        entry: type,
        epoch: type,
        flight: type,
        counts: type,
        telemetry: type,
        entry_of: Callable[..., Any],
        /,
    ) -> None:
        """Take these as the pure classes, and that as ``answers.entry_of``. Raises if one lacks a slot."""

    def learn_misses(self, **classes: Any) -> None:
        """Take these as the pure classes, and what else ``misses.c`` names. Raises if one lacks a slot."""

    def Wakes(self, loop: object, /) -> object:  # noqa: N802 - a class
        """What wakes those who are answered in one turn of the loop, together."""
        ...

    def HotMethod(self, function: Callable[..., Any], /) -> Callable[..., Any]:  # noqa: N802 - a class
        """``function``, a coroutine method of a router that takes three names, which answers hits by itself."""
        ...

    def land(self, lane: object, data: bytes, tokens: object, /) -> int:
        """Hand over the plain answers at the front of what a lane was sent, as its connection would, and store them.
        Returns how many bytes they took.
        """
        ...

    def begin(self, lookups: object, key: object, waiter: object, give_up: float, /) -> bool:
        """As ``Lookups._begin`` for a plain lookup of a key that was checked, which may serve an old answer and which
        telemetry need not know. False if it is not plain; then nothing has happened.
        """
        ...

    def take_batch(
        self, queue: object, now: float, room: int, max_commands: int, max_bytes: int, /
    ) -> tuple[bytes, list[Any], list[Any]]:
        """As ``channel.take_batch_in_python``."""
        ...

    def mark_sent(self, requests: list[Any], epoch: object, /) -> int:
        """The lookups among these are on their way in this epoch. Returns how many there are."""
        ...

    def pack(self, tag: bytes, service: str, /) -> bytes:
        """As ``packing.value_and_ttl_in_python``."""
        ...


def _chosen() -> tuple[Heart | None, str]:
    """The native module; or None, and why."""
    if os.environ.get(SWITCH, "") not in {"", "0"}:
        return None, f"{SWITCH} is set"
    try:
        from . import heart as native
    except ImportError as error:
        # Where there is no such file, Python misses the name in this folder. Else the part says where it does not run.
        missing = error.name == __name__
        return None, "this installation was built without a compiler" if missing else str(error)
    return (native, "") if _is_of(native, Path(__file__).parent) else (None, STALE)


def _is_of(native: object, folder: Path) -> bool:
    """True if the part was compiled from what is there. Where that was not installed, nothing can have replaced it."""
    try:
        found = b"".join((folder / name).read_bytes() for name in SOURCES)
    except OSError:
        return True
    return getattr(native, "SOURCE", None) == hashlib.sha256(found).hexdigest()


heart, WHY_PURE = _chosen()
HALF: Final = "native" if heart is not None else "pure"
"""Which half looks up: ``"native"`` or ``"pure"``."""


def hot(method: _F) -> _F:
    """``method``, or what does the same and answers hits without a frame of Python."""
    if heart is None:
        return method
    copy = heart.HotMethod(method)
    # With its code and defaults, it is a coroutine function to ``inspect`` and ``asyncio``.
    functools.update_wrapper(
        copy, method, (*functools.WRAPPER_ASSIGNMENTS, "__code__", "__defaults__", "__kwdefaults__")
    )
    return cast("_F", copy)
