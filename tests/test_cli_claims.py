"""``sfroute doctor`` and claims: what it finds of those without a link, and what ``--repair`` makes of them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from support.command import COMMAND, Operator, environment
from support.processes import Child

from sfroute import Router
from sfroute._contract.keys import claim_key, link_key, link_prefix
from sfroute.cli.claims import Flawed, Repair, judge_claim, repair_all
from sfroute.cli.common import open_router
from sfroute.cli.nodes import open_store
from sfroute.embedded import LocalCluster

HELD = "1700000000000000 1 life-1"


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


class Store:
    """The keys of one service's users, as other programs and evictions leave them."""

    def __init__(self, cluster: LocalCluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    def _at(self, key: str, command: str, *words: str | int) -> Any:
        return self._cluster.execute(self._cluster.primary_of(key), command, key, *words)

    def claim(self, uid: str, record: str = HELD) -> None:
        self._at(claim_key(self._namespace, uid, "chat"), "SET", record)

    def record(self, uid: str) -> Any:
        return _text(self._at(claim_key(self._namespace, uid, "chat"), "GET"))

    def link(self, uid: str) -> Any:
        return _text(self._at(link_key(self._namespace, uid, "chat"), "GET"))

    def listed(self, uid: str) -> Any:
        return _text(self._at(link_prefix(self._namespace, uid), "HGET", "chat"))

    def evict_link(self, uid: str) -> None:
        self._at(link_key(self._namespace, uid, "chat"), "DEL")

    def spoil_link(self, uid: str) -> None:
        self._at(link_key(self._namespace, uid, "chat"), "SET", "x")

    def spoil_hash(self, uid: str) -> None:
        self._at(link_prefix(self._namespace, uid), "HSET", "chat", "x")

    def evict_hash(self, uid: str) -> None:
        self._at(link_prefix(self._namespace, uid), "DEL")


def _text(reply: Any) -> Any:
    return reply.decode() if isinstance(reply, bytes) else reply


@pytest.fixture
def store(operator: Operator, sfroute_cluster: LocalCluster) -> Store:
    return Store(sfroute_cluster, operator.namespace)


def keys_of(operator: Operator, *arguments: str) -> Any:
    lines = operator("doctor", "--json", *arguments).json_lines
    return next(check for check in lines if check["check"] == "keys")


def plant(operator: Operator, store: Store) -> None:
    """A claim in order, and one of each flaw."""
    for uid in ("fine", "no-string", "no-entry", "no-link", "moved", "unclaimed", "over"):
        operator.link(uid, 1)
    for uid in ("fine", "no-string", "no-entry", "no-link", "moved"):
        store.claim(uid)
    store.claim("over", "1700000000000000 - -")
    store.evict_link("no-string")
    store.evict_hash("no-entry")
    store.evict_link("no-link")
    store.evict_hash("no-link")
    operator.link("moved", 2)
    store.claim("moved")  # whoever moved it knew no claims
    store.evict_link("unclaimed")


def test_claims_that_agree_with_no_link_are_found_and_nobody_is_named(
    operator: Operator, store: Store
) -> None:
    plant(operator, store)
    done = operator("doctor", "--json")
    check = keys_of(operator)
    assert [finding["text"].partition(":")[0] for finding in check["findings"]] == [
        "persistent links that the uid's hash does not list",
        "entries of a uid's hash without a link",
        "orphaned claims",
        "orphaned claims",
    ]
    counts = {
        words: [text for text in (each["text"] for each in check["findings"]) if words in text]
        for words in ("hash without a link: 2", "the uid has no link: 1", "another pod: 1")
    }
    assert all(len(found) == 1 for found in counts.values()), counts
    assert f"sfroute doctor --repair --namespace {operator.namespace}" in json.dumps(check)
    assert "no-string" not in done.out + done.err
    assert "3 claims" in check["summary"]  # of those in order: fine, no-string and no-entry


def test_a_claim_is_orphaned_too_when_a_gateway_moves_the_user_off_a_failed_pod(
    operator: Operator, store: Store
) -> None:
    operator.report(1, "Failed")
    operator.report(2)
    operator.link("ada", 1)
    store.claim("ada")
    assert operator.router.route(operator.namespace, "ada", "chat").pod == 2
    assert store.record("ada") == HELD
    (found,) = (each for each in keys_of(operator)["findings"] if "orphaned claims" in each["text"])
    assert "off a pod that was silent or Failed, or a program" in str(found)


def test_repair_restores_evicted_links_and_ends_orphaned_claims(
    operator: Operator, store: Store
) -> None:
    plant(operator, store)
    done = operator("doctor", "--repair", "--yes")
    assert done.code == 0, done
    assert done.lines[-1] == "5 of 5 repaired"
    for uid in ("no-string", "no-entry"):
        assert (store.link(uid), store.listed(uid), store.record(uid)) == ("1", "1", HELD)
    assert (store.link("unclaimed"), store.listed("unclaimed")) == ("1", "1")
    # Nothing tells whether it was removed or evicted with everything, so nobody gets a link again.
    assert (store.link("no-link"), store.record("no-link")) == (None, "1700000000000000 - -")
    assert (store.link("moved"), store.record("moved")) == ("2", "1700000000000000 - -")
    assert store.record("fine") == HELD
    assert keys_of(operator)["findings"] == []
    assert operator("doctor", "--repair", "--yes").lines[-1] == "nothing to repair"


def test_what_is_no_pod_by_then_keeps_no_other_from_being_repaired(
    operator: Operator, store: Store, sfroute_cluster: LocalCluster
) -> None:
    """The keys can change between the look and the repair."""
    for uid in ("no-entry", "no-string", "unclaimed"):
        operator.link(uid, 1)
    store.evict_link("unclaimed")
    store.spoil_link("no-entry")
    store.evict_link("no-string")
    store.spoil_hash("no-string")

    async def repair() -> Repair:
        url = sfroute_cluster.url
        async with open_store(url) as servers, open_router(url) as router:
            flawed = [
                Flawed("differs", "no-entry", "chat"),
                Flawed("orphan", "no-string", "chat"),
                Flawed("orphan", "unclaimed", "chat"),
            ]
            return await repair_all(router, servers, operator.namespace, flawed)

    assert asyncio.run(repair()) == Repair(mended=1, left=2)
    assert store.link("unclaimed") == "1"


@pytest.mark.slow
def test_nothing_is_repaired_without_a_question(operator: Operator, store: Store) -> None:
    plant(operator, store)
    done = operator("doctor", "--repair")
    assert done.code == 2
    assert "Repair 5 links" in done.err
    assert "--yes" in done.err
    assert store.link("no-string") is None
    for answer, link in (("n", None), ("y", "1")):
        ours, theirs = pty.openpty()
        with Child[bytes](
            [*COMMAND, "doctor", "--repair"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**operator.variables),
        ) as process:
            os.close(theirs)
            os.write(ours, f"{answer}\n".encode())
            _, err = process.communicate()
        os.close(ours)
        assert b"[y/N]" in err
        assert store.link("no-string") == link


def test_repair_needs_all_keys_of_a_namespace(operator: Operator) -> None:
    done = operator("doctor", "--repair", "--no-keys")
    assert (done.code, done.out) == (2, "")


def test_a_claim_record_that_cannot_be_read_is_an_error(operator: Operator, store: Store) -> None:
    store.claim("ada", "soon")
    check = keys_of(operator)
    assert check["verdict"] == "error"
    assert "claim records that hold something else: 1" in json.dumps(check)


@pytest.mark.parametrize(
    ("record", "ttl", "link", "entry", "flaw"),
    [
        (b"5 1 x", -1, b"1", b"1", None),
        (b"5 1 x", -1, b"1", None, None),  # the link's own flaw
        (b"5 1 x", -1, None, b"1", None),
        (b"5 1 x", -1, None, None, "unlinked"),
        (b"5 1 x", -1, b"2", b"2", "elsewhere"),
        (b"5 1 x", -1, None, b"2", "elsewhere"),
        (b"5 1 x", 900, None, None, None),  # its grace is ending
        (b"5 - -", 900, b"2", b"2", None),
        (b"5 - -", -1, None, None, None),
        (b"x", -1, b"1", b"1", "record"),
        (None, -2, b"1", b"1", None),
    ],
)
def test_the_flaw_of_a_claim(record: Any, ttl: int, link: Any, entry: Any, flaw: Any) -> None:
    assert judge_claim(record, ttl, link, entry) == flaw
