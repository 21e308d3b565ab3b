"""The native part of a lookup, where there is one: ``heart``, compiled from ``heart.c``.

The pure code is the reference. It decides what is right and runs everywhere; ``heart`` does two of its steps in less
time, for the plain case, and leaves everything else to it. Callers cannot tell which of them runs, except by the time
it takes.

``SFROUTE_PURE=1`` in the environment chooses the pure code. So does an installation that was built without a compiler,
and so do subinterpreters and builds of Python without the GIL: ``heart`` supports neither. So does a part that was
compiled from another ``heart.c`` than the one beside it, which a new checkout leaves in an editable installation.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, Protocol

__all__ = ["HALF", "STALE", "WHY_PURE", "Heart", "heart"]

SWITCH: Final = "SFROUTE_PURE"
"""The environment variable that chooses the pure code; empty and ``0`` do not."""


STALE: Final = "the native part was compiled from another heart.c"
"""Why the pure code runs where the part is not of its source."""

_SOURCE: Final = Path(__file__).with_name("heart.c")


class Heart(Protocol):
    """What the native module does. It is told the pure classes, since this folder imports nothing."""

    def learn(self, read: type, entry: type, epoch: type, /) -> None:
        """Take these as the pure classes ``Read``, ``Entry`` and ``Epoch``. TypeError if one lacks a slot."""

    def land(self, lane: object, data: bytes, tokens: object, /) -> int:
        """Hand over the plain answers at the front of what a lane was sent, as its connection would, and store them.
        Returns how many bytes they took.
        """
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
    return (native, "") if _is_of(native, _SOURCE) else (None, STALE)


def _is_of(native: object, source: Path) -> bool:
    """True if the part was compiled from this source. Where that was not installed, nothing can have replaced it."""
    try:
        found = source.read_bytes()
    except OSError:
        return True
    return getattr(native, "SOURCE", None) == hashlib.sha256(found).hexdigest()


heart, WHY_PURE = _chosen()
HALF: Final = "native" if heart is not None else "pure"
"""Which half looks up: ``"native"`` or ``"pure"``."""
