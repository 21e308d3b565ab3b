"""The cluster, pods and gateways of the demo, as processes on this machine. In production Kubernetes runs them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from sfroute.embedded import LocalCluster

__all__ = ["DRAIN_SECONDS", "Deployment", "Program"]

HERE = Path(__file__).parent
NAMESPACE, SERVICE = "example", "chat"
START_SECONDS = 20.0
END_SECONDS = 15.0
DRAIN_SECONDS = 1.2
"""How long a pod that is told to end waits for its users to go. Gateways need a second to notice that it drains."""


@dataclass
class Program:
    """One process, and where it listens."""

    process: asyncio.subprocess.Process
    address: str
    identity: str = ""
    """What a pod calls itself in its answers; another one after each start."""

    async def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end; one that does not end is killed."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        try:
            async with asyncio.timeout(END_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


class Deployment:
    """A cluster with replicas, some pods, and two gateways in front of them.

    Args:
        pods: how many.
        drain_seconds: how long a pod that is told to end waits for its users to go.

    Attributes:
        ended: identity of a pod's process -> when it was told to end, or killed (`time.monotonic`).
    """

    def __init__(self, pods: int = 3, drain_seconds: float = DRAIN_SECONDS) -> None:
        self.cluster = LocalCluster(primaries=3, replicas_per_primary=1)
        self.pods: dict[int, Program] = {}
        self.gateways: list[Program] = []
        self.ended: dict[str, float] = {}
        self._started: list[Program] = []
        self._number_of_pods = pods
        self._drain_seconds = drain_seconds
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as exits:
            self._http = await exits.enter_async_context(httpx.AsyncClient(trust_env=False))
            await exits.enter_async_context(self.cluster)
            # After the pods have ended.
            self._folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
            exits.push_async_callback(self._end_all)
            async with asyncio.TaskGroup() as starting:
                for pod in range(self._number_of_pods):
                    starting.create_task(self.start_pod(pod))
                for _ in range(2):
                    starting.create_task(self._start_gateway())
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._exits.aclose()

    # Pods

    async def start_pod(self, pod: int) -> None:
        """Start a pod, and wait until it takes users. It has another address each time, as in Kubernetes."""
        program = await self._start(
            [sys.executable, str(HERE / "pod.py")],
            free_port(),
            POD_NAME=f"{SERVICE}-{pod}",
            DRAIN_SECONDS=str(self._drain_seconds),
            DATABASE=str(self._folder / "counters.db"),
        )
        self.pods[pod] = program
        program.identity = (await self._until_healthy(program))["process"]

    async def restart_pod(self, pod: int) -> None:
        """As a rolling update does: SIGTERM, wait for the end, start the new one."""
        await self.end_pod(pod, signal.SIGTERM)
        await self.start_pod(pod)

    async def end_pod(self, pod: int, number: signal.Signals) -> None:
        program = self.pods[pod]
        self.ended[program.identity] = time.monotonic()
        await program.end(number)

    # Gateways

    @property
    def urls(self) -> list[str]:
        return [program.address for program in self.gateways]

    async def _start_gateway(self) -> None:
        port = free_port()
        program = await self._start(
            [
                *(sys.executable, "-m", "uvicorn", "--factory", "gateway:create_app"),
                *("--app-dir", str(HERE), "--host", "127.0.0.1", "--port", str(port)),
                *("--ws", "websockets-sansio", "--no-access-log", "--log-level", "warning"),
                # Longer than users keep idle connections: one must not be closed just as a request is sent.
                *("--timeout-keep-alive", "60"),
            ],
            port,
            SFROUTE_SERVICE=SERVICE,
            UID_FROM="header:x-user-id",
        )
        self.gateways.append(program)
        await self._until_healthy(program)

    # Processes

    async def _start(self, command: list[str], port: int, **environment: str) -> Program:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            env={
                **os.environ,
                "SFROUTE_URL": self.cluster.url,
                "SFROUTE_NAMESPACE": NAMESPACE,
                "PORT": str(port),
                **environment,
            },
            # Ctrl-C in a terminal is for the demo alone: it ends its processes in order.
            start_new_session=True,
        )
        program = Program(process, f"http://127.0.0.1:{port}")
        self._started.append(program)
        return program

    async def _until_healthy(self, program: Program) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if program.process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{program.address} did not start (see above)")
            with contextlib.suppress(httpx.TransportError):
                response = await self._http.get(f"{program.address}/healthz")
                if response.status_code == 200:
                    is_pod = response.headers["content-type"] == "application/json"
                    return response.json() if is_pod else response.text
            await asyncio.sleep(0.05)

    async def _end_all(self) -> None:
        """Gateways first: nobody is to ask for pods that are gone. Pods are not asked to drain: nobody is left."""
        ending = [program.end(signal.SIGTERM) for program in self.gateways]
        await asyncio.gather(*ending)
        await asyncio.gather(*(program.end(signal.SIGKILL) for program in self._started))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
