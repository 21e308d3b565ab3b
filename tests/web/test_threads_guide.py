"""The guide on threads: its applications are served by gunicorn, as its commands say."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("flask", reason="the group `examples` is not installed")
pytest.importorskip("gunicorn", reason="the group `examples` is not installed")

import httpx
from support.documents import block, executed, typed
from support.processes import Child

from sfroute import Router
from sfroute.embedded import LocalCluster

THREADS = "docs/how-to/threads.md"


@pytest.fixture
def production(sfroute_cluster: LocalCluster) -> str:
    """The URL of a cluster that holds nothing: the pages all speak of one namespace."""
    for node in sfroute_cluster.nodes:
        node.commands(("FLUSHALL",))
    return sfroute_cluster.url


@contextmanager
def served(folder: Path, command: str, url: str) -> Iterator[httpx.Client]:
    """What the command of the page serves; SIGTERM ends it in order."""
    program, *arguments = shlex.split(command)
    assert program == "gunicorn"
    path = folder / "socket"
    process = Child[bytes](
        [sys.executable, "-m", "gunicorn", "--bind", f"unix:{path}", *arguments],
        cwd=folder,
        # Its control socket would be in the home directory.
        env={
            **os.environ,
            "SFROUTE_URL": url,
            "HOSTNAME": "chat-2",
            "GUNICORN_CMD_ARGS": "--no-control-socket",
        },
    )
    try:
        wait_until_it_listens(path, process)
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://gateway", timeout=20
        ) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.end()


def wait_until_it_listens(path: Path, process: Child[bytes]) -> None:
    """It tells nobody when it does."""
    began = time.monotonic()
    while True:
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < began + 30, "it does not listen"
        with socket.socket(socket.AF_UNIX) as trial, contextlib.suppress(OSError):
            trial.connect(str(path))
            return
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_workers_of_a_gateway_agree(tmp_path: Path, production: str) -> None:
    (tmp_path / "app.py").write_text(block(THREADS, "python", 0).text)
    _, serve = typed(block(THREADS, "console", 0))
    with Router.from_url(production) as router:
        router.set_service_state("production", "chat", 0, "Running")
        router.set_service_state("production", "chat", 4, "Running")
        with served(tmp_path, serve.command, production) as client:
            assert client.get("/healthz").text == "ok"
            found: dict[int, set[tuple[int, int | None]]] = {}
            ends = time.monotonic() + 30
            # The second worker may start late, and the kernel gives each connection to whoever is free.
            for number in itertools.count():
                answer = client.get(
                    "/where", headers={"x-user-id": f"user-{number % 5}", "connection": "close"}
                ).json()
                found.setdefault(answer["worker"], set()).add((number % 5, answer["pod"]))
                if (len(found) == 2 and number >= 20) or time.monotonic() > ends:
                    break
            assert len(found) == 2, "one worker has served them all"
            links = {
                (number, router.get_linked_pod("production", f"user-{number}", "chat"))
                for number in range(5)
            }
            assert set.union(*found.values()) == links


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_pod_reports_from_its_worker_and_says_when_it_ends(
    tmp_path: Path, production: str
) -> None:
    (tmp_path / "pod.py").write_text(block(THREADS, "python", 1).text)
    (tmp_path / "pod.conf.py").write_text(block(THREADS, "python", 2).text)
    (serve,) = typed(block(THREADS, "console", 1))
    with Router.from_url(production) as router:
        with served(tmp_path, serve.command, production) as client:
            headers = {"x-sfroute-uid": "grace"}
            assert client.get("/count", headers=headers).json() == {"how": "placed"}
            assert router.get_pods("production", "chat", fresh=True)[2].status == "Running"
            assert client.get("/count", headers=headers).json() == {"how": "placed"}
            assert router.get_linked_pod_if_persist("production", "grace", "chat") == 2
        assert router.get_pods("production", "chat", fresh=True)[2].status == "Stopped"


def test_a_worker_of_a_queue_delivers_by_pod(production: str) -> None:
    delivered: list[tuple[int, dict[str, str]]] = []
    with Router.from_url(production) as router:
        router.set_linked_pod("production", "ada", "chat", 3)
    with executed(block(THREADS, "python", 3)) as names:
        names["consume"](
            production,
            [{"ada": "hello", "nobody": "?"}],
            lambda pod, messages: delivered.append((pod, messages)),
        )
    assert delivered == [(3, {"ada": "hello"})]
