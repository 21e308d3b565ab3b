"""Bad arguments and bad data: a named error that says which, why and what would be right, and nothing is lost.

Arguments are tried on a router whose store does not exist: whatever reaches out for it fails in another way.
"""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import catalogue
import pytest
import redis.cluster
from catalogue import AGENT_OPERATIONS, OPERATIONS, SECRET, bad_arguments, link_writes, on_store
from conftest import SERVERS
from support.program import LinkProgram, unchanged
from support.rows import Operation

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CorruptReply,
    InvalidArgument,
    NoRoutablePod,
    PodAgent,
    RetryConfig,
    Router,
    RouterConfig,
    ScriptFailed,
    SfrouteError,
    StoreUnavailable,
)
from sfroute._contract.keys import link_key, link_prefix, state_key, workload_key
from sfroute.embedded import LocalServer

Raw = redis.cluster.RedisCluster

RULE = "'{', '}' or control characters"
THIRD = "(character 3 is one)"
SECOND = "(character 2 is one)"
NO_UTF8 = "must be encodable as UTF-8; it contains a lone surrogate"
FOREVER = "PERSIST_FOREVER (-1)"
UP_TO = "or from 1 to 9007199254740"
POSITIVE = "a positive int of seconds"


@pytest.fixture
async def router_to_nowhere(make_router: Callable[..., Any]) -> Any:
    """A router of either kind whose store does not exist."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        host, port = closed.getsockname()
        config = RouterConfig(retry=RetryConfig(deadline=0.05))
        router = make_router(f"redis+cluster://{host}:{port}", config=config)
        yield router
        await router.aclose()


def everything_said(error: BaseException) -> str:
    """An error with its causes, as a log would show it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    parts = [f"{link} {link!r} {link.args}" for link in chain]
    return "\n".join([*parts, *traceback.format_exception(error)])


@pytest.fixture(autouse=True)
def uids_stay_out_of_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in caplog.text


ON_STORE = pytest.mark.parametrize("row", on_store(), ids=lambda row: row.name)


