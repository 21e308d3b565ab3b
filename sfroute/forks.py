"""What happens to open routers in a forked child.

A child inherits descriptors but no threads, and shares the parent's epoll instance: anything that unregisters or shuts
down a socket there would reach into the parent. So a child closes its copies of the sockets without a word, keeps the
inherited objects alive for ever so that no finalizer touches them, and opens anew on next use.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

__all__ = ["NO_COPY", "Forkable", "keep_forever", "register"]

NO_COPY: Final = "a router cannot be copied or sent to another process; make one there"
"""Two objects over the same connections: the end of one would be the end of the other."""


class Forkable(Protocol):
    """Something that must know that it has become a copy."""

    def after_fork_in_child(self) -> None:
        """Called in the child, in the order of registration."""


_known: list[weakref.ref[Forkable]] = []
_kept: list[object] = []


def register(router: Forkable) -> None:
    """Tell ``router`` in every child forked from now on."""
    _known.append(weakref.ref(router, _known.remove))


def keep_forever(inherited: object) -> None:
    """Never let the finalizer of an inherited object run."""
    if inherited is not None:
        _kept.append(inherited)


def _after_fork_in_child() -> None:
    for reference in _known:
        router = reference()
        if router is not None:
            router.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
