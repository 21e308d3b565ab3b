"""One pod: it begins when told so, drains when told so, and ends on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

from placement.fleet import say, words
from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    PlacementConfig,
    PodAgent,
    Router,
    RouterConfig,
)


async def on_asyncio(
    url: str, namespace: str, pod: int, heartbeat: float, lease: float, view: float
) -> None:
    told = words()
    say("ready")
    await told.get()
    config = RouterConfig(placement=PlacementConfig(pod_view_max_age=view))
    async with (
        AsyncRouter.from_url(url, config=config) as router,
        AsyncPodAgent(router, namespace, "game", pod, heartbeat=heartbeat, lease=lease) as agent,
    ):
        say("up")
        while True:
            word = await told.get()
            say(await agent.drain(word["deadline"]))


def on_threads(
    url: str, namespace: str, pod: int, heartbeat: float, lease: float, view: float
) -> None:
    """The main thread does nothing but wait, as that of a server with worker threads."""
    say("ready")
    sys.stdin.readline()
    config = RouterConfig(placement=PlacementConfig(pod_view_max_age=view))
    with (
        Router.from_url(url, config=config) as router,
        PodAgent(router, namespace, "game", pod, heartbeat=heartbeat, lease=lease) as agent,
    ):

        def obey() -> None:
            for line in sys.stdin:
                word: dict[str, Any] = json.loads(line)
                say(agent.drain(word["deadline"]))

        say("up")
        threading.Thread(target=obey, daemon=True).start()
        threading.Event().wait()


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    if options.pop("kind") == "asyncio":
        asyncio.run(on_asyncio(**options))
    else:
        on_threads(**options)
