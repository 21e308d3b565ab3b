"""``sfroute gateways``: who is connected, and where routers differ. Nothing that a client says commands a terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import redis
from support.command import Outcome, sfroute
from support.rights import PASSWORD, give_rights, rule_of, url_of

from sfroute import CacheConfig, PlacementConfig, Router, RouterConfig
from sfroute._contract.introduction import AGENT_NAME, Introduction, introduce
from sfroute._contract.keys import CONTRACT_VERSION
from sfroute._version import __version__
from sfroute.cli.clients import Clients, ConnectedRouter, Program, differing
from sfroute.cli.gateways import show_all, write_json
from sfroute.embedded import LocalCluster

QUICK = CacheConfig(heartbeat=0.05, heartbeat_timeout=30.0)


@pytest.fixture(scope="module")
def cluster(server_binary: str | None) -> Iterator[LocalCluster]:
    with LocalCluster(2, 0, server_binary=server_binary) as cluster:
        yield cluster


def gateways(cluster: LocalCluster, *arguments: str) -> Outcome:
    return sfroute("gateways", "--url", cluster.url, *arguments)


def known(cluster: LocalCluster, name: str) -> list[dict[str, Any]]:
    """The routers of this name."""
    return [
        line for line in gateways(cluster, "--json", "--name", name).json_lines if line["router"]
    ]


def opened(stack: ExitStack, cluster: LocalCluster, name: str, **placement: Any) -> Router:
    """A router with a connection to each primary."""
    config = RouterConfig(client_name=name, cache=QUICK, placement=PlacementConfig(**placement))
    router = stack.enter_context(Router.from_url(cluster.url, config=config))
    for number in range(20):
        router.get_linked_pod("n", f"user-{number}", "chat")
    return router


def pretend(stack: ExitStack, cluster: LocalCluster, name: str) -> None:
    """A client at the first node that says this of itself."""
    client = redis.Redis(port=cluster.nodes[0].port, single_connection_client=True)
    stack.callback(client.close)
    client.client_setname(name)


def test_routers_that_are_alike_are_shown_with_what_they_do(cluster: LocalCluster) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            opened(stack, cluster, "alike")
        done = gateways(cluster, "--name", "alike")
        assert (done.code, done.err) == (0, "")
        assert "2 routers, all alike" in done.lines
        assert "DIFFERS" not in done.out
        first, second = known(cluster, "alike")
        assert first["router"] != second["router"]
        assert (first["version"], first["contract"]) == (__version__, str(CONTRACT_VERSION))
        assert first["hosts"] == ["127.0.0.1"]
        assert first["settings"]["pod_timeout"] == "6"
        assert first["differs"] == []
        assert len(first["servers"]) == 2


def test_the_odd_one_is_marked_and_the_exit_code_is_3(cluster: LocalCluster) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            opened(stack, cluster, "odd")
        opened(stack, cluster, "odd", pod_timeout=9.0, all_silent="move")
        done = gateways(cluster, "--name", "odd")
        assert done.code == 3
        (odd,) = (line["router"] for line in known(cluster, "odd") if line["differs"])
        (marked,) = [line for line in done.lines if line.startswith(odd)]
        assert marked.endswith("in 2")
        (told,) = [line for line in done.lines if line.startswith("pod_timeout: 6 at ")]
        assert told.endswith(f"9 at {odd}")
        assert sorted(line["differs"] for line in known(cluster, "odd")) == [
            [],
            [],
            ["pod_timeout", "all_silent"],
        ]


def test_of_two_that_differ_neither_is_the_odd_one(cluster: LocalCluster) -> None:
    with ExitStack() as stack:
        opened(stack, cluster, "two")
        opened(stack, cluster, "two", settle=1.0)
        assert [line["differs"] for line in known(cluster, "two")] == [["settle"], ["settle"]]


def test_a_router_says_how_many_answers_it_has_and_how_slow_its_heartbeat_is(
    cluster: LocalCluster,
) -> None:
    with ExitStack() as stack:
        router = opened(stack, cluster, "figures")
        tracked = [lane.tracked for lane in router.stats().lanes]
        end = time.monotonic() + 60
        while True:
            (line,) = known(cluster, "figures")
            if line["entries"] == 20 and line["lag_ms"] is not None:
                break
            assert time.monotonic() < end, line
            time.sleep(0.2)
        assert len(line["pushed_by"]) == sum(tracked)


def test_a_report_leaves_tracking_as_it_was(cluster: LocalCluster) -> None:
    """It is made by HELLO, on the connection that the server pushes to."""
    with ExitStack() as stack:
        router, other = (opened(stack, cluster, name) for name in ("pushed", "other"))
        if not all(lane.tracked for lane in router.stats().lanes):
            pytest.skip("this server pushes nothing")
        end = time.monotonic() + 60
        while not any(line["entries"] for line in known(cluster, "pushed")):
            assert time.monotonic() < end
        assert router.get_linked_pod("n", "ada", "chat") is None
        other.set_linked_pod("n", "ada", "chat", 2)
        before = router.stats().cache.invalidations
        while router.stats().cache.invalidations == before:
            assert time.monotonic() < end
            other.set_linked_pod("n", "ada", "chat", 2)
            router.get_linked_pod("n", "ada", "chat")
        assert all(lane.tracked and lane.healthy for lane in router.stats().lanes)
        assert all(lane.reconnects == 0 for lane in router.stats().lanes)


def test_other_programs_come_as_client_list_has_them(cluster: LocalCluster) -> None:
    with ExitStack() as stack:
        pretend(stack, cluster, "go-gateway")
        done = gateways(cluster)
        (line,) = [line for line in done.lines if line.startswith("go-gateway")]
        assert "127.0.0.1" in line
        (found,) = [
            line for line in gateways(cluster, "--json").json_lines if line["name"] == "go-gateway"
        ]
        assert (found["router"], found["connections"]) == (None, 1)
        # redis-py says what it is, since Redis 7.2.
        assert found["library"].startswith("redis-py") or found["library"] == ""


def test_another_wire_contract_and_an_unknown_setting_are_differences(
    cluster: LocalCluster,
) -> None:
    with ExitStack() as stack:
        opened(stack, cluster, "later")
        later = introduce(RouterConfig(client_name="later"), "77").replace(
            f"contract={CONTRACT_VERSION}", "contract=9"
        )
        pretend(stack, cluster, later + ";novelty=1")
        done = gateways(cluster, "--name", "later")
        assert done.code == 3
        assert "(contract 9)" in done.out
        (own,) = (line["router"] for line in known(cluster, "later") if line["router"] != "77")
        assert f"contract: {CONTRACT_VERSION} at {own}; 9 at 77" in done.lines
        assert f"novelty: 1 at 77; ? at {own}" in done.lines
        found = [
            check
            for check in sfroute("doctor", "--json", "--url", cluster.url).json_lines
            if check["check"] == "fleet"
        ]
        assert found[0]["verdict"] == "warning"
        assert "wire contract differs" in found[0]["findings"][0]["text"]


def test_the_doctor_says_how_many_are_connected(cluster: LocalCluster) -> None:
    with ExitStack() as stack:
        opened(stack, cluster, "seen")
        checks = sfroute("doctor", "--json", "--url", cluster.url).json_lines
    (fleet,) = [check for check in checks if check["check"] == "fleet"]
    assert fleet["verdict"] == "ok"
    assert fleet["summary"] == f"1 router connected, of sfroute {__version__}"


def test_the_doctor_warns_of_settings_that_differ(cluster: LocalCluster) -> None:
    with ExitStack() as stack:
        for pod_timeout in (6.0, 6.0, 9.0):
            opened(stack, cluster, "differing", pod_timeout=pod_timeout)
        done = sfroute("doctor", "--json", "--url", cluster.url)
        strict = sfroute("doctor", "--strict", "--url", cluster.url)
    (fleet,) = [check for check in done.json_lines if check["check"] == "fleet"]
    (finding,) = fleet["findings"]
    assert (done.code, finding["severity"], strict.code) == (0, "warning", 1)
    assert finding["text"] == "the routers differ in pod_timeout: 6 at 2 routers, 9 at 1 router"
    assert "sfroute gateways" in finding["remedy"]


def test_the_defaults_of_an_agent_which_places_nobody_are_no_difference(
    cluster: LocalCluster,
) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            opened(stack, cluster, "patient", pod_timeout=9.0)
        opened(stack, cluster, AGENT_NAME)
        assert gateways(cluster).code == 0
        checks = sfroute("doctor", "--json", "--url", cluster.url).json_lines
        assert [check["findings"] for check in checks if check["check"] == "fleet"] == [[]]
        # Its version does count.
        older = introduce(RouterConfig(client_name=AGENT_NAME), "77")
        pretend(stack, cluster, older.replace(__version__, "0.0.1"))
        done = gateways(cluster)
        assert done.code == 3
        assert any(line.startswith(f"version: {__version__} at ") for line in done.lines)
        assert not any(line.startswith("pod_timeout: ") for line in done.lines)


def test_a_long_name_is_shortened(cluster: LocalCluster) -> None:
    with ExitStack() as stack:
        pretend(stack, cluster, "x" * 5000)
        shown = gateways(cluster)
        assert "x" * 41 not in shown.out
        assert "x" * 37 + "..." in shown.out


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_what_clients_say_commands_no_terminal(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    """Servers refuse controls in names. Whoever answers in a server's place may not."""
    evil = "\x1b[2J\u202e"
    said = Introduction(evil, evil, evil, evil, {"max_age": evil})
    routers = [ConnectedRouter(said, {evil}, idle=0), ConnectedRouter(replace(said, settings={}))]
    found = Clients(routers, {Program(evil, evil): Counter({evil: 1})})
    write = write_json if as_json else show_all
    write(found, routers, differing(routers))
    shown = capsys.readouterr().out
    assert shown.count("u202e") > 5
    assert not {"\x1b", "\u202e"} & set(shown)


