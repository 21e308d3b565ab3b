"""The users of docs/how-to/secure.md: each may do what its kind of program does, needs every right for it, and no more.

The rules are read out of the page. What the server refuses is read out of its ``ACL LOG``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis
import redis.cluster
import redis.exceptions
from catalogue import AGENT_OPERATIONS, on_store
from conftest import SERVERS, make_raw
from support.rights import PASSWORD, RULES, give_rights, rule_of, url_of
from support.rows import Operation

from sfroute import (
    PERSIST_FOREVER,
    AsyncPodAgent,
    AsyncRouter,
    CacheConfig,
    RetryConfig,
    Router,
    RouterConfig,
    SfrouteError,
    StoreError,
)
from sfroute._contract.keys import (
    claim_key,
    link_key,
    link_prefix,
    operation_key,
    slot_of,
    state_key,
    workload_key,
)
from sfroute.embedded import LocalCluster

CONFIG = RouterConfig(
    min_replica_acks=1,
    # So often that a short life has some.
    cache=CacheConfig(heartbeat=0.01, heartbeat_timeout=30.0),
)
# What a refused right makes wait for is waited for in vain. Where nothing is refused there is no reason for haste.
IN_VAIN = replace(CONFIG, ack_timeout=0.3, retry=RetryConfig(deadline=3.0, base=0.005, cap=0.05))


@pytest.fixture(scope="module")
def store(server_binary: str | None) -> Iterator[LocalCluster]:
    with LocalCluster(2, 1, server_binary=server_binary, node_timeout_ms=15_000) as store:
        yield store


@pytest.fixture(scope="module")
def some_store() -> Iterator[LocalCluster]:
    """One of whatever kind, where the kind makes no difference."""
    with LocalCluster(
        2, 1, server_binary=next(iter(SERVERS.values())), node_timeout_ms=15_000
    ) as store:
        yield store


def has_selectors(store: LocalCluster) -> bool:
    """Redis knows them since 7.0."""
    return store.server_name == "valkey" or int(store.server_version.split(".")[0]) >= 7


@pytest.fixture
def selectors(store: LocalCluster) -> bool:
    return has_selectors(store)


def refused(store: LocalCluster, user: str) -> set[str]:
    """The commands and keys that the nodes have refused a user, or a script of its, since the last question."""
    found = set()
    for node in store.nodes:
        entries, _ = node.commands(("ACL", "LOG"), ("ACL", "LOG", "RESET"))
        assert isinstance(entries, list)
        for entry in entries:
            assert isinstance(entry, list)
            told = dict(zip(entry[::2], entry[1::2], strict=True))
            if told["username"] == user and told["reason"] in ("command", "key"):
                found.add(str(told["object"]))
    return found


class Use:
    """What the programs of one kind do, so that every right is used."""

    def __init__(
        self,
        store: LocalCluster,
        admin: redis.cluster.RedisCluster,
        namespace: str,
        url: str,
        config: RouterConfig,
    ) -> None:
        self.store = store
        self.admin = admin
        self.namespace = namespace
        self.url = url
        self.config = config
        states: Any = {"0": "Running", "1": "Running", "7": '{"status": "Running", "at": 1}'}
        admin.hset(state_key(namespace, "chat"), mapping=states)
        admin.set(workload_key(namespace, "chat"), "up")

    def forget_scripts(self) -> None:
        for node in self.store.nodes:
            node.commands(("SCRIPT", "FLUSH"))

    async def look_up_while_slots_move(self, router: AsyncRouter) -> None:
        uid = (self.namespace, "moving", "chat")
        slot = slot_of(link_key(*uid))
        owner = self.store.primary_of(slot)
        target = next(n for n in self.store.nodes if n.role == "primary" and n is not owner)
        with self.store.moving_slot(slot, target):
            assert await router.get_linked_pod(*uid, fresh=True) is None

    async def write_again(
        self, router: AsyncRouter, script: str, claims: list[str], *args: str | int
    ) -> None:
        """As after a lost reply, by a connection whose node has forgotten the scripts meanwhile."""
        uid = (self.namespace, "again")
        keys = [link_key(*uid, "chat"), link_prefix(*uid), *claims, operation_key(*uid, "t")]
        for _ in range(2):
            assert await router.execute_script(script, keys, ["chat", *args, 60_000]) == [0]
            self.forget_scripts()

    async def read_states(self, router: AsyncRouter) -> None:
        ns = self.namespace
        assert await router.get_service_state(ns, "chat")
        assert set(await router.get_pods(ns, "chat", fresh=True)) >= {0, 1}
        key = state_key(ns, "chat")
        assert await router.execute_script("statefulGetServicePod", [key], [0])

    async def gateway(self) -> None:
        ns, service = self.namespace, "chat"
        async with AsyncRouter.from_url(self.url, config=self.config) as router:
            self.forget_scripts()
            await self.read_states(router)
            assert await router.get_workload_state(ns, service) == "up"
            assert await router.get_workload_state_batch(ns, [service, "game"]) == {service: "up"}
            link = await router.route(ns, "ada", service)
            assert await router.get_linked_pod(ns, "ada", service) == link.pod
            assert await router.get_linked_pod_if_persist(ns, "ada", service) == link.pod
            assert await router.get_link_service(ns, "ada") == {service: link.pod}
            assert await router.move_linked_pod(ns, "ada", service, link.pod, 9) == 9
            assert (await router.route(ns, "ada", service, exclude=[9])).pod in (0, 1)
            assert await router.batch_get_linked_pod(ns, ["b", "c", "d"], service) == {}
            assert await router.set_linked_pod(ns, "bob", service, 1, 10) is None
            assert (await router.route(ns, "bob", service, persist_seconds=100)).pod == 1
            if_absent = router.set_linked_pod_if_absent
            assert await if_absent(ns, "bob", service, 1, 1000, refresh=True) == 1
            assert await if_absent(ns, "bob", service, 1, PERSIST_FOREVER, refresh=True) == 1
            assert (await router.try_set_linked_pod(ns, "bob", service, 1)).success
            assert await router.remove_linked_pod(ns, "bob", service, 30)
            assert await router.remove_linked_pod_with_id(ns, "bob", service, pod=1)
            await self.write_again(router, "statefulRemoveLinkWithId", [], PERSIST_FOREVER, 1)
            await self.look_up_while_slots_move(router)

    async def pod(self) -> None:
        ns, service = self.namespace, "chat"
        async with AsyncRouter.from_url(self.url, config=self.config) as router:
            self.forget_scripts()
            place, state = (ns, service, 3, "a"), '{"status": "Running", "by": "a"}'
            await router._inside.states.report(place, state, start=True, prune_ms=1000, gap_ms=1000)
            await self.read_states(router)
            await router.set_service_state(ns, service, 4, "Running")
            claims = [claim_key(ns, "again", service)]
            args = (PERSIST_FOREVER, 1, "life", 0)
            await self.write_again(router, "statefulReleaseClaim", claims, *args)
            async with AsyncPodAgent(router, ns, service, 3, sigterm=False) as agent:
                assert (await agent.accept("adele")).success
                assert (await agent.accept("bert")).success
                assert await agent.release("bert", grace=30)
                assert (await agent.accept("bert")).success
                assert await agent.release("bert")
                assert await agent.drain(0.1) == 1
            await self.look_up_while_slots_move(router)

    async def operator(self) -> None:
        await self.gateway()
        await self.pod()
        ns = self.namespace
        async with AsyncRouter.from_url(self.url, config=self.config) as router:
            await router.set_workload_state(ns, "chat", "down")
            await router.set_linked_pod(ns, "eve", "chat", 0)
            steps = [step async for step in router.evacuate(ns, "chat", 0)]
            assert (steps[-1].done, steps[-1].failed) == (True, 0)
            assert await router.get_linked_pod(ns, "eve", "chat") != 0
            for uid in ("uma", "vic", "wes", "xia"):
                await router.set_linked_pod(ns, uid, "chat", 1)
            moved = [step async for step in router.rebalance(ns, "chat", max_skew=1.0)]
            assert moved[-1].left == 0

    async def as_user(self, user: str) -> None:
        await {"gateway": self.gateway, "pod": self.pod, "operator": self.operator}[user]()


async def use_as(
    store: LocalCluster, namespace: str, user: str, rule: list[str], config: RouterConfig
) -> set[str]:
    """Do all that this kind of program does, as a user with that rule. What it was refused."""
    give_rights(store, user, rule)
    refused(store, user)
    with make_raw(store) as admin:
        await Use(store, admin, namespace, url_of(store.url, user), config).as_user(user)
    return refused(store, user)


@pytest.mark.parametrize("user", RULES)
async def test_it_may_do_all_that_it_is_there_for(
    store: LocalCluster, namespace: str, selectors: bool, user: str
) -> None:
    rule = rule_of(user, namespace, selectors=selectors)
    assert await use_as(store, namespace, user, rule, CONFIG) == set()


@pytest.mark.parametrize(
    "row",
    [*on_store(), *(row for row in AGENT_OPERATIONS if row.sends)],
    ids=lambda row: row.name,
)
async def test_an_operation_needs_no_more_than_its_row_says(
    store: LocalCluster, namespace: str, selectors: bool, row: Operation
) -> None:
    give_rights(store, row.user, rule_of(row.user, namespace, selectors=selectors))
    refused(store, row.user)
    with make_raw(store) as admin:
        admin.hset(state_key(namespace, "chat"), mapping={"1": "Running", "2": "Running"})
    async with AsyncRouter.from_url(url_of(store.url, row.user), config=CONFIG) as router:
        if row in AGENT_OPERATIONS:
            agent = AsyncPodAgent(router, namespace, "chat", 3, sigterm=False)
            if row.name != "start":
                await agent.start()
            await row.call(agent, **row.arguments(namespace))
            await agent.stop()
        else:
            await row.call(router, **row.arguments(namespace))
    assert refused(store, row.user) == set()


def without_one() -> Iterator[tuple[str, str, tuple[str, ...], list[str]]]:
    """User, the right that is taken away, what is left of its rule, and the beginnings of the keys it is for."""
    seen: set[str] = set()
    for user, rule in RULES.items():
        for number, right in enumerate(rule):
            if user == "operator" and right in seen:
                continue  # what it needs that for is what the others need it for
            seen.add(right)
            before, after = rule[:number], rule[number + 1 :]
            if not right.startswith("("):
                yield user, right, (*before, *after), beginnings(right, rule)
                continue
            inner = tuple(right[1:-1].split())
            for place, part in enumerate(inner):
                rest = " ".join(inner[:place] + inner[place + 1 :])
                yield user, f"({part})", (*before, f"({rest})", *after), beginnings(part, inner)


def beginnings(right: str, beside: tuple[str, ...]) -> list[str]:
    """Of the keys that a right is for: a pattern's own; those of the patterns beside a command."""
    return [
        part[1:].rstrip("*")
        for part in beside
        if part.startswith("~") and (part == right or not right.startswith("~"))
    ]


