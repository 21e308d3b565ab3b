"""The interpreter ends in one of the states that a router can be in. Prints ``ok``, and nothing else.

Arguments: URL of a single server, URL of one that never answers, namespace, and the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Coroutine

from sfroute import AsyncPodAgent, AsyncRouter, PodAgent, Router, SfrouteError

url, silent, namespace, state = sys.argv[1:]
uid = (namespace, "ada", "chat")
kept: list[object] = []
"""What lives until the modules are taken down."""


def in_a_thread(call: Callable[[], object]) -> None:
    """Begin a call, and leave it under way."""

    def work() -> None:
        with contextlib.suppress(SfrouteError):  # the router closes under it
            call()

    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)


def opened() -> Router:
    router = Router.from_url(url)
    router.set_linked_pod(*uid, 1)
    assert router.get_linked_pod(*uid) == 1
    kept.append(router)
    return router


def made() -> None:
    kept.append(Router.from_url(url))


def opening() -> None:
    kept.append(router := Router.from_url(silent))
    in_a_thread(router.open)


def closed() -> None:
    opened().close()


def forgotten() -> None:
    opened()
    kept.clear()


def looking_up() -> None:
    router = opened()
    in_a_thread(lambda: [router.get_linked_pod(*uid, fresh=True) for _ in range(10**9)])


def writing() -> None:
    router = opened()
    in_a_thread(lambda: [router.set_linked_pod(*uid, 1) for _ in range(10**9)])


def watching() -> None:
    changes = opened().watch(namespace, "chat")
    in_a_thread(lambda: list(changes))
    kept.append(changes)


def serving_as_a_pod() -> None:
    agent = PodAgent(opened(), namespace, "chat", 1, sigterm=False)
    agent.start()
    agent.accept("ada")
    kept.append(agent)


async def async_made() -> None:
    kept.append(AsyncRouter.from_url(url))


async def async_opened() -> AsyncRouter:
    router = AsyncRouter.from_url(url)
    await router.set_linked_pod(*uid, 1)
    assert await router.get_linked_pod(*uid) == 1
    kept.append(router)
    return router


async def async_open() -> None:
    await async_opened()


async def async_opening() -> None:
    kept.append(router := AsyncRouter.from_url(silent))
    kept.append(asyncio.ensure_future(router.open()))
    await asyncio.sleep(0.1)


async def async_closed() -> None:
    await (await async_opened()).aclose()


async def async_looking_up() -> None:
    router = await async_opened()
    kept.extend(
        asyncio.ensure_future(router.get_linked_pod(namespace, f"u{number}", "chat"))
        for number in range(1000)
    )
    await asyncio.sleep(0)


async def async_writing() -> None:
    router = await async_opened()
    kept.extend(asyncio.ensure_future(router.set_linked_pod(*uid, pod)) for pod in range(1000))
    await asyncio.sleep(0)


async def async_serving_as_a_pod() -> None:
    agent = AsyncPodAgent(await async_opened(), namespace, "chat", 1, sigterm=False)
    await agent.start()
    kept.append(agent)


STATES: dict[str, Callable[[], object]] = {
    "made": made,
    "opening": opening,
    "open": opened,
    "closed": closed,
    "forgotten": forgotten,
    "looking up": looking_up,
    "writing": writing,
    "watching": watching,
    "serving as a pod": serving_as_a_pod,
    "asyncio made": async_made,
    "asyncio opening": async_opening,
    "asyncio open": async_open,
    "asyncio closed": async_closed,
    "asyncio looking up": async_looking_up,
    "asyncio writing": async_writing,
    "asyncio serving as a pod": async_serving_as_a_pod,
}

working = STATES[state]()
if isinstance(working, Coroutine):
    asyncio.run(working)
print("ok")
