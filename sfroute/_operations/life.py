"""One life of a pod: one run of its process, from the first heartbeat to the last.

::

    new -> starting -> running -> ended -> parted

``end`` is what ends it, and it waits for nothing: from then on this life owns nobody, takes nobody, and says nothing
but its last word. That, and whatever the store has still to answer, is left to a task in the background, which the
store's deadlines bound; a router that is closed meanwhile waits for it. So a caller may be cancelled anywhere, and once
more in whatever it does about that, as the cancel scopes of anyio do: no life goes on behind a caller who has left.

A life whose start fails, or is given up, ends in the same way, and takes back what it may have said.

Who may touch it: only the event loop. In a forked child it is over (``abandon``).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import ConfigError
from ..telemetry import AgentStats
from ..telemetry.records import of_no_call
from ..types import DRAINING, STOPPED
from .heartbeats import Heartbeats
from .inside import Inside
from .ownership import Ownership

__all__ = ["Life"]

ROUNDS_WHERE_TRACKED: Final = 6
"""Where servers push changes, claims are confirmed all the same, this many times less often."""


class Life:
    """See the module's docstring.

    Args:
        inside: the router to speak through.
        place: namespace, service and pod.
        token: tells apart two processes that claim the same pod id; '' makes one.
        heartbeat, load, forget_after, lease, confirm_every, max_claims: as for ``AsyncPodAgent``.
        fields: the fields of the state that stay the same in every heartbeat.

    Attributes:
        token: the token.
        heartbeats: its heartbeats.
        ownership: its claims, sessions and lease.
    """

    def __init__(
        self,
        inside: Inside,
        place: tuple[str, str, int],
        token: str = "",
        *,
        heartbeat: float,
        load: Callable[[], float] | None,
        fields: Mapping[str, object],
        forget_after: float,
        lease: float | None,
        confirm_every: float,
        max_claims: int | None,
    ) -> None:
        self._inside = inside
        self._namespace, self._service, _ = place
        self.token = token or secrets.token_hex(6)
        whole = (*place, self.token)
        self.heartbeats = Heartbeats(
            inside.engine, inside.states, whole, heartbeat, load, fields, forget_after
        )
        self.ownership = Ownership(
            inside.engine,
            inside.writer,
            whole,
            lease=lease,
            confirm_every=(ROUNDS_WHERE_TRACKED * confirm_every, confirm_every),
            max_claims=max_claims,
        )
        self._max_claims = max_claims
        self.heartbeats.confirmed = self.ownership.confirmed
        self.heartbeats.on_stored = self.ownership.renewed
        self.heartbeats.on_superseded = self.ownership.superseded
        self.heartbeats.room = self._room_left
        self.ownership.on_rival = self._beat_soon
        self.ownership.room.on_change = self._tell_room_soon
        self._starting: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._beating_soon: asyncio.Task[bool] | None = None
        self._telling_room: asyncio.Task[None] | None = None
        self._parting: asyncio.Task[None] | None = None
        # The store may have a state of this life.
        self._is_known = False

    # Where it stands

    @property
    def is_new(self) -> bool:
        """It has not begun yet."""
        return self._starting is None

    @property
    def has_begun(self) -> bool:
        """It has been running."""
        return self._beating is not None

    @property
    def is_on(self) -> bool:
        """It is starting, or runs, or would if no newer life had the pod's id: it has to be ended."""
        return self._starting is not None and self._parting is None

    def check_running(self) -> None:
        """Raise ``ConfigError`` unless it may take users and let them go."""
        self.ownership.check()
        if self._beating is None:
            raise ConfigError("the agent is not running")

    def _agent_stats(self) -> AgentStats:
        """``AgentSource``. Read by any thread."""
        heartbeats, ownership = self.heartbeats, self.ownership
        return ownership.stats(
            (heartbeats.stored_count, heartbeats.failed_count),
            ownership.left if heartbeats.status == DRAINING else None,
        )

    # From its start to its end

    async def start(
        self, *, after: Life | None, name: str | None, on_pod: Callable[[int], None]
    ) -> None:
        """Store the first heartbeat and begin to beat.

        Raises what the store raises, and ``ConfigError`` if it was ended meanwhile; then it is over.

        Args:
            after: an earlier life of the same agent, which has ended.
            name: take a pod id for this name, or any for ''; None: it has one.
            on_pod: called with the id taken.
        """
        self._starting = asyncio.get_running_loop().create_task(self._start(after, name, on_pod))
        try:
            # Not cut off with its caller: what the store has been told must be known, to be taken back.
            await asyncio.shield(self._starting)
            self.ownership.check()
        except BaseException:
            self.end()
            raise

    async def _start(
        self, after: Life | None, name: str | None, on_pod: Callable[[int], None]
    ) -> None:
        if after is not None:
            # Its last word must not come after this one's first.
            await after.parted()
        engine, states = self._inside.engine, self._inside.states
        parts = await engine.opened()
        if name is not None and not self.ownership.ended:
            pod = await states.take_pod(self._namespace, self._service, self.token, name)
            self._is_known = True
            self.heartbeats.take(pod)
            self.ownership.take(pod)
            on_pod(pod)
        if self.ownership.ended:
            return
        self._is_known = True
        await self.heartbeats.beat()
        if self.ownership.ended:
            return
        self.ownership.start(parts)
        self._beating = parts.loop.create_task(self.heartbeats.run(), context=of_no_call())
        self._inside.telemetry.agents.add(self)

    def end(self, status: str = STOPPED) -> None:
        """End it, and say this, in the background. Once it has ended, this does nothing."""
        if not self.is_on:
            return
        assert self._starting is not None
        self.heartbeats.end(status)
        under_way: list[asyncio.Task[Any]] = [self._starting, *self.ownership.end()]
        for task in (self._beating, self._beating_soon, self._telling_room):
            if task is not None:
                task.cancel()
                under_way.append(task)
        self._parting = asyncio.get_running_loop().create_task(self._part(under_way))
        self._inside.engine.finish_before_closing(self._parting)

    async def _part(self, under_way: list[asyncio.Task[Any]]) -> None:
        await asyncio.gather(*under_way, return_exceptions=True)
        try:
            if self._is_known:
                await self.heartbeats.try_to_beat()
        finally:
            self._inside.telemetry.agents.retire(self)

    async def parted(self) -> None:
        """Wait until it has said its last word, if it has ended. Cancelling this cuts nothing off."""
        if self._parting is not None:
            await asyncio.shield(self._parting)

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self.ownership.abandon()

    # What it says beside its regular heartbeats

    def _beat_soon(self) -> None:
        """Another process seems to have this pod's id: a heartbeat tells which of the two is the newer."""
        if not self.is_on:
            return
        if self._beating_soon is None or self._beating_soon.done():
            self._beating_soon = asyncio.get_running_loop().create_task(
                self.heartbeats.try_to_beat(), context=of_no_call()
            )

    def _room_left(self) -> int | None:
        return self.ownership.room.left(self.ownership.left)

    def _tell_room_soon(self) -> None:
        if self._max_claims is None or not self.is_on or not self.heartbeats.room_is_news:
            return
        if self._telling_room is None or self._telling_room.done():
            self._telling_room = asyncio.get_running_loop().create_task(
                self.heartbeats.tell_room(), context=of_no_call()
            )
