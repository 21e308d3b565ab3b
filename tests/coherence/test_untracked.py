"""Servers that do not push: links live for ``max_age_untracked`` only, the statistics say so, one warning is logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

import pytest
from conftest import SERVERS

from sfroute import AsyncRouter, Router, RouterConfig
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import another_client, cached, settings

UNTRACKED = 2.5
"""Seconds in which a busy machine looks up twice."""
CONFIG = settings(max_age_untracked=UNTRACKED)
RULES = "~sf:* +@all -client|tracking"


def redis62() -> str:
    path = SERVERS.get("redis62")
    if path is None:
        pytest.skip("redis62 is not among SFROUTE_TEST_SERVERS: make test-servers")
    return path


@pytest.fixture
def forbidden(own_server: LocalServer, server: str) -> str:
    """The URL of a user who must not track."""
    if server == "redis62":
        pytest.skip("Redis 6.2 cannot take away one subcommand")
    own_server.execute("ACL", "SETUSER", "gateway", "on", ">secret", *RULES.split())
    return own_server.url.replace("redis://", "redis://gateway:secret@")


@pytest.fixture(scope="module")
def old() -> Iterator[LocalServer]:
    with LocalServer(server_binary=redis62()) as server:
        yield server


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Those of lookups: on a busy machine a connection may take too long, of which another logger warns."""
    of_lookups = [record for record in caplog.records if record.name == "sfroute.lookups"]
    return [r.getMessage() for r in of_lookups if r.levelno >= logging.WARNING]


async def lives_for_its_time_only(
    url: str, server: LocalServer, namespace: str, config: RouterConfig = CONFIG
) -> None:
    uid = (namespace, "ada", "chat")
    async with another_client(server) as other, AsyncRouter.from_url(url, config=config) as router:
        began = time.monotonic()
        assert await cached(router, uid) is None
        looked_up = asked = time.monotonic()
        await other.set(link_key(*uid), 1)
        while await router.get_linked_pod(*uid) is None:
            assert asked < looked_up + UNTRACKED
            await asyncio.sleep(0.001)
            asked = time.monotonic()
        # Nobody pushed: it took the whole time.
        assert time.monotonic() > began + UNTRACKED
        (lane,) = router.stats().lanes
        assert (lane.connected, lane.healthy, lane.tracked) == (True, True, False)


@pytest.mark.slow
async def test_tracking_refused_by_the_acl(
    forbidden: str, own_server: LocalServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    await lives_for_its_time_only(forbidden, own_server, namespace)
    (warning,) = warnings(caplog)
    assert "does not push invalidations (CLIENT TRACKING is refused (NOPERM))" in warning
    assert "2.5 s" in warning
    assert "secret" not in caplog.text


async def test_redis_62(old: LocalServer, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    assert old.server_version.startswith("6.2.")
    uid = (namespace, "bob", "chat")
    async with another_client(old) as other, AsyncRouter.from_url(old.url, config=CONFIG) as router:
        assert await router.set_linked_pod(*uid, 3) is None
        assert await cached(router, uid) == 3
        assert router.stats().lanes[0].tracked is False
        await other.set(link_key(*uid), 4)
        await asyncio.sleep(UNTRACKED)
        assert await router.get_linked_pod(*uid) == 4
        assert await router.get_link_service(*uid[:2]) == {"chat": 3}
    (warning,) = warnings(caplog)
    assert "not reliable before Redis 7.0" in warning


async def test_redis_62_own_writes_and_expiries_are_true_all_the_same(
    old: LocalServer, namespace: str
) -> None:
    long = settings(max_age_untracked=60.0)
    async with AsyncRouter.from_url(old.url, config=long) as router:
        uid = (namespace, "ada", "chat")
        for pod in range(200):
            await router.set_linked_pod(*uid, pod)
            assert await cached(router, uid) == pod
        await router.set_linked_pod(*uid, 1, 3)
        over = time.monotonic() + 3.001
        assert await cached(router, uid) == 1
        await asyncio.sleep(over - time.monotonic())
        assert await router.get_linked_pod(*uid) is None


@pytest.mark.slow
async def test_switched_off_is_no_warning(
    single: LocalServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    off = settings(tracking=False, max_age_untracked=UNTRACKED)
    await lives_for_its_time_only(single.url, single, namespace, off)
    assert warnings(caplog) == []


async def test_one_warning_for_all_primaries_and_reconnects(
    cluster: LocalCluster, server: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    if server == "redis62":
        pytest.skip("Redis 6.2 cannot take away one subcommand")
    for node in cluster.nodes:
        cluster.execute(node, "ACL", "SETUSER", "gateway", "on", ">secret", *RULES.split())
    url = cluster.url.replace("://", "://gateway:secret@")
    try:
        async with AsyncRouter.from_url(url, config=CONFIG) as router:
            for round_ in range(3):
                for number in range(30):
                    assert await router.get_linked_pod(namespace, f"u{number}", "chat") is None
                assert [lane.tracked for lane in router.stats().lanes] == [False] * 3
                for node in cluster.nodes:
                    cluster.execute(node, "CLIENT", "KILL", "USER", "gateway")
                assert len(warnings(caplog)) == 1, round_
    finally:
        for node in cluster.nodes:
            cluster.execute(node, "ACL", "DELUSER", "gateway")


def test_threads_are_told_the_same(
    forbidden: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Router.from_url(forbidden, config=CONFIG) as router:
        assert router.get_linked_pod(namespace, "ada", "chat") is None
        assert [lane.tracked for lane in router.stats().lanes] == [False]
    assert len(warnings(caplog)) == 1
