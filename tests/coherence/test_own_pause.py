"""The gateway itself was stopped, the store was not: what changed meanwhile lies in the socket, and is read first."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child
from support.stalls import Stalls

from sfroute import AsyncRouter, StoreUnavailable
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalServer

from .conftest import SOON, cached, settings

PROGRAM = Path(__file__).parent / "programs" / "sleeper.py"
HASTY: dict[str, Any] = {"heartbeat": 0.2, "heartbeat_timeout": 1.0}
PAUSE = 1.5
"""Seconds, longer than the bound of the heartbeat."""


@pytest.fixture
def tracking(server: str) -> None:
    """Without pushes an answer may be as old as ``max_age_untracked``, pause or no pause."""
    if server.startswith("redis62"):
        pytest.skip("there is no tracking before Redis 7.0")


@pytest.mark.slow
@pytest.mark.parametrize("front", ["async", "sync"])
def test_after_its_own_pause_a_gateway_never_tells_what_was_before(
    single: LocalServer, namespace: str, front: str, tracking: None
) -> None:
    key = link_key(namespace, "ada", "chat")
    single.execute("SET", key, 1)
    with Child(
        [sys.executable, str(PROGRAM), single.url, namespace, front],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as gateway:
        assert gateway.stdin is not None
        assert gateway.stdout is not None
        assert gateway.stdout.readline() == "ready\n"
        awake = []
        for pod in (2, 3, 4):
            os.kill(gateway.pid, signal.SIGSTOP)
            single.execute("SET", key, pod)
            time.sleep(PAUSE)  # what is tested
            woken = time.monotonic()
            os.kill(gateway.pid, signal.SIGCONT)
            gateway.stdin.write("more\n")
            gateway.stdin.flush()
            assert gateway.stdout.readline() == "more\n"
            awake.append((pod, woken, time.monotonic()))
        told, _ = gateway.communicate("end\n", timeout=60)
    result = json.loads(told)
    for pod, woken, stopped in awake:
        after = [p for asked, p in result["answers"] if woken <= asked < stopped]
        assert len(after) > 10
        # It may have been stopped in the middle of the last one.
        assert set(after[:-1]) == {pod}
    assert result["stale"] == 0


@pytest.mark.slow
async def test_so_it_is_if_only_the_loop_was_held_up(
    single: LocalServer, namespace: str, tracking: None
) -> None:
    uid = (namespace, "ada", "chat")
    single.execute("SET", link_key(*uid), 1)
    async with AsyncRouter.from_url(single.url, config=settings(**HASTY)) as router:
        assert await cached(router, uid) == 1
        for pod in range(2, 6):
            single.execute("SET", link_key(*uid), pod)
            time.sleep(PAUSE)  # noqa: ASYNC251 - what is tested
            asked = time.monotonic()
            while time.monotonic() < asked + 0.5:
                assert await router.get_linked_pod(*uid) == pod
                await asyncio.sleep(0)
        assert router.stats().cache.stale == 0
        (lane,) = router.stats().lanes
        assert lane.healthy
        assert lane.tracked
        assert lane.reconnects == 0


@pytest.mark.slow
async def test_a_server_that_was_stopped_too_is_found_out_all_the_same(
    own_server: LocalServer, namespace: str, stalls: Stalls
) -> None:
    """It is asked once more, and given the usual time; a loop that is always late does not keep it alive."""
    uid = (namespace, "ada", "chat")
    own_server.execute("SET", link_key(*uid), 1)
    config = settings(stale_if_error=60.0, **HASTY)
    async with AsyncRouter.from_url(own_server.url, config=config) as router:
        assert await cached(router, uid) == 1
        own_server.pause()
        stopped = time.monotonic()
        while not router.stats().cache.stale:
            time.sleep(0.15)  # noqa: ASYNC251 - later than any timer may be
            async with asyncio.timeout(SOON):
                assert await router.get_linked_pod(*uid) == 1
            await asyncio.sleep(0)
        assert stalls.took(stopped) < 5.0
        with pytest.raises(StoreUnavailable):
            await router.get_linked_pod(*uid, stale_ok=False)
        own_server.resume()
