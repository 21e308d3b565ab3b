"""The ``top`` command."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from datetime import datetime
from typing import Annotated, Final

import typer
from rich.live import Live

from ..._contract.keys import check_service_names
from ..._fronts.router import AsyncRouter
from ...config import PlacementConfig
from ..common import (
    AsJson,
    Namespace,
    Service,
    Url,
    as_json_line,
    console,
    open_router,
    require,
    run,
    show,
    tell_of_outages,
)
from ..pods import PodTimeout, change_words, router_config
from .facts import Watcher
from .screen import as_fields, draw

__all__ = ["top"]

_POD_TIMEOUT: Final = PlacementConfig().pod_timeout
_EVENTS: Final = 4


def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two refreshes.")] = 2.0,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Exit after this many refreshes. The first shows no rates."),
    ] = None,
    links_every: Annotated[
        float,
        typer.Option(min=1, help="Seconds between two counts of the links; each scans all keys."),
    ] = 30.0,
    pod_timeout: PodTimeout = _POD_TIMEOUT,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Show pods, links, and what the primaries do, until Ctrl-C.

    These are the store's own figures: answers from a gateway's cache are in its metrics only. HITS: the share of keys
    read that were there. LANES: connections that are pushed for, one per gateway (with threads, up to five). SCRIPTS:
    script calls, that is writes, heartbeats and reads of pods. MS: how long this machine waits for an answer. The line
    of pods has the numbers of the gateways' metrics sfroute.pods*: the age of the oldest heartbeat, and as SKEW the
    highest load as a multiple of the mean.

    Into a pipe it writes one screen after the other; with --json one object per refresh.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
    watcher = Watcher(url, namespace, service, links_every)
    run(_show(watcher, (url, namespace, service), interval, count, pod_timeout, as_json))


async def _show(
    watcher: Watcher,
    subject: tuple[str, str, str],
    interval: float,
    count: int | None,
    pod_timeout: float,
    as_json: bool,
) -> None:
    url, namespace, service = subject
    screen = console()
    events: deque[str] = deque(maxlen=_EVENTS)
    live = None
    async with contextlib.AsyncExitStack() as stack:

        def tell(text: str) -> None:
            events.append(f"{datetime.now().astimezone():%H:%M:%S}  {text}")

        config = router_config(pod_timeout, tell_of_outages(tell))
        router = await stack.enter_async_context(open_router(url, config))
        if count is not None:
            # Whoever counts the looks wants them complete.
            await watcher.count_links_once()
        background = [
            asyncio.create_task(_listen(router, namespace, service, events)),
            asyncio.create_task(watcher.count_links()),
        ]
        stack.push_async_callback(_end, background)
        if screen.is_terminal and not as_json:
            live = stack.enter_context(Live(console=screen, screen=True, auto_refresh=False))
        looks = 0
        while True:
            frame = await watcher.look(router)
            looks += 1
            drawn = draw(
                frame,
                f"{namespace} {service}",
                list(events),
                now=time.monotonic(),
                pod_timeout=pod_timeout,
                height=screen.height if live is not None else None,
            )
            if as_json:
                sys.stdout.write(as_json_line(as_fields(frame, pod_timeout)))
            elif live is not None:
                live.update(drawn, refresh=True)
            else:
                show(drawn, "")
            sys.stdout.flush()
            if looks == count:
                return
            await asyncio.sleep(interval)


async def _listen(router: AsyncRouter, namespace: str, service: str, events: deque[str]) -> None:
    async with contextlib.aclosing(router.watch(namespace, service)) as changes:
        async for change in changes:
            events.append("  ".join(change_words(change)))


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
