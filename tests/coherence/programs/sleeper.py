"""A gateway that asks for one link without end. Arguments: URL, namespace, ``async`` or ``sync``.

Prints ``ready`` once the link is cached. After the line ``more`` on standard input it prints the same once it has been
told some more, and after any other what it was told, as JSON: how often it was served stale, and ``[asked, pod]`` of
every answer, with instants of the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time

from sfroute import AsyncRouter, CacheConfig, Router, RouterConfig

url, namespace, front = sys.argv[1:]
uid = (namespace, "ada", "chat")
config = RouterConfig(cache=CacheConfig(max_age=60, heartbeat=0.2, heartbeat_timeout=1.0))
answers: list[tuple[float, int | None]] = []
over = threading.Event()
ASK_EVERY = 0.002
MORE = 20


def wait_for_the_end() -> None:
    while sys.stdin.readline() == "more\n":
        enough = len(answers) + MORE
        while len(answers) < enough:
            time.sleep(ASK_EVERY)
        print("more", flush=True)
    over.set()


def ask_in_this_thread() -> int:
    with Router.from_url(url, config=config) as router:
        router.get_linked_pod(*uid)
        print("ready", flush=True)
        while not over.wait(ASK_EVERY):
            asked = time.monotonic()
            answers.append((asked, router.get_linked_pod(*uid)))
        return router.stats().cache.stale


async def ask_on_a_loop() -> int:
    async with AsyncRouter.from_url(url, config=config) as router:
        await router.get_linked_pod(*uid)
        print("ready", flush=True)
        while not over.is_set():
            asked = time.monotonic()
            answers.append((asked, await router.get_linked_pod(*uid)))
            await asyncio.sleep(ASK_EVERY)
        return router.stats().cache.stale


threading.Thread(target=wait_for_the_end, daemon=True).start()
stale = ask_in_this_thread() if front == "sync" else asyncio.run(ask_on_a_loop())
print(json.dumps({"stale": stale, "answers": answers}), flush=True)
