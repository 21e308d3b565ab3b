"""A gateway of the failover scene: it asks which pod owns the user of each request, and sends the request there.

There are two kinds: one on asyncio with an ``AsyncRouter``, one on threads with a ``Router``.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from child import Director
from traffic import Traffic

from sfroute import AsyncRouter, Link, RetryConfig, Router, RouterConfig, SfrouteError

__all__ = ["Ledger"]

SETTINGS = RouterConfig(min_replica_acks=1, retry=RetryConfig(deadline=30.0))
"""A link is told to nobody before the replica has it, so that it outlives the primary. A new user then waits for the
failover, and for a new replica; the deadline leaves both their time on a busy machine."""

_THREADS = 256
"""Of the gateway on threads: requests that wait for a failover hold one each."""
_PROGRESS_SECONDS = 0.1


@dataclass(slots=True)
class Ledger:
    """What a gateway writes down. Appends and counts of one kind of object need no lock under the GIL.

    Attributes:
        answers: per request: when it was asked (monotonic seconds), how long the answer took (seconds), where the
            answer came from, and whether it was stale.
        errors: the texts of the errors that callers of the router saw.
    """

    answers: list[tuple[float, float, str, bool]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """How many requests have been dealt with."""
        return len(self.answers) + len(self.errors)

    def enter(self, asked: float, link: Link) -> None:
        """Write down an answer that was asked for at this time and is there now."""
        self.answers.append((asked, time.monotonic() - asked, link.source, link.stale))


@dataclass(frozen=True, slots=True)
class _Task:
    """What a gateway is told to do."""

    url: str
    namespace: str
    service: str
    kind: str
    gateway: int
    gateways: int
    traffic: Traffic

    @classmethod
    def parse(cls, text: str) -> _Task:
        options = json.loads(text)
        return cls(**{**options, "traffic": Traffic(**options["traffic"])})

    @property
    def requests(self) -> list[tuple[float, str]]:
        return self.traffic.share(self.gateway, self.gateways)


def _addresses(states: Mapping[int, str]) -> dict[int, tuple[str, int]]:
    """Where the pods listen, from the states they report."""
    found = {}
    for pod, state in states.items():
        host, _, port = json.loads(state)["address"].rpartition(":")
        found[pod] = (host, int(port))
    return found


async def _report_progress(director: Director, ledger: Ledger) -> None:
    while True:
        director.report("progress", done=ledger.done)
        await asyncio.sleep(_PROGRESS_SECONDS)


class _StreamConnection:
    """To a pod, from the gateway on asyncio."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, uid: str) -> None:
        self._writer.write(f"{uid}\n".encode())

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def _asyncio_gateway(task: _Task, director: Director, ledger: Ledger) -> None:
    async with AsyncRouter.from_url(task.url, config=SETTINGS) as router:
        states = await router.get_service_state(task.namespace, task.service)
        pods = {}
        for pod, (host, port) in _addresses(states).items():
            _, writer = await asyncio.open_connection(host, port)
            pods[pod] = _StreamConnection(writer)

        async def serve(uid: str) -> None:
            asked = time.monotonic()
            try:
                link = await router.route(task.namespace, uid, task.service)
            except SfrouteError as error:
                ledger.errors.append(f"{type(error).__name__}: {error}")
                return
            ledger.enter(asked, link)
            pods[link.pod].send(uid)

        director.report("ready")
        await director.wait_for("go")
        progress = asyncio.create_task(_report_progress(director, ledger))
        start = time.monotonic()
        async with asyncio.TaskGroup() as serving:
            for due, uid in task.requests:
                if (early := start + due - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                serving.create_task(serve(uid))
        progress.cancel()
        for connection in pods.values():
            await connection.close()


class _SocketConnection:
    """To a pod, from the gateway on threads, which share it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._lock = threading.Lock()

    def send(self, uid: str) -> None:
        with self._lock:
            self._socket.sendall(f"{uid}\n".encode())

    def close(self) -> None:
        self._socket.close()


def _serve_on_threads(task: _Task, ledger: Ledger, wait_for_go: Callable[[], None]) -> None:
    with Router.from_url(task.url, config=SETTINGS) as router:
        states = router.get_service_state(task.namespace, task.service)
        pods = {pod: _SocketConnection(address) for pod, address in _addresses(states).items()}

        def serve(uid: str) -> None:
            asked = time.monotonic()
            try:
                link = router.route(task.namespace, uid, task.service)
            except SfrouteError as error:
                ledger.errors.append(f"{type(error).__name__}: {error}")
                return
            ledger.enter(asked, link)
            pods[link.pod].send(uid)

        wait_for_go()
        start = time.monotonic()
        with ThreadPoolExecutor(_THREADS) as threads:
            served = []
            for due, uid in task.requests:
                if (early := start + due - time.monotonic()) > 0:
                    time.sleep(early)
                served.append(threads.submit(serve, uid))
        for future in served:
            future.result()
        for connection in pods.values():
            connection.close()


async def _threads_gateway(task: _Task, director: Director, ledger: Ledger) -> None:
    """The talking is left to this event loop; the gateway itself knows none."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as talking:
        progress: list[asyncio.Task[None]] = []

        async def ready() -> None:
            director.report("ready")
            await director.wait_for("go")
            progress.append(talking.create_task(_report_progress(director, ledger)))

        def wait_for_go() -> None:
            asyncio.run_coroutine_threadsafe(ready(), loop).result()

        await asyncio.to_thread(_serve_on_threads, task, ledger, wait_for_go)
        progress.pop().cancel()


async def _run(task: _Task) -> None:
    director = Director()
    ledger = Ledger()
    gateway = {"asyncio": _asyncio_gateway, "threads": _threads_gateway}[task.kind]
    await gateway(task, director, ledger)
    director.report("served", answers=ledger.answers, errors=ledger.errors)


if __name__ == "__main__":
    asyncio.run(_run(_Task.parse(sys.argv[1])))
