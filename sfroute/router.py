"""``AsyncRouter``: which pod of a stateful service owns a uid. The facade; reads like the operations table."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

from . import forks, replies
from .cache import CacheKey, Entry
from .config import RouterConfig
from .engine import Engine, checked_config
from .errors import InvalidArgument, RouterClosed
from .evacuation import Evacuation, check_rate
from .keys import (
    check_encodable,
    check_link_names,
    check_many_link_names,
    check_persist_seconds,
    check_pod,
    check_service_names,
    check_uid_names,
    link_key,
    parse_link_key,
    slot_of,
    state_key,
    workload_key,
)
from .links import LinkReader, LinkWriter
from .lookup import entry_of
from .placement import Policy
from .routing import Routes, RouteTerms, check_policy, checked_exclude
from .scripts import get_script
from .states import changes
from .store import Command, script_command
from .targets import AnyClient, StoreTarget, target_of_client, target_of_url
from .telemetry import Telemetry, traced
from .types import (
    PERSIST_FOREVER,
    EvacuationProgress,
    Link,
    Pod,
    PodChange,
    RouterStats,
    TrySetResult,
)
from .wire import encode

__all__ = ["AsyncRouter"]

_T = TypeVar("_T")
_NOBODY: Final[frozenset[int]] = frozenset()


class AsyncRouter:
    """Routes uids to pods, for asyncio. One router serves any number of tasks of one event loop.

    It opens on ``async with``, ``await open()`` or first use, and belongs to the loop that runs then. Look-ups of links
    are served from a local cache that the servers keep true by pushing what changes (see ``CacheConfig``); everything
    else asks the store.

    Every operation checks its arguments before anything is sent (``InvalidArgument``), and may raise
    ``StoreUnavailable`` when its deadline passes, ``CorruptReply`` when a key holds what the contract does not allow,
    and ``RouterClosed``. Operations that write may raise ``OutcomeUnknown``.

    Args:
        client: a client of redis-py. An asyncio ``RedisCluster`` is borrowed: the router follows its slot map, and
            never closes it. Of the other clients only addresses, credentials and connection settings are taken.
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
        return cls.of_target(target_of_url(url), config)

    @classmethod
    def of_target(cls, target: StoreTarget, config: RouterConfig | None) -> Self:
        """A router for what ``targets.py`` has read. For the sync front."""
        self = cls.__new__(cls)
        self._set_up(target, config)
        return self

    def _set_up(self, target: StoreTarget, config: RouterConfig | None) -> None:
        self._engine = Engine(target, checked_config(config))
        self._telemetry = self._engine.telemetry
        self._writer = LinkWriter(self._engine)
        self._reader = LinkReader(self._engine)
        self._routes = Routes(self._engine, self._reader, self._writer)
        self.after_fork_in_child()
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """The engine has a new cache (see ``forks.py``): the hot path must not read the parent's."""
        self._cache = self._engine.cache
        self._find = self._cache.entries.find
        self._counts = self._cache.counts

    # Life

    async def open(self) -> None:
        """Learn the topology and preload the scripts. Needed only to fail early: the first call does it too.

        Raises:
            StoreUnavailable: no start node answered before the deadline.
            RouterClosed: the router was closed.
        """
        await self._engine.opened()

    async def aclose(self) -> None:
        """End all connections and tasks; a borrowed client stays open.

        Calls under way raise ``RouterClosed``.

        Raises:
            ConfigError: it is open on another event loop, which has to close it.
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

    @property
    def telemetry(self) -> Telemetry:
        """What it records; no part of the public interface."""
        return self._telemetry

    @property
    def engine(self) -> Engine:
        """What does the work. For the sync front; no part of the public interface."""
        return self._engine

    @property
    def reader(self) -> LinkReader:
        """For the sync front; no part of the public interface."""
        return self._reader

    @property
    def routes(self) -> Routes:
        """For the sync front and the pod's side; no part of the public interface."""
        return self._routes

    # Service state

    @traced
    async def set_service_state(self, namespace: str, service: str, pod: int, state: str) -> None:
        """Write a pod's state, the string as given."""
        key = state_key(namespace, service)
        check_pod(pod)
        _check_state(state)
        await self._run("set_service_state", key, "HSET", key, pod, state, write=True)

    @traced
    async def get_service_state(self, namespace: str, service: str) -> dict[int, str]:
        """Pod id -> state string of every pod; fields that are not pod ids are skipped."""
        key = state_key(namespace, service)
        return replies.pod_states(await self._run("get_service_state", key, "HGETALL", key), key)

    @traced
    async def set_workload_state(self, namespace: str, service: str, state: str) -> None:
        """Write a service's workload state, the string as given."""
        key = workload_key(namespace, service)
        _check_state(state)
        await self._run("set_workload_state", key, "SET", key, state, write=True)

    @traced
    async def get_workload_state(self, namespace: str, service: str) -> str | None:
        """A service's workload state, None if there is none."""
        key = workload_key(namespace, service)
        reply = await self._run("get_workload_state", key, "GET", key)
        return None if reply is None else replies.text(reply, key)

    @traced
    async def get_workload_state_batch(
        self, namespace: str, services: Sequence[str]
    ) -> dict[str, str]:
        """Service -> workload state; services without one are absent. One round trip per node."""
        for service in _checked_sequence("services", services):
            check_service_names(namespace, service)
        names = list(dict.fromkeys(services))
        keys = [workload_key(namespace, service) for service in names]
        if not keys:
            return {}
        engine = await self._engine.opened()
        found = await engine.store.run_many(
            [Command("get_workload_state_batch", key, "GET", encode("GET", key)) for key in keys]
        )
        return {
            service: replies.text(reply, key)
            for service, key, reply in zip(names, keys, found, strict=True)
            if reply is not None
        }

    @traced
    async def get_pods(
        self, namespace: str, service: str, *, fresh: bool = False
    ) -> dict[int, Pod]:
        """Pod id -> what is known of it: the view by which this gateway routes; ``fresh`` asks the store."""
        check_service_names(namespace, service)
        engine = await self._engine.opened()
        return dict((await engine.views.get(namespace, service, fresh=fresh)).pods)

    # Links: writing

    @traced
    async def set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
    ) -> int | None:
        """Link a uid to a pod; the last writer wins. Returns the previous pod, None if there was none."""
        check_link_names(namespace, uid, service)
        check_pod(pod)
        check_persist_seconds(persist_seconds)
        reply = await self._change(
            "set_linked_pod", "statefulSetLink", namespace, uid, service, pod, persist_seconds
        )
        return replies.script_pod(replies.first(reply), link_key(namespace, uid, service))

    @traced
    async def try_set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
    ) -> TrySetResult:
        """Link a uid to a pod unless a *different* pod holds a *persistent* link."""
        check_link_names(namespace, uid, service)
        check_pod(pod)
        check_persist_seconds(persist_seconds)
        reply = await self._change(
            "try_set_linked_pod",
            "statefulTrySetLink",
            namespace,
            uid,
            service,
            pod,
            persist_seconds,
        )
        owner = replies.owner(reply, link_key(namespace, uid, service))
        return TrySetResult(owner == pod, owner)

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
    ) -> int:
        """Link a uid that has no link. Returns the owner: ``pod``, or who was there.

        ``refresh``: also extend an existing temporary link to ``persist_seconds``; it is never shortened and never
        deleted.
        """
        check_link_names(namespace, uid, service)
        check_pod(pod)
        check_persist_seconds(persist_seconds)
        reply = await self._change(
            "set_linked_pod_if_absent",
            "statefulSetLinkIfAbsent",
            namespace,
            uid,
            service,
            pod,
            persist_seconds,
            "1" if refresh else "0",
        )
        return replies.owner(reply, link_key(namespace, uid, service))

    @traced
    async def remove_linked_pod(
        self, namespace: str, uid: str, service: str, persist_seconds: int = PERSIST_FOREVER
    ) -> bool:
        """Remove a link. True if there was one.

        ``PERSIST_FOREVER`` deletes it now; N seconds *demote* it to a temporary link: the grace period for a reconnect.
        """
        check_link_names(namespace, uid, service)
        check_persist_seconds(persist_seconds)
        reply = await self._change(
            "remove_linked_pod", "statefulRemoveLink", namespace, uid, service, persist_seconds
        )
        return replies.first(reply) == 1

    @traced
    async def remove_linked_pod_with_id(
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
        check_link_names(namespace, uid, service)
        check_pod(pod)
        check_persist_seconds(persist_seconds)
        reply = await self._change(
            "remove_linked_pod_with_id",
            "statefulRemoveLinkWithId",
            namespace,
            uid,
            service,
            persist_seconds,
            pod,
        )
        return replies.first(reply) == 1

    # Links: reading

    async def get_linked_pod(
        self, namespace: str, uid: str, service: str, fresh: bool = False
    ) -> int | None:
        """The pod a uid is linked to, None if it has no link. Cached; ``fresh`` asks the store."""
        # The hot path: a cached answer in one dict look-up and two comparisons. (An argument that may only be given by
        # name, and an attribute that is called at once, would slow it down: docs/explanation/performance.md.)
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
                        return entry.value  # type: ignore[return-value]  # under a key of three parts stand pods
            except TypeError:  # it cannot even be hashed: check_lookup has the words for it
                pass
        flight = await self._reader.past_cache("get_linked_pod", key, fresh)
        entry = flight.entry or entry_of(flight, "get_linked_pod")
        return entry.pod

    async def get_linked_pod_if_persist(
        self, namespace: str, uid: str, service: str, *, fresh: bool = False
    ) -> int | None:
        """The pod a uid is *persistently* linked to, None otherwise. The same cache entry serves it."""
        operation, key = "get_linked_pod_if_persist", (namespace, uid, service)
        entry = self._reader.cached(operation, key, fresh)
        if entry is None:
            entry = entry_of(await self._reader.past_cache(operation, key, fresh), operation)
        return entry.pod if entry.persistent else None

    async def get_link_service(
        self, namespace: str, uid: str, *, fresh: bool = False
    ) -> dict[str, int]:
        """Service -> pod id of a uid's persistent links. Cached; ``fresh`` asks the store."""
        operation, key = "get_link_service", (namespace, uid)
        entry = self._reader.cached(operation, key, fresh)
        if entry is None:
            entry = entry_of(await self._reader.past_cache(operation, key, fresh), operation)
        return dict(entry.value) if isinstance(entry.value, dict) else {}

    @traced
    async def batch_get_linked_pod(
        self, namespace: str, uids: Sequence[str], service: str, *, fresh: bool = False
    ) -> dict[int, list[str]]:
        """Pod id -> the uids linked to it, in the order given; uids without a link are absent.

        Cache first; the rest travels pipelined, in one round trip per node. Duplicates are kept.
        """
        uids = _checked_sequence("uids", uids)
        check_many_link_names(namespace, uids, service)
        cache = self._cache
        entries: dict[str, Entry] = {}
        missing: list[CacheKey] = []
        for uid in dict.fromkeys(uids):
            key = (namespace, uid, service)
            entry = None if fresh else cache.fresh(key)
            if entry is None:
                missing.append(key)
            else:
                entries[uid] = entry
        self._counts.hits += len(entries)
        if not missing:
            self._telemetry.answered_from_cache()
        else:
            engine = await self._engine.opened()
            for flight in await engine.lookups.find_many(missing, "batch_get_linked_pod", fresh):
                entries[flight.key[1]] = entry_of(flight, "batch_get_linked_pod")
        by_pod: dict[int, list[str]] = {}
        for uid in uids:
            pod = entries[uid].value
            if isinstance(pod, int):
                found = by_pod.get(pod)
                if found is None:
                    by_pod[pod] = [uid]
                else:
                    found.append(uid)
        return by_pod

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
        if persist_seconds is None:
            persist_seconds = self._engine.config.placement.persist_seconds
        else:
            check_persist_seconds(persist_seconds)
        excluded = checked_exclude(exclude) if exclude != () else _NOBODY
        link = (namespace, uid, service)
        if not fresh:
            cached = self._routes.cached(link, persist_seconds, excluded)
            if cached is not None:
                return cached
        terms = RouteTerms(persist_seconds, policy, excluded, fresh)
        routed = self._routes.past_cache(link, terms)
        record = self._telemetry.begin("route", namespace, service, uid)
        return await (routed if record is None else self._telemetry.follow(record, routed))

    @traced
    async def move_linked_pod(
        self, namespace: str, uid: str, service: str, expected: int, pod: int
    ) -> int | None:
        """Move a uid from pod ``expected`` to ``pod`` if its link is there; its kind and remaining time stay.

        Returns the owner afterwards: ``pod``, whoever else has the uid, or None if it has no link.
        """
        check_link_names(namespace, uid, service)
        check_pod(expected, "expected")
        check_pod(pod)
        if expected == pod:
            raise InvalidArgument("pod must be another one than expected")
        owner, _ = await self._routes.move(
            (namespace, uid, service), expected, [pod], "move_linked_pod"
        )
        return owner

    async def watch(self, namespace: str, service: str) -> AsyncGenerator[PodChange, None]:
        """What happens to the pods of a service, as it is noticed; first the pods there are.

        Ends when the router is closed. While the store cannot be reached nothing is reported.
        """
        check_service_names(namespace, service)
        try:
            views = (await self._engine.opened()).views
            before: Mapping[int, Pod] = {}
            gone_before: Mapping[int, str] = {}
            while True:
                view = await views.get_soon(namespace, service, fresh=True)
                if view is not None:
                    for change in changes(before, after := view.pods, gone_before, view.gone):
                        yield change
                    before, gone_before = after, view.gone
                if await views.closes_within(
                    max(self._engine.config.placement.pod_view_max_age, 0.05)
                ):
                    return
        except RouterClosed:
            return

    async def evacuate(
        self,
        namespace: str,
        service: str,
        pod: int,
        *,
        policy: Policy | None = None,
        rate: float | None = None,
        dry_run: bool = False,
    ) -> AsyncGenerator[EvacuationProgress, None]:
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
        check_service_names(namespace, service)
        check_pod(pod)
        check_rate(rate)
        check_policy(policy)
        evacuation = Evacuation(
            self._engine, self._routes, (namespace, service, pod), policy, rate, dry_run=dry_run
        )
        with self._telemetry.in_pieces("evacuate", namespace, service):
            async with contextlib.aclosing(evacuation.run()) as steps:
                async for progress in steps:
                    yield progress

    # Tools

    @traced
    async def execute_script(
        self, name: str, keys: Sequence[str | bytes], args: Sequence[str | bytes | int]
    ) -> object:
        """Run one of the eleven scripts as it is; the raw reply.

        All keys must be in one slot. A script that writes is not sent again after an ambiguous loss
        (``OutcomeUnknown``).
        """
        script = get_script(name)
        for key in _checked_sequence("keys", keys):
            _check_sendable("keys", key, (str, bytes))
        for arg in _checked_sequence("args", args):
            _check_sendable("args", arg, (str, bytes, int))
        if not keys or len({slot_of(key) for key in keys}) != 1:
            raise InvalidArgument("keys must be at least one key, all of one slot (one hash tag)")
        touched = [parse_link_key(key.encode() if isinstance(key, str) else key) for key in keys]
        read_only = script.read_only

        def settled() -> None:
            for link in touched:
                if link is not None and not read_only:
                    namespace, uid, service = link
                    self._writer.drop(namespace, uid, service)

        engine = await self._engine.opened()
        settled()
        return await engine.store.run(
            script_command(
                "execute_script",
                script,
                keys,
                list(args),
                write=not read_only,
                repeatable=read_only,
                settled=settled,
            )
        )

    async def report_state(
        self, namespace: str, service: str, pod: int, state: str, prune_ms: int
    ) -> str | None:
        """A heartbeat: write a pod's JSON state stamped with the server's clock. For the pod agent.

        Returns the state before. ``prune_ms``: also remove states of other pods older than this; 0 removes none.
        """
        key = state_key(namespace, service)
        engine = await self._engine.opened()
        reply = await engine.store.run(
            script_command(
                "heartbeat",
                get_script("statefulSetState"),
                [key],
                [pod, state, "1", prune_ms],
                write=True,
                # A repeated heartbeat says the same, only later.
                repeatable=True,
            )
        )
        previous = reply[1] if isinstance(reply, list) and len(reply) == 2 else None
        return None if previous is None else replies.text(previous, key)

    def invalidate(self, namespace: str, uid: str, service: str | None = None) -> None:
        """Forget what the local cache holds of a link, or of all links of a uid."""
        if service is None:
            check_uid_names(namespace, uid)
            self._cache.drop_uid(namespace, uid)
        else:
            check_link_names(namespace, uid, service)
            self._cache.drop((namespace, uid, service))

    def stats(self) -> RouterStats:
        """A snapshot of the cache, the lanes and the retries."""
        return self._engine.stats()

    # Behind the operations

    async def _run(
        self, operation: str, key: str, *command: str | int, write: bool = False
    ) -> object:
        engine = await self._engine.opened()
        return await engine.store.run(
            Command(operation, key, str(command[0]), encode(*command), write=write)
        )

    def _change(
        self, operation: str, script: str, namespace: str, uid: str, service: str, *args: str | int
    ) -> Coroutine[Any, Any, object]:
        return self._writer.run(
            operation, script, (namespace, uid, service), [service, *args, self._writer.record_ms]
        )


def _check_state(state: str) -> None:
    if not isinstance(state, str):
        raise InvalidArgument(f"state must be a str, not {type(state).__name__}")
    check_encodable("state", state)


def _check_sendable(argument: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidArgument(f"{argument} must be {names}, each; one is {type(value).__name__}")
    if isinstance(value, str):
        check_encodable(argument, value)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise InvalidArgument(f"{argument} must not hold an int of more than 64 bits")


def _checked_sequence(argument: str, values: Sequence[_T]) -> Sequence[_T]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise InvalidArgument(f"{argument} must be a list or tuple, not {type(values).__name__}")
    return values
