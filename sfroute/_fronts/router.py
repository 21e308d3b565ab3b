"""``AsyncRouter``: which pod of a stateful service owns a uid. The front for asyncio."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from .. import _forks as forks
from .._contract.keys import (
    check_link_names,
    check_persist_seconds,
    check_pod,
    check_service_names,
    check_uid,
    check_uid_names,
    good_namespaces,
    good_services,
)
from .._lookups.answers import entry_of
from .._lookups.cache import CacheCounts, Entry, Epoch, Flight, LookupCache
from .._lookups.dispatch import Dispatch
from .._lookups.lane import Lane, Read
from .._lookups.lookups import Lookups
from .._native import heart, hot
from .._net.channel import Channel
from .._net.deadlines import Deadlines
from .._net.targets import AnyClient, StoreTarget, target_of_client, target_of_url
from .._operations.engine import Engine, Parts, checked_config
from .._operations.evacuation import Evacuation, check_idle, check_rate
from .._operations.handing_over import HowToMove
from .._operations.inside import Inside
from .._operations.listing import check_idle_seconds
from .._operations.raw_scripts import run_script
from .._operations.rebalancing import Rebalance, check_max_skew, check_patience
from .._operations.terms import RouteTerms, checked_exclude, checked_wait
from .._operations.watching import pod_changes
from .._pods.balance import MAX_SKEW
from .._pods.policies import Policy, check_policy
from ..config import RouterConfig
from ..errors import InvalidArgument, RouterClosed
from ..telemetry import Telemetry, traced
from ..types import (
    PERSIST_FOREVER,
    EvacuationProgress,
    Link,
    ListedLink,
    Pod,
    PodChange,
    PruneProgress,
    RebalanceProgress,
    RouterStats,
    TrySetResult,
)

__all__ = ["AsyncRouter"]

_NOBODY: Final[frozenset[int]] = frozenset()


class AsyncRouter:
    """Routes uids to pods, for asyncio. One router serves any number of tasks of one event loop.

    It opens on ``async with``, ``await open()`` or first use, and belongs to the event loop that is running then.
    Lookups of links are answered from a local cache, which the servers keep current by pushing changes (see
    ``CacheConfig``). Everything else asks the store.

    Every operation checks its arguments before anything is sent (``InvalidArgument``). It may raise
    ``StoreUnavailable`` when its deadline passes, ``CorruptReply`` when a key holds something that the contract does
    not allow, and ``RouterClosed``. Operations that write may raise ``OutcomeUnknown``.

    The deadline is ``RetryConfig.deadline``, or ``timeout`` for a call that is given one: seconds, fewer or more. Calls
    that wait for the same answer keep their own deadlines. Operations that go through all links, or that never end,
    have no ``timeout``.

    Args:
        client: a redis-py client. An asyncio ``RedisCluster`` is borrowed: the router follows its slot map and never
            closes it. From any other client it takes only addresses, credentials, TLS settings and ``address_remap``.
        config: the configuration. None: the defaults.
    """

    # What the native part reads, where it finds it.
    __slots__ = ("__dict__", "__weakref__", "_counts", "_engine", "_find", "_telemetry")

    def __init__(self, client: AnyClient, *, config: RouterConfig | None = None) -> None:
        self._set_up(target_of_client(client), config)

    @classmethod
    def from_url(cls, url: str, *, config: RouterConfig | None = None) -> Self:
        """A router for ``redis://``, ``rediss://``, ``redis+cluster://`` or ``rediss+cluster://``.

        Commas separate several start nodes of a cluster. redis-py's options follow as a query string; each takes effect
        or is refused (docs/how-to/connect.md).

        Raises:
            ConfigError: the URL cannot be used. The text does not repeat it.
        """
        return cls._of_target(target_of_url(url), config)

    @classmethod
    def _of_target(cls, target: StoreTarget, config: RouterConfig | None) -> Self:
        """A router for a target from ``targets.py``. The sync front uses it too."""
        self = cls.__new__(cls)
        self._set_up(target, config)
        return self

    def _set_up(self, target: StoreTarget, config: RouterConfig | None) -> None:
        self._inside = inside = Inside(target, checked_config(config))
        # An attribute of an attribute would cost every call.
        self._engine, self._telemetry = inside.engine, inside.telemetry
        self._reader, self._routes = inside.reader, inside.routes
        self._after_fork_in_child()
        forks.register(self._after_fork_in_child)

    def _after_fork_in_child(self) -> None:
        """In a forked child the engine has a new cache (see ``_forks.py``). The hot path must not read the parent's."""
        self._cache = self._engine.cache
        self._find = self._cache.entries.find
        self._counts = self._cache.counts

    # Open and close

    async def open(self, *, timeout: float | None = None) -> None:
        """Learn the topology. Optional: the first call does it as well. Call it to fail early.

        Raises:
            StoreUnavailable: no start node answered before the deadline.
            RouterClosed: the router was closed.
        """
        await self._engine.opened_by(self._engine.give_up(timeout), "open")

    async def aclose(self) -> None:
        """End all connections and tasks. A borrowed client stays open.

        Calls in progress raise ``RouterClosed``.

        Raises:
            ConfigError: the router is open on another event loop. Close it there.
        """
        await self._engine.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None and engine.parts is not None:
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)
            self._telemetry.abandon(engine)

    def __reduce__(self) -> NoReturn:
        raise TypeError(forks.NO_COPY)

    def __repr__(self) -> str:
        engine = self._engine
        state = "closed" if engine.closed else "open" if engine.parts is not None else "not open"
        return f"<{type(self).__name__} {state}>"

    # Service state

    @traced
    async def set_service_state(
        self, namespace: str, service: str, pod: int, state: str, *, timeout: float | None = None
    ) -> None:
        """Write a pod's state, exactly as given."""
        give_up = self._engine.give_up(timeout)
        await self._inside.states.set_pod(namespace, service, pod, state, give_up)

    @traced
    async def get_service_state(
        self, namespace: str, service: str, *, timeout: float | None = None
    ) -> dict[int, str]:
        """Pod id -> state string, for every pod. Skips fields that are not pod ids."""
        give_up = self._engine.give_up(timeout)
        return await self._inside.states.get_pods(namespace, service, give_up)

    @traced
    async def set_workload_state(
        self, namespace: str, service: str, state: str, *, timeout: float | None = None
    ) -> None:
        """Write a service's workload state, exactly as given."""
        give_up = self._engine.give_up(timeout)
        await self._inside.states.set_workload(namespace, service, state, give_up)

    @traced
    async def get_workload_state(
        self, namespace: str, service: str, *, timeout: float | None = None
    ) -> str | None:
        """A service's workload state. None if it has none."""
        give_up = self._engine.give_up(timeout)
        return await self._inside.states.get_workload(namespace, service, give_up)

    @traced
    async def get_workload_state_batch(
        self, namespace: str, services: Sequence[str], *, timeout: float | None = None
    ) -> dict[str, str]:
        """Service -> workload state, in one round trip per node. Services without a state are absent."""
        give_up = self._engine.give_up(timeout)
        return await self._inside.states.get_workloads(namespace, services, give_up)

    @traced
    async def get_pods(
        self, namespace: str, service: str, *, fresh: bool = False, timeout: float | None = None
    ) -> dict[int, Pod]:
        """Pod id -> pod: the pod view that this gateway routes by. ``fresh`` asks the store."""
        give_up = self._engine.give_up(timeout)
        view = await self._inside.states.view("get_pods", namespace, service, fresh, give_up)
        return dict(view.pods)

    @traced
    async def pod_address(
        self,
        namespace: str,
        service: str,
        pod: int,
        *,
        fresh: bool = False,
        timeout: float | None = None,
    ) -> str | None:
        """The address that a pod published in its heartbeat. None if it published none, or has not reported.

        From the pod view that this gateway routes by. ``fresh`` asks the store.
        """
        check_pod(pod)
        give_up = self._engine.give_up(timeout)
        view = await self._inside.states.view("pod_address", namespace, service, fresh, give_up)
        return view.addresses.get(pod)

    # Links: writing

    @traced
    async def set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
        *,
        timeout: float | None = None,
    ) -> int | None:
        """Link a uid to a pod; the last writer wins. Returns the previous pod, or None."""
        give_up = self._engine.give_up(timeout)
        return await self._inside.writer.set_linked_pod(
            namespace, uid, service, pod, persist_seconds, give_up=give_up
        )

    @traced
    async def try_set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
        *,
        timeout: float | None = None,
    ) -> TrySetResult:
        """Link a uid to a pod unless a *different* pod holds a *persistent* link. Returns the owner."""
        give_up = self._engine.give_up(timeout)
        return await self._inside.writer.try_set_linked_pod(
            namespace, uid, service, pod, persist_seconds, give_up=give_up
        )

    @traced
    async def set_linked_pod_if_absent(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
        *,
        refresh: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Link a uid that has no link. Returns the owner: ``pod``, or the pod that was linked before.

        ``refresh``: also extend an existing temporary link to ``persist_seconds``. It is never shortened or deleted.
        """
        give_up = self._engine.give_up(timeout)
        return await self._inside.writer.set_linked_pod_if_absent(
            namespace, uid, service, pod, persist_seconds, refresh=refresh, give_up=give_up
        )

    @traced
    async def remove_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        persist_seconds: int = PERSIST_FOREVER,
        *,
        timeout: float | None = None,
    ) -> bool:
        """Remove a link. True if there was one.

        ``PERSIST_FOREVER`` deletes it now. N seconds *demote* it to a temporary link: a grace period for a reconnect.
        """
        give_up = self._engine.give_up(timeout)
        return await self._inside.writer.remove_linked_pod(
            namespace, uid, service, persist_seconds, give_up=give_up
        )

    @traced
    async def remove_linked_pod_with_id(
        self,
        namespace: str,
        uid: str,
        service: str,
        *,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
        timeout: float | None = None,
    ) -> bool:
        """Remove a link as ``remove_linked_pod`` does, but only if it points to ``pod``. True if it did.

        So a late disconnect never removes a newer link. Both numbers go by keyword: in the wrong order they would be a
        removal that silently does nothing.
        """
        give_up = self._engine.give_up(timeout)
        return await self._inside.writer.remove_linked_pod_with_id(
            namespace, uid, service, pod, persist_seconds, give_up=give_up
        )

    # Links: reading

    @hot
    async def get_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        fresh: bool = False,
        stale_ok: bool = True,
        timeout: float | None = None,
    ) -> int | None:
        """The pod that a uid is linked to, or None. Cached; ``fresh`` asks the store.

        While the store cannot be reached, this returns the last known answer, up to ``CacheConfig.stale_if_error`` past
        its time. ``stale_ok=False`` waits for a current one instead, and raises ``StoreUnavailable`` at the deadline.
        """
        # The hot path: one dict access and two comparisons for a cached answer. (A keyword-only argument, or calling an
        # attribute without a local name, would slow it down: docs/explanation/performance.md.)
        key = (namespace, uid, service)
        if not fresh:
            find = self._find
            try:
                entry = find(key)
                if entry is not None:
                    now = monotonic()
                    if now < entry.deadline and now < entry.epoch.healthy_until:
                        self._counts.hits += 1
                        hits = self._telemetry.hits
                        if hits is not None:
                            append, context = hits
                            append(("get_linked_pod", key, now, monotonic(), context(), entry))
                        return entry.value  # type: ignore[return-value]  # a key of three parts holds a pod
            except TypeError:  # unhashable: check_lookup raises InvalidArgument
                pass
        flight = await self._reader.past_cache("get_linked_pod", key, fresh, stale_ok, timeout)
        entry = flight.entry or entry_of(flight, "get_linked_pod")
        return entry.pod

    async def get_linked_pod_if_persist(
        self,
        namespace: str,
        uid: str,
        service: str,
        *,
        fresh: bool = False,
        stale_ok: bool = True,
        timeout: float | None = None,
    ) -> int | None:
        """The pod that a uid is *persistently* linked to, or None. Uses the same cache entry as ``get_linked_pod``.

        ``fresh`` and ``stale_ok``: as there.
        """
        operation, key = "get_linked_pod_if_persist", (namespace, uid, service)
        entry = self._reader.cached(operation, key, fresh)
        if entry is None:
            flight = await self._reader.past_cache(operation, key, fresh, stale_ok, timeout)
            entry = entry_of(flight, operation)
        return entry.pod if entry.persistent else None

    async def get_link_service(
        self,
        namespace: str,
        uid: str,
        *,
        fresh: bool = False,
        stale_ok: bool = True,
        timeout: float | None = None,
    ) -> dict[str, int]:
        """Service -> pod id of a uid's persistent links. Cached; ``fresh``, ``stale_ok``: as in ``get_linked_pod``."""
        operation, key = "get_link_service", (namespace, uid)
        entry = self._reader.cached(operation, key, fresh)
        if entry is None:
            flight = await self._reader.past_cache(operation, key, fresh, stale_ok, timeout)
            entry = entry_of(flight, operation)
        return dict(entry.value) if isinstance(entry.value, dict) else {}

    @traced
    async def batch_get_linked_pod(
        self,
        namespace: str,
        uids: Sequence[str],
        service: str,
        *,
        fresh: bool = False,
        stale_ok: bool = True,
        timeout: float | None = None,
    ) -> dict[int, list[str]]:
        """Pod id -> the uids linked to it, in the order given. Uids without a link are absent.

        What the cache does not hold takes one round trip per node. Duplicates are kept. ``fresh`` and ``stale_ok``: as
        in ``get_linked_pod``.
        """
        give_up = self._engine.give_up(timeout)
        return await self._reader.batch(namespace, uids, service, fresh, stale_ok, give_up)

    # Routing

    async def route(
        self,
        namespace: str,
        uid: str,
        service: str,
        *,
        persist_seconds: int | None = None,
        policy: Policy | None = None,
        exclude: Collection[int] = (),
        fresh: bool = False,
        beside: str | None = None,
        wait: float | None = None,
        timeout: float | None = None,
    ) -> Link:
        """The pod for a uid: the linked one if it is alive, else another, to which the uid is linked atomically.

        However many gateways ask at once, all get the same pod.

        Args:
            namespace: the namespace.
            uid: the user.
            service: the service.
            persist_seconds: the kind of link to make. An existing temporary link is extended to it once half of that
                time is gone. None: ``PlacementConfig.persist_seconds``.
            policy: how to choose a pod. None: the power of two choices.
            exclude: pods not to use, such as one that refused the connection.
            fresh: ask the store for the link and the pods, whatever is cached.
            beside: another uid, such as a room's. If ``uid`` has to be placed, it is placed at that one's pod. That one
                is routed first, so it has a link afterwards. If its pod takes nobody, ``policy`` chooses.
            wait: seconds to wait for a pod that may take the uid, if none may now because all are full or gone. The
                call's deadline may end it sooner. None: do not wait.
            timeout: seconds that the call may take. None: ``RetryConfig.deadline``.

        Raises:
            NoRoutablePod: the uid has no link to a living pod, and no pod may take it.
        """
        if persist_seconds is None:
            persist_seconds = self._engine.config.placement.persist_seconds
        else:
            check_persist_seconds(persist_seconds)
        excluded = checked_exclude(exclude) if exclude != () else _NOBODY
        if beside is not None:
            check_uid(beside, "beside")
        link = (namespace, uid, service)
        if not fresh:
            cached = self._routes.cached(link, persist_seconds, excluded)
            if cached is not None:
                return cached
        terms = RouteTerms(persist_seconds, policy, excluded, fresh, beside, checked_wait(wait))
        return await self._route_by(self._engine.give_up(timeout), link, terms)

    def _route_by(
        self, give_up: float | None, link: tuple[str, str, str], terms: RouteTerms
    ) -> Coroutine[Any, Any, Link]:
        """Route past the cache, until an instant. None: ``RetryConfig.deadline`` from now."""
        routed = self._routes.past_cache(link, terms, give_up)
        namespace, uid, service = link
        record = self._telemetry.begin("route", namespace, service, uid)
        return routed if record is None else self._telemetry.follow(record, routed)

    @traced
    async def move_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        expected: int,
        pod: int,
        *,
        timeout: float | None = None,
    ) -> int | None:
        """Move a uid's link from pod ``expected`` to ``pod``, if it is there. It keeps its kind and remaining time.

        Returns the owner afterwards: ``pod``, another pod that has the uid, or None if it has no link.
        """
        check_link_names(namespace, uid, service)
        check_pod(expected, "expected")
        check_pod(pod)
        if expected == pod:
            raise InvalidArgument("pod must differ from expected")
        give_up = self._engine.give_up(timeout)
        owner, _ = await self._routes.move(
            (namespace, uid, service), expected, [pod], "move_linked_pod", give_up
        )
        return owner

    async def watch(self, namespace: str, service: str) -> AsyncGenerator[PodChange, None]:
        """Yield each change of a service's pods as it is noticed, beginning with the pods that are there.

        Ends when the router is closed. Reports nothing while the store cannot be reached.
        """
        check_service_names(namespace, service)
        if self._engine.closed:
            raise RouterClosed
        async with contextlib.aclosing(pod_changes(self._engine, namespace, service)) as found:
            async for change in found:
                yield change

    async def evacuate(
        self,
        namespace: str,
        service: str,
        pod: int,
        *,
        policy: Policy | None = None,
        rate: float | None = None,
        dry_run: bool = False,
        idle: float | None = None,
        remove_idle: bool = False,
    ) -> AsyncGenerator[EvacuationProgress, None]:
        """Move every link off a pod, yielding the progress. The last element has ``done`` set.

        Each link is moved by its own compare-and-set and keeps its kind and remaining time. Gateways may route
        meanwhile. Drain the pod first, or gateways keep placing uids on it. After an interruption, start again.

        Args:
            namespace: the namespace.
            service: the service.
            pod: the pod to empty.
            policy: how to choose the pod for each uid. None: the power of two choices.
            rate: the most moves per second. None: no limit.
            dry_run: only count.
            idle: do not move a persistent link that no client has read or written for this many seconds; count it.
            remove_idle: remove the idle links instead. One whose user comes back before its turn is moved.

        Raises:
            NoRoutablePod: there is no other pod to move links to.
        """
        check_service_names(namespace, service)
        check_pod(pod)
        check_rate(rate)
        check_idle(idle, remove_idle)
        check_policy(policy)
        evacuation = Evacuation(
            self._engine,
            self._routes,
            self._inside.writer,
            (namespace, service, pod),
            policy,
            rate,
            dry_run=dry_run,
            idle=idle,
            remove_idle=remove_idle,
        )
        with self._telemetry.in_pieces("evacuate", namespace, service):
            async with contextlib.aclosing(evacuation.run()) as steps:
                async for progress in steps:
                    yield progress

    async def rebalance(
        self,
        namespace: str,
        service: str,
        *,
        max_skew: float = MAX_SKEW,
        rate: float | None = None,
        idle_only: bool = False,
        dry_run: bool = False,
        force: bool = False,
        patience: float = 30.0,
    ) -> AsyncGenerator[RebalanceProgress, None]:
        """Move users from full pods to emptier ones until they are even enough, yielding the progress.

        First all links are counted, and as few moves as needed are planned; the progress shows the plan. Users whom no
        pod has claimed are moved first, those in their grace period among them. For claimed users their pod is asked
        (``Handover``, from ``agent.events()``): it saves the user and lets go, or the user stays. Gateways may route
        meanwhile. Only one rebalance of a service runs at a time: another one waits. After an interruption, start
        again. The last element has ``done`` set.

        Args:
            namespace: the namespace.
            service: the service.
            max_skew: the most users that a pod may have, by its capacity, as a multiple of an even share; >= 1.
            rate: the most users per second that are moved or asked for. None: no limit.
            idle_only: leave those alone whom a pod has claimed.
            dry_run: only count and plan.
            force: move users whom their pod does not let go within ``patience``; it is told ``Lost``. Once it has kept
                64 in a row, its others are moved unasked.
            patience: seconds that a pod has for letting a user go.

        Raises:
            StoreError: not all links could be counted, or not all users be moved.
        """
        check_service_names(namespace, service)
        check_max_skew(max_skew)
        check_rate(rate)
        check_patience(patience)
        if force and idle_only:
            raise InvalidArgument("force moves claimed users, and idle_only leaves them alone")
        rebalance = Rebalance(
            self._engine,
            self._inside.writer,
            self._inside.listing,
            (namespace, service),
            max_skew=max_skew,
            dry_run=dry_run,
            how=HowToMove(rate, idle_only, force, patience),
        )
        with self._telemetry.in_pieces("rebalance", namespace, service):
            async with contextlib.aclosing(rebalance.run()) as steps:
                async for progress in steps:
                    yield progress

    async def links(
        self, namespace: str, service: str, pod: int | None = None
    ) -> AsyncGenerator[ListedLink, None]:
        """Every link of a service, or of one pod, from all primaries: for reports, exports and repairs.

        Memory stays bounded however many links there are. A link that exists throughout is found unless its slot moves
        meanwhile. A link may come twice. The servers scan all of their keys, which takes about a second per million.
        Closing the iterator ends it.

        A key that holds what no link can be does not stop it: ``CorruptReply`` comes after all others, and says how
        many there are.

        Args:
            namespace: the namespace.
            service: the service.
            pod: only the links to this pod.
        """
        check_service_names(namespace, service)
        if pod is not None:
            check_pod(pod)
        with self._telemetry.in_pieces("links", namespace, service):
            steps = self._inside.listing.links(namespace, service, pod)
            async with contextlib.aclosing(steps):
                async for link in steps:
                    yield link

    @traced
    async def forget(self, namespace: str, uid: str) -> int:
        """Erase a uid: remove its links of all services, and end its claims. Returns how many links there were.

        Its pods are told (``Lost``), and every gateway's cache drops it. The servers keep records that hold the uid in
        their keys for up to ten minutes longer, so that late writes do no harm; then nothing is left. All keys of one
        primary are scanned. If it fails, call it again.

        What a damaged key does not allow stops nothing else: ``CorruptReply`` says how many entries are left.
        """
        check_uid_names(namespace, uid)
        return await self._inside.listing.forget(namespace, uid)

    async def prune(
        self,
        namespace: str,
        service: str,
        *,
        idle: float,
        rate: float | None = None,
        dry_run: bool = False,
    ) -> AsyncGenerator[PruneProgress, None]:
        """Remove links without expiry that no client has read or written for a long time, yielding the progress.

        Links of uids that a living pod has claimed stay, and so do those of users who come back before their turn: both
        are looked at again in the step that removes. After an interruption, start again. docs/how-to/servers.md says
        what a server knows about idle time, and when it forgets it.

        Args:
            namespace: the namespace.
            service: the service.
            idle: seconds without a read or write, such as 30 * 86400.
            rate: the most removals per second. None: no limit.
            dry_run: only count.
        """
        check_service_names(namespace, service)
        check_idle_seconds(idle)
        check_rate(rate)
        with self._telemetry.in_pieces("prune", namespace, service):
            steps = self._inside.listing.prune(namespace, service, idle, rate, dry_run=dry_run)
            async with contextlib.aclosing(steps):
                async for progress in steps:
                    yield progress

    # Tools

    @traced
    async def execute_script(
        self,
        name: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        timeout: float | None = None,
    ) -> object:
        """Run one of the scripts and return the raw reply.

        All keys must be in one slot. A script that writes is not sent again after an ambiguous loss
        (``OutcomeUnknown``).
        """
        give_up = self._engine.give_up(timeout)
        return await run_script(self._engine, self._inside.writer, name, keys, args, give_up)

    def invalidate(self, namespace: str, uid: str, service: str | None = None) -> None:
        """Drop a link, or all links of a uid, from the local cache."""
        if service is None:
            check_uid_names(namespace, uid)
            self._cache.drop_uid(namespace, uid)
        else:
            check_link_names(namespace, uid, service)
            self._cache.drop((namespace, uid, service))

    def report_failure(self, namespace: str, service: str, pod: int) -> None:
        """Say that a pod could not be reached: this router places nobody there for a while.

        Links stay; ``route(exclude=[pod])`` moves the link of one uid. After a pause, 1 s at first and twice as long
        after each further failure, one uid is placed there to try. If nobody reports a failure within 5 s, the pod is
        back. At most half of a service's pods are left out. This router remembers it, the store does not. Report
        connections that were refused or timed out, but no answers, not even errors.
        """
        self._inside.reports.failure(namespace, service, pod)

    def stats(self) -> RouterStats:
        """A snapshot of the cache, the lanes and the retries."""
        return self._engine.stats()


if heart is not None:
    heart.learn_hits(AsyncRouter, Entry, Epoch, Flight, CacheCounts, Telemetry, entry_of)
    heart.learn_misses(
        router=AsyncRouter,
        telemetry=Telemetry,
        engine=Engine,
        parts=Parts,
        lookups=Lookups,
        dispatch=Dispatch,
        deadlines=Deadlines,
        cache=LookupCache,
        counts=CacheCounts,
        lane=Lane,
        channel=Channel,
        read=Read,
        slots=(*Flight.__slots__, *Read.__slots__),
        namespaces=good_namespaces,
        services=good_services,
    )
