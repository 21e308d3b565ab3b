"""The processes of the demo on this machine: a cluster, pods in several languages, `sfroute serve`, and a proxy."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx

from sfroute.embedded import LocalCluster

__all__ = ["Fleet", "say"]

ROOT = Path(__file__).parents[2]
NAMESPACE, SERVICE = "polyglot", "chat"
START_SECONDS = 60.0
BUILD_SECONDS = 40.0
LEASE_SECONDS, DRAIN_SECONDS = 3.0, 1.0


def say(text: str) -> None:
    print(text, flush=True)


def find(name: str, *folders: Path) -> str | None:
    path = os.pathsep.join([os.environ["PATH"], *map(str, folders), "/usr/sbin"])
    return shutil.which(name, path=path)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Fleet:
    """Everything but the users.

    Attributes:
        url: where the users' requests go.
        languages: pod -> its language.
    """

    def __init__(self) -> None:
        self.url = ""
        self.languages: dict[int, str] = {}
        self._pods: dict[int, subprocess.Popen[bytes]] = {}
        self._ports: dict[int, int] = {}
        self._commands: dict[str, list[str]] = {}
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            self._folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
            (self._folder / "counters").mkdir()
            self._find_languages()
            self._cluster = exits.enter_context(LocalCluster())
            say(f"a cluster of {len(self._cluster.nodes)} nodes")
            exits.callback(self._end_pods)
            for pod in range(3):
                self.languages[pod] = ("python", "node", "go")[pod]
                if self.languages[pod] not in self._commands:
                    self.languages[pod] = "python"
                self._ports[pod] = free_port()
                self._launch(pod)
            for pod in self._pods:
                self._await_pod(pod)
                say(f"pod {pod}: {self.languages[pod]}")
            self._start_proxy(exits)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    # Pods

    def restart(self, pod: int) -> None:
        """As a rolling update does: SIGTERM, wait for the end, start the new one."""
        began = time.monotonic()
        self._pods[pod].send_signal(signal.SIGTERM)
        self._pods[pod].wait(START_SECONDS)
        self._launch(pod)
        self._await_pod(pod)
        say(f"pod {pod} ({self.languages[pod]}) was restarted in {time.monotonic() - began:.1f} s")

    def kill(self, pod: int) -> None:
        self._pods[pod].kill()
        self._pods[pod].wait()
        say(f"pod {pod} ({self.languages[pod]}) was killed: no drain, no last word")

    def _find_languages(self) -> None:
        self._commands["python"] = [sys.executable, str(ROOT / "examples" / "gateway" / "pod.py")]
        if node := find("node"):
            self._commands["node"] = [node, str(ROOT / "examples" / "node" / "pod.mjs")]
        else:
            say("skipped: pods in Node.js, since there is no node")
        if not (go := find("go", ROOT / ".cache" / "venv-go" / "bin")):
            say("skipped: pods in Go, since there is no go (.ci/go brings one)")
            return
        program = self._folder / "pod"
        caches = {"GOCACHE": str(ROOT / ".cache" / "go-build"), "GOPATH": str(self._folder / "go")}
        try:
            subprocess.run(
                [go, "build", "-o", str(program), "."],
                cwd=ROOT / "examples" / "go",
                env={**os.environ, **caches, "GOPROXY": "off", "GOTOOLCHAIN": "local"},
                check=True,
                timeout=BUILD_SECONDS,
            )
        except subprocess.SubprocessError as error:
            # The first time Go's own packages are compiled, too: what is done is kept for the next time.
            say(f"skipped: pods in Go ({error})")
        else:
            self._commands["go"] = [str(program)]

    def _launch(self, pod: int) -> None:
        port, language = self._ports[pod], self.languages[pod]
        command = self._commands[language]
        if language != "python":
            agent = [
                *(sys.executable, "-m", "sfroute", "agent", "--pod", str(pod)),
                *("--address", f"127.0.0.1:{port}", "--health", f"http://127.0.0.1:{port}/healthz"),
                *("--heartbeat", str(LEASE_SECONDS / 5), "--lease", str(LEASE_SECONDS)),
                *("--drain", str(DRAIN_SECONDS), "--listen", f"unix:{self._folder}/agent-{pod}"),
            ]
            command = [*agent, "--", *command, str(port), str(self._folder / "counters")]
        self._pods[pod] = self._start(
            command,
            f"pod-{pod}",
            POD_NAME=f"{SERVICE}-{pod}",
            PORT=str(port),
            LEASE_SECONDS=str(LEASE_SECONDS),
            DRAIN_SECONDS=str(DRAIN_SECONDS),
            DATABASE=f"{self._folder}/counters/",
        )

    def _await_pod(self, pod: int) -> None:
        """Until it serves a user, or says that another pod has them."""
        url = f"http://127.0.0.1:{self._ports[pod]}/count"
        headers = {"X-Sfroute-Uid": f"nobody-{pod}"}
        self._until(
            self._pods[pod],
            f"pod-{pod}",
            lambda: httpx.get(url, headers=headers, trust_env=False).status_code in (200, 421),
        )

    def _end_pods(self) -> None:
        # Nobody is left to be drained.
        for process in self._pods.values():
            process.kill()
        for process in self._pods.values():
            process.wait()

    # The proxy

    def _start_proxy(self, exits: contextlib.ExitStack) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        caddy = find("caddy", ROOT / ".cache" / "proxies" / "bin")
        if caddy is None:
            say(
                "skipped: Caddy with `sfroute serve`, since there is no caddy (.ci/proxies brings one)"
            )
            folder = str(ROOT / "examples" / "gateway")
            gateway = [
                *(sys.executable, "-m", "uvicorn", "--factory", "gateway:create_app"),
                *("--app-dir", folder, "--host", "127.0.0.1", "--port", str(port)),
                *("--no-access-log", "--log-level", "warning"),
            ]
            process = self._start(gateway, "gateway", exits, UID_FROM="header:x-user-id")
            self._until(process, "gateway", lambda: _answers(f"{self.url}/healthz"))
            say(f"the gateway of examples/gateway on {self.url}")
            return
        sockets = self._folder / "decide.sock"
        serve = [
            *(sys.executable, "-m", "sfroute", "serve", "--uid-header", "X-User-Id"),
            *("--upstream", "{address}", "--listen", f"unix:{sockets}"),
        ]
        self._start(serve, "serve", exits)
        # That of the kit for Kubernetes.
        told = free_port()
        text = (ROOT / "deploy" / "base" / "Caddyfile").read_text(encoding="utf-8")
        for given, here in (
            (":8080 {", f"http://127.0.0.1:{port} {{"),
            (":8081 {", f"http://127.0.0.1:{told} {{"),
            ("/run/sfroute/decide.sock", str(sockets)),
        ):
            assert given in text
            text = text.replace(given, here)
        file = self._folder / "Caddyfile"
        file.write_text(text, encoding="utf-8")
        command = [caddy, "run", "--config", str(file), "--adapter", "caddyfile"]
        folder = str(self._folder)
        process = self._start(command, "caddy", exits, HOME=folder, XDG_DATA_HOME=folder)
        self._until(process, "caddy", lambda: _answers(f"http://127.0.0.1:{told}/readyz"))
        say(f"Caddy with `sfroute serve` on {self.url}")

    # Processes

    def _start(
        self,
        command: list[str],
        name: str,
        exits: contextlib.ExitStack | None = None,
        **variables: str,
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "SFROUTE_URL": self._cluster.url,
                    "SFROUTE_NAMESPACE": NAMESPACE,
                    "SFROUTE_SERVICE": SERVICE,
                    **variables,
                },
                # Ctrl-C in a terminal is for the demo alone: it ends its processes in order.
                start_new_session=True,
            )
        if exits is not None:
            exits.callback(process.wait)
            exits.callback(process.kill)
        return process

    def _until(
        self, process: subprocess.Popen[bytes], name: str, holds: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError, json.JSONDecodeError):
                if holds():
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self._folder / f"{name}.log").read_text(errors="replace")
                last = re.sub(r"[^\x20-\x7e\n]", "?", log)[-2000:]
                raise RuntimeError(f"{name} did not start:\n{last}")
            time.sleep(0.05)


def _answers(url: str) -> bool:
    return httpx.get(url, trust_env=False).status_code == 200
