"""The commands while slots are not served: one cause, in the operator's words, and nothing unseen is ok."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoAnswer
from support.command import Operator, Outcome

from sfroute import Router
from sfroute._contract.error_replies import meaning
from sfroute._contract.keys import SLOTS, claim_key, link_key, slot_of, state_key
from sfroute._net.dialer import Address
from sfroute.cli.doctor.data import judge_keys
from sfroute.cli.doctor.server_facts import ServerFacts
from sfroute.cli.doctor.servers import judge_servers
from sfroute.cli.keyspace import Keyspace
from sfroute.cli.nodes import code_of, trouble_at
from sfroute.embedded import LocalCluster
from sfroute.embedded._node import Node

CAUSE = f"answers CLUSTERDOWN: {meaning('CLUSTERDOWN')}"
RIGHT = "give the right"
SECONDS = 30.0


def checks(done: Outcome) -> dict[str, Any]:
    return {check["check"]: check for check in done.json_lines}


def told(check: Any) -> str:
    return json.dumps(check)


def uid_at(namespace: str, node: Node) -> str:
    """A user of one of the node's slots."""
    return next(
        uid
        for uid in (f"user-{number}" for number in range(1000))
        if any(slot_of(link_key(namespace, uid, "chat")) in part for part in node.slots)
    )


def until_down(node: Node) -> None:
    end = time.monotonic() + SECONDS
    while "cluster_state:fail" not in str(node.commands(("CLUSTER", "INFO"))[0]):
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def broken(namespace: str, *, whole: bool, state: bool = False) -> Iterator[tuple[Operator, Node]]:
    """A cluster that has lost a primary, and an operator at those that are left.

    ``whole``: without it none serves any slot. ``state``: the lost one has the pods' states.
    """
    with LocalCluster(3, 0, node_timeout_ms=500) as cluster:
        with Router.from_url(cluster.url) as router:
            operator = Operator(router, cluster.url, namespace)
            operator.report(0)
            for node in cluster.nodes:
                operator.link(uid_at(namespace, node), 0)
                key = claim_key(namespace, uid_at(namespace, node), "chat")
                node.commands(("SET", key, "1 0 life"))
            there = cluster.primary_of(state_key(namespace, "chat"))
        gone = next(node for node in cluster.nodes if (node is there) is state)
        left = [node for node in cluster.nodes if node is not gone]
        if not whole:
            for node in left:
                node.commands(("CONFIG", "SET", "cluster-require-full-coverage", "no"))
        cluster.kill(gone)
        if whole:
            for node in left:
                until_down(node)
        nodes = ",".join(f"127.0.0.1:{node.port}" for node in left)
        # The router is closed: who looks from now on has only what the servers say.
        yield Operator(router, f"redis+cluster://{nodes}", namespace), gone


def test_while_the_cluster_is_down_every_command_tells_the_same_cause(
    sfroute_namespace: str,
) -> None:
    with broken(sfroute_namespace, whole=True) as (operator, gone):
        elsewhere = next(
            uid
            for uid in (f"user-{number}" for number in range(1000))
            if not any(
                slot_of(link_key(operator.namespace, uid, "chat")) in part for part in gone.slots
            )
        )
        for command in (["where", elsewhere], ["link", "get", elsewhere], ["pods"], ["balance"]):
            done = operator(*command)
            assert done.code == 1, command
            assert CAUSE in done.err, command
            assert "sfroute doctor" in done.err, command
        done = operator("doctor", "--json")
        unlinked = operator("where", uid_at(operator.namespace, gone))
    found = checks(done)
    assert done.code == 1
    assert found["slots"]["summary"] == f"0 of {SLOTS} slots are served: calls fail for every user"
    assert "cluster-require-full-coverage" in told(found["slots"])
    assert "CLUSTERDOWN" in told(found["keys"])
    assert CAUSE in told(found["pods"])
    # What is wrong is no right, and nobody reads the names of classes.
    assert RIGHT not in done.out
    assert "Error" not in done.out
    for name in ("keys", "pods", "links", "versions", "clocks", "memory", "rights", "fleet"):
        assert found[name]["verdict"] != "ok", found[name]
    assert unlinked.code == 1
    assert f"127.0.0.1:{gone.port} cannot be reached (Connection refused)" in unlinked.err


def test_a_primary_that_is_gone_is_told_with_the_share_of_users(sfroute_namespace: str) -> None:
    with broken(sfroute_namespace, whole=False) as (operator, gone):
        lost = uid_at(operator.namespace, gone)
        cause = f"127.0.0.1:{gone.port} cannot be reached (Connection refused)"
        for command in (["where", lost], ["link", "get", lost], ["pods", "--links"], ["balance"]):
            done = operator(*command)
            assert done.code == 1, command
            assert cause in done.err, command
        none = operator("gateways")
        found = checks(operator("doctor", "--json"))
    assert "no router is connected to those that tell" in none.err
    served = SLOTS - sum(len(part) for part in gone.slots)
    assert found["slots"]["summary"] == (
        f"{served} of {SLOTS} slots are served: calls fail for about 33 % of the users"
    )
    assert found["tracking"]["verdict"] != "ok"


