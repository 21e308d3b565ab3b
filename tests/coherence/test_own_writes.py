"""What this router has written is what it answers from then on, whatever its own lookups bring that began before."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.proxy import Proxy

from sfroute import AsyncRouter, Router, RouterConfig
from sfroute.embedded import LocalServer

from .conftest import CALM, settings

UIDS = 25
ROUNDS_PER_UID = 40
LONGEST_DELAY = 0.004


def late() -> float:
    return random.uniform(0, LONGEST_DELAY) if random.random() < 0.7 else 0.0


UNTRACKED = settings(max_age_untracked=60.0, tracking=False, **CALM)


@pytest.mark.parametrize("config", [settings(**CALM), UNTRACKED], ids=["tracked", "untracked"])
async def test_asyncio_reads_its_writes_a_thousand_times(
    single: LocalServer, namespace: str, config: RouterConfig
) -> None:
    seen: Counter[str] = Counter()

    async def rounds(router: AsyncRouter, uid: str) -> None:
        link = (namespace, uid, "chat")

        async def look() -> int | None:
            await asyncio.sleep(random.uniform(0, LONGEST_DELAY))
            return await router.get_linked_pod(*link, fresh=random.random() < 0.3)

        async def compare(pod: int | None, persistent: bool) -> None:
            kept = pod if persistent else None
            answers = (
                await router.get_linked_pod(*link),
                await router.get_linked_pod_if_persist(*link),
                (await router.get_link_service(*link[:2])).get("chat"),
            )
            seen["right" if answers == (pod, kept, kept) else "STALE"] += 1

        for number in range(ROUNDS_PER_UID):
            looking = [asyncio.create_task(look()) for _ in range(3)]
            await asyncio.sleep(random.uniform(0, LONGEST_DELAY))
            pod, persistent = await write(router, link, number)
            await compare(pod, persistent)
            for task in looking:
                seen["old" if await task != pod else "new"] += 1
            await compare(pod, persistent)

    async with (
        Proxy(single.node.address) as proxy,
        AsyncRouter.from_url(proxy.url, config=config) as router,
    ):
        proxy.replies.delay = late
        proxy.requests.delay = late
        await asyncio.gather(*(rounds(router, f"u{number}") for number in range(UIDS)))
    assert seen["STALE"] == 0
    assert seen["right"] == 2 * UIDS * ROUNDS_PER_UID
    assert seen["old"] > 20
    assert seen["new"] > 20


async def write(
    router: AsyncRouter, link: tuple[str, str, str], number: int
) -> tuple[int | None, bool]:
    """One of the operations; what the link is afterwards, and whether it is persistent."""
    match number % 5:
        case 0:
            await router.set_linked_pod(*link, number)
            return number, True
        case 1:
            await router.set_linked_pod(*link, number, 3600)
            return number, False
        case 2:
            assert (await router.try_set_linked_pod(*link, number)).success
            return number, True
        case 3:
            assert await router.remove_linked_pod_with_id(*link, pod=number - 1)
            return None, False
        case _:
            assert await router.set_linked_pod_if_absent(*link, number) == number
            return number, True


@pytest.mark.slow
async def test_threads_read_their_writes_a_thousand_times(
    single: LocalServer, namespace: str
) -> None:
    seen: Counter[str] = Counter()

    def rounds(router: Router, uid: str) -> Counter[str]:
        """This thread writes and compares; a second one looks up all the time."""
        link = (namespace, uid, "chat")
        counts: Counter[str] = Counter()
        with ThreadPoolExecutor(1) as pool:
            for number in range(1, 126):
                looking = [
                    pool.submit(router.get_linked_pod, *link, fresh=fresh)
                    for fresh in (False, True, False)
                ]
                persistent = number % 2 == 0
                router.set_linked_pod(*link, number, -1 if persistent else 3600)
                for _ in range(2):
                    kept = number if persistent else None
                    answers = (
                        router.get_linked_pod(*link),
                        router.get_linked_pod_if_persist(*link),
                        router.get_link_service(*link[:2]).get("chat"),
                    )
                    counts["right" if answers == (number, kept, kept) else "STALE"] += 1
                    for task in looking:
                        counts["old" if task.result() != number else "new"] += 1
        return counts

    switch_interval = sys.getswitchinterval()
    async with Proxy(single.node.address) as proxy:
        proxy.replies.delay = late

        def run() -> None:
            with (
                Router.from_url(proxy.url, config=settings(**CALM)) as router,
                ThreadPoolExecutor(8) as pool,
            ):
                for counts in pool.map(lambda n: rounds(router, f"u{n}"), range(8)):
                    seen.update(counts)

        sys.setswitchinterval(1e-4)  # threads take turns often
        try:
            await asyncio.to_thread(run)
        finally:
            sys.setswitchinterval(switch_interval)
    assert seen["STALE"] == 0
    assert seen["right"] == 2 * 8 * 125
    assert seen["old"] > 20
