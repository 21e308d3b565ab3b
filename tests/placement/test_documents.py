"""What the pages on placement show is run, and their figures are those of the code."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from support.documents import block, executed

from sfroute import AsyncPodAgent, AsyncRouter, NoRoutablePod, PlacementConfig, Policy
from sfroute._pods import policies, preferences
from sfroute._pods.views import notice_seconds
from sfroute.embedded import LocalCluster

DOCS = Path(__file__).parent.parent.parent / "docs"
PLACEMENT = (DOCS / "explanation" / "placement.md").read_text(encoding="utf-8")
DEPLOYS = "docs/how-to/rolling-deploys.md"
CHOOSING = "docs/how-to/choose-pods.md"


@pytest.fixture
def some_cluster(some_cluster: LocalCluster) -> LocalCluster:
    """Other pages, and other blocks of these, have users and pods of the same names."""
    for node in some_cluster.nodes:
        node.commands(("FLUSHALL",))
    return some_cluster


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


async def test_users_go_where_the_page_says(some_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(some_cluster.url) as router:
        with (
            executed(block(CHOOSING, "python", 0)) as pods,
            executed(block(CHOOSING, "python", 1)) as gateways,
            executed(block(CHOOSING, "python", 3)) as names,
        ):
            async with pods["agent_of"](router, 1, "10.0.0.1", "b"):
                assert await gateways["address_of"](router, "chosen") == "10.0.0.1:8080"
                near, only = names["near"], names["near_or_fail"]
                assert (await router.route("production", "eve", "chat", policy=near)).pod == 1
                with pytest.raises(NoRoutablePod):
                    await router.route("production", "mia", "chat", policy=only)
                await router.remove_linked_pod("production", "chosen", "chat")
                await router.remove_linked_pod("production", "eve", "chat")
            await router.set_service_state("production", "chat", 1, "Stopped")


async def test_pods_get_numbers(some_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(some_cluster.url) as router:
        with executed(block(CHOOSING, "python", 2)) as names:
            async with names["numbered"](router, "cache-x", "10.0.0.1:1") as agent:
                assert agent.pod == 0


def test_a_canary_gets_its_share() -> None:
    with executed(block(CHOOSING, "python", 4)) as names:
        chosen = [names["policy_for"](f"u{number}") for number in range(4000)]
        assert 0.03 < chosen.count(names["canary"]) / 4000 < 0.07


async def test_rooms_stay_together(some_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(some_cluster.url) as router:
        for pod in range(4):
            await router.set_service_state("production", "game", pod, "Running")
        with executed(block(CHOOSING, "python", 5)) as names:
            link = await router.route("production", "prefix", "game", policy=names["warm"])
            assert link.pod in range(4)
        with executed(block(CHOOSING, "python", 8)) as names:
            pods = {(await names["join"](router, f"p{n}", "red")).pod for n in range(12)}
            assert len(pods) == 1


@pytest.mark.slow
async def test_a_full_pod_is_passed_over(some_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(some_cluster.url) as router:
        with (
            executed(block(CHOOSING, "python", 6)) as pods,
            executed(block(CHOOSING, "python", 7)) as gateways,
        ):
            async with pods["limited"](router, 3) as agent:
                refused = []

                async def work() -> None:
                    refused.append(await pods["admit"](agent, "page-ada"))

                await pods["nobody_new_while"](agent, work)
                assert refused == [None]
                assert await pods["admit"](agent, "page-ada")
                await router.get_pods("production", "game", fresh=True)
                assert (await gateways["place"](router, "page-bob")).pod in range(4)


@pytest.mark.slow
def test_what_the_page_says_of_rolling_updates_is_what_the_program_says() -> None:
    program = DOCS.parent / "benchmarks" / "rolling_update.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert done.stdout in (DOCS / "how-to" / "choose-pods.md").read_text(encoding="utf-8")


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
    lease = signature(AsyncPodAgent).parameters["lease"].default
    assert (lease, config.lease_margin) == (10.0, 1.0)
    assert (
        "`heartbeat` 2 s (±10 %), `lease` 10 s, `lease_margin` 1 s, `pod_timeout` 6 s" in PLACEMENT
    )
    silent = lease + config.lease_margin
    assert f"{silent - 1.1 * heartbeat:.1f} to {silent:.1f} s" in PLACEMENT
    assert notice_seconds(config) == 1.0
    assert f"{config.pod_timeout - 1.1 * heartbeat:.1f} to {config.pod_timeout:.1f} s" in PLACEMENT
    assert f"{config.max_pods:,} by default" in PLACEMENT


def test_every_policy_is_on_the_page() -> None:
    names = [
        name
        for module in (policies, preferences)
        for name in module.__all__
        if hasattr(getattr(module, name), "rank")
    ]
    names.remove(Policy.__name__)
    assert len(names) == 9
    assert [name for name in names if f"| `{name}(" not in PLACEMENT] == []


def test_every_test_that_the_page_names_is_there() -> None:
    here = Path(__file__).parent
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PLACEMENT.partition("## Where each")[2])
    assert len(named) > 30
    for file, test in named:
        path = here.parent.parent / file if "/" in file else here / file
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"
