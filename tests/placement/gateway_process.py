"""One gateway: it routes all the time, writes down what it was told, and answers the test's questions meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from placement.fleet import say, words
from sfroute import AsyncRouter, Link, PlacementConfig, Router, RouterConfig, SfrouteError

Ask = Callable[[str], Awaitable[Link]]


class Gateway:
    """Routes uids of a population that grows, at a steady rate.

    Attributes:
        log: of each route: when it was asked, when it was answered, the uid, the pod, the source, the pod view.
    """

    def __init__(self, route: Ask, seed: int) -> None:
        self.log: list[tuple[float, float, str, int, str, str]] = []
        self.errors: list[str] = []
        self._route = route
        self._random = random.Random(seed)
        self._working: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[Any]] = set()

    async def one(self, uid: str) -> tuple[int, str] | None:
        """The pod, and what was known of the pods."""
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        asked = time.monotonic()
        try:
            link = await self._route(uid)
        except SfrouteError as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            return None
        answered = time.monotonic()
        self.log.append((asked, answered, uid, link.pod, link.source, link.pod_view))
        return link.pod, link.pod_view

    async def settle(self) -> None:
        """Wait until what was asked before now is answered."""
        if self._asking:
            await asyncio.wait(set(self._asking))

    def work(self, routes: int, seconds: float, uids: int) -> None:
        """In each hundredth of a second route some uids at once; the population grows by half meanwhile."""

        async def go() -> None:
            ticks = int(seconds * 100)
            began = time.monotonic()
            for tick in range(ticks):
                known = uids * (2 * ticks + tick) // (3 * ticks)
                share = routes * (tick + 1) // ticks - routes * tick // ticks
                chosen = [f"u{self._random.randrange(known)}" for _ in range(share)]
                await asyncio.gather(*map(self.one, chosen))
                await asyncio.sleep(max(0.0, began + (tick + 1) / 100 - time.monotonic()))

        self._working = asyncio.get_running_loop().create_task(go())

    async def done(self) -> None:
        assert self._working is not None
        await self._working


async def serve(router: Any, gateway: Gateway, see: Callable[[], Awaitable[Any]]) -> None:
    told = words()
    say("up")
    while True:
        word = await told.get()
        match word.pop("do"):
            case "work":
                gateway.work(**word)
                say({})
            case "see":
                pods = await see()
                say({pod.id: pod.status for pod in pods.values()})
            case "route":
                say(await asyncio.gather(*map(gateway.one, word["uids"])))
            case "settle":
                await gateway.settle()
                say({})
            case "report":
                if word.get("finish"):
                    await gateway.done()
                say({"log": gateway.log, "errors": gateway.errors})
            case "burst":
                before = len(gateway.log)
                await asyncio.sleep(max(0.0, word["at"] - time.monotonic()))
                await asyncio.gather(*(gateway.one(word["uid"]) for _ in range(word["times"])))
                say([entry[3:5] for entry in gateway.log[before:]])


async def main(
    url: str, namespace: str, kind: str, pod_timeout: float, view: float, seed: int
) -> None:
    config = RouterConfig(placement=PlacementConfig(pod_timeout=pod_timeout, pod_view_max_age=view))
    if kind == "asyncio":
        async with AsyncRouter.from_url(url, config=config) as router:
            gateway = Gateway(lambda uid: router.route(namespace, uid, "game"), seed)
            await serve(router, gateway, lambda: router.get_pods(namespace, "game", fresh=True))
    else:
        with Router.from_url(url, config=config) as sync:
            gateway = Gateway(
                lambda uid: asyncio.to_thread(sync.route, namespace, uid, "game"), seed
            )
            await serve(
                sync,
                gateway,
                lambda: asyncio.to_thread(sync.get_pods, namespace, "game", fresh=True),
            )


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
