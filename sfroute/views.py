"""What a gateway knows of the pods of each service: fetched when needed, renewed while it is used.

A view is used while a newer one is fetched (stale-while-revalidate), but not for long, and not past the instant at
which a pod in it would count as dead: a dead pod is noticed when its time is up, not when somebody looks. While the
store does not answer, the last view goes on serving for a known link; and when it answers again, pods are not taken for
dead because *their* heartbeats met the same trouble.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from math import inf

from . import replies
from .config import PlacementConfig
from .errors import RouterClosed, SfrouteError, StoreError
from .keys import state_key
from .placement import Placements
from .scripts import get_script
from .states import ROUTABLE, gone, read_pod
from .store import Store, script_command
from .types import Pod

__all__ = ["PodViews", "ServiceView", "notice_seconds"]

_log = logging.getLogger(__name__)

MAX_SERVICES = 4096
USABLE_PERIODS = 2
"""A view may be used while it is renewed, up to this many times ``pod_view_max_age``; after that callers wait."""
CLOCK_JUMP = 0.1
"""Seconds by which a server's clock gets ahead of this process's between two readings if it jumped; less is drift."""
PATIENCE = 0.5
"""Seconds a fetch may take before it counts as trouble and known links are served without it."""


def notice_seconds(config: PlacementConfig) -> float:
    """How long after a pod has stored its state a gateway may still go by the state before."""
    return USABLE_PERIODS * config.pod_view_max_age


class ServiceView:
    """The pods of one service at one instant.

    Attributes:
        pods: pod id -> view. Ages are those at the reading.
        gone: pod id -> why its links must be moved.
        pod_timeout: seconds after which a silent pod counted as dead.
        missed: pod id -> instant until which it is waited for: it was alive when last seen, and is reported no more.
        read_at: when they were asked for, by the clock of ``PodViews``.
        usable_until: instant from which a newer one is needed.
        renewing: a newer one has been asked for.
    """

    __slots__ = (
        "gone",
        "missed",
        "pod_timeout",
        "pods",
        "read_at",
        "renewing",
        "usable_until",
    )

    def __init__(self, pods: dict[int, Pod], read_at: float, pod_timeout: float) -> None:
        self.pods = pods
        self.read_at = read_at
        self.pod_timeout = pod_timeout
        self.gone = gone(pods, pod_timeout)
        self.missed: dict[int, float] = {}
        self.usable_until = min(
            (
                read_at + pod_timeout - pod.age
                for pod in pods.values()
                if pod.age is not None and pod.id not in self.gone
            ),
            default=inf,
        )
        self.renewing = False

    def keeps(self, pod: int) -> bool:
        """True if links to this pod stay: it is there and not gone, or nothing at all is known of the service."""
        if not self.pods:
            return True
        return (pod in self.pods and pod not in self.gone) or pod in self.missed

    def takers(self, exclude: Collection[int], now: float) -> list[Pod]:
        """The pods that may take new uids: routable, not excluded, and still within their time if the view is an old
        one.
        """
        oldest = self.pod_timeout - (now - self.read_at)
        return [
            pod
            for pod in self.pods.values()
            if pod.status in ROUTABLE
            and (pod.age or 0.0) <= oldest
            and pod.id not in self.gone
            and pod.id not in exclude
        ]

    def look_back(self, before: ServiceView, pod_timeout: float) -> None:
        """A pod that vanished is waited for as long as one that fell silent: whoever lost the states has not ended the
        pods, and their next heartbeats bring them back.
        """
        alive = {pod: before.read_at + pod_timeout for pod in before.pods if pod not in before.gone}
        self.missed = {
            pod: until
            for pod, until in {**before.missed, **alive}.items()
            if pod not in self.pods and until > self.read_at
        }
        self.usable_until = min(self.usable_until, *self.missed.values(), inf)


class _Service:
    """What is kept of one service.

    ``troubled_since``: when the first of those fetches began that have failed or taken long; ``troubled_until``: when
    the last of them failed. ``allowance``: seconds by which heartbeats may seem late through no fault of the pods,
    until ``allowed_until``. ``server_time``: the server's clock at the last reading, and when that reading began, both
    in seconds.
    """

    __slots__ = (
        "allowance",
        "allowed_until",
        "fetch",
        "fetch_began",
        "fetch_sent",
        "placements",
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
        self.placements = Placements()
        self.troubled_since: float | None = None
        self.troubled_until = -inf
        self.allowance = 0.0
        self.allowed_until = -inf
        self.server_time: tuple[float, float] | None = None


class PodViews:
    """Service views by namespace and service; one fetch for each service under way.

    Attributes:
        closed: set when the router is closed.
    """

    def __init__(self, store: Store, config: PlacementConfig, clock: Callable[[], float]) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # Each view is replaced whole, never changed: other threads may read it.
        self._services: dict[tuple[str, str], _Service] = {}
        self.closed = asyncio.Event()

    def usable(self, namespace: str, service: str) -> ServiceView | None:
        """A view that may be used now; sees to its renewal when that is due. None: ``get`` must be awaited.

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

    async def get(self, namespace: str, service: str, *, fresh: bool = False) -> ServiceView:
        """A usable view; ``fresh``: one that was asked for after this call began.

        Raises what ``Store.run`` raises.
        """
        if not fresh:
            view = self.usable(namespace, service)
            if view is not None:
                return view
        return _view_of(await self._ask((namespace, service), fresh=fresh, patience=None))

    async def get_soon(
        self, namespace: str, service: str, *, fresh: bool = False
    ) -> ServiceView | None:
        """As ``get``, but if the store does not answer soon the last view, unless it is older than a pod may be silent;
        then None: nothing is known.
        """
        name = (namespace, service)
        if not fresh:
            view = self.usable(namespace, service)
            if view is not None:
                return view
        try:
            fetch = await self._ask(name, fresh=fresh, patience=PATIENCE)
            if fetch.done():
                return _view_of(fetch)
        except StoreError as error:
            if not error.retryable:
                raise
        view = self._service(name).view
        if view is None or self._clock() - view.read_at > self._config.pod_timeout:
            return None
        return view

    async def closes_within(self, seconds: float) -> bool:
        """Wait for so long; True, at once, if the router is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self.closed.wait()
        except TimeoutError:
            return False
        return True

    def placements(self, namespace: str, service: str) -> Placements:
        """What this gateway has placed on the pods of the service."""
        return self._service((namespace, service)).placements

    async def close(self) -> None:
        """Stop the fetches under way."""
        self.closed.set()
        fetches = [known.fetch for known in self._services.values() if known.fetch is not None]
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    def _service(self, name: tuple[str, str]) -> _Service:
        known = self._services.get(name)
        if known is None:
            if len(self._services) >= MAX_SERVICES:
                idle = next((n for n, one in self._services.items() if not one.fetch), None)
                if idle is not None:
                    del self._services[idle]
            known = self._services[name] = _Service()
        return known

    async def _ask(
        self, name: tuple[str, str], *, fresh: bool, patience: float | None
    ) -> asyncio.Task[ServiceView]:
        """A fetch, done unless it takes longer than ``patience`` (None: its own deadline)."""
        known = self._service(name)
        if fresh and known.fetch is not None and known.fetch_sent:
            # It may have been answered before this call.
            await self._wait(known, known.fetch, patience)
        fetch = self._fetch_once(name, known)
        await self._wait(known, fetch, patience)
        return fetch

    async def _wait(
        self, known: _Service, fetch: asyncio.Task[ServiceView], patience: float | None
    ) -> None:
        """Wait; the patience of all callers together begins with the fetch, and is over once there is trouble."""
        left = None
        if patience is not None:
            began = -inf if known.troubled_since is not None else known.fetch_began
            left = max(0.0, began + patience - self._clock())
        # A caller who gives up does not take the fetch from the others.
        await asyncio.wait([fetch], timeout=left)

    def _fetch_once(self, name: tuple[str, str], known: _Service) -> asyncio.Task[ServiceView]:
        if known.fetch is None:
            if self.closed.is_set():
                raise RouterClosed
            known.fetch_began = self._clock()
            known.fetch_sent = False
            if known.fetch_began - known.troubled_until > self._config.pod_timeout:
                # Nobody has asked for so long: of the store's trouble nothing is known but that it was.
                known.troubled_since = None
            known.fetch = self._loop.create_task(self._fetch(name, known))
            known.fetch.add_done_callback(lambda done: self._fetched(known, done))
        return known.fetch

    def _renew(self, name: tuple[str, str]) -> None:
        if not self.closed.is_set():
            self._fetch_once(name, self._service(name))

    def _fetched(self, known: _Service, fetch: asyncio.Task[ServiceView]) -> None:
        known.fetch = None
        if known.view is not None:
            known.view.renewing = False
        if fetch.cancelled() or fetch.exception() is None:
            return
        # Whoever awaits it is told; a renewal that nobody awaits is tried again when the view is next used.
        if known.troubled_since is None:
            known.troubled_since = known.fetch_began
        known.troubled_until = self._clock()
        level = logging.DEBUG if isinstance(fetch.exception(), SfrouteError) else logging.ERROR
        _log.log(level, "the pods of a service could not be read", exc_info=fetch.exception())

    async def _fetch(self, name: tuple[str, str], known: _Service) -> ServiceView:
        key = state_key(*name)
        read_at = self._clock()
        known.fetch_sent = True
        reply = await self._store.run(
            script_command(
                "get_pods",
                get_script("statefulGetService"),
                [key],
                [self._config.max_pods],
                write=False,
                repeatable=True,
            )
        )
        answered_at = self._clock()
        if answered_at - read_at > PATIENCE and known.troubled_since is None:
            known.troubled_since = read_at
        pods = {
            pod: read_pod(pod, state, age) for pod, state, age in replies.service_pods(reply, key)
        }
        server_now = replies.server_time(reply, key)
        jump = self._clock_jump(known, server_now, read_at, answered_at)
        view = ServiceView(pods, read_at, self._pod_timeout(known, answered_at, jump))
        if known.view is not None:
            view.look_back(known.view, self._config.pod_timeout)
        known.view = view
        known.placements.observe(pods.values(), read_at)
        return view

    @staticmethod
    def _clock_jump(
        known: _Service, server_now: float, read_at: float, answered_at: float
    ) -> float:
        """Seconds by which the server's clock has jumped ahead since the last reading: another server may have taken
        over. The states were stamped by the clock before, so that pods seem silent for so much longer.
        """
        before, known.server_time = known.server_time, (server_now, read_at)
        if before is None:
            return 0.0
        # At least so much, however long the answers took.
        jump = (server_now - before[0]) - (answered_at - before[1])
        return jump if jump > CLOCK_JUMP else 0.0

    def _pod_timeout(self, known: _Service, now: float, jump: float) -> float:
        """Seconds after which a silent pod is dead, as things are.

        Pods could not report while the store was out of reach: for a third of the timeout, which is a heartbeat, what
        it was out of reach is not held against them, nor is a jump of the server's clock.
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
        return pod_timeout + known.allowance


def _view_of(fetch: asyncio.Task[ServiceView]) -> ServiceView:
    if fetch.cancelled():
        raise RouterClosed
    return fetch.result()
