"""Callers give up, crowd in as threads, fork, or outlive the interpreter: nobody else is disturbed, nobody hangs."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from support.proxy import Proxy

from sfroute import AsyncRouter, Router, RouterClosed
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import CALM, SOON, Raw, cached, settings

PROGRAMS = Path(__file__).parent / "programs"


class TestGivingUp:
    async def test_thousands_of_cancelled_and_timed_out_callers_disturb_nobody(
        self, single: LocalServer, other: Raw, namespace: str
    ) -> None:
        """Half of all callers give up at random moments; the others get the truth over the same connection."""
        uids = [(namespace, f"u{number}", "chat") for number in range(200)]
        for number, uid in enumerate(uids):
            await other.set(link_key(*uid), number)
        outcomes = {"right": 0, "gave up": 0}

        async def caller(number: int, patience: float | None) -> None:
            try:
                async with asyncio.timeout(patience):
                    pod = await router.get_linked_pod(*uids[number], fresh=random.random() < 0.5)
            except TimeoutError:
                outcomes["gave up"] += 1
            else:
                assert pod == number
                outcomes["right"] += 1

        async with (
            Proxy(single.node.address) as proxy,
            AsyncRouter.from_url(proxy.url, config=settings(**CALM)) as router,
        ):
            proxy.replies.delay = lambda: random.uniform(0, 0.004)
            await router.open()
            for _ in range(10):
                callers = [
                    asyncio.create_task(caller(number, random.uniform(0, 0.006) if half else None))
                    for number in range(200)
                    for half in (0, 1)
                ]
                await asyncio.sleep(random.uniform(0, 0.003))
                for task in random.sample(callers, 50):
                    task.cancel()
                done = await asyncio.gather(*callers, return_exceptions=True)
                assert all(
                    result is None or isinstance(result, asyncio.CancelledError) for result in done
                )
            stats = router.stats()
            assert outcomes["right"] > 1500
            assert outcomes["gave up"] > 200
            assert [lane.reconnects for lane in stats.lanes] == [0]
            assert stats.retries == {}
            assert proxy.accepted == 2  # one for lookups, one for the rest
            for number, uid in enumerate(uids):
                assert await router.get_linked_pod(*uid) == number

    async def test_a_writer_who_gives_up_leaves_nothing_outdated_behind(
        self, single: LocalServer, other: Raw, namespace: str
    ) -> None:
        """Whether the write was executed or not: the cache says what the store says."""
        uid = (namespace, "ada", "chat")
        untracked = settings(tracking=False, max_age_untracked=60.0, **CALM)
        executed = 0
        async with (
            Proxy(single.node.address) as proxy,
            AsyncRouter.from_url(proxy.url, config=untracked) as router,
        ):
            await router.set_linked_pod(*uid, 0)
            proxy.requests.delay = proxy.replies.delay = lambda: random.uniform(0, 0.003)
            for pod in range(1, 121):
                writing = asyncio.create_task(router.set_linked_pod(*uid, pod))
                looking = asyncio.create_task(router.get_linked_pod(*uid))
                if pod % 3:  # else it is not even sent
                    await asyncio.sleep(random.uniform(0, 0.008))
                writing.cancel()
                await asyncio.gather(writing, looking, return_exceptions=True)
                # A reply to a later write on the same connection: the one before has been executed, and noticed.
                await router.set_linked_pod(namespace, "fence", "chat", pod)
                stored = int(await other.get(link_key(*uid)) or -1)
                executed += stored == pod
                assert await router.get_linked_pod(*uid) == stored
        assert 10 < executed < 110


class TestThreads:
    @pytest.mark.slow
    def test_sixteen_threads_see_their_own_uids_and_one_anothers(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        """Each writes its own uid and reads it back; all read one that another program changes."""
        shared = (namespace, "shared", "chat")
        raw = redis.cluster.RedisCluster(
            host=cluster.nodes[0].host, port=cluster.nodes[0].port, protocol=2
        )
        started = threading.Barrier(16)
        switch_interval = sys.getswitchinterval()

        def work(router: Router, thread: int) -> int:
            own = (namespace, f"u{thread}", "chat")
            newest = -1
            started.wait()
            for number in range(150):
                router.set_linked_pod(*own, number)
                assert router.get_linked_pod(*own) == number
                assert router.get_linked_pod(*own) == number
                assert router.get_link_service(*own[:2]) == {"chat": number}
                assert router.route(*own).pod == number
                if thread == 0:
                    raw.set(link_key(*shared), number)
                seen = router.get_linked_pod(*shared)
                seen = -1 if seen is None else seen
                assert seen >= newest  # the cache never goes back
                newest = seen
                if number % 10 == 0:
                    router.invalidate(*own)
                    assert router.stats().cache.entries > 0
            return newest

        sys.setswitchinterval(1e-4)
        try:
            with (
                Router.from_url(cluster.url, config=settings()) as router,
                ThreadPoolExecutor(16) as pool,
            ):
                list(pool.map(lambda thread: work(router, thread), range(16)))
                deadline = time.monotonic() + SOON
                while router.get_linked_pod(*shared) != 149:
                    assert time.monotonic() < deadline
                stats = router.stats()
                assert [lane.reconnects for lane in stats.lanes] == [0] * 3
                assert {lane.tracked for lane in stats.lanes} == {True}
        finally:
            sys.setswitchinterval(switch_interval)
            raw.close()

    def test_sixteen_threads_that_miss_together_are_one_flight(
        self, single: LocalServer, namespace: str
    ) -> None:
        uid = (namespace, "ada", "chat")
        with Router.from_url(single.url, config=settings()) as router, ThreadPoolExecutor(16) as p:
            router.set_linked_pod(*uid, 7)
            for _ in range(50):
                router.invalidate(*uid)
                before = router.stats().cache
                single.pause()
                waiting = [p.submit(router.get_linked_pod, *uid) for _ in range(16)]
                asked = before.misses + before.joined
                while (now := router.stats().cache).misses + now.joined < asked + 16:
                    time.sleep(0.0005)
                single.resume()
                assert [task.result() for task in waiting] == [7] * 16
                assert now.misses == before.misses + 1

    @pytest.mark.parametrize("_", range(3))
    def test_closing_while_threads_wait(
        self, own_server: LocalServer, namespace: str, _: int
    ) -> None:
        router = Router.from_url(own_server.url, config=settings())
        router.get_linked_pod(namespace, "ada", "chat")
        own_server.pause()
        with ThreadPoolExecutor(16) as pool:
            waiting: list[Future[Any]] = [
                *(pool.submit(router.get_linked_pod, namespace, f"{n}", "x") for n in range(8)),
                *(pool.submit(router.get_pods, namespace, f"{n}") for n in range(8)),
            ]
            while router.stats().lanes[0].in_flight < 16:
                time.sleep(0.001)
            router.close()
            for task in waiting:
                assert isinstance(task.exception(timeout=SOON), RouterClosed)
        with pytest.raises(RouterClosed):
            router.get_linked_pod(namespace, "ada", "chat")


def run(program: str, *args: str, unclosed: str = "error") -> str:
    """What a program of this folder prints; warnings are errors there, too.

    ``unclosed``: what is done about warnings of what was not closed.
    """
    warnings = ["-W", "error", "-W", f"{unclosed}::ResourceWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, str(PROGRAMS / program), *args],
        capture_output=True,
        text=True,
        timeout=90,  # it hangs
        check=False,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


class TestProcesses:
    @pytest.mark.parametrize("how", ["fork", "multiprocessing", "fork_async"])
    def test_a_forked_child_opens_anew_and_disturbs_no_connection_of_its_parent(
        self, some_server: LocalServer, namespace: str, how: str
    ) -> None:
        assert run("forks.py", some_server.url, namespace, how) == "ok\n"

    @pytest.mark.parametrize("when", ["before", "after", "first_use", "daemon"])
    def test_calls_after_the_interpreter_began_to_end_raise_instead_of_hanging(
        self, some_server: LocalServer, namespace: str, when: str
    ) -> None:
        assert run("exits.py", some_server.url, namespace, when) == "ok\n"

    def test_a_process_without_room_for_a_thread_gets_an_error_of_ours(
        self, some_server: LocalServer
    ) -> None:
        assert run("no_threads.py", some_server.url) == "ok\n"


STATES = """
    made, opening, open, closed, forgotten, looking up, writing, watching, serving as a pod,
    asyncio made, asyncio opening, asyncio open, asyncio closed, asyncio looking up, asyncio writing,
    asyncio serving as a pod
"""


@pytest.mark.parametrize("state", re.split(r",\s+", STATES.strip()))
def test_the_interpreter_ends_in_silence_whatever_a_router_is_doing(
    some_server: LocalServer, namespace: str, state: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as never_answers:
        silent = f"redis://127.0.0.1:{never_answers.getsockname()[1]}"
        where = (some_server.url, silent, namespace)
        assert run("endings.py", *where, state, unclosed="ignore") == "ok\n"


async def test_asyncio_and_threads_share_nothing(single: LocalServer, namespace: str) -> None:
    """Two routers of one process see each other's writes as they see anybody's."""
    uid = (namespace, "ada", "chat")
    async with AsyncRouter.from_url(single.url, config=settings()) as one:
        with Router.from_url(single.url, config=settings()) as two:
            for pod in range(100):
                await one.set_linked_pod(*uid, pod)
                assert await asyncio.to_thread(two.get_linked_pod, *uid, fresh=True) == pod
                assert await cached(one, uid) == pod
                assert two.get_linked_pod(*uid) == pod
