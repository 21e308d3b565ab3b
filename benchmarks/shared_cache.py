"""One cache for a host: workers that ask `sfroute serve` over a unix socket, beside workers with a router each.

    python benchmarks/shared_cache.py [--rounds 5] [--document]

The workers are processes of one host. Each decides as many requests (Zipf's law over the same uids), several at a
time; the two ways take turns on one cluster. What the store does is by its own account.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import machine
from report import markdown

import sfroute
from sfroute.embedded import LocalCluster

DOCUMENT = Path(__file__).parent.parent / "docs" / "explanation" / "scale.md"
BEGIN = "<!-- Written by benchmarks/shared_cache.py --document -->"
END = "<!-- End of what benchmarks/shared_cache.py writes -->"

NAMESPACE, SERVICE = "bench", "chat"
UIDS, PODS = 2000, 4
WORKERS, REQUESTS, AT_ONCE = 4, 4000, 8
OWN, SHARED = "a router each", "one `sfroute serve`"
Decide = Callable[[str], Awaitable[object]]


@dataclass(frozen=True)
class Round:
    """What one round took.

    Attributes:
        took: seconds of each request.
        workers: processor seconds of all workers.
        server: processor seconds of the process that they share.
        lookups: GETs that the store answered.
        connections: of this host to the store.
        memory: bytes that all processes of the host take.
    """

    took: list[float]
    workers: float
    server: float
    lookups: int
    connections: int
    memory: int


# --- a worker


async def with_a_router(url: str, work: Callable[[Decide], Awaitable[None]]) -> None:
    async with sfroute.AsyncRouter.from_url(url) as router:
        await work(lambda uid: router.route(NAMESPACE, uid, SERVICE))


async def with_a_socket(path: str, work: Callable[[Decide], Awaitable[None]]) -> None:
    """HTTP/1.1 by hand, on connections that are kept: the least that a client of Python can do."""
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def decide(uid: str) -> None:
        reader, writer = free.pop() if free else await asyncio.open_unix_connection(path)
        writer.write(f"GET /decide HTTP/1.1\r\nHost: x\r\nX-User-Id: {uid}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(head.partition(b"\r\n")[0].decode())
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        free.append((reader, writer))

    await work(decide)


async def worker(where: str, number: int) -> None:
    """Decide, when told to, and tell what it took."""
    numbers = random.Random(number)
    weights = list(itertools.accumulate(1 / rank**1.1 for rank in range(1, UIDS + 1)))
    uids = [f"user-{n}" for n in numbers.choices(range(UIDS), cum_weights=weights, k=REQUESTS)]
    took: list[float] = []

    async def work(decide: Decide) -> None:
        await asyncio.gather(*(decide(uid) for uid in uids[:AT_ONCE]))
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        left = iter(uids)
        before = resource.getrusage(resource.RUSAGE_SELF)

        async def caller() -> None:
            for uid in left:
                began = time.perf_counter()
                await decide(uid)
                took.append(time.perf_counter() - began)

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"took": took, "cpu": spent}), flush=True)
        # It stays until its memory and its connections have been counted.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    await (with_a_socket if where.startswith("/") else with_a_router)(where, work)


# --- the host


def cpu_and_memory(pid: int) -> tuple[float, int]:
    """Processor seconds and resident bytes of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


