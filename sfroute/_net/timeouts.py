"""How long one call may take, where its caller says so: the ``timeout`` of an operation.

It is checked before anything is sent, and becomes an instant, ``GiveUp``. That is given down through every stage of the
call as ``give_up``, in place of the deadline that the configuration sets (``RetryConfig.deadline``). What several calls
wait for together keeps the configured deadline: a call with less time leaves it to the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..errors import InvalidArgument

__all__ = ["MAX_TIMEOUT", "GiveUp", "check_timeout", "give_up_after", "seconds_of"]

MAX_TIMEOUT: Final = 86_400.0
"""Seconds, a day. The operation record of a write is kept for as long as the call may take: longer is a mistake."""


class GiveUp(float):
    """The instant at which a call with a time of its own is given up.

    Attributes:
        seconds: what its caller gave it.
    """

    __slots__ = ("seconds",)

    seconds: float


def check_timeout(timeout: float | None) -> None:
    """Raise ``InvalidArgument`` unless it is a number of seconds, or None."""
    if timeout is None:
        return
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidArgument("timeout must be seconds > 0, a day at most, or None")


def give_up_after(timeout: float | None, clock: Callable[[], float]) -> GiveUp | None:
    """The instant at which a call that begins now is given up; None for the configured one.

    Raises ``InvalidArgument``.
    """
    if timeout is None:
        return None
    check_timeout(timeout)
    give_up = GiveUp(clock() + timeout)
    give_up.seconds = timeout
    return give_up


def seconds_of(give_up: float | None, configured: float) -> float:
    """How long a call that is given up at this instant may take, for the text of its error."""
    return give_up.seconds if isinstance(give_up, GiveUp) else configured