REFUSED_IN_SCRIPT = "ACL failure in script|The user executing the script can't"

STILL_WORKS = {"+client|tracking", "+ping", "+info", "+cluster|nodes"}
"""What a router does without, less well: younger answers, no telling a node that refuses from one that answers, an
evacuation that looks once more. The server's log shows that it tried."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "right", "rest", "concerned"),
    [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in without_one()],
)
async def test_every_right_is_needed(
    some_store: LocalCluster,
    namespace: str,
    user: str,
    right: str,
    rest: tuple[str, ...],
    concerned: list[str],
) -> None:
    if not has_selectors(some_store):
        pytest.skip("Redis before 7.0 has no selectors, and takes subcommands another way")
    rule = [part.replace("{production:", f"{{{namespace}:") for part in rest]
    name = right.strip("()")
    if name in STILL_WORKS:
        missed = await use_as(some_store, namespace, user, rule, CONFIG)
    else:
        with pytest.raises(SfrouteError):
            await use_as(some_store, namespace, user, rule, IN_VAIN)
        missed = refused(some_store, user)
    assert missed
    # Where another part of the rule has the command, its key is what is refused. The servers differ in how they name
    # a subcommand.
    commands = {name[1:], name[1:].partition("|")[0]}
    keys = tuple(pattern.replace("{production:", f"{{{namespace}:") for pattern in concerned)
    assert all(what in commands or what.startswith(keys) for what in missed), missed


@pytest.fixture
def gateway(store: LocalCluster, namespace: str, selectors: bool) -> str:
    """The URL of a gateway's user with the rights of the page."""
    give_rights(store, "gateway", rule_of("gateway", namespace, selectors=selectors))
    return url_of(store.url, "gateway")