class TestArguments:
    @pytest.mark.parametrize(
        ("row", "argument", "bad"),
        [pytest.param(*case, id=f"{case[0].name}-{case[1]}") for case in bad_arguments(OPERATIONS)],
    )
    async def test_each_is_named_before_anything_is_sent(
        self, router_to_nowhere: Any, row: Operation, argument: str, bad: list[Any]
    ) -> None:
        await self.assert_each_is_named(router_to_nowhere, row, argument, bad)

    @pytest.mark.parametrize(
        ("row", "argument", "bad"),
        [
            pytest.param(*case, id=f"{case[0].name}-{case[1]}")
            for case in bad_arguments(AGENT_OPERATIONS)
        ],
    )
    @pytest.mark.parametrize("kind", ["async", "sync"])
    async def test_so_is_each_of_an_agent(
        self, url: str, kind: str, row: Operation, argument: str, bad: list[Any]
    ) -> None:
        """The agent has not started, so good arguments would raise ``ConfigError``."""
        if kind == "async":
            async with AsyncRouter.from_url(url) as router:
                agent = AsyncPodAgent(router, "ns", "chat", 1)
                await self.assert_each_is_named(agent, row, argument, bad)
        else:
            with Router.from_url(url) as threads:
                front = PodAgent(threads, "ns", "chat", 1)
                await self.assert_each_is_named(front, row, argument, bad)

    async def assert_each_is_named(
        self, front: Any, row: Operation, argument: str, bad: list[Any]
    ) -> None:
        assert bad, "there is nothing that it must not be?"
        singular = {"uids": "uid", "services": "service", "name": "script", "claim": "uid"}
        good = row.arguments(uid=SECRET)
        for value in bad:
            with pytest.raises(InvalidArgument) as caught:
                await row.call(front, **good | {argument: value})
            text = str(caught.value)
            beginnings = (f"{argument} must ", f"{singular.get(argument, argument)} must ")
            assert text.startswith(beginnings), value
            assert SECRET not in everything_said(caught.value)
            assert len(text) < 600

    @ON_STORE
    async def test_good_ones_reach_for_the_store(
        self, router_to_nowhere: Any, row: Operation
    ) -> None:
        with pytest.raises(StoreUnavailable) as caught:
            await row.call(router_to_nowhere, **row.arguments(uid=SECRET))
        assert StoreUnavailable in row.may_raise
        assert SECRET not in everything_said(caught.value)

    @pytest.mark.parametrize(
        ("operation", "change", "text"),
        [
            ("get_service_state", {"service": ""}, "service must not be empty"),
            ("get_service_state", {"service": 7}, "service must be a str, not int"),
            ("get_service_state", {"namespace": "a:b"}, f"namespace must not contain ':', {RULE}, not 'a:b' {SECOND}"),
            ("get_service_state", {"service": "ab}"}, f"service must not contain {RULE}, not 'ab}}' {THIRD}"),
            ("get_service_state", {"service": "ü" * 300}, "service must be at most 512 bytes in UTF-8; it is 600"),
            ("get_service_state", {"service": "a\ud800"}, f"service {NO_UTF8}"),
            ("get_linked_pod", {"uid": f"{SECRET}\ud800"}, f"uid {NO_UTF8}"),
            ("get_linked_pod", {"uid": "a}"}, f"uid must not contain {RULE} {SECOND}"),
            ("get_linked_pod", {"uid": None}, "uid must be a str, not NoneType"),
            ("set_linked_pod", {"pod": -1}, "pod must be from 0 to 9223372036854775807, not -1"),
            ("set_linked_pod", {"pod": True}, "pod must be an int >= 0 (a StatefulSet ordinal), not True"),
            ("set_linked_pod", {"pod": "3"}, "pod must be an int >= 0 (a StatefulSet ordinal), not '3'"),
            ("set_linked_pod", {"persist_seconds": 0}, f"persist_seconds must be {FOREVER} {UP_TO}, not 0"),
            ("set_linked_pod", {"persist_seconds": 1.5}, f"persist_seconds must be {FOREVER} or {POSITIVE}, not 1.5"),
            ("set_workload_state", {"state": 1}, "state must be a str, not int"),
            ("batch_get_linked_pod", {"uids": SECRET}, "uids must be a list or tuple, not str"),
        ],
    )  # fmt: skip
    async def test_the_text_says_why_and_what_would_be_right(
        self, router_to_nowhere: Any, operation: str, change: dict[str, Any], text: str
    ) -> None:
        row = catalogue.operation(operation)
        with pytest.raises(InvalidArgument) as caught:
            await row.call(router_to_nowhere, **row.arguments(uid=SECRET) | change)
        assert str(caught.value) == text

    async def test_a_script_that_does_not_exist_is_told_the_ones_that_do(
        self, router_to_nowhere: Any
    ) -> None:
        with pytest.raises(InvalidArgument, match=r"statefulRemoveLinkWithId.*not 'nosuch'"):
            await router_to_nowhere.execute_script("nosuch", ["a"], [])

    async def test_an_invalid_argument_is_a_value_error(self, router_to_nowhere: Any) -> None:
        with pytest.raises(ValueError, match="pod must be"):
            await router_to_nowhere.set_linked_pod("ns", SECRET, "chat", -1)

    async def test_names_of_a_subclass_of_str_are_fine(self, router: Any, namespace: str) -> None:
        class Name(str):
            __slots__ = ()

        await router.set_linked_pod(Name(namespace), Name("ada"), Name("chat"), 3)
        assert await router.get_linked_pod(namespace, "ada", "chat") == 3

    @pytest.mark.parametrize(
        ("uid", "service"), [(SECRET, None), (SECRET, "a}"), (None, None), (7, None)]
    )
    async def test_invalidate_checks_what_it_is_to_forget(
        self, router: Any, namespace: str, uid: Any, service: Any
    ) -> None:
        if uid == SECRET and service is None:
            router.invalidate(namespace, uid, service)
        else:
            with pytest.raises(InvalidArgument, match="must"):
                router.invalidate(namespace, uid, service)


