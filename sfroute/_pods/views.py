"""What a gateway knows of the pods of each service: fetched when needed, renewed while it is used.

A view is used while a newer one is fetched (stale-while-revalidate), but not for long, and not past the instant at
which a pod in it would count as dead: a dead pod is noticed when its time is up, not when somebody looks. While the
store does not answer, the last view keeps serving known links. When the store answers again, no pod counts as dead
because its own heartbeats met the same trouble.

A view that cannot be renewed is *overdue*. It moves nobody (``Seen.loses``): whatever it says of a pod may have ended
since, and its users may be back there by another gateway, whose view is newer.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

from .._commands.command import script_command
from .._commands.commands import Commands
from .._contract import replies
from .._contract.keys import EMPTYING, state_key
from .._contract.scripts import get_script
from .._net.timeouts import seconds_of
from ..config import PlacementConfig, RouterConfig
from ..errors import RouterClosed, SfrouteError, StoreError, StoreUnavailable
from ..telemetry import SharedWork
from ..telemetry.logs import log_fields
from .failures import Failures
from .following import Following
from .patience import Patience
from .policies import Placements
from .remembered_states import RememberedStates
from .service_view import ServiceView

__all__ = ["PodViews", "Seen", "ServiceView", "notice_seconds"]

_log = logging.getLogger("sfroute.pods")

MAX_SERVICES = 4096
USABLE_PERIODS = 2
"""A view may be used while it is renewed, up to this many times ``pod_view_max_age``; after that callers wait."""
CLOCK_JUMP = 0.1
"""Seconds by which a server's clock gets ahead of this process's between two readings if it jumped; less is drift."""
EARLY_SECONDS = 0.1
"""Between two fetches before a view is due: pods do not report room more often either."""
EARLY_PAUSE = 10
"""Nor does the next one begin before so many times what the last one took, for each gateway that takes part. So all of
them keep the store busy for a tenth of the time, however many pods and gateways there are."""
MAX_STATE_BYTES = 16 * 1024 * 1024
"""If the states of a service are larger together, the application's own fields are left out."""
EMPTYING_SECONDS = 5.0
"""A pod counts as being emptied for this long after its evacuation last said so, which it does every second."""


def notice_seconds(config: PlacementConfig) -> float:
    """How long after a pod has stored its state a gateway may still go by the state before."""
    return USABLE_PERIODS * config.pod_view_max_age


class Seen(NamedTuple):
    """What is known of a service's pods; ``current``: as good as it should be, not overdue."""

    view: ServiceView | None
    current: bool

    def loses(self, pod: int) -> bool:
        """True if the pod's users are moved: it is gone, and that can still be known to be true."""
        return self.current and self.view is not None and not self.view.keeps(pod)


class _Service:
    """What is kept of one service.

    ``patience``: that with the last fetch, which all who wait for it share. ``troubled_since``: when the first of those
    fetches began that have failed or taken long; ``troubled_until``: when the last of them failed. ``refused``: the
    last fetch, if what it found cannot be read, such as states that take too many bytes, and ``refused_until``: until
    then it is not read again. ``allowance``: seconds by which heartbeats may seem late through no fault of the pods,
    until ``allowed_until``. ``server_time``: the server's clock at the last reading, and when that reading began, both
    in seconds. ``fetch_took``: how long that took. ``following``: asks how long users take to their pods.
    """

    __slots__ = (
        "allowance",
        "allowed_until",
        "failures",
        "fetch",
        "fetch_began",
        "fetch_sent",
        "fetch_took",
        "fetch_work",
        "following",
        "longest_lease",
        "patience",
        "placements",
        "refused",
        "refused_until",
        "server_time",
        "troubled_since",
        "troubled_until",
        "view",
    )

    def __init__(self) -> None:
        self.view: ServiceView | None = None
        self.fetch: asyncio.Task[ServiceView] | None = None
        self.fetch_began = 0.0
        self.fetch_sent = False
        self.fetch_took = 0.0
        self.fetch_work = SharedWork()
        self.patience: Patience | None = None
        self.following = Following()
        self.longest_lease = 0.0
        self.placements = Placements()
        self.failures = Failures()
        self.troubled_since: float | None = None
        self.troubled_until = -inf
        self.refused: asyncio.Task[ServiceView] | None = None
        self.refused_until = -inf
        self.allowance = 0.0
        self.allowed_until = -inf
        self.server_time: tuple[float, float] | None = None

    @property
    def is_idle(self) -> bool:
        return self.fetch is None and self.following.is_idle


