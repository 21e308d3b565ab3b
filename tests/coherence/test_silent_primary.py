"""A primary that is stopped (SIGSTOP): its connections stay open and say nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from conftest import SERVERS, make_cluster
from support.ledger import Ledger
from support.stalls import Stalls

from sfroute import AsyncRouter, Link, PlacementConfig, RetryConfig, RouterConfig
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalServer

from .conftest import another_client, settings

MAX_AGE = 30.0
HEARTBEAT = 0.2
HEARTBEAT_TIMEOUT = 1.0
BOUND = min(MAX_AGE, HEARTBEAT_TIMEOUT)
STALL = 0.25
"""How much later than planned a timer may run, without the time in which nothing of this process runs."""


def config(**placement: float) -> RouterConfig:
    return settings(
        RouterConfig(
            retry=RetryConfig(deadline=10.0, connect_timeout=0.3),
            placement=PlacementConfig(**placement),  # type: ignore[arg-type]
        ),
        max_age=MAX_AGE,
        heartbeat=HEARTBEAT,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
    )


@dataclass
class Answer:
    """One answer and when it was asked for and given."""

    uid: str
    pod: int | None
    stale: bool
    asked: float
    answered: float
    age: float = 0.0


Ask = Callable[[str], Awaitable[Answer]]


async def ask_until(enough: Callable[[Answer], bool], ask: Ask, uids: list[str]) -> list[Answer]:
    """Ask for the uids in turn, without end."""
    answers: list[Answer] = []
    while True:
        for uid in uids:
            answers.append(await ask(uid))
            if enough(answers[-1]):
                return answers
        await asyncio.sleep(0.005)


def asking_for_links(router: AsyncRouter, namespace: str) -> Ask:
    async def ask(uid: str) -> Answer:
        asked = time.monotonic()
        link: Link = await router.route(namespace, uid, "chat")
        return Answer(uid, link.pod, link.stale, asked, time.monotonic(), link.age)

    return ask


def asking_for_pods(router: AsyncRouter, namespace: str) -> Ask:
    async def ask(uid: str) -> Answer:
        before = router.stats().cache.stale
        asked = time.monotonic()
        pod = await router.get_linked_pod(namespace, uid, "chat")
        return Answer(uid, pod, router.stats().cache.stale > before, asked, time.monotonic())

    return ask


async def link_ten_uids(server: LocalServer, namespace: str) -> list[str]:
    uids = [f"u{number}" for number in range(10)]
    async with another_client(server) as other:
        for number, uid in enumerate(uids):
            await other.set(link_key(namespace, uid, "chat"), number)
    return uids


@pytest.mark.parametrize("asking", [asking_for_links, asking_for_pods])
async def test_answers_are_marked_stale_once_the_heartbeat_is_missed(
    mortal_server: LocalServer,
    namespace: str,
    asking: Callable[[AsyncRouter, str], Ask],
    stalls: Stalls,
) -> None:
    uids = await link_ten_uids(mortal_server, namespace)
    async with AsyncRouter.from_url(mortal_server.url, config=config()) as router:
        ask = asking(router, namespace)
        for uid in uids:
            await ask(uid)
        mortal_server.pause()
        stopped = time.monotonic()
        outdated: set[str] = set()

        def all_are_marked(answer: Answer) -> bool:
            outdated.update([answer.uid] if answer.stale else [])
            return answer.answered > stopped + 1.7 and outdated == set(uids)

        answers = await ask_until(all_are_marked, ask, uids)
        mortal_server.resume()
        resumed = time.monotonic()

        assert [answer.pod for answer in answers] == [int(answer.uid[1:]) for answer in answers]
        # The primary may have learnt otherwise ever since it was stopped: nobody is told the old for longer than the
        # bound, unless it is marked.
        unmarked = [answer for answer in answers if not answer.stale]
        assert max(stalls.took(stopped, answer.answered) for answer in unmarked) <= BOUND
        assert max(a.age - stalls.between(a.asked, a.answered) for a in unmarked) <= BOUND
        marked = [answer for answer in answers if answer.stale]
        assert router.stats().cache.stale == len(marked)
        if asking is asking_for_links:
            assert all(answer.age >= answer.asked - stopped for answer in marked)
        # It takes no longer than noticing the silence takes.
        longest = max(stalls.took(answer.asked, answer.answered) for answer in answers)
        assert longest < HEARTBEAT_TIMEOUT + HEARTBEAT + STALL

        back = await ask_until(lambda a: not a.stale, ask, uids)
        assert stalls.took(resumed, back[-1].answered) < 1.0
        (lane,) = router.stats().lanes
        assert lane.healthy
        assert lane.tracked


async def test_nor_while_the_pods_of_the_service_cannot_be_read_either(
    mortal_server: LocalServer, namespace: str, stalls: Stalls
) -> None:
    """``route()`` wants to know the pods, too; a link it waited with must not be told of as if it were young."""
    uids = await link_ten_uids(mortal_server, namespace)
    hasty = config(pod_view_max_age=0.05)
    async with AsyncRouter.from_url(mortal_server.url, config=hasty) as router:
        ask = asking_for_links(router, namespace)
        for uid in uids:
            await ask(uid)
        mortal_server.pause()
        stopped = time.monotonic()
        answers = await asyncio.gather(
            *(ask_until(lambda a: a.answered > stopped + 1.7, ask, [uid]) for uid in uids)
        )
        mortal_server.resume()
    unmarked = [answer for of_uid in answers for answer in of_uid if not answer.stale]
    assert max(stalls.took(stopped, answer.answered) for answer in unmarked) <= BOUND


@pytest.mark.slow
async def test_a_stopped_primary_that_is_replaced_never_outlives_the_bound(namespace: str) -> None:
    """Its replica is promoted and written to while it is stopped; then it wakes up, and everything is true at once."""
    uids = [f"u{number}" for number in range(60)]
    ledger = Ledger()
    with make_cluster(next(iter(SERVERS))) as cluster:
        async with (
            AsyncRouter.from_url(cluster.url, config=config()) as router,
            AsyncRouter.from_url(cluster.url) as writer,
        ):

            async def write(pod: int) -> None:
                for uid in uids:
                    await writer.set_linked_pod(namespace, uid, "chat", pod)
                    ledger.wrote(uid, pod)

            await write(1)
            ask = asking_for_pods(router, namespace)
            for uid in uids:
                await ask(uid)
            stopped = cluster.primary_of(link_key(namespace, "u0", "chat"))
            replica = cluster.replica_of(stopped)
            over = asyncio.Event()
            unmarked = 0

            def enough(answer: Answer) -> bool:
                nonlocal unmarked
                unmarked += not answer.stale
                return over.is_set() and unmarked > 1000

            asking = asyncio.create_task(ask_until(enough, ask, uids))
            cluster.pause(stopped)
            await asyncio.to_thread(cluster.failover, replica, force=True)
            await write(2)
            cluster.resume(stopped)
            await write(3)
            over.set()
            answers = await asking
            for uid in uids:
                assert await router.get_linked_pod(namespace, uid, "chat") == 3
    behind = [
        ledger.outdated(answer.uid, answer.pod, answer.asked)
        for answer in answers
        if not answer.stale
    ]
    assert max(behind) <= BOUND
