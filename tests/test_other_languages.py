"""A program in another language on the same store: examples/node, on ioredis, and the router agree about everything."""

from __future__ import annotations

import itertools
import json
import re
import statistics
import subprocess
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.documents import block
from support.model import PERSIST_FOREVER, Model
from support.node import EXAMPLE, NodeError, NodeLinks, require_node
from support.program import Client, LinkProgram, check_keys, owner_of, primaries
from support.stalls import Stalls
from test_model_machine import SETTINGS

from sfroute import CacheConfig, InvalidArgument, Router, RouterConfig
from sfroute._contract.keys import (
    MAX_NAME_BYTES,
    check_link_names,
    check_persist_seconds,
    check_pod,
)
from sfroute.embedded import LocalCluster
from sfroute.embedded._node import Node
from sfroute.types import MAX_PERSIST_SECONDS

NAMESPACES = (f"node{number}" for number in itertools.count())
LARGEST_POD = 2**53 - 1
"""Numbers of JavaScript are exact up to here."""


@pytest.fixture(scope="module")
def node(cluster: LocalCluster) -> Iterator[NodeLinks]:
    """The program in Node.js."""
    with NodeLinks(cluster.startup_nodes) as node:
        yield node


@pytest.fixture(scope="module")
def python(url: str) -> Iterator[Router]:
    """A router whose cache nothing but a push of the server makes forget."""
    config = RouterConfig(cache=CacheConfig(max_age=600))
    with Router.from_url(url, config=config) as router:
        yield router


# --- the same calls


class Step(NamedTuple):
    """One call; ``args`` follow the namespace."""

    by_node: bool
    operation: str
    args: tuple[Any, ...]
    options: dict[str, Any]


uids = st.sampled_from(("ada", "ada", "ü:1"))
services = st.sampled_from(("chat", "chat", "__proto__"))
pods = st.sampled_from((0, 0, 1, 1, LARGEST_POD))
seconds = st.sampled_from((PERSIST_FOREVER, 100, 1000, 100_000))


def steps(
    operation: str, *args: st.SearchStrategy[Any], **options: st.SearchStrategy[Any]
) -> st.SearchStrategy[Step]:
    return st.builds(
        Step, st.booleans(), st.just(operation), st.tuples(*args), st.fixed_dictionaries(options)
    )


READS = [
    steps("get_linked_pod", uids, services),
    steps("get_linked_pod_if_persist", uids, services),
    steps("get_link_service", uids),
]
WRITES = [
    steps("set_linked_pod", uids, services, pods, seconds),
    steps("try_set_linked_pod", uids, services, pods, seconds),
    steps("set_linked_pod_if_absent", uids, services, pods, seconds, refresh=st.booleans()),
    steps("remove_linked_pod", uids, services, seconds),
    steps("remove_linked_pod_with_id", uids, services, pod=pods, persist_seconds=seconds),
]
WITH_DEFAULTS = [
    steps("set_linked_pod", uids, services, pods),
    steps("try_set_linked_pod", uids, services, pods),
    steps("set_linked_pod_if_absent", uids, services, pods),
    steps("remove_linked_pod", uids, services),
    steps("remove_linked_pod_with_id", uids, services, pod=pods),
]


@st.composite
def sequences(draw: st.DrawFn) -> list[Step]:
    # The least length is drawn, so that sequences are long, and yet shrink to a single step.
    least = draw(st.integers(1, 20))
    step = st.sampled_from([*READS, *WRITES, *WRITES, *WITH_DEFAULTS]).flatmap(lambda kind: kind)
    return draw(st.lists(step, min_size=least, max_size=30))


