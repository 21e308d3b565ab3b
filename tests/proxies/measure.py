"""What a decision by ``sfroute serve`` and a claim by ``sfroute agent`` cost, and what proxies add. One connection, one
request at a time, then 32 connections; the server in this machine's memory.

    make bench-proxies
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from support.programs import client_of, running, until

from proxies.stage import PROXIES, Stage, stage
from sfroute.embedded import LocalCluster

REQUESTS = int(os.environ.get("REQUESTS", "2000"))


class Connection:
    """A connection that sends one request at a time: a client library would cost more than a proxy."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.removeprefix("http://").rpartition(":")
        self._port = int(port)

    async def open(self) -> None:
        self._closing = False
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def ask(self, head: str) -> bytes:
        if self._closing:
            # nginx ends a connection after a thousand requests, and says so before.
            self._writer.close()
            await self.open()
        self._writer.write(
            f"{head}\r\nHost: {self._host}:{self._port}\r\nContent-Length: 0\r\n".encode() + b"\r\n"
        )
        answer = await self._reader.readuntil(b"\r\n\r\n")
        lowered = answer.lower()
        _, found, rest = lowered.partition(b"content-length: ")
        if found:
            await self._reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
        self._closing = b"\r\nconnection: close\r\n" in lowered
        assert b" 200 " in answer.split(b"\r\n", 1)[0], answer
        return answer


async def sequential(address: str, head: Callable[[int], str]) -> float:
    """The median of one request, in milliseconds."""
    connection = Connection(address)
    await connection.open()
    taken = []
    for number in range(REQUESTS):
        began = time.perf_counter()
        await connection.ask(head(number))
        taken.append(time.perf_counter() - began)
    return median(taken[REQUESTS // 10 :]) * 1e3


async def together(address: str, head: Callable[[int], str], connections: int = 32) -> float:
    """Requests a second over several connections."""

    async def work(first: int) -> None:
        connection = Connection(address)
        await connection.open()
        for number in range(REQUESTS // 4):
            await connection.ask(head(first + number))

    began = time.perf_counter()
    await asyncio.gather(*(work(10**6 * (n + 1)) for n in range(connections)))
    return connections * (REQUESTS // 4) / (time.perf_counter() - began)


def resident(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def programs(cluster: LocalCluster, folder: Path) -> None:
    common = ("--url", cluster.url, "--namespace", "bench", "--service", "chat")
    listen = ("--listen", "127.0.0.1:0")
    with running(
        "agent",
        *common,
        "--pod",
        "0",
        *listen,
        "--drain",
        "0",
        "--",
        "sleep",
        "9999",
        folder=folder,
        code=None,
    ) as agent:
        with client_of(agent.urls[0]) as client:
            until(lambda: client.put("/claims/first").is_success)
        for name, head in (
            ("agent: accept", lambda n: f"PUT /claims/u{n} HTTP/1.1"),
            ("agent: owns", lambda n: f"GET /claims/u{n % REQUESTS} HTTP/1.1"),
        ):
            one = asyncio.run(sequential(agent.urls[0], head))
            many = asyncio.run(together(agent.urls[0], head))
            print(
                f"| {name} | {one:.2f} ms | {many:,.0f}/s | {resident(agent.process.pid):.0f} MB |"
            )
        with running(
            "serve", *common, "--uid-header", "X-User-Id", *listen, folder=folder
        ) as served:
            with client_of(served.urls[0]) as client:
                until(lambda: client.get("/readyz").is_success)

            def decide(number: int) -> str:
                return f"GET /decide HTTP/1.1\r\nX-User-Id: u{number % 100}"

            one = asyncio.run(sequential(served.urls[0], decide))
            many = asyncio.run(together(served.urls[0], decide))
            print(
                f"| serve: decide, cached | {one:.2f} ms | {many:,.0f}/s | {resident(served.process.pid):.0f} MB |"
            )


def through(on: Stage, name: str) -> None:
    """A user's own pod asked directly and through the proxy, by turns."""
    with PROXIES[name](on):
        with client_of(on.url) as client:
            pod = client.post("/count", headers={"X-User-Id": "ada"}).json()["pod"]
        direct, behind = [], []
        for _ in range(3):
            straight = f"http://127.0.0.1:{on.ports[pod]}"
            direct.append(
                asyncio.run(
                    sequential(straight, lambda _: "GET /count HTTP/1.1\r\nX-Sfroute-Uid: ada")
                )
            )
            behind.append(
                asyncio.run(sequential(on.url, lambda _: "GET /count HTTP/1.1\r\nX-User-Id: ada"))
            )
        added = median(behind) - median(direct)
        print(f"| {name} | {median(direct):.2f} ms | {median(behind):.2f} ms | {added:.2f} ms |")


def main() -> None:
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {REQUESTS} requests each\n")
    with LocalCluster(3, 0) as cluster, tempfile.TemporaryDirectory() as name:
        print("| | one at a time, median | 32 connections | memory |\n|---|---|---|---|")
        programs(cluster, Path(name))
        print("\n| proxy | the pod directly | through it | added |\n|---|---|---|---|")
        with stage(cluster, Path(name)) as on:
            for proxy in PROXIES:
                through(on, proxy)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
