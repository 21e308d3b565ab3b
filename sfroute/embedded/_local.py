"""What a local cluster and a local single server share: the life of their processes."""

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
    """Servers that start with ``start()``, ``with`` or ``async with``, and end with it, or with this process."""

    _scheme = "redis"
    _in_cluster = False
    _ports: Sequence[int] = ()
    """Of the first nodes; whoever comes after them gets any that is free."""

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
            raise ConfigError("password must not be empty; None means that none is asked for")
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

    # --- what it is

    @property
    def url(self) -> str:
        """For ``Router.from_url``; holds the password, and with TLS the path of the authority's certificate."""
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
        """The certificate (PEM) of the authority that signed the servers' certificate; None without TLS."""
        return self._certificates.ca if self._certificates else None

    @property
    def directory(self) -> Path:
        """The temporary folder of the servers' data and logs, removed at the end."""
        return self._running().directory

    @property
    def server_version(self) -> str:
        """Such as ``"9.1.2"``, the version of Valkey or of Redis."""
        info = self._any_node().info("server")
        return info.get("valkey_version", info["redis_version"])

    @property
    def server_name(self) -> str:
        """``"valkey"`` or ``"redis"``."""
        return self._any_node().info("server").get("server_name", "redis")

    def __repr__(self) -> str:
        ports = ",".join(str(port) for _, port in self.startup_nodes)
        return f"<{type(self).__name__} {ports or 'not started'}>"

    # --- life

    def start(self) -> None:
        """Start the servers and return when they are ready; blocks for about two seconds (``async with`` does not).

        Raises:
            ConfigError: there is no server program, or it cannot do what was asked.
            LocalClusterError: it did not come up; the text says why.
        """
        if self._supervisor is not None:
            raise LocalClusterError("it was started before; make a new one")
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
        """End all servers and remove their data; a second call and one in a forked child do nothing."""
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
            # The thread cannot be cancelled: it is told, and ends what it started before this call returns.
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
        """Start the nodes and make them what they shall be."""

    def _check_ports(self) -> None:
        for port in self._ports:
            reason = why_not_free(port, bus=self._in_cluster)
            if reason:
                first, last = self._ports[0], self._ports[-1]
                bus = (
                    f", and {first + BUS_OFFSET} to {last + BUS_OFFSET}" if self._in_cluster else ""
                )
                raise PortTaken(f"{reason}; needed are {first} to {last}{bus}")

    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise LocalClusterError("it is not started; use start() or a with statement")
        return self._supervisor

    def _add(self) -> Node:
        """Launch one more server, without waiting for it."""
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
            raise LocalClusterError("none of the servers runs; restart one")
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
        """Wait until ``missing`` finds nothing missing; its last finding is the text of the error."""
        deadline = time.monotonic() + timeout
        while (reason := missing()) is not None:
            if time.monotonic() >= deadline:
                raise LocalClusterError(f"after {timeout:g} s: {reason}")
            if self._abandoned.wait(_POLL_SECONDS):
                raise LocalClusterError("the start was abandoned")
