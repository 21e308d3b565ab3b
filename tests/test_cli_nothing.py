"""A command that finds nothing says which namespaces and services exist."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.command import Operator

from sfroute import Router
from sfroute.embedded import LocalCluster

COMMANDS = [
    ("pods",),
    ("balance",),
    ("rebalance", "--dry-run"),
    ("links",),
    ("state", "get"),
    ("evacuate", "1", "--dry-run"),
    ("drain", "0"),
    ("where", "grace"),
]


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_mistyped_name_is_told_from_an_empty_one(
    operator: Operator, command: tuple[str, ...]
) -> None:
    operator.report(0)
    operator.link("ada", 0)
    mistyped = operator(*command, "--namespace", f"{operator.namespace}x")
    assert mistyped.code == 3
    assert "is the namespace right? These have keys:" in mistyped.err
    # Of many namespaces that are there, the most like it come first.
    assert mistyped.err.split("These have keys: ")[1].startswith(operator.namespace)
    mistyped = operator(*command, "--service", "chta")
    assert mistyped.code == 3
    assert f"Namespace {operator.namespace!r} has these: chat" in mistyped.err
    assert "ada" not in mistyped.err


@pytest.mark.parametrize(
    "command",
    [("links", "--pod", "7"), ("evacuate", "7", "--dry-run"), ("drain", "7"), ("where", "grace")],
)
def test_where_the_names_are_right_nothing_is_said_of_them(
    operator: Operator, command: tuple[str, ...]
) -> None:
    operator.report(0)
    operator.link("ada", 0)
    done = operator(*command)
    assert done.code == 3
    assert done.err.count("\n") == 1


def test_what_is_found_is_not_looked_for(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("sfroute.cli.nothing.look_for_names", fail)
    operator.report(0)
    assert operator("pods").code == 0
    # Most uids have no link for a while. Where pods report, the names are right.
    assert operator("where", "grace").code == 3


def test_what_strangers_chose_is_shown_escaped(operator: Operator) -> None:
    operator.router.set_workload_state(operator.namespace, "ch\u202eat", "up")
    done = operator("pods", "--service", "other")
    assert "\u202e" not in done.err
    assert "has these: ch\\u202eat" in done.err


def test_a_look_that_takes_too_long_is_given_up(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfroute.cli.nothing.SECONDS", 0.0)
    done = operator("pods", "--namespace", "nowhere")
    assert (done.code, done.err.count("\n")) == (3, 1)
