"""Public reports of other clients' users, tried here: docs/explanation/faults.md, "Reports tried", names each."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import SERVERS
from support.documents import ROOT
from support.peer import Command, Peer, bulk
from support.stalls import Stalls

from sfroute import (
    AsyncRouter,
    CacheConfig,
    OutcomeUnknown,
    RetryConfig,
    RouterConfig,
    StoreError,
    StoreUnavailable,
)
from sfroute._contract.keys import link_key, slot_of
from sfroute.embedded import LocalServer

HASTY = RouterConfig(retry=RetryConfig(deadline=0.4, connect_timeout=0.2))


def node(host: str, port: int) -> bytes:
    return b"*3\r\n%b:%d\r\n%b" % (bulk(host), port, bulk(f"{port:040x}"))


def slot_range(first: int, last: int, *nodes: bytes) -> bytes:
    return b"*%d\r\n:%d\r\n:%d\r\n%b" % (2 + len(nodes), first, last, b"".join(nodes))


async def test_a_full_connection_makes_commands_wait_and_none_fail(
    make_router: Callable[..., Any], url: str, namespace: str
) -> None:
    """redis-py 3135: ten tasks and one connection, and nine failed at once."""
    router = make_router(url, config=RouterConfig(max_in_flight=1, cache=CacheConfig(max_age=0)))
    uids = [f"u{number}" for number in range(300)]
    await asyncio.gather(*(router.set_linked_pod(namespace, uid, "chat", 1) for uid in uids))
    found = await asyncio.gather(*(router.get_linked_pod(namespace, uid, "chat") for uid in uids))
    assert found == [1] * 300
    await router.aclose()


async def test_connections_that_break_while_they_are_written_to_leave_nothing_behind() -> None:
    """redis-py 4110: each error of a write leaked a place in the pool, until none was left."""
    async with Peer() as peer:
        config = RouterConfig(retry=RetryConfig(base=0.001, cap=0.002))
        async with AsyncRouter.from_url(peer.url, config=config) as router:
            for number in range(50):
                peer.answer("set", Peer.HANG_UP)
                await router.set_workload_state("ns", f"s{number}", "up")
            assert peer.open_connections <= 2


async def test_a_replica_without_an_address_is_not_asked_for_anything() -> None:
    """ioredis 1025: ``:0`` became 127.0.0.1:6379."""
    async with Peer() as peer:
        host, port = peer.address
        peer.answer(
            "cluster",
            b"*1\r\n" + slot_range(0, 16383, node(host, port), node("", 0)),
        )
        async with AsyncRouter.from_url(peer.cluster_url, config=HASTY) as router:
            assert await router.set_linked_pod("ns", "ada", "chat", 3) is None
            assert [lane.address for lane in router.stats().lanes] in ([], [f"{host}:{port}"])


async def test_a_primary_without_an_address_is_the_trouble_of_its_own_slots_only() -> None:
    """ioredis 1025, the worse half: slots whose primary has lost its address."""
    served, lost = sorted(("ada", "bob"), key=lambda uid: slot_of(link_key("ns", uid, "chat")))
    border = slot_of(link_key("ns", served, "chat"))
    async with Peer() as peer:
        host, port = peer.address
        nodes = (
            slot_range(0, border, node(host, port)),
            slot_range(border + 1, 16383, node("", 0)),
        )
        reply = b"*2\r\n" + b"".join(nodes)
        peer.answer("cluster", *[reply] * 100)
        async with AsyncRouter.from_url(peer.cluster_url, config=HASTY) as router:
            assert await router.set_linked_pod("ns", served, "chat", 3) is None
            with pytest.raises(StoreUnavailable):
                await router.set_linked_pod("ns", lost, "chat", 3)
            assert await router.set_linked_pod("ns", served, "chat", 3) is None


async def test_a_name_that_leads_elsewhere_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """lettuce 2430: after a restart on Kubernetes the client went on connecting to the old address."""
    real = socket.getaddrinfo
    async with Peer() as before, Peer() as after:
        now = before

        def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            if host == "store.sfroute.test" and not options.get("flags"):
                return real(*now.address, type=socket.SOCK_STREAM)
            return real(host, port, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        async with AsyncRouter.from_url("redis://store.sfroute.test:7") as router:
            assert await router.get_linked_pod("ns", "ada", "chat") is None
            now = after
            before.hang_up()
            assert await router.get_linked_pod("ns", "bob", "chat") is None
            await router.set_workload_state("ns", "chat", "up")
            assert after.received("set")


async def test_a_password_that_is_asked_for_from_now_on_is_named(
    make_router: Callable[..., Any], server: str, namespace: str
) -> None:
    """valkey-glide 2696: NOAUTH came out as a time-out."""
    with LocalServer(server_binary=SERVERS[server]) as single:
        router = make_router(single.url, config=HASTY)
        await router.set_linked_pod(namespace, "ada", "chat", 3)
        single.node.commands(
            ("CONFIG", "SET", "requirepass", "new"), ("CLIENT", "KILL", "TYPE", "normal")
        )
        with pytest.raises(StoreError, match="NOAUTH"):
            await router.set_linked_pod(namespace, "ada", "chat", 4)
        await router.aclose()


async def test_a_silent_server_does_not_stretch_the_deadline(stalls: Stalls) -> None:
    """valkey-glide 5284 and 5543: answers came a second after a time-out of 30 ms."""
    async with Peer() as peer:
        for command in ("get", "pttl"):
            peer.answer(command, *[None] * 1000)
        peer.answer("ping", *[b"+PONG\r\n"] * 3, *[None] * 1000)
        async with AsyncRouter.from_url(peer.url, config=HASTY) as router:
            begin = time.monotonic()
            calls = [router.get_linked_pod("ns", f"u{n}", "chat") for n in range(100)]
            ended = await asyncio.gather(*calls, return_exceptions=True)
            # Four times the deadline: what was reported took thirty.
            assert stalls.took(begin) < 4 * HASTY.retry.deadline
        assert {type(error) for error in ended} == {StoreUnavailable}


async def test_nothing_is_sent_for_a_caller_who_has_been_told_that_it_failed() -> None:
    """valkey-glide 2138: a command was repeated for fifteen seconds after its caller's time-out."""

    def again(command: Command) -> bytes:
        return b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n"

    async with Peer() as peer:
        peer.answer("set", *[again] * 10_000)
        async with AsyncRouter.from_url(peer.url, config=HASTY) as router:
            with pytest.raises(StoreUnavailable):
                await router.set_workload_state("ns", "chat", "up")
            sent = len(peer.received("set"))
            assert sent > 1
            pings = len(peer.received("ping"))
            async with asyncio.timeout(5):
                while len(peer.received("ping")) < pings + 2:  # noqa: ASYNC110 - the peer tells nobody
                    await asyncio.sleep(0.05)
            assert len(peer.received("set")) == sent


