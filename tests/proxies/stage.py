"""A cluster, three pods at addresses that stay, `sfroute serve`, and a proxy with the configuration of the page.

The pods are in Python, unless a test says otherwise, and share a folder of counters.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import pytest
from support.documents import block
from support.processes import Child
from support.programs import free_port, running, until

from sfroute.embedded import LocalCluster

PAGE = "docs/how-to/proxies.md"
POD: Final = Path(__file__).parents[2] / "examples" / "gateway" / "pod.py"
PODS: Final = (0, 1, 2)
NAMESPACE: Final = "example"
LEASE_SECONDS: Final = 3.0
DRAIN_SECONDS: Final = 1.2


@dataclass
class Stage:
    """What runs. `url`: of the proxy; `asked`: of `sfroute serve`; `commands`: of pods that are not in Python."""

    cluster: LocalCluster
    folder: Path
    ports: dict[int, int]
    url: str = ""
    asked: str = ""
    name: str = ""
    pods: dict[int, Child[bytes]] = field(default_factory=dict)
    commands: dict[int, list[str]] = field(default_factory=dict)

    def start_pod(self, pod: int) -> None:
        """Start it, and wait until it takes users."""
        self.launch_pod(pod)
        self.await_pod(pod)

    def launch_pod(self, pod: int) -> None:
        port = str(self.ports[pod])
        command = [sys.executable, str(POD)]
        if pod in self.commands:
            command = [
                *(sys.executable, "-m", "sfroute", "agent", "--pod", str(pod)),
                *("--address", f"127.0.0.1:{port}", "--health", f"http://127.0.0.1:{port}/healthz"),
                *("--heartbeat", str(LEASE_SECONDS / 5), "--lease", str(LEASE_SECONDS)),
                *("--drain", str(DRAIN_SECONDS), "--listen", f"unix:{self.folder}/agent-{pod}"),
                *("--", *self.commands[pod], port, str(self.counters)),
            ]
        with (self.folder / f"pod-{pod}.log").open("ab") as log:
            self.pods[pod] = Child(
                command,
                env={
                    **os.environ,
                    "SFROUTE_URL": self.cluster.url,
                    "SFROUTE_NAMESPACE": NAMESPACE,
                    "SFROUTE_SERVICE": "chat",
                    "POD_NAME": f"chat-{pod}",
                    "PORT": port,
                    "LEASE_SECONDS": str(LEASE_SECONDS),
                    "DRAIN_SECONDS": str(DRAIN_SECONDS),
                    "DATABASE": f"{self.counters}/",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def await_pod(self, pod: int) -> None:
        port = self.ports[pod]

        def is_well() -> bool:
            assert self.pods[pod].poll() is None, (self.folder / f"pod-{pod}.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                # It serves the user, or says that another pod does.
                answer = httpx.get(
                    f"http://127.0.0.1:{port}/count",
                    headers={"X-Sfroute-Uid": f"probe-{pod}"},
                    trust_env=False,
                )
                return answer.status_code in (200, 421)
            return False

        until(is_well, 60)

    def end_pod(self, pod: int, number: int) -> None:
        self.pods[pod].send_signal(number)
        self.pods[pod].wait(60)

    def kill_command(self, pod: int) -> None:
        """Kill a pod that an agent minds, without its agent, which then ends."""
        process = self.pods[pod]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        process.wait(60)

    @property
    def counters(self) -> Path:
        return self.folder / "counters"

    def connections_to(self, pod: int) -> int:
        """TCP connections to a pod, those that ended lately with them."""
        there = f"{self.ports[pod]:04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(line.split()[2].endswith(f":{there}") for line in lines)


@contextlib.contextmanager
def stage(cluster: LocalCluster, folder: Path) -> Iterator[Stage]:
    """Three pods."""
    made = Stage(cluster, folder, {pod: free_port() for pod in PODS})
    made.counters.mkdir()
    try:
        for pod in PODS:
            made.launch_pod(pod)
        for pod in PODS:
            made.await_pod(pod)
        yield made
    finally:
        for process in made.pods.values():
            process.end()


def program(name: str) -> str:
    """Where a proxy is; `make test-proxies` sees to it."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"there is no {name}: `make test-proxies` brings it")
    return found


@contextlib.contextmanager
def _process(command: list[str], folder: Path, url: str) -> Iterator[None]:
    log = folder / "proxy.log"
    with log.open("wb") as out:
        process = Child(
            command,
            stdout=out,
            stderr=out,
            env={**os.environ, "XDG_DATA_HOME": str(folder), "HOME": str(folder)},
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url, trust_env=False)
                break
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.end()


def _addressed(text: str, on: Stage) -> str:
    """The page's text with the addresses of here."""
    text = text.replace("/run/sfroute", str(on.folder))
    return re.sub(r"chat-(\d)\.chat:8080", lambda m: f"127.0.0.1:{on.ports[int(m[1])]}", text)


@contextlib.contextmanager
def _serve(on: Stage, *options: str, listen: str) -> Iterator[str]:
    common = ("--url", on.cluster.url, "--namespace", NAMESPACE, "--service", "chat")
    uid = ("--uid-header", "X-User-Id", "--listen", listen)
    with running("serve", *common, *uid, *options, folder=on.folder, code=None) as served:
        on.asked = served.urls[0]
        yield on.asked


