"""Users' counters: in the pod's memory, and in a table that outlives the pod and that all pods share.

Each row holds the fence under which it was written last. A pod that was stopped, and its user moved meanwhile, wakes
with an older fence: its write changes nothing, and it is told so.

SQLite is here because it needs no server, and serves the pods of one machine. Its statements are the same for
PostgreSQL. For pods of several machines there is a table in Redis or Valkey Cluster.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from redis.asyncio.cluster import RedisCluster

__all__ = ["Counters", "Fenced"]

TABLE = """
CREATE TABLE IF NOT EXISTS counters (uid TEXT PRIMARY KEY, fence INTEGER NOT NULL, count INTEGER NOT NULL)
"""
TAKE = """
INSERT INTO counters (uid, fence, count) VALUES (?, ?, 0)
ON CONFLICT (uid) DO UPDATE SET fence = excluded.fence WHERE counters.fence <= excluded.fence
RETURNING count
"""
"""Before reading: from now on whoever has an older fence can no longer write."""
WRITE = "UPDATE counters SET count = ? WHERE uid = ? AND fence = ?"

FENCED = """
local stored = redis.call('HGET', KEYS[1], 'fence') or '0'
if ARGV[2] == '' then
  if #stored > #ARGV[1] or #stored == #ARGV[1] and stored > ARGV[1] then
    return false
  end
  redis.call('HSET', KEYS[1], 'fence', ARGV[1])
elseif stored ~= ARGV[1] then
  return false
else
  redis.call('HSET', KEYS[1], 'count', ARGV[2])
end
return redis.call('HGET', KEYS[1], 'count') or '0'
"""
"""The same for a hash: takes it without a count, writes with one. Fences are compared as texts: they have 64 bits."""


class Fenced(Exception):
    """Another pod has had the user since: this one must act for them no more."""


class Table(Protocol):
    """Where counters are kept."""

    async def take(self, uid: str, fence: int) -> int | None:
        """The user's count. None if a newer fence is there; afterwards no older one can write."""
        ...

    async def write(self, uid: str, fence: int, count: int) -> bool:
        """False if another fence is there: nothing was written."""
        ...

    async def aclose(self) -> None: ...


class InFile:
    """A file of SQLite."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(
            path, timeout=10, isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(TABLE)

    async def take(self, uid: str, fence: int) -> int | None:
        row = await asyncio.to_thread(lambda: self._database.execute(TAKE, (uid, fence)).fetchone())
        return None if row is None else int(row[0])

    async def write(self, uid: str, fence: int, count: int) -> bool:
        done = await asyncio.to_thread(self._database.execute, WRITE, (count, uid, fence))
        return done.rowcount == 1

    async def aclose(self) -> None:
        self._database.close()


class InFolder:
    """A folder, shared with pods in other languages (`examples/node/counters.mjs`, `examples/go/counters.go`).

    Each user has a folder, and in it one empty file, `<fence>-<count>`: the name is all there is. To write is to rename
    it, and that fails unless the file still has the name which the writer knows. So the fence is compared in the very
    step that writes, as a database does it; there is no lock that a killed pod could leave behind.
    """

    def __init__(self, path: str) -> None:
        self._folder = Path(path)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _of(self, uid: str) -> Path:
        # A hash: a uid may be longer than a file's name, and errors show the name. Of the uid as requests carry it.
        return self._folder / f"of-{hashlib.sha256(quote(uid, safe='').encode()).hexdigest()}"

    def _look(self, uid: str) -> tuple[int, int]:
        while True:
            try:
                files = list(self._of(uid).iterdir())
            except FileNotFoundError:
                self._begin(uid)
                continue
            # None is listed if it was renamed meanwhile.
            if files:
                fence, count = map(int, files[0].name.split("-"))
                return fence, count

    def _begin(self, uid: str) -> None:
        # A folder comes with its file, or not at all: it takes no place of one that holds something.
        draft = Path(tempfile.mkdtemp(prefix="draft-", dir=self._folder))
        (draft / "0-0").touch()
        try:
            draft.rename(self._of(uid))
        except OSError as error:
            shutil.rmtree(draft)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _rename(self, uid: str, old: tuple[int, int], new: tuple[int, int]) -> bool:
        folder = self._of(uid)
        try:
            (folder / "{}-{}".format(*old)).rename(folder / "{}-{}".format(*new))
        except FileNotFoundError:
            return False
        return True

    async def take(self, uid: str, fence: int) -> int | None:
        while True:
            stored, count = self._look(uid)
            if stored > fence:
                return None
            if self._rename(uid, (stored, count), (fence, count)):
                return count

    async def write(self, uid: str, fence: int, count: int) -> bool:
        while True:
            stored, before = self._look(uid)
            if stored != fence:
                return False
            if self._rename(uid, (stored, before), (fence, count)):
                return True

    async def aclose(self) -> None:
        pass


class InStore:
    """Hashes in Redis or Valkey Cluster, which may be the one with the links: not under its prefix `sf:`."""

    def __init__(self, url: str) -> None:
        # The script may be sent twice: it does the same the second time.
        self._redis: Any = RedisCluster.from_url(url, decode_responses=True)

    async def _run(self, uid: str, *arguments: object) -> int | None:
        count = await self._redis.eval(FENCED, 1, f"counter:{{{uid}}}", *arguments)
        return None if count is None else int(count)

    async def take(self, uid: str, fence: int) -> int | None:
        return await self._run(uid, fence, "")

    async def write(self, uid: str, fence: int, count: int) -> bool:
        return await self._run(uid, fence, count) is not None

    async def aclose(self) -> None:
        await self._redis.aclose()


def table_at(where: str) -> Table:
    if where.startswith(("redis://", "rediss://")):
        return InStore(where)
    return InFolder(where) if where.endswith("/") else InFile(where)


class Counters:
    """The counters of this pod's users.

    Args:
        where: a file of SQLite, a folder (it ends in a slash), or the `redis://` URL of a node of a cluster.
            ":memory:" ends with the process.
    """

    def __init__(self, where: str) -> None:
        self._table = table_at(where)
        # One at a time: no count is read between another's reading and writing.
        self._lock = asyncio.Lock()
        self._memory: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._memory)

    def forget(self, uid: str) -> None:
        """The user is another pod's now, or nobody's."""
        self._memory.pop(uid, None)

    async def get(self, uid: str, fence: int) -> int:
        """The user's count. Raises `Fenced`."""
        async with self._lock:
            return await self._get(uid, fence)

    async def add(self, uid: str, fence: int) -> int:
        """One more; the count then. Raises `Fenced`."""
        async with self._lock:
            count = await self._get(uid, fence) + 1
            if not await self._table.write(uid, fence, count):
                self._memory.pop(uid, None)
                raise Fenced
            self._memory[uid] = (fence, count)
            return count

    async def _get(self, uid: str, fence: int) -> int:
        known = self._memory.get(uid)
        if known is not None and known[0] == fence:
            return known[1]
        count = await self._table.take(uid, fence)
        if count is None:
            raise Fenced
        self._memory[uid] = (fence, count)
        return count

    async def aclose(self) -> None:
        await self._table.aclose()
