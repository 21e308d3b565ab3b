"""Fixtures of the tests of telemetry: an SDK of each test's own, and one small cluster for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sfroute import Router
from sfroute._contract.scripts import SCRIPTS
from sfroute.embedded import LocalCluster

from .tap import Tap


@pytest.fixture
def tap() -> Iterator[Tap]:
    """An SDK that samples everything and keeps it."""
    tap = Tap()
    yield tap
    tap.tracers.shutdown()
    tap.meters.shutdown()


@pytest.fixture(scope="session")
def node() -> Iterator[LocalCluster]:
    """A cluster of one node: what leaves together leaves to the same node."""
    with LocalCluster(1, 0, extra_config={"enable-debug-command": "local"}) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def scripts_are_known(request: pytest.FixtureRequest) -> None:
    """The cluster knows all scripts before each test: what a first call of one adds is told where it matters."""
    if "node" in request.fixturenames:
        node: LocalCluster = request.getfixturevalue("node")
        node.nodes[0].commands(*(("SCRIPT", "LOAD", script.source) for script in SCRIPTS.values()))


@pytest.fixture(scope="module")
def plain(node: LocalCluster) -> Iterator[Router]:
    """A router on it that tells nothing. Closed with the module: other tests count the threads of routers."""
    with Router.from_url(node.url) as router:
        yield router


@pytest.fixture
async def make_router(make_router: Callable[..., Any]) -> AsyncIterator[Callable[..., Any]]:
    """As everywhere; a test that has failed before it closed its router leaves none open."""
    made: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        made.append(make_router(*args, **options))
        return made[-1]

    yield make
    for router in made:
        await router.aclose()
