"""What the pages on placement show is run, and their figures are those of the code."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Coroutine
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from support.documents import block, executed

from sfroute import AsyncPodAgent, AsyncRouter, PlacementConfig, Policy
from sfroute import placement as policies
from sfroute.embedded import LocalCluster
from sfroute.views import notice_seconds

DOCS = Path(__file__).parent.parent.parent / "docs"
PLACEMENT = (DOCS / "explanation" / "placement.md").read_text(encoding="utf-8")
DEPLOYS = "docs/how-to/rolling-deploys.md"


async def test_the_pod_drains_on_sigterm(some_cluster: LocalCluster) -> None:
    with executed(block(DEPLOYS, "python", 0)) as names:
        await drained(names["serve"], some_cluster)


async def drained(
    serve: Callable[[str, int], Coroutine[Any, Any, int]], some_cluster: LocalCluster
) -> None:
    async with AsyncRouter.from_url(some_cluster.url) as router:
        serving = asyncio.create_task(serve(some_cluster.url, 4))
        try:
            async with asyncio.timeout(10):
                pods = await router.get_pods("production", "chat", fresh=True)
                while 4 not in pods:
                    await asyncio.sleep(0.02)
                    pods = await router.get_pods("production", "chat", fresh=True)
                os.kill(os.getpid(), signal.SIGTERM)
                assert await serving == 0
        finally:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        pods = await router.get_pods("production", "chat", fresh=True)
        assert pods[4].status == "Stopped"


class Request:
    """What the gateway of the page is given."""

    uid = "ada"

    def __init__(self, *refusing: int) -> None:
        self.refusing = refusing

    async def send_to(self, pod: int) -> int:
        if pod in self.refusing:
            raise ConnectionRefusedError
        return pod


async def test_the_gateway_goes_elsewhere_when_it_is_refused(some_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(some_cluster.url) as router:
        for pod in (0, 1):
            await router.set_service_state("production", "chat", pod, "Running")
        with executed(block(DEPLOYS, "python", 1)) as names:
            first = await names["forward"](router, Request())
            assert await names["forward"](router, Request(first)) == 1 - first
        assert await router.get_linked_pod("production", "ada", "chat") == 1 - first


async def test_who_is_left_is_moved(
    some_cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncRouter.from_url(some_cluster.url) as router:
        for pod, status in [(8, "Draining"), (9, "Running")]:
            await router.set_service_state("production", "chat", pod, status)
        await router.set_linked_pod("production", "grace", "chat", 8)
        with executed(block(DEPLOYS, "python", 2)) as names:
            await asyncio.to_thread(names["empty"], some_cluster.url, 8)
        assert await router.get_linked_pod("production", "grace", "chat", fresh=True) != 8
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 moved"


def test_the_manifest_leaves_time_for_the_drain() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    manifest = yaml.safe_load(block(DEPLOYS, "yaml", 0).text)
    assert (manifest["kind"], manifest["spec"]["podManagementPolicy"]) == (
        "StatefulSet",
        "Parallel",
    )
    pod = manifest["spec"]["template"]["spec"]
    drain = re.search(r"drain\(deadline=(\d+)\)", block(DEPLOYS, "python", 0).text)
    assert drain is not None
    assert pod["terminationGracePeriodSeconds"] >= int(drain[1]) + 5


def test_the_bounds_are_those_of_the_defaults() -> None:
    config = PlacementConfig()
    heartbeat = signature(AsyncPodAgent).parameters["heartbeat"].default
    assert (heartbeat, config.pod_timeout, config.pod_view_max_age) == (2.0, 6.0, 0.5)
    assert "`heartbeat` 2 s (±10 %), `pod_timeout` 6 s, `pod_view_max_age` 0.5 s" in PLACEMENT
    assert notice_seconds(config) == 1.0
    assert f"{config.pod_timeout - 1.1 * heartbeat:.1f} to {config.pod_timeout:.1f} s" in PLACEMENT
    assert f"{config.max_pods:,} by default" in PLACEMENT


def test_every_policy_is_on_the_page() -> None:
    names = [name for name in policies.__all__ if hasattr(getattr(policies, name), "rank")]
    names.remove(Policy.__name__)
    assert len(names) == 5
    assert [name for name in names if f"`{name}()`" not in PLACEMENT] == []


def test_every_test_that_the_page_names_is_there() -> None:
    here = Path(__file__).parent
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PLACEMENT.partition("## Where each")[2])
    assert len(named) > 30
    for file, test in named:
        path = here.parent.parent / file if "/" in file else here / file
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"