ON_A_LINK = pytest.mark.parametrize(
    "row",
    [row for row in on_store() if {"uid", "service"} <= set(row.args)],
    ids=lambda row: row.name,
)
WRITES = pytest.mark.parametrize("row", link_writes(), ids=lambda row: row.name)


@pytest.fixture
def link(raw: Raw, namespace: str) -> LinkProgram:
    return LinkProgram(raw, namespace, SECRET, "chat")


def assert_it_names_the_key(error: CorruptReply, key: str) -> None:
    assert error.key == key
    assert not error.retryable
    assert str(error).startswith(key.replace(SECRET, "***"))
    assert SECRET not in everything_said(error)


class TestLinksThatAreNone:
    @pytest.fixture(params=["abc", str(2**63), "hash"])
    def broken(self, request: pytest.FixtureRequest, link: LinkProgram) -> LinkProgram:
        """A link whose key holds something else."""
        if request.param == "hash":
            link.client.hset(link.link, "chat", "1")
        else:
            link.client.set(link.link, request.param)
        return link

    @ON_A_LINK
    async def test_it_is_refused_by_name_and_left_as_it_is(
        self, router: Any, broken: LinkProgram, namespace: str, row: Operation
    ) -> None:
        with (
            unchanged(broken.client, broken.link, broken.hash),
            pytest.raises(CorruptReply) as caught,
        ):
            await row.call(router, **row.arguments(namespace, SECRET))
        assert_it_names_the_key(caught.value, broken.link)

    async def test_in_a_batch_it_is_named(
        self, router: Any, broken: LinkProgram, namespace: str
    ) -> None:
        with pytest.raises(CorruptReply) as caught:
            await router.batch_get_linked_pod(namespace, ["ada", SECRET, "bob"], "chat")
        assert_it_names_the_key(caught.value, broken.link)

    async def test_a_placement_that_finds_one_is_refused(
        self, router: Any, link: LinkProgram, namespace: str
    ) -> None:
        keys = [link.link, link.hash]
        link.client.set(link.link, "abc")
        args = ["chat", -1, "place", 0, 0, 3]
        with unchanged(link.client, link.link), pytest.raises(CorruptReply) as caught:
            await router.execute_script("statefulComputeLinkIfAbsent", keys, args)
        assert_it_names_the_key(caught.value, link.link)

    async def test_once_repaired_it_is_a_link_at_once(
        self, router: Any, broken: LinkProgram, namespace: str
    ) -> None:
        with pytest.raises(CorruptReply):
            await router.get_linked_pod(namespace, SECRET, "chat")
        broken.client.delete(broken.link)
        broken.client.set(broken.link, "4")
        assert await router.get_linked_pod(namespace, SECRET, "chat") == 4


class TestHashesThatAreNone:
    @WRITES
    async def test_a_write_is_refused_and_names_the_hash(
        self, router: Any, link: LinkProgram, namespace: str, row: Operation
    ) -> None:
        link.client.set(link.link, "1")
        link.client.set(link.hash, "abc")
        with unchanged(link.client, link.link, link.hash), pytest.raises(CorruptReply) as caught:
            await row.call(router, **row.arguments(namespace, SECRET))
        assert_it_names_the_key(caught.value, link.hash)
        assert caught.value.operation == row.name

    @pytest.mark.parametrize("value", ["abc", {"chat": "abc"}, {"chat": "-1"}, {"chat": ""}])
    async def test_get_link_service_names_the_hash(
        self, router: Any, link: LinkProgram, namespace: str, value: Any
    ) -> None:
        if isinstance(value, dict):
            link.client.hset(link.hash, mapping=value)
        else:
            link.client.set(link.hash, value)
        with unchanged(link.client, link.hash), pytest.raises(CorruptReply) as caught:
            await router.get_link_service(namespace, SECRET)
        assert_it_names_the_key(caught.value, link.hash)


