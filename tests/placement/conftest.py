"""One cluster for tests that are about pods and gateways, whatever the server, or take long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import ONE_SERVER, SERVERS, make_cluster

from sfroute.embedded import LocalCluster

__all__ = ["ONE_SERVER"]


@pytest.fixture(scope="session")
def some_cluster() -> Iterator[LocalCluster]:
    """Three primaries of whatever server, for tests that leave them as they were.

    Nobody takes a primary for dead that is busy for a while: there is nobody to replace it.
    """
    server = next(iter(SERVERS))
    with make_cluster(server, replicas_per_primary=0, node_timeout_ms=15_000) as cluster:
        yield cluster
