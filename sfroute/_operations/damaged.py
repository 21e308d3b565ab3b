"""What is damaged in the store, when many keys are gone through: it stops nothing, and is told of at the end.

Who may touch it: only the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CorruptReply

__all__ = ["Damaged"]


class Damaged:
    """How much holds what the contract does not allow.

    Attributes:
        count: how many.
        first: the error of the first one, None if there is none.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: CorruptReply | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a ``CorruptReply`` instead of raising it."""
        try:
            yield
        except CorruptReply as error:
            self.note(error)

    def note(self, error: CorruptReply) -> None:
        """One more."""
        self.count += 1
        self.first = self.first or error

    def error(self, told: str) -> CorruptReply:
        """The error for all of them; ``told``: how many, and what became of the others."""
        assert self.first is not None
        return CorruptReply(
            f"{told}. `sfroute doctor` names them. The first: {self.first}",
            key=self.first.key,
            operation=self.first.operation,
        )
