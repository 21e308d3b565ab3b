"""``sfroute agent`` as the first process of a container: it collects orphans, and passes signals on."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from support.programs import Program, client_of, running, until

from sfroute import Router
from sfroute.embedded import LocalCluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has containers"),
    pytest.mark.timeout(240),
]

LONG = 60
"""Seconds; a busy machine may be slow."""
NAMESPACES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
SUBREAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


def has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["first process", "subreaper"])
def through(request: pytest.FixtureRequest) -> list[str]:
    """What makes the agent the parent of orphans."""
    if request.param == "subreaper":
        return [sys.executable, "-c", SUBREAPER]
    if not has_namespaces():
        pytest.skip("no process namespace can be made here; the subreaper shows the same")
    return NAMESPACES


class Init:
    """An agent to which orphans come."""

    def __init__(self, program: Program, through: list[str]) -> None:
        self.program = program
        self.pid = program.process.pid
        if through == NAMESPACES:
            (self.pid,) = children(self.pid)

    def children(self) -> list[int]:
        return children(self.pid)

    def signal(self, number: int) -> None:
        subprocess.run(["kill", f"-{number}", str(self.pid)], check=True)


@contextlib.contextmanager
def minded(
    cluster: LocalCluster, namespace: str, folder: Path, through: list[str], script: str
) -> Iterator[Init]:
    with running(
        "agent",
        *("--url", cluster.url, "--namespace", namespace, "--service", "chat", "--pod", "0"),
        *("--listen", "127.0.0.1:0", "--heartbeat", "0.2", "--lease", "3", "--drain", "0"),
        *("--child-grace", "300", "--", "sh", "-c", script),
        folder=folder,
        code=None,
        through=through,
    ) as program:
        init = Init(program, through)
        yield init
        if program.process.poll() is None:
            init.signal(signal.SIGTERM)
            program.process.wait(LONG)


def test_orphans_that_end_are_collected(
    cluster: LocalCluster, namespace: str, tmp_path: Path, through: list[str]
) -> None:
    # The shell in between ends at once. Its child then is the agent's, in the group of the command.
    script = f"(sh -c 'sleep 0.2; touch {tmp_path}/over' &); exec sleep 600"
    with (
        minded(cluster, namespace, tmp_path, through, script) as init,
        Router.from_url(cluster.url) as router,
    ):
        until((tmp_path / "over").exists, LONG)
        until(lambda: len(init.children()) == 1, LONG)
        until(lambda: bool(router.get_pods(namespace, "chat", fresh=True)), LONG)
        # The command's exit code is not lost among them.
        subprocess.run(["kill", "-9", str(init.children()[0])], check=True)
        assert init.program.process.wait(LONG) == 128 + signal.SIGKILL
        assert router.get_pods(namespace, "chat", fresh=True)[0].status == "Stopped"


def test_orphans_that_have_ended_are_not_waited_for(
    cluster: LocalCluster, namespace: str, tmp_path: Path, through: list[str]
) -> None:
    script = "(sleep 600 &); exec sleep 600"
    with minded(cluster, namespace, tmp_path, through, script) as init:
        until(lambda: len(init.children()) == 2, LONG)
        init.signal(signal.SIGTERM)
        # SIGTERM ends both; the second is nobody else's to collect. Until then it is of the group.
        assert init.program.process.wait(LONG) == 128 + signal.SIGTERM


def test_signals_are_passed_on_to_the_command(
    cluster: LocalCluster, namespace: str, tmp_path: Path, through: list[str]
) -> None:
    names = ("HUP", "QUIT", "USR1", "USR2", "WINCH")
    traps = "; ".join(f"trap 'touch {tmp_path}/{name}' {name}" for name in names)
    script = f"{traps}; touch {tmp_path}/begun; while :; do sleep 0.05; done"
    with (
        minded(cluster, namespace, tmp_path, through, script) as init,
        client_of(init.program.urls[0]) as client,
    ):
        until((tmp_path / "begun").exists, LONG)
        until(lambda: client.get("/status").json()["status"] == "Running", LONG)
        for name in names:
            init.signal(getattr(signal, f"SIG{name}"))
            until((tmp_path / name).exists, LONG)
