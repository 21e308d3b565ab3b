"""Commands that ask before they write what is likely a mistake, and that say what they looked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.command import Operator

from sfroute import Router
from sfroute.embedded import LocalCluster


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


def test_a_dry_run_of_route_places_nobody(operator: Operator) -> None:
    operator.report(1)
    operator.link("ada", 1)
    done = operator("route", "--dry-run", "ada", "grcae")
    assert (done.code, done.out) == (0, "ada\t1\ngrcae\t-\n")
    assert operator.pod_of("grcae") is None


def test_a_link_to_a_pod_that_is_not_there_takes_force(operator: Operator) -> None:
    operator.report(1)
    done = operator("link", "set", "zoe", "99")
    assert done.code == 2
    assert "those that have: 1" in done.err
    assert operator.pod_of("zoe") is None
    assert operator("link", "set", "zoe", "99", "--force").code == 0
    assert operator.pod_of("zoe") == 99
    assert operator("link", "set", "zoe", "1").code == 0


def test_a_state_that_no_gateway_reads_takes_force(operator: Operator) -> None:
    assert operator("state", "set", "6", "Runing").code == 2
    assert operator.router.get_service_state(operator.namespace, "chat") == {}
    assert operator("state", "set", "6", "Runing", "--force").code == 0
    assert operator("state", "set", "6", "Running").code == 0


def test_what_was_not_found_is_told_with_where_it_was_looked_for(operator: Operator) -> None:
    for command in (("pods",), ("link", "get", "ada")):
        done = operator(*command)
        assert done.code == 3
        assert f"'chat' in namespace '{operator.namespace}'" in done.err


def test_a_silent_pod_is_called_dead(operator: Operator) -> None:
    operator.report(0, json.dumps({"status": "Running", "at": 1}))
    operator.report(1)
    first, second = operator("pods", "--json").json_lines
    assert (first["dead"], second["dead"]) == (True, False)
    assert "dead (was Running)" in operator("pods").out