def test_what_can_be_read_is_told_though_the_states_cannot_be_read(sfroute_namespace: str) -> None:
    with broken(sfroute_namespace, whole=False, state=True) as (operator, gone):
        there = next(
            uid
            for uid in (f"user-{number}" for number in range(1000))
            if not any(
                slot_of(link_key(operator.namespace, uid, "chat")) in part for part in gone.slots
            )
        )
        done = operator("where", there)
        found = operator("where", there, "--json").json
        screen = operator("top", "--count", "1").out
    cause = f"127.0.0.1:{gone.port} cannot be reached (Connection refused)"
    rows = dict(line.split("\t", 1) for line in done.lines)
    assert (done.code, rows["link"]) == (0, "pod 0, persistent")
    assert rows["pod"].startswith("its state could not be read: ")
    assert cause in rows["pod"]
    assert cause in found["at_unread"]
    # What cannot be read has not been found missing.
    assert "the pods could not be read" in screen
    assert "no pod has reported" not in screen
    assert "links not counted" in screen
    assert "being counted" not in screen


def test_slots_without_a_server_hide_what_they_hold(sfroute_namespace: str) -> None:
    with LocalCluster(2, 0) as cluster, Router.from_url(cluster.url) as router:
        operator = Operator(router, cluster.url, sfroute_namespace)
        operator.report(0)
        operator.link("ada", 0)
        for node in cluster.nodes:
            node.commands(("CONFIG", "SET", "cluster-require-full-coverage", "no"))
        slot = slot_of(link_key(sfroute_namespace, "ada", "chat"))
        for node in cluster.nodes:
            node.commands(("CLUSTER", "DELSLOTS", slot))
        where, counted = operator("where", "ada"), operator("pods", "--links")
        found = checks(operator("doctor", "--json"))
    assert (where.code, counted.code) == (1, 1)
    assert f"no node serves slot {slot}" in where.err
    assert "sfroute doctor" in where.err
    assert f"no node serves 1 of {SLOTS} slots" in counted.err
    assert "nothing is known of the keys of 1 slot, which no server serves" in told(found["keys"])
    assert "less than 1 % of the users" in found["slots"]["summary"]
    assert found["links"]["verdict"] != "ok"


CODES = (
    "ASK BUSY CLUSTERDOWN CROSSSLOT EXECABORT LOADING MASTERDOWN MISCONF MOVED NOPERM NOSCRIPT OOM READONLY TRYAGAIN "
    "WRONGTYPE"
)


def as_redis_py_has_it(reply: str) -> Exception:
    """An error reply, in the class that redis-py has for it, which may hide its code."""
    parse: Any = BaseParser.parse_error
    error = parse(reply)
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize("code", CODES.split())
def test_every_code_is_told_as_the_server_said_it(code: str) -> None:
    text = "1 127.0.0.1:80" if code in ("ASK", "MOVED") else "a text with a uid in it"
    error = as_redis_py_has_it(f"{code} {text}")
    assert code_of(error) == code
    assert trouble_at(Address("a", 1), error).startswith(f"a:1 answers {code}")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (as_redis_py_has_it("ERR max number of clients reached"), "answers MAXCLIENTS"),
        (as_redis_py_has_it("ERR something else"), "answers ERR"),
        (NoAnswer("Timeout reading from a:1"), "does not answer (no answer in time)"),
        (NoConnection("Connection closed by server."), "cannot be reached (no connection)"),
        (RedisError("whatever"), "cannot be reached (no usable answer)"),
    ],
    ids=["full", "other", "silent", "closed", "unknown"],
)
def test_no_trouble_is_told_by_the_name_of_a_class(error: Exception, words: str) -> None:
    assert trouble_at(Address("a", 1), error).startswith(f"a:1 {words}")


def test_claims_that_nobody_could_read_are_no_missing_right() -> None:
    seen = Keyspace(scanned=1, refused=2, unread={"a:1": "CLUSTERDOWN", "b:2": "NOPERM"})
    check = judge_keys(seen, "shop", [], show_uids=False)
    remedies = {finding.text: finding.remedy for finding in check.findings}
    (down,) = [text for text in remedies if "CLUSTERDOWN" in text]
    assert remedies[down].startswith("see what is said of the servers and the slots above")
    (refused,) = [text for text in remedies if "NOPERM" in text]
    assert RIGHT in remedies[refused]


def at(port: int, slots: range, **facts: Any) -> ServerFacts:
    return ServerFacts(Address("10.0.0.1", port), True, [slots], **facts)


@pytest.mark.parametrize(
    ("servers", "cause"),
    [
        (
            [
                at(1, range(5000), cluster_state="fail"),
                at(2, range(5000, 9000), trouble="x"),
                at(3, range(9000, SLOTS), trouble="x"),
            ],
            "because only 1 of 3 primaries answer: it takes a majority",
        ),
        (
            [
                at(1, range(5000), cluster_state="fail"),
                at(2, range(5000, 9000), cluster_state="fail"),
                at(3, range(9000, SLOTS), trouble="x"),
            ],
            "because not every slot is served and cluster-require-full-coverage is on",
        ),
        (
            [
                at(1, range(5000), cluster_state="fail"),
                at(2, range(5000, 9000)),
                at(3, range(9000, SLOTS)),
            ],
            "From here all primaries can be reached",
        ),
    ],
    ids=["minority", "coverage", "partition"],
)
def test_why_the_cluster_is_down_is_told(servers: list[ServerFacts], cause: str) -> None:
    found = {
        check.name: check
        for check in judge_servers(servers, cluster=True, silent={}, pod_timeout=6.0)
    }
    assert any(cause in finding.text for finding in found["slots"].findings)
    served = sum(
        len(part)
        for server in servers
        if server.trouble is None and server.cluster_state == "ok"
        for part in server.slots
    )
    assert found["slots"].summary.startswith(f"{served} of {SLOTS} slots are served: calls fail")