@given(sequence=sequences())
@settings(SETTINGS, max_examples=200)
def test_python_and_node_do_the_same(
    node: NodeLinks, python: Router, client: Client, sequence: list[Step]
) -> None:
    namespace = next(NAMESPACES)
    model = Model(lambda: time.monotonic_ns() // 1_000_000)

    def check(step: Step) -> None:
        front: Any = node if step.by_node else python
        result = getattr(front, step.operation)(namespace, *step.args, **step.options)
        expected = getattr(model, step.operation)(namespace, *step.args, **step.options)
        assert result == expected, f"{step} returned {result!r}, not {expected!r}"

    for step in sequence:
        check(step)
        if step.by_node and not step.operation.startswith("get"):
            # Reads another key of the slot: the pushes that were sent before its answer have arrived, too.
            python.get_linked_pod(namespace, step.args[0], "none", fresh=True)
        # What the other changes next must reach this cache.
        check(Step(False, "get_linked_pod", (step.args[0], "chat"), {}))
    for by_node, uid in itertools.product((True, False), ("ada", "ü:1")):
        for service in ("chat", "__proto__"):
            check(Step(by_node, "get_linked_pod", (uid, service), {}))
            check(Step(by_node, "get_linked_pod_if_persist", (uid, service), {}))
        check(Step(by_node, "get_link_service", (uid,), {}))
    check_keys(client, model, namespace)


def test_node_sends_the_source_where_a_script_is_not_known(
    node: NodeLinks, client: Client, namespace: str
) -> None:
    assert node.set_linked_pod(namespace, "ada", "chat", 1) is None
    for primary in primaries(client):
        primary.script_flush()
    assert node.set_linked_pod(namespace, "ada", "chat", 2) == 1
    # And never again to the same server.
    before = evals(client)
    assert node.set_linked_pod(namespace, "ada", "chat", 3) == 2
    assert evals(client) == before


def evals(client: Client) -> int:
    """How often the servers were sent a source."""
    stats = [primary.info("commandstats") for primary in primaries(client)]
    return sum(each.get("cmdstat_eval", {"calls": 0})["calls"] for each in stats)


def test_a_write_that_node_sends_twice_happens_once(
    node: NodeLinks, cluster: LocalCluster, client: Client, namespace: str
) -> None:
    """ioredis does that when the connection is lost before the reply."""
    key = LinkProgram(client, namespace, "ada", "chat").link
    owner, primary = owner_of(client, key), cluster.primary_of(key)
    for pod in range(1, 21):
        node.set_linked_pod(namespace, "ada", "chat", 0)
        before = evalshas(owner)
        assert (
            node_loses_the_reply(node, cluster, primary, owner, (namespace, "ada", "chat", pod))
            == 0
        )
        if evalshas(owner) == before + 2:
            return
    pytest.fail("no reply was lost")


def node_loses_the_reply(
    node: NodeLinks, cluster: LocalCluster, primary: Node, owner: redis.Redis, link: tuple[Any, ...]
) -> Any:
    """What ``set_linked_pod`` returns if the server ends the connection in the turn in which it has run the script."""
    kill = owner.pipeline(transaction=False)
    for each in owner.client_list():
        if each["name"] == "sfroute-example":
            kill.client_kill_filter(_id=each["id"])
    with ThreadPoolExecutor(2) as pool:
        cluster.pause(primary)
        try:
            called = pool.submit(node.set_linked_pod, *link)
            # Both wait in the sockets of the server, in this order. (Nobody is told when they are there.)
            time.sleep(0.05)
            killed = pool.submit(kill.execute)
            time.sleep(0.05)
        finally:
            cluster.resume(primary)
        killed.result()
        return called.result()


def evalshas(node: redis.Redis) -> int:
    return int(node.info("commandstats")["cmdstat_evalsha"]["calls"])


# --- what one changes, the other sees


def test_a_write_of_node_reaches_the_cache_of_python_at_once(
    node: NodeLinks, python: Router, namespace: str, stalls: Stalls
) -> None:
    """The server pushes it; docs/explanation/coherence.md promises milliseconds."""
    python.get_linked_pod(namespace, "ada", "chat")
    if not all(lane.tracked for lane in python.stats().lanes):
        pytest.skip("this server does not push: others' changes are seen only after a while")
    took = []
    for pod in range(50):
        assert python.get_linked_pod(namespace, "ada", "chat") == (pod - 1 if pod else None)
        node.set_linked_pod(namespace, "ada", "chat", pod)
        written = time.monotonic()
        while python.get_linked_pod(namespace, "ada", "chat") != pod:
            assert time.monotonic() < written + 20, "the cache does not hear of it"
        took.append(stalls.took(written))
    assert statistics.median(took) < 0.02
    # A busy machine may be late now and then.
    assert max(took) < 1


def test_a_write_of_python_is_what_node_reads(
    node: NodeLinks, python: Router, namespace: str
) -> None:
    python.set_linked_pod(namespace, "ada", "chat", 0)
    assert node.get_linked_pod(namespace, "ada", "chat") == 0
    python.remove_linked_pod_with_id(namespace, "ada", "chat", pod=0, persist_seconds=30)
    assert node.get_linked_pod(namespace, "ada", "chat") == 0
    assert node.get_linked_pod_if_persist(namespace, "ada", "chat") is None
    python.remove_linked_pod(namespace, "ada", "chat")
    assert node.get_linked_pod(namespace, "ada", "chat") is None


# --- the same rules


names = st.one_of(
    st.text(st.characters(codec=None), max_size=6),
    st.text("ab:{}\x00\x1f\x7f\x9f\xa0 é\ud800", max_size=4),
    st.integers(MAX_NAME_BYTES - 2, MAX_NAME_BYTES + 2).map("x".__mul__),
    st.integers(MAX_NAME_BYTES // 2 - 1, MAX_NAME_BYTES // 2 + 1).map("é".__mul__),
)


@given(namespace=st.just("node") | names, uid=st.just("ada") | names, service=st.just("s") | names)
@example(namespace="node", uid="ada}", service="chat")
@example(namespace="node", uid="ada", service="{chat")
@example(namespace="no:de", uid="ada", service="chat")
@SETTINGS
def test_node_refuses_the_names_that_python_refuses(
    node: NodeLinks, namespace: str, uid: str, service: str
) -> None:
    refused = refuses(check_link_names, namespace, uid, service)
    assert refuses(node.get_linked_pod, namespace, uid, service) == refused


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        ("set_linked_pod", [1, -1]),
        ("try_set_linked_pod", [1, -1]),
        ("set_linked_pod_if_absent", [1, -1]),
        ("get_linked_pod", []),
        ("get_linked_pod_if_persist", []),
        ("remove_linked_pod", [-1]),
        ("remove_linked_pod_with_id", [{"pod": 1, "persistSeconds": -1}]),
        ("get_link_service", []),
    ],
)
def test_every_operation_of_node_checks_names_and_tells_no_uid(
    node: NodeLinks, namespace: str, operation: str, args: list[Any]
) -> None:
    call = getattr(node, operation)
    with pytest.raises(NodeError, match="uid must not contain") as caught:
        call(namespace, "hunter{2}", *([] if operation == "get_link_service" else ["chat"]), *args)
    assert caught.value.name == "InvalidArgument"
    assert "hunter" not in str(caught.value)


