"""``sfroute links``, ``sfroute forget`` and ``sfroute prune``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.command import Operator
from test_cli_pods import make_idle

from sfroute import Router
from sfroute.embedded import LocalCluster


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


def test_links_writes_a_line_for_each(operator: Operator) -> None:
    operator.link("ada", 1)
    operator.link("gr\u00e4ce", 2, 60)
    done = operator("links")
    assert (done.code, done.err) == (0, "")
    assert sorted(done.lines) == ["ada\t1\tpersistent", "gr\u00e4ce\t2\ttemporary"]
    (row,) = operator("links", "--pod", "2", "--json").json_lines
    assert (row["uid"], row["pod"]) == ("gr\u00e4ce", 2)
    assert 50 < row["expires_in"] <= 60


def test_links_says_so_if_there_are_none(operator: Operator) -> None:
    operator.link("ada", 1)
    done = operator("links", "--pod", "7")
    assert (done.code, done.out) == (3, "")
    assert "has no links to pod 7" in done.err


def test_links_escapes_what_may_command_a_terminal(operator: Operator) -> None:
    operator.link("a\u202eda", 1)
    assert "\u202e" not in operator("links").out
    assert operator("links", "--json").json["uid"] == "a\u202eda"


def test_forget_erases_a_uid_and_asks_first(operator: Operator) -> None:
    operator.link("ada", 1)
    done = operator("forget", "ada")
    assert done.code == 2
    assert "ada" not in done.err
    assert operator.pod_of("ada") == 1
    assert operator("forget", "ada", "--yes") == (0, "1 link removed\n", "")
    assert operator.pod_of("ada") is None
    assert operator("forget", "ada", "--yes", "--json").json == {"uid": "ada", "removed": 0}


def test_prune_counts_asks_and_removes(operator: Operator, sfroute_cluster: LocalCluster) -> None:
    for number in range(12):
        operator.link(f"user-{number}", 88_000)
    for number in range(5):
        make_idle(operator, sfroute_cluster, f"user-{number}", 31 * 86_400)
    done = operator("prune", "--idle", "30d", "--dry-run")
    assert done == (0, "5 idle links of 12; nothing was changed\n", "")
    done = operator("prune", "--idle", "30d")
    assert (done.code, done.out) == (2, "")
    assert "Remove 5 idle links of 'chat'?" in done.err
    done = operator("prune", "--idle", "30d", "--yes", "--json")
    assert done.json == {"scanned": 12, "idle": 5, "claimed": 0, "removed": 5, "failed": 0}
    assert [operator.pod_of(f"user-{number}") for number in (0, 4, 5)] == [None, None, 88_000]
    # With nothing to remove nobody is asked.
    done = operator("prune", "--idle", "30d")
    assert done == (0, "0 idle links of 7 removed\n", "")


@pytest.mark.parametrize(
    "arguments", [[], ["--idle", "0"], ["--idle", "x"], ["--idle", "1d", "--rate", "0"]]
)
def test_prune_needs_to_know_how_idle(operator: Operator, arguments: list[str]) -> None:
    assert operator("prune", *arguments).code == 2
