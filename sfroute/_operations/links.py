"""Links: lookups past the hot path, and writes.

Each write is one script. It takes effect at most once, and the local cache drops what it changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Final, TypeVar

from .._commands.command import script_command
from .._contract import replies
from .._contract.keys import (
    CacheKey,
    check_link_names,
    check_many_link_names,
    check_persist_seconds,
    check_pod,
    check_uid_names,
    claim_key,
    link_key,
    link_prefix,
    operation_key,
)
from .._contract.scripts import get_script
from .._lookups.answers import entry_of
from .._lookups.cache import Entry, Flight
from .._net.timeouts import GiveUp
from ..telemetry import CURRENT
from ..types import TrySetResult
from .arguments import checked_sequence
from .engine import Engine

_T = TypeVar("_T")

IN_THE_NETWORK: Final = 20.0
"""Seconds that proxies and queues between a router and a server may delay a command after its connection was reset."""

__all__ = ["LinkReader", "LinkWriter", "check_lookup"]


def check_lookup(key: CacheKey) -> None:
    """Raise ``InvalidArgument`` unless the key's names may be looked up. An entry exists only under checked names."""
    if len(key) == 3:
        check_link_names(key[0], key[1], key[2])
    else:
        check_uid_names(key[0], key[1])


class LinkReader:
    """Answers lookups, from the cache or past it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._telemetry = engine.telemetry

    def cached(self, operation: str, key: CacheKey, fresh: bool) -> Entry | None:
        """The entry that answers now, if there is one. Any thread may call this."""
        cache, now = self._engine.cache, monotonic()
        try:
            entry = None if fresh else cache.fresh(key)
        except TypeError:  # unhashable: check_lookup raises InvalidArgument
            return None
        if entry is not None:
            cache.counts.hits += 1
            hits = self._telemetry.hits
            if hits is not None:
                append, context = hits
                append((operation, key, now, monotonic(), context(), entry))
        return entry

    def past_cache(
        self,
        operation: str,
        key: CacheKey,
        fresh: bool,
        stale_ok: bool = True,
        timeout: float | None = None,
    ) -> Awaitable[Flight]:
        """The finished flight of a lookup that is a public call of its own, to be awaited at once.

        Raises, and so does what is awaited, what ``Lookups.find`` raises; or the flight has failed, which
        ``entry_of`` tells. (No coroutine where none is needed: each costs every miss.)
        """
        now = monotonic()
        if now >= self._telemetry.asleep_until:
            service = key[2] if len(key) == 3 else None
            record = self._telemetry.begin(operation, key[0], service, key[1])
            if record is not None:
                looked_up = self._timed(operation, key, fresh, stale_ok, timeout)
                return self._telemetry.follow(record, looked_up)
        parts = self._engine.parts_here()
        if parts is None or not stale_ok or timeout is not None:
            return self._timed(operation, key, fresh, stale_ok, timeout)
        check_lookup(key)
        opened = parts.lookups.open(key, now) if not fresh else None
        return opened if opened is not None else parts.lookups.find(key, operation, fresh)

    async def _timed(
        self, operation: str, key: CacheKey, fresh: bool, stale_ok: bool, seconds: float | None
    ) -> Flight:
        return await self.look_up(operation, key, fresh, stale_ok, self._engine.give_up(seconds))

    async def look_up(
        self,
        operation: str,
        key: CacheKey,
        fresh: bool,
        stale_ok: bool = True,
        give_up: float | None = None,
    ) -> Flight:
        """The finished flight of a lookup. Raises what ``Lookups.find`` raises."""
        check_lookup(key)
        parts = self._engine.parts_here() or await self._engine.opened_by(give_up, operation)
        return await parts.lookups.find(key, operation, fresh, stale_ok, give_up)

    async def batch(
        self,
        namespace: str,
        uids: Sequence[str],
        service: str,
        fresh: bool,
        stale_ok: bool,
        give_up: float | None,
    ) -> dict[int, list[str]]:
        """Pod id -> the uids linked to it, in the order given. Raises what ``Lookups.find_many`` raises."""
        uids = checked_sequence("uids", uids)
        check_many_link_names(namespace, uids, service)
        cache = self._engine.cache
        entries: dict[str, Entry] = {}
        missing: list[CacheKey] = []
        for uid in dict.fromkeys(uids):
            key = (namespace, uid, service)
            entry = None if fresh else cache.fresh(key)
            if entry is None:
                missing.append(key)
            else:
                entries[uid] = entry
        cache.counts.hits += len(entries)
        cache.counts.inner_hits += len(entries)
        if not missing:
            self._telemetry.answered_from_cache()
        else:
            operation = "batch_get_linked_pod"
            parts = await self._engine.opened_by(give_up, operation)
            flights = parts.lookups.find_many(missing, operation, fresh, stale_ok, give_up)
            for flight in await flights:
                entries[flight.key[1]] = entry_of(flight, operation)
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


class LinkWriter:
    """Sends the scripts that change a link.

    Each carries an operation record (see ``_commands/commands.py``), so it may be repeated after an ambiguous loss.

    Attributes:
        on_change: called with namespace, uid and service as soon as a write has taken effect.
        record_ms: how long a script keeps its operation record, in milliseconds; 0: it keeps none.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.on_change: Callable[[str, str, str | None], None] = lambda *_: None
        # A repetition is sent before the deadline. A copy that was lost on the way may arrive as long as the kernel
        # tries (delivery_timeout: as long again), and then what the network between holds it up.
        kept = int(1000 * (2 * engine.config.retry.deadline + IN_THE_NETWORK))
        self.record_ms = kept if engine.config.at_most_once else 0

    def record_ms_of(self, give_up: float | None) -> int:
        """``record_ms`` for a call that has until ``give_up``: one with more time repeats itself for longer."""
        if type(give_up) is not GiveUp or not self.record_ms:
            return self.record_ms
        more = give_up.seconds - self._engine.config.retry.deadline
        return self.record_ms + int(1000 * max(0.0, more))

    # Each method of an operation checks its arguments at once and returns the coroutine of the one script: a coroutine
    # of its own would cost every write.

    def set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int,
        *,
        give_up: float | None,
    ) -> Coroutine[Any, Any, int | None]:
        """Link a uid to a pod. Returns the previous pod, None if there was none."""
        return self._set(
            "set_linked_pod",
            "statefulSetLink",
            (namespace, uid, service),
            pod,
            persist_seconds,
            read=_previous,
            give_up=give_up,
        )

    def try_set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int,
        *,
        give_up: float | None,
    ) -> Coroutine[Any, Any, TrySetResult]:
        """Link a uid to a pod unless a different pod holds a persistent link."""

        def tried(reply: object, key: str) -> TrySetResult:
            owner = replies.owner(reply, key)
            return TrySetResult(owner == pod, owner)

        return self._set(
            "try_set_linked_pod",
            "statefulTrySetLink",
            (namespace, uid, service),
            pod,
            persist_seconds,
            read=tried,
            give_up=give_up,
        )

    def set_linked_pod_if_absent(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int,
        *,
        refresh: bool,
        give_up: float | None,
    ) -> Coroutine[Any, Any, int]:
        """Link a uid that has no link. Returns the owner."""
        return self._set(
            "set_linked_pod_if_absent",
            "statefulSetLinkIfAbsent",
            (namespace, uid, service),
            pod,
            persist_seconds,
            "1" if refresh else "0",
            read=replies.owner,
            give_up=give_up,
        )

    def _set(
        self,
        operation: str,
        script: str,
        link: tuple[str, str, str],
        pod: int,
        persist_seconds: int,
        *options: str,
        read: Callable[[object, str], _T],
        give_up: float | None,
    ) -> Coroutine[Any, Any, _T]:
        check_link_names(*link)
        check_pod(pod)
        check_persist_seconds(persist_seconds)
        record_ms = self.record_ms_of(give_up)
        args: list[str | int] = [link[2], pod, persist_seconds, *options, record_ms]
        return self._run(operation, script, link, args, read, give_up=give_up)

    def remove_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        persist_seconds: int,
        *,
        give_up: float | None = None,
    ) -> Coroutine[Any, Any, bool]:
        """Remove or demote a link. True if there was one."""
        check_link_names(namespace, uid, service)
        check_persist_seconds(persist_seconds)
        args: list[str | int] = [service, persist_seconds, self.record_ms_of(give_up)]
        link = (namespace, uid, service)
        return self._run(
            "remove_linked_pod",
            "statefulRemoveLink",
            link,
            args,
            _is_done,
            more_keys=(claim_key(*link),),
            give_up=give_up,
        )

    def remove_linked_pod_with_id(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int,
        *,
        give_up: float | None = None,
        idle: int = 0,
        operation: str = "remove_linked_pod_with_id",
    ) -> Coroutine[Any, Any, bool]:
        """Remove or demote a link if it points to this pod. True if it did.

        ``idle``: and if nobody has read or written it for so many seconds. ``operation``: that this is part of.
        """
        check_link_names(namespace, uid, service)
        check_pod(pod)
        check_persist_seconds(persist_seconds)
        args: list[str | int] = [service, persist_seconds, pod, self.record_ms_of(give_up)]
        if idle:
            args.append(idle)
        link = (namespace, uid, service)
        return self._run(
            operation,
            "statefulRemoveLinkWithId",
            link,
            args,
            _is_done,
            more_keys=(claim_key(*link),),
            give_up=give_up,
        )

    def run(
        self,
        operation: str,
        script: str,
        link: tuple[str, str, str],
        args: Sequence[str | int],
        *,
        claims: bool = False,
        more_keys: Sequence[str] = (),
        give_up: float | None = None,
    ) -> Coroutine[Any, Any, object]:
        """Run a script on the keys of ``link`` (namespace, uid, service: checked). Returns the raw reply.

        Args:
            operation: the public operation.
            script: the script's name.
            link: whose keys it takes.
            args: the script's whole ARGV.
            claims: the script takes the claim record as its third key.
            more_keys: keys of the same slot, after those that every such script takes.
            give_up: the deadline of the call that this write is part of. None: the write is a call of its own.
        """
        return self._run(
            operation,
            script,
            link,
            args,
            _raw,
            claims=claims,
            more_keys=more_keys,
            give_up=give_up,
        )

    async def _run(
        self,
        operation: str,
        script: str,
        link: tuple[str, str, str],
        args: Sequence[str | int],
        read: Callable[[object, str], _T],
        *,
        claims: bool = False,
        more_keys: Sequence[str] = (),
        give_up: float | None = None,
    ) -> _T:
        namespace, uid, service = link
        parts = self._engine.parts_here() or await self._engine.opened_by(give_up, operation)

        def drop() -> None:
            self.drop(namespace, uid, service)

        cache = self._engine.cache
        cache.drop((namespace, uid))
        cache.write_begins((namespace, uid, service), CURRENT.get())
        keys = [link_key(namespace, uid, service), link_prefix(namespace, uid)]
        if claims:
            keys.append(claim_key(namespace, uid, service))
        keys.append(operation_key(namespace, uid, self._engine.operation_token()))
        reply = await parts.commands.run(
            script_command(
                operation,
                get_script(script),
                [*keys, *more_keys],
                args,
                write=True,
                # Without a record nobody can tell whether it has happened.
                repeatable=self.record_ms > 0,
                # Once more with the reply: a lookup, on its own connection, may have read the old value meanwhile.
                settled=drop,
            ),
            give_up,
        )
        return read(reply, keys[0])

    def drop(self, namespace: str, uid: str, service: str | None) -> None:
        """A change of a link changes the link's entry and that of the uid's links."""
        cache = self._engine.cache
        cache.drop((namespace, uid))
        if service is not None:
            cache.drop((namespace, uid, service))
        self.on_change(namespace, uid, service)


def _raw(reply: object, _key: str) -> object:
    return reply


def _previous(reply: object, key: str) -> int | None:
    return replies.script_pod(replies.first(reply), key)


def _is_done(reply: object, _key: str) -> bool:
    return replies.first(reply) == 1