class PodViews:
    """Service views by namespace and service; one fetch for each service under way.

    Attributes:
        closed: set when the router is closed.
    """

    def __init__(
        self,
        commands: Commands,
        config: RouterConfig,
        clock: Callable[[], float],
        log: logging.Logger = _log,
    ) -> None:
        self._log = log
        self._commands = commands
        self._config = config.placement
        self._deadline = config.retry.deadline
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # Each view is replaced whole, never changed: other threads may read it.
        self._services: dict[tuple[str, str], _Service] = {}
        self._states = RememberedStates()
        self.closed = asyncio.Event()

    def usable(self, namespace: str, service: str) -> ServiceView | None:
        """A view that may be used now, renewed in the background when that is due. None: ``get`` must be awaited.

        The one method that any thread may call.
        """
        known = self._services.get((namespace, service))
        view = known.view if known is not None else None
        if view is None:
            return None
        now = self._clock()
        if now - view.read_at > self._config.pod_view_max_age:
            if not view.renewing:
                view.renewing = True
                with suppress(RuntimeError):  # the loop was closed meanwhile: a later step says so
                    self._loop.call_soon_threadsafe(self._renew, (namespace, service))
            if now - view.read_at > notice_seconds(self._config):
                return None
        return view if now < view.usable_until else None

    async def get(
        self,
        namespace: str,
        service: str,
        *,
        fresh: bool = False,
        give_up: float | None = None,
    ) -> ServiceView:
        """A usable view; ``fresh``: one that was asked for after this call began.

        ``give_up``: the deadline of the call that it is part of, as an instant. None: as long as a fetch may take.

        Raises what ``Commands.run`` raises.
        """
        if not fresh:
            view = self.usable(namespace, service)
            if view is not None:
                return view
        name, began = (namespace, service), self._clock()
        # A fetch that begins with this call has the same deadline, and its error names the server and the cause.
        own = give_up is None and self._service(name).fetch is None
        if give_up is None:
            give_up = began + self._deadline
        while True:
            fetch = await self._ask(name, fresh=fresh, give_up=None if own else give_up)
            own = False
            if not fetch.done():
                raise StoreUnavailable(
                    "the pods of a service could not be read within "
                    f"{seconds_of(give_up, self._deadline):g} s; nothing was changed. "
                    "The store may be down or failing over",
                    operation="get_pods",
                )
            try:
                return _view_of(fetch)
            except StoreUnavailable:
                # The fetch began before this call, which has more time left.
                if self._clock() >= give_up:
                    raise

    async def look(
        self,
        namespace: str,
        service: str,
        *,
        fresh: bool = False,
        give_up: float | None = None,
    ) -> Seen:
        """As ``get``, but if the store does not answer before all patience is over, the last view, however old.

        Raises what ``Commands.run`` raises, except errors that pass by themselves.
        """
        name = (namespace, service)
        if not fresh:
            view = self.usable(namespace, service)
            if view is not None:
                return Seen(view, True)
        try:
            fetch = await self._ask(name, fresh=fresh, give_up=give_up, patient=False)
            if fetch.done():
                return Seen(_view_of(fetch), True)
        except StoreError as error:
            if not error.retryable:
                raise
        return Seen(self._service(name).view, False)

    async def get_soon(
        self, namespace: str, service: str, *, fresh: bool = False
    ) -> ServiceView | None:
        """As ``look``, but no view older than ``pod_timeout``."""
        seen = await self.look(namespace, service, fresh=fresh)
        if seen.view is None or seen.current:
            return seen.view
        return seen.view if self._clock() - seen.view.read_at <= self._config.pod_timeout else None

    async def closes_within(self, seconds: float) -> bool:
        """Wait this long. True, at once, if the router is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self.closed.wait()
        except TimeoutError:
            return False
        return True

    def last(self, namespace: str, service: str) -> ServiceView | None:
        """The last view, however old."""
        known = self._services.get((namespace, service))
        return known.view if known is not None else None

    def longest_lease(self, namespace: str, service: str) -> float:
        """The longest lease, in seconds, that the pods published when any were last seen. 0.0 if none did."""
        known = self._services.get((namespace, service))
        return known.longest_lease if known is not None else 0.0

    def placements(self, namespace: str, service: str) -> Placements:
        """What this gateway has placed on the pods of the service."""
        return self._service((namespace, service)).placements

    def placed(self, namespace: str, uid: str, service: str, pod: int) -> None:
        """Count a uid that this gateway has placed on the pod."""
        known, now = self._service((namespace, service)), self._clock()
        known.placements.add(pod, now)
        if known.view is not None and pod in known.view.rooms:
            known.following.trips.begin(uid, pod, now)

    def renew_early(self, namespace: str, service: str) -> None:
        """Ask for a newer view though this one is not due, but not too often: pods may have reported less room."""
        known = self._service((namespace, service))
        # What all gateways place, for each uid that this one does: as many gateways as that, if they are alike.
        pause = EARLY_PAUSE * known.fetch_took * max(1.0, known.placements.claims_per_uid)
        if self._clock() - known.fetch_began >= max(EARLY_SECONDS, pause):
            self._renew((namespace, service))

    def failures(self, namespace: str, service: str) -> Failures:
        """What callers have reported of the pods of the service."""
        return self._service((namespace, service)).failures

    def ejected(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Namespace and service -> the pods that get no new uids from this gateway. Any thread may call it."""
        now, found = self._clock(), {}
        for name, known in list(self._services.items()):
            if known.failures and known.view is not None:
                takers = known.view.takers((), known.view.read_at)
                pods = known.failures.ejected((pod.id for pod in takers), now)
                if pods:
                    found[name] = tuple(sorted(pods))
        return found

    def seen(self) -> list[tuple[str, str, ServiceView]]:
        """The last view of every service. Any thread may call it."""
        return [
            (namespace, service, known.view)
            for (namespace, service), known in list(self._services.items())
            if known.view is not None
        ]

    async def close(self) -> None:
        """Stop the fetches under way."""
        self.closed.set()
        every = self._services.values()
        tasks: list[asyncio.Task[object]] = [
            task for one in every for task in (one.fetch, one.following.asking) if task
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _service(self, name: tuple[str, str]) -> _Service:
        known = self._services.get(name)
        if known is None:
            if len(self._services) >= MAX_SERVICES:
                idle = next((n for n, one in self._services.items() if one.is_idle), None)
                if idle is not None:
                    del self._services[idle]
            known = self._services[name] = _Service()
        return known

    async def _ask(
        self, name: tuple[str, str], *, fresh: bool, give_up: float | None, patient: bool = True
    ) -> asyncio.Task[ServiceView]:
        """A fetch, done unless it takes too long: past ``give_up``, or unless ``patient`` past what all who are not
        share.
        """
        known = self._service(name)
        if fresh and known.fetch is not None and known.fetch_sent:
            # It may have been answered before this call.
            known.fetch_work.join()
            before = await self._wait(known, known.fetch, give_up, patient=patient)
            if not before.done():
                return before
        if not fresh and known.refused is not None and self._clock() < known.refused_until:
            # Reading it again would cost the server as much as before.
            return known.refused
        fetch = self._fetch_once(name, known)
        known.fetch_work.join()
        return await self._wait(known, fetch, give_up, patient=patient)

    async def _wait(
        self,
        known: _Service,
        fetch: asyncio.Task[ServiceView],
        give_up: float | None,
        *,
        patient: bool,
    ) -> asyncio.Task[ServiceView]:
        # A caller who gives up does not take the fetch from the others.
        timeout = None if give_up is None else max(0.0, give_up - self._clock())
        ends: list[asyncio.Future[Any]] = [fetch]
        if not patient:
            assert known.patience is not None
            ends.append(known.patience.over)
            if known.troubled_since is not None:
                # Nobody waits through the same trouble again.
                timeout = 0.0
        await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return fetch

    def _fetch_once(self, name: tuple[str, str], known: _Service) -> asyncio.Task[ServiceView]:
        if known.fetch is None:
            if self.closed.is_set():
                raise RouterClosed
            known.fetch_began = self._clock()
            known.fetch_sent = False
            if known.fetch_began - known.troubled_until > self._config.pod_timeout:
                # Nobody has asked for a long time, so nothing is known of how the trouble went on.
                known.troubled_since = None
            known.fetch_work = SharedWork()
            known.patience = Patience(self._loop)
            known.fetch = self._loop.create_task(
                self._fetch(name, known), context=known.fetch_work.context()
            )
            known.fetch.add_done_callback(lambda done: self._fetched(name, known, done))
        return known.fetch

    def _renew(self, name: tuple[str, str]) -> None:
        if not self.closed.is_set():
            self._fetch_once(name, self._service(name))

    def _fetched(
        self, name: tuple[str, str], known: _Service, fetch: asyncio.Task[ServiceView]
    ) -> None:
        known.fetch = None
        if known.patience is not None:
            known.patience.stop()
        if known.view is not None:
            known.view.renewing = False
        known.refused = None
        if fetch.cancelled() or (error := fetch.exception()) is None:
            return
        if isinstance(error, StoreError) and not error.retryable:
            known.refused = fetch
            known.refused_until = self._clock() + self._config.pod_view_max_age
        # Whoever awaits it gets the error. A renewal that nobody awaits is tried again when the view is next used.
        if known.troubled_since is None:
            known.troubled_since = known.fetch_began
        known.troubled_until = self._clock()
        level = logging.DEBUG if isinstance(error, SfrouteError) else logging.ERROR
        self._log.log(
            level,
            "the pods of a service could not be read",
            exc_info=error,
            extra=log_fields(*name, error=error),
        )

    async def _fetch(self, name: tuple[str, str], known: _Service) -> ServiceView:
        key = state_key(*name)
        read_at = self._clock()
        known.fetch_sent = True
        reply = await self._commands.run(
            script_command(
                "get_pods",
                get_script("statefulGetService"),
                [key],
                [self._config.max_pods, MAX_STATE_BYTES],
                write=False,
                repeatable=True,
            )
        )
        answered_at = self._clock()
        patience = known.patience
        assert patience is not None
        patience.stop()
        if patience.over.done() and known.troubled_since is None:
            # Not since it was sent: for as long as this process was kept from reading, the store had no trouble.
            known.troubled_since = answered_at - patience.waited
        pods = {
            pod: self._states.read(pod, state, age)
            for pod, state, age in replies.service_pods(reply, key)
        }
        server_now = replies.server_time(reply, key)
        jump = self._clock_jump(known, server_now, read_at, answered_at)
        view = ServiceView(
            pods,
            read_at,
            self._config,
            allowance=self._allowance(known, answered_at, jump),
            emptied=frozenset(
                pod
                for pod, age in replies.service_notes(reply, key, EMPTYING)
                if age is not None and age < EMPTYING_SECONDS
            ),
        )
        if known.view is not None:
            view.look_back(known.view)
        known.view = view
        if pods:
            known.longest_lease = max(pod.lease or 0.0 for pod in pods.values())
        known.fetch_took = answered_at - read_at
        known.placements.observe(pods.values(), read_at, known.following.trips.seconds)
        known.following.look(self._commands, name, server_now - read_at, self._clock, self._log)
        known.failures.observe(pods.values(), answered_at)
        return view

    @staticmethod
    def _clock_jump(
        known: _Service, server_now: float, read_at: float, answered_at: float
    ) -> float:
        """Seconds by which the server's clock has jumped ahead since the last reading: another server may have taken
        over. The states were stamped by the clock before it, so pods seem silent for that much longer.
        """
        before, known.server_time = known.server_time, (server_now, read_at)
        if before is None:
            return 0.0
        # At least this much, however long the answers took.
        jump = (server_now - before[0]) - (answered_at - before[1])
        return jump if jump > CLOCK_JUMP else 0.0

    def _allowance(self, known: _Service, now: float, jump: float) -> float:
        """Seconds for which a pod may now be silent beyond its time.

        Pods could not report while the store was out of reach. For a third of the timeout, which is a heartbeat, that
        time is not held against them. Neither is a jump of the server's clock.
        """
        pod_timeout = self._config.pod_timeout
        late = jump
        if known.troubled_since is not None:
            late += now - known.troubled_since
            known.troubled_since = None
        if now >= known.allowed_until:
            known.allowance = 0.0
        if late > known.allowance:
            known.allowance, known.allowed_until = late, now + pod_timeout / 3
        return known.allowance


def _view_of(fetch: asyncio.Task[ServiceView]) -> ServiceView:
    if fetch.cancelled():
        raise RouterClosed
    return fetch.result()
