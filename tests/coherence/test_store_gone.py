"""The whole store is gone: known links are served, marked stale, for ``stale_if_error``; then the caller is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import SERVERS, make_cluster
from support.stalls import Stalls

from sfroute import AsyncRouter, RetryConfig, Router, RouterConfig, StoreUnavailable
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import becomes, cached, settings, until

MAX_AGE = 0.3
STALE_IF_ERROR = 4.0
DEADLINE = 0.3
"""Seconds of a call without the store. Those before it is gone, on which nothing depends, have the usual time."""
STALL = 0.25
"""How much later than planned a timer may run, without the time in which nothing of this process runs."""

HASTY = RouterConfig(retry=RetryConfig(connect_timeout=0.2))
CONFIG = settings(HASTY, max_age=MAX_AGE, stale_if_error=STALE_IF_ERROR)


@dataclass
class Answer:
    asked: float
    answered: float
    pod: int | type[Exception] | None
    stale: bool


async def ask(router: AsyncRouter, uid: tuple[str, str, str]) -> Answer:
    stale = router.stats().cache.stale
    asked = time.monotonic()
    try:
        pod: int | type[Exception] | None = await router.get_linked_pod(*uid, timeout=DEADLINE)
    except StoreUnavailable as error:
        pod = type(error)
    return Answer(asked, time.monotonic(), pod, router.stats().cache.stale > stale)


@pytest.fixture(scope="module")
def mortal() -> Iterator[LocalCluster]:
    """3 primaries, killed and restarted."""
    with make_cluster(next(iter(SERVERS)), replicas_per_primary=0) as cluster:
        yield cluster


@pytest.fixture
async def alive(mortal: LocalCluster) -> LocalCluster:
    """The cluster with all nodes running."""
    for node in mortal.nodes:
        if not node.alive:
            await asyncio.to_thread(mortal.restart, node)
    await asyncio.to_thread(mortal.wait_healthy)
    return mortal


def kill_all(cluster: LocalCluster) -> None:
    for node in cluster.nodes:
        cluster.kill(node)


@pytest.mark.slow
async def test_known_links_are_served_marked_stale_for_stale_if_error(
    alive: LocalCluster, namespace: str, stalls: Stalls
) -> None:
    uids = [(namespace, f"u{number}", "chat") for number in range(9)]
    async with AsyncRouter.from_url(alive.url, config=CONFIG) as router:
        for uid in uids[:-1]:
            await router.set_linked_pod(*uid, int(uid[1][1:]))
        began = time.monotonic()
        known = [await router.get_linked_pod(*uid) for uid in uids]  # the last one is absent
        read = time.monotonic()
        assert known == [0, 1, 2, 3, 4, 5, 6, 7, None]
        kill_all(alive)
        killed = time.monotonic()
        answers: list[list[Answer]] = [[] for _ in uids]

        async def keep_asking(number: int) -> None:
            while not answers[number] or answers[number][-1].pod is not StoreUnavailable:
                answers[number].append(await ask(router, uids[number]))
                await asyncio.sleep(0.01)

        await asyncio.gather(*map(keep_asking, range(len(uids))))
        for number, pod in enumerate(known):
            *served, last = answers[number]
            assert {answer.pod for answer in served} == {pod}
            assert all(a.stale for a in served if stalls.took(killed, a.asked) > 0.1)
            # To the end of the time, and not a moment longer.
            assert stalls.took(read, served[-1].answered) < MAX_AGE + STALE_IF_ERROR
            assert (
                last.asked + stalls.between(last.asked, last.answered)
                > began + MAX_AGE + STALE_IF_ERROR - STALL
            )
            # At once, but for the one that finds the connections lost; the error comes with the deadline.
            waited = [stalls.took(answer.asked, answer.answered) for answer in answers[number]]
            assert max(waited) < DEADLINE + STALL
            assert sum(seconds > 0.1 for seconds in waited[:-1]) <= 1
        assert not any(lane.healthy for lane in router.stats().lanes)

        # The store comes back, empty; the same router finds it.
        for node in alive.nodes:
            await asyncio.to_thread(alive.restart, node)
        await asyncio.to_thread(alive.wait_healthy)
        for uid in uids:
            await becomes(router, uid, None)
            await router.set_linked_pod(*uid, 10)
            assert await cached(router, uid) == 10


@pytest.mark.slow
async def test_links_say_so_themselves(alive: LocalCluster, namespace: str, stalls: Stalls) -> None:
    uid = (namespace, "ada", "chat")
    async with AsyncRouter.from_url(alive.url, config=CONFIG) as router:
        await router.set_linked_pod(*uid, 5)
        before = time.monotonic()
        link = await router.route(*uid)
        assert (link.pod, link.stale, link.persistent) == (5, False, True)
        kill_all(alive)
        await asyncio.sleep(0.05)
        asked = time.monotonic()
        link = await router.route(*uid, timeout=DEADLINE)
        answered = time.monotonic()
        assert (link.pod, link.stale, link.source) == (5, True, "cache")
        assert 0 < link.age < answered - before
        assert stalls.took(asked, answered) < DEADLINE
        await asyncio.sleep(before + MAX_AGE + STALE_IF_ERROR + 0.1 - time.monotonic())
        with pytest.raises(StoreUnavailable) as unavailable:
            await router.route(*uid, timeout=DEADLINE)
        assert unavailable.value.retryable
        assert unavailable.value.__cause__ is not None


@pytest.mark.slow
async def test_what_is_not_known_is_unavailable_at_the_deadline(
    alive: LocalCluster, namespace: str, stalls: Stalls
) -> None:
    async with AsyncRouter.from_url(alive.url, config=CONFIG) as router:
        assert await router.get_linked_pod(namespace, "ada", "chat") is None
        kill_all(alive)
        for asking in (
            router.get_linked_pod(namespace, "bob", "chat", timeout=DEADLINE),
            router.get_linked_pod(namespace, "ada", "chat", fresh=True, timeout=DEADLINE),
            router.get_link_service(namespace, "ada", timeout=DEADLINE),
            router.batch_get_linked_pod(namespace, ["ada", "bob"], "chat", timeout=DEADLINE),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await asking
            assert stalls.took(began) < DEADLINE + STALL


@pytest.mark.slow
async def test_a_temporary_link_is_not_served_past_its_own_end(
    mortal_server: LocalServer, namespace: str, stalls: Stalls
) -> None:
    uid = (namespace, "ada", "chat")
    config = settings(HASTY, stale_if_error=60.0)
    async with AsyncRouter.from_url(mortal_server.url, config=config) as router:
        await router.set_linked_pod(*uid, 5, 3)
        over = time.monotonic() + 3.001
        assert await cached(router, uid) == 5
        mortal_server.kill()
        answer = await ask(router, uid)
        while answer.pod == 5:
            assert answer.asked + stalls.took(answer.asked, answer.answered) <= over
            await asyncio.sleep(0.005)
            answer = await ask(router, uid)
        assert answer.pod is StoreUnavailable
        assert answer.asked + stalls.between(answer.asked, answer.answered) > over - 0.1


async def test_nothing_is_served_that_was_flushed(
    mortal_server: LocalServer, namespace: str
) -> None:
    uid = (namespace, "ada", "chat")
    config = settings(HASTY, stale_if_error=60.0)
    async with AsyncRouter.from_url(mortal_server.url, config=config) as router:
        await router.set_linked_pod(*uid, 5)
        assert await cached(router, uid) == 5
        mortal_server.execute("FLUSHALL")
        # Told of by now: this answer follows the push.
        await router.get_linked_pod(*uid[:2], "fence", fresh=True)
        mortal_server.kill()
        assert (await ask(router, uid)).pod is StoreUnavailable


async def test_stale_if_error_of_zero_turns_it_off(
    mortal_server: LocalServer, namespace: str
) -> None:
    uid = (namespace, "ada", "chat")
    async with AsyncRouter.from_url(
        mortal_server.url, config=settings(HASTY, stale_if_error=0)
    ) as router:
        await router.set_linked_pod(*uid, 5)
        assert await cached(router, uid) == 5
        mortal_server.kill()

        async def unavailable() -> bool:
            return (await ask(router, uid)).pod is StoreUnavailable

        await until(unavailable)
        assert router.stats().cache.stale == 0


@pytest.mark.slow
async def test_whoever_refuses_an_old_answer_gets_none(
    mortal_server: LocalServer, namespace: str, make_router: Callable[..., Any], stalls: Stalls
) -> None:
    """By either front, by every cached operation; and who takes one waits for nobody who does not."""
    uid = (namespace, "ada", "chat")
    router = make_router(mortal_server.url, config=settings(HASTY, stale_if_error=60.0))
    operations: dict[str, tuple[tuple[object, ...], object]] = {
        "get_linked_pod": (uid, 5),
        "get_linked_pod_if_persist": (uid, 5),
        "get_link_service": (uid[:2], {"chat": 5}),
        "batch_get_linked_pod": ((namespace, ["ada"], "chat"), {5: ["ada"]}),
    }
    await router.set_linked_pod(*uid, 5)
    for name, (names, answer) in operations.items():
        # While the store can be reached it makes no difference.
        assert await getattr(router, name)(*names, stale_ok=False) == answer
    mortal_server.kill()

    async def served_stale() -> bool:
        assert await router.get_linked_pod(*uid) == 5
        return bool(router.stats().cache.stale)

    await until(served_stale)
    for name, (names, answer) in operations.items():
        call = getattr(router, name)
        refusing = asyncio.ensure_future(call(*names, stale_ok=False, timeout=1.0))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        assert await call(*names) == answer
        assert stalls.took(began) < DEADLINE
        with pytest.raises(StoreUnavailable) as unavailable:
            await refusing
        assert unavailable.value.operation == name
        assert unavailable.value.retryable
    await router.aclose()


@pytest.mark.slow
async def test_whoever_refuses_an_old_answer_waits_for_a_true_one(
    mortal_server: LocalServer, namespace: str
) -> None:
    uid = (namespace, "ada", "chat")
    patient = RouterConfig(retry=RetryConfig(deadline=10.0, connect_timeout=0.2))
    async with AsyncRouter.from_url(
        mortal_server.url, config=settings(patient, stale_if_error=60.0)
    ) as router:
        await router.set_linked_pod(*uid, 5)
        assert await cached(router, uid) == 5
        mortal_server.pause()

        async def served_stale() -> bool:
            assert await router.get_linked_pod(*uid) == 5
            return bool(router.stats().cache.stale)

        await until(served_stale, within=5.0)
        asking = asyncio.ensure_future(router.get_linked_pod(*uid, stale_ok=False))
        done, _ = await asyncio.wait([asking], timeout=0.3)
        assert not done
        mortal_server.resume()
        stale = router.stats().cache.stale
        assert await asking == 5
        assert router.stats().cache.stale == stale


@pytest.mark.slow
def test_threads_are_served_the_same(
    mortal_server: LocalServer, namespace: str, stalls: Stalls
) -> None:
    uid = (namespace, "ada", "chat")
    with Router.from_url(mortal_server.url, config=CONFIG) as router:
        router.set_linked_pod(*uid, 5)
        assert router.get_linked_pod(*uid) == 5
        read = time.monotonic()
        mortal_server.kill()
        while True:
            asked = time.monotonic()
            try:
                assert router.get_linked_pod(*uid, timeout=DEADLINE) == 5
            except StoreUnavailable:
                break
            assert stalls.took(read) < MAX_AGE + STALE_IF_ERROR
            time.sleep(0.005)
        ended = asked + stalls.between(asked, time.monotonic())
        assert ended > read + MAX_AGE + STALE_IF_ERROR - STALL
        assert router.stats().cache.stale > 10
