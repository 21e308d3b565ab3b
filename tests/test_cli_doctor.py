"""``sfroute doctor``: it finds each defect that is planted, and nothing where nothing is wrong."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import Operator, Outcome, sfroute
from support.rights import PASSWORD, give_rights, rule_of, url_of

from sfroute import Pod, Router
from sfroute._contract.keys import SLOTS, link_key, link_prefix, slot_of, state_key, workload_key
from sfroute._net.connection import Address
from sfroute.cli.doctor.data import View, judge_pods
from sfroute.cli.doctor.findings import Check
from sfroute.cli.doctor.rights import Kind, acl_name, rights
from sfroute.cli.doctor.server_facts import Clock, ServerFacts
from sfroute.cli.doctor.servers import judge_servers
from sfroute.cli.keyspace import judge_link
from sfroute.embedded import LocalCluster

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "secure.md"


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


def checks(done: Outcome) -> dict[str, Any]:
    return {check["check"]: check for check in done.json_lines}


def examine(operator: Operator, *arguments: str) -> dict[str, Any]:
    """The checks by name."""
    return checks(operator("doctor", "--json", *arguments))


def told(check: Any) -> str:
    """All that it says."""
    return json.dumps(check)


def execute(cluster: LocalCluster, key: str, *command: str | int) -> None:
    """A command of another program, at the key's primary."""
    cluster.execute(cluster.primary_of(key), command[0], key, *command[1:])


def beat(operator: Operator, pod: int, seconds_ago: float = 0, status: str = "Running") -> None:
    at = int((time.time() - seconds_ago) * 1000)
    operator.report(pod, json.dumps({"status": status, "at": at}))


# --- all is well


def test_nothing_is_found_where_nothing_is_wrong(sfroute_namespace: str) -> None:
    with LocalCluster(3, 1) as cluster, Router.from_url(cluster.url) as router:
        operator = Operator(router, cluster.url, sfroute_namespace)
        for node in cluster.nodes:
            node.commands(("CONFIG", "SET", "appendonly", "yes"))
        for number in range(50):
            operator.link(f"user-{number}", number % 2, 500 if number % 3 else -1)
        operator.router.set_workload_state(operator.namespace, "chat", "Busy")
        beat(operator, 0)
        beat(operator, 1)
        done = operator("doctor", "--strict", "--json")
        assert done.code == 0
        assert {check["verdict"] for check in done.json_lines} == {"ok"}
        assert [check["check"] for check in done.json_lines] == [
            *("servers", "slots", "replicas", "versions", "clocks", "memory", "disks"),
            *("fleet", "rights", "tracking", "scripts", "lookups", "keys", "pods", "links"),
        ]
        assert "50 links" in checks(done)["keys"]["summary"]
        assert "3 of 3 lanes" in checks(done)["tracking"]["summary"]
        # It has changed nothing.
        assert operator("doctor", "--json").json_lines[12] == done.json_lines[12]
        # Where three runs took longer than the pods' timeout, their silence would be found.
        beat(operator, 0)
        beat(operator, 1)
        text = operator("doctor")
        assert (text.code, text.err) == (0, "")
        assert text.lines[-1] == "0 errors, 0 warnings"


def test_warnings_alone_are_no_failure_unless_it_is_strict(operator: Operator) -> None:
    # The cluster of these tests has no replicas.
    done = operator("doctor")
    assert done.code == 0
    assert "if such a primary dies, its links are lost" in done.out
    assert "-> add a replica to each primary" in done.out
    assert operator("doctor", "--strict").code == 1


def test_without_a_namespace_only_the_servers_are_looked_at(operator: Operator) -> None:
    done = sfroute("doctor", "--json", "--url", operator.url)
    assert done.code == 0
    assert checks(done)["data"]["verdict"] == "skipped"
    assert not {"keys", "pods", "rights"} & checks(done).keys()


# --- keys


