"""Threads that ask the store themselves: the cache is as true as if the event loop had asked.

A thread can be held up, interrupted by a signal handler, or hit by an exception between any two lines. So these tests
do something *at each line* of a lookup, one after another.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
import redis

import sfroute
from sfroute import Router, RouterClosed
from sfroute._contract.keys import link_key
from sfroute._lookups.entries import Expected
from sfroute._lookups.thread_lanes import MAX_LANES, ThreadLanes
from sfroute.embedded import LocalServer

from .conftest import CALM, SOON, settings

pytestmark = pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="the loop asks for all threads"
)

PRODUCT: Final = str(Path(sfroute.__file__).parent / "_lookups")

Uid = tuple[str, str, str]


def lanes_of(router: Router) -> ThreadLanes:
    """Those of the one primary."""
    background = router._background
    assert background is not None
    parts = background.inside.engine.parts
    assert parts is not None
    (lane,) = parts.dispatch.lanes
    assert lane.threads is not None
    return lane.threads


def wait_until(condition: Callable[[], bool], within: float = SOON) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def get_lanes(router: Router, namespace: str, count: int = 1) -> ThreadLanes:
    """Wait until threads have this many."""
    router.get_linked_pod(namespace, "first", "chat", fresh=True)
    lanes = lanes_of(router)
    deadline = time.monotonic() + SOON
    while len(lanes.free) < count:
        assert time.monotonic() < deadline
        # When it finds none, it has another connected.
        held = []
        while (lane := lanes.take()) is not None:
            held.append(lane)
        time.sleep(0.001)
        lanes.free.extend(held)
        lanes = lanes_of(router)
    return lanes


@pytest.fixture(autouse=True)
def tracking(server: str) -> None:
    """Without pushes threads ask by way of the loop."""
    if server.startswith("redis62"):
        pytest.skip("there is no tracking before Redis 7.0")


@pytest.fixture
def router(single: LocalServer) -> Iterator[Router]:
    """Its heart beats too rarely to hide anything."""
    with Router.from_url(single.url, config=settings(**CALM)) as router:
        yield router


def fence(router: Router, namespace: str) -> None:
    """All pushes before this have been handled: it asks on the lane that they come by."""
    router.get_linked_pod(namespace, "fence", "chat", fresh=True)


def at_line(number: int, act: Callable[[], object], call: Callable[[], object]) -> bool:
    """Do something before this line of the lookup that ``call`` makes. False if it has no such line."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PRODUCT):
            return None
        if event == "line":
            lines += 1
            if lines == number:
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines >= number


@contextmanager
def loop_held_up(router: Router) -> Iterator[None]:
    assert router._background is not None
    stopped, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        stopped.set()
        go_on.wait(SOON)

    router._background.loop.call_soon_threadsafe(hold)
    assert stopped.wait(SOON)
    try:
        yield
    finally:
        go_on.set()


def test_a_thread_needs_no_loop(router: Router, single: LocalServer, namespace: str) -> None:
    get_lanes(router, namespace)
    uid = (namespace, "ada", "chat")
    single.execute("SET", link_key(*uid), 7)
    before = router.stats().cache
    with loop_held_up(router):
        assert router.get_linked_pod(*uid) == 7
        assert router.get_linked_pod(*uid) == 7
        assert router.get_linked_pod_if_persist(namespace, "nobody", "chat") is None
    after = router.stats().cache
    assert (after.misses - before.misses, after.hits - before.hits) == (2, 1)


def test_what_changes_is_dropped(router: Router, single: LocalServer, namespace: str) -> None:
    get_lanes(router, namespace)
    uid = (namespace, "ada", "chat")
    for pod in range(100):
        single.execute("SET", link_key(*uid), pod)
        wait_until(lambda pod=pod: router.get_linked_pod(*uid) == pod)  # type: ignore[misc]
        assert router.get_linked_pod(*uid) == pod


def test_a_whole_uid_can_be_dropped(router: Router, single: LocalServer, namespace: str) -> None:
    get_lanes(router, namespace)
    uid = (namespace, "ada", "a service of which nobody has heard")
    with loop_held_up(router):
        router.get_linked_pod(*uid)
    router.invalidate(*uid[:2])
    before = router.stats().cache
    router.get_linked_pod(*uid)
    after = router.stats().cache
    assert (after.hits, after.misses) == (before.hits, before.misses + 1)


