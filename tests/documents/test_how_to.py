"""The how-to guides: their code is run on a real cluster, their figures are those of the code.

Those on gateways, deploys, tracing and rights are tested beside what they speak of.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import redis.cluster
from support.documents import ROOT, block, executed, same, typed

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CacheConfig,
    InvalidArgument,
    PlacementConfig,
    RetryConfig,
    Router,
    RouterConfig,
)
from sfroute._contract.keys import slot_of
from sfroute._net.targets import target_of_url
from sfroute._net.url_options import HONOURED
from sfroute.embedded import LocalCluster, LocalServer

TIMEOUTS = "docs/how-to/timeouts.md"
TESTING = "docs/how-to/test-your-gateway.md"
MIGRATING = "docs/how-to/migrate-from-go.md"
OTHERS = "docs/how-to/other-languages.md"
CONNECTING = "docs/how-to/connect.md"


@pytest.fixture
def production(sfroute_cluster: LocalCluster) -> str:
    """The URL of a cluster that holds nothing: the pages all speak of one namespace."""
    for node in sfroute_cluster.nodes:
        node.commands(("FLUSHALL",))
    return sfroute_cluster.url


# --- connect


async def test_nodes_in_containers_are_found(production: str) -> None:
    with executed(block(CONNECTING, "python", 0)) as names:
        assert names["reachable"](("172.18.0.3", 6379)) == ("127.0.0.1", 7002)
        async with names["connect"](production) as router:
            await router.set_linked_pod("production", "ada", "chat", 3)


def test_a_secret_on_disk_is_read_for_each_connection(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with (
        executed(block(CONNECTING, "python", 1)) as names,
        LocalServer(password="of today") as server,
    ):
        provider = names["FromFile"](secret)
        for written in ("of yesterday", "of today"):
            secret.write_text(f"{written}\n")
            assert provider.get_credentials() == ("default", written)
        with names["connect"](*server.startup_nodes[0], secret) as router:
            router.set_linked_pod("production", "ada", "chat", 3)


def test_the_table_of_options_has_all_that_are_honoured() -> None:
    page = (ROOT / CONNECTING).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(HONOURED)


async def test_there_are_as_many_connections_as_the_page_says() -> None:
    page = (ROOT / CONNECTING).read_text(encoding="utf-8")
    said = re.search(r"three primaries that makes (\d+) for each router, or (\d+) with", page)
    assert said is not None
    found = []
    with LocalCluster(primaries=3, replicas_per_primary=1) as cluster:
        for acks in (0, 1):
            name = f"counted-{acks}"
            config = RouterConfig(min_replica_acks=acks, client_name=name)
            async with (
                AsyncRouter.from_url(cluster.url, config=config) as router,
                AsyncPodAgent(router, "production", "chat", 3) as agent,
            ):
                uids = [f"user-{number}" for number in range(100)]
                for done in (
                    agent.accept,
                    lambda uid: router.get_linked_pod("o", uid, "chat"),
                    lambda uid: router.get_workload_state(uid, "chat"),
                ):
                    await asyncio.gather(*map(done, uids))
                assert len(router.stats().lanes) == 3
                found.append(connections_of(cluster, name))
    assert found == [int(said[1]), int(said[2])]


def connections_of(cluster: LocalCluster, name: str) -> int:
    """How many a client of this name has, at all nodes together."""
    return sum(
        str(node.commands(("CLIENT", "LIST"))[0]).count(f" name={name};") for node in cluster.nodes
    )


# --- choose TTLs and timeouts


@pytest.mark.slow
async def test_a_user_connects_and_disconnects(production: str) -> None:
    async with (
        AsyncRouter.from_url(production) as router,
        AsyncPodAgent(router, "production", "chat", 3) as agent,
    ):
        with executed(block(TIMEOUTS, "python", 0)) as names:
            assert await names["connected"](router, agent, "ada") == (3, True, 3)
            assert await router.get_linked_pod_if_persist("production", "ada", "chat") == 3
            await names["disconnected"](agent, "ada")
        assert await router.get_linked_pod("production", "ada", "chat") == 3
        assert await router.get_linked_pod_if_persist("production", "ada", "chat") is None


def test_a_page_waits_for_the_store_no_longer_than_it_says(production: str) -> None:
    with Router.from_url(production) as router, executed(block(TIMEOUTS, "python", 1)) as names:
        router.set_service_state("prod", "chat", 3, "Running")
        assert names["page_for"](router, "ada") == 3
        away = Router.from_url("redis+cluster://127.0.0.1:9")
        assert names["page_for"](away, "ada") is None
        away.close()


def test_the_three_examples_are_configurations() -> None:
    with executed(block(TIMEOUTS, "python", 2)) as names:
        made = [names[name] for name in ("chat", "carts", "games")]
    assert all(isinstance(config, RouterConfig) for config in made)
    # Half an hour after the last request at the earliest: half of the time that a link is given.
    assert names["carts"].placement.persist_seconds / 2 == 30 * 60


def test_the_defaults_are_those_of_the_code() -> None:
    page = (ROOT / TIMEOUTS).read_text(encoding="utf-8")
    heartbeat = signature(AsyncPodAgent).parameters["heartbeat"].default
    for setting, default in {
        "CacheConfig.max_age": CacheConfig().max_age,
        "CacheConfig.stale_if_error": CacheConfig().stale_if_error,
        "PlacementConfig.pod_timeout": PlacementConfig().pod_timeout,
        "AsyncPodAgent(heartbeat=)": heartbeat,
        "AsyncPodAgent(lease=)": signature(AsyncPodAgent).parameters["lease"].default,
        "RetryConfig.deadline": RetryConfig().deadline,
    }.items():
        assert f"| `{setting}` | {default:g} s |" in page
    assert CacheConfig().max_age_untracked == 0.5
    drain = signature(AsyncPodAgent.drain).parameters["deadline"].default
    assert f"{drain:g} s in {drain + 10:g}" in page
    rows = re.findall(r"^\| (\d+) s.*\| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(rows) == 3
    for within, beat, lease in rows:
        assert int(lease) + PlacementConfig().lease_margin == int(within)
        assert int(lease) >= 3 * int(beat)


# --- test your gateway


@pytest.mark.slow
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    (tmp_path / "gateway.py").write_text(block(TESTING, "python", 0).text)
    (tmp_path / "test_gateway.py").write_text(block(TESTING, "python", 1).text)
    (entry,) = typed(block(TESTING, "console", 1))
    first, *arguments = entry.command.split()
    assert first == "python"
    done = subprocess.run(
        [sys.executable, *arguments, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert same(done.stdout.splitlines()) == same(entry.shown), done.stdout + done.stderr


@pytest.mark.slow
def test_a_primary_dies_in_the_test_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(block(TESTING, "toml", 0).text)
    (tmp_path / "test_breaking.py").write_text(block(TESTING, "python", 2).text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_page_installs_what_it_uses() -> None:
    (entry,) = typed(block(TESTING, "console", 0))
    assert entry.command == (
        "pip install '/path/to/sfroute[embedded]' pytest pytest-asyncio"
        "    # a clone: it is not on the package index yet"
    )


# --- migrate from the Go executor


def test_minus_one_is_none(production: str) -> None:
    with Router.from_url(production) as router, executed(block(MIGRATING, "python", 0)) as names:
        assert names["claim"](router, "ada", 0) == "nobody had the user"
        assert names["claim"](router, "ada", 1) == "pod 0 had the user"


async def test_a_disconnect_keeps_the_link_for_a_reconnect(production: str) -> None:
    async with AsyncRouter.from_url(production) as router:
        await router.set_linked_pod("production", "ada", "chat", 0)
        with executed(block(MIGRATING, "python", 1)) as names:
            assert await names["disconnected"](router, "ada", 1) is False
            assert await names["disconnected"](router, "ada", 0) is True
        assert await router.get_linked_pod("production", "ada", "chat") == 0
        assert await router.get_linked_pod_if_persist("production", "ada", "chat") is None
        # What the page calls an error is one.
        with pytest.raises(InvalidArgument):
            await router.remove_linked_pod("production", "ada", "chat", 0)
        await router.set_service_state("production", "chat", 3, "state")
        pods = await router.get_pods("production", "chat", fresh=True)
        assert (pods[3].status, pods[3].age) == ("Unknown", None)


async def test_gateways_are_compared(production: str) -> None:
    async with AsyncRouter.from_url(production) as router:
        await router.set_linked_pod("production", "ada", "chat", 0)
        await router.set_linked_pod("production", "grace", "chat", 4)
        answers = {"ada": 0, "grace": 5, "linus": -1, "ken": 1}
        with executed(block(MIGRATING, "python", 2)) as names:
            assert await names["differences"](router, answers) == {"grace": 5, "ken": 1}


def test_every_operation_of_the_table_is_one() -> None:
    page, _, _ = (ROOT / MIGRATING).read_text(encoding="utf-8").partition("## What is different")
    rows = re.findall(r"^\| (`[A-Z].+?) \| (`.+?) \|", page, re.MULTILINE)
    assert len(rows) == 14
    for go, python in rows:
        for theirs, ours in zip(
            re.findall(r"`(\w+)`", go), re.findall(r"`(\w+)`", python), strict=True
        ):
            assert re.sub(r"(?<!^)(?=[A-Z])", "_", theirs).lower() == ours
            assert callable(getattr(Router, ours))


# --- beside Go and Java programs


async def test_a_pod_of_another_make_is_seen(
    production: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    client = redis.cluster.RedisCluster.from_url(
        production.replace("redis+cluster", "redis").partition(",")[0], decode_responses=True
    )
    async with AsyncRouter.from_url(production) as router:
        with executed(block(OTHERS, "python", 0)) as theirs:
            assert theirs["take"](client, "ada", 6) == (True, 6)
            assert theirs["take"](client, "ada", 7) == (False, 6)
            theirs["beat"](client, 6, 0.25)
        with executed(block(OTHERS, "python", 1)) as ours:
            assert await ours["seen"](router) == {6: ("Running", 0.25)}
        assert (await router.route("production", "ada", "chat")).pod == 6
        assert await router.get_linked_pod_if_persist("production", "ada", "chat") == 6
        (pod,) = (await router.get_pods("production", "chat", fresh=True)).values()
        assert pod.age is not None
        assert pod.age < 10
    client.close()


# --- secure the store


def test_the_url_with_tls_is_one() -> None:
    with executed(block("docs/how-to/secure.md", "python", 0)) as names:
        made: list[str] = []
        names["AsyncRouter"] = type("Router", (), {"from_url": staticmethod(made.append)})
        names["connect"]("s3cret")
    (url,) = made
    assert urlsplit(url).scheme == "rediss+cluster"
    assert list(parse_qs(urlsplit(url).query)) == ["ssl_ca_certs"]
    # Read without the file: that is the reader's.
    assert target_of_url(url.partition("?")[0]).cluster


# --- keys


def test_the_slot_is_that_of_the_keys() -> None:
    with executed(block("docs/reference/keys.md", "python", 0)) as names:
        for uid in ("ada", "ü", "a:b"):
            assert names["slot"]("production", uid) == slot_of(f"sf:{{production:lk:{uid}}}chat")
