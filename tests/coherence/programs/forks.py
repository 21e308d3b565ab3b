"""A process with open routers forks: the child opens anew, the parent's connections stay as they are.

Arguments: URL of a single server, namespace, and how to fork. Prints ``ok``.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable

import redis

from sfroute import AsyncRouter, CacheConfig, Router, RouterConfig

url, namespace, how = sys.argv[1:]
CONFIG = RouterConfig(cache=CacheConfig(max_age=60.0))
ada, bob = (namespace, "ada", "chat"), (namespace, "bob", "chat")
server = redis.Redis.from_url(url, protocol=2, decode_responses=True)


def tracked() -> set[str]:
    """Ids of the lanes, and of those of threads, as the server lists them."""
    return {client["id"] for client in server.client_list() if "t" in client["flags"]}


def lanes() -> set[str]:
    """Ids of those that pushes go to."""
    return {c["id"] for c in server.client_list() if "t" in c["flags"] and c["redir"] == "0"}


def in_child(work: Callable[[], None]) -> None:
    """Fork, do ``work`` in the child, wait for it."""
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(20)
        assert process.exitcode == 0, process.exitcode
        return
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - a child ends here, whatever happened
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def in_threads() -> None:
    busy = threading.Event()
    failed: list[BaseException] = []
    with Router.from_url(url, config=CONFIG) as router:
        router.set_linked_pod(*ada, 1)
        assert router.get_linked_pod(*ada) == 1
        while tracked() == lanes():
            router.invalidate(*ada)
            router.get_linked_pod(*ada)
        mine, my_lanes = tracked(), lanes()
        background = router._background
        assert background is not None
        assert background.inside.engine.parts is not None
        beside = [lane.threads for lane in background.inside.engine.parts.dispatch.lanes]
        inherited = [one.sock for each in beside if each is not None for one in each.free]
        assert inherited

        def work() -> None:
            assert all(sock.fileno() < 0 for sock in inherited)
            # What the parent had cached is not the child's to believe; it has a lane of its own.
            assert router.stats().cache.entries == 0
            assert router.get_linked_pod(*ada) == 1
            assert router.get_linked_pod(*ada) == 1
            assert router.stats().cache.hits == 1
            router.set_linked_pod(*bob, os.getpid())
            assert router.get_linked_pod(*bob) == os.getpid()
            assert len(lanes()) == len(my_lanes) + 1
            router.close()

        def keep_asking() -> None:
            try:
                while not busy.is_set():
                    assert router.get_linked_pod(*ada, fresh=True) == 1
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failed.append(error)

        threads = [threading.Thread(target=keep_asking) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            in_child(work)
            # The parent goes on with the same connection, and hears what the child has written.
            assert tracked() == mine
            assert router.get_linked_pod(*bob) not in (None, os.getpid())
        busy.set()
        for thread in threads:
            thread.join()
        assert not failed, failed
        assert [lane.reconnects for lane in router.stats().lanes] == [0]
        server.set(f"sf:{{{namespace}:lk:ada}}chat", 2)
        while router.get_linked_pod(*ada) != 2:
            pass  # the push is on its way


async def in_a_loop() -> None:
    async with AsyncRouter.from_url(url, config=CONFIG) as router:
        await router.set_linked_pod(*ada, 1)
        assert await router.get_linked_pod(*ada) == 1
        mine = tracked()

        async def ask() -> None:
            assert router.stats().cache.entries == 0
            assert await router.get_linked_pod(*ada) == 1
            await router.set_linked_pod(*bob, os.getpid())
            assert await router.get_linked_pod(*bob) == os.getpid()
            await router.aclose()

        for _ in range(3):
            in_child(lambda: asyncio.run(ask()))
            assert tracked() == mine
            assert await router.get_linked_pod(*ada, fresh=True) == 1
            assert await router.get_linked_pod(*bob) not in (None, os.getpid())
        assert [lane.reconnects for lane in router.stats().lanes] == [0]


if how == "fork_async":
    asyncio.run(in_a_loop())
else:
    in_threads()
server.close()
print("ok")