class Store:
    """What the servers say."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._primaries = cluster.nodes

    def counts(self) -> tuple[int, int]:
        """GETs so far, and connections of clients now."""
        gets = clients = 0
        for node in self._primaries:
            info = str(self._cluster.execute(node, "INFO", "everything"))
            for line in info.splitlines():
                name, _, value = line.partition(":")
                if name == "cmdstat_get":
                    gets += int(value.partition("calls=")[2].partition(",")[0])
                elif name == "connected_clients":
                    clients += int(value)
        return gets, clients


@contextmanager
def serving(url: str, path: str) -> Any:
    """`sfroute serve` on a unix socket: its process."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "sfroute.cli", "serve", "--url", url, "--namespace", NAMESPACE),
            *("--service", SERVICE, "--uid-header", "X-User-Id", "--listen", f"unix:{path}"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listening" not in line:
            raise RuntimeError(line)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def one_round(store: Store, where: str, server: int | None) -> Round:
    """All workers at once."""
    _, idle = store.counts()
    crew = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", str(number), "--where", where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(WORKERS)
    ]
    pipes = [(one.stdin, one.stdout) for one in crew]
    for _, told in pipes:
        assert told is not None
        if told.readline() != "ready\n":
            raise RuntimeError("a worker could not begin")
    gets, _ = store.counts()
    before = cpu_and_memory(server)[0] if server is not None else 0.0
    for go, _ in pipes:
        assert go is not None
        go.write("go\n")
        go.flush()
    told_all = [json.loads(told.readline()) for _, told in pipes if told is not None]
    after = cpu_and_memory(server)[0] if server is not None else 0.0
    gets_then, clients = store.counts()
    memory = sum(
        cpu_and_memory(pid)[1]
        for pid in [*(one.pid for one in crew), *([server] if server else [])]
    )
    for one in crew:
        one.communicate("", timeout=30)
    return Round(
        [seconds for told in told_all for seconds in told["took"]],
        sum(told["cpu"] for told in told_all),
        after - before,
        gets_then - gets,
        # With a shared cache its connections were there before the workers.
        clients - (idle if server is None else 0),
        memory,
    )


def measure(rounds: int) -> dict[str, list[Round]]:
    """Both ways, in turns."""
    found: dict[str, list[Round]] = {OWN: [], SHARED: []}
    with tempfile.TemporaryDirectory() as folder, LocalCluster(3, 0) as cluster:
        with sfroute.Router.from_url(cluster.url) as router:
            for pod in range(PODS):
                router.set_service_state(NAMESPACE, SERVICE, pod, "Running")
            for number in range(UIDS):
                router.set_linked_pod(NAMESPACE, f"user-{number}", SERVICE, number % PODS)
        store = Store(cluster)
        for turn in range(rounds):
            found[OWN].append(one_round(store, cluster.url, None))
            path = f"{folder}/{turn}.sock"
            own = store.counts()[1]
            with serving(cluster.url, path) as process:
                shared = one_round(store, path, process.pid)
            found[SHARED].append(
                Round(**{**shared.__dict__, "connections": shared.connections - own})
            )
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def rows(found: dict[str, list[Round]]) -> list[tuple[str, ...]]:
    """The table."""

    def middle(way: str, of: Callable[[Round], float]) -> float:
        return statistics.median(of(each) for each in found[way])

    each = WORKERS * REQUESTS
    lines: list[tuple[str, Callable[[Round], float], str]] = [
        ("processor time of the worker, a request", lambda r: r.workers / each * 1e6, "{:.1f} us"),
        (
            "processor time of `sfroute serve`, a request",
            lambda r: r.server / each * 1e6,
            "{:.1f} us",
        ),
        ("a request, median", lambda r: percentile(r.took, 0.5) * 1e6, "{:.0f} us"),
        ("a request, 99th percentile", lambda r: percentile(r.took, 0.99) * 1e6, "{:.0f} us"),
        ("lookups at the store, of 100 requests", lambda r: 100 * r.lookups / each, "{:.1f}"),
        ("connections to the store", lambda r: r.connections, "{:.0f}"),
        ("memory of all processes", lambda r: r.memory / 2**20, "{:.0f} MiB"),
    ]
    return [
        (what, *(shape.format(middle(way, of)) for way in (OWN, SHARED)))
        for what, of, shape in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--document", action="store_true", help="write the table into scale.md")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--where", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        asyncio.run(worker(options.where, options.worker))
        return
    # Of others: the run itself is a load as well.
    load = os.getloadavg()[0]
    found = measure(options.rounds)
    table = "\n".join(markdown((f"{WORKERS} workers of one host", OWN, SHARED), rows(found)))
    text = f"Machine: {machine('sfroute')}, at a load of {load:.0f} before it began\n\n{table}"
    print(text)
    if options.document:
        head, _, rest = DOCUMENT.read_text().partition(BEGIN)
        tail = rest.partition(END)[2]
        DOCUMENT.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
