"""Asks the store whether the users whom a gateway follows (``trips.py``) have arrived at their pods.

Once for each view of a service whose pods have a limit, and in the background: no view waits for it.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .._commands.command import Command
from .._commands.commands import Commands
from .._contract.claims import parse_record
from .._contract.keys import claim_key
from .._net.connection import encode
from ..errors import SfrouteError
from ..telemetry.logs import log_fields
from ..telemetry.records import of_no_call
from .trips import Trip, Trips

__all__ = ["Following"]


class Following:
    """The users of one service who are followed.

    Attributes:
        trips: how they fare.
        asking: the task that asks, if there is one.
    """

    __slots__ = ("asking", "trips")

    def __init__(self) -> None:
        self.trips = Trips()
        self.asking: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """True if nothing is being asked."""
        return self.asking is None or self.asking.done()

    def look(
        self,
        commands: Commands,
        name: tuple[str, str],
        server_ahead: float,
        clock: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        """Ask for those who are on the way, unless that is being done.

        ``name``: namespace and service; ``server_ahead``: the server's clock in seconds since 1970, less this one.
        """
        if not self.is_idle:
            return
        trips = self.trips.look(clock())
        if trips:
            self.asking = asyncio.get_running_loop().create_task(
                self._ask(commands, name, trips, server_ahead, clock, log), context=of_no_call()
            )

    async def _ask(
        self,
        commands: Commands,
        name: tuple[str, str],
        trips: list[Trip],
        server_ahead: float,
        clock: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        keys = [claim_key(name[0], trip.uid, name[1]) for trip in trips]
        try:
            records = await commands.run_many(
                [Command("get_pods", key, "GET", encode("GET", key)) for key in keys],
                corrupt_in_place=True,
            )
        except SfrouteError as error:
            # They are asked for again with the next view.
            log.debug(
                "how long users take to their pods could not be read",
                extra=log_fields(*name, error=error),
            )
            return
        for trip, record in zip(trips, records, strict=True):
            text = record.decode("utf-8", "replace") if isinstance(record, bytes) else ""
            self.trips.found(trip, parse_record(text), clock(), server_ahead)