class TestStatesThatAreNone:
    @pytest.mark.parametrize("operation", ["get_service_state", "get_pods"])
    async def test_a_string_for_a_services_states_is_named(
        self, router: Any, raw: Raw, namespace: str, operation: str
    ) -> None:
        key = state_key(namespace, "chat")
        raw.set(key, "Running")
        with unchanged(raw, key), pytest.raises(CorruptReply) as caught:
            await getattr(router, operation)(namespace, "chat")
        assert_it_names_the_key(caught.value, key)

    async def test_set_service_state_does_not_overwrite_a_string(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        key = state_key(namespace, "chat")
        raw.set(key, "Running")
        with unchanged(raw, key), pytest.raises(CorruptReply) as caught:
            await router.set_service_state(namespace, "chat", 0, "Running")
        assert_it_names_the_key(caught.value, key)

    async def test_a_hash_for_a_workload_state_is_named(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        key = workload_key(namespace, "chat")
        raw.hset(key, "a", "b")
        with unchanged(raw, key), pytest.raises(CorruptReply) as caught:
            await router.get_workload_state(namespace, "chat")
        assert_it_names_the_key(caught.value, key)
        with unchanged(raw, key), pytest.raises(CorruptReply) as caught:
            await router.get_workload_state_batch(namespace, ["game", "chat", "mail"])
        assert_it_names_the_key(caught.value, key)

    async def test_fields_that_are_no_pods_are_skipped_by_get_pods_and_route(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        fields: Any = {"abc": "Running", "": "Running", str(2**63): "Running", "2": "Running"}
        raw.hset(state_key(namespace, "chat"), mapping=fields)
        assert set(await router.get_pods(namespace, "chat")) == {2}
        assert (await router.route(namespace, SECRET, "chat")).pod == 2

    async def test_states_that_are_no_utf8_are_kept_readable(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        raw.hset(state_key(namespace, "chat"), "0", b"\xff\xfe")
        assert await router.get_service_state(namespace, "chat") == {0: "\\xff\\xfe"}


class TestUidsStayOutOfErrors:
    async def test_when_no_pod_can_take_it(self, router: Any, namespace: str) -> None:
        with pytest.raises(NoRoutablePod) as caught:
            await router.route(namespace, SECRET, "chat")
        assert SECRET not in everything_said(caught.value)

    async def test_when_a_script_refuses_its_arguments(
        self, router: Any, link: LinkProgram
    ) -> None:
        with pytest.raises(ScriptFailed, match=r"statefulSetLink failed.*\(SFARG\)") as caught:
            await router.execute_script("statefulSetLink", [link.link, link.hash], ["chat", "x", 0])
        assert caught.value.script == "statefulSetLink"
        assert SECRET not in everything_said(caught.value)

    @pytest.mark.parametrize(
        "operation", ["set_linked_pod", "get_linked_pod", "set_workload_state"]
    )
    async def test_when_the_server_repeats_the_command_in_its_refusal(
        self, make_router: Callable[..., Any], server: str, operation: str
    ) -> None:
        # "ERR unknown command 'EVALSHA', with args beginning with: ...": proxies and managed stores answer so.
        arguments = catalogue.operation(operation).arguments(uid=SECRET)
        if operation == "set_workload_state":
            arguments = arguments | {"service": SECRET}  # any name would do
        unknown = {
            "set_linked_pod": "EVALSHA",
            "get_linked_pod": "GET",
            "set_workload_state": "SET",
        }
        renamed = {"rename-command": f'{unknown[operation]} ""'}
        with LocalServer(server_binary=SERVERS[server], extra_config=renamed) as refusing:
            router = make_router(refusing.url)
            with pytest.raises(SfrouteError, match=r"\(ERR\)") as caught:
                await getattr(router, operation)(**arguments)
            await router.aclose()
        assert SECRET not in everything_said(caught.value)


def test_every_link_key_of_these_tests_holds_the_uid() -> None:
    assert SECRET in link_key("ns", SECRET, "chat")
    assert SECRET in link_prefix("ns", SECRET)
