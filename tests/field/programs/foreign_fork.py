"""A preforking server that forks behind Python's back, as uWSGI does. Arguments: URL, namespace, ``async`` or ``sync``.

Opens a router, forks three workers without running any hook, and prints what each process was told.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import time
import traceback

from sfroute import AsyncRouter, CacheConfig, Router, RouterConfig

url, namespace, front = sys.argv[1:]
config = RouterConfig(cache=CacheConfig(heartbeat=0.1, heartbeat_timeout=0.3))
fork = ctypes.PyDLL(None).fork


def use_in_threads(router: Router, uid: str, pod: int) -> str:
    told = [
        router.set_linked_pod(namespace, uid, "chat", pod),
        router.get_linked_pod(namespace, uid, "chat"),
        router.get_linked_pod(namespace, "shared", "chat", fresh=True),
        router.set_linked_pod(namespace, uid, "chat", pod + 1),
    ]
    return f"{uid} {told}"


async def use(router: AsyncRouter, uid: str, pod: int) -> str:
    told = [
        await router.set_linked_pod(namespace, uid, "chat", pod),
        await router.get_linked_pod(namespace, uid, "chat"),
        await router.get_linked_pod(namespace, "shared", "chat", fresh=True),
        await router.set_linked_pod(namespace, uid, "chat", pod + 1),
    ]
    return f"{uid} {told}"


async def as_worker(router: AsyncRouter, uid: str, pod: int) -> str:
    try:
        return await use(router, uid, pod)
    finally:
        await router.aclose()


def report(told: str) -> None:
    os.write(1, f"{told}\n".encode())


def work(number: int) -> None:
    uid, pod = f"worker{number}", 10 * number
    if isinstance(router, Router):
        report(use_in_threads(router, uid, pod))
        router.close()
    else:
        report(asyncio.run(as_worker(router, uid, pod)))
    gc.collect()


router: Router | AsyncRouter
loop = asyncio.new_event_loop()
if front == "sync":
    router = Router.from_url(url, config=config)
    report(use_in_threads(router, "shared", 1))
else:
    router = AsyncRouter.from_url(url, config=config)
    report(loop.run_until_complete(use(router, "shared", 1)))
workers = []
for number in range(1, 4):
    # The router's thread must be at rest: a lock of the interpreter that it holds just now stays held in the child, for
    # ever, since no hook of Python's runs there.
    time.sleep(0.1)
    worker = fork()
    if worker == 0:
        try:
            work(number)
        except BaseException:  # noqa: BLE001 - whatever it is, this is not the parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    workers.append(worker)
for worker in workers:
    _, status = os.waitpid(worker, 0)
    report(f"ended {os.waitstatus_to_exitcode(status)}")
if isinstance(router, Router):
    report(use_in_threads(router, "parent", 5))
    report(f"reconnects {sum(lane.reconnects for lane in router.stats().lanes)}")
    router.close()
else:
    report(loop.run_until_complete(use(router, "parent", 5)))
    report(f"reconnects {sum(lane.reconnects for lane in router.stats().lanes)}")
    loop.run_until_complete(router.aclose())
loop.close()
