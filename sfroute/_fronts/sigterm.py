"""SIGTERM ends an agent's block in order, if the application has no handler of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Final

from .. import _forks as forks

__all__ = ["CancelOnSigterm", "ExitOnSigterm"]

TERMINATED: Final = 128 + signal.SIGTERM
"""The exit code of a process that SIGTERM has ended."""


def _would_kill() -> bool:
    """True if SIGTERM would end the process at once, and this thread can change that."""
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )


class CancelOnSigterm:
    """On asyncio: SIGTERM cancels the task that has entered the block, and the process exits after the block.

    Args:
        enabled: False to leave SIGTERM alone.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._caught = False
        self._handler: Any = None
        self._terminated = False
        self._owner: asyncio.Task[Any] | None = None
        forks.register(self._after_fork_in_child)

    def catch(self) -> None:
        """From now on SIGTERM cancels the current task."""
        self._owner = asyncio.current_task()
        if self._enabled and _would_kill():
            with contextlib.suppress(NotImplementedError):  # a loop without signals (Windows)
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminate)
                self._caught = True
                self._handler = signal.getsignal(signal.SIGTERM)
                _catching.add(self)

    def spare(self) -> None:
        """The block is ending: a second SIGTERM must not interrupt that."""
        self._owner = None

    def release(self) -> None:
        """Give SIGTERM back."""
        if self._caught:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
            self._caught = False
            _catching.discard(self)

    def _after_fork_in_child(self) -> None:
        """SIGTERM is the child's own. It would wake the parent's loop, whose socket the child inherits."""
        if not self._caught:
            return
        self._caught = False
        _catching.discard(self)
        # Noticed late, it may be by a thread that may not change that.
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
            if signal.getsignal(signal.SIGTERM) is self._handler:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def exit_if_terminated(self) -> None:
        """Raise ``SystemExit`` if there was a SIGTERM."""
        if self._terminated:
            raise SystemExit(TERMINATED)

    def _terminate(self) -> None:
        self._terminated = True
        if self._owner is not None:
            self._owner.cancel()


_catching: Final[set[CancelOnSigterm]] = set()


class ExitOnSigterm:
    """For threads: SIGTERM raises ``SystemExit`` in the main thread, which ends the block.

    Args:
        enabled: False to leave SIGTERM alone.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._replaced: Any = None

    def catch(self) -> None:
        """From now on SIGTERM ends the block."""
        if self._enabled and _would_kill():
            self._replaced = signal.signal(signal.SIGTERM, _leave)

    def spare(self) -> None:
        """The block is ending: a second SIGTERM must not interrupt that."""
        if self._replaced is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def release(self) -> None:
        """Give SIGTERM back."""
        if self._replaced is not None:
            signal.signal(signal.SIGTERM, self._replaced)
            self._replaced = None


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


class _Forking(threading.local):
    """SIGTERM to a child waits until it is the child's own: the handler that it inherits would tell the parent."""

    mask: set[int | signal.Signals] | None = None

    def before(self) -> None:
        if _catching:  # else what handles it may raise, and an exception in a hook is lost
            self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def after(self) -> None:
        if self.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            self.mask = None


if hasattr(os, "register_at_fork"):
    _forking = _Forking()
    # Behind those of ``_forks``, which was imported before.
    os.register_at_fork(
        before=_forking.before,
        after_in_parent=_forking.after,
        after_in_child=_forking.after,
    )