NUMBERS: list[Any] = [
    *(0, 1, -1, -2, 1.5, "1", True, None, [], 2**53 - 1),
    *(MAX_PERSIST_SECONDS, MAX_PERSIST_SECONDS + 1),
]


@pytest.mark.parametrize("pod", NUMBERS)
def test_node_refuses_the_pods_that_python_refuses(
    node: NodeLinks, namespace: str, pod: Any
) -> None:
    wanted = refuses(check_pod, pod)
    for operation in ("set_linked_pod", "try_set_linked_pod"):
        assert refuses(getattr(node, operation), namespace, "a", "s", pod) == wanted
    assert refuses(node.remove_linked_pod_with_id, namespace, "a", "s", pod=pod) == wanted


@pytest.mark.parametrize("held_for", [seconds for seconds in NUMBERS if seconds is not None])
def test_node_refuses_the_times_that_python_refuses(
    node: NodeLinks, namespace: str, held_for: Any
) -> None:
    wanted = refuses(check_persist_seconds, held_for)
    for operation in ("set_linked_pod", "set_linked_pod_if_absent"):
        assert refuses(getattr(node, operation), namespace, "a", "s", 1, held_for) == wanted
    assert refuses(node.remove_linked_pod, namespace, "a", "s", held_for) == wanted
    named = {"pod": 1, "persist_seconds": held_for}
    assert refuses(node.remove_linked_pod_with_id, namespace, "a", "s", **named) == wanted