def test_a_temporary_link_is_not_served_past_its_end(
    router: Router, single: LocalServer, namespace: str
) -> None:
    get_lanes(router, namespace)
    uid = (namespace, "ada", "chat")
    single.execute("SET", link_key(*uid), 7, "PX", 60)
    began = time.monotonic()
    while router.get_linked_pod(*uid) is not None:
        assert time.monotonic() < began + 0.2
    assert router.get_linked_pod_if_persist(*uid) is None


class TestAtEachLine:
    def test_another_client_changes_the_link(
        self, router: Router, single: LocalServer, namespace: str
    ) -> None:
        """The thread is held up there until the push has been handled."""
        get_lanes(router, namespace)

        def ask(uid: Uid, answers: list[int | None]) -> None:
            answers.append(router.get_linked_pod(*uid))

        number, more = 0, True
        while more:
            number += 1
            uid = (namespace, f"u{number}", "chat")
            single.execute("SET", link_key(*uid), 1)

            def change(uid: Uid = uid) -> None:
                single.execute("SET", link_key(*uid), 2)
                fence(router, namespace)

            answers: list[int | None] = []
            more = at_line(number, change, partial(ask, uid, answers))
            assert answers[0] in {1, 2}
            if more:
                assert router.get_linked_pod(*uid) == 2, f"line {number}"
        assert number > 50

    def test_the_same_router_changes_the_link(
        self, router: Router, single: LocalServer, namespace: str
    ) -> None:
        """As a signal handler does: the call that it interrupts must not hold it up."""
        get_lanes(router, namespace)
        number, more = 0, True
        while more:
            number += 1
            uid = (namespace, f"u{number}", "chat")
            single.execute("SET", link_key(*uid), 1)

            def change(uid: Uid = uid) -> None:
                router.get_linked_pod(*uid)
                router.set_linked_pod(*uid, 2)
                assert router.get_linked_pod(*uid) == 2

            began = time.monotonic()
            more = at_line(number, change, partial(router.get_linked_pod, *uid))
            assert time.monotonic() < began + 4.0, f"line {number}"
            if more:
                assert router.get_linked_pod(*uid) == 2, f"line {number}"

    def test_everything_is_flushed(
        self, own_server: LocalServer, server: str, namespace: str
    ) -> None:
        with Router.from_url(own_server.url, config=settings(**CALM)) as router:
            get_lanes(router, namespace)
            number, more = 0, True
            while more:
                number += 1
                uid = (namespace, f"u{number}", "chat")
                own_server.execute("SET", link_key(*uid), 1)

                def change() -> None:
                    own_server.execute("FLUSHALL")
                    fence(router, namespace)

                more = at_line(number, change, partial(router.get_linked_pod, *uid))
                if more:
                    assert router.get_linked_pod(*uid) is None, f"line {number}"

    def test_all_connections_are_killed(
        self, own_server: LocalServer, server: str, namespace: str
    ) -> None:
        with Router.from_url(own_server.url, config=settings(**CALM)) as router:
            number, more = 0, True
            while more:
                get_lanes(router, namespace)
                number += 4  # each takes a while
                uid = (namespace, f"u{number}", "chat")
                own_server.execute("SET", link_key(*uid), 1)

                def change(uid: Uid = uid) -> None:
                    before = router.stats().lanes[0].reconnects
                    own_server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                    own_server.execute("SET", link_key(*uid), 2)
                    wait_until(lambda: router.stats().lanes[0].reconnects > before)

                more = at_line(number, change, partial(router.get_linked_pod, *uid))
                if more:
                    assert router.get_linked_pod(*uid) == 2, f"line {number}"

    def test_an_exception_from_outside(
        self, single: LocalServer, server: str, namespace: str
    ) -> None:
        """Wherever it strikes, what is told afterwards is true, and threads have their lanes again."""
        config = settings(heartbeat=0.1, heartbeat_timeout=0.5)
        with Router.from_url(single.url, config=config) as router:
            number, more = 0, True

            def strike() -> None:
                raise KeyboardInterrupt

            while more:
                lanes = get_lanes(router, namespace)
                number += 1
                uid = (namespace, f"u{number}", "chat")
                single.execute("SET", link_key(*uid), 1)
                struck = False
                try:
                    more = at_line(number, strike, partial(router.get_linked_pod, *uid))
                except KeyboardInterrupt:
                    struck = True
                assert struck is more
                single.execute("SET", link_key(*uid), 2)
                fence(router, namespace)
                began = time.monotonic()
                assert router.get_linked_pod(*uid) == 2, f"line {number}"
                assert router.get_linked_pod(*uid) == 2, f"line {number}"
                assert time.monotonic() < began + 2.0, f"line {number}"
            wait_until(lambda: lanes.in_flight == 0)
            assert get_lanes(router, namespace).in_flight == 0


