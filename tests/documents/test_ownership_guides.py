"""The guides on presence and on fences: their code is run, against what stands in for a store where it is said."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the group `examples` is not installed")

import httpx
import pytest
import redis
import redis.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.documents import block, executed

from sfroute import AsyncPodAgent, AsyncRouter
from sfroute.embedded import LocalCluster, LocalServer

FENCES = "docs/how-to/fences.md"
PRESENCE = "docs/how-to/presence.md"
HANDING_OVER = "docs/how-to/hand-over.md"


def test_the_statements_for_postgresql() -> None:
    take, write = block(FENCES, "sql", 0).text, block(FENCES, "sql", 1).text
    with sqlite3.connect(":memory:", isolation_level=None) as database:
        database.execute(
            "CREATE TABLE counters (uid TEXT PRIMARY KEY, fence BIGINT NOT NULL, count INTEGER NOT NULL)"
        )

        def run(statement: str, *values: object) -> sqlite3.Cursor:
            named = {str(number): value for number, value in enumerate(values, 1)}
            return database.execute(statement, named)

        assert run(take, "ada", 2**51).fetchall() == [(0,)]
        assert run(write, "ada", 2**51, 1).rowcount == 1
        assert run(take, "ada", 2**51 + 1).fetchall() == [(1,)]
        # It has only been taken; the older pod can write no more, nor take it back.
        assert run(write, "ada", 2**51, 9).rowcount == 0
        assert run(take, "ada", 2**51).fetchall() == []
        assert run(write, "ada", 2**51 + 1, 2).rowcount == 1
    database.close()


def test_the_script_for_redis() -> None:
    with LocalServer() as server, executed(block(FENCES, "python", 0)) as names:
        host, port = server.startup_nodes[0]
        client = redis.Redis(host=host, port=port, decode_responses=True)
        write = names["write"]
        old, new = 2**53 + 1, 2**53 + 2
        assert write(client, "user:ada", 7)
        assert write(client, "user:ada", old, count=1)
        assert write(client, "user:ada", new)
        assert not write(client, "user:ada", old, count=2)
        assert not write(client, "user:ada", 7, count=2)
        assert write(client, "user:ada", new, count=3)
        assert client.hgetall("user:ada") == {"fence": str(new), "count": "3"}
        client.close()


class Bucket:
    """An object store: one object, conditional writes (RFC 9110, 13.1)."""

    def __init__(self) -> None:
        self.body: bytes | None = None
        self.version = 0
        self.meanwhile: bytes | None = None
        """What somebody else writes before the next write."""

    async def serve(self, request: Request) -> Response:
        if request.method == "GET":
            headers = {"etag": f'"{self.version}"'}
            found = self.body is not None
            return Response(self.body or b"", 200 if found else 404, headers=headers)
        if self.meanwhile is not None:
            self.body, self.meanwhile = self.meanwhile, None
            self.version += 1
        absent = request.headers.get("if-none-match") == "*" and self.body is None
        if not absent and request.headers.get("if-match") != f'"{self.version}"':
            return Response(status_code=412)
        self.body = await request.body()
        self.version += 1
        return Response()


async def test_the_conditional_put() -> None:
    bucket = Bucket()
    app = Starlette(routes=[Route("/ada", bucket.serve, methods=["GET", "PUT"])])
    transport = httpx.ASGITransport(app)
    with executed(block(FENCES, "python", 1)) as names:
        save, take, taken = names["save"], names["take"], names["Taken"]
        async with httpx.AsyncClient(transport=transport, base_url="http://bucket") as http:
            assert await take(http, "/ada", 5) is None
            await save(http, "/ada", 5, "first")
            # The next claim has read nothing else before nobody else can write.
            assert await take(http, "/ada", 6) == "first"
            with pytest.raises(taken):
                await save(http, "/ada", 5, "late")
            assert await take(http, "/ada", 6) == "first"
            # A newer claim writes between reading and writing.
            bucket.meanwhile = b'{"fence": 8, "data": "newest"}'
            with pytest.raises(taken):
                await save(http, "/ada", 7, "lost the race")
            assert bucket.body == b'{"fence": 8, "data": "newest"}'


class Connection:
    """A user's connection, as far as the page needs one."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.fence: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def close(self, code: int) -> None:
        self.closed.set_result(code)

    async def talk(self, fence: int) -> None:
        self.fence.set_result(fence)
        await self.closed


async def test_presence(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> None:
    with executed(block(PRESENCE, "python", 0)) as names:
        async with AsyncRouter.from_url(sfroute_cluster.url) as router:
            agents = [AsyncPodAgent(router, sfroute_namespace, "chat", pod) for pod in (1, 2)]
            async with agents[0], agents[1]:
                presence, other = (names["Presence"](agent) for agent in agents)
                heeding = asyncio.create_task(presence.heed_events())

                async def connected(to: Any) -> tuple[Connection, asyncio.Task[None]]:
                    connection = Connection()
                    return connection, asyncio.create_task(to.serve("ada", connection))

                first, serving = await connected(presence)
                fence = await first.fence
                refused, refusing = await connected(other)
                await refusing
                assert await refused.closed == 1012
                # A reconnect within the grace period.
                first.closed.set_result(1006)
                await serving
                assert presence.here == {}
                again, serving = await connected(presence)
                assert await again.fence == fence
                await router.set_linked_pod(sfroute_namespace, "ada", "chat", 2)
                await serving
                assert again.closed.result() == 1012
            await heeding


async def test_users_are_handed_over(sfroute_cluster: LocalCluster) -> None:
    """To the other pod, with what was in memory; who wakes up too late can write no more."""
    with LocalServer() as server, executed(block(HANDING_OVER, "python", 0)) as names:
        host, port = server.startup_nodes[0]
        saved = redis.asyncio.Redis(host=host, port=port, decode_responses=True)
        async with (
            AsyncRouter.from_url(sfroute_cluster.url) as router,
            AsyncRouter.from_url(sfroute_cluster.url) as gateway,
            AsyncPodAgent(router, "handed", "chat", 3) as leaving,
            AsyncPodAgent(router, "handed", "chat", 4) as staying,
        ):
            old, new = names["Pod"](leaving, saved), names["Pod"](staying, saved)
            uids = [f"user-{number}" for number in range(20)]
            first = {uid: Connection() for uid in uids}
            for uid in uids:
                await old.arrive(uid, first[uid])
                old.states[uid] = f"all that {uid} has said"
            before = leaving.claim_of("user-0")
            assert before is not None
            # Somebody who belongs to the other pod is sent away.
            stranger = Connection()
            await new.arrive("user-0", stranger)
            assert await stranger.closed == 1012
            assert await old.hand_over(deadline=20) == 0
            for uid in uids:
                assert await first[uid].closed == 1012
                assert (await gateway.route("handed", uid, "chat", fresh=True)).pod == 4
                await new.arrive(uid, Connection())
            assert new.states == {uid: f"all that {uid} has said" for uid in uids}
            assert old.states == {}
            with pytest.raises(redis.ResponseError, match="newer claim"):
                await saved.eval(names["FENCED"], 1, "user:user-0", before.fence, "state", "late")
            assert await saved.hget("user:user-0", "state") == "all that user-0 has said"
        await saved.aclose()
