"""``Router``: the same router for threads.

One background thread runs an event loop with an ``AsyncRouter`` in it, where all logic and all I/O are. A cached answer
is served in the caller's thread, without a lock; everything else is handed to the loop.
"""

from __future__ import annotations

import atexit
import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Coroutine, Generator, Sequence
from dataclasses import replace
from time import monotonic
from types import SimpleNamespace, TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

from . import forks
from .background import Background
from .cache import CacheKey, Entries, Entry, Flight
from .config import RouterConfig
from .engine import checked_config
from .errors import RouterClosed
from .keys import check_persist_seconds
from .placement import Policy
from .router import AsyncRouter
from .routing import checked_exclude
from .targets import AnyClient, StoreTarget, target_of_client, target_of_url
from .types import (
    PERSIST_FOREVER,
    EvacuationProgress,
    Link,
    Pod,
    PodChange,
    RouterStats,
    TrySetResult,
)

__all__ = ["Router"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


_SILENT = SimpleNamespace(hits=None)
_NO_ENTRIES: Final = Entries(1)
_NOBODY: Final[frozenset[int]] = frozenset()


class Router:
    """Routes uids to pods, for threads. One router serves any number of them.

    It opens on ``with``, ``open()`` or first use, and runs one background thread. After a fork the child opens anew on
    next use. The operations, their errors and their cache are those of ``AsyncRouter``.

    Args:
        client: a client of redis-py, sync or asyncio: start nodes, credentials and connection settings are taken from
            it.
        config: how to behave.
    """

    def __init__(self, client: AnyClient, *, config: RouterConfig | None = None) -> None:
        self._set_up(target_of_client(client), config)

    @classmethod
    def from_url(cls, url: str, *, config: RouterConfig | None = None) -> Self:
        """A router for ``redis://``, ``rediss://``, ``redis+cluster://`` or ``rediss+cluster://``.

        Several start nodes of a cluster are separated by commas; redis-py's options follow as a query string.

        Raises:
            ConfigError: the URL cannot be used; the text does not repeat it.
        """
        self = cls.__new__(cls)
        self._set_up(target_of_url(url), config)
        return self

    def _set_up(self, target: StoreTarget, config: RouterConfig | None) -> None:
        # A client of another event loop cannot be used on this router's own: only its settings are.
        self._target = replace(target, borrowed=None)
        self._config = checked_config(config)
        self._closed = False
        self._forget_everything()
        forks.register(self)

    def _forget_everything(self) -> None:
        self._lock = threading.Lock()
        self._background: Background | None = None
        # What the hot path reads; the background's own once it runs.
        self._find: Any = _NO_ENTRIES.find
        self._counts: Any = None
        self._telemetry: Any = _SILENT

    # Life

    def open(self) -> None:
        """Start the background thread, learn the topology, preload the scripts. The first call does it too.

        Raises:
            StoreUnavailable: no start node answered before the deadline.
            RouterClosed: the router was closed.
        """
        background = self._running()
        background.call(background.router.open())

    def close(self) -> None:
        """End all connections and the background thread. Calls under way raise ``RouterClosed``."""
        with self._lock:
            self._closed = True
            background, self._background = self._background, None
            self._find = _NO_ENTRIES.find
        if background is not None:
            _open_routers.discard(self)
            background.stop()

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            # There will be no __exit__ to end the background thread.
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
        if background is not None:
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)
            background.abandon()

    def __reduce__(self) -> NoReturn:
        raise TypeError(forks.NO_COPY)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._background is not None else "not open"
        return f"<{type(self).__name__} {state}>"

    @property
    def background(self) -> Background:
        """The thread behind it; no part of the public interface."""
        return self._running()

    def _running(self) -> Background:
        background = self._background
        if background is not None:
            return background
        with self._lock:
            if self._closed:
                raise RouterClosed
            if self._background is None:
                self._background = background = Background(self._target, self._config)
                cache = background.router.engine.cache
                self._counts, self._telemetry = cache.counts, background.router.telemetry
                self._find = cache.entries.find
                _open_routers.add(self)
            return self._background

    def _call(self, operation: Callable[[AsyncRouter], Coroutine[Any, Any, _T]]) -> _T:
        background = self._running()
        return background.call(operation(background.router))

    def after_fork_in_child(self) -> None:
        """In a forked child: the thread is gone, and nothing of the parent's is used."""
        forks.keep_forever(self._background)
        self._forget_everything()

    # Service state

    def set_service_state(self, namespace: str, service: str, pod: int, state: str) -> None:
        """Write a pod's state, the string as given."""
        self._call(lambda r: r.set_service_state(namespace, service, pod, state))

    def get_service_state(self, namespace: str, service: str) -> dict[int, str]:
        """Pod id -> state string of every pod; fields that are not pod ids are skipped."""
        return self._call(lambda r: r.get_service_state(namespace, service))

    def set_workload_state(self, namespace: str, service: str, state: str) -> None:
        """Write a service's workload state, the string as given."""
        self._call(lambda r: r.set_workload_state(namespace, service, state))

    def get_workload_state(self, namespace: str, service: str) -> str | None:
        """A service's workload state, None if there is none."""
        return self._call(lambda r: r.get_workload_state(namespace, service))

    def get_workload_state_batch(self, namespace: str, services: Sequence[str]) -> dict[str, str]:
        """Service -> workload state; services without one are absent. One round trip per node."""
        return self._call(lambda r: r.get_workload_state_batch(namespace, services))

    def get_pods(self, namespace: str, service: str, *, fresh: bool = False) -> dict[int, Pod]:
        """Pod id -> what is known of it: the view by which this gateway routes; ``fresh`` asks the store."""
        return self._call(lambda r: r.get_pods(namespace, service, fresh=fresh))

    # Links: writing

    def set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
    ) -> int | None:
        """Link a uid to a pod; the last writer wins. Returns the previous pod, None if there was none."""
        return self._call(lambda r: r.set_linked_pod(namespace, uid, service, pod, persist_seconds))

    def try_set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
    ) -> TrySetResult:
        """Link a uid to a pod unless a *different* pod holds a *persistent* link."""
        return self._call(
            lambda r: r.try_set_linked_pod(namespace, uid, service, pod, persist_seconds)
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
    ) -> int:
        """Link a uid that has no link. Returns the owner: ``pod``, or who was there.

        ``refresh``: also extend an existing temporary link to ``persist_seconds``; it is never shortened and never
        deleted.
        """
        return self._call(
            lambda r: r.set_linked_pod_if_absent(
                namespace, uid, service, pod, persist_seconds, refresh=refresh
            )
        )

    def remove_linked_pod(
        self, namespace: str, uid: str, service: str, persist_seconds: int = PERSIST_FOREVER
    ) -> bool:
        """Remove a link. True if there was one.

        ``PERSIST_FOREVER`` deletes it now; N seconds *demote* it to a temporary link: the grace period for a reconnect.
        """
        return self._call(lambda r: r.remove_linked_pod(namespace, uid, service, persist_seconds))

    def remove_linked_pod_with_id(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
    ) -> bool:
        """Remove a link as ``remove_linked_pod`` does, but only if it is this pod's.

        So a late disconnect never removes a newer link. True if it was this pod's.
        """
        return self._call(
            lambda r: r.remove_linked_pod_with_id(namespace, uid, service, pod, persist_seconds)
        )

    # Links: reading

    def get_linked_pod(
        self, namespace: str, uid: str, service: str, fresh: bool = False
    ) -> int | None:
        """The pod a uid is linked to, None if it has no link. Cached; ``fresh`` asks the store."""
        # The hot path, as in router.py, in the caller's thread: reading an entry needs no lock (see cache.py).
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
                            hits("get_linked_pod", key, now)
                        return entry.value  # type: ignore[no-any-return]  # under a key of three parts stand pods
            except TypeError:  # it cannot even be hashed: check_lookup has the words for it
                pass
        flight = self._past_cache("get_linked_pod", key, fresh=fresh)
        return flight.entry.pod if flight.entry is not None else None

    def get_linked_pod_if_persist(
        self, namespace: str, uid: str, service: str, *, fresh: bool = False
    ) -> int | None:
        """The pod a uid is *persistently* linked to, None otherwise. The same cache entry serves it."""
        operation, key = "get_linked_pod_if_persist", (namespace, uid, service)
        entry = self._cached(operation, key, fresh=fresh)
        if entry is None:
            entry = self._past_cache(operation, key, fresh=fresh).entry
        return entry.pod if entry is not None and entry.persistent else None

    def get_link_service(self, namespace: str, uid: str, *, fresh: bool = False) -> dict[str, int]:
        """Service -> pod id of a uid's persistent links. Cached; ``fresh`` asks the store."""
        operation, key = "get_link_service", (namespace, uid)
        entry = self._cached(operation, key, fresh=fresh)
        if entry is None:
            entry = self._past_cache(operation, key, fresh=fresh).entry
        return dict(entry.value) if entry is not None and isinstance(entry.value, dict) else {}

    def batch_get_linked_pod(
        self, namespace: str, uids: Sequence[str], service: str, *, fresh: bool = False
    ) -> dict[int, list[str]]:
        """Pod id -> the uids linked to it, in the order given; uids without a link are absent.

        Cache first; the rest travels pipelined, in one round trip per node. Duplicates are kept.
        """
        return self._call(lambda r: r.batch_get_linked_pod(namespace, uids, service, fresh=fresh))

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
    ) -> Link:
        """The pod for a uid: its link's if that pod is alive, else one that is, linked atomically.

        However many gateways ask at once, all get the same pod.

        Args:
            namespace: the namespace.
            uid: the user.
            service: the service.
            persist_seconds: the kind of link to make; a temporary one that is found is extended to it once half of its
                time is gone. None: ``PlacementConfig.persist_seconds``.
            policy: how to choose; None: the router's own, the power of two choices.
            exclude: pods that must not be used, such as one that refused the connection.
            fresh: ask the store for the link and for the pods, whatever is cached.

        Raises:
            NoRoutablePod: the uid has no link to a living pod, and no pod may take it.
        """
        background = self._background
        if background is not None and not fresh:
            # In the caller's thread, as every cached answer.
            seconds = persist_seconds
            if seconds is None:
                seconds = self._config.placement.persist_seconds
            else:
                check_persist_seconds(seconds)
            excluded = checked_exclude(exclude) if exclude != () else _NOBODY
            link = background.router.routes.cached((namespace, uid, service), seconds, excluded)
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
            )
        )

    def move_linked_pod(
        self, namespace: str, uid: str, service: str, expected: int, pod: int
    ) -> int | None:
        """Move a uid from pod ``expected`` to ``pod`` if its link is there; its kind and remaining time stay.

        Returns the owner afterwards: ``pod``, whoever else has the uid, or None if it has no link.
        """
        return self._call(lambda r: r.move_linked_pod(namespace, uid, service, expected, pod))

    def watch(self, namespace: str, service: str) -> Generator[PodChange, None, None]:
        """What happens to the pods of a service, as it is noticed; first the pods there are.

        Ends when the router is closed. While the store cannot be reached nothing is reported.
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
    ) -> Generator[EvacuationProgress, None, None]:
        """Move every link off a pod, telling how far it has come; the last element has ``done`` set.

        Each link is moved by its own compare-and-set, its kind and remaining time kept; gateways may route all the
        while. Let the pod drain first, or gateways go on placing uids on it. After an interruption, start again.

        Args:
            namespace: the namespace.
            service: the service.
            pod: the pod to empty.
            policy: where each uid goes; None: the router's own.
            rate: moves per second at most; None: as fast as it goes.
            dry_run: only count.

        Raises:
            NoRoutablePod: there is no other pod to move links to.
        """
        background = self._running()
        return background.iterate(
            background.router.evacuate(
                namespace, service, pod, policy=policy, rate=rate, dry_run=dry_run
            )
        )

    # Tools

    def execute_script(
        self, name: str, keys: Sequence[str | bytes], args: Sequence[str | bytes | int]
    ) -> object:
        """Run one of the eleven scripts as it is; the raw reply.

        All keys must be in one slot. A script that writes is not sent again after an ambiguous loss
        (``OutcomeUnknown``).
        """
        return self._call(lambda r: r.execute_script(name, keys, args))

    def invalidate(self, namespace: str, uid: str, service: str | None = None) -> None:
        """Forget what the local cache holds of a link, or of all links of a uid."""

        async def forget(router: AsyncRouter) -> None:
            router.invalidate(namespace, uid, service)

        self._call(forget)

    def stats(self) -> RouterStats:
        """A snapshot of the cache, the lanes and the retries."""

        async def look(router: AsyncRouter) -> RouterStats:
            return router.stats()

        return self._call(look)

    # Behind the operations

    def _cached(self, operation: str, key: CacheKey, *, fresh: bool) -> Entry | None:
        background = self._background
        if background is None:
            return None
        return background.router.reader.cached(operation, key, fresh)

    def _past_cache(self, operation: str, key: CacheKey, *, fresh: bool) -> Flight:
        background = self._running()
        telemetry = background.router.telemetry
        record = telemetry.begin(operation, key[0], key[2] if len(key) == 3 else None, key[1])
        if record is None:
            return background.look_up(operation, key, fresh=fresh)
        try:
            flight = background.look_up(operation, key, fresh=fresh, record=record)
        except BaseException as error:
            telemetry.end(record, error)
            raise
        record.stale = flight.stale
        telemetry.end(record)
        return flight


_open_routers: weakref.WeakSet[Router] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before the interpreter takes the background threads away: later calls raise instead of waiting for ever."""
    for router in list(_open_routers):
        try:
            router.close()
        except Exception:  # noqa: BLE001 - the others are to be closed all the same
            _log.exception("closing a router at exit failed")
