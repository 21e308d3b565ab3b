"""Links: look-ups past the hot path, and writes, each one script, run at most once in effect, and heeded by the local
cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from .cache import CacheKey, Entry, Flight
from .engine import Engine
from .keys import (
    check_link_names,
    check_uid_names,
    link_key,
    link_prefix,
    operation_key,
)
from .scripts import get_script
from .store import script_command

__all__ = ["LinkReader", "LinkWriter", "check_lookup"]


def check_lookup(key: CacheKey) -> None:
    """Raise ``InvalidArgument`` unless the key's names may be looked up. An entry exists only under checked names."""
    if len(key) == 3:
        check_link_names(key[0], key[1], key[2])
    else:
        check_uid_names(key[0], key[1])


class LinkReader:
    """Answers look-ups, from the cache or past it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._telemetry = engine.telemetry

    def cached(self, operation: str, key: CacheKey, fresh: bool) -> Entry | None:
        """The entry that answers now, if there is one. Any thread may call this."""
        cache, now = self._engine.cache, monotonic()
        try:
            entry = None if fresh else cache.fresh(key)
        except TypeError:  # it cannot even be hashed: check_lookup has the words for it
            return None
        if entry is not None:
            cache.counts.hits += 1
            hits = self._telemetry.hits
            if hits is not None:
                hits(operation, key, now)
        return entry

    def past_cache(self, operation: str, key: CacheKey, fresh: bool) -> Awaitable[Flight]:
        """The finished flight of a look-up that is a public call of its own, to be awaited at once.

        Raises, and so does what is awaited, what ``Lookups.find`` raises; or the flight has failed, which
        ``entry_of`` tells. (No coroutine where none is needed: each costs every miss.)
        """
        now = monotonic()
        if now >= self._telemetry.asleep_until:
            service = key[2] if len(key) == 3 else None
            record = self._telemetry.begin(operation, key[0], service, key[1])
            if record is not None:
                return self._telemetry.follow(record, self.look_up(operation, key, fresh))
        parts = self._engine.parts_here()
        if parts is None:
            return self.look_up(operation, key, fresh)
        check_lookup(key)
        opened = parts.lookups.open(key, now) if not fresh else None
        return opened if opened is not None else parts.lookups.find(key, operation, fresh)

    async def look_up(self, operation: str, key: CacheKey, fresh: bool) -> Flight:
        """The finished flight of a look-up. Raises what ``Lookups.find`` raises."""
        check_lookup(key)
        parts = self._engine.parts_here() or await self._engine.opened()
        return await parts.lookups.find(key, operation, fresh)


class LinkWriter:
    """Sends the scripts that change a link.

    Each carries an operation record (see ``store.py``), so that it may be repeated after an ambiguous loss.

    Attributes:
        on_change: called with namespace, uid and service as soon as a write has taken effect.
        record_ms: how long a script keeps its operation record, in milliseconds.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.on_change: Callable[[str, str, str | None], None] = lambda *_: None
        # A repetition comes before the deadline; a first attempt that a stopped server executes late comes soon after.
        self.record_ms = int(2000 * engine.config.retry.deadline) + 1000

    async def run(
        self,
        operation: str,
        script: str,
        link: tuple[str, str, str],
        args: Sequence[str | int],
    ) -> object:
        """Run a script on the keys of ``link`` (namespace, uid, service: checked); ``args`` are its ARGV, whole."""
        namespace, uid, service = link
        parts = self._engine.parts_here() or await self._engine.opened()

        def drop() -> None:
            self.drop(namespace, uid, service)

        cache = self._engine.cache
        cache.drop((namespace, uid))
        cache.write_begins((namespace, uid, service))
        return await parts.store.run(
            script_command(
                operation,
                get_script(script),
                [
                    link_key(namespace, uid, service),
                    link_prefix(namespace, uid),
                    operation_key(namespace, uid, self._engine.operation_token()),
                ],
                args,
                write=True,
                repeatable=True,
                # Once more with the reply: a look-up, on its own connection, may have read the old value meanwhile.
                settled=drop,
            )
        )

    def drop(self, namespace: str, uid: str, service: str | None) -> None:
        """A change of a link changes the link's entry and that of the uid's links."""
        cache = self._engine.cache
        cache.drop((namespace, uid))
        if service is not None:
            cache.drop((namespace, uid, service))
        self.on_change(namespace, uid, service)
