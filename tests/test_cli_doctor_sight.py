"""``sfroute doctor`` says nothing of what it has not seen: outages, names that no call accepts, empty namespaces."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support.command import Operator, Outcome, environment, sfroute

from sfroute import Router
from sfroute._contract.keys import link_prefix, state_key
from sfroute.embedded import LocalCluster


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


def checks(done: Outcome) -> dict[str, Any]:
    return {check["check"]: check for check in done.json_lines}


def test_python_runs_the_package_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sfroute", "--version"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sfroute ")


@pytest.mark.slow
def test_in_a_partial_outage_nothing_unseen_is_ok(sfroute_namespace: str) -> None:
    with LocalCluster(3, 0) as cluster, Router.from_url(cluster.url) as router:
        operator = Operator(router, cluster.url, sfroute_namespace)
        operator.report(0)
        for number in range(30):
            operator.link(f"user-{number}", 0)
        gone = cluster.primary_of(state_key(sfroute_namespace, "chat"))
        gone.signal(signal.SIGSTOP)
        try:
            done = operator("doctor", "--json")
        finally:
            gone.signal(signal.SIGCONT)
    found = checks(done)
    assert done.code == 1
    for name in ("servers", "slots", "keys", "pods"):
        assert found[name]["verdict"] == "error", found[name]
    assert found["links"]["verdict"] != "ok"
    assert "16384 of" not in found["slots"]["summary"]
    assert "not all could be seen" in found["keys"]["summary"]
    assert "asking the servers" in done.err
    assert str(gone.port) in json.dumps(found["keys"])
    # The servers are what is wrong, not the rights.
    assert "see the rights" not in done.out


def test_a_mistyped_namespace_is_told_with_those_there_are(operator: Operator) -> None:
    operator.report(0)
    mistyped = operator("doctor", "--json", SFROUTE_NAMESPACE=operator.namespace + "x")
    check = checks(mistyped)["keys"]
    assert check["verdict"] == "warning"
    assert f"namespace '{operator.namespace}x' has no keys" in json.dumps(check)
    assert operator.namespace in check["findings"][0]["text"].partition("those that have keys")[2]
    assert operator("doctor", "--strict", SFROUTE_NAMESPACE=operator.namespace + "x").code == 1


def test_names_that_no_call_accepts_are_counted_and_never_shown(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    ns = operator.namespace
    operator.link("fine", 1)
    operator.report(1)

    def write(key: str | bytes, *words: str) -> None:
        text = key.decode("latin-1") if isinstance(key, bytes) else key
        sfroute_cluster.execute(sfroute_cluster.primary_of(text), words[0], key, *words[1:])

    write(f"sf:{{{ns}:lk:ev}}il}}chat", "SET", "1")
    write(f"sf:{{{ns}:lk:ev}}il}}", "HSET", "chat", "1")
    write(f"sf:{{{ns}:lk:ada}}ch}}at", "SET", "1")
    write(link_prefix(ns, "bell\x07") + "chat", "SET", "1")
    write(f"sf:{{{ns}:state:ch}}at}}", "HSET", "1", "Running")
    done = operator("doctor", "--json")
    assert done.code == 1
    check = checks(done)["keys"]
    (finding,) = check["findings"]
    assert finding["text"].endswith(": 5")
    assert "no call accepts" in finding["text"]
    assert not {"il", "bell", "ch}at"} & set(finding["text"].replace(":", " ").split())
    assert "ev}" not in done.out + done.err
    assert checks(done)["pods"]["summary"].startswith("1 pod of 1 service (")
    shown = json.dumps(checks(operator("doctor", "--json", "--show-uids"))["keys"])
    assert "ev}il" in shown
    assert "\x07" not in operator("doctor", "--show-uids").out


def test_a_node_of_a_cluster_is_no_single_server(sfroute_cluster: LocalCluster) -> None:
    url = f"redis://127.0.0.1:{sfroute_cluster.nodes[0].port}"
    check = checks(sfroute("doctor", "--json", "--url", url))["slots"]
    assert check["verdict"] == "error"
    assert "redis+cluster://" in json.dumps(check)


def test_why_a_server_cannot_be_reached_is_told_as_other_commands_tell_it() -> None:
    done = sfroute("doctor", "--json", "--url", "redis://127.0.0.1:1")
    assert "Connection refused" in done.out


@pytest.mark.parametrize(
    ("user", "code"), [("", "NOAUTH"), ("somebody:wrong@", "WRONGPASS")], ids=["none", "wrong"]
)
def test_a_password_that_is_missing_is_told_from_one_that_is_wrong(user: str, code: str) -> None:
    with LocalCluster(1, 0, password="s3cret") as cluster:
        url = f"redis+cluster://{user}127.0.0.1:{cluster.nodes[0].port}"
        done = sfroute("doctor", "--json", "--url", url)
    assert done.code == 1
    assert f"({code})" in done.out


def test_an_eviction_policy_that_loses_links_is_an_error() -> None:
    with LocalCluster(1, 0) as cluster:
        node = cluster.nodes[0]
        node.commands(("CONFIG", "SET", "maxmemory", "100mb"))
        node.commands(("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"))
        check = checks(sfroute("doctor", "--json", "--url", cluster.url))["memory"]
        assert check["verdict"] == "error"
        assert "allkeys-lru" in json.dumps(check)
        node.commands(("CONFIG", "SET", "maxmemory-policy", "volatile-lru"))
        assert checks(sfroute("doctor", "--json", "--url", cluster.url))["memory"]["verdict"] == (
            "warning"
        )


def test_a_primary_that_may_come_back_empty_is_told() -> None:
    with LocalCluster(1, 0) as cluster:
        node = cluster.nodes[0]

        def said(url: str) -> str:
            return json.dumps(checks(sfroute("doctor", "--json", "--url", url))["disks"])

        assert "a primary comes back empty, and its replicas copy that: acknowledged" in said(
            cluster.url
        )
        node.commands(("CONFIG", "SET", "save", "3600 1 300 100"))
        assert "comes back as of its last snapshot (save 3600 1 300 100)" in said(cluster.url)
        # What cannot be seen is said.
        assert "its supervisor, which cannot be seen from here" in said(cluster.url)
        node.commands(("ACL", "SETUSER", "somebody", "on", ">x", "~*", "+@all", "-config|get"))
        url = cluster.url.replace("://", "://somebody:x@")
        assert "empty or as of its last snapshot (which, CONFIG GET would tell)" in said(url)
        node.commands(("CONFIG", "SET", "appendonly", "yes"))
        check = checks(sfroute("doctor", "--json", "--url", cluster.url))["disks"]
        assert check["verdict"] == "ok"
