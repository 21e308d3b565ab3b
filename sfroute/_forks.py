"""What happens to open routers in a forked child.

A child inherits file descriptors but no threads, and it shares the parent's epoll instance. If it unregistered or shut
down a socket, the parent would lose that socket too. So a child only closes its copies of the descriptors. It keeps the
inherited objects alive forever, so that no finalizer touches them, and opens new connections at the next use.

Some programs fork without running Python's hooks (uWSGI, unless it is told to run them). There a router compares
process ids, and notices the fork in its next call that asks the store.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, Final, cast

__all__ = ["NO_COPY", "keep_forever", "notice", "register"]

NO_COPY: Final = "a router cannot be copied or sent to another process; make one there"
"""A copy would share the connections: closing one would break the other."""


class _Known(weakref.ref[Any]):
    """A router, or a part of one, and what to call with it. A ``WeakMethod`` complains when the interpreter ends."""

    __slots__ = ("call",)

    call: Callable[[Any], Any]


_known: list[_Known] = []
_kept: list[object] = []
_process = os.getpid()
_noticing = threading.Lock()


def register(method: Callable[[], Any]) -> None:
    """Call a bound method in every child forked from now on, in order of registration, as long as its object lives."""
    bound = cast("MethodType", method)
    known = _Known(bound.__self__, _known.remove)
    known.call = bound.__func__
    _known.append(known)


def keep_forever(inherited: object) -> None:
    """Keep an inherited object alive, so that its finalizer never runs."""
    if inherited is not None:
        _kept.append(inherited)


def notice() -> None:
    """Run the hooks now if this is a child that was forked without them. Any thread may call this."""
    if os.getpid() != _process:
        with _noticing:
            if os.getpid() != _process:
                _after_fork_in_child()


def _after_fork_in_child() -> None:
    global _process  # noqa: PLW0603 - it is the process that has changed
    _process = os.getpid()
    for reference in _known:
        owner = reference()
        if owner is not None:
            reference.call(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
