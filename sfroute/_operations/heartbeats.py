"""A pod's heartbeats: the state by which gateways know it, stored by one life and by no older one.

A life is one run of a pod's process. Its first heartbeat takes the pod id, and the newest start has it: whatever an
older life writes afterwards is refused by the store, and tells that life that it is over.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Final

from .._chance import chance
from .._contract.pod_states import asked_to_drain, compose_state
from ..errors import RouterClosed, SfrouteError
from ..telemetry.logs import log_fields
from ..types import DRAINING, PENDING, RUNNING, STOPPED
from .engine import Engine
from .ownership import suspended_time
from .states import ServiceStates

__all__ = ["Heartbeats"]

JITTER: Final = 0.1
"""Share by which heartbeats vary, so that the pods of a service do not beat in step."""
PRUNE_EVERY: Final = 30
"""How many heartbeats pass between two removals of the states of pods long gone."""
RETRY_SECONDS: Final = 0.25
"""Between two attempts at a heartbeat. Each has the store's whole deadline: when the store is back, all pods must have
reported before gateways take their silence for death."""
ROOM_SECONDS: Final = 0.1
"""Between two heartbeats that tell of nothing but room."""
GAP_HEARTBEATS: Final = 3
"""If no pod of the service reports for this many heartbeats, none could be stored in that time."""


class Heartbeats:
    """See the module's docstring.

    Args:
        engine: what they are sent through.
        states: what stores them.
        place: namespace, service, pod and life.
        every: seconds between two.
        load: how loaded the pod is; the application's.
        fields: further fields of the state.
        forget_after: seconds after which states of silent pods are removed.

    Attributes:
        status: what the pod reports.
        conflicts: how many other processes were seen to claim this pod id.
        superseded: a newer life has the pod id.
        ended: this life is over: only its last word is stored any more.
        stored_count, failed_count: heartbeats that were stored, and that were not.
        paused: the pod takes nobody new.
        confirmed: says by which histories of the store the life has confirmed its claims.
        room: says how many more users the life takes, None for any number.
        on_stored: called with the instant at which a heartbeat was sent that is stored, by ``suspended_time``.
        on_superseded: called with the token of the newer life.
    """

    def __init__(
        self,
        engine: Engine,
        states: ServiceStates,
        place: tuple[str, str, int, str],
        every: float,
        load: Callable[[], float] | None,
        fields: Mapping[str, object],
        forget_after: float,
    ) -> None:
        self._engine = engine
        self._log = engine.config.logger_for("agent")
        self._states = states
        self._namespace, self._service, self._pod, self._life = place
        self.take(self._pod)
        self._every = every
        self._load = load
        self._fields: dict[str, object] = {**fields, "by": self._life}
        self._forget_after = forget_after
        self.status = RUNNING
        self.conflicts = 0
        self.superseded = False
        self.ended = False
        self.stored_count = self.failed_count = 0
        self.paused = False
        self.confirmed: Callable[[], str] = str
        self.room: Callable[[], int | None] = lambda: None
        self._room_told: int | None = None
        self.on_stored: Callable[[float], None] = lambda sent: None
        self.on_superseded: Callable[[str | None], None] = lambda by: None
        self._count = 0
        self._sent_at = -math.inf
        # One at a time: an older state that is still being sent must not overtake a newer one.
        self._beating = asyncio.Lock()
        # The status that gateways can read, and since when.
        self.stored = ("", 0.0)
        self._load_trouble = False
        self._asked_to_drain = False
        self._rivals: set[str] = set()

    @property
    def reported(self) -> str:
        """The status as gateways are told it."""
        return PENDING if self.paused and self.status == RUNNING else self.status

    async def run(self) -> None:
        """Beat until the router is closed, or a newer life has the pod id."""
        views = (await self._engine.opened()).views
        pause = self._every
        while not await views.closes_within(pause * (1.0 + JITTER * chance.uniform(-1.0, 1.0))):
            stored = await self.try_to_beat()
            if self.superseded:
                return
            pause = self._every if stored else min(self._every, RETRY_SECONDS)

    def take(self, pod: int) -> None:
        """This is the pod's id; before the first heartbeat."""
        self._pod = pod
        self._place = (self._namespace, self._service, pod, self._life)
        self._about = log_fields(self._namespace, self._service, pod)

    def end(self, status: str) -> None:
        """This life is over: whatever is sent from now on says so, and takes the pod id from nobody."""
        self.ended = True
        if not self.superseded:
            self.status = status

    def drain(self) -> None:
        """Report ``Draining`` from the next heartbeat on, whatever an operator asks for."""
        self.status = DRAINING
        self._asked_to_drain = False

    async def try_to_beat(self) -> bool:
        """``beat``, but a failure is logged. False if it failed."""
        try:
            await self.beat()
        except RouterClosed:
            self._log.warning(
                "the router of pod %d was closed before its agent was stopped",
                self._pod,
                extra=self._about,
            )
            return False
        except SfrouteError as error:
            self.failed_count += 1
            self._log.warning(
                "a heartbeat of pod %d could not be stored: %s",
                self._pod,
                error,
                extra=self._about | log_fields(error=error),
            )
            return False
        return True

    async def beat(self) -> None:
        """Store the present state. Raises what the store raises."""
        async with self._beating:
            await self._send_state()
            if self.reported != self.stored[0]:  # somebody has asked for another one
                await self._send_state()

    @property
    def room_is_news(self) -> bool:
        """True if gateways place users by a room that is no longer there, or do not know of one that is.

        That it is exhausted, that it no longer is, or that half of it has gone.
        """
        room, told = self.room(), self._room_told
        if room is None or told is None:
            return False
        return room < told / 2 or (room > 0 and told == 0)

    async def tell_room(self) -> None:
        """Beat until gateways know how much room there is, at most every ``ROOM_SECONDS``."""
        while self.room_is_news and self.reported == RUNNING:
            await asyncio.sleep(max(0.0, self._sent_at + ROOM_SECONDS - time.monotonic()))
            if not await self.try_to_beat():
                return

    async def _send_state(self) -> None:
        if self.superseded:
            return
        # The engine first: the lease begins when the heartbeat is sent, not when a router begins to open.
        await self._engine.opened()
        self._count += 1
        status = self.reported
        self._room_told = self.room()
        if self._room_told is not None:
            self._fields["room"] = self._room_told
        self._sent_at = time.monotonic()
        prune = int(self._forget_after * 1000) if self._count % PRUNE_EVERY == 0 else 0
        self._fields["confirmed"] = self.confirmed()
        state = compose_state(status, self._measured_load(), self._fields)
        is_first = "up" not in self._fields
        sent = suspended_time()
        previous, is_stored, up = await self._states.report(
            self._place,
            state,
            # The last word of a life whose first was not answered is a beat: another may have the pod id by now.
            start=is_first and not self.ended,
            prune_ms=prune,
            gap_ms=int(GAP_HEARTBEATS * self._every * 1000),
        )
        if not is_stored:
            self._is_over(previous, quietly=is_first and self.ended)
            return
        if status != self.stored[0]:
            self.stored = status, time.monotonic()
        if not is_first:
            self._look_for_rival(previous)
            self._heed_request(previous)
        self._fields["up"] = up
        self.stored_count += 1
        self.on_stored(sent)

    def _is_over(self, previous: str | None, *, quietly: bool) -> None:
        self.superseded = True
        self.status = STOPPED
        if quietly:  # it never had the pod id
            return
        self.conflicts += 1
        self._engine.pod_conflicts += 1
        self._log.warning(
            "pod %d of service %r was started anew by another process, which has it now; this agent has stopped. "
            "Give each process its own pod id",
            self._pod,
            self._service,
            extra=self._about,
        )
        self.on_superseded(_life_of(previous))

    def _measured_load(self) -> float | None:
        if self._load is None:
            return None
        load = math.nan
        try:
            given: object = self._load()
            if isinstance(given, Real) and not isinstance(given, bool):
                load = float(given)
                trouble = "" if math.isfinite(load) else f"returned {load}"
            else:
                trouble = f"returned a {type(given).__name__}, not a number"
        except Exception as error:  # noqa: BLE001 - the application's callable may raise anything
            trouble = f"raised {type(error).__name__}"
        if trouble:
            if not self._load_trouble:
                self._log.warning(
                    "the load callable of pod %d %s; the pod reports no load",
                    self._pod,
                    trouble,
                    extra=self._about | log_fields(reason=trouble),
                )
            self._load_trouble = True
            return None
        self._load_trouble = False
        return load

    def _look_for_rival(self, previous: str | None) -> None:
        """Another process overwrites our state without comparing."""
        rival = _life_of(previous)
        if rival is not None and rival != self._life and rival not in self._rivals:
            self._rivals.add(rival)
            self.conflicts += 1
            self._engine.pod_conflicts += 1
            self._log.warning(
                "pod %d of service %r is claimed by another process too; give each its own pod id",
                self._pod,
                self._service,
                extra=self._about,
            )

    def _heed_request(self, previous: str | None) -> None:
        """An operator has overwritten our state: drain, or stop draining."""
        asked = asked_to_drain(previous or "")
        if asked is True and self.status == RUNNING:
            self.status, self._asked_to_drain = DRAINING, True
        elif asked is False and self._asked_to_drain and self.status == DRAINING:
            self.status, self._asked_to_drain = RUNNING, False


def _life_of(state: str | None) -> str | None:
    """The life that wrote a state. None if the state does not say."""
    try:
        fields = json.loads(state or "{}")
    except (ValueError, RecursionError):  # whatever another program has written there
        return None
    life = fields.get("by") if isinstance(fields, dict) else None
    return life if isinstance(life, str) else None