@contextlib.contextmanager
def nginx(on: Stage) -> Iterator[None]:
    command = program("nginx")
    port = free_port()
    server = _addressed(block(PAGE, "nginx", 0).text, on).replace(
        "listen 80;", f"listen 127.0.0.1:{port};"
    )
    temporary = "".join(
        f"{kind}_temp_path {on.folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = on.folder / "nginx.conf"
    file.write_text(
        f"daemon off; worker_processes 1; pid {on.folder}/nginx.pid; error_log stderr warn;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary} {server} }}\n"
    )
    if os.geteuid() == 0:  # its workers would be nobody, who cannot reach the socket
        file.write_text(f"user root;\n{file.read_text()}")
    on.url = f"http://127.0.0.1:{port}"
    with _serve(on, "--mode", "nginx", listen=f"unix:{on.folder}/decide.sock"):
        arguments = ["-p", str(on.folder), "-e", "stderr", "-c", str(file)]
        with _process([command, *arguments], on.folder, on.url):
            yield


@contextlib.contextmanager
def caddy(on: Stage) -> Iterator[None]:
    command = program("caddy")
    port = free_port()
    text = _addressed(block(PAGE, "caddyfile", 0).text, on).replace(
        ":80 {", f"http://127.0.0.1:{port} {{"
    )
    file = on.folder / "Caddyfile"
    # No port for its administration: others may run here.
    file.write_text(text.replace("{\n", "{\n\tadmin off\n", 1))
    on.url = f"http://127.0.0.1:{port}"
    with (
        _serve(on, "--upstream", "{address}", listen=f"unix:{on.folder}/decide.sock"),
        _process(
            [command, "run", "--config", str(file), "--adapter", "caddyfile"], on.folder, on.url
        ),
    ):
        yield


@contextlib.contextmanager
def haproxy(on: Stage) -> Iterator[None]:
    command = program("haproxy")
    port = free_port()
    on.url = f"http://127.0.0.1:{port}"
    with _serve(on, listen="127.0.0.1:0") as asked:
        script = on.folder / "sfroute.lua"
        script.write_text(block(PAGE, "lua", 0).text.replace("http://127.0.0.1:7080", asked))
        text = _addressed(block(PAGE, "haproxy", 0).text, on)
        text = text.replace("/etc/haproxy/sfroute.lua", str(script))
        # Abstract sockets are the machine's.
        text = text.replace("abns@sfroute", f"abns@sfroute-{os.getpid()}-{port}")
        file = on.folder / "haproxy.cfg"
        file.write_text(text.replace("bind :80", f"bind 127.0.0.1:{port}"))
        with _process([command, "-db", "-f", str(file)], on.folder, on.url):
            yield


@contextlib.contextmanager
def traefik(on: Stage) -> Iterator[None]:
    command = program("traefik")
    on.url = f"http://127.0.0.1:{free_port()}"
    dynamic, static = block(PAGE, "traefik", 0).text, block(PAGE, "traefik-static", 0).text
    static = static.replace(":80", on.url.removeprefix("http://"))
    for port in range(7091, 7095):
        here = free_port()
        dynamic = dynamic.replace(f":{port}", f":{here}")
        static = static.replace(f":{port}", f":{here}")
    file = on.folder / "sfroute.yaml"
    static = static.replace("/etc/traefik/sfroute.yaml", str(file))
    # The page has names in a row; ports are not.
    ports = " ".join(str(on.ports[pod]) for pod in PODS)
    dynamic = dynamic.replace(
        "chat-{{ . }}.chat:8080", f"127.0.0.1:{{{{ index (list {ports}) . }}}}"
    )
    with _serve(on, listen="127.0.0.1:0") as asked:
        file.write_text(dynamic.replace("http://127.0.0.1:7080", asked))
        configuration = on.folder / "traefik.yaml"
        # It would ask its maker for newer versions.
        configuration.write_text(f"global: {{checkNewVersion: false}}\n{static}")
        with _process([command, f"--configfile={configuration}"], on.folder, on.url):
            # It listens before it has read its routes.
            until(lambda: httpx.get(on.url, trust_env=False).status_code == 400, 30)
            yield


@contextlib.contextmanager
def envoy(on: Stage) -> Iterator[None]:
    command = program("envoy")
    port = free_port()
    on.url = f"http://127.0.0.1:{port}"
    with _serve(on, "--upstream", "{address}", listen="127.0.0.1:0") as asked:
        text = block(PAGE, "yaml", 0).text.replace(
            "port_value: 7080", f"port_value: {asked.rpartition(':')[2]}"
        )
        file = on.folder / "envoy.yaml"
        file.write_text(
            text.replace(
                "address: 0.0.0.0, port_value: 80}", f"address: 127.0.0.1, port_value: {port}}}"
            )
        )
        # Others may run here: no memory shared with one that is to take over.
        options = ("--disable-hot-restart", "--log-level", "warning")
        with _process([command, "-c", str(file), *options], on.folder, on.url):
            yield


PROXIES: Final = {
    "nginx": nginx,
    "caddy": caddy,
    "haproxy": haproxy,
    "traefik": traefik,
    "envoy": envoy,
}