class TestLosing:
    def test_one_that_is_killed_vouches_for_nothing_any_more(
        self, router: Router, single: LocalServer, namespace: str
    ) -> None:
        """The server has forgotten what it read, and pushes nothing."""
        for pod in range(20):
            get_lanes(router, namespace)
            uid = (namespace, f"u{pod}", "chat")
            single.execute("SET", link_key(*uid), 1)
            with loop_held_up(router):
                assert router.get_linked_pod(*uid) == 1
            for client in clients(single):
                if client["redir"] not in {"0", "-1"}:
                    single.execute("CLIENT", "KILL", "ID", client["id"])
            single.execute("SET", link_key(*uid), 2)
            # Far sooner than a heartbeat.
            wait_until(lambda uid=uid: router.get_linked_pod(*uid) == 2, within=5.0)  # type: ignore[misc]

    def test_one_that_a_thread_never_gives_back_is_lost(
        self, single: LocalServer, server: str, namespace: str
    ) -> None:
        config = settings(heartbeat=0.05, heartbeat_timeout=0.3)
        with Router.from_url(single.url, config=config) as router:
            lanes = get_lanes(router, namespace)
            kept = lanes.take()
            assert kept is not None
            wait_until(lambda: kept.over)
            assert kept.sock.recv(1) == b""
            assert router.stats().lanes[0].healthy
            get_lanes(router, namespace)

    def test_a_stopped_server_holds_nobody_up_for_longer_than_the_heartbeat(
        self, own_server: LocalServer, namespace: str
    ) -> None:
        """What was known before is then told, marked stale: the place of an answer to come has not displaced it."""
        config = settings(max_age=0.01, heartbeat=0.1, heartbeat_timeout=0.5, stale_if_error=60.0)
        with Router.from_url(own_server.url, config=config) as router:
            uid = (namespace, "ada", "chat")
            router.set_linked_pod(*uid, 7)
            get_lanes(router, namespace)
            assert router.get_linked_pod(*uid) == 7
            time.sleep(0.02)
            own_server.pause()
            began = time.monotonic()
            assert router.get_linked_pod(*uid) == 7
            assert time.monotonic() < began + 2.0
            assert router.stats().cache.stale >= 1
            own_server.resume()

    def test_closing_wakes_threads_that_wait(self, own_server: LocalServer, namespace: str) -> None:
        router = Router.from_url(own_server.url, config=settings(**CALM))
        get_lanes(router, namespace, 2)
        own_server.pause()
        with ThreadPoolExecutor(8) as pool:
            waiting = [
                pool.submit(router.get_linked_pod, namespace, f"u{n}", "chat") for n in range(8)
            ]
            wait_until(lambda: router.stats().lanes[0].in_flight >= 16)
            began = time.monotonic()
            router.close()
            for task in waiting:
                assert isinstance(task.exception(timeout=SOON), RouterClosed)
            assert time.monotonic() < began + 5.0
        own_server.resume()

    def test_a_signal_handler_may_raise_while_the_answer_is_awaited(
        self, own_server: LocalServer, namespace: str
    ) -> None:
        class Enough(Exception):
            pass

        def handle(signum: int, frame: FrameType | None) -> None:
            raise Enough

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            with Router.from_url(own_server.url, config=settings(**CALM)) as router:
                lanes = get_lanes(router, namespace)
                own_server.pause()
                killing = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
                killing.start()
                with pytest.raises(Enough):
                    router.get_linked_pod(namespace, "ada", "chat")
                killing.join()
                own_server.resume()
                # The answer that nobody wanted is dropped, not taken for that of the next question.
                wait_until(lambda: len(lanes.free) == 1)
                router.set_linked_pod(namespace, "bob", "chat", 5)
                with loop_held_up(router):
                    assert router.get_linked_pod(namespace, "bob", "chat") == 5
        finally:
            signal.signal(signal.SIGUSR1, before)


