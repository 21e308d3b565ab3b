"""``timeout``: how long one call may take, whatever the configuration says, and what becomes of calls beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import catalogue
import pytest
from conftest import SERVERS
from support.peer import Peer, bulk
from support.rows import Operation

from sfroute import (
    AsyncRouter,
    CacheConfig,
    NoRoutablePod,
    OutcomeUnknown,
    PlacementConfig,
    RetryConfig,
    Router,
    RouterConfig,
    StoreUnavailable,
)
from sfroute._fronts import background
from sfroute.embedded import LocalServer

CONFIGURED = 60.0
"""The deadline that the configuration sets."""
SOON = 20.0
"""Before this a call with a short time has ended, on a busy machine too."""
SHORT = 0.6
PATIENT = RouterConfig(
    # A silent server is one that does not answer, not one that counts as lost.
    cache=CacheConfig(heartbeat=50.0, heartbeat_timeout=100.0),
    placement=PlacementConfig(pod_view_max_age=50.0, pod_timeout=1000.0),
    retry=RetryConfig(deadline=CONFIGURED, connect_timeout=50.0),
)
TIMED = [row for row in catalogue.OPERATIONS if "timeout" in row.args]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(server_binary=next(iter(SERVERS.values()))) as server:
        yield server


@contextmanager
def silent(server: LocalServer) -> Iterator[None]:
    """The server is stopped (SIGSTOP): it keeps its connections and says nothing."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


@contextmanager
def no_writes(server: LocalServer) -> Iterator[None]:
    """The server answers reads, and lets writes wait."""
    server.execute("CLIENT", "PAUSE", "600000", "WRITE")
    try:
        yield
    finally:
        server.execute("CLIENT", "UNPAUSE")


@pytest.fixture
async def patient(make_router: Callable[..., Any], server: LocalServer) -> AsyncIterator[Any]:
    """A router of either kind with much time, whose connections are open."""
    router = make_router(server.url, config=PATIENT)
    await router.set_linked_pod("warm", "u", "chat", 1)
    await router.get_linked_pod("warm", "u", "chat", fresh=True)
    yield router
    await router.aclose()


async def outcome_of(call: Any) -> Any:
    try:
        return await call
    except (StoreUnavailable, OutcomeUnknown, NoRoutablePod) as error:
        return error


def test_all_that_ask_the_store_once_have_it() -> None:
    """What goes through all links, or never ends, takes as long as it takes."""
    without = {row.name for row in catalogue.OPERATIONS if "timeout" not in row.args}
    assert without - {row.name for row in catalogue.OPERATIONS if row.access == "local"} == {
        *("watch", "evacuate", "rebalance", "links", "forget", "prune")
    }


@pytest.mark.slow
async def test_every_call_ends_in_its_own_time(
    patient: Any, server: LocalServer, namespace: str
) -> None:
    async def ended(row: Operation) -> tuple[str, Any, float]:
        began = time.monotonic()
        uid = f"u-{row.name}"
        call = row.call(patient, **row.arguments(namespace, uid, timeout=SHORT))
        return row.name, await outcome_of(call), time.monotonic() - began

    with silent(server):
        outcomes = await asyncio.gather(*(ended(row) for row in TIMED if row.name != "open"))
    for name, outcome, took in outcomes:
        row = catalogue.operation(name)
        # It has looked the link up first, in vain. And a write of raw scripts may read.
        looks = name in {"route", "execute_script"} or row.access == "read"
        assert type(outcome) is (StoreUnavailable if looks else OutcomeUnknown), name
        assert f"{SHORT:g} s" in str(outcome), str(outcome)
        assert SHORT <= took < SOON, name


@pytest.mark.slow
async def test_opening_does_too(
    make_router: Callable[..., Any], server: LocalServer, namespace: str
) -> None:
    router = make_router(f"redis+cluster://127.0.0.1:{server.node.port}", config=PATIENT)
    try:
        with silent(server):
            names = (namespace, "u", "chat")
            for call in (
                partial(router.open),
                partial(router.get_linked_pod, *names),
                partial(router.set_linked_pod, *names, 1),
                partial(router.route, *names),
                partial(router.batch_get_linked_pod, namespace, ["u"], "chat"),
                partial(router.get_service_state, namespace, "chat"),
            ):
                began = time.monotonic()
                with pytest.raises(
                    StoreUnavailable, match=f"could not be opened within {SHORT:g} s"
                ):
                    await call(timeout=SHORT)
                assert time.monotonic() - began < SOON
    finally:
        await router.aclose()


