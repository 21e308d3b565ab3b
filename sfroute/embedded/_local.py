"""What a local cluster and a local single server share: starting and stopping their processes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from sfroute.errors import ConfigError

from ._binary import find_server
from ._node import BUS_OFFSET, Node, ServerSettings, why_not_free
from ._supervisor import LocalClusterError, PortTaken, Supervisor
from ._tls import Certificates, make_certificates

__all__ = ["LocalServers"]

START_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05


class LocalServers(ABC):
    """Servers that start with ``start()``, ``with`` or ``async with``. They end on exit, or when this process ends."""

    _scheme = "redis"
    _in_cluster = False
    _ports: Sequence[int] = ()
    """Ports of the first nodes. Later nodes get any free port."""

    def __init__(
        self,
        *,
        server_binary: str | os.PathLike[str] | None = None,
        tls: bool = False,
        password: str | None = None,
        node_timeout_ms: int = 1000,
        extra_config: Mapping[str, str | int | bool] | None = None,
    ) -> None:
        if password == "":
            raise ConfigError(
                "password must not be empty; pass None for servers without a password"
            )
        self._wanted_binary = server_binary
        self._tls = tls
        self._password = password
        self._node_timeout_ms = node_timeout_ms
        self._extra_config = dict(extra_config or {})
        self._nodes: list[Node] = []
        self._supervisor: Supervisor | None = None
        self._settings: ServerSettings | None = None
        self._certificates: Certificates | None = None
        self._abandoned = threading.Event()

    # --- properties

    @property
    def url(self) -> str:
        """The URL for ``Router.from_url``. Holds the password and, with TLS, the path of the CA certificate."""
        userinfo = "" if self._password is None else f":{quote(self._password, safe='')}@"
        hosts = ",".join(f"{host}:{port}" for host, port in self.startup_nodes)
        options = f"?ssl_ca_certs={quote(str(self.ca_cert))}" if self._tls else ""
        return f"{self._scheme}://{userinfo}{hosts}{options}"

    @property
    def startup_nodes(self) -> list[tuple[str, int]]:
        """Host and port of every node."""
        return [node.address for node in self._nodes]

    @property
    def ca_cert(self) -> Path | None:
        """The CA certificate (a PEM file) that verifies the servers' certificate. None without TLS."""
        return self._certificates.ca if self._certificates else None

    @property
    def directory(self) -> Path:
        """The temporary folder of the servers' data and logs. ``shutdown()`` removes it."""
        return self._running().directory

    @property
    def server_version(self) -> str:
        """The version of Valkey or Redis, such as ``"9.1.2"``."""
        info = self._any_node().info("server")
        return info.get("valkey_version", info["redis_version"])

    @property
    def server_name(self) -> str:
        """``"valkey"`` or ``"redis"``."""
        return self._any_node().info("server").get("server_name", "redis")

    def __repr__(self) -> str:
        ports = ",".join(str(port) for _, port in self.startup_nodes)
        return f"<{type(self).__name__} {ports or 'not started'}>"

    # --- start and stop

    def start(self) -> None:
        """Start the servers and return when they are ready. Blocks for about two seconds; ``async with`` does not.

        Raises:
            ConfigError: no server binary was found, or it cannot do what was asked.
            LocalClusterError: the servers did not come up. The text says why.
        """
        if self._supervisor is not None:
            raise LocalClusterError("start() was called before on this object; make a new one")
        binary = find_server(self._wanted_binary)
        self._check_ports()
        self._supervisor = Supervisor()
        try:
            if self._tls:
                self._certificates = make_certificates(self._supervisor.directory)
            self._settings = ServerSettings(
                binary=binary,
                cluster=self._in_cluster,
                node_timeout_ms=self._node_timeout_ms,
                tls=self._certificates,
                password=self._password,
                extra=self._extra_config,
            )
            self._form()
        except BaseException:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """End all servers and remove their data. Does nothing the second time, or in a forked child."""
        if self._supervisor is not None:
            self._supervisor.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be cancelled. It is told to stop, and ends what it started before this call returns.
            self._abandoned.set()
            await asyncio.wait([starting])
            if starting.exception() is None:
                await asyncio.to_thread(self.shutdown)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self.shutdown))

    # --- for the classes below

    @abstractmethod
    def _form(self) -> None:
        """Start the nodes and join them into what the class promises."""

    def _check_ports(self) -> None:
        for port in self._ports:
            reason = why_not_free(port, bus=self._in_cluster)
            if reason:
                first, last = self._ports[0], self._ports[-1]
                bus = (
                    f", and {first + BUS_OFFSET} to {last + BUS_OFFSET}" if self._in_cluster else ""
                )
                raise PortTaken(f"{reason}; the servers need ports {first} to {last}{bus}")

    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise LocalClusterError("the servers are not started; use start() or a with statement")
        return self._supervisor

    def _add(self) -> Node:
        """Launch one more server. Does not wait for it."""
        assert self._settings is not None
        number = len(self._nodes)
        node = Node(f"node{number}", self._settings, self._running())
        self._nodes.append(node)
        node.launch(self._ports[number] if number < len(self._ports) else None)
        return node

    def _active_nodes(self) -> list[Node]:
        return [node for node in self._nodes if node.alive and not node.paused]

    def _any_node(self) -> Node:
        self._running()
        active = self._active_nodes()
        if not active:
            raise LocalClusterError("no server is running; resume or restart one")
        return active[0]

    def _wait_up(self, nodes: Sequence[Node]) -> None:
        waiting = list(nodes)

        def missing() -> str | None:
            waiting[:] = [node for node in waiting if not node.is_up()]
            if not waiting:
                return None
            return f"{waiting[0]!r} does not answer; the end of its log:\n{waiting[0].log_tail()}"

        self._wait(missing, START_SECONDS)

    def _wait(self, missing: Callable[[], str | None], timeout: float) -> None:
        """Wait until ``missing`` returns None. The last text it returned becomes the error's."""
        deadline = time.monotonic() + timeout
        while (reason := missing()) is not None:
            if time.monotonic() >= deadline:
                raise LocalClusterError(f"after {timeout:g} s: {reason}")
            if self._abandoned.wait(_POLL_SECONDS):
                raise LocalClusterError("the start was cancelled")