@contextmanager
def refusal() -> Iterator[None]:
    with pytest.raises(StoreError, match=r"\(NOPERM\); .* docs/how-to/secure\.md") as caught:
        yield
    assert not caught.value.retryable


async def test_a_gateway_may_not_report_for_pods_not_even_by_a_script(
    store: LocalCluster, gateway: str, namespace: str, selectors: bool
) -> None:
    if not selectors:
        pytest.skip("Redis before 7.0 has no selectors")
    key = state_key(namespace, "chat")
    async with AsyncRouter.from_url(gateway, config=CONFIG) as router:
        with refusal():
            await router.set_service_state(namespace, "chat", 0, "Running")
        with refusal():
            await router.set_workload_state(namespace, "chat", "up")
        with refusal():
            await router.execute_script("statefulSetState", [key], [0, "Running"])
    node = store.primary_of(key)
    with redis.Redis(node.host, node.port, username="gateway", password=PASSWORD) as forger:
        with pytest.raises(redis.exceptions.ResponseError, match=REFUSED_IN_SCRIPT):
            forger.eval("return redis.call('HSET', KEYS[1], '0', 'Running')", 1, key)
        # A key that is not declared is checked all the same.
        with pytest.raises(redis.exceptions.ResponseError, match=REFUSED_IN_SCRIPT):
            forger.eval(f"return redis.call('SET', '{key}', 'x')", 0)
    assert node.commands(("EXISTS", key)) == [0]


