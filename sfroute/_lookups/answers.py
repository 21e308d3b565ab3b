"""What callers get of the flights that answer them: an entry, or an error of their own."""

from __future__ import annotations

import asyncio
import copy

from ..errors import StoreError, StoreUnavailable
from .cache import Entry, Flight

__all__ = ["Gathering", "entry_of", "error_for_one", "raise_unless_again"]


class Gathering:
    """Waits for many flights with one future.

    Attributes:
        done: as a waiter's; the future's own, without a frame of Python.
        flights: those that are over.
    """

    def __init__(
        self, expected: int, all_done: asyncio.Future[None], flights: list[Flight] | None = None
    ) -> None:
        self.done = all_done.done
        self.flights: list[Flight] = [] if flights is None else flights
        self._all_done = all_done
        self._expected = expected

    def set_result(self, result: Flight) -> None:
        flights = self.flights
        flights.append(result)
        if len(flights) == self._expected:
            self._all_done.set_result(None)


def entry_of(flight: Flight, operation: str) -> Entry:
    """The answer of a finished flight. Raises its error if it has failed."""
    if flight.entry is None:
        assert flight.error is not None
        raise error_for_one(flight.error, operation)
    return flight.entry


def raise_unless_again(error: Exception, operation: str, time_left: bool) -> None:
    """Raise a flight's error, unless its caller, having joined late, has more time than the flight had."""
    if not (time_left and isinstance(error, StoreUnavailable)):
        raise error_for_one(error, operation)


def error_for_one(error: Exception, operation: str) -> Exception:
    """A copy to raise: one exception raised by many callers would collect all their tracebacks."""
    own = copy.copy(error)
    if isinstance(own, StoreError):
        own.operation = operation
    own.__cause__ = error.__cause__
    return own