def clients(server: LocalServer) -> list[dict[str, str]]:
    with redis.Redis(
        host=server.node.host, port=server.node.port, protocol=2, decode_responses=True
    ) as client:
        return [each for each in client.client_list() if "t" in each["flags"]]


@pytest.mark.parametrize(("threads", "least"), [(4, 2), (16, 1)])
def test_there_are_few_connections_however_many_threads(
    own_server: LocalServer, namespace: str, threads: int, least: int
) -> None:
    """A crowd of threads goes by way of the loop."""
    with (
        Router.from_url(own_server.url, config=settings()) as router,
        ThreadPoolExecutor(threads) as pool,
    ):
        uids = [(namespace, f"u{number}", "chat") for number in range(3000)]
        assert not any(pool.map(lambda uid: router.get_linked_pod(*uid), uids))
        tracked = clients(own_server)
        assert least <= len(tracked) <= 1 + MAX_LANES


def test_threads_that_miss_together_are_one_question(
    router: Router, single: LocalServer, namespace: str
) -> None:
    get_lanes(router, namespace, 2)
    uid = (namespace, "ada", "chat")
    router.set_linked_pod(*uid, 7)
    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):
            router.invalidate(*uid)
            before = router.stats().cache
            single.pause()
            waiting = [pool.submit(router.get_linked_pod, *uid) for _ in range(16)]
            asked = before.misses + before.joined
            wait_until(lambda asked=asked: sum_of(router) >= asked + 16)  # type: ignore[misc]
            single.resume()
            assert [task.result(SOON) for task in waiting] == [7] * 16
            assert router.stats().cache.misses == before.misses + 1


def sum_of(router: Router) -> int:
    cache = router.stats().cache
    return cache.misses + cache.joined


def test_what_is_cached_is_what_is_stored(own_server: LocalServer, namespace: str) -> None:
    """Threads ask for cold links while another client changes them."""
    rounds, wrong, cached = 60, 0, 0
    with (
        Router.from_url(own_server.url, config=settings()) as router,
        ThreadPoolExecutor(5) as pool,
    ):
        get_lanes(router, namespace, 4)
        assert router._background is not None
        entries = router._background.inside.engine.cache.entries
        for round_ in range(rounds):
            uids = [(namespace, f"{round_} {number}", "chat") for number in range(40)]
            keys = [link_key(*uid) for uid in uids]
            for key in keys:
                own_server.execute("SET", key, 1)

            def read(uids: list[Uid] = uids) -> None:
                for uid in random.sample(uids, len(uids)):
                    router.get_linked_pod(*uid)

            def write(keys: list[str] = keys) -> None:
                for key in keys:
                    own_server.execute("SET", key, 2)

            for task in [pool.submit(read if n else write) for n in range(5)]:
                task.result()
            fence(router, namespace)
            for uid in uids:
                entry = entries.find(uid)
                if entry is not None and isinstance(entry, Expected) and not entry.filled:
                    continue
                if entry is not None:
                    cached += 1
                    wrong += entry.value != 2
    assert wrong == 0
    assert cached > rounds


def test_it_works_on_uvloop(single: LocalServer, namespace: str) -> None:
    uvloop = pytest.importorskip("uvloop")
    config = replace(settings(**CALM), loop_factory=uvloop.new_event_loop)
    with Router.from_url(single.url, config=config) as router:
        for pod in range(3):
            get_lanes(router, namespace)
            uid = (namespace, f"u{pod}", "chat")
            single.execute("SET", link_key(*uid), 1)
            with loop_held_up(router):
                assert router.get_linked_pod(*uid) == 1
            for client in clients(single):
                if client["redir"] not in {"0", "-1"}:
                    single.execute("CLIENT", "KILL", "ID", client["id"])
            single.execute("SET", link_key(*uid), 2)
            wait_until(lambda uid=uid: router.get_linked_pod(*uid) == 2, within=5.0)  # type: ignore[misc]