def test_keys_of_the_wrong_type_are_found(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    ns = operator.namespace
    execute(sfroute_cluster, link_key(ns, "secret-ada", "chat"), "HSET", "a", "b")
    execute(sfroute_cluster, link_prefix(ns, "secret-bob"), "SET", "1")
    execute(sfroute_cluster, state_key(ns, "chat"), "SET", "Running")
    execute(sfroute_cluster, workload_key(ns, "chat"), "LPUSH", "Busy")
    done = operator("doctor", "--json")
    assert done.code == 1
    (finding,) = checks(done)["keys"]["findings"]
    assert finding["severity"] == "error"
    assert finding["text"].startswith("keys of the wrong type: 4, such as sf:{")
    assert "delete the key" in finding["remedy"]
    assert "secret" not in done.out + done.err
    # Links to a service whose states cannot be read are said nothing of.
    operator.link("grace", 1)
    operator.router.set_linked_pod(ns, "grace", "game", 1)
    found = examine(operator)
    assert found["pods"]["verdict"] == "error"
    assert "sf:{" + ns + ":state:chat} holds" in told(found["pods"])
    assert "'chat'" not in told(found["links"])
    assert "1 link of 'game'" in told(found["links"])
    shown = told(examine(operator, "--show-uids")["keys"])
    assert link_key(ns, "secret-ada", "chat") in shown
    assert link_prefix(ns, "secret-bob") in shown


def test_values_that_are_no_pod_ids_are_found(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    ns = operator.namespace
    execute(sfroute_cluster, link_key(ns, "ada", "chat"), "SET", "soon")
    execute(sfroute_cluster, link_prefix(ns, "bob"), "HSET", "chat", "99999999999999999999")
    check = examine(operator)["keys"]
    assert check["verdict"] == "error"
    assert "keys that hold something that is no pod id: 2, such as " in told(check)


def test_disagreements_of_link_and_hash_are_found(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    ns = operator.namespace
    for uid in ("fine", "unlisted", "differs", "orphan"):
        operator.link(uid, 1)
    operator.link("temporary", 1, 500)
    execute(sfroute_cluster, link_prefix(ns, "unlisted"), "DEL")
    execute(sfroute_cluster, link_prefix(ns, "differs"), "HSET", "chat", 2)
    execute(sfroute_cluster, link_key(ns, "orphan", "chat"), "DEL")
    execute(sfroute_cluster, link_prefix(ns, "temporary"), "HSET", "chat", 1)
    check = examine(operator, "--show-uids")["keys"]
    assert check["verdict"] == "warning"
    texts = [finding["text"] for finding in check["findings"]]
    assert texts == [
        f"{words}: 1, such as {link_key(ns, uid, 'chat')}"
        for uid, words in (
            ("unlisted", "persistent links that the uid's hash does not list"),
            ("differs", "persistent links for which the uid's hash names another pod"),
            ("temporary", "temporary links that the uid's hash lists as persistent"),
            ("orphan", "entries of a uid's hash without a link"),
        )
    ]
    # The remedies help.
    for uid in ("unlisted", "differs", "temporary"):
        assert operator("link", "set", uid, "1").code == 0
    assert operator("link", "remove", "orphan").code == 3
    assert examine(operator)["keys"]["verdict"] == "ok"


def test_links_that_change_all_the_while_are_no_disagreement(operator: Operator) -> None:
    ended = threading.Event()

    def change() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            operator.link(f"user-{number % 50}", number % 3, 500 if number % 2 else -1)

    other = threading.Thread(target=change)
    other.start()
    try:
        for _ in range(5):
            assert examine(operator)["keys"]["findings"] == []
    finally:
        ended.set()
        other.join()


# --- pods and links


def test_links_to_dead_pods_and_silent_pods_are_found(operator: Operator) -> None:
    beat(operator, 0)
    beat(operator, 1, seconds_ago=60)
    beat(operator, 2, status="Stopped")
    for number in range(8):
        operator.link(f"user-{number}", number % 4)
    found = examine(operator)
    assert [finding["text"] for finding in found["links"]["findings"]] == [
        found["links"]["findings"][0]["text"],
        "2 links of 'chat' to pod 2, which is dead (status 'Stopped')",
        "2 links of 'chat' to pod 3, which is dead (not reported)",
    ]
    assert "to pod 1, which is dead (last heartbeat 6" in told(found["links"])
    assert "sfroute evacuate 2 --service chat" in told(found["links"])
    (silent,) = found["pods"]["findings"]
    assert silent["text"].startswith("pod 1 of 'chat' is silent: its last heartbeat was 6")
    # Without the keys the pods of the given service are looked at.
    assert examine(operator, "--no-keys")["pods"]["verdict"] == "warning"
    assert examine(operator, "--no-keys")["links"]["verdict"] == "skipped"
    # Whoever is more patient finds that pod alive.
    assert examine(operator, "--pod-timeout", "90")["pods"]["findings"] == []


def test_pods_without_heartbeat_and_states_that_cannot_be_read_are_found(
    operator: Operator,
) -> None:
    operator.report(0)
    operator.report(1, "who knows")
    texts = told(examine(operator)["pods"])
    assert "pods 0 of 'chat' send no heartbeat: nobody notices when they die" in texts
    assert "the states of pods 1 of 'chat' cannot be read: they get no new users" in texts


def test_a_service_that_takes_nobody_is_an_error(operator: Operator) -> None:
    operator.report(0, "Draining")
    check = examine(operator)["pods"]
    assert check["verdict"] == "error"
    assert "no pod of 'chat' takes new users: route() fails for them" in told(check)


def test_links_of_a_service_whose_pods_do_not_report_are_found(operator: Operator) -> None:
    operator.link("ada", 1)
    assert "no pod of it reports a state" in told(examine(operator)["links"])


def test_remedies_name_the_service_whatever_the_environment_says(operator: Operator) -> None:
    service = "team chat"
    ns = operator.namespace
    operator.router.set_service_state(ns, service, 1, json.dumps({"status": "Running", "at": 1}))
    operator.router.set_linked_pod(ns, "ada", service, 1)
    found = checks(operator("doctor", "--json", SFROUTE_SERVICE="echo"))
    remedies = [
        finding["remedy"] for name in ("pods", "links") for finding in found[name]["findings"]
    ]
    for remedy, command in zip(
        remedies, ("state set 1 Stopped", "pods", "evacuate 1"), strict=True
    ):
        assert remedy.endswith(f"sfroute {command} --service 'team chat' --namespace {ns}")
    # As it says, so it is done.
    _, _, line = remedies[0].rpartition("; if it is gone for good, sfroute ")
    assert operator(*shlex.split(line), SFROUTE_SERVICE="echo").code == 0
    assert operator.router.get_service_state(ns, service) == {1: "Stopped"}
    assert operator.router.get_service_state(ns, "echo") == {}


# --- rights


def as_user(operator: Operator, cluster: LocalCluster, rule: list[str]) -> Operator:
    """Somebody with these rights only."""
    give_rights(cluster, "somebody", rule)
    return Operator(operator.router, url_of(operator.url, "somebody"), operator.namespace)


@pytest.mark.parametrize("kind", Kind)
def test_the_rights_of_each_kind_of_program_suffice(
    operator: Operator, sfroute_cluster: LocalCluster, kind: Kind
) -> None:
    beat(operator, 0)
    rule = rule_of(kind, operator.namespace)
    somebody = as_user(operator, sfroute_cluster, rule)
    keys = () if kind is Kind.OPERATOR else ("--no-keys",)
    done = somebody("doctor", "--user", kind.value, "--json", *keys)
    assert done.code == 0
    found = checks(done)
    assert found["rights"]["findings"] == []
    assert found["rights"]["verdict"] == found["tracking"]["verdict"] == "ok"
    assert PASSWORD not in done.out + done.err
    # What a user may not ask is said to be unknown, not to be well.
    less = as_user(operator, sfroute_cluster, [right for right in rule if right != "+info"])
    found = checks(less("doctor", "--user", kind.value, "--json", *keys))
    assert {found[name]["verdict"] for name in ("versions", "memory", "disks")} == {"skipped"}
    assert "no right to INFO" in told(found["rights"])


@pytest.mark.parametrize(
    ("taken", "kind", "severity", "text"),
    [
        ("+hexists", Kind.GATEWAY, "error", "no right to HEXISTS on the hashes of uids at"),
        ("+pttl", Kind.POD, "error", "no right to PTTL on links at"),
        ("+scan", Kind.OPERATOR, "error", "no right to SCAN at"),
        ("+client|tracking", Kind.OPERATOR, "warning", "no right to CLIENT TRACKING at"),
        ("~sf:op:{NS:lk:*", Kind.OPERATOR, "error", "operation records (sf:op:*) at"),
        ("~sf:own:{NS:lk:*", Kind.POD, "error", "claim records (sf:own:*) at"),
        ("+eval", Kind.POD, "error", "no right to EVAL at"),
        # For states it has the right still.
        ("+eval", Kind.GATEWAY, "error", "no right to EVAL on links at"),
    ],
)
def test_each_right_that_is_missing_is_named(
    operator: Operator,
    sfroute_cluster: LocalCluster,
    taken: str,
    kind: Kind,
    severity: str,
    text: str,
) -> None:
    rule = rule_of(kind, operator.namespace)
    rule.remove(taken.replace("NS:", f"{operator.namespace}:"))
    somebody = as_user(operator, sfroute_cluster, rule)
    check = examine(somebody, "--user", kind.value, "--no-keys")["rights"]
    assert text in told(check)
    assert {finding["severity"] for finding in check["findings"]} == {severity}
    assert check["findings"][0]["text"].count("127.0.0.1") == 3


def test_the_rights_are_those_of_the_page_on_security() -> None:
    """Command by command; who needs which."""
    page = PAGE.read_text(encoding="utf-8")
    for kind in Kind:
        (rule,) = re.findall(rf"ACL SETUSER {kind} (.*?)(?:\n\n|\n```)", page, re.DOTALL)
        on_page = set(re.findall(r"\+([a-z|]+)", rule))
        asked = {acl_name(right) for right in rights("n", kind, cluster=True)}
        assert asked == on_page, kind


def test_tracking_that_is_refused_is_found(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    rule = rule_of(Kind.OPERATOR, operator.namespace)
    rule.remove("+client|tracking")
    somebody = as_user(operator, sfroute_cluster, rule)
    check = examine(somebody, "--no-keys")["tracking"]
    assert check["verdict"] == "warning"
    assert "0 of 3 lanes hear of changes" in check["summary"]


# --- servers


def test_a_store_that_is_not_there_is_a_finding() -> None:
    url = "redis+cluster://user:hunter2@127.0.0.1:1,127.0.0.1:2"
    done = sfroute("doctor", "--json", "--namespace", "n", SFROUTE_URL=url)
    assert done.code == 1
    (check,) = done.json_lines
    assert check["verdict"] == "error"
    assert "127.0.0.1:1 did not answer (Connection refused)" in told(check)
    assert "hunter2" not in done.out + done.err
    text = sfroute("doctor", "--namespace", "n", SFROUTE_URL=url)
    assert text.lines[-1] == "1 error, 0 warnings"


def test_a_wrong_password_is_a_finding(operator: Operator, sfroute_cluster: LocalCluster) -> None:
    as_user(operator, sfroute_cluster, rule_of(Kind.OPERATOR, operator.namespace))
    url = operator.url.replace("://", "://somebody:hunter2@")
    done = sfroute("doctor", "--namespace", "n", "--url", url)
    assert done.code == 1
    assert "check user name" in done.out
    assert "hunter2" not in done.out + done.err


@pytest.mark.slow
def test_slots_that_nobody_serves_a_hanging_server_and_a_start_node_that_is_gone(
    sfroute_namespace: str,
) -> None:
    config = {"cluster-require-full-coverage": "no", "maxmemory": "50mb"}
    with LocalCluster(
        2, 1, node_timeout_ms=30_000, extra_config={**config, "maxmemory-policy": "allkeys-lru"}
    ) as cluster:
        first, second, *_ = (node for node in cluster.nodes if node.role == "primary")
        for node in cluster.nodes:
            if node.role == "primary":
                node.commands(("CLUSTER", "DELSLOTS", slot_of("a")))
        replica = cluster.replica_of(first)
        cluster.pause(replica)
        url = f"{cluster.url},127.0.0.1:1"
        done = sfroute("doctor", "--json", "--url", url, "--namespace", sfroute_namespace)
        cluster.resume(replica)
        assert second.role == "primary"
    assert done.code == 1
    found = checks(done)
    assert f"1 of {SLOTS} slots are served by no server, slot {slot_of('a')} first" in told(
        found["slots"]
    )
    servers = told(found["servers"])
    assert f"the server 127.0.0.1:{replica.port} does not answer (no answer in time)" in servers
    assert "the start node 127.0.0.1:1 did not answer" in servers
    assert "throws keys away when its memory is full (allkeys-lru" in told(found["memory"])


# --- judgements that no server here can be brought to deserve


def server(port: int, **facts: Any) -> ServerFacts:
    info = facts.pop("info", {"redis_version": "7.0.15", "connected_slaves": 1})
    return ServerFacts(
        Address("10.0.0.1", port), primary=True, slots=[range(SLOTS)], info=info, **facts
    )


def judged(*servers: ServerFacts) -> dict[str, Check]:
    found = judge_servers(servers, cluster=True, silent={}, pod_timeout=6.0)
    return {check.name: check for check in found}


@pytest.mark.parametrize(
    ("ahead", "error", "verdict"),
    [
        (0.4, 0.0, "ok"),
        (0.7, 0.0, "warning"),
        (0.7, 0.2, "ok"),
        (3.0, 0.0, "error"),
        (-3.0, 0.0, "error"),
    ],
)
def test_clocks_apart_by_more_than_the_network_explains_are_found(
    ahead: float, error: float, verdict: str
) -> None:
    # That this machine's own clock is wrong by an hour is nobody's fault.
    clocks = [Clock(3600.0, error), Clock(3600.0 + ahead, error)]
    check = judged(server(1, clock=clocks[0]), server(2, clock=clocks[1]))["clocks"]
    assert check.verdict == verdict


@pytest.mark.parametrize(
    ("version", "verdict"),
    [("9.1.2", "ok"), ("7.0.15", "ok"), ("6.2.5", "warning"), ("6.0.16", "error"), ("", "skipped")],
)
def test_old_servers_are_found(version: str, verdict: str) -> None:
    assert judged(server(1, info={"redis_version": version}))["versions"].verdict == verdict


def test_servers_of_different_versions_are_found() -> None:
    both = judged(
        server(1, info={"redis_version": "7.0.15"}), server(2, info={"redis_version": "7.2.4"})
    )
    assert both["versions"].verdict == "warning"


def test_failed_nodes_and_broken_replication_are_found() -> None:
    found = judged(
        server(1, failing=["10.0.0.9:6379"], cluster_state="fail"),
        server(2, info={"redis_version": "7.0.15", "master_link_status": "down"}),
    )
    assert "the cluster has given up 10.0.0.9:6379" in str(found["servers"])
    assert found["slots"].verdict == "error"
    assert "not connected to its primary is 10.0.0.1:2" in str(found["replicas"])


def test_a_pod_that_stopped_in_order_is_not_silent() -> None:
    pods = {0: Pod(0, "Running", None, 1.0), 1: Pod(1, "Stopped", None, 900.0)}
    assert judge_pods(View("n", {"chat": pods}), None, 6.0)[0].verdict == "ok"


@pytest.mark.parametrize(
    ("replies", "flaw"),
    [
        ((b"1", -1, b"1"), None),
        ((b"1", 500, None), None),
        ((None, -2, None), None),
        ((None, -2, b"1"), None),
        ((b"1", -1, None), "unlisted"),
        ((b"1", -1, b"2"), "differs"),
        ((b"1", 500, b"1"), "temporary"),
        ((b"1", -2, b"1"), None),
        ((b"-1", -1, b"-1"), "value"),
        ((b"", -1, None), "value"),
        ((ConnectionError("gone"), None, None), None),
    ],
)
def test_a_link_is_judged_by_its_value_its_time_and_its_entry(
    replies: tuple[Any, Any, Any], flaw: str | None
) -> None:
    assert judge_link(*replies) == flaw
