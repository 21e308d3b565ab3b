"""Checks of arguments that several operations share. Those of names, pods and times are in ``_contract/keys.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from .._contract.keys import check_encodable
from ..errors import InvalidArgument

__all__ = ["check_sendable", "checked_sequence"]

_T = TypeVar("_T")


def checked_sequence(argument: str, values: Sequence[_T]) -> Sequence[_T]:
    """``values``. Raises ``InvalidArgument`` unless it is a list, a tuple or the like; a str is not."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise InvalidArgument(f"{argument} must be a list or tuple, not {type(values).__name__}")
    return values


def check_sendable(argument: str, value: object, kinds: tuple[type, ...]) -> None:
    """Raise ``InvalidArgument`` unless one of ``argument``'s values is of these kinds and fits into a command."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidArgument(f"{argument} must hold only {names}; got {type(value).__name__}")
    if isinstance(value, str):
        check_encodable(argument, value)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise InvalidArgument(f"{argument} must not hold an int of more than 64 bits")
