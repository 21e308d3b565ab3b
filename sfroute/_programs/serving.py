"""Puts ``sfroute serve`` together: the sockets, the workers, and in each of them a router and the application."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from .._fronts.router import AsyncRouter
from .._net.targets import target_of_url
from ..config import RouterConfig, TelemetryConfig
from ..errors import InvalidArgument
from .decide import Decide
from .listening import Address, Server, listening, url_of
from .metrics import Metrics
from .questions import Rules
from .workers import run_workers

__all__ = ["Serving", "serve"]

CLIENT_NAME: Final = "sfroute-serve"
KILL_SECONDS: Final = 5.0
"""After a worker's own deadlines."""


@dataclass(frozen=True)
class Serving:
    """What to serve, and how. Raises ``InvalidArgument`` or ``ConfigError``.

    Attributes:
        url: the store.
        rules: how questions are read and answered.
        addresses: where to listen.
        socket_mode: the permissions of unix sockets.
        workers: how many processes.
        grace: seconds for which answers under way are waited for at the end.
        linger: seconds between being told to end and the end, in which ``/readyz`` says 503.
    """

    url: str
    rules: Rules
    addresses: Sequence[Address]
    socket_mode: int = 0o660
    workers: int = 1
    grace: float = 10.0
    linger: float = 0.0

    def __post_init__(self) -> None:
        target_of_url(self.url)
        if not self.addresses:
            raise InvalidArgument("there must be an address to listen on")
        if self.workers < 1:
            raise InvalidArgument("workers must be an int >= 1")


def serve(serving: Serving, announce: Callable[[list[str]], None]) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. ``announce`` is told where, once it listens."""
    with contextlib.ExitStack() as stack:
        listeners = stack.enter_context(listening(serving.addresses, serving.socket_mode))
        folder = None
        if serving.workers > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfroute-serve-")))
        announce([url_of(listener) for listener in listeners])
        if serving.workers == 1:
            return _work(serving, listeners, None, 0, None)
        return run_workers(
            serving.workers,
            lambda number, pipe: _work(serving, listeners, folder, number, pipe),
            serving.linger + serving.grace + KILL_SECONDS,
        )


def _work(
    serving: Serving,
    listeners: list[socket.socket],
    folder: Path | None,
    number: int,
    pipe: int | None,
) -> int:
    metrics = Metrics(number, folder)
    # A name in the URL was given to tell these processes from others.
    name = target_of_url(serving.url).options.get("client_name", CLIENT_NAME)
    config = RouterConfig(
        client_name=name, telemetry=TelemetryConfig(meter_provider=metrics.provider)
    )
    app = Decide(
        lambda: AsyncRouter.from_url(serving.url, config=config), serving.rules, metrics.text
    )
    server = Server(app, grace=serving.grace, linger=serving.linger, on_leave=app.leave)

    orphaned = asyncio.Event()

    async def main() -> None:
        if pipe is not None:
            _when_orphaned(pipe, orphaned.set, server.stop)
        async with metrics.shared():
            await server.serve(sockets=listeners)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    metrics.provider.shutdown()
    if folder is not None and orphaned.is_set():
        # Nobody else will. Until the last of the workers does it, others' sockets are there.
        with contextlib.suppress(OSError):
            folder.rmdir()
    return 0


def _when_orphaned(pipe: int, *acts: Callable[[], None]) -> None:
    """Call them when the parent has gone."""
    loop = asyncio.get_running_loop()

    def look() -> None:
        loop.remove_reader(pipe)
        for act in acts:
            act()

    loop.add_reader(pipe, look)
