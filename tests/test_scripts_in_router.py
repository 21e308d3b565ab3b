"""The scripts as routers run them: by SHA-1, and by source where a node does not know them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import catalogue
import pytest
import redis.cluster
from catalogue import link_writes
from conftest import SingleNode
from support.model import Model
from support.observe import commands
from support.program import LinkProgram, primaries
from support.rows import Operation, Script

from sfroute import AsyncRouter, InvalidArgument, Link, RouterConfig
from sfroute._contract.keys import state_key
from sfroute._contract.scripts import SCRIPTS
from sfroute.embedded import LocalCluster

Raw = redis.cluster.RedisCluster

SHAS = [script.sha for script in SCRIPTS.values()]


def flush_scripts(raw: Raw) -> None:
    for node in primaries(raw):
        node.script_flush()


def known_scripts(raw: Raw) -> list[list[bool]]:
    """For every primary, whether it knows each script."""
    return [list(node.script_exists(*SHAS)) for node in primaries(raw)]


@pytest.fixture
def link(raw: Raw, namespace: str) -> LinkProgram:
    return LinkProgram(raw, namespace, "ada", "chat")


@contextlib.asynccontextmanager
async def fleet(url: str, size: int, **options: Any) -> AsyncIterator[list[AsyncRouter]]:
    """So many routers, opened at once."""
    async with contextlib.AsyncExitStack() as stack:
        opening = (
            stack.enter_async_context(AsyncRouter.from_url(url, config=RouterConfig(**options)))
            for _ in range(size)
        )
        yield await asyncio.gather(*opening)


async def link_all(routers: list[AsyncRouter], namespace: str, uids: range) -> None:
    """Every router links all uids, each of its own, at once."""
    previous = await asyncio.gather(
        *(
            router.set_linked_pod(namespace, f"{number}-{uid}", "chat", uid)
            for number, router in enumerate(routers)
            for uid in uids
        )
    )
    assert previous == [None] * len(previous)


async def test_opening_loads_no_script(
    make_router: Callable[..., Any], cluster: LocalCluster, raw: Raw
) -> None:
    flush_scripts(raw)
    before = commands(cluster)
    router = make_router(cluster.url)
    await router.open()
    await router.aclose()
    assert not any(map(any, known_scripts(raw)))
    assert not (commands(cluster) - before).keys() & {"script|load", "eval", "evalsha"}


@pytest.mark.parametrize("replicas", [0, 1], ids=["plain", "durable"])
async def test_a_fleet_that_starts_at_once_brings_each_node_only_what_it_runs(
    cluster: LocalCluster, raw: Raw, namespace: str, replicas: int
) -> None:
    if replicas and isinstance(cluster, SingleNode):
        pytest.skip("a single node has no replica to wait for")
    uids = range(20)
    flush_scripts(raw)
    before = commands(cluster)
    async with fleet(cluster.url, 12, min_replica_acks=replicas) as routers:
        await link_all(routers, namespace, uids)
        ran = commands(cluster) - before
        assert ran["script|load"] == 0
        # However many calls need it: one source from each router to each node at most.
        primaries = len(known_scripts(raw))
        assert primaries <= ran["eval"] <= len(routers) * primaries
        assert [sum(known) for known in known_scripts(raw)] == [1] * primaries
        before = commands(cluster)
        await link_all(routers, f"{namespace}-again", uids)
        ran = commands(cluster) - before
        assert (ran["evalsha"], ran["eval"]) == (len(routers) * len(uids), 0)


async def test_scripts_that_are_forgotten_under_load_are_brought_once_each_time(
    router: Any, cluster: LocalCluster, raw: Raw, namespace: str
) -> None:
    uids = range(100)
    await asyncio.gather(*(router.set_linked_pod(namespace, f"{uid}", "chat", 0) for uid in uids))
    primaries = len(known_scripts(raw))
    before = commands(cluster)
    rounds = 5
    for pod in range(1, rounds + 1):
        flush_scripts(raw)
        # Half of them need another script.
        calls = [
            router.set_linked_pod(namespace, f"{uid}", "chat", pod)
            if uid % 2
            else router.remove_linked_pod(namespace, f"{uid}", "chat")
            for uid in uids
        ]
        assert await asyncio.gather(*calls) == [pod - 1 if uid % 2 else pod == 1 for uid in uids]
    ran = commands(cluster) - before
    assert 2 * rounds <= ran["eval"] <= 2 * rounds * primaries
    assert ran["script|load"] == 0


async def test_whoever_waits_behind_a_source_that_is_not_sent_brings_it(
    cluster: LocalCluster, raw: Raw, namespace: str
) -> None:
    """The caller whose command was to bring the source gives up; the others of the same node do not depend on it."""
    async with AsyncRouter.from_url(cluster.url) as router:
        await router.set_linked_pod(namespace, "ada", "chat", 1)
        flush_scripts(raw)
        calls = [
            asyncio.ensure_future(router.set_linked_pod(namespace, "ada", f"s{number}", 1))
            for number in range(20)
        ]
        while not router.stats().retries.get("NOSCRIPT"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        calls[0].cancel()
        assert await asyncio.gather(*calls[1:]) == [None] * 19


async def test_the_next_node_is_brought_the_source_once_too(
    cluster: LocalCluster, raw: Raw, namespace: str
) -> None:
    """Whoever waited behind a source that was lost waits behind the next one."""
    calls = 500
    async with AsyncRouter.from_url(cluster.url) as router:
        await router.set_linked_pod(namespace, "ada", "chat", 1)
        flush_scripts(raw)
        before = commands(cluster)
        writes = [
            asyncio.ensure_future(router.set_linked_pod(namespace, "ada", f"s{number}", 1))
            for number in range(calls)
        ]
        while router.stats().retries.get("NOSCRIPT", 0) < calls and not all(  # noqa: ASYNC110
            write.done() for write in writes
        ):
            await asyncio.sleep(0)
        parts = router._inside.engine.parts
        assert parts is not None
        for channel in parts.commands._channels:
            if channel.connection is not None:
                channel.connection.abort()
        # Like a replica that was promoted, it knows no script.
        flush_scripts(raw)
        assert await asyncio.gather(*writes) == [None] * calls
    assert (commands(cluster) - before)["eval"] <= 10


async def test_a_known_script_is_run_by_its_sha1(
    router: Any, cluster: LocalCluster, namespace: str
) -> None:
    await router.set_linked_pod(namespace, "ada", "chat", 1)
    before = commands(cluster)
    await router.set_linked_pod(namespace, "ada", "chat", 3)
    ran = commands(cluster) - before
    assert (ran["evalsha"], ran["eval"]) == (1, 0)


@pytest.mark.parametrize("row", link_writes(), ids=lambda row: row.name)
async def test_after_a_script_flush_the_operation_sends_the_source_to_the_same_node_once(
    router: Any, cluster: LocalCluster, raw: Raw, namespace: str, row: Operation
) -> None:
    model = Model(lambda: 0)
    model.set_linked_pod(namespace, "ada", "chat", 1)
    await router.set_linked_pod(namespace, "ada", "chat", 1)
    flush_scripts(raw)
    before, again = commands(cluster), router.stats().retries.get("NOSCRIPT", 0)
    arguments = row.arguments(namespace)
    arguments.pop("timeout")
    assert await row.call(router, **arguments) == getattr(model, row.name)(**arguments)
    ran = commands(cluster) - before
    assert (ran["evalsha"], ran["eval"], ran["script|load"]) == (1, 1, 0)
    assert sum(map(sum, known_scripts(raw))) == 1  # on the node of the uid, and nowhere else
    assert router.stats().retries["NOSCRIPT"] == again + 1


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


def as_text(reply: Any) -> Any:
    """Strings for bytes, and a list for what RESP3 has as a map."""
    if isinstance(reply, dict):
        reply = [each for pair in reply.items() for each in pair]
    return [each.decode() if isinstance(each, bytes) else each for each in reply]


class TestExecuteScript:
    @pytest.mark.parametrize("forgotten", [False, True], ids=["known", "forgotten"])
    @pytest.mark.parametrize("script", catalogue.SCRIPTS, ids=lambda row: row.name)
    async def test_it_runs(
        self, router: Any, raw: Raw, link: LinkProgram, script: Script, forgotten: bool
    ) -> None:
        script.before(link)
        if forgotten:
            flush_scripts(raw)
        reply = await router.execute_script(script.name, script.keys_of(link), script.argv())
        assert as_text(reply) == script.reply

    async def test_keys_of_several_slots_are_refused(
        self, router: Any, cluster: LocalCluster, namespace: str, link: LinkProgram
    ) -> None:
        before = commands(cluster)
        keys = [link.link, state_key(namespace, "chat")]
        with pytest.raises(InvalidArgument, match="all in one slot"):
            await router.execute_script("statefulSetLink", keys, ["chat", 3, -1])
        assert commands(cluster) == before

    async def test_no_keys_are_refused(self, router: Any) -> None:
        with pytest.raises(InvalidArgument, match="at least one key"):
            await router.execute_script("statefulSetLink", [], ["chat", 3, -1])