async def test_openings_that_fail_soon_do_not_hammer_the_server(
    make_router: Callable[..., Any],
) -> None:
    brief = RouterConfig(retry=RetryConfig(deadline=0.005))
    async with Peer() as peer:
        peer.answer("ping", *[None] * 10_000)
        router = make_router(peer.url, config=brief)
        try:
            with pytest.raises(StoreUnavailable) as caught:
                await router.get_linked_pod("ns", "u", "chat", timeout=1.0)
            assert isinstance(caught.value.__cause__, Exception)
        finally:
            await router.aclose()
        # With pauses from 0.01 s up to 0.25 s.
        assert 2 <= peer.accepted < 30


@pytest.mark.parametrize("seconds", [None, 5.0])
async def test_a_server_that_cannot_save_is_open_to_who_reads(
    make_router: Callable[..., Any], seconds: float | None
) -> None:
    """It refuses PING as it refuses a write."""
    async with Peer() as peer:
        peer.answer("ping", *[b"-MISCONF Valkey is configured to save RDB snapshots\r\n"] * 10_000)
        peer.answer("get", bulk("3"))
        peer.answer("pttl", b":-1\r\n")
        router = make_router(peer.url, config=RouterConfig())
        try:
            assert await router.get_linked_pod("ns", "u", "chat", timeout=seconds) == 3
        finally:
            await router.aclose()
        assert peer.accepted <= 2


@pytest.mark.parametrize("first", ["short", "long"])
async def test_calls_that_wait_for_one_answer_keep_their_own_times(
    patient: Any, server: LocalServer, namespace: str, first: str
) -> None:
    await patient.set_linked_pod(namespace, "u", "chat", 7)

    with silent(server):
        calls = {}
        for kind in ("short", "long") if first == "short" else ("long", "short"):
            timeout = SHORT if kind == "short" else None
            call = patient.get_linked_pod(namespace, "u", "chat", timeout=timeout)
            calls[kind] = asyncio.create_task(outcome_of(call))
            await asyncio.sleep(0.05)
        assert type(await calls["short"]) is StoreUnavailable
        assert not calls["long"].done()
    assert await asyncio.wait_for(calls["long"], SOON) == 7


async def test_those_of_a_batch_too(patient: Any, server: LocalServer, namespace: str) -> None:
    for uid in "abc":
        await patient.set_linked_pod(namespace, uid, "chat", 7)
    with silent(server):
        short = patient.batch_get_linked_pod(namespace, ["a", "b"], "chat", timeout=SHORT)
        others = asyncio.create_task(patient.batch_get_linked_pod(namespace, ["b", "c"], "chat"))
        assert type(await outcome_of(short)) is StoreUnavailable
        assert not others.done()
    assert await asyncio.wait_for(others, SOON) == {7: ["b", "c"]}


@pytest.mark.parametrize("first", ["short", "long"])
async def test_a_placement_for_several_is_not_given_up_with_the_first(
    patient: Any, server: LocalServer, namespace: str, first: str
) -> None:
    await patient.set_service_state(namespace, "chat", 3, "Running")
    await patient.get_pods(namespace, "chat")
    with no_writes(server):
        calls = {}
        for kind in ("short", "long") if first == "short" else ("long", "short"):
            timeout = SHORT if kind == "short" else None
            call = patient.route(namespace, "u", "chat", timeout=timeout)
            calls[kind] = asyncio.create_task(outcome_of(call))
            await asyncio.sleep(0.05)
        gave_up = await calls["short"]
        assert type(gave_up) is OutcomeUnknown
        assert f"{SHORT:g} s" in str(gave_up)
        assert not calls["long"].done()
    assert (await asyncio.wait_for(calls["long"], SOON)).pod == 3


@pytest.mark.slow
async def test_a_call_may_have_more_time_than_the_configuration_gives(
    make_router: Callable[..., Any], server: LocalServer, namespace: str
) -> None:
    hasty = RouterConfig(retry=RetryConfig(deadline=0.4), cache=CacheConfig(stale_if_error=0))
    router = make_router(server.url, config=hasty)
    try:
        await router.set_linked_pod(namespace, "u", "chat", 7)
        await router.set_service_state(namespace, "chat", 7, "Running")
        more = {"timeout": 2 * SOON}
        link = (namespace, "u", "chat")
        # Each of the calls of threads has a worker thread, and there may be only five.
        for made, wanted in (
            (router.get_linked_pod(*link, fresh=True, **more), 7),
            (router.batch_get_linked_pod(namespace, ["u"], "chat", fresh=True, **more), {7: ["u"]}),
            (router.get_service_state(namespace, "chat", **more), {7: "Running"}),
            (router.pod_address(namespace, "chat", 7, **more), None),
            (router.try_set_linked_pod(namespace, "v", "chat", 8, **more), (True, 8)),
            (router.route(*link, fresh=True, **more), 7),
        ):
            with silent(server):
                call = asyncio.create_task(made)
                for _ in range(2):
                    with pytest.raises(StoreUnavailable, match=r"0\.4 s"):
                        await router.get_linked_pod(*link, fresh=True)
                assert not call.done()
            result = await call
            assert getattr(result, "pod", result) == wanted or result == wanted
    finally:
        await router.aclose()