def refuses(call: Any, *args: Any, **options: Any) -> bool:
    try:
        call(*args, **options)
    except InvalidArgument:
        return True
    except NodeError as error:
        if error.name != "InvalidArgument":
            raise
        return True
    return False


@pytest.mark.parametrize("content", ["", "x", "-1", "1.0", "0x1", " 1", str(2**53)])
def test_node_raises_where_a_link_holds_no_pod_that_it_can_tell(
    node: NodeLinks, client: Client, namespace: str, content: str
) -> None:
    link = LinkProgram(client, namespace, "ada", "chat")
    client.set(link.link, content)
    with pytest.raises(NodeError) as caught:
        node.get_linked_pod(namespace, "ada", "chat")
    assert caught.value.name == "CorruptReply"
    with pytest.raises(NodeError, match=r"SFCORRUPT|2\*\*53"):
        node.get_linked_pod_if_persist(namespace, "ada", "chat")


# --- claims


def test_node_claims_confirms_and_releases_beside_other_programs(
    node: NodeLinks, client: Client, namespace: str
) -> None:
    ada = LinkProgram(client, namespace, "ada", "chat")
    names = (namespace, "ada", "chat")
    claimed = node.claim(*names, 0, "node-1")
    fence = claimed["fence"]
    assert claimed == {"success": True, "pod": 0, "how": "placed", "fence": fence}
    assert ada.record() == f"{fence} 0 node-1"
    assert ada.claim(1) == (0, "refused", 0)
    assert node.claim(*names, 1, "node-2") == {
        "success": False,
        "pod": 0,
        "how": "refused",
        "fence": 0,
    }
    mine = {"held": True, "outcome": "mine", "pod": 0, "fence": fence}
    assert node.confirm_claim(*names, 0, "node-1", fence) == mine
    client.delete(ada.link, ada.hash, ada.claim_record)
    assert node.confirm_claim(*names, 0, "node-1", fence) == {**mine, "outcome": "claimed"}
    assert not node.release_claim(*names, 0, "node-2", fence)
    assert node.release_claim(*names, 0, "node-1", fence, 30)
    assert ada.claim(0, "node-1") == (0, "kept", fence)
    ada.set_link(1)
    lost = {"held": False, "outcome": "moved", "pod": 1, "fence": 0}
    assert node.confirm_claim(*names, 0, "node-1", fence) == lost
    with pytest.raises(NodeError, match="life must be"):
        node.claim(*names, 0, "two words")


# --- what the documents show


def test_what_the_readme_shows_is_the_tested_program() -> None:
    program = (EXAMPLE / "links.mjs").read_text(encoding="utf-8")
    for part in block("lua_scripts/README.md", "js", 0).text.strip().split("\n\n"):
        assert part in program or textwrap.indent(part, "  ") in program, part


def test_the_command_of_the_example_works(cluster: LocalCluster, client: Client) -> None:
    require_node()
    text = (EXAMPLE / "calls.mjs").read_text(encoding="utf-8")
    command, *expected = re.findall(r"^//   (.*)$", text, re.MULTILINE)
    assert command.startswith("$ echo ")
    nodes = ",".join(f"{host}:{port}" for host, port in cluster.startup_nodes)
    client.delete("sf:{game:lk:ada}chat")
    done = subprocess.run(
        re.sub(r"10\.0\.0\.\d[0-9.:,]*", nodes, command.removeprefix("$ ")),
        shell=True,
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == expected
    client.delete("sf:{game:lk:ada}chat", "sf:{game:lk:ada}")


def test_the_package_asks_for_ioredis_in_a_range_and_pins_no_addresses() -> None:
    package = json.loads((EXAMPLE / "package.json").read_text(encoding="utf-8"))
    assert list(package["dependencies"]) == ["ioredis"]
    assert package["dependencies"]["ioredis"].startswith("^")
    assert not list(EXAMPLE.glob("*lock*"))
