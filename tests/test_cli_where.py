"""``sfroute where`` and ``sfroute balance``: where a uid is and why, and how the users are spread."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command import Operator

from sfroute import RUNNING, Pod, PodAgent, Router
from sfroute._contract.keys import claim_key, link_prefix
from sfroute.cli.balance import skew_of
from sfroute.embedded import LocalCluster


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


def rows(out: str) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in out.splitlines())


def test_where_shows_the_link_the_pod_and_the_claim(operator: Operator) -> None:
    labels = {"zone": "a", "tier": "xb"}
    with PodAgent(
        operator.router, operator.namespace, "chat", 3, address="10.0.3.7:80", labels=labels
    ) as agent:
        claim = agent.accept("ada")
        done = operator("where", "ada")
        told = rows(done.out)
        assert (done.code, told["link"], told["address"]) == (0, "pod 3, persistent", "10.0.3.7:80")
        assert told["pod"].startswith("Running, last heartbeat ")
        assert told["labels"] == "tier=xb,zone=a"
        assert told["fence"] == str(claim.fence)
        since = datetime.fromisoformat(told["since"])
        assert abs(datetime.now(UTC) - since) < timedelta(minutes=1)
        found = operator("where", "ada", "--json").json
        assert found["claim"]["life"] == found["at"]["life"]
        assert told["claim"] == f"of life {found['claim']['life']}"
        agent.release(claim, grace=60)
        told = rows(operator("where", "ada").out)
        assert told["link"].startswith("pod 3, temporary, for ")
        assert told["claim"].endswith(", if the user comes back in time")
        agent.accept("ada")
        agent.release("ada")
    with PodAgent(operator.router, operator.namespace, "chat", 4):
        operator.link("ada", 4)
        told = rows(operator("where", "ada").out)
        assert told["claim"] == f"over; the last fence was {claim.fence}"


def test_where_says_why_the_link_is_there(operator: Operator) -> None:
    router, namespace = operator.router, operator.namespace
    for pod in (3, 4):
        router.set_service_state(namespace, "chat", pod, RUNNING)
    operator.link("eve", 3)
    told = rows(operator("where", "eve").out)
    assert told["why"].startswith("not recorded: ")
    assert "for ten minutes" in told["why"]
    assert "first placements" in told["why"]
    router.route(namespace, "eve", "chat", exclude=[3])
    told = rows(operator("where", "eve").out)
    assert told["why"].startswith("a gateway could not use pod 3, at 20")
    found = operator("where", "eve", "--json").json
    assert (found["why"]["reason"], found["why"]["from"]) == ("excluded", 3)
    # Of another move, which is not noted, it does not tell a lie.
    operator.link("eve", 7)
    assert rows(operator("where", "eve").out)["why"].startswith("not recorded: ")
    assert operator("where", "eve", "--json").json["why"] is None


def test_where_tells_an_earlier_life_from_that_of_now(operator: Operator) -> None:
    with PodAgent(operator.router, operator.namespace, "chat", 3) as agent:
        agent.accept("ada")
    told = rows(operator("where", "ada").out)
    assert told["pod"].startswith("Stopped, last heartbeat ")
    with PodAgent(operator.router, operator.namespace, "chat", 3):
        assert "an earlier one of the pod" in rows(operator("where", "ada").out)["claim"]


def test_where_calls_a_silent_pod_dead_as_pods_does(operator: Operator) -> None:
    operator.link("ada", 3)
    operator.report(3, json.dumps({"status": "Running", "at": 1}))
    assert rows(operator("where", "ada").out)["pod"].startswith(
        "dead (was Running), last heartbeat "
    )
    assert "dead (was Running)" in operator("pods").out


def test_where_without_pods_and_claims(operator: Operator) -> None:
    operator.link("ada", 3)
    told = rows(operator("where", "ada").out)
    assert told.pop("why").startswith("not recorded: ")
    assert told == {"link": "pod 3, persistent", "pod": "has reported no state", "claim": "none"}
    done = operator("where", "bob")
    assert (done.code, done.out) == (3, "")
    assert "bob" not in done.err
    assert operator("where", "bob", "--json").json["pod"] is None


def test_where_says_what_is_wrong(operator: Operator, sfroute_cluster: LocalCluster) -> None:
    operator.link("ada", 3)
    hash_key = link_prefix(operator.namespace, "ada")
    sfroute_cluster.execute(sfroute_cluster.primary_of(hash_key), "DEL", hash_key)
    assert "doctor --repair" in rows(operator("where", "ada").out)["flaw"]
    record = claim_key(operator.namespace, "ada", "chat")
    at = sfroute_cluster.primary_of(record)
    sfroute_cluster.execute(at, "SET", record, "12 4 abc")
    assert rows(operator("where", "ada").out)["claim"].startswith("of pod 4, which does not count")
    sfroute_cluster.execute(at, "SET", record, "junk")
    done = operator("where", "ada")
    assert done.code == 1
    assert "ada" not in done.err


def test_balance_draws_a_bar_for_each_pod(operator: Operator) -> None:
    operator.report(0)
    operator.report(1, json.dumps({"status": "Running", "max_claims": 40, "room": 10}))
    operator.report(2, "Draining")
    for number in range(60):
        operator.link(f"u{number}", 0 if number < 20 else 1 if number < 50 else 2 + number % 2)
    done = operator("balance")
    assert (done.code, done.err) == (0, "")
    assert [line.split() for line in done.lines] == [
        ["POD", "LINKS", "ROOM"],
        ["0", "20", "-", "#" * 20],
        ["1", "30", "10", "of", "40", "#" * 30],
        ["2", "5", "-", "#" * 5, "takes", "nobody"],
        ["3", "5", "-", "#" * 5, "gone"],
        ["60", "links,", "skew", "1.20;", "5", "at", "pods", "that", "are", "gone"],
        ["balanced:", "`sfroute", "rebalance`", "would", "move", "nobody"],
    ]
    *pods, summary = operator("balance", "--json").json_lines
    assert summary == {
        "links": 60,
        "skew": 1.2,
        "elsewhere": 5,
        "balanced": True,
        "to_move": 0,
    }
    assert [row["links"] for row in pods] == [20, 30, 5, 5]


def test_balance_without_anybody(operator: Operator) -> None:
    assert operator("balance").code == 3
    operator.report(0)
    done = operator("balance")
    assert done.lines[-1] == "0 links"


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0.01, 100)), min_size=1, max_size=9))
def test_the_skew_is_never_below_one_and_heeds_capacity(pods: list[tuple[int, float]]) -> None:
    seen = {
        number: Pod(number, RUNNING, extra={"capacity": capacity})
        for number, (_, capacity) in enumerate(pods)
    }
    links = {number: count for number, (count, _) in enumerate(pods)}
    skew = skew_of(seen, links, 6.0)
    assert (skew is None) == (not any(links.values()))
    if skew is not None:
        whole, least = sum(capacity for _, capacity in pods), min(capacity for _, capacity in pods)
        assert 1.0 - 1e-9 <= skew <= whole / least + 1e-9
    even = {number: round(1000 * pod.extra["capacity"]) * 10**6 for number, pod in seen.items()}  # type: ignore[operator]
    assert skew_of(seen, even, 6.0) == pytest.approx(1.0, rel=0.1)
