"""The eleven scripts as routers run them: preloaded, by SHA-1, by source where a node does not know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis.cluster
from conftest import SERVERS
from observe import commands
from program import LinkProgram, primaries

from sfroute import InvalidArgument, Link
from sfroute.embedded import LocalCluster, LocalServer
from sfroute.keys import state_key
from sfroute.scripts import SCRIPT_NAMES, SCRIPTS

Raw = redis.cluster.RedisCluster

SHAS = [script.sha for script in SCRIPTS.values()]


def flush_scripts(raw: Raw) -> None:
    for node in primaries(raw):
        node.script_flush()


def known_scripts(raw: Raw) -> list[list[bool]]:
    """For every primary, whether it knows each of the eleven."""
    return [list(node.script_exists(*SHAS)) for node in primaries(raw)]


@pytest.fixture
def link(raw: Raw, namespace: str) -> LinkProgram:
    return LinkProgram(raw, namespace, "ada", "chat")


async def test_opening_loads_every_script_on_every_primary(
    make_router: Callable[..., Any], cluster: LocalCluster, raw: Raw
) -> None:
    flush_scripts(raw)
    router = make_router(cluster.url)
    await router.open()
    owners = [node for node in cluster.nodes if node.role == "primary"]
    assert known_scripts(raw) == [[True] * 11] * len(owners)
    await router.aclose()


async def test_opening_loads_every_script_on_a_single_node(
    make_router: Callable[..., Any], server: str
) -> None:
    with LocalServer(server_binary=SERVERS[server]) as single:
        router = make_router(single.url)
        await router.open()
        assert single.execute("SCRIPT", "EXISTS", *SHAS) == [1] * 11
        await router.aclose()


async def test_a_known_script_is_run_by_its_sha1(
    router: Any, cluster: LocalCluster, namespace: str
) -> None:
    before = commands(cluster)
    await router.set_linked_pod(namespace, "ada", "chat", 3)
    ran = commands(cluster) - before
    assert (ran["evalsha"], ran["eval"]) == (1, 0)


LINK_OPERATIONS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("set_linked_pod", (3,), 0),
    ("try_set_linked_pod", (3,), (False, 0)),
    ("set_linked_pod_if_absent", (3,), 0),
    ("remove_linked_pod", (), True),
    ("remove_linked_pod_with_id", (0,), True),
]


@pytest.mark.parametrize(("operation", "rest", "result"), LINK_OPERATIONS)
async def test_after_a_script_flush_the_operation_sends_the_source_to_the_same_node_once(
    router: Any,
    cluster: LocalCluster,
    raw: Raw,
    namespace: str,
    operation: str,
    rest: tuple[Any, ...],
    result: Any,
) -> None:
    await router.set_linked_pod(namespace, "ada", "chat", 0)
    flush_scripts(raw)
    before = commands(cluster)
    assert await getattr(router, operation)(namespace, "ada", "chat", *rest) == result
    ran = commands(cluster) - before
    assert (ran["evalsha"], ran["eval"], ran["script|load"]) == (1, 1, 0)
    assert sum(map(sum, known_scripts(raw))) == 1  # on the node of the uid, and nowhere else
    assert router.stats().retries["NOSCRIPT"] == 1


async def test_after_a_script_flush_a_uid_is_still_placed(
    router: Any, raw: Raw, namespace: str
) -> None:
    await router.set_service_state(namespace, "chat", 4, "Running")
    flush_scripts(raw)
    assert await router.route(namespace, "ada", "chat") == Link(4, persistent=True, source="placed")


async def test_look_ups_and_plain_commands_need_no_script(
    router: Any, cluster: LocalCluster, namespace: str
) -> None:
    before = commands(cluster)
    await router.get_linked_pod(namespace, "ada", "chat")
    await router.get_link_service(namespace, "ada")
    await router.batch_get_linked_pod(namespace, ["ada", "bob"], "chat")
    await router.set_service_state(namespace, "chat", 0, "Running")
    await router.get_service_state(namespace, "chat")
    await router.get_workload_state(namespace, "chat")
    ran = commands(cluster) - before
    assert (ran["evalsha"], ran["eval"]) == (0, 0)


CALLS: dict[str, tuple[str, tuple[str | int, ...], Callable[[Any], bool]]] = {
    "statefulSetLink": ("link", ("chat", 3, -1), lambda reply: reply == [b"0"]),
    "statefulSetLinkIfAbsent": ("link", ("chat", 3, -1), lambda reply: reply == [b"0"]),
    "statefulTrySetLink": ("link", ("chat", 0, 100), lambda reply: reply == [b"0", b"0"]),
    "statefulRemoveLink": ("link", ("chat", 100), lambda reply: reply == [1]),
    "statefulRemoveLinkWithId": ("link", ("chat", -1, 3), lambda reply: reply == [0]),
    "statefulGetLinkIfPersist": ("link only", (), lambda reply: reply == [b"0"]),
    "statefulComputeLinkIfAbsent": (
        "link",
        ("chat", -1, "place", 0, 0, 3),
        lambda reply: reply == [b"0", b"kept", b"0", b"-1"],
    ),
    "statefulGetServicePod": ("state", (7,), lambda reply: reply[1:] == [b"Running", b"-1"]),
    "statefulGetService": ("state", (), lambda reply: reply[1:] == [b"7", b"Running", b"-1"]),
    "statefulSetState": ("state", (7, "Stopped"), lambda reply: reply[1:] == [b"Running"]),
    "statefulGetLinkService": ("hash only", (), lambda reply: as_dict(reply) == {b"chat": b"0"}),
}
"""Every script: its keys, its arguments, and what it replies about a persistent link to pod 0."""


def as_dict(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


class TestExecuteScript:
    def test_there_is_a_call_for_each_of_the_eleven(self) -> None:
        assert len(CALLS) == 11
        assert set(CALLS) == set(SCRIPT_NAMES)

    @pytest.mark.parametrize("forgotten", [False, True], ids=["known", "forgotten"])
    @pytest.mark.parametrize("script", CALLS)
    async def test_it_runs(
        self, router: Any, raw: Raw, namespace: str, link: LinkProgram, script: str, forgotten: bool
    ) -> None:
        link.set_link(0)
        raw.hset(state_key(namespace, "chat"), "7", "Running")
        if forgotten:
            flush_scripts(raw)
        which, args, is_right = CALLS[script]
        keys = {
            "link": [link.link, link.hash],
            "link only": [link.link],
            "hash only": [link.hash],
            "state": [state_key(namespace, "chat")],
        }[which]
        reply = await router.execute_script(script, keys, list(args))
        assert is_right(reply), reply

    async def test_keys_of_several_slots_are_refused(
        self, router: Any, cluster: LocalCluster, namespace: str, link: LinkProgram
    ) -> None:
        before = commands(cluster)
        keys = [link.link, state_key(namespace, "chat")]
        with pytest.raises(InvalidArgument, match="all of one slot"):
            await router.execute_script("statefulSetLink", keys, ["chat", 3, -1])
        assert commands(cluster) == before

    async def test_no_keys_are_refused(self, router: Any) -> None:
        with pytest.raises(InvalidArgument, match="at least one key"):
            await router.execute_script("statefulSetLink", [], ["chat", 3, -1])