@pytest.mark.slow
async def test_an_old_answer_is_better_than_none(
    make_router: Callable[..., Any], server: LocalServer, namespace: str
) -> None:
    cache = CacheConfig(max_age=0.05, max_age_untracked=0.05, heartbeat=50, heartbeat_timeout=100)
    router = make_router(server.url, config=RouterConfig(cache=cache, retry=PATIENT.retry))
    try:
        await router.set_linked_pod(namespace, "u", "chat", 7)
        assert await router.get_linked_pod(namespace, "u", "chat") == 7
        assert await router.batch_get_linked_pod(namespace, ["u"], "chat") == {7: ["u"]}
        await asyncio.sleep(0.1)
        names = (namespace, "u", "chat")
        with silent(server):
            began = time.monotonic()
            assert await router.get_linked_pod(*names, timeout=SHORT) == 7
            assert await router.batch_get_linked_pod(namespace, ["u"], "chat", timeout=SHORT) == {
                7: ["u"]
            }
            assert time.monotonic() - began < SOON
            assert router.stats().cache.stale == 2
            for refused in ({"stale_ok": False}, {"fresh": True}):
                with pytest.raises(StoreUnavailable):
                    await router.get_linked_pod(*names, timeout=SHORT, **refused)
    finally:
        await router.aclose()


def test_an_answer_that_comes_as_the_time_ends_is_taken(
    server: LocalServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = background._ThreadWaiter.wait

    def too_late(waiter: background._ThreadWaiter, seconds: float) -> None:
        assert wait(waiter, SOON) is not None

    with Router.from_url(server.url, config=PATIENT) as router:
        router.set_linked_pod(namespace, "u", "chat", 7)
        monkeypatch.setattr(background._ThreadWaiter, "wait", too_late)
        assert router.get_linked_pod(namespace, "u", "chat", fresh=True, timeout=SOON) == 7


async def test_a_cached_answer_takes_no_time(
    patient: Any, server: LocalServer, namespace: str
) -> None:
    await patient.set_linked_pod(namespace, "u", "chat", 7)
    assert await patient.get_linked_pod(namespace, "u", "chat") == 7
    with silent(server):
        assert await patient.get_linked_pod(namespace, "u", "chat", timeout=1e-9) == 7


async def test_a_write_with_more_time_is_remembered_for_longer(
    patient: Any, server: LocalServer, namespace: str
) -> None:
    """It may be repeated for longer, and must find what it has done."""

    async def kept(uid: str, **options: Any) -> float:
        await patient.set_linked_pod(namespace, uid, "chat", 7, **options)
        (record,) = cast("list[bytes]", server.execute("KEYS", f"sf:op:{{{namespace}:lk:{uid}}}:*"))
        return cast("int", server.execute("PTTL", record)) / 1000

    usual, longer, shorter = (
        await kept("a"),
        await kept("b", timeout=1000 + CONFIGURED),
        await kept("c", timeout=SHORT),
    )
    assert longer - usual == pytest.approx(1000, abs=SOON)
    assert shorter == pytest.approx(usual, abs=SOON)


async def test_nobody_is_placed_sooner_because_a_call_has_little_time(
    server: LocalServer, namespace: str
) -> None:
    """After the store has lost its data, the pod of a user may claim it again."""
    placement = PlacementConfig(reassert_grace=1000.0)
    config = RouterConfig(placement=placement, retry=RetryConfig(deadline=CONFIGURED))
    async with AsyncRouter.from_url(server.url, config=config) as router:
        await router.get_linked_pod(namespace, "u", "chat")
        server.execute("FLUSHALL")
        await router.set_service_state(namespace, "chat", 3, "Running")
        with pytest.raises(StoreUnavailable, match="the store has lost data"):
            await router.route(namespace, "u", "chat", timeout=1.5)
        assert await router.get_linked_pod(namespace, "u", "chat", fresh=True) is None


async def test_a_call_that_would_have_to_be_sent_once_more_in_its_last_moment_ends(
    server: LocalServer, namespace: str
) -> None:
    """Its deadline passes after the answer has come (NOSCRIPT) and before it is sent again."""
    async with AsyncRouter.from_url(server.url, config=PATIENT) as router:
        await router.get_service_state(namespace, "chat")
        for turns in range(1, 9):
            server.execute("SCRIPT", "FLUSH")
            call = asyncio.create_task(
                outcome_of(router.set_linked_pod(namespace, f"u{turns}", "chat", 7, timeout=0.1))
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            # It has been sent by now, sooner or later. The loop is held up past the deadline, and finds both.
            time.sleep(0.15)  # noqa: ASYNC251
            await asyncio.wait_for(call, SOON)
