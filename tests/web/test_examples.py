"""The small examples, run as they are."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("flask", reason="the group `examples` is not installed")

import httpx
from deployment import free_port
from support.processes import Child

from sfroute import AsyncRouter, Router
from sfroute.embedded import LocalCluster

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def directory(sfroute_cluster: LocalCluster) -> Iterator[httpx.Client]:
    """The Flask program, and a client of it."""
    port = free_port()
    process = Child(
        [sys.executable, str(EXAMPLES / "flask_directory.py"), str(port)],
        env={**os.environ, "SFROUTE_URL": sfroute_cluster.url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        # It says so when it listens.
        assert any("CTRL+C" in line for line in process.stderr)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        process.end()


def test_the_directory_on_threads(directory: httpx.Client, sfroute_cluster: LocalCluster) -> None:
    with Router.from_url(sfroute_cluster.url) as router:
        assert directory.get("/where", headers={"X-User-Id": "alan"}).status_code == 503
        for pod in (0, 2):
            router.set_service_state("example", "chat", pod, "Running")
        router.set_linked_pod("example", "ada", "chat", 2)
        ask = {"X-User-Id": "ada"}
        assert directory.get("/where", headers=ask).json() == {
            "pod": 2,
            "address": "chat-2.chat:8080",
        }
        assert directory.get("/where").status_code == 400
        with ThreadPoolExecutor(8) as threads:
            answers = threads.map(
                lambda n: directory.get("/where", headers={"X-User-Id": f"u{n % 5}"}).json()["pod"],
                range(40),
            )
            pods = list(answers)
        assert pods[:5] * 8 == pods


async def test_the_worker_on_asyncio(sfroute_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        for uid, pod in (("ada", 0), ("grace", 7), ("alan", 7)):
            await router.set_linked_pod("example", uid, "chat", pod)
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        *(str(EXAMPLES / "delivery_worker.py"), sfroute_cluster.url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    lines = b"ada hello\ngrace hello\nada are you there?\nalan hello\nnobody hello\n" * 100
    told, complaints = await worker.communicate(lines)
    assert (worker.returncode, complaints) == (0, b"")
    delivered = {"chat-0": 0, "chat-7": 0}
    for line in told.decode().splitlines():
        where, _, rest = line.partition(": ")
        if where in delivered:
            delivered[where] += int(rest.split()[0])
        else:
            assert line == "1 users are at no pod"
    assert delivered == {"chat-0": 200, "chat-7": 200}


def test_the_client_of_grpc() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "grpc_client.py")],
        # The library tells of a server that stops, or not, as it happens.
        env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "count 1",
        "count 2",
        "her pod has stopped",
        "count 1",
        "she is at another one",
    ]
