"""The names of calls to the store follow OpenTelemetry's conventions, and their transition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.semconv._incubating.attributes import db_attributes as old_db
from opentelemetry.semconv._incubating.attributes import net_attributes as old_net
from opentelemetry.semconv.attributes import (
    db_attributes,
    error_attributes,
    network_attributes,
    server_attributes,
)

from sfroute.embedded import LocalCluster
from sfroute.telemetry import names

from .tap import Tap

OLD = {
    old_db.DB_SYSTEM,
    old_db.DB_OPERATION,
    old_db.DB_REDIS_DATABASE_INDEX,
    old_net.NET_PEER_NAME,
    old_net.NET_PEER_PORT,
}
STABLE = {
    db_attributes.DB_SYSTEM_NAME,
    db_attributes.DB_NAMESPACE,
    db_attributes.DB_OPERATION_NAME,
    db_attributes.DB_STORED_PROCEDURE_NAME,
    server_attributes.SERVER_ADDRESS,
    server_attributes.SERVER_PORT,
    network_attributes.NETWORK_PEER_ADDRESS,
    network_attributes.NETWORK_PEER_PORT,
}


@pytest.mark.parametrize(
    ("opt_in", "expected"),
    [
        ("", STABLE),
        ("database", STABLE),
        ("http/dup", STABLE),
        ("http, database/dup", STABLE | OLD),
    ],
)
async def test_the_opt_in_of_opentelemetry_is_heeded(
    opt_in: str,
    expected: set[str],
    make_router: Callable[..., Any],
    node: LocalCluster,
    tap: Tap,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opt_in)
    router = make_router(node.url, config=tap.config())
    await router.set_linked_pod(namespace, "u", "chat", 1)
    await router.aclose()
    ((host, port),) = node.startup_nodes
    attributes = dict(tap.one("EVALSHA statefulSetLink").attributes or {})
    assert attributes.keys() == expected
    assert (attributes["server.address"], attributes["server.port"]) == (host, port)
    assert (attributes["network.peer.address"], attributes["network.peer.port"]) == (host, port)
    assert attributes["db.namespace"] == "0"
    if expected >= OLD:
        assert attributes["db.system"] == attributes["db.system.name"] == "redis"
        assert attributes["db.operation"] == attributes["db.operation.name"] == "EVALSHA"
        assert attributes["db.redis.database_index"] == 0
        assert (attributes["net.peer.name"], attributes["net.peer.port"]) == (host, port)


async def test_a_configured_name_is_the_server_and_the_sockets_end_is_the_peer(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    """A single node is called what the URL calls it."""
    ((_, port),) = node.startup_nodes
    router = make_router(f"redis://localhost:{port}", config=tap.config())
    await router.set_workload_state(namespace, "chat", "busy")
    await router.aclose()
    attributes = tap.one("SET").attributes or {}
    assert attributes["server.address"] == "localhost"
    assert attributes["network.peer.address"] in {"127.0.0.1", "::1"}


def test_names_are_those_of_the_packages_of_the_conventions() -> None:
    known = {
        value
        for module in (
            db_attributes,
            error_attributes,
            network_attributes,
            server_attributes,
            old_db,
            old_net,
        )
        for value in vars(module).values()
        if isinstance(value, str)
    }
    used = {
        value
        for name, value in vars(names).items()
        if name.isupper()
        and isinstance(value, str)
        and value.startswith(("db.", "net", "server.", "error."))
    }
    assert len(used) >= 16
    assert used <= known
