"""``sfroute rebalance``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.command import Operator

from sfroute import Handover, PodAgent, Router
from sfroute.embedded import LocalCluster


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


def fill(operator: Operator, users: dict[int, int]) -> None:
    number = 0
    for pod, count in users.items():
        operator.report(pod)
        for _ in range(count):
            operator.link(f"user-{number}", pod)
            number += 1


PLAN = "FROM  TO  USERS\n   0   1      6\nskew 2.00, at most 1.4 wanted: 6 users to move\n"


def test_it_shows_its_plan_and_moves_users_whom_no_pod_has(operator: Operator) -> None:
    fill(operator, {0: 20, 1: 0})
    skew = ("--max-skew", "1.4")
    assert operator("rebalance", *skew, "--dry-run") == (0, PLAN, "")
    dry = operator("rebalance", *skew, "--dry-run", "--json").json
    assert (dry["skew"], dry["planned"], dry["moved"], dry["left"]) == (2.0, 6, 0, 6)
    assert dry["plan"] == [{"from": 0, "to": 1, "users": 6}]
    done = operator("rebalance", *skew, "--yes")
    assert (done.code, done.out) == (0, f"{PLAN}6 users moved whom no pod had\n")
    done = operator("rebalance", *skew)
    assert done == (0, "skew 1.40, at most 1.4 wanted; nothing is to be moved\n", "")
    done = operator("rebalance", "--max-skew", "1", "--json", "--yes")
    assert (done.code, done.json["moved"], done.json["left"]) == (0, 4, 0)
    assert "skew 1.00" in operator("balance").out


def test_what_is_balanced_is_what_a_rebalance_leaves_alone(operator: Operator) -> None:
    fill(operator, {0: 20, 1: 0})
    done = operator("balance")
    assert done.code == 0
    assert done.out.endswith(
        "20 links, skew 2.00\nnot balanced: `sfroute rebalance` would move 8 users; "
        "`sfroute rebalance --dry-run` shows from where to where\n"
    )
    told = operator("balance", "--json").json_lines[-1]
    assert (told["balanced"], told["to_move"]) == (False, 8)
    assert operator("rebalance", "--dry-run", "--json").json["planned"] == 8
    assert operator("rebalance", "--yes").code == 0
    assert operator("balance").out.endswith("balanced: `sfroute rebalance` would move nobody\n")
    told = operator("balance", "--json").json_lines[-1]
    assert (told["balanced"], told["to_move"]) == (True, 0)


def test_full_pods_are_as_balanced_as_can_be(operator: Operator) -> None:
    operator.report(0, '{"status": "Running", "max_claims": 4, "claims": 4}')
    operator.report(1, '{"status": "Running", "max_claims": 1, "claims": 1}')
    for number in range(5):
        operator.link(f"user-{number}", int(number == 4))
    assert "would move nobody" in operator("balance").out
    assert operator("rebalance", "--dry-run", "--json").json["planned"] == 0


def test_where_nobody_is_nothing_is_said_of_balance(operator: Operator) -> None:
    operator.report(0)
    assert "balanced" not in operator("balance").out
    assert operator("balance", "--json").json_lines[-1]["balanced"] is None


def test_it_asks_first(operator: Operator) -> None:
    fill(operator, {0: 20, 1: 0})
    done = operator("rebalance")
    assert done.code == 2
    assert "Move 8 users of 'chat', and ask pods for those whom they have claimed?" in done.err
    assert "pass --yes" in done.err
    assert "FROM" in done.out
    assert "moved all the same" in operator("rebalance", "--force").err
    assert "ask pods" not in operator("rebalance", "--idle-only").err
    assert operator("balance", "--json").json_lines[1]["links"] == 0


def test_without_pods_or_without_users_there_is_nothing_to_do(operator: Operator) -> None:
    done = operator("rebalance")
    assert done.code == 3
    assert "no pod of 'chat'" in done.err
    operator.report(0)
    assert operator("rebalance") == (0, "no links; nothing is to be moved\n", "")


@contextmanager
def claimed(operator: Operator, *, heeds: bool) -> Iterator[None]:
    """Pod 0 has claimed 20 users, and pod 1 nobody."""
    with Router.from_url(operator.url) as router:
        place = (router, operator.namespace, "chat")
        with PodAgent(*place, 0, sigterm=False) as old, PodAgent(*place, 1, sigterm=False):
            for number in range(20):
                assert old.accept(f"user-{number}")

            def read() -> None:
                for event in old.events():
                    if isinstance(event, Handover) and heeds:
                        old.release(event)

            reading = threading.Thread(target=read)
            reading.start()
            yield
        reading.join()


def test_pods_hand_users_over(operator: Operator) -> None:
    with claimed(operator, heeds=True):
        done = operator("rebalance", "--yes")
        assert (done.code, done.lines[-1]) == (
            0,
            "0 users moved whom no pod had; 8 handed over by their pods",
        )


def test_users_of_a_pod_that_ignores_it_stay_unless_they_are_forced(operator: Operator) -> None:
    with claimed(operator, heeds=False):
        done = operator("rebalance", "--yes", "--patience", "0.5")
        assert done.code == 1
        assert done.lines[-1] == "0 users moved whom no pod had; 8 kept by their pods"
        assert "8 users of the plan left; the same command goes on" in done.err
        assert "the event Handover" in done.err
        assert "user-" not in done.err
        done = operator("rebalance", "--yes", "--idle-only")
        assert done.code == 0
        assert "20 left alone because a pod has them" in done.out
        done = operator("rebalance", "--yes", "--patience", "0.5", "--force", "--json")
        assert (done.code, done.json["forced"], done.json["left"]) == (0, 8, 0)


@pytest.mark.parametrize(
    "options",
    [
        ("--max-skew", "0.9"),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--patience", "0"),
        ("--patience", "90000"),
        ("--force", "--idle-only"),
    ],
)
def test_bad_options_are_refused(operator: Operator, options: tuple[str, ...]) -> None:
    assert operator("rebalance", *options).code == 2