def test_no_router_is_told_with_3(cluster: LocalCluster) -> None:
    done = gateways(cluster, "--name", "nobody")
    assert done.code == 3
    assert "no router is connected under the name 'nobody'" in done.err


def test_the_command_itself_is_no_gateway(cluster: LocalCluster) -> None:
    config = RouterConfig(client_name="sfroute-cli")
    with Router.from_url(cluster.url, config=config) as router:
        router.get_linked_pod("n", "ada", "chat")
        assert "sfroute-cli" not in gateways(cluster, "--json").out


def test_a_missing_right_is_named_and_a_gateway_needs_none_to_say_what_it_is(
    cluster: LocalCluster,
) -> None:
    selectors = cluster.server_name == "valkey" or not cluster.server_version.startswith("6.")
    give_rights(cluster, "gateway", rule_of("gateway", "n", selectors=selectors))
    give_rights(cluster, "operator", rule_of("operator", "n"))
    config = RouterConfig(client_name="poor", cache=QUICK)
    with Router.from_url(url_of(cluster.url, "gateway"), config=config) as router:
        router.get_linked_pod("n", "ada", "chat")
        end = time.monotonic() + 60
        while not any(line["entries"] for line in known(cluster, "poor")):
            assert time.monotonic() < end
        refused = sfroute("gateways", "--url", url_of(cluster.url, "operator"))
        assert refused.code == 1
        assert "NOPERM" in refused.err
        assert "+client|list" in refused.err
        assert PASSWORD not in refused.out + refused.err
        fleet = sfroute("doctor", "--json", "--url", url_of(cluster.url, "operator")).json_lines
        (check,) = [check for check in fleet if check["check"] == "fleet"]
        assert check["verdict"] == "skipped"
        give_rights(cluster, "operator", [*rule_of("operator", "n"), "+client|list"])
        allowed = sfroute("gateways", "--url", url_of(cluster.url, "operator"), "--name", "poor")
        assert (allowed.code, allowed.err) == (0, "")
        assert PASSWORD not in gateways(cluster, "--json").out