@pytest.mark.parametrize("user", RULES)
async def test_another_namespace_is_closed(
    store: LocalCluster, namespace: str, selectors: bool, user: str
) -> None:
    give_rights(store, user, rule_of(user, namespace, selectors=selectors))
    # As like as can be.
    for other in (f"{namespace}2", namespace[:-1], "*"):
        async with AsyncRouter.from_url(url_of(store.url, user), config=CONFIG) as router:
            with refusal():
                await router.get_linked_pod(other, "ada", "chat")
            with refusal():
                await router.set_linked_pod(other, "ada", "chat", 1)
            with refusal():
                await router.get_link_service(other, "ada")
            with refusal():
                await router.get_pods(other, "chat")
            with refusal():
                await router.set_service_state(other, "chat", 0, "Running")


COMMANDS = """
    KEYS *|SCAN 0|RANDOMKEY|DBSIZE|FLUSHALL|FLUSHDB|CONFIG GET *|ACL LIST|ACL SETUSER x|CLIENT LIST|
    CLIENT KILL TYPE normal|CLIENT PAUSE 1|MONITOR|SCRIPT FLUSH|CLUSTER RESET|CLUSTER NODES|
    CLUSTER FAILOVER|REPLICAOF NO ONE|SHUTDOWN|SAVE|SUBSCRIBE x|PUBLISH x y|WATCH k|MULTI
"""


def test_other_commands_are_closed(gateway: str, store: LocalCluster) -> None:
    for command in re.split(r"\|\s*", COMMANDS.strip()):
        with (
            redis.Redis(
                store.nodes[0].host, store.nodes[0].port, username="gateway", password=PASSWORD
            ) as client,
            pytest.raises(redis.exceptions.NoPermissionError),
        ):
            client.execute_command(*command.split())


async def test_a_user_without_rights_is_told_at_once_by_either_front(
    make_router: Callable[..., Any], store: LocalCluster
) -> None:
    give_rights(store, "nobody", [])
    router = make_router(url_of(store.url, "nobody"))
    with refusal():
        await router.open()
    await router.aclose()


def test_threads_need_no_more(gateway: str, store: LocalCluster, namespace: str) -> None:
    refused(store, "gateway")
    with Router.from_url(gateway, config=CONFIG) as router:
        assert router.set_linked_pod(namespace, "ada", "chat", 1) is None
        assert router.get_linked_pod(namespace, "ada", "chat") == 1
    assert refused(store, "gateway") == set()
