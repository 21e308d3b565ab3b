"""``Router``: which pod of a stateful service owns a uid. The front for threads.

One background thread runs an event loop with an ``AsyncRouter``, which does all logic and all I/O. The caller's own
thread answers from the cache, without a lock; everything else is handed to the loop.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Coroutine, Generator, Sequence
from dataclasses import replace
from time import monotonic
from types import SimpleNamespace, TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

from .. import _forks as forks
from .._contract.keys import check_persist_seconds, check_uid
from .._lookups.cache import Entries
from .._net.targets import AnyClient, StoreTarget, target_of_client, target_of_url
from .._net.timeouts import check_timeout
from .._operations.engine import checked_config
from .._operations.terms import checked_exclude
from .._pods.balance import MAX_SKEW
from .._pods.policies import Policy
from ..config import RouterConfig
from ..errors import RouterClosed
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
from .background import Background, open_routers
from .router import AsyncRouter

__all__ = ["Router"]

_T = TypeVar("_T")

_SILENT = SimpleNamespace(hits=None)
_NO_ENTRIES: Final = Entries(1)
_NOBODY: Final[frozenset[int]] = frozenset()


class Router:
    """Routes uids to pods, for threads. One router serves any number of threads.

    It opens on ``with``, ``open()`` or first use, and runs one background thread. After a fork, it opens again in the
    child at the next use. Its operations, errors and cache are those of ``AsyncRouter``.

    Args:
        client: a redis-py client, sync or asyncio. The router takes its start nodes, credentials, TLS settings and
            ``address_remap``.
        config: the configuration. None: the defaults.
    """

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
        self = cls.__new__(cls)
        self._set_up(target_of_url(url), config)
        return self

    def _set_up(self, target: StoreTarget, config: RouterConfig | None) -> None:
        # A client of another event loop cannot run on this router's loop. Only its settings are used.
        self._target = replace(target, borrowed=None)
        self._config = self._target.completed(checked_config(config))
        self._closed = False
        self._forget_everything()
        forks.register(self._after_fork_in_child)

    def _forget_everything(self) -> None:
        self._lock = threading.Lock()
        self._background: Background | None = None
        # The hot path reads these. Once the background runs, they are its own.
        self._find: Any = _NO_ENTRIES.find
        self._counts: Any = None
        self._telemetry: Any = _SILENT

    # Open and close

    def open(self, *, timeout: float | None = None) -> None:
        """Start the background thread, learn the topology. Optional: the first call does it, too.

        Raises:
            StoreUnavailable: no start node answered before the deadline.
            RouterClosed: the router was closed.
        """
        background = self._running()
        check_timeout(timeout)
        background.call(background.router.open(timeout=timeout), timeout)

    def close(self) -> None:
        """End all connections and the background thread. Calls in progress raise ``RouterClosed``."""
        forks.notice()
        with self._lock:
            self._closed = True
            background, self._background = self._background, None
            self._find = _NO_ENTRIES.find
        if background is not None:
            open_routers.discard(self)
            background.stop()

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            # No __exit__ will follow to end the background thread.
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        background = getattr(self, "_background", None)
        if background is not None and background.is_of_this_process:
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)
            background.abandon()

    def __reduce__(self) -> NoReturn:
        raise TypeError(forks.NO_COPY)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._background is not None else "not open"
        return f"<{type(self).__name__} {state}>"

    def _running(self) -> Background:
        forks.notice()
        background = self._background
        if background is not None:
            return background
        with self._lock:
            if self._closed:
                raise RouterClosed
            if self._background is None:
                self._background = background = Background(self._target, self._config)
                cache = background.inside.engine.cache
                self._counts, self._telemetry = cache.counts, background.inside.telemetry
                self._find = cache.entries.find
                open_routers.add(self)
            return self._background

    def _call(
        self,
        operation: Callable[[AsyncRouter], Coroutine[Any, Any, _T]],
        timeout: float | None = None,
    ) -> _T:
        background = self._running()
        check_timeout(timeout)
        return background.call(operation(background.router), timeout)

    def _after_fork_in_child(self) -> None:
        """In a forked child the thread is gone. Nothing of the parent's is used."""
        forks.keep_forever(self._background)
        self._forget_everything()

    # Service state

    def set_service_state(
        self, namespace: str, service: str, pod: int, state: str, *, timeout: float | None = None
    ) -> None:
        """Write a pod's state, exactly as given."""
        self._call(
            lambda r: r.set_service_state(namespace, service, pod, state, timeout=timeout), timeout
        )

    def get_service_state(
        self, namespace: str, service: str, *, timeout: float | None = None
    ) -> dict[int, str]:
        """Pod id -> state string, for every pod. Skips fields that are not pod ids."""
        return self._call(
            lambda r: r.get_service_state(namespace, service, timeout=timeout), timeout
        )

    def set_workload_state(
        self, namespace: str, service: str, state: str, *, timeout: float | None = None
    ) -> None:
        """Write a service's workload state, exactly as given."""
        self._call(
            lambda r: r.set_workload_state(namespace, service, state, timeout=timeout), timeout
        )

    def get_workload_state(
        self, namespace: str, service: str, *, timeout: float | None = None
    ) -> str | None:
        """A service's workload state. None if it has none."""
        return self._call(
            lambda r: r.get_workload_state(namespace, service, timeout=timeout), timeout
        )

    def get_workload_state_batch(
        self, namespace: str, services: Sequence[str], *, timeout: float | None = None
    ) -> dict[str, str]:
        """Service -> workload state, in one round trip per node. Services without a state are absent."""
        return self._call(
            lambda r: r.get_workload_state_batch(namespace, services, timeout=timeout), timeout
        )

    def get_pods(
        self, namespace: str, service: str, *, fresh: bool = False, timeout: float | None = None
    ) -> dict[int, Pod]:
        """Pod id -> pod: the pod view that this gateway routes by. ``fresh`` asks the store."""
        return self._call(
            lambda r: r.get_pods(namespace, service, fresh=fresh, timeout=timeout), timeout
        )

    def pod_address(
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
        return self._call(
            lambda r: r.pod_address(namespace, service, pod, fresh=fresh, timeout=timeout), timeout
        )

    # Links: writing

    def set_linked_pod(
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
        return self._call(
            lambda r: r.set_linked_pod(
                namespace, uid, service, pod, persist_seconds, timeout=timeout
            ),
            timeout,
        )

    def try_set_linked_pod(
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
        return self._call(
            lambda r: r.try_set_linked_pod(
                namespace, uid, service, pod, persist_seconds, timeout=timeout
            ),
            timeout,
        )

    def set_linked_pod_if_absent(
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
        return self._call(
            lambda r: r.set_linked_pod_if_absent(
                namespace, uid, service, pod, persist_seconds, refresh=refresh, timeout=timeout
            ),
            timeout,
        )

    def remove_linked_pod(
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
        return self._call(
            lambda r: r.remove_linked_pod(
                namespace, uid, service, persist_seconds, timeout=timeout
            ),
            timeout,
        )

    def remove_linked_pod_with_id(
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
        return self._call(
            lambda r: r.remove_linked_pod_with_id(
                namespace, uid, service, pod=pod, persist_seconds=persist_seconds, timeout=timeout
            ),
            timeout,
        )

    # Links: reading

    def get_linked_pod(
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
        # The hot path of router.py, in the caller's thread. Reading an entry needs no lock (see cache.py).
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
                        return entry.value  # type: ignore[no-any-return]  # a key of three parts holds a pod
            except TypeError:  # unhashable: check_lookup raises InvalidArgument
                pass
        flight = self._running().past_cache(
            "get_linked_pod", key, fresh=fresh, stale_ok=stale_ok, timeout=timeout
        )
        return flight.entry.pod if flight.entry is not None else None

    def get_linked_pod_if_persist(
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
        background = self._background
        entry = background.cached(operation, key, fresh=fresh) if background is not None else None
        if entry is None:
            entry = (
                self._running()
                .past_cache(operation, key, fresh=fresh, stale_ok=stale_ok, timeout=timeout)
                .entry
            )
        return entry.pod if entry is not None and entry.persistent else None

    def get_link_service(
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
        background = self._background
        entry = background.cached(operation, key, fresh=fresh) if background is not None else None
        if entry is None:
            entry = (
                self._running()
                .past_cache(operation, key, fresh=fresh, stale_ok=stale_ok, timeout=timeout)
                .entry
            )
        return dict(entry.value) if entry is not None and isinstance(entry.value, dict) else {}

    def batch_get_linked_pod(
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
        return self._call(
            lambda r: r.batch_get_linked_pod(
                namespace, uids, service, fresh=fresh, stale_ok=stale_ok, timeout=timeout
            ),
            timeout,
        )

    # Routing

    def route(
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
        background = self._background
        if background is not None and not fresh:
            # In the caller's thread, like every cached answer.
            seconds = persist_seconds
            if seconds is None:
                seconds = self._config.placement.persist_seconds
            else:
                check_persist_seconds(seconds)
            excluded = checked_exclude(exclude) if exclude != () else _NOBODY
            if beside is not None:
                check_uid(beside, "beside")
            link = background.inside.routes.cached((namespace, uid, service), seconds, excluded)
            if link is not None:
                return link
        return self._call(
            lambda r: r.route(
                namespace,
                uid,
                service,
                persist_seconds=persist_seconds,
                policy=policy,
                exclude=exclude,
                fresh=fresh,
                beside=beside,
                wait=wait,
                timeout=timeout,
            ),
            timeout,
        )

    def move_linked_pod(
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
        return self._call(
            lambda r: r.move_linked_pod(namespace, uid, service, expected, pod, timeout=timeout),
            timeout,
        )

    def watch(self, namespace: str, service: str) -> Generator[PodChange, None, None]:
        """Yield each change of a service's pods as it is noticed, beginning with the pods that are there.

        Ends when the router is closed. Reports nothing while the store cannot be reached.
        """
        background = self._running()
        return background.iterate(background.router.watch(namespace, service))

    def evacuate(
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
    ) -> Generator[EvacuationProgress, None, None]:
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
        background = self._running()
        return background.iterate(
            background.router.evacuate(
                namespace,
                service,
                pod,
                policy=policy,
                rate=rate,
                dry_run=dry_run,
                idle=idle,
                remove_idle=remove_idle,
            )
        )

    def rebalance(
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
    ) -> Generator[RebalanceProgress, None, None]:
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
        background = self._running()
        return background.iterate(
            background.router.rebalance(
                namespace,
                service,
                max_skew=max_skew,
                rate=rate,
                idle_only=idle_only,
                dry_run=dry_run,
                force=force,
                patience=patience,
            )
        )

    def links(
        self, namespace: str, service: str, pod: int | None = None
    ) -> Generator[ListedLink, None, None]:
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
        background = self._running()
        return background.iterate(background.router.links(namespace, service, pod))

    def forget(self, namespace: str, uid: str) -> int:
        """Erase a uid: remove its links of all services, and end its claims. Returns how many links there were.

        Its pods are told (``Lost``), and every gateway's cache drops it. The servers keep records that hold the uid in
        their keys for up to ten minutes longer, so that late writes do no harm; then nothing is left. All keys of one
        primary are scanned. If it fails, call it again.

        What a damaged key does not allow stops nothing else: ``CorruptReply`` says how many entries are left.
        """
        return self._call(lambda r: r.forget(namespace, uid))

    def prune(
        self,
        namespace: str,
        service: str,
        *,
        idle: float,
        rate: float | None = None,
        dry_run: bool = False,
    ) -> Generator[PruneProgress, None, None]:
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
        background = self._running()
        return background.iterate(
            background.router.prune(namespace, service, idle=idle, rate=rate, dry_run=dry_run)
        )

    # Tools

    def execute_script(
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
        return self._call(lambda r: r.execute_script(name, keys, args, timeout=timeout), timeout)

    def invalidate(self, namespace: str, uid: str, service: str | None = None) -> None:
        """Drop a link, or all links of a uid, from the local cache."""
        background = self._running()
        background.call_plain(lambda: background.router.invalidate(namespace, uid, service))

    def report_failure(self, namespace: str, service: str, pod: int) -> None:
        """Say that a pod could not be reached: this router places nobody there for a while.

        Links stay; ``route(exclude=[pod])`` moves the link of one uid. After a pause, 1 s at first and twice as long
        after each further failure, one uid is placed there to try. If nobody reports a failure within 5 s, the pod is
        back. At most half of a service's pods are left out. This router remembers it, the store does not. Report
        connections that were refused or timed out, but no answers, not even errors.
        """
        background = self._running()
        background.call_plain(lambda: background.router.report_failure(namespace, service, pod))

    def stats(self) -> RouterStats:
        """A snapshot of the cache, the lanes and the retries."""
        background = self._running()
        return background.call_plain(background.router.stats)
