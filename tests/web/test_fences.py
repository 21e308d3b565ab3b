"""The example's pods as processes: one that was stopped beyond its lease wakes, and its write is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the group `examples` is not installed")

import httpx
from counters import Counters, Fenced
from deployment import free_port

from sfroute import AsyncRouter
from sfroute.embedded import LocalCluster

POD = Path(__file__).parent.parent.parent / "examples" / "gateway" / "pod.py"
ADA = {"x-sfroute-uid": "ada"}
LEASE = 1.5


@asynccontextmanager
async def pod(number: int, **environment: str) -> AsyncIterator[tuple[Process, str]]:
    """A pod that listens, and where."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(POD),
        env={**os.environ, "POD_NAME": f"chat-{number}", "PORT": str(port), **environment},
    )
    try:
        async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
            while True:
                with suppress(httpx.TransportError):
                    await client.get("/healthz")
                    break
                await asyncio.sleep(0.05)
        yield process, address
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_what_a_zombie_writes_is_refused(
    sfroute_cluster: LocalCluster, sfroute_namespace: str, tmp_path: Path
) -> None:
    database = tmp_path / "counters.db"
    environment = {
        "SFROUTE_URL": sfroute_cluster.url,
        "SFROUTE_NAMESPACE": sfroute_namespace,
        "DATABASE": str(database),
        "LEASE_SECONDS": str(LEASE),
    }
    half_sent, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"count "
        half_sent.set()
        await go_on.wait()
        yield b"me"

    async with AsyncExitStack() as exits:
        zombie, first = await exits.enter_async_context(pod(0, **environment))
        _, second = await exits.enter_async_context(pod(1, **environment))
        client = await exits.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=20))
        router = await exits.enter_async_context(AsyncRouter.from_url(sfroute_cluster.url))
        for expected in (1, 2):
            response = await client.post(f"{first}/count", headers=ADA)
            assert (response.status_code, response.json()["count"]) == (200, expected)
        # It has passed every check of the first pod and waits for the rest of its body.
        late = asyncio.create_task(client.post(f"{first}/count", headers=ADA, content=body()))
        await half_sent.wait()
        await client.get(f"{first}/healthz")  # the pod has read what came before this
        zombie.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE)  # what the lease is: time
        link = await router.route(sfroute_namespace, "ada", "chat", exclude=[0])
        assert link.pod == 1
        response = await client.post(f"{second}/count", headers=ADA)
        assert (response.status_code, response.json()["count"]) == (200, 3)
        zombie.send_signal(signal.SIGCONT)
        go_on.set()
        refused = await late
        # Nothing was done, and the gateway is told to ask elsewhere.
        assert (refused.status_code, refused.headers["x-sfroute-service"]) == (421, "chat")
        assert (await client.post(f"{second}/count", headers=ADA)).json()["count"] == 4
        assert (await client.post(f"{first}/count", headers=ADA)).status_code == 421
    with sqlite3.connect(database) as read:
        assert read.execute("SELECT uid, count FROM counters").fetchall() == [("ada", 4)]
    read.close()


@pytest.fixture(params=["file", "folder", "store"])
def where(request: pytest.FixtureRequest, sfroute_cluster: LocalCluster, tmp_path: Path) -> str:
    """Where counters are kept."""
    if request.param == "file":
        return str(tmp_path / "counters.db")
    if request.param == "folder":
        return f"{tmp_path}/counters/"
    host, port = sfroute_cluster.startup_nodes[0]
    return f"redis://{host}:{port}"


async def test_whoever_has_read_under_a_newer_fence_keeps_older_ones_from_writing(
    where: str, sfroute_namespace: str
) -> None:
    ada = f"ada-{sfroute_namespace}"
    old, new = Counters(where), Counters(where)
    try:
        assert await old.add(ada, 5) == 1
        # It has not written yet: reading is enough.
        assert await new.get(ada, 6) == 1
        with pytest.raises(Fenced):
            await old.add(ada, 5)
        assert await new.add(ada, 6) == 2
        with pytest.raises(Fenced):
            await old.get(ada, 5)
        old.forget(ada)
        assert await old.add(ada, 7) == 3
        # As long as real ones; no number of Lua's tells them apart.
        assert await new.add(ada, 2**60) == 4
        with pytest.raises(Fenced):
            await old.add(ada, 2**60 - 1)
        assert await old.add(ada, 2**60 + 1) == 5
    finally:
        await old.aclose()
        await new.aclose()
