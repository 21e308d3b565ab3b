"""No uid in any span, metric, log or error text, whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from catalogue import on_store

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    RetryConfig,
    Router,
    RouterConfig,
    SfrouteError,
    StoreUnavailable,
)
from sfroute._contract.keys import link_key, link_prefix
from sfroute.embedded import LocalCluster

from .tap import Tap

SERVICE = "chat"
UID = "marie.curie@example.org"
SECRETS = ("curie", "marie", "example.org")
BAD_UIDS = (UID + "}", UID + "\n", UID * 40, UID + "\udc80")


class Listener:
    """Makes calls and keeps the text of whatever they raise."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def hear(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            await call(*args, **kwargs)
        except SfrouteError as error:
            self.told += [str(error), repr(error)]
            self.told += traceback.format_exception(error)


async def every_operation(router: Any, namespace: str, uid: str, listener: Listener) -> None:
    link = (namespace, uid, SERVICE)
    for row in on_store():
        if "uid" in row.args or "uids" in row.args:
            for _ in range(2):  # then from the cache
                await listener.hear(row.call, router, **row.arguments(namespace, uid))
    for operation, args in (
        ("batch_get_linked_pod", (namespace, [uid, uid + "2"], SERVICE)),
        ("set_linked_pod", (*link, -1)),
        ("set_linked_pod_if_absent", (*link, 2, 0)),
        ("execute_script", ("statefulGetLinkService", [f"sf:{{{namespace}:lk:{uid}}}"], [])),
        ("execute_script", ("statefulSetLink", [f"sf:{{{namespace}:lk:{uid}}}"], [uid])),
        ("execute_script", ("statefulSetLink", [f"{{{uid}}}a", f"{{{uid}}}b"], [uid, uid, uid])),
    ):
        await listener.hear(getattr(router, operation), *args)


async def test_no_uid_leaves_the_process(
    make_router: Callable[..., Any],
    node: LocalCluster,
    plain: Router,
    tap: Tap,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()
    plain.set_service_state(namespace, SERVICE, 1, "Running")
    with caplog.at_level(logging.DEBUG):
        router = make_router(node.url, config=tap.config())
        for uid in (UID, *BAD_UIDS):
            await every_operation(router, namespace, uid, listener)
        # Keys that hold what no link can be, of each type that is read and written.
        for key in (link_key(namespace, UID, SERVICE), link_prefix(namespace, UID)):
            node.execute(node.nodes[0], "DEL", key)
            node.execute(node.nodes[0], "RPUSH", key, UID)
        await every_operation(router, namespace, UID, listener)
        for key in (link_key(namespace, UID, SERVICE), link_prefix(namespace, UID)):
            node.execute(node.nodes[0], "DEL", key)
        node.execute(node.nodes[0], "SET", link_key(namespace, UID, SERVICE), UID)
        node.execute(node.nodes[0], "HSET", link_prefix(namespace, UID), SERVICE, UID)
        await every_operation(router, namespace, UID, listener)
        await router.aclose()
        await every_operation(router, namespace, UID, listener)
    assert len(listener.told) > 100
    no_secret("errors", "\n".join(listener.told))
    no_secret("spans and metrics", tap.exported_text())
    assert len(tap.spans()) > 100
    no_secret("logs", "\n".join(everything_of(record) for record in caplog.records))


async def test_no_uid_leaves_the_process_of_its_pod(
    node: LocalCluster, tap: Tap, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()

    async def evacuate(router: AsyncRouter) -> None:
        await router.set_service_state(namespace, SERVICE, 1, "Running")
        async for _ in router.evacuate(namespace, SERVICE, 3):
            pass

    with caplog.at_level(logging.DEBUG):
        async with (
            AsyncRouter.from_url(node.url, config=tap.config()) as router,
            AsyncPodAgent(
                router, namespace, SERVICE, 3, heartbeat=0.02, load=lambda: 1 / 0, sigterm=False
            ) as agent,
        ):
            assert (await agent.accept(UID)).success
            # Where the uid's links are listed now stands what cannot list any.
            node.execute(node.nodes[0], "DEL", link_prefix(namespace, UID))
            node.execute(node.nodes[0], "RPUSH", link_prefix(namespace, UID), UID)
            for uid in (UID, *BAD_UIDS):
                await listener.hear(agent.accept, uid)
                await listener.hear(agent.release, uid)
            await listener.hear(agent.drain, 0.1)
            await listener.hear(evacuate, router)
        await listener.hear(agent.accept, UID)
        await listener.hear(agent.release, UID)
    told = "\n".join(listener.told)
    assert told.count("CorruptReply(") >= 3
    assert "the agent is not running" in told
    no_secret("errors", told)
    no_secret("spans and metrics", tap.exported_text())
    logged = "\n".join(everything_of(record) for record in caplog.records)
    assert "the load callable of pod 3 raised" in logged
    no_secret("logs", logged)


@pytest.mark.slow
async def test_no_uid_leaves_the_process_when_the_store_is_gone(
    make_router: Callable[..., Any], tap: Tap, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()
    config = RouterConfig(retry=RetryConfig(deadline=0.1, connect_timeout=0.1))
    with caplog.at_level(logging.DEBUG), LocalCluster(1, 0) as cluster:
        router = make_router(cluster.url, config=tap.config(base=config))
        async with asyncio.timeout(20):
            while True:
                # So short a deadline is for what comes; on a busy machine opening may take longer.
                with suppress(StoreUnavailable):
                    await router.open()
                    break
        cluster.kill(cluster.nodes[0])
        await every_operation(router, "n", UID, listener)
        await router.aclose()
    assert any("StoreUnavailable" in text for text in listener.told)
    no_secret("errors", "\n".join(listener.told))
    no_secret("spans and metrics", tap.exported_text())
    no_secret("logs", "\n".join(everything_of(record) for record in caplog.records))


def everything_of(record: logging.LogRecord) -> str:
    shown = logging.Formatter().format(record)
    return f"{shown} {vars(record)}"


def no_secret(where: str, text: str) -> None:
    lines = [line for line in text.splitlines() if any(secret in line for secret in SECRETS)]
    assert lines == [], where