async def test_nodes_that_refer_to_each_other_are_not_asked_without_end() -> None:
    """redis-rs 413: MOVED between two nodes was followed for ever, as fast as they answered."""
    async with Peer() as one, Peer() as other:

        def moved(target: Peer) -> Callable[[Command], bytes]:
            host, port = target.address
            return lambda command: (
                b"-MOVED %d %b:%d\r\n"
                % (
                    slot_of(command[1].decode()),
                    host.encode(),
                    port,
                )
            )

        one.answer("set", *[moved(other)] * 10_000)
        other.answer("set", *[moved(one)] * 10_000)
        # To be opened within the deadline is not what this is about, however busy the machine.
        patient = RouterConfig(retry=RetryConfig(deadline=2.0))
        async with AsyncRouter.from_url(one.cluster_url, config=patient) as router:
            # An attempt may be under way when its connection is closed, or at the deadline.
            with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                await router.set_workload_state("ns", "chat", "up")
        # Four at once, then a pause: in 2 s some dozens, not thousands.
        assert len(one.received("set")) + len(other.received("set")) < 200


@pytest.mark.slow
async def test_tracking_is_on_before_a_new_connection_is_asked_anything() -> None:
    """lettuce 3885, from its review: what is asked again at a reconnect ran before tracking was back."""
    async with Peer() as peer, AsyncRouter.from_url(peer.url) as router:
        for number in range(20):
            assert await router.get_linked_pod("ns", f"u{number}", "chat") is None
            peer.hang_up()
        for conversation in peer.conversations:
            names = [b" ".join(command[:2]).upper() for command in conversation]
            asked = [place for place, name in enumerate(names) if name.startswith(b"GET")]
            if asked:
                assert b"CLIENT TRACKING" in names[: asked[0]]


def test_each_report_in_the_document_has_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "explanation" / "faults.md").read_text(encoding="utf-8")
    section = page.partition("## Reports tried")[2]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", section)
    assert len(named) >= 15
    for path, name in named:
        assert re.search(rf"(def|class) {name}\b", (ROOT / path).read_text(encoding="utf-8")), (
            path,
            name,
        )
